"""Fine-tuning: the whole network learns the labelled task, from pretrained and from random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pipeline.recipe.schema import Recipe
from trainers.backbones import build_backbone
from trainers.board import Record, open_board
from trainers.downstream.classifier import OBJECTIVE, Classifier
from trainers.downstream.labelled import INITS, Labelled, open_labelled, pretrained
from trainers.feed import Feed
from trainers.fit import fit
from trainers.inputs import to_device
from trainers.loop import Job, summary, train
from trainers.optim import autocast
from trainers.preflight import check_batch
from trainers.ranks import summed
from trainers.runs import RunFolder
from trainers.session import alone, connect
from trainers.tracking import tracked

RESULT = "finetune.json"


def finetune(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Fine-tune the run's pretrained backbone on `downstream.train` and test it, beside the same network from random weights.

    Leaves in the run's folder `finetune.json` (what is returned), `classifier.pt` (the pretrained network, tuned) and the logs.

    Args:
        recipe: its `downstream` section says on what; the backbone comes from the run's `pretrain`.
        listeners: called with each log line.
        fresh: start anew even if there are checkpoints of this recipe.

    Returns:
        `downstream`: for each start the accuracy on the whole test set, after the last epoch, of the image's centre;
        `chance`, `classes`, `curves` and `stages`: the training loss of each start, and where its time went; `pretraining`: the
        name of what the backbone was pretrained on.

    Raises:
        UserError: no pretrained backbone, no labels, or labels that do not agree.
        RunError: the run failed.
    """
    data = open_labelled(recipe)
    backbone, pretraining = pretrained(recipe)
    weights = {"pretrained": backbone, "random": None}
    network = partial(build_backbone, recipe.training.backbone, recipe.image.size, recipe.seed, ("vector",))
    geometry = data.training().schedule.geometry
    check_batch(network, [recipe.image.size], geometry, recipe.training.most_workers, "downstream.batch")
    folder = RunFolder(recipe)
    connect(recipe)
    with alone(f"finetune into {folder.url}"):
        rows, curves, stages = [], {}, {}
        for init in INITS:
            source = data.training()
            stage = f"finetune-{init}"
            job = Job(
                stage=stage,
                folder=folder.checkpoints(stage),
                source=source,
                build=partial(Classifier, data.recipe, data.classes, weights[init]),
                objectives=(OBJECTIVE,),
                optimizer=data.spec.optimizer,
                board=open_board(),
            )
            with tracked(recipe, stage) as tracker:
                takers = [tracker, *(listeners or [])]
                fit(_work, {"job": job, "data": data}, recipe, stage, job.board, takers, fresh)
            state = job.state()
            rows.append({"init": init, "protocol": "finetune", "accuracy": _answer(job), "labels": data.train.samples})
            curves[init], stages[init] = summary(state)["tasks"][OBJECTIVE], state["stages"]
            if init == "pretrained":
                folder.write_weights("classifier.pt", {"classifier": state["model"], "classes": data.train.classes})
        outcome = {
            "pretraining": pretraining,
            "downstream": rows,
            "chance": data.chance,
            "classes": data.classes,
            "curves": curves,
            "stages": stages,
        }
        folder.write_json(RESULT, outcome)
        return outcome


def _answer(job: Job) -> float:
    import ray

    return float(ray.get(job.board.answer.remote())["accuracy"])


def _work(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    model = train(config["job"])
    if model is not None:
        assert isinstance(model, Classifier)
        accuracy = _test(model, config["data"])
        if ray.train.get_context().get_world_rank() == 0:
            ray.get(config["job"].board.conclude.remote({"accuracy": accuracy}))


@torch.inference_mode()
def _test(model: Classifier, data: Labelled) -> float:
    """Accuracy over the test set; batch normalisation and dropout as in evaluation."""
    import ray.train
    import ray.train.torch

    context, device = ray.train.get_context(), ray.train.torch.get_device()
    world = context.get_world_size()
    right = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    for _, columns in Feed(data.once(data.test), context.get_world_rank(), world):
        batch = to_device({name: columns[name] for name in ("image", "class", "weight")}, device)
        with autocast(device, data.recipe.training.precision):
            hit = model.logits(batch["image"]).argmax(1) == batch["class"]
        counted = (batch["weight"] > 0) & (batch["class"] >= 0)
        right += torch.stack([(hit & counted).sum(), counted.sum()]).to(torch.float64)
    total = summed(right, world)
    return float(total[0] / total[1])
