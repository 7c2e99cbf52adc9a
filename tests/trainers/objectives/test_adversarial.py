"""Network and discriminator learn in one step, neither by the other's loss, from pixels alone at first, and exactly again."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.tasks import registry as tasks
from trainers.learning.gradients import accumulate
from trainers.learning.optim import build_optimizer
from trainers.learning.pretext import PretextModel
from trainers.learning.update import Update
from trainers.objectives import objective_class
from trainers.objectives.adversarial import AdversarialObjective, accuracies

KINDS = ("hinge", "least_squares", "wasserstein")
TASKS = ("occlusion", "colorization", "super_resolution", "masked_patches", "reconstruction")
SMALL = {"name": "adversarial", "width": 8, "layers": 2}


@pytest.fixture
def made(recipe, rendered):
    """`made(task, **parameters)`: a recipe, its network and a batch of eight."""

    def make(task: str, **parameters: Any) -> tuple[Recipe, PretextModel, dict[str, Tensor]]:
        spec = recipe((task, {"objective": {**SMALL, **parameters}}), backbone="resnet10")
        return spec, PretextModel(spec, seed=0), rendered(task, n=8)

    return make


def objective_of(model: PretextModel) -> AdversarialObjective:
    (objective,) = model.objectives.values()
    assert isinstance(objective, AdversarialObjective)
    return objective


def gradients(model: PretextModel) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def by_hand(model: PretextModel, batch: dict[str, Tensor], task: str, kind: str, weight: float) -> tuple[Tensor, Tensor]:
    """The losses of network and discriminator, written down anew: sums over the samples."""
    objective = objective_of(model)
    answer = objective.answer(model.backbone, batch, task, model.pixels)
    made, real = objective.composed(answer, batch, task), batch["image"].permute(0, 3, 1, 2) / 255
    beside = []
    if task != "reconstruction":  # its input is the photo itself
        given = batch[f"{task}.input"].permute(0, 3, 1, 2) / 255
        beside.append(torch.nn.functional.interpolate(given, (32, 32), mode="bilinear", align_corners=False))
    if f"{task}.mask" in batch:
        beside.append(batch[f"{task}.mask"][:, None].float())
    given = torch.cat(beside, 1) if beside else real[:, :0]
    discriminator = objective.discriminator
    frozen = copy.deepcopy(discriminator).requires_grad_(False)
    judged, of_real, of_made = frozen(made, given), discriminator(real, given), discriminator(made.detach(), given)
    pixels = objective.judge(answer, batch, task).loss
    if kind == "hinge":
        adversarial = -judged.mean(1)
        learning = torch.clamp(1 - of_real, min=0).mean(1) + torch.clamp(1 + of_made, min=0).mean(1)
    elif kind == "least_squares":
        adversarial = 0.5 * ((judged - 1) ** 2).mean(1)
        learning = 0.5 * ((of_real - 1) ** 2).mean(1) + 0.5 * (of_made**2).mean(1)
    else:
        adversarial, learning = -judged.mean(1), of_made.mean(1) - of_real.mean(1)
    return pixels + weight * adversarial.sum(), learning.sum()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_both_players_are_those_of_the_formula(made, task: str, kind: str) -> None:
    _, model, batch = made(task, kind=kind, weight=0.5, start=0, ramp=0, penalty=0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eval()
    wanted: dict[str, Tensor] = {}
    for loss in by_hand(model, batch, task, kind, 0.5):
        model.zero_grad(set_to_none=True)
        loss.backward()
        assert not wanted.keys() & gradients(model).keys()  # no weight is of both
        wanted |= gradients(model)
    model.zero_grad(set_to_none=True)
    outcome = model(batch)[task]
    outcome.minimised.backward()
    found = gradients(model)
    assert found.keys() == wanted.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_player_s_loss_reaches_the_other_s_weights(made, kind: str) -> None:
    _, model, batch = made("super_resolution", kind=kind, weight=0.5, start=0, ramp=0)
    model.zero_grad(set_to_none=True)
    outcome = model(batch)["super_resolution"]
    outcome.loss.backward(retain_graph=True)
    assert all(".discriminator." not in name for name in gradients(model))
    model.zero_grad(set_to_none=True)
    outcome.aside.backward()
    assert gradients(model)
    assert all(".discriminator." in name for name in gradients(model))


def test_a_step_of_each_player_is_the_same_whatever_the_other_does(made) -> None:
    """One optimizer, with a gradient that is clipped: the adversary's size does not change how far the network moves."""
    spec, model, batch = made("super_resolution", weight=0, start=0, kind="wasserstein", penalty=0)
    optimizer = spec.training.optimizer.model_copy(update={"clip": 1e-3})
    after = []
    for scale in (1.0, 1e3):
        other = copy.deepcopy(model)
        with torch.no_grad():
            objective_of(other).discriminator.last.weight.mul_(scale)
        update = Update(other, optimizer, 4, 8)
        update.begin(0)
        accumulate(other, ["super_resolution"], batch, 8, "float32")
        update.finish()
        after.append({name: w for name, w in other.named_parameters() if ".discriminator." not in name})
    assert all(torch.equal(weight, after[1][name]) for name, weight in after[0].items())


