"""Fine-tuning: the whole network learns the labelled task, from pretrained and from random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pipeline.errors import BudgetExceeded, UserError
from pipeline.recipe.schema import Recipe
from trainers.downstream.features import checked_recipe
from trainers.downstream.labelled import INITS, Labelled, for_each_share, open_labelled
from trainers.downstream.passes import left_out, passes, some_left
from trainers.downstream.pretrained import Pretrained, started
from trainers.downstream.problem import Judgement, TunedNetwork
from trainers.downstream.statistics import measuring, remeasure
from trainers.learning.examples import write_pictures
from trainers.learning.loop import TrainingJob, summary, train
from trainers.learning.ranks import gathered
from trainers.running.exclusive import exclusive
from trainers.running.fit import fit
from trainers.running.preflight import check_batch
from trainers.running.run_log import Record, open_run_log
from trainers.running.runs import ANSWERS, FINETUNED, RunFolder
from trainers.running.session import connect
from trainers.running.tracking import tracked

QUARANTINE = "finetune.quarantine.json"
BEGUN = "finetune.begun.json"
"""File that names the backbone from which checkpoints started: a run does not resume from those of another one."""

log = logging.getLogger(__name__)


def finetune(
    recipe: Recipe,
    listeners: list[Callable[[Record], None]] | None = None,
    fresh: bool = False,
    backbone: Pretrained | None = None,
    inits: Sequence[str] = INITS,
) -> dict[str, Any]:
    """Fine-tune the run's pretrained backbone on `downstream.train` and test it; the same from random weights, to compare.

    For the test, and in the weights that are left, batch normalisation has statistics that are measured on plain training images
    after training: the running ones are still near their initial values after some ten steps.

    Leaves in the run's folder `finetune.json` (what is returned), `classifier.pt`, `segmenter.pt` or `detector.pt` (the network
    of the first start, tuned), `finetune.quarantine.json` (the images that could not be used), `finetune.npz` (test photos with
    predicted masks or boxes) and the logs.

    Args:
        recipe: its `downstream` section names the corpora; the backbone comes from the run's `pretrain`.
        listeners: called with each log line.
        fresh: start again even if there are checkpoints of this recipe.
        backbone: in place of that of the run.
        inits: the starts, some of `INITS`.

    Returns:
        `downstream`: for each start, and each share of the labels, the accuracy (or mean IoU, or COCO AP) on the test set, after
        the last epoch, of the image's centre (of boxes, the whole image), with its standard error, the number of `labels`, the
        steps of training, and what it was measured on (`Labelled.measured`); of the largest share the others: `chance`; `classes`
        and their names; `quarantined`, and of each set `left_out`, why; `curves` and `stages`: the training loss of each start,
        and where its time went; `untrained`: the layers that pretraining did not reach, which start random in both;
        `pretraining`: the name of what the backbone was pretrained on; `differs`: where that was with another recipe.

    Raises:
        UserError: no pretrained backbone, no labels, labels that do not agree, or no image that can be used.
        BudgetExceeded: too many images cannot be used.
        RunError: the run failed.
    """
    return for_each_share(recipe, FINETUNED, lambda one: _finetune(one, listeners, fresh, backbone, inits))


def _finetune(
    recipe: Recipe,
    listeners: list[Callable[[Record], None]] | None,
    fresh: bool,
    backbone: Pretrained | None,
    inits: Sequence[str],
) -> dict[str, Any]:
    data, backbone = open_labelled(recipe), backbone or started(recipe, inits)
    problem, trained = data.problem, data.classes.trained
    geometry = data.training().schedule.geometry
    check_batch(
        lambda: problem.build(data.recipe, trained, None).normalising(),
        [recipe.image.size],
        geometry,
        recipe.training.most_workers,
        "downstream.batch",
    )
    weights = {"pretrained": backbone.weights, "random": None}
    untrained = _untrained(data, backbone.weights)
    folder = RunFolder(recipe)
    connect(recipe)
    with exclusive(f"finetune into {folder.url}"):
        _forget_other(folder, backbone.identity)
        rows, curves, stages, quarantine = [], {}, {}, []
        pictures: dict[str, Any] = {}
        for init in inits:
            job = finetuning_job(recipe, data, init, weights[init])
            stage = job.stage
            with tracked(recipe, stage) as tracker:
                takers = [tracker, *(listeners or [])]
                fit(_work, {"job": job, "data": data}, recipe, stage, job.run_log, takers, fresh)
            state, answer = job.state(), _answer(job)
            bad = some_left(state["quarantine"], data.train.samples, "downstream.train")
            quarantine = [{"set": side, **row} for side, part in (("train", bad), ("test", answer["bad"])) for row in part]
            judged = Judgement(**answer["judged"])
            measured = data.measured(judged.tested, judged.chance)
            about = {"init": init, "protocol": "finetune", "labels": data.train.samples - len(bad), "steps": state["step"]}
            rows.append({**about, **judged.score, **measured})
            curves[init], stages[init] = summary(state)["tasks"][problem.objective], state["stages"]
            pictures |= {init if name == "answer" else name: array for name, array in judged.pictures.items()}
            if init == inits[0]:
                names = list(data.classes.names[:trained])
                statistics = {name: torch.tensor(values) for name, values in answer["statistics"].items()}
                tuned = {problem.weights: {**state["model"], **statistics}, "classes": names}
                folder.write_weights(f"{problem.weights}.pt", tuned)
        outcome = {
            "pretraining": backbone.identity,
            "differs": backbone.differs,
            "untrained": untrained,
            "downstream": rows,
            "chance": measured["chance"],
            **data.described(),
            "quarantined": len(quarantine),
            "left_out": left_out(quarantine),
            "curves": curves,
            "stages": stages,
        }
        folder.write_json(QUARANTINE, quarantine)
        folder.write_json(FINETUNED, outcome)
        if pictures:
            write_pictures(folder.path(ANSWERS), pictures, backbone.identity)
        else:
            folder.remove(ANSWERS)
        return outcome


def finetuning_job(recipe: Recipe, data: Labelled, init: str, weights: dict[str, Any] | None) -> TrainingJob:
    """What `finetune` gives to each rank for one start; `weights` are the backbone's, None for random ones."""
    stage = f"finetune-{init}"
    return TrainingJob(
        stage=stage,
        folder=RunFolder(recipe).checkpoints(stage),
        source=data.training(),
        build=partial(data.problem.build, data.recipe, data.classes.trained, weights),
        objectives=(data.problem.objective,),
        optimizer=data.spec.optimizer,
        run_log=open_run_log(),
    )


