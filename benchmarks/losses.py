"""Compares the losses of view objectives with lightly's, and their gradients, on the same features.

    python -m benchmarks.losses [--samples 128] [--width 64] [--seed 0]

Our objectives are computed whole, by `compare`, with heads that change nothing; `ours = factor * theirs + constant` is what the
definitions give, and the table shows how far that is from being so, relative to the loss, and to the largest gradient. Exit code
1 if a difference exceeds 1e-5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.training import BackboneSection
from pipeline.tasks import registry
from trainers.networks.backbones import build_backbone, seeded
from trainers.objectives import build_objective
from trainers.objectives.views import MomentumObjective, Shared, ViewObjective

TOLERANCE = 1e-5

Theirs = Callable[[Tensor, ViewObjective], Tensor]
"""From the features that our objective gets, (n, views, width), and the objective, to lightly's loss."""


@dataclass(frozen=True)
class Case:
    """A loss by both.

    Args:
        task: the task's name.
        theirs: lightly's loss.
        views: number of views, or of the network's and the momentum network's together.
        parameters: of our objective.
        task_parameters: of our task.
        factor, constant: ours = factor * theirs + constant, by the definitions.
    """

    task: str
    theirs: Theirs
    views: int = 2
    parameters: dict[str, Any] | None = None
    task_parameters: dict[str, Any] | None = None
    factor: float = 1.0
    constant: float = 0.0


def _simclr(x: Tensor, _: ViewObjective) -> Tensor:
    loss: Tensor = NTXentLoss(temperature=0.5)(x[:, 0], x[:, 1])
    return loss


def _moco(x: Tensor, objective: Any) -> Tensor:
    losses = []
    for query, key in ((x[:, 0], x[:, 3]), (x[:, 1], x[:, 2])):
        criterion = NTXentLoss(temperature=objective.temperature, memory_bank_size=tuple(objective.queue.shape))
        criterion.memory_bank.bank = objective.queue.clone()
        losses.append(criterion(query, key.detach()))
    return torch.stack(losses).mean()


def _cosines(x: Tensor, targets: Tensor) -> Tensor:
    criterion = NegativeCosineSimilarity()
    return (criterion(x[:, 0], targets[:, 1].detach()) + criterion(x[:, 1], targets[:, 0].detach())) / 2


def _barlow(x: Tensor, objective: Any) -> Tensor:
    loss: Tensor = BarlowTwinsLoss(lambda_param=objective.redundancy)(x[:, 0], x[:, 1])
    return loss


def _vicreg(x: Tensor, _: ViewObjective) -> Tensor:
    loss: Tensor = VICRegLoss()(x[:, 0], x[:, 1])
    return loss


def _swav(x: Tensor, objective: Any) -> Tensor:
    scores = [objective.prototypes(F.normalize(view, dim=1)) for view in x.unbind(1)]
    queue = [objective.prototypes(view) for view in objective.queue.unbind(1)] if objective.settings.queue else None
    loss: Tensor = SwaVLoss()(scores[:2], scores[2:], queue)
    return loss.squeeze()


def _dino(x: Tensor, objective: Any) -> Tensor:
    criterion = DINOLoss(output_dim=len(objective.centre))
    criterion.center = objective.centre.view(1, 1, -1).clone()
    heads = objective.target_heads["head"]
    with torch.no_grad():
        teacher = [heads(view) for view in x[:, -2:].unbind(1)]
    loss: Tensor = criterion(teacher, [objective.head(view) for view in x[:, :-2].unbind(1)])
    return loss


CASES = {
    "simclr: NTXentLoss": Case("simclr", _simclr, parameters={"temperature": 0.5}),
    "moco: NTXentLoss with a memory bank, both directions": Case("moco", _moco, 4, {"queue": 256}),
    "byol: NegativeCosineSimilarity, both directions": Case("byol", lambda x, _: _cosines(x, x[:, 2:]), 4, {}, {}, 2.0, 2.0),
    "simsiam: NegativeCosineSimilarity, both directions": Case("simsiam", lambda x, _: _cosines(x, x), 2, {}, {}, 1.0, 1.0),
    "barlow_twins: BarlowTwinsLoss": Case("barlow_twins", _barlow),
    "vicreg: VICRegLoss": Case("vicreg", _vicreg),
    "swav: SwaVLoss, two views": Case("swav", _swav, 2, {"prototypes": 96}, {"small_views": 0}),
    "swav: SwaVLoss, two and six views": Case("swav", _swav, 8, {"prototypes": 96}),
    "swav: SwaVLoss with a queue": Case("swav", _swav, 8, {"prototypes": 96, "queue": 256, "queue_from": 0.0}),
    "dino: DINOLoss, two views": Case("dino", _dino, 4, {"outputs": 96}, {"small_views": 0}),
    "dino: DINOLoss, two and eight views": Case("dino", _dino, 12, {"outputs": 96}),
}


def objective_of(case: Case, width: int) -> Any:
    """Our objective of a case, with heads that change nothing, and with random state where it keeps any."""
    task = registry()[case.task](
        **{"objective": {"name": case.task, "width": width, **(case.parameters or {})}, **(case.task_parameters or {})}
    )
    backbone = build_backbone(BackboneSection(name="resnet10", stem="small"), 32, 0, ("vector",))
    objective: Any = build_objective(task, backbone, 32).train()
    for name in ("projector", "predictor"):
        if hasattr(objective, name):
            setattr(objective, name, nn.Identity())
    if case.task == "dino":
        objective.head.layers = nn.Identity()
    if isinstance(objective, MomentumObjective):
        objective.make_momentum_network(backbone, *objective.heads)
    if "queue" in dict(objective.named_buffers()):
        objective.queue.copy_(F.normalize(torch.randn_like(objective.queue), dim=-1))
        objective.filled.fill_(len(objective.queue))
    if case.task == "dino":
        objective.centre.normal_(std=0.1)
    objective.begin_step(1, 1)
    return objective


def difference(case: Case, samples: int, width: int, seed: int) -> tuple[float, float, float, float]:
    """Our loss and lightly's, and the relative differences of the losses and of the gradients of the features."""
    with seeded(seed):
        objective = objective_of(case, width)
        features = torch.randn(samples, 1, width) + torch.randn(samples, case.views, width)
    shared = Shared.of({"weight": torch.ones(samples), "id": torch.arange(samples)}, alone=True)
    losses, gradients = [], []
    for compute in (
        lambda x: objective.compare(x, shared).loss / samples,
        lambda x: case.factor * case.theirs(x, objective) + case.constant,
    ):
        x = features.clone().requires_grad_()
        loss = compute(x)
        loss.backward()
        assert x.grad is not None
        losses.append(loss.item())
        gradients.append(x.grad)
    ours, theirs = losses
    apart = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return ours, (theirs - case.constant) / case.factor, abs(ours - theirs) / max(abs(theirs), 1e-9), apart.item()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| loss | ours | lightly's | ours = | difference | of gradients | |\n| --- | ---: | ---: | --- | ---: | ---: | --- |")
    failed = False
    for name, case in CASES.items():
        ours, theirs, loss, gradient = difference(case, given.samples, given.width, given.seed)
        relation = f"{case.factor:g} x lightly's + {case.constant:g}" if case.constant else "lightly's"
        well = max(loss, gradient) <= TOLERANCE
        failed |= not well
        print(f"| {name} | {ours:.6f} | {theirs:.6f} | {relation} | {loss:.0e} | {gradient:.0e} | {'+' if well else '-'} |")
    return failed


if __name__ == "__main__":
    sys.exit(main())
