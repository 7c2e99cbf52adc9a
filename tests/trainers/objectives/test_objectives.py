"""Each kind of label is learnt, measured beside its trivial answer, and chosen as the task says."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipeline.errors import UserError
from pipeline.labels import LabelKind, Views
from pipeline.tasks import registry as tasks
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import autocast
from trainers.objectives import build_objective, objective_class, registry
from trainers.objectives.pixels import AbsolutePixelsObjective, PixelsObjective, cells, chroma, psnr

FALLS = {"rotation": 0.8, "jigsaw": 0.8, "occlusion": 0.8, "colorization": 0.8}
"""Share of its first value below which each loss must fall in 20 steps on one batch."""


def views_of(task: str) -> bool:
    """Whether a task compares views; these are held in `test_views.py`."""
    return isinstance(tasks()[task]().label_kind(), Views)


@pytest.mark.parametrize("task", FALLS)
def test_the_loss_falls_and_the_metric_passes_the_trivial_answer(task, recipe, columns) -> None:
    batch = columns(16, 32)
    model = PretextModel(recipe(task), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        outcome = model(batch)[task]
        loss = outcome.loss / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < FALLS[task] * losses[0]
    assert outcome.count == 16
    assert outcome.metric > outcome.trivial


def others() -> list[Any]:
    """The other tasks, without those of views; one whose objective is learnt by a task before it is slow."""
    learnt, found = {objective_class(tasks()[name]()) for name in FALLS}, []
    drawn = set(tasks()) - set(FALLS) - {"assigned", "supervised"}  # whose labels are given
    for name in sorted((name for name in drawn if not views_of(name)), reverse=True):
        objective = objective_class(tasks()[name]())
        found.append(pytest.param(name, marks=[pytest.mark.slow] if objective in learnt else []))
        learnt.add(objective)
    return found


@pytest.mark.parametrize("task", others())
def test_every_other_task_is_learnt_on_a_batch(task, recipe, rendered) -> None:
    """Those that a package adds, too: the loss falls, and the metric passes the trivial answer."""
    batch = rendered(task)
    model = PretextModel(recipe(task), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60 if task == "reconstruction" else 25):  # through a bottleneck it is slower
        outcome = model(batch)[task]
        optimizer.zero_grad()
        (outcome.loss / 16).backward()
        optimizer.step()
        losses.append(outcome.loss.item() / 16)
    assert not [path for path, p in model.named_parameters() if p.grad is None]
    assert np.mean(losses[-3:]) < 0.95 * losses[0]
    assert outcome.count == 16
    better = outcome.metric - outcome.trivial
    assert (better if model.objectives[task].higher_is_better else -better) > 0


def test_psnr_and_ssim_of_the_spoilt_image_itself_are_where_the_corrector_starts(recipe, rendered) -> None:
    batch = rendered("denoising")
    with torch.no_grad():
        outcome = PretextModel(recipe("denoising"), seed=0).eval()(batch)["denoising"]
    given, target = (batch[name].permute(0, 3, 1, 2) / 255 for name in ("denoising.input", "image"))
    expected = peak_signal_noise_ratio(given, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(outcome.metric, expected.sum())
    torch.testing.assert_close(outcome.trivial, expected.sum())
    torch.testing.assert_close(outcome.also["ssim"], structural_similarity_index_measure(given, target, data_range=1.0) * 16)


def test_metrics_are_computed_in_float32_whatever_the_precision(recipe, rendered) -> None:
    """Variances of bfloat16 numbers are mostly rounding: a smooth image would be unlike itself."""
    batch = rendered("denoising")
    ramp = torch.linspace(100, 120, 32).to(torch.uint8).view(1, 1, 32, 1).expand(16, 32, 32, 3).contiguous()
    same = batch | {"image": ramp, "denoising.input": ramp}
    model = PretextModel(recipe("denoising"), seed=0).eval()  # it returns its input until it learns
    with torch.no_grad(), autocast("cpu", "bfloat16"):
        outcome = model(same)["denoising"]
    assert outcome.also["ssim"].item() == pytest.approx(16, abs=1e-3)
    assert outcome.metric == 16 * 60  # decibels of an exact answer
    assert outcome.loss.dtype is outcome.metric.dtype is torch.float32


def one_an_objective() -> list[Any]:
    """All tasks; those whose objective a task before has are slow."""
    found: list[Any] = []
    known: set[Any] = set()
    for name in sorted(tasks()):
        objective = objective_class(tasks()[name]())
        found.append(pytest.param(name, marks=[pytest.mark.slow] if objective in known else []))
        known.add(objective)
    return found


@pytest.mark.parametrize("task", one_an_objective())
def test_answers_are_judged_without_autocast(task, recipe, rendered, monkeypatch) -> None:
    model, seen = PretextModel(recipe((task, {})), seed=0), []
    judge = model.objectives[task].judge

    def look(answer, batch, name):
        seen.append((answer.dtype, torch.is_autocast_enabled("cpu")))
        return judge(answer, batch, name)

    monkeypatch.setattr(model.objectives[task], "judge", look)
    with autocast("cpu", "bfloat16"):
        assert model(rendered(task, n=4))[task].loss.dtype is torch.float32
    assert seen == [(torch.float32, False)]


@pytest.mark.parametrize("name", ["occlusion", "colorization", "masked_patches"])
def test_a_decoder_starts_from_the_trivial_answer(recipe, rendered, name) -> None:
    with torch.no_grad():
        outcome = PretextModel(recipe(name), seed=0).eval()(rendered(name))[name]
    torch.testing.assert_close(outcome.metric, outcome.trivial)


def test_hidden_patches_are_asked_for_in_their_own_units(crops) -> None:
    image = torch.from_numpy(crops(3, 34)).permute(0, 3, 1, 2) / 255  # 8 x 8 cells of 4 pixels, a pixel left over on each side
    mean, deviation = cells(image, 8)
    units = ((image - mean) / deviation)[:, :, 1:33, 1:33]
    for top in range(0, 32, 4):
        cell = units[:, :, top : top + 4, 8:12]
        torch.testing.assert_close(cell.mean((1, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        assert (cell.std((1, 2, 3), correction=0) <= 1).all()
    torch.testing.assert_close(((image - mean) / deviation)[:, :, 0], image[:, :, 0])


def test_an_angle_s_error_is_in_degrees(recipe, rendered) -> None:
    batch = rendered("rotation_angle")
    model = PretextModel(recipe("rotation_angle"), seed=0).eval()
    head = model.objectives["rotation_angle"].head[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 0.0]))  # sine 1, cosine 0: 90 degrees
        outcome = model(batch)["rotation_angle"]
    sine, cosine = batch["rotation_angle.label"].double().T.numpy()
    apart = np.abs((np.rad2deg(np.arctan2(sine, cosine)) - 90 + 180) % 360 - 180)
    assert outcome.metric.item() == pytest.approx(apart.sum(), rel=1e-4)
    assert outcome.trivial == 90 * 16


def test_intersection_over_union_is_that_of_the_pixels(recipe, rendered) -> None:
    batch = rendered("corrupted_region")
    model = PretextModel(recipe("corrupted_region"), seed=0).eval()
    outputs: list[torch.Tensor] = []
    model.objectives["corrupted_region"].decoder.register_forward_hook(lambda _, args, out: outputs.append(out))
    with torch.no_grad():
        outcome = model(batch)["corrupted_region"]
    found, mask = outputs[0][:, 0] > 0, batch["corrupted_region.mask"].bool()
    expected = ((found & mask).sum((1, 2)) / (found | mask).sum((1, 2))).sum()
    torch.testing.assert_close(outcome.metric, expected)
    torch.testing.assert_close(outcome.trivial, torch.tensor(16 / 16.0))  # one cell of 4 x 4, of each of 16 samples


def test_places_of_an_order_are_counted_one_by_one(recipe, rendered) -> None:
    batch = rendered("jigsaw_order")
    model = PretextModel(recipe("jigsaw_order"), seed=0).eval()
    last = model.objectives["jigsaw_order"].head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.eye(9).flatten())  # every patch is said to be where it belongs
        outcome = model(batch)["jigsaw_order"]
        right = batch | {"jigsaw_order.label": torch.arange(9).expand(16, 9)}
        assert model(right)["jigsaw_order"].also["whole_orders"] == 16
    assert outcome.metric.item() == pytest.approx((batch["jigsaw_order.label"] == torch.arange(9)).double().mean(1).sum().item())
    assert outcome.trivial.item() == pytest.approx(16 / 9)


def test_accuracy_counts_right_answers_beside_chance(recipe, columns) -> None:
    batch = columns(12, 32)
    model = PretextModel(recipe("rotation"), seed=0).eval()
    head = model.objectives["rotation"].head[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 0, 5, 0]))
        outcome = model(batch)["rotation"]
    assert outcome.metric == (batch["rotation.label"] == 2).sum()
    assert outcome.trivial == 12 / 4


def test_a_sample_without_a_label_counts_neither_in_the_loss_nor_in_the_accuracy(recipe, rendered) -> None:
    batch = rendered("assigned", n=8)
    model = PretextModel(recipe(("assigned", {"classes": 4})), seed=0).eval()
    label = torch.tensor([0, 1, -1, 2, -1, 3, 0, -1])
    some = model(batch | {"assigned.label": label})["assigned"]
    kept = {name: column[label >= 0] for name, column in (batch | {"assigned.label": label}).items()}
    alone = model(kept)["assigned"]
    assert (some.count.item(), some.trivial.item()) == (5, 5 / 4)
    torch.testing.assert_close(some.loss, alone.loss)
    assert some.metric == alone.metric
    none = model(batch | {"assigned.label": torch.full((8,), -1)})["assigned"]
    none.loss.backward()
    assert (none.loss.item(), none.metric.item(), none.count.item()) == (0, 0, 0)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_patches_go_through_the_backbone_alone_and_are_judged_together(recipe, columns) -> None:
    batch = columns(4, 32)
    model = PretextModel(recipe("jigsaw"), seed=0).eval()
    vectors: list[torch.Tensor] = []
    model.objectives["jigsaw"].head.register_forward_pre_hook(lambda _, args: vectors.append(args[0]))
    with torch.no_grad():
        model(batch)
        model(batch | {"jigsaw.input": batch["jigsaw.input"][:, [1, 0, 2, 3]]})
    there, swapped = (v.view(4, 4, model.backbone.vector_width) for v in vectors)
    torch.testing.assert_close(there[:, [1, 0, 2, 3]], swapped)


def test_psnr_in_the_hole_is_that_of_the_hole_cut_out() -> None:
    generator = torch.Generator().manual_seed(0)
    answer, target = torch.rand(3, 3, 8, 8, generator=generator), torch.rand(3, 3, 8, 8, generator=generator)
    hole = torch.zeros(3, 1, 8, 8)
    hole[:, :, 2:5, 1:7] = 1
    inside = (slice(None), slice(None), slice(2, 5), slice(1, 7))
    expected = peak_signal_noise_ratio(answer[inside], target[inside], data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(answer, target, hole), expected)
    assert (psnr(target, target, hole) == 60).all()


def test_chroma_is_that_of_jpeg(crops) -> None:
    photo = crops(1, 64)[0]
    expected = np.asarray(Image.fromarray(photo).convert("YCbCr"))[..., 1:].astype(float) - 128
    found = chroma(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() < 1.01
    assert chroma(torch.full((1, 3, 2, 2), 0.3)).abs().max() < 1e-6


def test_the_loss_counts_the_hole_above_the_rest(recipe, columns) -> None:
    batch = columns(4, 32)
    model = PretextModel(recipe("occlusion"), seed=0).eval()
    hole = batch["occlusion.mask"].bool()
    with torch.no_grad():
        plain = model(batch)["occlusion"].loss
        inside = model(batch | {"image": torch.where(hole[..., None], 255 - batch["image"], batch["image"])})["occlusion"].loss
        outside = model(batch | {"image": torch.where(hole[..., None], batch["image"], 255 - batch["image"])})["occlusion"].loss
    assert (inside - plain).abs() > (outside - plain).abs() > 0


def test_the_metric_does_not_see_beside_the_hole(recipe, columns) -> None:
    batch = columns(4, 32)
    model = PretextModel(recipe("occlusion"), seed=0).eval()
    hole = batch["occlusion.mask"].bool()[..., None]
    with torch.no_grad():
        plain = model(batch)["occlusion"]
        other = model(batch | {"image": torch.where(hole, batch["image"], 255 - batch["image"])})["occlusion"]
    torch.testing.assert_close(plain.metric, other.metric)
    torch.testing.assert_close(plain.trivial, other.trivial)  # one colour, that of what the input shows


def test_a_target_column_of_the_task_comes_before_one_of_the_batch(recipe, columns) -> None:
    batch = columns(4, 32)
    model = PretextModel(recipe("colorization"), seed=0).eval()
    grey = batch["colorization.input"].expand(-1, -1, -1, 3)
    with torch.no_grad():
        named = model(batch | {"colorization.image": grey})["colorization"]
        replaced = model(batch | {"image": grey})["colorization"]
    torch.testing.assert_close(named.loss, replaced.loss)


def test_a_task_may_name_another_objective_of_its_kind() -> None:
    occlusion, rotation = tasks()["occlusion"], tasks()["rotation"]
    assert objective_class(occlusion()) is PixelsObjective
    assert objective_class(occlusion(objective="pixels_l1")) is AbsolutePixelsObjective
    with pytest.raises(UserError, match=r"tasks.occlusion.objective: unknown objective 'pixel_l1': did you mean 'pixels_l1'\?"):
        objective_class(occlusion(objective="pixel_l1"))
    with pytest.raises(UserError, match="'pixels' is for Pixels labels"):
        objective_class(rotation(objective="pixels"))


def test_the_absolute_error_is_another_loss(recipe, columns) -> None:
    batch = columns(4, 32)
    with torch.no_grad():
        squared = PretextModel(recipe("occlusion"), seed=0).eval()(batch)["occlusion"]
        absolute = PretextModel(recipe(("occlusion", {"objective": "pixels_l1"})), seed=0).eval()(batch)["occlusion"]
    torch.testing.assert_close(squared.metric, absolute.metric)
    assert not torch.allclose(squared.loss, absolute.loss)


@pytest.mark.parametrize("kind", [kind for kind in get_args(LabelKind) if kind is not Views], ids=lambda kind: kind.__name__)
def test_each_kind_has_a_default(kind: type) -> None:
    assert registry()[kind.__name__.lower()].kind is kind


def test_an_objective_works_on_a_batch_where_everything_is_bad(recipe, columns) -> None:
    batch = columns(4, 32) | {"weight": torch.zeros(4)}
    model = PretextModel(recipe("rotation", "occlusion"), seed=0)
    for name, outcome in model(batch).items():
        assert outcome.loss == 0, name
        assert outcome.metric == outcome.trivial == outcome.count == 0, name


def test_objectives_are_built_on_any_backbone_given(recipe, columns) -> None:
    model = PretextModel(recipe("rotation"), seed=0)
    objective = build_objective(tasks()["rotation"](), model.backbone, 32)
    outcome = objective(model.backbone, columns(4, 32), "rotation", Normaliser((0.5,) * 3, (0.25,) * 3))
    assert outcome.loss.shape == ()


@pytest.mark.parametrize("parts", [1, 3])
def test_a_sample_counts_as_much_as_its_weight_says_on_any_number_of_workers(parts: int, recipe: Any) -> None:
    objective = PretextModel(recipe("rotation"), seed=0).objectives["rotation"]
    random = torch.Generator().manual_seed(0)
    answer = torch.randn(12, 4, generator=random)
    label = torch.arange(12) % 5 - 1
    weight = torch.rand(12, generator=random).index_fill(0, torch.tensor([3, 8]), 0)
    batch = {"weight": torch.ones(12).index_fill(0, torch.tensor([5]), 0), "rotation.label": label, "rotation.weight": weight}
    pieces = [rows.tolist() for rows in torch.arange(12).tensor_split(parts)]
    judged = [
        objective.judge(answer[rows], {name: column[rows] for name, column in batch.items()}, "rotation") for rows in pieces
    ]
    whole = sum(judged[1:], judged[0])
    counts = weight * (label >= 0) * batch["weight"]
    losses = torch.nn.functional.cross_entropy(answer, label.clamp_min(0), reduction="none")
    torch.testing.assert_close(whole.loss, (losses * counts).sum())
    torch.testing.assert_close(whole.metric, ((answer.argmax(1) == label) * counts).sum())
    torch.testing.assert_close(whole.count, counts.sum())