def _forget_other(folder: RunFolder, pretraining: str) -> None:
    """Remove checkpoints that started from another backbone: the recipe is the same, and so is the name of their folder."""
    before = folder.read_json(BEGUN) or folder.read_json(FINETUNED) or {}
    if before.get("pretraining", pretraining) != pretraining:
        for init in INITS:
            folder.clear(f"finetune-{init}-{folder.identity(f'finetune-{init}')}")
    folder.write_json(BEGUN, {"pretraining": pretraining})


def _untrained(data: Labelled, weights: dict[str, Any]) -> list[str]:
    """Return, and log, the modules of the network that pretraining did not reach."""
    if not weights:
        return []
    missing = data.problem.build(data.recipe, data.classes.trained, weights).untrained
    found: list[str] = []
    for name in missing:
        parts = name.split(".")
        prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        found.append(next(p for p in prefixes if not any(f"{there}.".startswith(f"{p}.") for there in weights)))
    found = list(dict.fromkeys(found))
    if found:
        log.warning("pretraining did not reach these layers, which start random in both: %s", ", ".join(found))
    return found


def _answer(job: TrainingJob) -> dict[str, Any]:
    import ray

    answer: dict[str, Any] = ray.get(job.run_log.result.remote())
    return answer


def _work(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    job = config["job"]
    model = train(job)
    if model is None:
        return
    assert isinstance(model, TunedNetwork)
    data, context = config["data"], ray.train.get_context()
    world, tuned = context.get_world_size(), model.eval().normalising()
    *measured, tested = passes(*measuring(data, [tuned]), data.testing())
    recipe = checked_recipe(data.recipe, [tuned], next(model.parameters()).device, job.run_log)
    for images in measured:
        remeasure({"tuned": tuned}, images, recipe, world)
    try:
        found = data.problem.test(model, tested, recipe, len(data.classes.names))
        bad = tested.quarantined("downstream.test")
        parts = gathered([found], world)
        judged = data.problem.judge(parts, data.classes) if context.get_world_rank() == 0 else None
    except (BudgetExceeded, UserError) as error:  # the same on every rank, but for those of the judgement
        ray.get(job.run_log.set_error.remote(error))
        return
    if judged is not None:
        # As plain data and arrays: the run log, which passes them on, need not import torch.
        answer: dict[str, Any] = {"judged": vars(judged), "bad": bad}
        answer["statistics"] = {name: value.cpu().numpy() for name, value in model.named_buffers() if "running_" in name}
        ray.get(job.run_log.set_result.remote(answer))
