"""A decoder that kills its process costs one sample: the others are rendered, and the killer is quarantined and remembered.

The killer is real: a JPEG 2000 file whose tiles are 0 pixels wide, by which nvimgcodec divides (SIGFPE). The header check refuses
it, so the processes here run without that one rule. It stands for a future killer that no rule refuses.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.children import ROOT, run_python
from tests.pipeline.made_images import encode, good, photo
from tests.pipeline.rendering.test_renderer import render, sample

BLINDFOLD = "import pipeline.images.check\npipeline.images.check._JPEG_2000 = ()\n"


def killer() -> bytes:
    """A JPEG 2000 code stream; its tiles' width is four bytes at 24 (ISO/IEC 15444-1, A.5.1)."""
    encoded = encode(photo(), "JPEG2000", no_jp2=True)
    return encoded[:24] + bytes(4) + encoded[28:]


@pytest.fixture
def blind(tmp_path: Path) -> dict[str, str]:
    """The environment of processes without the rule, with a folder of their own for their records."""
    site, memory = tmp_path / "site", tmp_path / "memory"
    site.mkdir()
    memory.mkdir()
    (site / "sitecustomize.py").write_text(BLINDFOLD)
    return {"PYTHONPATH": f"{site}:{ROOT}", "TMPDIR": str(memory)}


RENDER = """
    import json, sys
    from pipeline.rendering.crash_safe import CrashSafeRenderer
    from tests.pipeline.made_images import good
    from tests.pipeline.rendering.test_renderer import recipe, sample
    from tests.pipeline.rendering.test_crash_safe import killer

    samples = [sample("a", good()["jpeg"]), sample("b", killer()), sample("c", good()["png"]), sample("d", b"")]
    pairs = CrashSafeRenderer(recipe("cpu"), run="an actor")(samples, int(sys.argv[1]))
    print(json.dumps({"failures": pairs.failures, "image": pairs.columns["image"].sum(axis=(1, 2, 3)).tolist()}))
"""


def test_a_killer_is_found_quarantined_and_remembered(blind: dict[str, str]) -> None:
    first = run_python(RENDER, "0", **blind)
    assert first.returncode == -signal.SIGFPE, first.stderr
    second = run_python(RENDER, "0", **blind)
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout)
    assert result["failures"] == {"1": "the decoder's process died on this image (SIGFPE)", "3": "empty file"}
    undisturbed = render([sample("a", good()["jpeg"]), sample("c", good()["png"])]).columns["image"].sum(axis=(1, 2, 3))
    assert np.delete(result["image"], [1, 3]).tolist() == undisturbed.tolist()
    another_epoch = run_python(RENDER, "1", **blind)
    assert another_epoch.returncode == 0, "it is not met unprepared again"
    assert json.loads(another_epoch.stdout)["failures"] == result["failures"]


def test_every_killer_of_a_unit_is_found_and_nobody_else_is_blamed(blind: dict[str, str]) -> None:
    script = """
        import json
        from pipeline.rendering.find_crashers import find_crashers
        from tests.pipeline.made_images import good
        from tests.pipeline.rendering.test_renderer import recipe, sample
        from tests.pipeline.rendering.test_crash_safe import killer

        files = [killer(), good()["jpeg"], b"", good()["png"], killer(), good()["webp"]]
        samples = [sample(str(i), file) for i, file in enumerate(files)]
        samples.append(sample("known", b"", problem="no image member"))
        print(json.dumps(find_crashers(samples, recipe("cpu"), 0, False)))
    """
    done = run_python(script, **blind)
    assert done.returncode == 0, done.stderr
    reason = "the decoder's process died on this image (SIGFPE)"
    assert json.loads(done.stdout) == {"0": reason, "4": reason}


@pytest.mark.parametrize(("killed_at", "blamed"), [([0, 1, 2, 3], []), ([1, 1, 3], []), ([1, 1, 1, 3], [1])])
def test_what_others_kill_is_blamed_on_an_image_only_where_it_happens_at_that_image_three_times(
    monkeypatch: pytest.MonkeyPatch, killed_at: list[int], blamed: list[int]
) -> None:
    from pipeline.processes.child import Died
    from pipeline.rendering import find_crashers
    from tests.pipeline.rendering.test_renderer import recipe

    kills, samples = list(killed_at), [sample(str(i), b"") for i in range(5)]

    class Child:
        """A process that others kill while it works on some of the samples."""

        def __init__(self, *_: Any) -> None: ...

        def call(self, _: str, left: list[Any], epoch: int) -> Iterator[None]:
            for one in left:
                if kills and kills[0] == int(one.key):
                    kills.pop(0)
                    raise Died(signal.SIGKILL)
                yield None

        def end(self) -> None: ...

    monkeypatch.setattr(find_crashers, "ChildProcess", Child)
    assert list(find_crashers.find_crashers(samples, recipe("cpu"), 0, False)) == blamed
    assert not kills


