"""Each view objective against its formula, written plainly for one process, and its refusals."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.labels import Views
from pipeline.tasks import registry as tasks
from tests.trainers.views import SMALL, N, compare, heads, plain, unit, view_columns
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import to_device
from trainers.objectives import objective_class, registry
from trainers.objectives.swav import sinkhorn


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def features(objective, batch, v: int, width: int) -> Tensor:
    """Features as a backbone might give them, in place of its own."""
    return torch.randn(N, v, width, generator=torch.Generator().manual_seed(v))


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "dino"])
def test_batch_normalisation_sees_one_view_at_a_time_in_moco_and_all_of_a_size_elsewhere(case, name: str) -> None:
    model, objective, batch = case(name)
    first = objective.answer(model.backbone, batch, "simclr", model.pixels)[:, 0]
    batch["simclr.input"][:, 1] = 0
    again = objective.answer(model.backbone, batch, "simclr", model.pixels)[:, 0]
    assert torch.equal(first, again) == (name == "moco")


def test_simclr_is_the_cross_entropy_of_each_view_among_all_others(case) -> None:
    model, objective, batch = case("simclr")
    x = features(objective, batch, 2, model.backbone.vector_width)
    z = unit(heads(objective, x, "projector"))
    flat = np.concatenate([z[:, 0], z[:, 1]])
    total = 0.0
    for i in range(2 * N):
        others = [k for k in range(2 * N) if k != i]
        logits = flat[i] @ flat[others].T / 0.1
        total -= log_softmax(logits)[others.index((i + N) % (2 * N))]
    assert compare(objective, batch, x).loss.item() == pytest.approx(total / 2, rel=1e-5)


def test_moco_compares_with_its_key_and_the_queue(case) -> None:
    model, objective, batch = case("moco")
    objective.queue[:20] = F.normalize(torch.randn(20, 16), dim=1)
    objective.queue[20:] = 9.0  # is not looked at
    objective.filled += 20
    x = features(objective, batch, 4, model.backbone.vector_width)
    q = unit(heads(objective, x[:, :2], "projector"))
    k = unit(heads(objective, x[:, 2:], "target_heads.projector"))
    total = 0.0
    for i, j in ((0, 1), (1, 0)):
        logits = np.concatenate([(q[:, i] * k[:, j]).sum(1, keepdims=True), q[:, i] @ plain(objective.queue[:20]).T], 1) / 0.2
        total -= log_softmax(logits)[:, 0].sum() / 2
    assert compare(objective, batch, x).loss.item() == pytest.approx(total, rel=1e-5)


def test_moco_3_compares_within_the_batch_times_twice_the_temperature(case) -> None:
    model, objective, batch = case("moco v3")
    x = features(objective, batch, 4, model.backbone.vector_width)
    q = unit(heads(objective, x[:, :2], "projector", "predictor"))
    k = unit(heads(objective, x[:, 2:], "target_heads.projector"))
    losses = [-2 * np.diag(log_softmax(q[:, i] @ k[:, j].T)).sum() for i, j in ((0, 1), (1, 0))]
    assert compare(objective, batch, x).loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_byol_and_simsiam_predict_the_other_view(case) -> None:
    model, byol, batch = case("byol")
    x = features(byol, batch, 4, model.backbone.vector_width)
    predicted = unit(heads(byol, x[:, :2], "projector", "predictor"))
    wanted = unit(heads(byol, x[:, 2:], "target_heads.projector"))
    expected = sum(((predicted[:, i] - wanted[:, j]) ** 2).sum() for i, j in ((0, 1), (1, 0))) / 2
    assert compare(byol, batch, x).loss.item() == pytest.approx(expected, rel=1e-5)
    model, simsiam, batch = case("simsiam")
    x = x[:, :2]
    predicted, wanted = unit(heads(simsiam, x, "projector", "predictor")), unit(heads(simsiam, x, "projector"))
    expected = N - sum((predicted[:, i] * wanted[:, j]).sum() for i, j in ((0, 1), (1, 0))) / 2
    assert compare(simsiam, batch, x).loss.item() == pytest.approx(expected, rel=1e-5)


def test_barlow_twins_and_vicreg_are_those_of_the_batch(case) -> None:
    model, barlow, batch = case("barlow_twins")
    x = features(barlow, batch, 2, model.backbone.vector_width)
    z = heads(barlow, x, "projector")
    a, b = ((view - view.mean(0)) / view.std(0) for view in (z[:, 0], z[:, 1]))
    c = a.T @ b / N
    expected = ((np.diag(c) - 1) ** 2).sum() + 0.0051 * ((c**2).sum() - (np.diag(c) ** 2).sum())
    assert compare(barlow, batch, x).loss.item() == pytest.approx(N * expected, rel=1e-3)
    model, vicreg, batch = case("vicreg")
    z = heads(vicreg, x, "projector")
    expected = 25 * ((z[:, 0] - z[:, 1]) ** 2).mean()
    for view in (z[:, 0], z[:, 1]):
        expected += 25 * np.maximum(0, 1 - np.sqrt(view.var(0, ddof=1) + 1e-4)).mean() / 2
        covariance = np.cov(view.T)
        expected += ((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) / view.shape[1]
    assert compare(vicreg, batch, x).loss.item() == pytest.approx(N * expected, rel=1e-4)


def balanced(scores: np.ndarray, epsilon: float) -> np.ndarray:
    q = np.exp((scores - scores.max()) / epsilon).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_swav_swaps_assignments_that_are_balanced_over_batch_and_queue(case) -> None:
    model, objective, batch = case("swav", small=True)
    objective.begin_step(1, 10)
    objective.queue[:20] = F.normalize(torch.randn(20, 2, 16), dim=2)
    objective.filled += 20
    x = features(objective, batch, 4, model.backbone.vector_width)
    z, prototypes = unit(heads(objective, x, "projector")), plain(objective.prototypes.weight)
    assert np.linalg.norm(prototypes, axis=1) == pytest.approx(1)
    predicted, total = log_softmax(z @ prototypes.T / 0.1), 0.0
    for k in range(2):
        everyone = np.concatenate([z[:, k], plain(objective.queue[:20, k])])
        code = balanced(everyone @ prototypes.T, 0.05)[:N]
        total -= sum((code * predicted[:, v]).sum() for v in range(4) if v != k) / 6
    assert compare(objective, batch, x).loss.item() == pytest.approx(total, rel=1e-4)


def test_dino_tells_the_centred_and_sharpened_outputs_of_the_other_views(case) -> None:
    model, objective, batch = case("dino", small=True)
    objective.centre += torch.randn(24) / 10
    x = features(objective, batch, 6, model.backbone.vector_width)
    predicted = log_softmax(heads(objective, x[:, :4], "head") / 0.1)
    outputs = heads(objective, x[:, 4:], "target_heads.head")
    wanted = np.exp(log_softmax((outputs - plain(objective.centre)) / 0.04))
    total = -sum((wanted[:, k] * predicted[:, v]).sum() for k in range(2) for v in range(4) if v != k) / 6
    assert compare(objective, batch, x).loss.item() == pytest.approx(total, rel=1e-5)
    before = plain(objective.centre)
    objective.after_update(model.backbone)
    assert plain(objective.centre) == pytest.approx(0.9 * before + 0.1 * outputs.mean((0, 1)), abs=1e-6)


def test_dim_tells_the_places_of_its_own_map(case) -> None:
    for name in ("dim", "dim jsd"):
        _, objective, batch = case(name)
        x = torch.randn(N, 2, 5, 16, generator=torch.Generator().manual_seed(0))
        scores = np.einsum("nd,mld->nml", plain(x[:, 0, 0]), plain(x[:, 0, 1:])) / 4
        total = 0.0
        for i in range(N):
            others = scores[i][np.arange(N) != i].ravel()
            if name == "dim":
                total -= sum(log_softmax(np.array([own, *others]))[0] for own in scores[i, i]) / 4
            else:
                total += np.log1p(np.exp(others)).mean() + np.log1p(np.exp(-scores[i, i])).mean()
        assert compare(objective, batch, x).loss.item() == pytest.approx(total, rel=1e-5)


def test_amdim_tells_the_places_of_the_other_view_by_clipped_scores(case) -> None:
    _, objective, batch = case("amdim")
    objective.begin_step(6, 10)  # the third of four places
    x = 5 * torch.randn(N, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    y, total = plain(x), 0.0
    for one, other in permutations(range(2)):
        for anchor in (y[:, one, 0], y[:, one, 3]):
            scores = np.einsum("nd,mld->nml", anchor, y[:, other, 1:]) / 4
            total += 0.05 * (scores**2).mean() * N / 4
            clipped = 20 * np.tanh(scores / 20)
            for i in range(N):
                others = clipped[i][np.arange(N) != i].ravel()
                total -= sum(log_softmax(np.array([own, *others]))[0] for own in clipped[i, i]) / 4 / 4
    assert compare(objective, batch, x).loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.02])
def test_assignments_are_balanced_however_far_scores_are_apart(epsilon: float) -> None:
    scores = 300 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = sinkhorn(scores, torch.ones(64), epsilon, 3)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    near = sinkhorn(scores / 3000, torch.ones(64), epsilon, 50)
    torch.testing.assert_close(near.sum(0), torch.full((10,), 6.4), rtol=0.05, atol=0)


def test_dino_stays_finite_with_large_features_and_a_low_temperature(recipe, crops) -> None:
    task = ("simclr", {"objective": {"name": "dino", "teacher_temperature": 0.02, **SMALL["dino"]}})
    model = PretextModel(recipe(task), seed=0)
    x = (1e4 * torch.randn(N, 4, model.backbone.vector_width)).bfloat16().float().requires_grad_()
    found = compare(model.objectives["simclr"], to_device(view_columns(crops, N), "cpu"), x)
    found.loss.backward()
    assert found.loss.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("mocco", "tasks.simclr.objective: unknown objective 'mocco': did you mean 'moco'?"),
        ("rotation", "tasks.simclr.objective: unknown objective 'rotation'"),
        ("classes", "'classes' is for Classes labels"),
        (
            {"name": "moco", "temprature": 0.2},
            "tasks.simclr.objective.temprature: unknown parameter 'temprature': did you mean 'temperature'?",
        ),
        ({"name": "moco", "queue": 0}, "tasks.simclr.objective.queue: must be greater than or equal to 1 (given: 0)"),
        ({"temperature": -1}, "tasks.simclr.objective.temperature: must be greater than 0 (given: -1)"),
    ],
)
def test_an_objective_s_parameters_are_refused_in_words(objective, words) -> None:
    with pytest.raises(UserError) as refused:
        objective_class(tasks()["simclr"](objective=objective))
    assert words in str(refused.value)


def test_the_key_of_a_recipe_names_the_place() -> None:
    with pytest.raises(UserError, match=r"^tasks\.mine\.objective\.width: "):
        objective_class(tasks()["simclr"](objective={"name": "byol", "width": "wide"}), "mine")


def test_every_task_of_views_names_an_objective_of_views() -> None:
    found = [task for task in tasks().values() if isinstance(task().label_kind(), Views)]
    assert found
    assert all(objective_class(task()).name == task.default_objective for task in found)
    assert {cls.name for cls in registry().values() if cls.kind is Views} == {name.split()[0] for name in SMALL}