def test_pixels_come_alone_first_and_then_the_weight_rises_in_a_line(made) -> None:
    spec, model, batch = made("occlusion", weight=0.4, start=0.2, ramp=0.4, detail=4)
    plain = PretextModel(spec.model_copy(update={"tasks": {"occlusion": tasks()["occlusion"]()}}), seed=0)
    objective, seen = objective_of(model), []
    for step in range(10):
        objective.begin_step(step, 10)
        seen.append((objective.rests, objective.weight()))
    assert [rests for rests, _ in seen] == [True] * 2 + [False] * 8
    assert [weight for _, weight in seen] == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])
    found: dict[str, Any] = {}
    for name, network in (("mine", model), ("plain", plain)):
        update = Update(network, spec.training.optimizer, 10, 8)
        for step in range(2):
            update.begin(step)
            found[f"{name} {step}"] = accumulate(network, ["occlusion"], batch, 8, "float32")["occlusion"]
            update.finish()
    start = PretextModel(spec, seed=0).state_dict()
    for step in range(2):
        assert torch.equal(found[f"mine {step}"].loss, found[f"plain {step}"].loss)
        assert found[f"mine {step}"].also["real_accuracy"] == found[f"mine {step}"].also["made_accuracy"] == 4  # half of eight
    for name, value in model.state_dict().items():
        if ".discriminator." in name:
            assert torch.equal(value, start[name]), name
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def trained(model: PretextModel, update: Update, batches: list[dict[str, Tensor]], first: int, last: int) -> list[Tensor]:
    (task,), losses = model.objectives, []
    for step in range(first, last):
        update.begin(step)
        outcome = accumulate(model, [task], batches[step], 8, "float32")[task]
        update.finish()
        losses += [outcome.loss, outcome.also["discriminator"]]
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_resumes_from_any_step_is_the_same_to_the_last_bit(made, rendered, kind: str) -> None:
    spec, model, _ = made("super_resolution", kind=kind, weight=0.05, start=0.3, ramp=0.3)
    whole = rendered("super_resolution", n=64)
    batches = [{name: column[8 * i : 8 * i + 8] for name, column in whole.items()} for i in range(8)]
    update, saved, losses = Update(model, spec.training.optimizer, 8, 8), {}, []
    for step in range(8):
        if step in (1, 3, 6):  # before the discriminator begins, at its first step, and later
            saved[step] = io.BytesIO()
            parts = (model.state_dict(), update.optimizer.state_dict(), update.scheduler.state_dict())
            torch.save(parts, saved[step])
        losses.append(trained(model, update, batches, step, step + 1))
    shown = objective_of(model.eval()).answer_before(batches[0], "super_resolution", model.pixels)
    for step, file in saved.items():
        again = PretextModel(spec, seed=5)
        updates = Update(again, spec.training.optimizer, 8, 8)
        file.seek(0)
        for part, state in zip((again, updates.optimizer, updates.scheduler), torch.load(file, weights_only=True)):
            part.load_state_dict(state)
        assert trained(again, updates, batches, step, 8) == [loss for each in losses[step:] for loss in each]
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(objective_of(again.eval()).answer_before(batches[0], "super_resolution", again.pixels), shown)