def test_a_bug_of_ours_is_no_killer(tmp_path: Path) -> None:
    """The search fails with a message when its process raises and does not crash."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pipeline.rendering.renderer'] = None\n")
    script = """
        from pipeline.errors import RunError
        from pipeline.rendering.find_crashers import find_crashers
        from pipeline.recipe import parse_recipe
        from pipeline.shards.corpus import Sample
        recipe = parse_recipe({"name": "a", "seed": 0, "corpus": {"shards": "x"}})
        try:
            find_crashers([Sample("a", 1, b"", "jpg", -1, None)], recipe, 0, False)
        except RunError as error:
            print(error)
    """
    done = run_python(script, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "a process that was to decode images failed (an error of ours)" in done.stdout, done.stderr
    assert "pipeline.rendering.renderer" in done.stdout


KILLED = """
    import os, signal, sys
    from pipeline.rendering.crash_safe import CrashSafeRenderer
    from tests.pipeline.made_images import good
    from tests.pipeline.rendering.test_renderer import recipe, sample

    render = CrashSafeRenderer(recipe("cpu"), run=sys.argv[2])
    if sys.argv[1] == "shot":  # as the kernel does when memory runs out
        render._renderer.engine.run = lambda request: os.kill(os.getpid(), signal.SIGKILL)
    render([sample("first", good()["jpeg"]), sample("last", good()["png"])], 0)
    print("rendered")
"""


def test_deaths_of_one_run_that_no_image_explains_stop_it_in_words(tmp_path: Path) -> None:
    here = {"TMPDIR": str(tmp_path)}
    assert run_python(KILLED, "shot", "first", **here).returncode == -signal.SIGKILL
    (mark,) = tmp_path.glob("pseudolabel-*/*/unit-*")
    mark.write_text("first\n" * 3)  # two more of its processes died
    stopped = run_python(KILLED, "", "first", **here)
    assert "RunError: 3 processes died while they rendered the 2 samples from first to last" in stopped.stderr
    assert "is there enough memory?" in stopped.stderr
    again = run_python(KILLED, "", "second", **here)
    assert again.stdout == "rendered\n", again.stderr
    assert not mark.exists()


def test_a_death_in_another_run_is_searched_for_its_image_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops a run or leaves a stream kills actors at work; the next one does not render their units twice for that."""
    from pipeline.rendering import crash_safe
    from tests.pipeline.rendering.test_renderer import recipe

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    searched = []

    def search(samples: list[Any], *_: Any) -> dict[int, str]:
        searched.append([sample.key for sample in samples])
        return {}

    monkeypatch.setattr(crash_safe, "find_crashers", search)
    samples = [sample("first", good()["jpeg"]), sample("last", good()["png"])]
    for deaths, searches in (("", 0), ("1\n", 0), ("1\n1\n", 1), ("1\n2\n", 1), ("this\n", 1)):
        render = crash_safe.CrashSafeRenderer(recipe("cpu"), run="this")
        (folder,) = tmp_path.glob("pseudolabel-*/*")
        mark = folder / f"unit-0-{samples[0].id:016x}-{samples[1].id:016x}"
        mark.write_text(deaths)
        searched.clear()
        assert render(samples, 0).failures == {}
        assert searched == [["first", "last"]] * searches, deaths
        assert not mark.exists()


@pytest.mark.slow
def test_a_command_that_was_killed_three_times_goes_on(tmp_path: Path) -> None:
    """Each call is a run of its own, as that of a user who killed the ones before."""
    from pipeline.rendering.in_flight import InFlight

    here = {"TMPDIR": str(tmp_path)}
    assert run_python(KILLED, "shot", "1", **here).returncode == -signal.SIGKILL
    (mark,) = tmp_path.glob("pseudolabel-*/*/unit-*")
    mark.write_text("1\n2\n3\n4\n")
    assert InFlight(mark.parent, "5").deaths(mark.name) == (0, 4)
    done = run_python(KILLED, "", "5", **here)
    assert done.stdout == "rendered\n", done.stderr


def test_an_actor_is_one_run_however_often_it_restarts_and_a_job_is_one_for_workers_that_are_replaced() -> None:
    script = """
        import sys, types
        from pipeline.rendering.crash_safe import _this_run, this_job
        assert _this_run() != _this_run(), "without Ray each is its own"
        assert this_job() != this_job()
        here = {"get_node_id": lambda: "node", "get_job_id": lambda: "job", "get_actor_id": lambda: None}
        context = types.SimpleNamespace(**here)
        sys.modules["ray"] = types.SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
        assert _this_run() != _this_run(), "the command itself is no actor"
        context.get_actor_id = lambda: "actor"
        print(_this_run(), this_job())
    """
    done = run_python(script)
    assert done.stdout == "actor node-job\n", done.stderr


