"""Views: their colours, blur and solarisation are the published ones, each view has its own chance, and refusals are in words."""

from __future__ import annotations

import colorsys
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.draws import Draws
from pipeline.engines.cpu_ops import CpuOps
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from pipeline.tasks import registry
from pipeline.tasks.jitter import TO_YIQ, jitter_maps
from pipeline.tasks.views import ViewTask
from tests.pipeline.made_images import photo

VIEW_TASKS = [name for name, cls in registry().items() if issubclass(cls, ViewTask)]

NAMES = ["brightness", "contrast", "saturation", "hue"]


def draws(task: ViewTask, count: int = 200, size: int = 64) -> dict[str, np.ndarray]:
    return task.draw(Draws(1, 0, np.arange(count, dtype=np.uint64)).stream("here"), size)


def made(name: str = "simclr", **parameters: Any) -> ViewTask:
    task = registry()[name].model_validate(parameters)
    assert isinstance(task, ViewTask)
    return task


def looks(images: np.ndarray) -> np.ndarray:
    """Brightness, saturation (greatest less least channel) and the two differences of colour: means of each image, levels."""
    grey, blue, red = (images @ np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]]).T).T
    chroma = images.max(axis=3).astype(float) - images.min(axis=3)
    return np.stack([values.mean(axis=(1, 2)) for values in (grey.T, chroma, blue.T, red.T)], axis=1)


def amounts_of(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The factors, and the turn of the hue, out of which the first view's maps were made."""
    matrix, of_mean = drawn["matrix"][:, 0], drawn["of_mean"][:, 0]
    both = matrix.sum(axis=2).mean(axis=1)  # a grey pixel keeps its colour, so this is brightness times contrast
    plane = TO_YIQ @ (matrix / both[:, None, None]) @ np.linalg.inv(TO_YIQ)
    saturation, turn = np.hypot(plane[:, 1, 1], plane[:, 1, 2]), np.arctan2(plane[:, 1, 2], plane[:, 1, 1]) / (2 * np.pi)
    return {"brightness": both + of_mean, "contrast": both / (both + of_mean), "saturation": saturation, "hue": turn}


STRENGTHS = [
    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    dict.fromkeys(NAMES[:3], 0.8) | {"hue": 0.2},
]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_amounts_are_drawn_as_torchvision_draws_them(strength: dict[str, float]) -> None:
    """Over 10,000 draws each is uniform between its limits, with the mean and the spread of that."""
    for name, found in amounts_of(draws(made(jitter=1, grey=0, **strength), 10_000)).items():
        middle, most = float(name != "hue"), strength[name]
        assert middle - most - 0.01 < found.min() < middle - 0.99 * most
        assert middle + 0.99 * most < found.max() < middle + most + 0.01
        assert abs(found.mean() - middle) < 0.02 * most
        assert abs(found.std() / most * 3**0.5 - 1) < 0.02


@pytest.mark.parametrize("strength", STRENGTHS)
def test_colours_are_torchvisions_on_average(strength: dict[str, float]) -> None:
    """Of 1,500 drawn amounts on photos: means and spreads differ by less than 7 levels.

    Brightness is about 130, and its spread 45. The rest is that torchvision clips after each change, in a drawn order, and turns
    hue in HSV, where the brightness changes with it.
    """
    import torch
    from torchvision.transforms.v2 import functional as F

    count = 500
    drawn = draws(made(jitter=1, grey=0, **strength), count)
    amounts, random = amounts_of(drawn), np.random.default_rng(0)
    for box in ((0, 0, 48, 48), (60, 20, 108, 68), (100, 60, 148, 108)):
        image = np.asarray(photo().crop(box).resize((16, 16)))
        ours = CpuOps(16).jitter(np.tile(image, (count, 1, 1, 1)), drawn["matrix"][:, 0], drawn["of_mean"][:, 0])
        theirs = []
        for row in range(count):
            tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
            for name in random.permutation(NAMES):
                tensor = getattr(F, f"adjust_{name}")(tensor, float(amounts[name][row]))
            theirs.append(tensor.permute(1, 2, 0).numpy())
        one, other = looks(ours), looks(np.stack(theirs))
        assert np.abs(one.mean(axis=0) - other.mean(axis=0)).max() < 7
        assert np.abs(one.std(axis=0) - other.std(axis=0)).max() < 7
        assert other.std(axis=0).min() > 3, "hardly anything was changed, so hardly anything was compared"


def one_change(**amounts: float) -> tuple[np.ndarray, np.ndarray]:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | amounts
    return jitter_maps(**{name: np.array([value]) for name, value in neutral.items()})


@pytest.mark.parametrize(("name", "amount"), [("brightness", 1.3), ("brightness", 0.6), ("contrast", 0.5), ("saturation", 0.3)])
def test_each_change_alone_is_torchvisions_which_cuts_fractions_off(name: str, amount: float) -> None:
    import torch
    from torchvision.transforms.v2 import functional as F

    image = np.asarray(photo().crop((0, 0, 64, 64)))
    theirs = getattr(F, f"adjust_{name}")(torch.from_numpy(image.copy()).permute(2, 0, 1), amount).permute(1, 2, 0).numpy()
    ours = CpuOps(64).jitter(image[None], *one_change(**{name: amount}))[0]
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_the_hue_turns_as_far_as_in_hsv() -> None:
    """Reds and greens, a quarter of a turn each way: by what HSV says, up to a twelfth of a turn for the planes' shapes."""
    for colour in ((200, 60, 60), (60, 180, 80), (70, 80, 190)):
        pixels = np.full((1, 8, 8, 3), colour, np.uint8)
        before = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))[0]
        for turn in (-0.25, -0.1, 0.1, 0.25):
            after = CpuOps(8).jitter(pixels, *one_change(hue=2 * np.pi * turn))[0, 0, 0]
            turned = (colorsys.rgb_to_hsv(*(after / 255))[0] - before + 0.5) % 1 - 0.5
            assert abs(turned - turn) < 1 / 12, (colour, turn, turned)


