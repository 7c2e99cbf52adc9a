"""A decoder that kills its process costs one sample: the others are rendered, and the killer is quarantined and remembered.

The killer is real: a JPEG 2000 file whose tiles are 0 pixels wide, by which nvimgcodec divides (SIGFPE). The header check refuses
it, so the processes here are blindfolded: they forget that one rule. That stands for the next killer, which no rule knows yet.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.children import ROOT, run_python
from tests.pipeline.images import encode, good, photo
from tests.pipeline.test_render import render, sample

BLINDFOLD = "import pipeline.check\npipeline.check._JPEG_2000 = ()\n"


def killer() -> bytes:
    """A JPEG 2000 code stream; its tiles' width is four bytes at 24 (ISO/IEC 15444-1, A.5.1)."""
    encoded = encode(photo(), "JPEG2000", no_jp2=True)
    return encoded[:24] + bytes(4) + encoded[28:]


@pytest.fixture
def blind(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that have lost the rule, and have a folder of their own for what they remember."""
    site, memory = tmp_path / "site", tmp_path / "memory"
    site.mkdir()
    memory.mkdir()
    (site / "sitecustomize.py").write_text(BLINDFOLD)
    return {"PYTHONPATH": f"{site}:{ROOT}", "TMPDIR": str(memory)}


RENDER = """
    import json, sys
    from pipeline.survival import SurvivingRenderer
    from tests.pipeline.images import good
    from tests.pipeline.test_render import recipe, sample
    from tests.pipeline.test_survival import killer

    samples = [sample("a", good()["jpeg"]), sample("b", killer()), sample("c", good()["png"]), sample("d", b"")]
    pairs = SurvivingRenderer(recipe("cpu"))(samples, int(sys.argv[1]))
    print(json.dumps({"failures": pairs.failures, "image": pairs.columns["image"].sum(axis=(1, 2, 3)).tolist()}))
"""


def test_a_killer_is_found_quarantined_and_remembered(blind: dict[str, str]) -> None:
    first = run_python(RENDER, "0", **blind)
    assert first.returncode == -signal.SIGFPE, first.stderr
    second = run_python(RENDER, "0", **blind)
    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout)
    assert told["failures"] == {"1": "the decoder's process died on this image (SIGFPE)", "3": "empty file"}
    undisturbed = render([sample("a", good()["jpeg"]), sample("c", good()["png"])]).columns["image"].sum(axis=(1, 2, 3))
    assert np.delete(told["image"], [1, 3]).tolist() == undisturbed.tolist()
    another_epoch = run_python(RENDER, "1", **blind)
    assert another_epoch.returncode == 0, "it is not met unprepared again"
    assert json.loads(another_epoch.stdout)["failures"] == told["failures"]


def test_every_killer_of_a_unit_is_found_and_nobody_else_is_blamed(blind: dict[str, str]) -> None:
    script = """
        import json
        from pipeline.isolate import find_killers
        from tests.pipeline.images import good
        from tests.pipeline.test_render import recipe, sample
        from tests.pipeline.test_survival import killer

        files = [killer(), good()["jpeg"], b"", good()["png"], killer(), good()["webp"]]
        samples = [sample(str(i), file) for i, file in enumerate(files)]
        samples.append(sample("known", b"", problem="no image member"))
        print(json.dumps(find_killers(samples, recipe("cpu"), 0, False)))
    """
    done = run_python(script, **blind)
    assert done.returncode == 0, done.stderr
    reason = "the decoder's process died on this image (SIGFPE)"
    assert json.loads(done.stdout) == {"0": reason, "4": reason}


def test_a_bug_of_ours_is_no_killer(tmp_path: Path) -> None:
    """The search fails in words when its process does not die but raises."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pipeline.render'] = None\n")
    script = """
        from pipeline.errors import RunError
        from pipeline.isolate import find_killers
        from pipeline.recipe import parse_recipe
        from pipeline.shards.corpus import Sample
        recipe = parse_recipe({"name": "a", "seed": 0, "corpus": {"shards": "x"}})
        try:
            find_killers([Sample("a", 1, b"", "jpg", -1, None)], recipe, 0, False)
        except RunError as error:
            print(error)
    """
    done = run_python(script, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "the search for images that kill the decoder failed (exit code 1)" in done.stdout, done.stderr
    assert "pipeline.render" in done.stdout


KILLED = """
    import os, signal, sys
    from pipeline.survival import SurvivingRenderer
    from tests.pipeline.images import good
    from tests.pipeline.test_render import recipe, sample

    render = SurvivingRenderer(recipe("cpu"))
    if sys.argv[1] == "shot":  # as the kernel does when memory runs out
        render._renderer.engine.run = lambda request: os.kill(os.getpid(), signal.SIGKILL)
    render([sample("first", good()["jpeg"]), sample("last", good()["png"])], 0)
    print("rendered")
"""


def test_deaths_that_no_image_explains_stop_the_run_in_words(tmp_path: Path) -> None:
    here = {"TMPDIR": str(tmp_path)}
    assert run_python(KILLED, "shot", **here).returncode == -signal.SIGKILL
    (mark,) = tmp_path.glob("pseudolabel-*/*/unit-*")
    survived = run_python(KILLED, "", **here)
    assert survived.stdout == "rendered\n", survived.stderr
    assert not mark.exists()
    mark.write_bytes(b"...")  # three more died
    stopped = run_python(KILLED, "", **here)
    assert "RunError: 3 processes died while they rendered the 2 samples from first to last" in stopped.stderr
    assert "is there enough memory?" in stopped.stderr


def test_the_killer_is_refused_by_the_check_that_is_not_blindfolded() -> None:
    assert "JPEG 2000" in render([sample("killer", killer())]).failures[0]
