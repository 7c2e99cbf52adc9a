"""`pretrain`, `finetune` and `evaluate`: runs on Ray, each with a report at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.commands.dry_running import say_plan
from cluster.commands.interrupts import interruptible
from cluster.commands.options import PHASES, DryRun, Fresh, Overrides, RecipePath, Result

if TYPE_CHECKING:
    from cluster.jobs.command_result import CommandResult
    from pipeline.recipe import Recipe

_RESUMES = "the same command goes on from the last checkpoint"


def pretrain(
    recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False, result: Result = None
) -> None:
    """Train a backbone on the recipe's pretext tasks.

    Leaves backbone.pt, the log and report.html in the run's folder (storage.runs, then the recipe's name). Run again after a
    failure, it goes on from the last checkpoint.

    Example: [bold]pseudolabel pretrain recipe.yaml --set training.epochs=20[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.progress import training
    from cluster.reports.tables import metric_names, pretext_table, stage_table
    from cluster.reports.terminal import print_out
    from pipeline.materialize.rendered import is_rendered
    from trainers.running.threads import thread_advice

    if dry_run:
        return _rehearse("pretrain", recipe, overrides)
    with recorded("pretrain", result) as outcome:
        loaded = load_run(recipe, overrides)
        if not is_rendered(loaded):
            for shards in loaded.corpus.lists():
                index_shards(shards, loaded)
        with interruptible(outcome, _RESUMES), training("pretrain", {}) as progress:
            begin_run(loaded, outcome, "pretrain")
            from trainers.pretraining import pretrain as run

            progress.metrics = metric_names(loaded)
            found = run(loaded, [progress.take], fresh)
        stages = found["stages"]
        outcome.counts = {"steps": found["steps"], "samples": stages["samples"], "quarantined": found["quarantined"]}
        outcome.metrics = {
            "samples_per_second": found["samples_per_second"],
            "wait_share": stages["wait"] / stages["total"] if stages["total"] else 0.0,
            **{f"{name}/loss": task["loss"][-1] for name, task in found["tasks"].items()},
            **{f"{name}/metric": task["metric"] for name, task in found["tasks"].items()},
        }
        print_out(
            pretext_table(found["tasks"], progress.metrics, found["steps"]),
            stage_table(stages),
            *filter(None, [thread_advice(loaded, stages)]),
        )
        report_run(loaded, outcome, "backbone.pt", "quarantine.json", "recipe.json")


def finetune(
    recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False, result: Result = None
) -> None:
    """Fine-tune the pretrained backbone on the recipe's labelled shards, and compare with the same network from random weights.

    Example: [bold]pseudolabel finetune recipe.yaml --set downstream.labels=0.1[/]
    """
    from cluster.jobs.command_result import recorded, scores
    from cluster.reports.progress import training

    if dry_run:
        return _rehearse("finetune", recipe, overrides)
    with recorded("finetune", result) as outcome:
        loaded = load_run(recipe, overrides)
        _index_downstream(loaded)
        with interruptible(outcome, _RESUMES), training("finetune", PHASES) as progress:
            begin_run(loaded, outcome, "finetune")
            from trainers.downstream.finetune import finetune as run

            found = run(loaded, [progress.take], fresh)
        outcome.counts = _downstream_counts(found)
        outcome.metrics = {**scores(found["downstream"]), "chance": found["chance"]}
        from trainers.downstream.problems import problem_of

        report_run(loaded, outcome, f"{problem_of(loaded.downstream).weights}.pt", "finetune.quarantine.json", results=True)


def evaluate(recipe: RecipePath, overrides: Overrides = None, dry_run: DryRun = False, result: Result = None) -> None:
    """Evaluate frozen features by linear probe and kNN; compare with random weights, chance and a colour histogram.

    Example: [bold]pseudolabel evaluate recipe.yaml --set downstream.layer=layer3[/]
    """
    from cluster.jobs.command_result import recorded, scores
    from cluster.reports.progress import training

    if dry_run:
        return _rehearse("evaluate", recipe, overrides)
    with recorded("evaluate", result) as outcome:
        loaded = load_run(recipe, overrides)
        _index_downstream(loaded)
        waiting = "computing and probing features"
        with interruptible(outcome), training("evaluate", {}, waiting) as progress:
            begin_run(loaded, outcome, "evaluate")
            from trainers.downstream.evaluate import evaluate as run

            found = run(loaded, [progress.take])
        outcome.counts = _downstream_counts(found)
        outcome.metrics = {**scores(found["downstream"]), "chance": found["chance"], "baseline": found["baseline"]}
        report_run(loaded, outcome, "evaluate.quarantine.json", results=True)


def _rehearse(command: str, recipe: str, overrides: list[str] | None) -> None:
    import time

    began = time.time()
    from trainers.planning import dry_run, estimates

    loaded = load_run(recipe, overrides)
    say_plan(
        command,
        lambda: getattr(dry_run, f"{command}_plan")(loaded),
        lambda: getattr(estimates, f"estimate_{command}")(loaded, began),
    )


def _downstream_counts(found: dict[str, Any]) -> dict[str, int]:
    row = found["downstream"][0]
    return {"quarantined": found["quarantined"], **{name: row[name] for name in ("classes", "labels", "tested", "total")}}


def load_run(recipe: str, overrides: list[str] | None) -> Recipe:
    """Load the recipe of a run, and refuse what cannot run on this machine before anything is started."""
    from pipeline.materialize.rendered import for_training
    from pipeline.recipe import load_recipe
    from trainers.running.session import check_early

    loaded = for_training(load_recipe(recipe, overrides or []))[0]
    check_early(loaded)
    return loaded


def index_shards(shards: str | list[str], recipe: Recipe) -> None:
    """Open shards once with progress, which indexes those without an index, and refuses missing ones at once."""
    from cluster.reports.progress import counted
    from pipeline.shards.opening import open_corpus

    with counted("indexing", "shard") as progress:
        open_corpus(shards, recipe.corpus.image, progress=progress)


def _index_downstream(recipe: Recipe) -> None:
    if recipe.downstream is not None:  # else the run itself says what is missing
        index_shards(recipe.downstream.train, recipe)
        index_shards(recipe.downstream.test, recipe)


def begin_run(recipe: Recipe, outcome: CommandResult, command: str) -> None:
    """Check that the run's folder can be written, before hours of work, and write a `running` result."""
    from cluster.jobs.command_result import RESULT
    from pipeline import storage
    from pipeline.errors import UserError
    from trainers.running.runs import RunFolder

    folder = RunFolder(recipe)
    probe = folder.path(".writable")
    try:
        folder.make()
        with storage.write_atomic(probe):
            pass
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"storage.runs: {folder.url} cannot be written: {error.strerror or error}") from None
    outcome.begin(folder.path(f"{command}.{RESULT}"))


def report_run(recipe: Recipe, outcome: CommandResult, *files: str, results: bool = False) -> None:
    """Write the report, print what it says, and name it and these files of the run's folder in the command's result."""
    from cluster.reports.report import HTML, JSON, write_report
    from cluster.reports.tables import downstream_tables
    from cluster.reports.terminal import print_out
    from trainers.running.runs import RunFolder

    folder = RunFolder(recipe)
    report = write_report(recipe)
    outcome.artefacts = {name: folder.path(name) for name in (*files, JSON, HTML)}
    if results:
        print_out(*downstream_tables(report))
    print_out(f"report: {folder.path(HTML)}")