def test_the_four_changes_together_are_each_after_the_other_in_any_order() -> None:
    amounts = {"brightness": 1.5, "contrast": 0.5, "saturation": 0.4, "hue": 0.6}
    image = np.asarray(photo().crop((40, 40, 72, 72))).astype(float)

    def changed(pixels: np.ndarray, **some: float) -> np.ndarray:
        matrix, of_mean = one_change(**some)
        return pixels @ matrix[0].T + of_mean[0] * (pixels.mean(axis=(0, 1)) @ [0.299, 0.587, 0.114])

    together = changed(image, **amounts)
    for order in itertools.permutations(amounts):
        pixels = image
        for name in order:
            pixels = changed(pixels, **{name: amounts[name]})
        np.testing.assert_allclose(pixels, together, atol=0.05)  # the published matrix has four digits


def test_a_view_whose_colours_stay_is_left_alone_and_one_without_colour_is_grey() -> None:
    crops = np.stack([np.asarray(photo().crop((i, i, i + 64, i + 64))) for i in range(60)])
    kept, grey = draws(made(jitter=0, grey=0.5), 60), draws(made(jitter=1, grey=1), 60)
    ours = CpuOps(64).jitter(crops, kept["matrix"][:, 0], kept["of_mean"][:, 0])
    same = np.array([np.array_equal(one, crop) for one, crop in zip(ours, crops)])
    assert 15 < same.sum() < 45
    for images in (ours[~same], CpuOps(64).jitter(crops, grey["matrix"][:, 0], grey["of_mean"][:, 0])):
        assert (images.max(axis=-1).astype(int) - images.min(axis=-1)).max() <= 1


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_blur_is_as_wide_as_pils(sigma: float) -> None:
    """PIL's is made of box filters, so the comparison is of the width: how far a single bright pixel spreads."""
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16] = 255
    step = np.arange(33) - 16
    ours = CpuOps(33).blur(dot, np.array([sigma]))[0, :, :, 0].astype(float)
    theirs = np.asarray(Image.fromarray(dot[0]).filter(ImageFilter.GaussianBlur(sigma)))[:, :, 0].astype(float)
    widths = [np.sqrt((of.sum(axis=0) * step**2).sum() / of.sum()) for of in (ours, theirs)]
    assert abs(widths[0] / sigma - 1) < 0.12
    assert abs(widths[0] / widths[1] - 1) < 0.12


