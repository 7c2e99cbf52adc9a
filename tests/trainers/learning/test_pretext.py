"""One network learns all tasks: every weight gets a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UserError
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.networks.backbones import seeded
from trainers.networks.precision import autocast


def step(model: PretextModel, batch: dict[str, torch.Tensor]) -> dict:
    outcomes = model(batch)
    torch.stack([outcome.loss for outcome in outcomes.values()]).sum().backward()
    return outcomes


SMALL, LARGE = ("googlenet", "resnet18"), ("alexnet", "densenet121", "vgg11", "vit_b_16")


@pytest.mark.parametrize(
    ("backbone", "tasks"),
    [
        *((backbone, ("rotation",)) for backbone in (*SMALL, *LARGE)),
        ("resnet18", ("occlusion",)),
        ("resnet18", ("rotation", "jigsaw", "colorization")),
        *(
            pytest.param(backbone, tasks, marks=pytest.mark.slow)
            for backbone in ("googlenet", *LARGE)
            for tasks in (("occlusion",), ("rotation", "jigsaw", "colorization"))
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_weight_gets_a_gradient(backbone, tasks, recipe, columns) -> None:
    model = PretextModel(recipe(*tasks, backbone=backbone, stem="auto"), seed=0)
    step(model, columns(2, 32))
    assert not [path for path, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("backbone", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_each_family_learns_a_batch_in_a_few_steps(backbone, recipe, columns) -> None:
    model, batch = PretextModel(recipe("rotation", backbone=backbone, stem="auto"), seed=0), columns(4, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    with seeded(0):  # of dropout
        for _ in range(8):
            losses.append(float(step(model, batch)["rotation"].loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
    assert min(losses[4:]) < losses[0]


def test_distributed_training_finds_no_unused_weight(recipe, columns, tmp_path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        four = PretextModel(recipe("rotation", "jigsaw", "occlusion", "colorization"), seed=0)
        parallel = DistributedDataParallel(place(four, "cpu"))
        for _ in range(2):  # a weight that the first step left out would be reported by the second
            outcomes = parallel(columns(4, 32))
            torch.stack([outcome.loss / 4 for outcome in outcomes.values()]).sum().backward()
    finally:
        dist.destroy_process_group()
    assert list(outcomes) == ["rotation", "jigsaw", "occlusion", "colorization"]


def test_a_batch_without_a_good_sample_gives_no_gradient(recipe, columns) -> None:
    model = PretextModel(recipe("rotation", "occlusion"), seed=0)
    step(model, columns(3, 32) | {"weight": torch.zeros(3)})
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_only_what_the_tasks_read_is_built(recipe) -> None:
    def has_classifier(*tasks: str) -> bool:
        model = PretextModel(recipe(*tasks, backbone="alexnet", stem="small"), seed=0)
        return any("classifier" in path for path, _ in model.backbone.named_parameters())

    assert has_classifier("rotation", "occlusion")
    assert not has_classifier("occlusion")


def test_weights_are_a_function_of_the_seed(recipe) -> None:
    first, again, other = (PretextModel(recipe("rotation", "colorization"), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not torch.equal(first["objectives.rotation.head.0.weight"], other["objectives.rotation.head.0.weight"])


def test_bfloat16_and_channels_last_keep_losses_in_float32(recipe, columns) -> None:
    batch = columns(4, 32)
    # A deeper network multiplies what is rounded.
    four = recipe("rotation", "jigsaw", "occlusion", "colorization", backbone="resnet10")
    model = place(PretextModel(four, seed=0), "cpu")
    full = model(batch)
    with autocast("cpu", "bfloat16"):
        half = model(batch)
    for name, outcome in half.items():
        assert outcome.loss.dtype == torch.float32
        torch.testing.assert_close(outcome.loss, full[name].loss, rtol=0.15, atol=0.15)


def test_a_recipe_without_tasks_is_refused(recipe) -> None:
    with pytest.raises(UserError, match="at least one"):
        PretextModel(recipe(), seed=0)


EIGHT = (
    "rotation",
    "colorization",
    "denoising",
    "masked_patches",
    "relative_position",
    "corrupted_region",
    "jigsaw_order",
    "rotation_angle",
)


def test_where_a_sample_trains_one_task_it_counts_for_that_one_alone(recipe, rendered) -> None:
    batch = rendered(*EIGHT, n=24)
    task = torch.arange(24) % 7  # nothing is left for the eighth
    batch["weight"][3] = 0
    model = PretextModel(recipe(*EIGHT), seed=0)
    outcomes = step(model, batch | {"task": task})
    assert not [path for path, p in model.named_parameters() if p.grad is None]
    for number, name in enumerate(EIGHT):
        mine = task == number
        assert outcomes[name].count == (mine & (batch["weight"] > 0)).sum()
        others = {key: column.clone() for key, column in batch.items() if column.dtype is torch.uint8}
        for column in others.values():
            column[~mine] = 0
        with torch.no_grad():
            again = model(batch | others | {"task": task}, name)[name].loss
        torch.testing.assert_close(again, outcomes[name].loss.detach())
    assert sum(outcome.count for outcome in outcomes.values()) == 23


def test_weights_learnt_by_uncertainty_follow_the_losses(recipe, rendered) -> None:
    """At rest the variance is twice the loss, Kendall's optimum, whatever the scale of the loss."""
    batch = rendered("rotation", "rotation_angle")
    model = PretextModel(recipe("rotation", "rotation_angle", task_weights="uncertainty"), seed=0).eval()
    with torch.no_grad():
        for name, outcome in model(batch).items():
            model.log_variances[name].copy_((2 * outcome.loss / 16).log())
    torch.stack([outcome.minimised for outcome in model(batch).values()]).sum().backward()
    for name, outcome in model(batch).items():
        assert abs(model.log_variances[name].grad) < 1e-4
        torch.testing.assert_close(outcome.also["precision"], 16 / (2 * outcome.loss.detach() / 16))
        model.log_variances[name].data += 0.5
        assert (model(batch)[name].minimised.sum() > outcome.minimised).item()


def test_fixed_weights_are_those_of_the_recipe(recipe, rendered) -> None:
    batch = rendered("rotation", "denoising")
    outcomes = PretextModel(recipe(("rotation", {"weight": 2.5}), "denoising"), seed=0)(batch)
    torch.testing.assert_close(outcomes["rotation"].minimised, 2.5 * outcomes["rotation"].loss)
    assert torch.equal(outcomes["denoising"].minimised, outcomes["denoising"].loss)
