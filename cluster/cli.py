"""The command `pseudolabel`: its commands, and how each kind of failure reaches the user."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.commands import (
    beginning,
    bench,
    cleaning,
    comparing,
    exporting,
    images,
    jobs,
    labelling,
    learning,
    machine,
    pairs,
    rendering,
    rounds,
    transferring,
)
from cluster.console import OutputStream, PlainConsole, keep_streams, printable
from cluster.jobs.command_result import EXIT_CODES, FAILED, INTERRUPTED, UNREAD, status_of
from pipeline.errors import RunError, UserError
from pipeline.streaming.connection import let_threads_sleep

DEBUG = "PSEUDOLABEL_DEBUG"


class Commands(TyperGroup):
    """Turns the project's own errors into one message and an exit code; other exceptions are bugs and keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, RunError) as error:
            if os.environ.get(DEBUG):
                _trace()
            _print_error(f"error: {error}")
            raise typer.Exit(EXIT_CODES[status_of(error)]) from None
        except KeyboardInterrupt as interrupt:
            if os.environ.get(DEBUG):
                _trace()
            _print_error(f"interrupted{f': {interrupt}' if str(interrupt) else ''}")
            raise typer.Exit(EXIT_CODES[INTERRUPTED]) from None


app = typer.Typer(
    name="pseudolabel",
    cls=Commands,
    help=(
        "Learn from unlabelled images: photos become (input, pseudo-label) pairs, and pairs train a backbone.\n\n"
        "In order: [bold]pack[/] photos into shards, look at the pairs with [bold]preview[/], [bold]pretrain[/] a backbone, and "
        "measure it with [bold]finetune[/] and [bold]evaluate[/]. One YAML file, the recipe, describes a run; `recipes/` has "
        "some to start from."
    ),
    epilog=f"Exit codes: 0 done, 1 the run failed, 2 a mistake in the call or the recipe. {DEBUG}=1 shows where an error arose.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its dump of local variables could print secrets
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Images": (images.pack, images.inspect, beginning.init),
    "Pairs": (pairs.tasks, pairs.preview, pairs.colours, rendering.render, rendering.verify),
    "Learning": (
        learning.pretrain,
        learning.finetune,
        learning.evaluate,
        transferring.transfer,
        comparing.compare,
        exporting.export,
        cleaning.clean,
    ),
    "Labels that a model makes": (labelling.embed, labelling.cluster, labelling.label, rounds.rounds),
    "On a cluster": (jobs.submit, jobs.attach, jobs.status, jobs.list_jobs, jobs.stop),
    "This machine": (machine.doctor, bench.bench),
}
for panel, commands in _PANELS.items():
    for command in commands:
        paragraphs = (" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n"))
        app.command(command.__name__.removesuffix("_jobs"), rich_help_panel=panel, help="\n\n".join(paragraphs))(command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pseudolabel {version('pseudolabel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _print_error(message: str) -> None:
    from rich.text import Text

    PlainConsole(stderr=True).print(Text(printable(message), style="bold red"), soft_wrap=True)


def _trace() -> None:
    print(printable(traceback.format_exc()), file=sys.stderr, end="")


def main() -> None:
    """Run the command line; the process ends here."""
    keep_streams()
    let_threads_sleep()
    try:
        app(prog_name="pseudolabel")
    except SystemExit as end:
        sys.exit(end.code or _unwritten())
    except Exception:  # noqa: BLE001  a bug of ours, whose traceback may hold a library's words
        _trace()
        sys.exit(1)


def _unwritten() -> int:
    """The exit code of a command that has done its work: 0 unless its output could not be written."""
    assert isinstance(sys.stdout, OutputStream)
    sys.stdout.flush()
    if sys.stdout.lost is None:
        return 0
    if sys.stdout.is_unread:
        return UNREAD
    _print_error(f"error: the work is done, and its output could not be written to stdout: {sys.stdout.lost.strerror}")
    return EXIT_CODES[FAILED]
