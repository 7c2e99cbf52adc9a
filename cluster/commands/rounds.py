"""`rounds`: features, clusters and training in turn, with a report at the end."""

from __future__ import annotations

from cluster.commands.dry_running import say_plan
from cluster.commands.interrupts import interruptible
from cluster.commands.learning import begin_run, index_shards, load_run, report_run
from cluster.commands.options import DryRun, Fresh, Overrides, RecipePath, Result
from cluster.commands.shard_jobs import silence_data

_RESUMES = "what is done of a round stays, and the same command goes on from there"


def rounds(
    recipe: RecipePath, overrides: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False, result: Result = None
) -> None:
    """Label images by the network's own features, train it on these labels, and again: DeepCluster, SeLa, ClusterFit.

    The recipe's section `rounds` says how. Leaves backbone.pt, rounds.json and report.html in the run's folder, and each round's
    labels and weights in its folder `rounds`. If the command is killed at any moment, the same command goes on.

    Example: [bold]pseudolabel rounds recipe.yaml --set rounds.clusters=256[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.progress import rounds_progress
    from cluster.reports.tables import rounds_table
    from cluster.reports.terminal import print_out
    from trainers.labelling.rounds import LINES, check
    from trainers.labelling.rounds import rounds as run
    from trainers.running.exclusive import exclusive
    from trainers.running.runs import RunFolder
    from trainers.running.session import connect

    if dry_run:
        from trainers.planning.dry_run import rounds_plan
        from trainers.planning.estimates import estimate_rounds

        loaded = load_run(recipe, overrides)
        return say_plan("rounds", lambda: rounds_plan(loaded), lambda: estimate_rounds(loaded))
    with recorded("rounds", result) as outcome:
        loaded = load_run(recipe, overrides)
        check(loaded)
        for shards in loaded.corpus.lists():
            index_shards(shards, loaded)
        with interruptible(outcome, _RESUMES):
            begin_run(loaded, outcome, "rounds")
            connect(loaded)
            silence_data()
            with exclusive(f"rounds into {RunFolder(loaded).url}"), rounds_progress() as (progress, shown):
                found = run(loaded, [progress.take], shown, fresh)
        newest = found["rounds"][-1]
        outcome.counts = {"rounds": len(found["rounds"]), "steps": found["steps"], "quarantined": found["quarantined"]}
        outcome.metrics = {f"clusters/{name}": value for name, value in newest["figures"].items()}
        outcome.metrics |= {f"{name}/{key}": task[key] for name, task in newest["tasks"].items() for key in ("loss", "metric")}
        print_out(rounds_table(found["rounds"]))
        report_run(loaded, outcome, "backbone.pt", LINES, "quarantine.json", "recipe.json")
