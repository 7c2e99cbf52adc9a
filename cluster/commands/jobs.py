"""`submit`, `attach`, `status`, `list` and `stop`: commands that run as jobs of a Ray cluster."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import PHASES, AsJson
from cluster.console import OutputStream
from cluster.jobs.command_result import UNREAD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cluster.jobs.ray_jobs import ClusterJob, Jobs
    from pipeline.recipe import Recipe

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's job server, such as http://head:8265; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or port 8265 here.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job, as `submit` and `list` name it.", show_default=False)]


def submit(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND ...",
            help="pretrain, finetune, evaluate, rounds, transfer, render, embed, cluster or label with its arguments, as without "
            "`submit`.",
        ),
    ],
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, and exit with its code.")] = True,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="ID", help="The job's id; by default made of the command and recipe.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Pass this environment variable to the job; may be repeated. Ray shows it to all who may list jobs.",
            show_default=False,
        ),
    ] = None,
    ship: Annotated[
        bool,
        typer.Option(
            "--ship/--no-ship", help="Ship the working directory; else only the recipe: the image must have the package."
        ),
    ] = True,
) -> None:
    """Run a command as a job on a cluster: write `submit --` before it.

    The job's id is derived from the command and the recipe. The same call again attaches to the job if it is under way; if it has
    ended, it is started again and resumes. Ctrl-C does not stop the job.

    Example: [bold]pseudolabel submit -- pretrain recipe.yaml --set training.epochs=20[/]
    """
    from cluster.jobs.command_result import CommandResult
    from cluster.jobs.ray_jobs import stable_id
    from cluster.jobs.shipping import snapshot
    from pipeline.errors import UserError
    from pipeline.recipe import load_recipe
    from pipeline.storage import is_local

    command, parsed = _parsed(context, words)
    given = parsed.params
    if given.get("dry_run"):
        raise UserError(
            f"--dry-run is no job: set RAY_ADDRESS to the cluster and run `pseudolabel {command} --dry-run` without submit"
        )
    recipe = given.get("recipe")
    loaded, variables = recipe and load_recipe(recipe, given["overrides"] or []), _passed(env or [])
    jobs = _jobs(address)
    folder, entrypoint = _package(command, parsed, loaded, jobs.here, ship)
    if loaded:
        _check(command, loaded, jobs)
    outcome, url = CommandResult(command, given["result"]), _result(command, given, loaded)
    id = name or stable_id(command, loaded, given.get("out"), _shaping(given))

    def sending(id: str) -> None:
        if jobs.here or not is_local(given["result"] or url):
            outcome.submitted(url, id)

    with snapshot(folder, None if ship else [recipe] if recipe else []) as shipped:
        surroundings = {"working_dir": str(shipped), "env_vars": variables}
        try:
            job, fresh = jobs.submit(id, entrypoint, surroundings, command, sending)
        except UserError as error:
            outcome.end(error)
            raise
    print(f"job {job.id} {'submitted' if fresh else 'is under way already'}", file=sys.stderr)
    if wait:
        _follow(jobs, job)
    else:
        print(job.id)


def attach(id: JobId, address: Address = None) -> None:
    """Follow a job's log from its beginning to the job's end, and exit with its code.

    Example: [bold]pseudolabel attach photos-pretrain-1a2b3c4d[/]
    """
    jobs = _jobs(address)
    _follow(jobs, jobs.find(id))


def status(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID|RUN", help="A job, as `submit` and `list` name it, or the folder of a run.", show_default=False
        ),
    ],
    address: Address = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it ends: step, losses and time left.")] = False,
    json: AsJson = False,
) -> None:
    """Show the status of a job of a cluster, or of a run by its folder: step, losses and time left.

    A job's figures are those that it prints, once a minute; a run's are those of its log. Of a process that was killed the folder
    cannot tell: it is still called running.

    Example: [bold]pseudolabel status runs/photos --watch[/]
    """
    from cluster.jobs.run_state import is_run, run_state, states
    from cluster.reports.progress import watch_job, watch_run
    from cluster.reports.terminal import print_json, print_out, run_table

    if is_run(name):
        if watch:
            watch_run(states(name), PHASES)
        state = run_state(name)
        print_json(state.as_dict()) if json else print_out(run_table(name, state))
        return
    jobs = _jobs(address)
    job = jobs.find(name)
    if watch:
        job = watch_job(jobs.states(job.id))
    _show([job], json, alone=True)
    if not json and (words := jobs.newest_words(job.id)):
        print_out(words)


def list_jobs(address: Address = None, json: AsJson = False) -> None:
    """List the jobs that `submit` has started on a cluster.

    Example: [bold]pseudolabel list[/]
    """
    _show(_jobs(address).all(), json)


def stop(id: JobId, address: Address = None) -> None:
    """Stop a job; if it is submitted again, it resumes.

    Example: [bold]pseudolabel stop photos-pretrain-1a2b3c4d[/]
    """
    jobs = _jobs(address)
    job = jobs.stop(jobs.find(id).id)
    print(f"job {job.id}: {job.status}")


def _jobs(address: str | None) -> Jobs:
    from cluster.jobs.ray_jobs import Jobs

    jobs = Jobs(address)
    if jobs.guessed:
        print(
            f"cluster: {jobs.url}, Ray's default address on this machine; --address or RAY_API_SERVER_ADDRESS names another one",
            file=sys.stderr,
        )
    return jobs


def _parsed(context: typer.Context, words: list[str]) -> tuple[str, Any]:
    """The command, and its parsed arguments as a context of click; errors are those of the command itself."""
    from cluster.jobs.ray_jobs import COMMANDS
    from pipeline.errors import UserError
    from pipeline.recipe.suggest import unknown_name

    command = words[0]
    assert context.parent is not None
    group: Any = context.parent.command
    if command not in COMMANDS:
        if command in group.list_commands(context.parent):
            raise UserError(f"{command} is no job of a cluster: run it without submit; jobs are {', '.join(COMMANDS)}")
        raise UserError(unknown_name("command for a cluster", command, COMMANDS))
    return command, group.get_command(context.parent, command).make_context(command, words[1:], parent=context.parent)


_PATHS = ("out", "result", "run", "weights", "features", "sheet")
"""Arguments that are paths or URLs."""
_CIRCUMSTANCES = ("recipe", "overrides", "dry_run", "result", "json", "fresh", "retry_failed", "actors", "sheet")
"""Arguments that change nothing in what a command writes, or that the recipe tells."""


def _shaping(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command that change what it writes, as plain data; paths are absolute."""
    from pipeline.storage import absolute

    return {
        name: absolute(value) if name in _PATHS else value
        for name, value in given.items()
        if name not in (*_CIRCUMSTANCES, "out") and value is not None
    }