def test_a_killer_is_known_by_its_bytes_and_not_by_its_name_alone(blind: dict[str, str]) -> None:
    script = """
        import json, sys
        from pipeline.rendering.crash_safe import CrashSafeRenderer
        from tests.pipeline.made_images import good
        from tests.pipeline.rendering.test_renderer import recipe, sample
        from tests.pipeline.rendering.test_crash_safe import killer

        render = CrashSafeRenderer(recipe("cpu"), in_child=True)
        files = [killer(), good()["jpeg"]]
        print(json.dumps([render([sample("namesake", file)], 0).failures for file in files]))
    """
    done = run_python(script, **blind)
    assert json.loads(done.stdout) == [{"0": "the decoder's process died on this image (SIGFPE)"}, {}], done.stderr


def test_preview_pairs_inspect_and_verify_decode_in_processes_of_their_own(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they outlive a decoder as the renderers above do; the test below kills one in each."""
    from cluster.pictures.preview import sheet
    from pipeline.materialize.run import render as materialize
    from pipeline.materialize.verify import verify
    from pipeline.processes.child import ChildProcess
    from pipeline.recipe import parse_recipe
    from pipeline.shards.inspect import inspect
    from pipeline.shards.opening import open_corpus
    from pipeline.shards.pack import pack
    from pipeline.streaming.pairs import pairs

    shards, out = tmp_path / "shards", tmp_path / "out"
    pack(str(photos), str(shards))
    made = parse_recipe(
        {
            "name": "a",
            "seed": 0,
            "corpus": {"shards": str(shards)},
            "image": {"size": 32},
            "engine": "cpu",
            "tasks": {"rotation": {}},
            "training": {"batch": 2},
        }
    )
    materialize(made, str(out), here=True)
    (shards / "index.parquet").touch()  # so that verify renders the shards again

    class Reached(Exception):
        """A process was about to be started."""

    def start(self: ChildProcess, what: Any, *arguments: Any) -> None:
        raise Reached

    monkeypatch.setattr(ChildProcess, "__init__", start)
    for call in (
        lambda: sheet(made, samples=5),
        lambda: next(iter(pairs(made))),
        lambda: inspect(open_corpus(str(shards)), deep=True),
        lambda: verify(str(out), deep=1.0),
    ):
        with pytest.raises(Reached):
            call()


@pytest.mark.slow
def test_preview_pairs_inspect_and_verify_survive_a_decoders_death(blind: dict[str, str], tmp_path: Path) -> None:
    """One script for all, since each process takes seconds to start."""
    script = """
        import json, sys
        from pathlib import Path
        from pipeline.materialize.run import render
        from pipeline.materialize.verify import verify
        from cluster.pictures.preview import sheet
        from pipeline.recipe import parse_recipe
        from pipeline.shards.inspect import inspect
        from pipeline.shards.opening import open_corpus
        from pipeline.shards.pack import pack
        from pipeline.streaming.pairs import pairs
        from tests.pipeline.made_images import good
        from tests.pipeline.rendering.test_crash_safe import killer

        photos, shards, out = (Path(sys.argv[1]) / name for name in ("photos", "shards", "out"))
        photos.mkdir()
        for n in range(6):
            (photos / f"{n}.jpg").write_bytes(good()["jpeg"])
        pack(str(photos), str(shards), labels="none")
        document = {"name": "a", "seed": 0, "corpus": {"shards": str(shards)}, "image": {"size": 32}, "engine": "cpu",
                    "tasks": {"rotation": {}}, "training": {"batch": 2}, "failures": {"budget": 3}}
        recipe = parse_recipe(document)
        render(recipe, str(out), here=True)
        tar = next(shards.glob("*.tar"))
        body = tar.read_bytes()
        at = body.index(good()["jpeg"], body.index(b"3.jpg"))
        bad = killer() if len(killer()) <= len(good()["jpeg"]) else killer()[: len(good()["jpeg"])]
        tar.write_bytes(body[:at] + bad + body[at + len(bad) :])
        (shards / "index.parquet").touch()  # it is believed, so that the shard is rendered again
        result = {"preview": sheet(recipe, samples=5).height > 0}
        result["pairs"] = sum(len(batch["id"]) for batch in pairs(recipe))
        result["inspect"] = [bad.reason for bad in inspect(open_corpus(str(shards)), deep=True).quarantine]
        result["verify"] = sorted(problem.reason for problem in verify(str(out), deep=1.0).problems)
        print(json.dumps(result))
    """
    done = run_python(script, str(tmp_path), **blind)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["preview"]
    assert result["pairs"] == 5
    assert result["verify"] == ["rendered again it has other bytes"]
    assert result["inspect"] == ["the decoder's process died on this image (SIGFPE)"]


def test_the_killer_is_refused_by_the_check_that_is_not_blindfolded() -> None:
    assert "JPEG 2000" in render([sample("killer", killer())]).failures[0]
