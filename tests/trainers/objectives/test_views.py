"""Each view objective against its formula, written plainly for one process; its state; its refusals; the signs of collapse."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.labels import Views
from pipeline.tasks import registry as tasks
from tests.trainers.views import SMALL, view_columns, view_task
from trainers.learning.collapse import collapsed
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import to_device
from trainers.objectives import objective_class, registry
from trainers.objectives.swav import sinkhorn
from trainers.objectives.views import Shared, cosine, effective_rank, signs_of_collapse

N = 8


@pytest.fixture
def case(recipe, crops):
    """`case(name, small)`: a network with one view objective in training, and its batch on the device."""

    def make(name: str, small: bool = False):
        model = PretextModel(recipe(view_task(name, small)), seed=0).train()
        batch = to_device(view_columns(crops, N, small), "cpu")
        return model, model.objectives["simclr"], batch

    return make


def plain(values: Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def features(objective, batch, v: int, width: int) -> Tensor:
    """Features as a backbone might give them, in place of its own."""
    return torch.randn(N, v, width, generator=torch.Generator().manual_seed(v))


def compare(objective, batch, x: Tensor):
    return objective.compare(x, Shared.of(batch, alone=True))


def heads(objective, x: Tensor, *names: str) -> np.ndarray:
    """What copies of heads make of the views, each a batch of its own or all one batch, so that running statistics stay."""
    n, v = x.shape[:2]
    for name in names:
        head = copy.deepcopy(objective.get_submodule(name))
        x = torch.stack([head(x[:, i]) for i in range(v)], 1) if objective.views_apart else head(x.flatten(0, 1)).view(n, v, -1)
    return plain(x)


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


@pytest.mark.parametrize("name", SMALL)
def test_every_objective_learns_views_of_a_batch_and_goes_on_from_its_state(name, case) -> None:
    model, _, batch = case(name, small=True)
    model.train()
    again = copy.deepcopy(model)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.02, momentum=0.9) for m in (model, again)]

    def step(network: PretextModel, optimizer: torch.optim.Optimizer, number: int) -> float:
        objective = network.objectives["simclr"]
        objective.begin_step(number, 20)
        optimizer.zero_grad()
        outcome = network(batch)["simclr"]
        (outcome.loss / N).backward()
        assert not [path for path, p in network.named_parameters() if p.requires_grad and p.grad is None]
        objective.before_update()
        optimizer.step()
        objective.after_update(network.backbone)
        assert outcome.loss.isfinite()
        assert outcome.trivial == 1
        assert 0 <= outcome.metric <= N
        return outcome.loss.item() / N

    losses = [step(model, optimizers[0], number) for number in range(5)]
    if name not in ("moco", "swav", "dino"):  # whose targets move, or whose last layer stands still at first
        assert min(losses[1:]) < losses[0], losses
    again.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))  # else they share tensors
    for number in (5, 6):
        assert step(model, optimizers[0], number) == step(again, optimizers[1], number)
    for path, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[path]), path


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_of_weight_0_is_neither_learnt_nor_compared_with(name, case) -> None:
    model, objective, batch = case(name)
    objective.eval()
    shape = (N, 2, 5, 16) if objective.needs == ("vector", "map") else (N, 4, model.backbone.vector_width)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    batch["weight"][[2, 5]] = 0
    other = x.clone()
    other[[2, 5]] = 7
    with torch.no_grad():
        first, second = (compare(objective, batch, value).loss for value in (x, other))
        nothing = compare(objective, batch | {"weight": torch.zeros(N)}, x).loss
    torch.testing.assert_close(first, second)
    assert nothing == 0


@pytest.mark.parametrize("size", [3, 16, 30, 100])  # smaller than the batch, equal, no multiple of it, larger
def test_the_queue_holds_the_newest_keys_by_id_whatever_its_size(size, recipe, crops) -> None:
    task = ("simclr", {"objective": {"name": "moco", "queue": size, "width": 4, "hidden": 4}})
    model = PretextModel(recipe(task), seed=0)
    objective, keys = model.objectives["simclr"], []
    for number in range(3):
        batch = to_device(view_columns(crops, N), "cpu") | {"weight": torch.tensor([1.0] * 7 + [0.0])}
        x = torch.randn(N, 4, model.backbone.vector_width, generator=torch.Generator().manual_seed(number))
        compare(objective, batch, x)
        made = unit(heads(objective, x[:, 2:], "target_heads.projector"))
        order = [i for i in np.argsort(batch["id"].view(torch.int64).numpy()) if i != 7]
        objective.after_update(model.backbone)
        keys = [*made[order].reshape(-1, 4), *keys]
        assert objective.filled == min(size, len(keys))
        assert plain(objective.queue[: len(keys)]) == pytest.approx(np.array(keys[:size]), abs=1e-5)


def test_a_momentum_network_follows_along_a_cosine(case) -> None:
    model, objective, _ = case("byol")
    before = copy.deepcopy(objective.target_backbone)
    for weight in model.backbone.parameters():
        weight.data += 1
    objective.begin_step(5, 10)
    objective.after_update(model.backbone)
    for old, new in zip(before.parameters(), objective.target_backbone.parameters()):
        torch.testing.assert_close(new, old + (1 - 0.998), rtol=0, atol=1e-5)
    assert [cosine(0.9, 1, step, 4) for step in (0, 2, 4)] == pytest.approx([0.9, 0.95, 1.0])
    assert not [path for path, p in objective.named_parameters() if path.startswith("target") and p.requires_grad]


@pytest.mark.parametrize(("name", "path"), [("swav", "prototypes.weight"), ("dino", "head.last.weight")])
def test_layers_that_are_fixed_at_first_have_no_gradient_then(name, path, case) -> None:
    model, objective, batch = case(name)
    for step, is_fixed in ((0, True), (1, False)):
        objective.begin_step(step, 100)
        model(batch)["simclr"].loss.backward()
        objective.before_update()
        assert (objective.get_parameter(path).grad is None) == is_fixed


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


def test_signs_of_collapse_tell_spread_from_one_point() -> None:
    batch = {"weight": torch.ones(200), "id": torch.arange(200)}
    shared = Shared.of(batch, alone=True)
    spread = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    right, signs = signs_of_collapse(spread, spread + 0.01, shared)
    assert right == 200
    assert signs["feature_std"].item() == pytest.approx(1, abs=0.1)
    assert 14 < signs["effective_rank"] <= 16
    right, signs = signs_of_collapse(torch.ones(200, 16), torch.ones(200, 16), shared)
    assert right == 1
    assert signs["feature_std"] < 1e-3
    assert signs["effective_rank"].item() == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.full((4, 3), torch.nan)).isfinite()
    assert effective_rank(torch.eye(8)).item() == pytest.approx(8)


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


class Given(nn.Module):
    """Stands for a backbone whose features are given."""

    vector_width = 32


@pytest.mark.parametrize("predictor", [0, 32])
def test_byol_without_a_predictor_comes_to_one_answer_and_the_run_is_told(predictor: int) -> None:
    own = {"name": "byol", "hidden": 64, "width": 16, "predictor": predictor, "momentum": 0.99 if predictor else 0.0}
    torch.manual_seed(0)
    objective = objective_class(tasks()["byol"]())(tasks()["byol"](objective=own), Given(), 32).train()
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-2)
    generator, lines = torch.Generator().manual_seed(1), []
    photos = torch.randn(64, 1, 32, generator=generator)
    shared = Shared.of({"weight": torch.ones(64), "id": torch.arange(64)}, alone=True)
    for step in range(100):
        views = photos + 0.7 * torch.randn(64, 2, 32, generator=generator)
        objective.begin_step(step, 100)
        found = objective.compare(torch.cat([views, views], 1), shared)
        optimizer.zero_grad()
        (found.loss / 64).backward()
        optimizer.step()
        objective.after_update(nn.Identity())
        right, signs = signs_of_collapse(found.one.detach(), found.other.detach(), shared)
        task = {"metric": right.item() / 64, "trivial": 1 / 64, "feature_std": signs["feature_std"].item()}
        lines.append({"step": step + 1, "tasks": {"byol": task}, "counts": {"byol": 64.0}})
    said = collapsed(lines, 100)
    assert (said is None) == bool(predictor)
    assert predictor or (found.loss / 64 < 0.01 and "give the objective a predictor" in str(said))
