"""From bytes to pairs: every sample becomes a pair or a failure with a reason, in its place, without harm to its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.draws import Draws, sample_id
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Pairs, Renderer
from pipeline.shards.corpus import Sample
from tests.pipeline.children import run_python
from tests.pipeline.made_images import encode, good, of_one_image, photo, seen_by_pil, turned, unlike

ENGINES = ["cpu", "dali"]
SIZE = 48


def recipe(engine: str = "cpu", tasks: Any = None, **image: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "test",
            "seed": 4,
            "corpus": {"shards": "nowhere"},
            "image": {"size": SIZE, **image},
            "tasks": {name: {} for name in unlike(of_one_image())} if tasks is None else tasks,
            "engine": engine,
        }
    )


def sample(key: str, encoded: bytes, label: int = -1, problem: str | None = None) -> Sample:
    return Sample(key, sample_id(key), encoded, "jpg", label, problem)


def render(samples: list[Sample], engine: str = "cpu", epoch: int = 0, **more: Any) -> Pairs:
    return Renderer(recipe(engine, **more))(samples, epoch)


BAD = {
    "empty": b"",
    "text": b"not an image\n" * 100,
    "zeros": bytes(5000),
    "gif": encode(photo(), "GIF"),
    "avif": b"\0\0\0\x20ftypavif" + bytes(200),
    "header only": good()["jpeg"][: good()["jpeg"].index(b"\xff\xda")],
    "truncated jpeg": good()["jpeg"][:2000],
    "truncated png": good()["png"][:-20],
    "truncated webp": good()["webp"][:-20],
    "truncated tiff": good()["tiff"][:-20],
    "truncated bmp": good()["bmp"][:-20],
    "truncated ppm": good()["ppm"][:-20],
    "float tiff": encode(photo().convert("F"), "TIFF"),
    "truncated cmyk tiff": encode(photo().convert("CMYK"), "TIFF", compression="tiff_lzw")[:-20],
    "damaged fax": encode(photo().convert("1"), "TIFF", compression="group4")[:20] + bytes(3000),
    "too large": encode(Image.new("L", (500, 500)), "PNG"),
    "damaged png": good()["png"][:400] + bytes(60) + good()["png"][460:],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_files_are_refused_with_a_reason_and_their_neighbours_rendered(engine: str) -> None:
    kinds = [name for name in good() if "pixel" not in name]
    files = [(f"good/{name}", good()[name]) for name in kinds] + [(f"bad/{name}", data) for name, data in BAD.items()]
    order = np.random.default_rng(0).permutation(len(files))
    samples = [sample(*files[i]) for i in order]
    pairs, again = render(samples, engine, max_pixels=200_000), Renderer(recipe(engine, max_pixels=200_000))
    for row, one in enumerate(samples):
        bad = one.key.startswith("bad/")
        assert (row in pairs.failures) == bad, one.key
        assert pairs.columns["weight"][row] == (0.0 if bad else 1.0)
        pixels = [pairs.columns[name][row] for name in ("image", *(f"{task}.input" for task in unlike(of_one_image())))]
        if bad:
            assert pairs.failures[row]
            assert not any(part.any() for part in pixels)
        else:
            alone = again([one], 0)
            assert all(np.array_equal(pairs.columns[name][row], column[0]) for name, column in alone.columns.items()), one.key


@pytest.mark.parametrize("engine", ENGINES)
def test_flipped_bits_never_kill_a_process_nor_touch_a_neighbour_nor_depend_on_chance(engine: str) -> None:
    """Some two hundred damaged files of every kind, in child processes, as they may crash. Each process fills its memory with
    other bytes, which exposes a decoder that returns uninitialised memory."""
    script = """
        import hashlib, sys
        import numpy as np
        from pipeline.rendering.renderer import Renderer
        from tests.pipeline.made_images import good, turned
        from tests.pipeline.rendering.test_renderer import recipe, sample

        random = np.random.default_rng(int(sys.argv[2]))
        kinds = [*good().values(), *(turned(form, 6) for form in ("JPEG", "PNG", "WEBP", "TIFF"))]

        def damaged(file):
            data = bytearray(file)
            reach = min(len(data), 700) if random.random() < 0.5 else len(data)
            how = random.integers(4)
            at = int(random.integers(reach))
            if how == 0:
                for place in random.integers(0, reach, random.integers(1, 8)):
                    data[place] ^= 1 << int(random.integers(8))
            elif how == 1:
                del data[at : at + int(random.integers(1, 40))]
            elif how == 2:
                data[at:at] = random.integers(0, 256, random.integers(1, 40), np.uint8).tobytes()
            else:
                data[at : at + 200] = bytes(len(data[at : at + 200]))
            return bytes(data)

        render = Renderer(recipe(sys.argv[1], {}, max_pixels=10**6, scale=(0.3, 1.0)))
        first, last = sample("first", good()["jpeg"]), sample("last", good()["png"])
        expected = render([first, last], 0).columns["image"]
        hashed, counts = hashlib.sha256(), [0, 0]
        for turn in range(8):
            samples = [first, *(sample(f"{turn}/{i}", damaged(file)) for i, file in enumerate(kinds)), last]
            pairs = render(samples, 0)
            image, weight = pairs.columns["image"], pairs.columns["weight"]
            assert np.array_equal(image[[0, -1]], expected), "a neighbour changed"
            assert all((weight[row] == 0) == (row in pairs.failures) for row in range(len(samples))), "not accounted for"
            assert all(pairs.failures.values())
            hashed.update(image.tobytes() + weight.tobytes())
            counts[0] += len(samples) - 2
            counts[1] += len(pairs.failures)
        assert counts[1] > 35, counts
        print(hashed.hexdigest(), *counts)
    """
    outputs = set()
    for filling in ("85", "170"):
        done = run_python(script, engine, "7", MALLOC_PERTURB_=filling)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
        outputs.add(done.stdout)
    assert len(outputs) == 1, outputs


def test_both_engines_give_up_on_the_same_files() -> None:
    files = [sample(name, file) for name, file in {**good(), **BAD}.items()]
    refused = [render(files, engine, max_pixels=200_000).failures for engine in ENGINES]
    assert refused[0] == refused[1]


def test_a_problem_known_from_the_index_is_the_reason() -> None:
    pairs = render([sample("a", good()["jpeg"]), sample("b", b"", problem="no image member")])
    assert pairs.failures == {1: "no image member"}
    assert pairs.columns["weight"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_columns_are_as_promised(engine: str) -> None:
    samples = [sample("a", good()["jpeg"], 3), sample("b", b"", 5), sample("c", good()["png"])]
    made = recipe(engine)
    pairs = Renderer(made)(samples, 0)
    columns = pairs.columns
    assert columns["id"].tolist() == [sample_id(key) for key in "abc"]
    assert columns["id"].dtype == np.uint64
    assert columns["weight"].dtype == np.float32
    assert columns["class"].tolist() == [3, 5, -1]
    assert columns["image"].shape == (3, SIZE, SIZE, 3)
    for name, task in made.tasks.items():
        assert columns[f"{name}.input"].shape == (3, *task.input_shape(SIZE))
        assert columns[f"{name}.input"].dtype == np.uint8
    assert columns["rotation.label"].dtype == np.int64
    assert columns["occlusion.mask"].shape == (3, SIZE, SIZE)
    assert set(pairs.seconds) == {"check", "render"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [0, 2])
def test_no_good_sample_is_no_special_case(engine: str, bad: int) -> None:
    samples = [sample(str(i), b"") for i in range(bad)]
    pairs = render(samples, engine)
    assert pairs.columns["image"].shape == (bad, SIZE, SIZE, 3)
    assert len(pairs.failures) == bad


def test_a_bad_neighbour_does_not_shift_what_the_others_draw() -> None:
    samples = [sample(str(i), good()["jpeg"]) for i in range(4)]
    clean = render(samples).columns
    spoilt = render([samples[0], sample("x", b""), *samples[1:]]).columns
    for name, column in clean.items():
        assert np.array_equal(np.delete(spoilt[name], 1, axis=0), column), name


def test_seed_and_epoch_change_the_pairs_and_a_second_run_does_not() -> None:
    samples = [sample(str(i), good()["jpeg"]) for i in range(8)]
    first, again, later = render(samples), render(samples), render(samples, epoch=1)
    assert all(np.array_equal(column, again.columns[name]) for name, column in first.columns.items())
    for name in ("image", "rotation.label", "jigsaw.input", "occlusion.mask"):
        assert not np.array_equal(first.columns[name], later.columns[name]), name


def test_a_task_s_draws_do_not_depend_on_which_other_tasks_there_are() -> None:
    samples = [sample(str(i), good()["jpeg"]) for i in range(8)]
    alone = render(samples, tasks={"rotation": {}}).columns
    beside = render(samples).columns
    assert all(np.array_equal(column, beside[name]) for name, column in alone.items())


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_the_centre_crop_is_the_middle_of_the_upright_photo(orientation: int) -> None:
    encoded = turned("PNG", orientation)
    upright = seen_by_pil(encoded)
    side = min(upright.size)
    left, top = ((length - side) // 2 for length in upright.size)
    expected = upright.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = Renderer(recipe(tasks={}), center=True)([sample("a", encoded)], 3).columns["image"][0]
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_evaluation_is_never_mirrored_and_training_by_halves() -> None:
    samples = [sample(str(i), good()["png"]) for i in range(60)]
    centred = Renderer(recipe(tasks={}, crop="center"))(samples, 0).columns["image"]
    evaluated = Renderer(recipe(tasks={}), center=True)(samples, 0).columns["image"]
    plain = evaluated[0]
    assert (evaluated == plain).all()
    mirrored = np.array([np.array_equal(image, plain[:, ::-1]) for image in centred])
    assert all(flip or np.array_equal(image, plain) for flip, image in zip(mirrored, centred))
    assert 15 <= mirrored.sum() <= 45
    unmirrored = Renderer(recipe(tasks={}, crop="center", flip=False))(samples, 0).columns["image"]
    assert (unmirrored == plain).all()


def test_the_window_is_the_one_that_was_drawn() -> None:
    """The render takes its crop from the stream `crop`: PIL, given the same numbers, gives the same picture."""
    from pipeline.engines.windows import flips, random_windows

    one = sample("some/key", turned("JPEG", 6))
    made = recipe(tasks={})
    upright = seen_by_pil(one.encoded)  # type: ignore[arg-type]
    rng = Draws(made.seed, 9, np.array([one.id], np.uint64)).stream("crop")
    top, left, height, width = random_windows(
        rng, np.array([upright.height]), np.array([upright.width]), made.image.scale, made.image.ratio
    )[0]
    crop = upright.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    expected = np.asarray(crop)[:, ::-1] if flips(rng)[0] else np.asarray(crop)
    pixels = Renderer(made)([one], 9).columns["image"][0]
    assert np.abs(pixels.astype(int) - expected).max() <= 1
