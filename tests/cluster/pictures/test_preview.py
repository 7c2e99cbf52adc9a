"""Contact sheets show the exact pixels that training sees, with the right captions, for any task."""

from __future__ import annotations

import base64
import html
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from cluster.pictures.preview import page, save, sheet, with_all_tasks
from pipeline import pairs, parse_recipe, registry, storage
from pipeline.draws import Draws, sample_id
from pipeline.errors import RunError, UserError
from pipeline.labels import Classes
from pipeline.recipe import Recipe
from pipeline.tasks import Drawn, Task
from tests.pipeline.made_images import of_one_image

CELL, LEFT, TOP = 192, 40, 150


def make(shards: Path | str, tasks: dict[str, Any], **sections: Any) -> Recipe:
    document = {"name": "sheet", "seed": 5, "corpus": {"shards": str(shards)}, "image": {"size": 32}, "tasks": tasks}
    return parse_recipe({**document, **sections})


def cells(picture: Image.Image, color: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """The pixels of a sheet, with a check that its margin is empty."""
    pixels = np.asarray(picture)
    assert (pixels[:, :LEFT] == color).all()
    return pixels


def test_first_column_and_inputs_are_what_training_sees(tiles: Path) -> None:
    recipe = make(tiles, {"rotation": {}, "colorization": {}}, training={"batch": 8})
    pixels = cells(sheet(recipe, samples=1, epoch=2))
    small = pixels[TOP : TOP + CELL : 6, LEFT:, :]  # 32 pixels are shown as 192, each a square of 6
    crop, turned = small[:, : 6 * 32 : 6], small[:, CELL + 36 :][:, : 6 * 32 : 6]
    found = 0
    for batch in pairs(recipe, epoch=2):
        for image, rotated in zip(batch["image"], batch["rotation.input"]):
            if np.array_equal(image, crop):
                found += 1
                assert np.array_equal(rotated, turned)
    assert found == 1


def test_samples_come_from_all_over_the_corpus_and_change_with_epoch_and_seed(tiles: Path) -> None:
    one = make(tiles, {"rotation": {}})
    first, again, later = sheet(one, 4), sheet(one, 4), sheet(one, 4, epoch=1)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != later.tobytes()
    other = parse_recipe({**one.model_dump(mode="json"), "seed": 6})
    assert first.tobytes() != sheet(other, 4).tobytes()


def test_a_small_corpus_gives_fewer_rows(tiles: Path, tmp_path: Path) -> None:
    samples = _photos(tiles)[:2]
    _shard(tmp_path / "two.tar", {f"{n}.jpg": data for n, data in enumerate(samples)})
    recipe = make(tmp_path / "two.tar", {})
    assert sheet(recipe, 9).size == sheet(recipe, 2).size
    assert sheet(recipe, 1).height < sheet(recipe, 2).height


def test_bad_samples_are_passed_over(tiles: Path, tmp_path: Path) -> None:
    photo = _photos(tiles)[0]
    bad = {f"{n}.jpg": b"no image" for n in range(6)}
    _shard(tmp_path / "some.tar", {**bad, "6.jpg": photo, "7.jpg": photo})
    picture = sheet(make(tmp_path / "some.tar", {}), 2)
    assert picture.size == sheet(make(tiles, {}), 2).size
    _shard(tmp_path / "none.tar", bad)
    with pytest.raises(RunError, match=r"could be decoded, the last because of.*not a decodable image"):
        sheet(make(tmp_path / "none.tar", {}), 2)


class Halves(Task):
    """Which half is on top? Five grey patches and one class of three, as no built-in task has them."""

    name: ClassVar[str] = "halves"
    source: ClassVar[str] = "this test"

    def label_kind(self) -> Classes:
        return Classes(3)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (5, size // 4, size // 4, 3)

    def draw(self, rng: Any, size: int) -> Drawn:
        return {"label": rng.integers("which", 3), "corners": rng.integers("at", size // 2, shape=(5, 2))}

    def render(self, ops: Any, image: Any, drawn: Drawn) -> Any:
        return ops.patches(image, drawn["corners"], ops.size // 4, 5)


@pytest.mark.parametrize("size", [8, 32, 224, 300])
def test_any_task_and_any_size_can_be_drawn(tiles: Path, size: int) -> None:
    recipe = with_all_tasks(make(tiles, {"halves": Halves()}, image={"size": size}))
    assert len(recipe.tasks) >= {8: 2, 32: 1 + len(of_one_image())}.get(size, len(of_one_image()) - 1)
    picture = sheet(recipe, 2)
    groups = 1 + len(recipe.tasks)
    assert picture.width * picture.height >= groups * 2 * CELL**2
    assert picture.width < 2500
    pixels = cells(picture)
    for group in range(2):  # the crop and the first task have one picture each
        left = LEFT + group * (CELL + 36)
        assert (pixels[TOP : TOP + CELL, left : left + CELL] < 250).any(axis=2).mean() > 0.4  # five patches of nine places


def test_captions_say_what_was_drawn() -> None:
    known = registry()
    ids = np.array([sample_id(str(n)) for n in range(40)], np.uint64)
    draws = Draws(1, 0, ids)

    def drawn(name: str) -> tuple[Task, list[Drawn]]:
        task = known[name].model_validate({})
        columns = task.draw(draws.stream(name), 60)
        return task, [{key: value[i] for key, value in columns.items()} for i in range(len(ids))]

    task, rows = drawn("rotation")
    assert {task.caption(row) for row in rows} == {"turned 0°", "turned 90°", "turned 180°", "turned 270°"}
    assert all(task.caption(row) == f"turned {90 * row['label']}°" for row in rows)
    task, rows = drawn("jigsaw")
    for row in rows:
        words, order = task.caption(row).split(":\n")
        assert words == f"permutation {row['label'] + 1} of 100"
        cell = row["corners"] // 20  # a cell is 20 pixels wide, and a patch begins inside its own
        assert order.startswith("patches ")
        assert [[int(number) for number in one.split()] for one in order.removeprefix("patches ").split(", ")] == (
            3 * cell[:, 0] + cell[:, 1] + 1
        ).reshape(3, 3).tolist()
    task, rows = drawn("occlusion")
    for row in rows:
        height, width = row["boxes"][0, 2:]
        assert f"{height * width / 3600:.0%} of the crop" in task.caption(row)
    assert Halves().caption({"label": 1}) == "class 2 of 3"


def test_a_sheet_needs_no_ray(tiles: Path) -> None:
    script = (
        "import sys; from pipeline import parse_recipe; from cluster.pictures.preview import sheet; "
        f"sheet(parse_recipe(dict(name='a', seed=1, corpus=dict(shards={str(tiles)!r}), tasks=dict(rotation={{}}))), 1); "
        "print('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_page_shows_every_task_and_needs_no_other_file(tiles: Path, tmp_path: Path) -> None:
    recipe = with_all_tasks(make(tiles, {"rotation": {"turns": [0, 2]}}))
    assert next(iter(recipe.tasks)) == "rotation"
    assert recipe.tasks["rotation"].model_dump()["turns"] == (0, 2)
    text = page(recipe, 2)
    for name, task in of_one_image().items():
        assert f"<h2>{name}</h2>" in text
        assert html.escape(task.source) in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) >= 2 * (1 + len(of_one_image()))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as first:
        assert first.size == (CELL, CELL)
    save(text, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text() == text


def test_save_writes_png_to_any_storage_and_refuses_in_words(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), "red")
    for url in (str(tmp_path / "a.png"), "memory://sheets/a.PNG"):
        save(picture, url)
        with Image.open(io.BytesIO(storage.read_all(url))) as back:
            assert (back.format, back.size) == ("PNG", (3, 2))
    with pytest.raises(UserError, match=r"ends in \.png"):
        save(picture, str(tmp_path / "a.jpg"))
    with pytest.raises(UserError, match=r"ends in \.html"):
        save("<p>", str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="cannot be written"):
        save(picture, str(tmp_path / "a.png" / "b.png"))


def _photos(shards: Path) -> list[bytes]:
    with tarfile.open(sorted(shards.glob("*.tar"))[0]) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]


def _shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