def test_the_copy_beside_is_the_network_at_the_end_of_pixels_alone(made) -> None:
    spec, model, batch = made("super_resolution", start=0.5)
    update = Update(model, spec.training.optimizer, 4, 8)
    trained(model, update, [batch] * 4, 0, 2)
    with torch.no_grad():
        then = model.eval().objectives["super_resolution"].answer(model.backbone, batch, "super_resolution", model.pixels)
    trained(model.train(), update, [batch] * 4, 2, 4)
    with torch.no_grad():
        shown = objective_of(model.eval()).answer_before(batch, "super_resolution", model.pixels)
        now = objective_of(model).answer(model.backbone, batch, "super_resolution", model.pixels)
    assert torch.equal(shown, then)
    assert not torch.equal(now, then)
    assert objective_of(made("super_resolution", start=0)[1]).answer_before(batch, "super_resolution", model.pixels) is None


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_the_discriminator_has_a_group_of_its_own_in_the_one_optimizer(made, name: str) -> None:
    spec, model, batch = made("occlusion", lr=3e-4, beta1=0.4, beta2=0.9, start=0)
    choice = spec.training.optimizer.model_copy(update={"name": name, "warmup": 0.0})
    optimizer, scheduler = build_optimizer(choice, model, 10)
    *_, own = optimizer.param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in objective_of(model).discriminator.parameters()}
    assert (own["lr"], own["weight_decay"], own["momentum"], tuple(own["betas"])) == (3e-4, 0, 0.4, (0.4, 0.9))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model(batch)["occlusion"].minimised.backward()
    before = objective_of(model).discriminator.last.weight.clone()
    optimizer.step()
    scheduler.step()
    assert not torch.equal(objective_of(model).discriminator.last.weight, before)
    assert own["lr"] == pytest.approx(3e-4 * (1 + np.cos(np.pi / 10)) / 2)  # it falls like the network's


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_weight_nought_counts_in_neither_loss(made, kind: str) -> None:
    _, model, batch = made("occlusion", kind=kind, weight=0.5, start=0, ramp=0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eval()
    some = model(batch | {"weight": torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])})["occlusion"]
    alone = model({name: column[[0, 2, 3, 5, 6, 7]] for name, column in signed(batch).items()})["occlusion"]
    torch.testing.assert_close(some.loss, alone.loss)
    torch.testing.assert_close(some.aside, alone.aside)
    for name, value in alone.also.items():
        torch.testing.assert_close(some.also[name], value, msg=name)


def signed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: column.view(torch.int64) if column.dtype is torch.uint64 else column for name, column in batch.items()}


def test_the_penalty_is_on_gradients_at_places_that_step_and_sample_decide(made) -> None:
    _, model, batch = made("super_resolution", kind="wasserstein", start=0)
    objective, ids = objective_of(model), batch["id"].view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    real, image, given = (torch.rand(8, 3, 32, 32, generator=generator) for _ in range(3))
    hole = torch.ones(8, 1, 32, 32)
    found = objective._penalty(real, image, given, hole, ids)
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    shuffled = objective._penalty(*(x[order] for x in (real, image, given, hole, ids)))
    torch.testing.assert_close(shuffled, found[order])
    objective.begin_step(1, 10)
    assert not torch.allclose(objective._penalty(real, image, given, hole, ids), found)
    with torch.no_grad():
        for weight in objective.discriminator.parameters():
            weight.zero_()
    torch.testing.assert_close(objective._penalty(real, image, given, hole, ids), torch.ones(8))  # the gradient is 0


@pytest.mark.parametrize("kind", KINDS)
def test_accuracies_are_shares_of_patches_on_the_right_side_in_the_hole(kind: str) -> None:
    between = {"hinge": 0.0, "least_squares": 0.5, "wasserstein": 7.0}[kind]
    real = torch.tensor([[1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]) + between
    made = torch.tensor([[1.0, -1.0, -1.0, -3.0], [-1.0, -1.0, -1.0, -1.0]]) + between
    hole = torch.ones(2, 1, 16, 16)
    assert [x.tolist() for x in accuracies(kind, real, made, hole)] == [[0.75, 1.0], [0.75, 1.0]]
    hole[:, :, :8, :8] = 0  # not in the first patch
    right = [x.tolist() for x in accuracies(kind, real, made, hole)]
    assert right == [[pytest.approx(2 / 3), 1.0], [1.0, 1.0]]


def test_mistaken_parameters_are_refused_in_words() -> None:
    for parameters, words in (
        ({"kind": "hing"}, r"tasks.occlusion.objective.kind: must be 'hinge', 'least_squares' or 'wasserstein'"),
        ({"start": 1}, r"tasks.occlusion.objective.start: must be less than 1"),
        ({"wieght": 1}, r"unknown parameter 'wieght': did you mean 'weight'\?"),
    ):
        with pytest.raises(UserError, match=words):
            objective_class(tasks()["occlusion"].model_validate({"objective": {"name": "adversarial", **parameters}}))
    with pytest.raises(UserError, match="'adversarial' is for Pixels labels"):
        objective_class(tasks()["rotation"].model_validate({"objective": "adversarial"}))
