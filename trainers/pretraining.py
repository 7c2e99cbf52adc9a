"""Pretraining: shards and pretext tasks in, a backbone out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import RunError, UserError
from pipeline.labels import Classes, Direction, Order, Views, number_of_classes
from pipeline.materialize.rendered import RenderedSource, for_training
from pipeline.ordering.order import Geometry, Schedule
from pipeline.ordering.quality import mixing
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import settled
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_training_corpus
from pipeline.storage import exists, make_folder, scrubbed, scrubbed_document
from pipeline.streaming.plan import file_bytes, sent_bytes
from trainers.exports.mlflow_model import log_backbone
from trainers.learning.examples import example_columns, example_figures, example_pictures, write_pictures
from trainers.learning.history import learnt
from trainers.learning.loop import TrainingJob, summary, train
from trainers.learning.pretext import HEADS, PretextModel
from trainers.objectives import objective_class
from trainers.objectives.classes import ClassesObjective
from trainers.objectives.fixmatch import FixmatchObjective
from trainers.running.capacity import nodes
from trainers.running.exclusive import exclusive
from trainers.running.fit import fit
from trainers.running.preflight import check_accumulate, check_batch, check_classes, check_compared
from trainers.running.run_log import Record, open_run_log
from trainers.running.runs import BACKBONE, EXAMPLES, HEAD, PRETRAINED, RECIPE, RunFolder, decisive, differences
from trainers.running.session import connect
from trainers.running.step_memory import check_memory, step_memory
from trainers.running.tracking import tracked

_MOST_NAMED = 5  # of the keys that differ

log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Train a backbone on the recipe's pretext tasks.

    Leaves in the run's folder: `backbone.pt` (weights under torchvision's names), `head.pt` (with a task that learns the images'
    own classes: backbone and classifier, in the form of `finetune`), `pretrain.json` (what is returned), the
    resolved recipe, and the log. After a failure, the same call resumes from the last checkpoint; once the run is complete, it
    returns the stored result at once. Results of another recipe under the same name are replaced at the end, not before; a
    warning says so at the start.

    Args:
        recipe: the recipe; where its shards are a rendered corpus, crop and tasks are those of that corpus.
        listeners: called with each log line, see `trainers.running.run_log.Record`.
        fresh: start again even if there are checkpoints of this recipe, or its run is complete.

    Returns:
        The summary of the run, see `trainers.learning.loop.summary`; for each task whether it is `learnt`, see
        `trainers.learning.history.learnt`; `answers`, how the images that the network paints differ from those asked for, see
        `trainers.learning.examples.example_figures`; `events`, such as lost workers; `order`, how well it mixes compared with a
        full shuffle, see `pipeline.ordering.quality.Mixing`; and for a mixture the share of each corpus: asked for, ordered, and
        trained.

    Raises:
        UserError: the recipe cannot run as it is, or not on this cluster.
        RunError: the run failed.
    """
    recipe, source, model = prepared(recipe)
    folder = RunFolder(recipe)
    if not fresh and (outcome := finished_result(folder)) is not None:
        log.warning("%s holds the results of this run already; --fresh (fresh=True in Python) trains it again", folder.url)
        return outcome
    connect(recipe)
    if need := step_memory(model, recipe):
        check_memory(need, recipe, nodes())
    with exclusive(f"pretrain into {folder.url}"):
        folder.make()
        if warning := replacement_warning(folder, recipe):
            log.warning("%s", warning)
        identity, document = folder.identity("pretrain"), recipe.model_dump(mode="json")
        checkpoints = f"pretrain-{identity}"
        if fresh:
            folder.clear(checkpoints)
            if _result_of(folder) == identity:
                folder.remove(PRETRAINED)  # else a run that is then interrupted would be taken for complete
        make_folder(folder.path(checkpoints))
        folder.write_json(f"{checkpoints}/{RECIPE}", document)
        job = pretraining_job(recipe, source)
        with tracked(recipe, "pretrain") as tracker:
            events = fit(_work, {"job": job}, recipe, "pretrain", job.run_log, [tracker, *(listeners or [])])
            state = job.state()
            model.load_state_dict(state["model"])
            for stage in folder.stages("finetune-"):
                folder.clear(stage)  # they started from the previous weights
            folder.write_weights(BACKBONE, backbone_file(model, recipe, identity))
            if (head := class_head(model, recipe, source.corpus)) is not None:
                folder.write_weights(HEAD, {**head, "identity": identity})
            else:
                folder.remove(HEAD)
            folder.write_json(RECIPE, document)
            answers = leave_pictures(model, source, folder, identity)
            ours, full = mixing(source.schedule)
            outcome = {
                **_judged(summary(state), recipe),
                "answers": answers,
                "events": events,
                "order": {"ours": asdict(ours), "full_shuffle": asdict(full)},
                "mixture": _mixture(source.schedule, state["trained"]),
            }
            folder.write_json("quarantine.json", state["quarantine"])
            folder.write_json(PRETRAINED, {"identity": identity, "recipe_sha256": recipe.digest(), **outcome})
            if recipe.tracking.mlflow:
                log_model(recipe)
        try:
            folder.clear(checkpoints)
        except OSError as error:  # the run is complete all the same
            log.warning("%s is not needed any more and cannot be removed: %s", folder.path(checkpoints), error)
        return outcome