def _package(command: str, parsed: Any, loaded: Recipe | None, here: bool, ship: bool) -> tuple[Path, str]:
    """The folder that is shipped, and the command line that runs in it."""
    import json
    import shlex
    from pathlib import Path

    from cluster.jobs.ray_jobs import settled_paths
    from cluster.jobs.shipping import is_checkout
    from pipeline.errors import UserError
    from pipeline.storage import scrubbed

    folder, words = Path.cwd(), _arguments(parsed, here)
    if loaded:
        recipe = Path(parsed.params["recipe"]).resolve()
        folder = folder if ship else recipe.parent
        if not recipe.is_relative_to(folder):
            raise UserError(f"{recipe} is outside the folder that is shipped, {folder}: run this in its folder, or use --no-ship")
        words.insert(0, str(recipe.relative_to(folder)))
        moved = [f"{key}={json.dumps(value)}" for key, value in settled_paths(loaded, here).items()]
        words += [word for setting in [*(parsed.params["overrides"] or []), *moved] for word in ("--set", setting)]
    for option, word in zip([command, *words], words):
        if scrubbed(word) != word:
            raise UserError(
                f"{option} {scrubbed(word)}: a URL with a password or a signature would be shown to all who may list the "
                "cluster's jobs: keep secrets in the cluster's own environment"
            )
    program = ["python", "-m", "pseudolabel"] if ship and is_checkout(folder) else ["pseudolabel"]
    return folder, shlex.join([*program, command, *words])


