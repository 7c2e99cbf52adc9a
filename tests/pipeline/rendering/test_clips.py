"""Clips, samples of several frames: read from shards, rendered in both placements, and written to disk and read back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from cluster.pictures.preview import page, sheet, with_all_tasks
from pipeline import pairs
from pipeline.draws import Draws
from pipeline.engines.windows import flips, random_windows
from pipeline.materialize.rendered import RenderedSource, open_rendered
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.find_crashers import find_crashers
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.units import UnitSource
from pipeline.shards.corpus import Sample
from pipeline.shards.opening import open_corpus, open_training_corpus
from pipeline.streaming import plan as stream
from tests.pipeline.made_images import encode, turned

CLIPS, SIDE = 12, 64
NAMES = ("0.jpg", "1.jpg", "2.jpg")
BAD = {
    "few": "2 images, and corpus.frames asks for 3",
    "cut": "frame 2: truncated JPEG",
    "sizes": "frames of different sizes: 64x64, 64x60",
}
"""What is no clip, and how its reason begins."""


def frames(n: int) -> list[Image.Image]:
    """Three crops of a photo, each further along."""
    photo = Image.fromarray(data.chelsea())
    return [photo.crop((20 * n + 9 * k, 8 * n, 20 * n + 9 * k + SIDE, 8 * n + SIDE)) for k in range(3)]


def write(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))


def files(n: int) -> list[bytes]:
    return [encode(frame, "JPEG", quality=95) for frame in frames(n)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in two shards, their frames in no order, and three that are no clips."""
    root = tmp_path_factory.mktemp("clips")
    good = {f"clip{n}": dict(zip(NAMES, files(n))) for n in range(CLIPS)}
    bad = {"few": files(0)[:2], "cut": [files(0)[0], files(1)[1][:900], files(0)[2]]}
    bad["sizes"] = [*files(0)[:2], encode(frames(0)[2].crop((0, 0, 64, 60)), "JPEG")]
    good |= {key: dict(zip(NAMES, bodies)) for key, bodies in bad.items()}
    for shard in range(2):
        members = {}
        for key in list(good)[shard::2]:
            members |= {f"{key}.{name}": good[key][name] for name in reversed(NAMES) if name in good[key]}
            members[f"{key}.txt"] = b"words"
        write(root / f"{shard}.tar", members)
    return root


def recipe(shards: Path, **sections: Any) -> Recipe:
    document = {
        "name": "clips",
        "seed": 3,
        "corpus": {"shards": str(shards), "frames": 3},
        "image": {"size": 32},
        "tasks": {"frame_order": {}, "rotation": {}, "occlusion": {}},
        "engine": "cpu",
        "failures": {"budget": 3},
        "training": {"batch": 4},
        "placement": {"cpus": 0.5},
    }
    return parse_recipe({**document, **sections})


def by_sample(parts: Any, *left_out: str) -> dict[int, dict[str, bytes]]:
    found: dict[int, dict[str, bytes]] = {}
    for columns in parts:
        for row, sample in enumerate(columns["id"].tolist()):
            if columns["weight"][row]:
                names = [name for name in columns if name not in ("unit", "seconds", "failure", *left_out)]
                found[sample] = {name: np.ascontiguousarray(columns[name][row]).tobytes() for name in names}
    return found