def backbone_file(model: PretextModel, recipe: Recipe, identity: str) -> dict[str, Any]:
    """The content of `backbone.pt`: the backbone under its library's names, what network it is, the identity of its run, and the
    classifiers of tasks `assigned`."""
    architecture = recipe.training.backbone.architecture()
    heads = model.heads()
    content = {"backbone": model.backbone.network.state_dict(), "spec": architecture, "identity": identity}
    return {**content, HEADS: heads} if heads else content


def pretraining_job(recipe: Recipe, source: UnitSource) -> TrainingJob:
    """What `pretrain` gives to each rank; arguments as `prepared` makes them, and Ray must be connected."""
    return TrainingJob(
        stage="pretrain",
        folder=RunFolder(recipe).checkpoints("pretrain"),
        source=source,
        build=partial(PretextModel, recipe, recipe.seed),
        objectives=tuple(recipe.tasks),
        optimizer=recipe.training.optimizer,
        run_log=open_run_log(),
        accumulate=recipe.training.accumulate,
    )


def class_head(model: PretextModel, recipe: Recipe, corpus: Corpus) -> dict[str, Any] | None:
    """The classifier that a run has learnt in the first task of the images' own classes; None if there is no such task.

    Returns:
        `classifier`, the weights of backbone and head as `trainers.downstream.classifier` names them; the names of the `classes`;
        and `labels`, the number of images whose classes were known.
    """
    for name, task in recipe.tasks.items():
        objective = model.objectives[name]
        if task.learns_classes and isinstance(objective, ClassesObjective | FixmatchObjective):
            parts = {"backbone.network": model.backbone.network, "head": objective.head[-1]}
            return {
                "classifier": {f"{part}.{key}": value for part, own in parts.items() for key, value in own.state_dict().items()},
                "classes": corpus.classes or [str(number) for number in range(number_of_classes(task.label_kind()))],
                "labels": sum(int((corpus.labels(int(i)) >= 0).sum()) for i in np.flatnonzero(corpus.counts)),
            }
    return None


def leave_pictures(model: PretextModel, source: UnitSource, folder: RunFolder, identity: str) -> dict[str, Any]:
    """Leave pictures of what the network does with some photos; without them, for whatever reason, the run is complete, too.

    Returns:
        What `trainers.learning.examples.example_figures` measured; nothing if there are no pictures.
    """
    if isinstance(source, RenderedSource):  # it has no photos
        return {}
    try:
        columns = example_columns(source)
        write_pictures(folder.path(EXAMPLES), example_pictures(model, columns), identity)
        return example_figures(model, columns)
    except (UserError, RunError, OSError) as error:
        log.warning("there are no pictures of what was learnt: %s", error)
        return {}


def log_model(recipe: Recipe) -> None:
    """Log the backbone to the MLflow run; without it there, for whatever reason, the run is complete, too."""
    try:
        log_backbone(recipe)
    except Exception as error:  # noqa: BLE001 - whatever MLflow and its storage raise
        log.warning("the backbone is not in MLflow: %s", scrubbed(" ".join(str(error).split())))