def _arguments(parsed: Any, here: bool) -> list[str]:
    """The words of a command's arguments that were given, besides the recipe and what is set in it; paths are absolute."""
    from pipeline.errors import UserError
    from pipeline.storage import absolute, is_local

    words: list[str] = []
    for part in parsed.command.params:
        value, positional = parsed.params.get(part.name), not part.opts[0].startswith("-")
        if part.name in ("recipe", "overrides") or value is None or (value == part.get_default(parsed) and not positional):
            continue
        option = next((name for name in part.opts if name.startswith("--")), part.name.upper())
        if part.name in _PATHS and is_local(value) and not value.startswith("/"):
            if not here:
                raise UserError(f"{option} {value} is a path relative to this folder, and the cluster is elsewhere: give a URL")
            value = absolute(value)
        if positional:
            words.insert(0, str(value))
        elif isinstance(value, bool):
            words.append(option if value else part.secondary_opts[0])
        else:
            words += [word for one in (value if isinstance(value, list | tuple) else [value]) for word in (option, str(one))]
    return words


def _check(command: str, loaded: Recipe, jobs: Jobs) -> None:
    """Refuse a run that does not fit the cluster before anything is sent."""
    there = jobs.nodes()
    if there is None:
        return
    from cluster.jobs.ray_jobs import TRAINING
    from trainers.running.capacity import check_nodes, pieces
    from trainers.running.preflight import check_elastic, check_render, check_resources

    trains = command in TRAINING
    (check_resources if trains else check_render)(loaded, sum(node.cpus for node in there), sum(node.gpus for node in there))
    if trains:
        check_elastic(loaded, there)
    check_nodes(pieces(loaded, trains), there)


def _result(command: str, given: dict[str, Any], loaded: Recipe | None) -> str:
    """The URL of the command's result if `--result` is not given."""
    from cluster.commands.transferring import transfer_folder, transfer_result
    from cluster.jobs.command_result import RESULT, result_url
    from trainers.running.runs import RunFolder

    if command == "transfer":
        assert loaded is not None
        return transfer_result(given["out"] or transfer_folder(loaded))
    if given.get("out"):
        return result_url(given["out"], command)
    assert loaded is not None
    return RunFolder(loaded).path(f"{command}.{RESULT}")


def _passed(names: list[str]) -> dict[str, str]:
    from pipeline.errors import UserError

    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: no such variable in this environment; name variables, without values")
    return {name: os.environ[name] for name in names}


def _follow(jobs: Jobs, job: ClusterJob) -> None:
    def write(text: str) -> None:
        print(text, end="", flush=True)
        if isinstance(sys.stdout, OutputStream) and sys.stdout.is_unread:
            raise SystemExit(UNREAD)

    try:
        ended = jobs.follow(job.id, write)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the job goes on; `pseudolabel attach {job.id}` follows it, `pseudolabel stop {job.id}` ends it"
        ) from None
    print(f"job {ended.id}: {ended.status}", file=sys.stderr)
    if ended.code:
        raise typer.Exit(ended.code)


def _show(jobs: list[ClusterJob], json: bool, alone: bool = False) -> None:
    from dataclasses import asdict

    from cluster.reports.terminal import jobs_table, print_json, print_out

    if json:
        print_json(asdict(jobs[0]) if alone else [asdict(job) for job in jobs])
    else:
        print_out(jobs_table(jobs))
        if alone:
            print_out(jobs[0].message)
