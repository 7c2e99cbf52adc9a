"""View objectives learn, keep their state exactly, and show the signs of collapse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.tasks import registry as tasks
from tests.trainers.views import SMALL, N, compare, heads, plain, unit, view_columns
from trainers.learning.collapse import collapsed
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import to_device
from trainers.objectives import objective_class
from trainers.objectives.views import Shared, cosine, effective_rank, signs_of_collapse


@pytest.mark.parametrize("name", SMALL)
def test_every_objective_learns_views_of_a_batch_and_goes_on_from_its_state(name, case) -> None:
    """In short steps: in long ones a rounding of the processor decides after three whether the loss is lower than at first."""
    model, _, batch = case(name, small=True)
    model.train()
    again = copy.deepcopy(model)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-3, momentum=0.9) for m in (model, again)]

    def step(network: PretextModel, optimizer: torch.optim.Optimizer, number: int) -> float:
        objective = network.objectives["simclr"]
        objective.begin_step(number, 20)
        optimizer.zero_grad()
        outcome = network(batch)["simclr"]
        (outcome.loss / N).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        assert not [path for path, p in network.named_parameters() if p.requires_grad and p.grad is None]
        objective.before_update()
        optimizer.step()
        objective.after_update(network.backbone)
        assert outcome.loss.isfinite()
        assert outcome.trivial == 1
        assert 0 <= outcome.metric <= N
        return outcome.loss.item() / N

    losses = [step(model, optimizers[0], number) for number in range(4)]
    if name not in ("moco", "swav", "dino"):  # whose targets move, or whose last layer stands still at first
        assert min(losses[1:]) < losses[0], losses
    again.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))  # else they share tensors
    for number in (4, 5):
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