def test_frames_are_read_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    names = [f"a/clip7.frame{k}.jpg" for k in (10, 2, 0)]
    write(tmp_path / "a.tar", {**{name: name.encode() for name in names}, "a/clip7.depth.png": b"depth", "a/clip7.json": b"{}"})
    for image in ("jpg", ".JPG"):
        (sample,) = open_corpus(str(tmp_path), image, frames=3).read(0, [0])
        assert [bytes(file) for file in sample.files()] == [name.encode() for name in reversed(names)]
        assert (sample.key, sample.ext, sample.problem) == ("a/clip7", "frame0.jpg", None)
    (sample,) = open_corpus(str(tmp_path), frames=3).read(0, [0])
    assert sample.problem is not None
    assert sample.problem.startswith("4 images, and corpus.frames asks for 3 (there are: frame10.jpg,")
    (sample,) = open_corpus(str(tmp_path)).read(0, [0])
    assert [bytes(file) for file in sample.files()] == [names[0].encode()]
    write(tmp_path / "other.tar", {"a.txt": b"no image at all"})
    assert "no image member" in str(open_corpus(str(tmp_path / "other.tar"), frames=3).read(0, [0])[0].problem)


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_what_is_no_clip_is_quarantined_with_its_reason(shards: Path, engine: str) -> None:
    spec = recipe(shards, engine=engine)
    corpus = open_training_corpus(spec.corpus)
    samples = [sample for shard in range(2) for sample in corpus.read(shard, range(int(corpus.counts[shard])))]
    made = Renderer(spec)(samples, 0)
    failed = {samples[row].key: reason for row, reason in made.failures.items()}
    assert failed.keys() == BAD.keys()
    assert all(failed[key].startswith(words) for key, words in BAD.items())
    for row in made.failures:
        assert not any(made.columns[name][row].any() for name in ("weight", "image", "frames", "frame_order.input"))
    assert find_crashers(samples, spec, 0, center=False) == {}


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_a_frame_whose_pixels_are_damaged_costs_its_clip_alone(shards: Path, engine: str) -> None:
    whole = [encode(frame, "BMP") for frame in frames(0)]
    clips = [whole, [whole[0], whole[1][:-3000], whole[2]], whole]
    samples = [Sample(str(n), 7, b"".join(clip), "bmp", -1, None, [len(file) for file in clip]) for n, clip in enumerate(clips)]
    made = Renderer(recipe(shards, engine=engine))(samples, 0)
    assert list(made.failures) == [1]
    assert "could not be decoded" in made.failures[1]
    assert np.array_equal(made.columns["frames"][0], made.columns["frames"][2])


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_all_frames_of_a_sample_have_the_crop_of_its_first(shards: Path, engine: str) -> None:
    """Equal frames, stored in eight ways, come out equal, and the first one is the same with and without the others."""
    spec = recipe(shards, engine=engine)
    files = [turned("PNG", orientation) for orientation in (1, 6, 3)]
    upright = [encode(Image.open(io.BytesIO(files[0])), "PNG")] * 3
    for clip in (upright, files):
        one = Sample("a", 12, b"".join(clip), "png", -1, None, [len(file) for file in clip])
        single = replace(one, encoded=clip[0], sizes=())
        alone = Renderer(recipe(shards, engine=engine, corpus={"shards": "x"}, tasks={}))([single], 0).columns["image"][0]
        if clip is files:  # photos that lie on their side are another picture, of another size
            assert "different sizes" in Renderer(spec)([one], 0).failures[0]
            continue
        found = Renderer(spec)([one], 0).columns["frames"][0].reshape(3, 32, 32, 3)
        assert all(np.array_equal(frame, alone) for frame in found)


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_frames_lie_as_they_were_drawn_once(shards: Path, engine: str) -> None:
    """Noise-free check of one draw: each frame is the window of the sample's own crop, mirrored as it is."""
    spec = recipe(shards, engine=engine, image={"size": 32, "scale": [0.25, 0.25], "ratio": [1, 1]})
    ids = np.arange(8, dtype=np.uint64)
    lossless = [encode(frame, "PNG") for frame in frames(3)]
    samples = [Sample(str(n), n, b"".join(lossless), "png", -1, None, [len(file) for file in lossless]) for n in range(8)]
    made = Renderer(spec)(samples, 0).columns["frames"].reshape(8, 3, 32, 32, 3)
    rng = Draws(spec.seed, 0, ids).stream("crop")
    sides = np.full(8, SIDE)
    for row, ((top, left, height, width), mirrored) in enumerate(
        zip(random_windows(rng, sides, sides, spec.image.scale, spec.image.ratio), flips(rng))
    ):
        assert (height, width) == (32, 32)
        for frame, photo in zip(made[row], frames(3)):
            window = np.asarray(photo)[top : top + 32, left : left + 32]
            assert np.array_equal(frame, window[:, ::-1] if mirrored else window)


def test_tasks_of_one_image_are_given_the_first_frame(shards: Path, tmp_path: Path) -> None:
    tasks = {"rotation": {}, "occlusion": {}}
    first = tmp_path / "first.tar"
    write(first, {f"clip{n}.jpg": files(n)[0] for n in range(CLIPS)})
    alone = by_sample(pairs(recipe(first, corpus={"shards": str(first)}, tasks=tasks)))
    assert len(alone) == CLIPS
    assert by_sample(pairs(recipe(shards, tasks=tasks)), "frames") == alone


