"""Names from users are printed literally, and a failure of stdout undoes no work."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.console import PlainConsole, PlainFormatter, printable
from cluster.reports.progress import Bar, Lines
from tests.cluster.conftest import Call

ODD = ("[old] cat", ":cat:", "[bold]x[/]", "[/]", "\x1b[31mred\x9b", "käse")


@pytest.fixture
def odd_photos(tmp_path: Path) -> Path:
    """A folder per class of odd names, one image each."""
    for name in (name for name in ODD if "/" not in name):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 32)).save(tmp_path / "photos" / name / "[0]a.png")
    return tmp_path / "photos"


def test_names_are_shown_by_the_letter_and_steer_no_terminal(call: Call, odd_photos: Path, tmp_path: Path) -> None:
    packed = call("pack", odd_photos, tmp_path / "[s] :cat:")
    seen = call("inspect", tmp_path / "[s] :cat:", "--deep")
    for done in (packed, seen):
        assert done.exit_code == 0, done.output
        text = " ".join(done.stdout.split())
        assert "[old] cat" in text
        assert ":cat:" in text
        assert "\\x1b[31mred\\x9b" in text
        assert "\x1b" not in text
    assert "[s] :cat:" in packed.stdout


def test_a_mistake_is_shown_by_the_letter(call: Call) -> None:
    said = call("inspect", "/[old] :cat:\x1b[2J.tar").stderr
    assert said == "error: /[old] :cat:\\x1b[2J.tar: nothing matches\n"
    assert "[/bold]" in call("[/bold]").stderr


@pytest.mark.parametrize("text", ODD)
def test_progress_shows_names_by_the_letter(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(width=200, force_terminal=True, color_system=None)
    bar = Bar(console)
    detail = {text: ("1.0", "2 %", "3 %")}
    with bar.live:
        bar.show("training", 1, 2, "", detail)
    Lines(lambda line: console.print(line, soft_wrap=True, highlight=False)).show("training", 1, 2, "", detail)
    assert capsys.readouterr().out.count(printable(text)) >= 2


def test_warnings_steer_no_terminal() -> None:
    record = logging.LogRecord("pipeline", logging.WARNING, __file__, 1, "%s is left alone", ("a\x1b[2J\nb",), None)
    assert PlainFormatter().format(record) == "a\\x1b[2J\nb is left alone"


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell command in which `$P` is ours."""
    ours = f"{sys.executable} -m pseudolabel"
    environment = {**os.environ, "P": ours, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)


def test_a_full_stdout_is_one_line_and_the_work_counts_as_done(photos: Path, tmp_path: Path) -> None:
    done = run(f"$P pack {photos} {tmp_path}/s >/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: the work is done, and its output could not be written to stdout: No space left on device"
    )
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "s.pack.result.json").read_text())["status"] == "done"


def test_a_reader_who_has_gone_is_a_quiet_end(photos: Path, tmp_path: Path) -> None:
    """This holds for commands that print tables and for those that print JSON; a closed stdout gets no message."""
    pack, inspect = f"$P pack {photos} {tmp_path}/s", f"$P inspect {tmp_path}/s"
    done = run(f"{pack} 2>/dev/null | true; echo ${{PIPESTATUS[0]}}; {inspect} --json | true")
    assert (done.stdout, [line for line in done.stderr.splitlines() if "looking through" not in line]) == ("141\n", [])
    assert json.loads((tmp_path / "s.pack.result.json").read_text())["status"] == "done"
    closed = run(f"{inspect} >&- 2>&-")
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}]
)
def test_what_the_encoding_lacks_is_written_in_numbers(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "photos" / "Ł").mkdir(parents=True)
    Image.new("RGB", (40, 32)).save(tmp_path / "photos" / "Ł" / "a.png")
    done = run(f"$P pack {tmp_path}/photos {tmp_path}/s", **environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    text = " ".join(done.stdout.split())
    assert "1 class: \\u0141" in text
    assert "one class only: all images lie in the folder \\u0141; if the classes lie below it, pack that folder" in text


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_on_stderr_arrives_while_the_command_goes_on(unbuffered: str) -> None:
    script = "import sys; from cluster.console import keep_streams; keep_streams(); print('x', file=sys.stderr); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert child.stderr is not None
    assert child.stderr.readline() == "x\n"
    assert child.poll() is None
    child.communicate("\n")
