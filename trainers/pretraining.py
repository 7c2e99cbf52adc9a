"""Pretraining: shards and pretext tasks in, a backbone out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.engines import settled
from pipeline.errors import UserError
from pipeline.materialize.rendered import RenderedSource, for_training
from pipeline.order import Geometry, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.shards.opening import open_corpus
from pipeline.units import Source, row_bytes
from trainers.board import Record, open_board
from trainers.fit import fit
from trainers.loop import Job, load_state, summary, train
from trainers.pretext import PretextModel
from trainers.runs import RunFolder
from trainers.session import connect
from trainers.tracking import tracked

BACKBONE = "backbone.pt"
RESULT = "pretrain.json"


def pretrain(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None, fresh: bool = False) -> dict[str, Any]:
    """Train a backbone on the recipe's pretext tasks.

    Leaves in the run's folder: `backbone.pt` (weights under torchvision's names), `pretrain.json` (what is returned), the
    resolved recipe, the log, and checkpoints. The same call after a failure goes on from the last checkpoint.

    Args:
        recipe: what to train on what; where its shards are a rendered corpus, crop and tasks are those of that corpus.
        listeners: called with each log line, see `trainers.board.Record`.
        fresh: start anew even if there are checkpoints of this recipe.

    Returns:
        `tasks` (for each: losses and metrics over the steps, the last metric, the trivial one), `samples_per_second`,
        `quarantined`, `stages` (seconds), `steps`, `seconds`.

    Raises:
        UserError: the recipe cannot run as it is, or not on this cluster.
        RunError: the run failed.
    """
    recipe, rendered = for_training(recipe)
    if not recipe.tasks:
        raise UserError("the recipe names no tasks, so there is nothing to pretrain on; `pseudolabel tasks` lists them")
    schedule_of = partial(Schedule, seed=recipe.seed, epochs=recipe.training.epochs, tail=recipe.training.order.tail)
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    geometry.check_workers(recipe.training.workers)
    model = PretextModel(recipe, recipe.seed)  # built here too, so that a recipe that cannot be built is refused at once
    corpus = rendered.corpus() if rendered else open_corpus(recipe.corpus.shards, recipe.corpus.image)
    schedule = schedule_of(corpus.counts, geometry)
    connect(recipe)
    folder = RunFolder(recipe)
    folder.make()
    folder.write_json("recipe.json", recipe.model_dump(mode="json"))
    job = Job(
        source=RenderedSource(recipe, corpus, schedule, rendered=rendered)
        if rendered
        else Source(settled(recipe), corpus, schedule),
        build=partial(PretextModel, recipe, recipe.seed),
        shares={name: task.weight for name, task in recipe.tasks.items()},
        optimizer=recipe.training.optimizer,
        log_steps=recipe.training.log_steps,
        checkpoint_steps=max(1, round(recipe.training.checkpoint_epochs * schedule.steps_per_epoch)),
        board=open_board(),
    )
    with tracked(recipe, "pretrain") as tracker:
        result = fit(_work, {"job": job}, recipe, "pretrain", job.board, [tracker, *(listeners or [])], fresh)
    state, identity = load_state(result.checkpoint), folder.identity("pretrain")
    model.load_state_dict(state["model"])
    folder.write_weights(
        BACKBONE,
        {"backbone": model.backbone.network.state_dict(), "spec": recipe.training.backbone.model_dump(), "identity": identity},
    )
    outcome = summary(state)
    folder.write_json("quarantine.json", state["quarantine"])
    folder.write_json(RESULT, {"identity": identity, "recipe_sha256": recipe.digest(), **outcome})
    return outcome


def _work(config: dict[str, Any]) -> None:
    train(config["job"])
