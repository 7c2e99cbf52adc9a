"""Rendered corpora opened by others: plain webdataset and plain pyarrow find the pairs that `pairs()` gives."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from pipeline import pairs
from pipeline.draws import sample_id
from pipeline.errors import UserError
from pipeline.materialize.columns import decode, encoder, stored_columns
from pipeline.materialize.job import identity_of
from pipeline.materialize.rendered import RenderedSource, open_rendered
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.recipe.outputs import Render
from pipeline.shards.opening import open_corpus

MakeRecipe = Callable[..., Recipe]
STORED = ("image", "rotation.input", "jigsaw.input", "occlusion.input", "colorization.input", "occlusion.mask")


def expected(recipe: Recipe, epoch: int = 0) -> dict[int, dict[str, np.ndarray]]:
    """Every pair by sample id, from the live pipeline."""
    found = {}
    for batch in pairs(recipe, epoch):
        for row, sample in enumerate(batch["id"].tolist()):
            found[sample] = {name: column[row] for name, column in batch.items()}
    return found


def samples(folder: Path, pattern: str = "*.tar") -> Iterator[dict]:
    yield from wds.WebDataset(sorted(map(str, folder.glob(pattern))), shardshuffle=False, empty_check=False)


def pixels(data: bytes, form: str) -> np.ndarray:
    return np.load(io.BytesIO(data)) if form == "npy" else np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("image", ["png", "webp", "npy"])
def test_webdataset_opens_the_pairs_without_our_code(spec: MakeRecipe, tmp_path: Path, image: str) -> None:
    recipe = spec(image=image)
    report = render(recipe, str(tmp_path / "out"), here=True)
    assert (report.pairs, report.samples, report.quarantined, report.failed) == (72, 72, 0, {})
    wanted = expected(recipe)
    for sample in samples(tmp_path / "out"):
        pair = wanted.pop(sample_id(sample["__key__"]))
        for name in STORED[:-1]:
            shown = pixels(sample[f"{name}.{image}"], image)
            if image == "webp" and pair[name].shape[-1] == 1:  # it knows no grey
                shown = shown[..., :1]
            assert np.array_equal(shown.reshape(pair[name].shape), pair[name])  # patches lie below each other
        assert np.array_equal(pixels(sample["occlusion.mask.png"], "png") == 255, pair["occlusion.mask"] == 1)
        assert int(sample["rotation.label.cls"]) == pair["rotation.label"]
        assert int(sample["jigsaw.label.cls"]) == pair["jigsaw.label"]
        assert int(sample["cls"]) == pair["class"]
    assert wanted == {}


def test_pyarrow_opens_the_pairs_without_our_code(spec: MakeRecipe, tmp_path: Path) -> None:
    recipe = spec(format="parquet")
    render(recipe, str(tmp_path / "out"), here=True)
    wanted = expected(recipe)
    for path in (tmp_path / "out").glob("shard-*.parquet"):
        table = pq.read_table(path)
        for row in table.to_pylist():
            pair = wanted.pop(row["id"])
            assert sample_id(row["key"]) == pair["id"]
            assert (row["class"], row["rotation.label"], row["jigsaw.label"]) == tuple(
                pair[name] for name in ("class", "rotation.label", "jigsaw.label")
            )
            assert row["others"] == [{"ext": "cls", "data": str(pair["class"]).encode()}]
            for name in STORED:
                about = table.schema.field(name).metadata
                tensor = np.frombuffer(row[name], about[b"dtype"].decode()).reshape(json.loads(about[b"shape"]))
                assert np.array_equal(tensor, pair[name])
    assert wanted == {}


def test_every_drawing_has_its_own_files_and_keys(spec: MakeRecipe, tmp_path: Path) -> None:
    recipe = spec(epochs=2)
    assert render(recipe, str(tmp_path / "out"), here=True).pairs == 144
    for epoch in range(2):
        wanted = expected(recipe, epoch)
        for sample in samples(tmp_path / "out", f"*-e{epoch}.tar"):
            key, _, suffix = sample["__key__"].rpartition("-")
            assert suffix == f"e{epoch}"
            assert np.array_equal(pixels(sample["rotation.input.png"], "png"), wanted.pop(sample_id(key))["rotation.input"])
        assert wanted == {}


def test_a_rendered_folder_is_a_corpus_with_an_index(spec: MakeRecipe, tmp_path: Path) -> None:
    render(spec(), str(tmp_path / "out"), here=True)
    scanned: list[int] = []
    corpus = open_corpus(str(tmp_path / "out"), progress=lambda done, total: scanned.append(done))
    assert corpus.samples == 72
    assert scanned == []
    assert corpus.classes == ["cat", "coffee", "rocket"]
    assert sorted(set(np.concatenate([corpus.labels(i) for i in range(len(corpus.urls))]).tolist())) == [0, 1, 2]


def test_other_members_of_a_sample_are_kept(spec: MakeRecipe, tmp_path: Path, make_tar: Callable[..., Path]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(buffer, "png")
    members = [
        ("a/b.png", buffer.getvalue()),
        ("a/b.json", b'{"from": "here"}'),
        ("a/b.txt", b"words"),
        ("a/b.depth.png", b"another"),
    ]
    make_tar(tmp_path / "in" / "one.tar", members)
    render(spec(tmp_path / "in"), str(tmp_path / "out"), here=True)
    (sample,) = samples(tmp_path / "out")
    assert (sample["__key__"], sample["json"], sample["txt"]) == ("a/b", b'{"from": "here"}', b"words")
    assert "depth.png" not in sample


@pytest.mark.parametrize("image", ["jpg", "webp"])
def test_lossy_formats_are_near_and_smaller(spec: MakeRecipe, tmp_path: Path, image: str) -> None:
    recipe = spec(image=image, quality=90)
    render(recipe, str(tmp_path / "out"), here=True)
    wanted = expected(recipe)
    apart = [
        np.abs(pixels(sample[f"image.{image}"], image).astype(int) - wanted[sample_id(sample["__key__"])]["image"]).mean()
        for sample in samples(tmp_path / "out")
    ]
    assert 0 < np.mean(apart) < 8


@pytest.mark.parametrize("image", ["png", "webp", "npy"])
def test_lossless_columns_come_back_as_they_were(spec: MakeRecipe, image: str) -> None:
    columns = stored_columns(spec(image=image))
    assert len(columns) == 8
    rng = np.random.default_rng(0)
    for column in columns:
        high = {"class": 8, "mask": 2}.get(column.kind, 256)
        row = rng.integers(0, high, column.shape).astype(column.dtype)
        data = encoder(column, Render(image=image))(row)
        assert np.array_equal(decode(column, data), row)


def test_a_corpus_whose_masks_have_their_former_name_is_read_back_and_belongs_to_another_render(
    spec: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = spec(), str(tmp_path / "out")
    with monkeypatch.context() as before:
        before.setattr("pipeline.materialize.columns.MASK", "label.png")
        before.setattr("pipeline.materialize.job.MASK", "label.png")
        render(recipe, out, here=True)
    assert {"occlusion.label.png"} == {name for sample in samples(tmp_path / "out") for name in sample if "label.png" in name}
    assert verify(out).problems == []
    rendered = open_rendered(out)
    corpus = rendered.corpus()
    schedule = Schedule(corpus.counts, Geometry(8, 8, 1, 9), recipe.seed, 1)
    columns = RenderedSource(recipe, corpus, schedule, rendered=rendered).maker(1, lambda stage, unit: None)(0)
    wanted = expected(recipe)
    assert len(columns["id"]) == 72
    for row, sample in enumerate(columns["id"].tolist()):
        assert np.array_equal(columns["occlusion.mask"][row], wanted[sample]["occlusion.mask"])
    with pytest.raises(UserError, match=r"masks: <task>\.label\.png in the folder, <task>\.mask\.png now"):
        render(recipe, out, here=True)


@pytest.mark.parametrize(("sections", "named"), [({}, True), ({"tasks": {"rotation": {}}}, False)])
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_the_name_of_masks_belongs_to_the_identity_of_tars_that_hold_them(
    spec: MakeRecipe, form: str, sections: dict, named: bool
) -> None:
    assert ("masks" in identity_of(spec(sections=sections, format=form), {})) == (named and form == "webdataset")


def test_a_half_finished_folder_of_another_encoder_is_not_mixed(
    spec: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = spec(), str(tmp_path / "out")
    with monkeypatch.context() as before:  # as earlier versions, which encoded by OpenCV
        before.setattr("pipeline.materialize.job.encoders", lambda recipe: {})
        render(recipe, out, here=True)
    with pytest.raises(UserError, match=r"encoders: not there in the folder, .*isal"):
        render(recipe, out, here=True)


@pytest.mark.parametrize(
    ("render", "found"),
    [
        ({}, {"png"}),
        ({"image": "webp"}, {"png", "webp"}),
        ({"image": "webp", "quality": 80}, {"png"}),
        ({"format": "parquet"}, set()),
    ],
)
def test_the_encoders_of_lossless_images_belong_to_the_identity(spec: MakeRecipe, render: dict, found: set) -> None:
    assert set(identity_of(spec(**render), {}).get("encoders", {})) == found
