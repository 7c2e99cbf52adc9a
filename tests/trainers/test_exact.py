"""Training under hard conditions: uneven shards, damaged images and checkpoints, mixtures, and a shard that does not answer."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from pipeline.errors import RunError
from pipeline.recipe import Recipe
from pipeline.shards.writing import TarWriter
from tests.tiles import Finished
from tests.trainers.ledgers import due, trained
from tests.web import Serve
from trainers.pretraining import pretrain
from trainers.running.run_log import Record
from trainers.running.runs import RunFolder

pytestmark = pytest.mark.usefixtures("local_ray")

MakeRecipe = Callable[..., Recipe]


def shard(path: Path, count: int, photo: int = 0, bad_every: int = 0) -> None:
    """Tiles of a photo as a WebDataset shard; each `bad_every`-th is no image."""
    pixels = (data.chelsea(), data.coffee(), data.rocket())[photo % 3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        tar = TarWriter(file)
        for n in range(count):
            encoded = io.BytesIO()
            Image.fromarray(pixels[n % 200 : n % 200 + 24, n % 300 : n % 300 + 24]).save(encoded, "JPEG")
            bad = bad_every and n % bad_every == 0
            tar.add(f"{path.stem}-{n:05d}.jpg", b"no image" if bad else encoded.getvalue())
        tar.finish()


@pytest.mark.slow
def test_uneven_shards_an_empty_one_and_damaged_images_hang_nothing_and_add_up(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Fewer shards than workers, too: one of the two holds nothing."""
    folder = tmp_path / "uneven"
    for i, (count, bad_every) in enumerate([(0, 0), (250, 33)]):  # 8 of 250: three per cent
        shard(folder / f"shard-{i}.tar", count, i, bad_every)
    spec = run_recipe(
        {
            "corpus": {"shards": str(folder)},
            "placement": {"render": "trainer", "cpus": 0.5},
            "tracking": {"samples": True},
            "failures": {"budget": 0.05},
        },
        workers=2, batch=64, epochs=1, log_steps=2, order={"tail": "wrap", "window": 4},
    )  # fmt: skip
    result = pretrain(spec)
    assert result["steps"] == 4
    assert result["stages"]["samples"] == 4 * 64
    assert result["quarantined"] == 8
    found = trained(spec)
    assert found == due(spec)
    assert len(set().union(*found.values())) == 250


def test_a_mixture_trains_to_the_end_by_weight(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    for i, name in enumerate(("small", "large")):
        shard(tmp_path / name / "shard-0.tar", (20, 60)[i], i)
    mix = {name: {"shards": str(tmp_path / name), "weight": weight} for name, weight in (("small", 1), ("large", 1))}
    spec = run_recipe({"corpus": {"mix": mix}, "tracking": {"samples": True}}, epochs=2)
    result = pretrain(spec)
    assert trained(spec) == due(spec)
    assert result["mixture"] == {name: {"asked": 0.5, "ordered": 0.5, "trained": 0.5} for name in mix}
    assert 0.2 < result["order"]["ours"]["displacement"] < 0.45


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_reads_nothing_before_it(
    run_recipe: MakeRecipe, calm: Finished, tmp_path: Path
) -> None:
    calm.copied(tmp_path, killed=True)
    spec = run_recipe({"tracking": {"samples": True}}, **calm.training)
    folder = RunFolder(spec)
    newest = max(Path(folder.checkpoints("pretrain")).glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    result = pretrain(spec)
    (later,) = (Path(folder.path("samples")) / "pretrain").glob("from-000000000047-*")
    assert {json.loads(line)["step"] for line in later.read_text().splitlines()} == {47}
    assert trained(spec) == due(spec)
    assert result["tasks"] == calm.result["tasks"]
    (event,) = result["events"]
    assert re.fullmatch(r"training goes on from step 47 of 48 \(checkpoint step-000000000047-\w+\.pt\)", event["what"])
    logged = [json.loads(line)["step"] for line in Path(folder.path("pretrain.jsonl")).read_text().splitlines()]
    assert logged == list(range(1, 49))
    assert result["stages"]["samples"] == 48 * 16  # what was trained before is counted, and not trained again


@pytest.mark.slow
def test_a_run_that_goes_on_within_a_log_line_writes_the_same_line_over_all_of_its_steps(run_recipe: MakeRecipe) -> None:
    spec = run_recipe({"tracking": {"tensorboard": False}}, log_steps=8, keep=3)
    folder = RunFolder(spec)

    def interrupt(record: Record) -> None:
        if record["step"] == 12:
            raise KeyboardInterrupt

    def logged() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in Path(folder.path("pretrain.jsonl")).read_text().splitlines()]
        return [{key: line[key] for key in ("step", "quarantined", "tasks")} for line in lines]

    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, [interrupt])
    before = logged()
    assert [line["step"] for line in before] == [8, 12]
    *later, _ = sorted(Path(folder.checkpoints("pretrain")).glob("step-*.pt"), reverse=True)
    assert len(later) == 2
    for checkpoint in later:
        checkpoint.unlink()
    result = pretrain(spec)
    assert "training goes on from step 4 of 12" in result["events"][0]["what"]
    assert logged() == before
    assert result["tasks"]["rotation"]["loss"] == [line["tasks"]["rotation"]["loss"] for line in before]


@pytest.mark.slow
def test_a_batch_computed_in_parts_gives_the_same_losses_where_nothing_normalises_over_it(run_recipe: MakeRecipe) -> None:
    network = {"backbone": {"name": "squeezenet1_1", "stem": "standard"}, "epochs": 1, "precision": "float32"}
    wanted, found = pretrain(run_recipe(**network)), pretrain(run_recipe(accumulate=4, **network))
    assert found["events"] == wanted["events"] == []
    for name, task in wanted["tasks"].items():
        assert found["tasks"][name]["loss"] == pytest.approx(task["loss"], rel=1e-3), name
        assert found["tasks"][name]["metrics"] == task["metrics"], name


@pytest.mark.slow
def test_a_shard_that_does_not_answer_is_named_and_not_waited_for_for_ever(
    run_recipe: MakeRecipe, serve: Serve, tmp_path: Path
) -> None:
    shard(tmp_path / "served" / "shard-0.tar", 64)
    flowing = threading.Event()
    url = f"{serve(tmp_path / 'served', ranges=False, flowing=flowing)}/shard-0.tar"
    spec = run_recipe({"corpus": {"shards": url}, "failures": {"stall_seconds": 20, "restarts": 0}}, epochs=200)
    words = (
        rf"no batch has come to rank 0 for \d+ s \(failures\.stall_seconds: 20\): read has stood still for \d+ s on .*, at {url}"
    )
    with pytest.raises(RunError, match=words):
        pretrain(spec, [lambda record: flowing.clear()])
