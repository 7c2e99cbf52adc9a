"""`pretrain`, `finetune` and `evaluate`: runs on Ray, each with a report at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.commands.options import Fresh, Overrides, RecipePath

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_RESUMES = "the same command goes on from the last checkpoint"


def pretrain(recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """Train a backbone on the recipe's pretext tasks.

    Leaves backbone.pt, the log and report.html in the run's folder (storage.runs, then the recipe's name). Run again after a
    failure, it goes on from the last checkpoint.

    Example: [bold]pseudolabel pretrain recipe.yaml --set training.epochs=20[/]
    """
    from cluster.progress import training
    from cluster.results import metric_names, pretext_table, stage_table
    from cluster.show import say
    from pipeline.materialize.rendered import is_rendered

    loaded = _load(recipe, overrides)
    if not is_rendered(loaded):
        _index(loaded.corpus.shards, loaded)
    with _interruptible(_RESUMES), training("pretrain", [""]) as board:
        _claim(loaded)
        from trainers.pretraining import pretrain as run

        board.metrics = metric_names(loaded)
        outcome = run(loaded, [board.take], fresh)
    say(pretext_table(outcome["tasks"], board.metrics), stage_table(outcome["stages"]))
    _report(loaded)


def finetune(recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False) -> None:
    """Fine-tune the pretrained backbone on the recipe's labelled shards, beside the same network from random weights.

    Example: [bold]pseudolabel finetune recipe.yaml --set downstream.labels=0.1[/]
    """
    from cluster.progress import training

    loaded = _load(recipe, overrides)
    _index_downstream(loaded)
    with _interruptible(_RESUMES), training("finetune", ["from pretrained weights", "from random weights"]) as board:
        _claim(loaded)
        from trainers.downstream.finetune import finetune as run

        run(loaded, [board.take], fresh)
    _report(loaded, results=True)


def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Probe the frozen features: linear probe and kNN, beside random weights, chance and a colour histogram.

    Example: [bold]pseudolabel evaluate recipe.yaml --set downstream.layer=layer3[/]
    """
    from cluster.progress import training

    loaded = _load(recipe, overrides)
    _index_downstream(loaded)
    with _interruptible(), training("evaluate", [""], "computing and probing features") as board:
        _claim(loaded)
        from trainers.downstream.evaluate import evaluate as run

        run(loaded, [board.take])
    _report(loaded, results=True)


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from pipeline.materialize.rendered import for_training
    from pipeline.recipe import load_recipe

    return for_training(load_recipe(recipe, overrides or []))[0]


def _index(shards: str | list[str], recipe: Recipe) -> None:
    """Open shards once with progress, which indexes those that are not yet; also refuses at once what is not there."""
    from cluster.progress import counted
    from pipeline.shards.opening import open_corpus

    with counted("indexing", "shard") as progress:
        open_corpus(shards, recipe.corpus.image, progress=progress)


def _index_downstream(recipe: Recipe) -> None:
    if recipe.downstream is not None:  # else the run itself says what is missing
        _index(recipe.downstream.train, recipe)
        _index(recipe.downstream.test, recipe)


def _claim(recipe: Recipe) -> None:
    """Refuse a run folder that cannot be written before hours go into what should be stored there."""
    from pipeline import storage
    from pipeline.errors import UserError
    from trainers.runs import RunFolder

    folder = RunFolder(recipe)
    probe = folder.path(".writable")
    try:
        folder.make()
        with storage.write_atomic(probe):
            pass
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"storage.runs: {folder.url} cannot be written: {error.strerror or error}") from None


@contextmanager
def _interruptible(hint: str = "") -> Iterator[None]:
    """Ctrl-C, with a word on how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray Train's own handler of Ctrl-C leaves, with exit code 0
        raise KeyboardInterrupt(*filter(None, [hint])) from None


def _report(recipe: Recipe, results: bool = False) -> None:
    from cluster.report import HTML, write_report
    from cluster.results import downstream_table
    from cluster.show import say
    from trainers.runs import RunFolder

    report = write_report(recipe)
    if results:
        say(downstream_table(report))
    say(f"report: {RunFolder(recipe).path(HTML)}")