def test_another_view_changes_no_other() -> None:
    two, more = made(), made(views=4, small_views=3)
    ours, theirs = draws(two), draws(more)
    for name, values in ours.items():
        assert np.array_equal(theirs[name][:, :2], values)
        assert name == "threshold" or not np.array_equal(values[:, 0], values[:, 1])
    rng, sides = Draws(1, 0, np.arange(50, dtype=np.uint64)).stream("here"), (np.full(50, 300), np.full(50, 400))
    windows, others = two.windows(rng, *sides, 64), more.windows(rng, *sides, 64)
    assert np.array_equal(others.boxes[:, :2], windows.boxes)
    assert np.array_equal(others.mirror[:, :2], windows.mirror)
    assert not np.array_equal(windows.boxes[:, 0], windows.boxes[:, 1])


@pytest.mark.parametrize("name", VIEW_TASKS)
def test_windows_cover_the_share_that_is_asked_for(name: str) -> None:
    task, count = made(name), 500
    rng = Draws(1, 0, np.arange(count, dtype=np.uint64)).stream(name)
    windows = task.windows(rng, np.full(count, 375), np.full(count, 500), 224)
    assert windows.boxes.shape == (count, task.views + task.small_views, 4)
    share = windows.boxes[:, :, 2] * windows.boxes[:, :, 3] / (375 * 500)
    for part, (least, most) in ((share[:, : task.views], task.scale), (share[:, task.views :], task.small_scale)):
        if part.size:
            assert least - 0.01 < part.min() < least + 0.1
            assert most - 0.15 < part.max() <= most + 0.01
    assert 0.4 < windows.mirror.mean() < 0.6


def test_amdim_mirrors_both_views_or_none() -> None:
    rng, sides = Draws(1, 0, np.arange(50, dtype=np.uint64)).stream("amdim"), (np.full(50, 300), np.full(50, 400))
    mirror = made("amdim").windows(rng, *sides, 64).mirror
    assert np.array_equal(mirror[:, 0], mirror[:, 1])
    assert 10 < mirror[:, 0].sum() < 40


def test_views_differ_where_the_method_says_so() -> None:
    byol, dino = draws(made("byol"), 2000), draws(made("dino"), 2000)
    blurred, solarised = ((drawn["sigma"] > 0).mean(axis=0) for drawn in (byol, dino)), (byol["threshold"] < 256).mean(axis=0)
    of_byol, of_dino = blurred
    np.testing.assert_allclose(of_byol, [1, 0.1], atol=0.03)
    np.testing.assert_allclose(of_dino, [1, 0.1, *[0.5] * 8], atol=0.04)
    np.testing.assert_allclose(solarised, [0, 0.2], atol=0.03)
    assert set(np.unique(byol["threshold"])) == {128, 256}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"blur": [1, 2]}, "tasks.simclr.blur: probabilities lie between 0 and 1 (given: [1, 2])"),
        ({"scale": [0.5, 1.5]}, "tasks.simclr.scale: needs 0 < least <= most <= 1 (given: [0.5, 1.5])"),
        ({"sigma": [2, 1]}, "tasks.simclr.sigma: needs 0 < least <= most (given: [2, 1])"),
        ({"views": 1}, "tasks.simclr.views: must be greater than or equal to 2 (given: 1)"),
        ({"objective": 3}, "tasks.simclr.objective: needs a name, or a mapping of a name and parameters, such as "),
    ],
)
def test_what_cannot_work_is_refused_in_words(parameters: dict[str, Any], words: str) -> None:
    document = {"name": "a", "seed": 1, "corpus": {"shards": "x"}, "tasks": {"simclr": parameters}}
    with pytest.raises(UserError) as refused:
        parse_recipe(document)
    assert words in str(refused.value)


def test_one_number_is_a_list_of_one() -> None:
    assert made(blur=0.3) == made(blur=[0.3])
