"""Pretraining: shards and pretext tasks in, a backbone out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from pipeline.engines import settled
from pipeline.errors import UserError
from pipeline.labels import Classes, Direction, Order
from pipeline.materialize.rendered import RenderedSource, for_training
from pipeline.order import Geometry, Schedule
from pipeline.quality import mixing
from pipeline.recipe.schema import Recipe
from pipeline.shards.opening import open_training_corpus
from pipeline.storage import exists
from pipeline.stream import sent_bytes
from pipeline.units import Source, row_bytes
from trainers.board import Record, open_board
from trainers.fit import fit
from trainers.loop import Job, summary, train
from trainers.preflight import check_batch
from trainers.pretext import PretextModel
from trainers.runs import RunFolder
from trainers.session import alone, connect
from trainers.tracking import tracked

BACKBONE = "backbone.pt"
RESULT = "pretrain.json"

log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Train a backbone on the recipe's pretext tasks.

    Leaves in the run's folder: `backbone.pt` (weights under torchvision's names), `pretrain.json` (what is returned), the
    resolved recipe, the log, and checkpoints. The same call after a failure goes on from the last checkpoint; after the end it
    returns at once what is there.

    Args:
        recipe: what to train on what; where its shards are a rendered corpus, crop and tasks are those of that corpus.
        listeners: called with each log line, see `trainers.board.Record`.
        fresh: start anew even if there are checkpoints of this recipe, or its run is over.

    Returns:
        What `trainers.loop.summary` says of the run; `events`, what befell it; `order`, how well it mixes beside a full shuffle
        (see `pipeline.quality.Mixing`); and for a mixture the share of each corpus: asked for, ordered, and trained.

    Raises:
        UserError: the recipe cannot run as it is, or not on this cluster.
        RunError: the run failed.
    """
    recipe, source, model = prepared(recipe)
    folder, spec = RunFolder(recipe), recipe.training
    if not fresh and (outcome := _over(folder)) is not None:
        log.warning("%s holds the end of this run already; to train it anew ask for that (--fresh)", folder.url)
        return outcome
    connect(recipe)
    with alone(f"pretrain into {folder.url}"):
        folder.make()
        folder.write_json("recipe.json", recipe.model_dump(mode="json"))
        job = Job(
            stage="pretrain",
            folder=folder.checkpoints("pretrain"),
            source=source,
            build=partial(PretextModel, recipe, recipe.seed),
            objectives=tuple(recipe.tasks),
            optimizer=spec.optimizer,
            board=open_board(),
        )
        with tracked(recipe, "pretrain") as tracker:
            events = fit(_work, {"job": job}, recipe, "pretrain", job.board, [tracker, *(listeners or [])], fresh)
        state, identity = job.state(), folder.identity("pretrain")
        model.load_state_dict(state["model"])
        folder.write_weights(
            BACKBONE,
            {"backbone": model.backbone.network.state_dict(), "spec": spec.backbone.model_dump(), "identity": identity},
        )
        ours, full = mixing(source.schedule)
        outcome = {
            **summary(state),
            "events": events,
            "order": {"ours": asdict(ours), "full_shuffle": asdict(full)},
            "mixture": _mixture(source.schedule, state["trained"]),
        }
        folder.write_json("quarantine.json", state["quarantine"])
        folder.write_json(RESULT, {"identity": identity, "recipe_sha256": recipe.digest(), **outcome})
        return outcome


def _over(folder: RunFolder) -> dict[str, Any] | None:
    """What a run of this recipe returned that is over, if it is and its weights are there."""
    found, identity = folder.read_json(RESULT), folder.identity("pretrain")
    if found is None or found.pop("identity") != identity or not exists(folder.path(BACKBONE)):
        return None
    if folder.read_weights(BACKBONE)["identity"] != identity:
        return None
    del found["recipe_sha256"]
    return dict(found)


def _mixture(schedule: Schedule, trained: list[int]) -> dict[str, dict[str, float]]:
    """Of each corpus of a mixture, the share of samples that its weight asks for, that of the order, and that of the trained."""
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


def prepared(recipe: Recipe) -> tuple[Recipe, Source, PretextModel]:
    """The recipe as it will run, its pairs in their order, and its network; what cannot be made is refused here.

    Raises:
        UserError: the recipe cannot run as it is.
    """
    recipe, rendered = for_training(recipe)
    if not recipe.tasks:
        raise UserError("the recipe names no tasks, so there is nothing to pretrain on; `pseudolabel tasks` lists them")
    spec = recipe.training
    chosen = settled(recipe)
    sent = row_bytes(recipe) if rendered else sent_bytes(chosen)
    geometry = Geometry.of(spec.order, spec.batch, row_bytes(recipe), sent)
    geometry.check_workers(spec.most_workers)
    model = PretextModel(recipe, recipe.seed)
    shapes = [task.input_shape(recipe.image.size) for task in recipe.tasks.values()]
    single = {side for side, *rest in shapes if len(rest) == 2}  # several patches of a sample are several images
    check_batch(lambda: model.backbone, single, geometry, spec.most_workers, "training.batch")
    corpus = rendered.corpus() if rendered else open_training_corpus(recipe.corpus)
    schedule = Schedule(corpus.counts, geometry, recipe.seed, spec.epochs, spec.order.tail, portions=corpus.portions)
    image = not all(isinstance(task.label_kind(), Classes | Direction | Order) for task in recipe.tasks.values())
    if rendered:
        return recipe, RenderedSource(recipe, corpus, schedule, image=image, rendered=rendered), model
    return recipe, Source(chosen, corpus, schedule, image=image), model


def _work(config: dict[str, Any]) -> None:
    train(config["job"])