def replacement_warning(folder: RunFolder, recipe: Recipe) -> str | None:
    """The warning that this run will replace another recipe's results in the folder; None if it has none."""
    theirs, identity = _result_of(folder), folder.identity("pretrain")
    if theirs in (None, identity):
        return None
    was, now = folder.read_json(RECIPE) or {}, scrubbed_document(recipe.model_dump(mode="json"))
    found = differences(decisive(was, "pretrain"), decisive(now, "pretrain")) or differences(was, now) if was else []
    keys = [*map(str, found[:_MOST_NAMED]), *([f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else [])]
    what = f" ({', '.join(keys)})" if keys else ""
    return (
        f"{folder.url} holds the backbone of another recipe{what}: it, its results and its report are replaced when this run "
        f"ends; to keep both, give this one a name of its own (--set name={recipe.name}-2)"
    )


def _result_of(folder: RunFolder) -> str | None:
    """The identity of the run whose results the folder holds; None if it holds none."""
    found = folder.read_json(PRETRAINED)
    return None if found is None else str(found["identity"])


def _judged(found: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Add to a run's summary the name of each task's metric, and whether the task is learnt."""
    for name, task in found["tasks"].items():
        objective = objective_class(recipe.tasks[name])
        task |= {"measured": objective.metric, "learnt": learnt(task, objective.higher_is_better, found["steps"])}
    return found


def finished_result(folder: RunFolder) -> dict[str, Any] | None:
    """The stored result of a complete run of this recipe, if there is one and its weights are there."""
    found, identity = folder.read_json(PRETRAINED), folder.identity("pretrain")
    if found is None or found.pop("identity") != identity or not exists(folder.path(BACKBONE)):
        return None
    if folder.read_weights(BACKBONE)["identity"] != identity:
        return None
    del found["recipe_sha256"]
    return dict(found)


def _mixture(schedule: Schedule, trained: list[int]) -> dict[str, dict[str, float]]:
    """For each corpus of a mixture its share of samples: as its weight asks, in the order, and among those trained."""
    weights = sum(portion.weight for portion in schedule.portions)
    quotas = schedule.plan(0).quotas
    return {
        portion.name: {
            "asked": portion.weight / weights,
            "ordered": float(quota / quotas.sum()),
            "trained": n / max(sum(trained), 1),
        }
        for portion, quota, n in zip(schedule.portions, quotas, trained)
    }


def prepared(recipe: Recipe) -> tuple[Recipe, UnitSource, PretextModel]:
    """Make the recipe as it will run, the source of its pairs in training order, and its network.

    Raises:
        UserError: the recipe cannot run as it is.
    """
    recipe, rendered = for_training(recipe)
    if recipe.rounds is not None:
        raise UserError("the recipe has a section `rounds`, and pretraining is a part of these: run `pseudolabel rounds` on it")
    if not recipe.tasks:
        raise UserError("the recipe names no tasks, so there is nothing to pretrain on; `pseudolabel tasks` lists them")
    spec = recipe.training
    chosen = settled(recipe)
    geometry = Geometry.of(spec.order, spec.batch, row_bytes(recipe))
    geometry.check_workers(spec.most_workers)
    model = PretextModel(recipe, recipe.seed)
    shapes = [task.input_shape(recipe.image.size) for task in recipe.tasks.values()]
    single = {side for side, *rest in shapes if len(rest) == 2}  # several patches of a sample are several images
    check_batch(lambda: model.backbone, single, geometry, spec.most_workers, "training.batch")
    check_compared(model.objectives.items(), spec.batch)
    check_accumulate(spec.accumulate, model.objectives.items(), geometry, spec.most_workers)
    corpus = rendered.corpus() if rendered else open_training_corpus(recipe.corpus, seed=recipe.seed)
    if not rendered:
        check_classes(recipe.tasks, corpus)
    sent = row_bytes(recipe) if rendered else max(sent_bytes(chosen), round(file_bytes(chosen, corpus)))
    geometry = Geometry.of(spec.order, spec.batch, row_bytes(recipe), sent)
    for workers in range(max(1, spec.least_workers), spec.most_workers + 1):
        geometry.shared_by(workers).check_unit(sent)
    schedule = Schedule(corpus.counts, geometry, recipe.seed, spec.epochs, spec.order.tail, portions=corpus.portions)
    image = not all(isinstance(task.label_kind(), Classes | Direction | Order | Views) for task in recipe.tasks.values())
    if rendered:
        return recipe, RenderedSource(recipe, corpus, schedule, image=image, rendered=rendered), model
    return recipe, UnitSource(chosen, corpus, schedule, image=image), model


def _work(config: dict[str, Any]) -> None:
    train(config["job"])