class InOneProcess:
    """The units that Ray Data's actors would send, made here one after another."""

    def __init__(self, source: UnitSource) -> None:
        source = stream.without_tasks(source) if stream.sends_crops(source) else source
        renders = source.recipe.placement.render == "workers"
        self._actor = stream._RenderUnits([source], None, 1, 1) if renders else stream._ReadUnits([source], None)
        self._units = range(source.schedule.units())

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        for number in self._units:
            yield from self._actor({"id": np.array([number])})


def one_epoch(spec: Recipe) -> UnitSource:
    corpus = open_training_corpus(spec.corpus)
    return UnitSource(spec, corpus, Schedule(corpus.counts, Geometry(4, lanes=4, groups=2, window=2), spec.seed, 1, tail="pad"))


@pytest.mark.parametrize("engine", ["cpu", "dali"])
@pytest.mark.parametrize("place", ["workers", "trainer"])
def test_clips_are_the_same_in_both_placements(shards: Path, engine: str, place: str) -> None:
    spec = recipe(shards, engine=engine, placement={"render": place})
    source = one_epoch(spec)
    found = by_sample(columns for _, columns in stream.steps([source], InOneProcess(source), 0, 1))
    assert len(found) == CLIPS
    assert found == by_sample(pairs(spec), "frames")


@pytest.mark.usefixtures("local_ray")
def test_clips_travel_over_ray_as_files(shards: Path) -> None:
    spec = recipe(shards, placement={"render": "trainer", "cpus": 0.5})
    source = one_epoch(spec)
    found = by_sample(columns for _, columns in stream.steps([source], stream.units([source]), 0, 1))
    assert found == by_sample(pairs(spec), "frames")


@pytest.mark.parametrize("answer", ["verification", "order"])
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_clips_are_rendered_to_disk_and_read_back(shards: Path, tmp_path: Path, form: str, answer: str) -> None:
    tasks = {"frame_order": {"answer": answer}, "rotation": {}}
    spec = recipe(shards, tasks=tasks, render={"format": form, "keep_bad": True})
    report = render(spec, str(tmp_path / "out"), here=True)
    assert (report.pairs, report.quarantined) == (CLIPS, len(BAD))
    rendered = open_rendered(str(tmp_path / "out"))
    schedule = Schedule(rendered.counts, Geometry(4, lanes=4, groups=2, window=2), spec.seed, 1, tail="pad")
    source = RenderedSource(spec, rendered.corpus(), schedule, image=False, rendered=rendered)
    make = source.maker(1, lambda *_: None)
    found = by_sample(make(number) for number in range(schedule.units()))
    assert found == by_sample(pairs(spec), "image", "frames")
    assert verify(str(tmp_path / "out"), deep=1.0).problems == []
    kept: list[str] = []
    for path in (tmp_path / "out/quarantine").glob("*.tar"):
        with tarfile.open(path) as archive:
            kept += archive.getnames()
    assert sorted(kept) == sorted([*(f"{key}.{name}" for key in ("cut", "sizes") for name in NAMES), "few.0.jpg", "few.1.jpg"])


def test_a_gallery_shows_clips(shards: Path) -> None:
    spec = with_all_tasks(recipe(shards))
    assert "frame_order" in with_all_tasks(recipe(shards, tasks={"rotation": {}})).tasks
    assert "frame_order" not in with_all_tasks(recipe(shards, corpus={"shards": str(shards)}, tasks={})).tasks
    text = page(spec, 4)
    assert "<h2>frame_order</h2>" in text
    assert text.count("frames ") >= 4
    assert sheet(recipe(shards), 2).width > 0


def test_a_recipe_of_single_images_is_known_by_what_it_was() -> None:
    document = {"name": "a", "seed": 0, "corpus": {"shards": "x"}}
    assert "frames" not in parse_recipe(document).canonical()
    clips = parse_recipe({**document, "corpus": {"shards": "x", "frames": 3}})
    assert '"frames":3' in clips.canonical()
    assert Recipe.model_validate_json(clips.canonical()) == clips
