"""The command line as a user meets it: help that teaches, exit codes, and mistakes answered in one message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import Commands
from pipeline.errors import RunError, ShardError, UserError
from tests.cluster.conftest import Call

COMMANDS = (
    "pack",
    "inspect",
    "init",
    "tasks",
    "preview",
    "pretrain",
    "finetune",
    "evaluate",
    "transfer",
    "compare",
    "export",
    "clean",
    "doctor",
)


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pseudolabel", *words],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_help_names_every_command_and_each_has_an_example(call: Call) -> None:
    overview = call("--help")
    assert overview.exit_code == 0
    for command in COMMANDS:
        assert f"{command} " in overview.stdout
        own = call(command, "--help")
        assert own.exit_code == 0
        assert f"Example: pseudolabel {command}" in own.stdout


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "numpy", "pyarrow", "cv2", "nvidia", "PIL", "matplotlib", "jinja2", "fsspec", "pydantic")
    script = f"import sys, cluster.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_is_that_of_the_package(call: Call) -> None:
    from importlib.metadata import version

    assert call("--version").stdout == f"pseudolabel {version('pseudolabel')}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["preview"],
        ["pack", "only-one"],
        ["preview", "recipe.yaml", "--samples", "many"],
        ["preview", "recipe.yaml", "--samples", "0"],
        ["pack", "a", "b", "--labels", "guess"],
        ["inspect", "--deeper"],
    ],
)
def test_a_mistake_in_the_call_is_exit_code_2_and_names_what_is_wrong(call: Call, words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Usage: pseudolabel" in result.stderr or "Usage: root" in result.stderr
    assert result.stdout == ""


def test_a_missing_recipe_is_one_line_on_stderr_and_exit_code_2() -> None:
    done = shell("preview", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe nowhere.yaml: No such file or directory\n"


def test_with_the_debug_variable_an_error_shows_where_it_arose() -> None:
    done = shell("preview", "nowhere.yaml", PSEUDOLABEL_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("error: recipe nowhere.yaml: No such file or directory\n")


def test_ctrl_c_is_exit_code_130_and_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.yaml"
    os.mkfifo(pipe)
    child = subprocess.Popen(
        [sys.executable, "-m", "pseudolabel", "preview", str(pipe)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is started with Ctrl-C ignored
    )
    with pipe.open("w"):  # opens when the child has opened it too; the child then waits for the recipe's first line
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (130, "interrupted\n")


def failing() -> typer.Typer:
    """Commands that fail in each of the ways there are."""
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.command()
    def user() -> None:
        raise UserError("corpus.shards [b]: no such folder")

    @app.command()
    def run() -> None:
        raise RunError("lost")

    @app.command()
    def shard() -> None:
        raise ShardError("a.tar", "ends early")

    @app.command()
    def bug() -> None:
        password = "hunter" + "2"
        raise KeyError(len(password))

    return app


@pytest.mark.parametrize(
    ("word", "code", "stderr"),
    [
        ("user", 2, "error: corpus.shards [b]: no such folder\n"),
        ("run", 1, "error: lost\n"),
        ("shard", 1, "error: a.tar: ends early\n"),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_its_message_whole(word: str, code: int, stderr: str) -> None:
    result = CliRunner().invoke(failing(), [word])
    assert (result.exit_code, result.stderr, result.stdout) == (code, stderr, "")


def test_a_bug_keeps_its_traceback_without_the_values_of_variables() -> None:
    script = "from tests.cluster.test_cli import failing; failing()(['bug'])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "KeyError: 7" in done.stderr
    assert "hunter2" not in done.stderr


Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- a\n- b\n", "expected a mapping of sections"),
        ("name: x\nseed: 1\ncorpus: {shards: s}\nimgae: {size: 32}\n", "did you mean 'image'?"),
        ("name: x\nseed: 1\ncorpus: {shards: s}\ntasks: {rotatoin: {}}\n", "did you mean 'rotation'?"),
        ("name: x\nseed: 1\ncorpus: {shards: s}\ntasks: {jigsaw: {gird: 3}}\n", "did you mean 'grid'?"),
        ("name: x\ncorpus: {shards: s}\n", "seed: required, and not given"),
        ("name: x\nseed: 1\ncorpus: {shards: s}\nimage: {size: big}\n", "image.size"),
    ],
)
@pytest.mark.parametrize("command", ["preview", "pretrain", "finetune", "evaluate"])
def test_a_mistake_in_the_recipe_is_named(refused: Refused, tmp_path: Path, command: str, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    said = refused(2, command, path)
    assert str(path) in said
    assert message in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected key=value"),
        ("training.epohcs=3", "did you mean 'epochs'?"),
        ("training.epochs=many", "training.epochs"),
        ("name.first=3", "'name' is not a section"),
        ("engine=gpu", "engine"),
    ],
)
def test_a_mistake_in_an_override_is_named(refused: Refused, recipe_file: Path, override: str, message: str) -> None:
    assert message in refused(2, "pretrain", recipe_file, "--set", override)


@pytest.mark.parametrize("command", ["preview", "pretrain"])
def test_shards_that_are_not_there_are_refused_before_anything_starts(refused: Refused, recipe_file: Path, command: str) -> None:
    said = refused(2, command, recipe_file, "--set", "corpus.shards=/nowhere/shard-{000..003}.tar")
    assert "/nowhere/shard-000.tar" in said
    assert "no such shard" in said


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate"])
def test_a_run_folder_that_cannot_be_written_is_refused_before_anything_starts(
    refused: Refused, recipe_file: Path, command: str
) -> None:
    said = refused(2, command, recipe_file, "--set", f"storage.runs={recipe_file}/runs")  # below a file
    assert "storage.runs" in said
    assert "cannot be written" in said


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_downstream_commands_say_what_is_missing(refused: Refused, recipe_file: Path, tiles: Path, command: str) -> None:
    assert "no `downstream` section" in refused(2, command, recipe_file)
    labelled = ("--set", f"downstream.train={tiles}", "--set", f"downstream.test={tiles}")
    assert "run `pseudolabel pretrain` with this recipe first" in refused(2, command, recipe_file, *labelled)


def test_pretraining_without_tasks_is_refused(refused: Refused, recipe_file: Path) -> None:
    assert "`pseudolabel tasks` lists them" in refused(2, "pretrain", recipe_file, "--set", "tasks={}")


def test_a_network_that_does_not_exist_is_refused_before_workers_are_spoken_of(
    refused: Refused, call: Call, recipe_file: Path
) -> None:
    words = ("pretrain", recipe_file, "--set", "training.backbone.name=resnet19")
    assert "unknown backbone 'resnet19': did you mean" in refused(2, *words)
    assert "starting workers" not in call(*words).stderr


def test_a_batch_of_one_on_a_map_of_one_position_is_refused_before_the_run(refused: Refused, recipe_file: Path) -> None:
    small = ("--set", "training.batch=1", "--set", "image.size=16", "--set", "training.backbone.stem=standard")
    assert "set training.batch to 2 or more" in refused(2, "pretrain", recipe_file, *small)
