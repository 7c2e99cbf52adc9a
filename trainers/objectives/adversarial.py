"""Adversarial training: paint images that a discriminator, which is trained at the same time, cannot tell from photos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.draws import Draws
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import in_float32
from trainers.objectives.base import Objective, Outcome
from trainers.objectives.discriminator import PatchDiscriminator
from trainers.objectives.pixels import PixelsObjective, counted, enlarged, ssim
from trainers.objectives.views import frozen_copy

Kind = Literal["hinge", "least_squares", "wasserstein"]


class AdversarialObjective(PixelsObjective):
    """The loss of `pixels`, and a discriminator's judgement of the painted image (Isola et al. 2017, equation 4).

    The discriminator learns to tell painted images from photos, patch by patch, beside the task's input; the network learns that
    it cannot. In the words of Liu et al. 2021, the loss is a divergence of distributions. It is measured in one of three ways:
    `hinge` (Miyato et al. 2018, equations 16 and 17), `least_squares` (Mao et al. 2017, equation 9), or `wasserstein`, with a
    penalty on gradients (Gulrajani et al. 2017, equation 3), which is computed in float32.

    A run starts with pixels alone; then the discriminator begins to learn, and its weight rises in a line. Both learn in the same
    step. Neither one's loss changes the other's weights: to judge for the network, the discriminator's weights are constants; to
    learn, it is given the painted images as constants. The discriminator has a learning rate of its own and no weight decay. It
    is made for `adamw`; with `sgd` and `lars`, `beta1` is its momentum.

    Published: weight 0.001 beside 0.999 of squared error for a hidden box (Pathak et al. 2016), 0.001 for super-resolution (Ledig
    et al. 2017), 0.01 beside the absolute error for translation (Isola et al. 2017); a first layer of 64 channels, and Adam at
    2e-4 with 0.5 and 0.999. Here errors of pixels are counted in units of a photo's own spread, so weights are larger: 0.001
    changed next to nothing in short runs.

    Further metrics: `real_accuracy` and `made_accuracy`, the shares of patches of photos and of painted images that the
    discriminator takes for what they are (in a hole, if there is one; 0.5 while it rests); `adversarial` and `discriminator`, the
    losses of the two; `ssim`, the structural similarity to the photo.
    """

    name = "adversarial"

    class Parameters(Objective.Parameters):
        """See the fields."""

        weight: float = Field(0.03, ge=0, description="Weight of the discriminator's judgement; that of pixels is 1.")
        kind: Kind = Field("hinge", description="How the discriminator's judgement becomes a loss.")
        start: float = Field(0.25, ge=0, lt=1, description="Share of the run, from its start, that learns from pixels alone.")
        ramp: float = Field(0.25, ge=0, le=1, description="Share of the run, after that, over which the weight rises from 0.")
        penalty: float = Field(10.0, ge=0, description="Weight of `wasserstein`'s penalty on gradients.")
        spectral_norm: bool | None = Field(
            None,
            description="Whether the discriminator's weights are divided by their largest singular value. If not set: for all "
            "kinds but `wasserstein`.",
        )
        width: int = Field(64, ge=1, description="Channels of the discriminator's first layer; they double up to eight times.")
        layers: int = Field(
            3, ge=1, description="Layers of the discriminator that halve the resolution; fewer if images are small."
        )
        lr: float = Field(
            2e-4, gt=0, description="Peak learning rate of the discriminator; it rises and falls like the network's."
        )
        beta1: float = Field(0.5, ge=0, lt=1, description="Decay of the discriminator's mean gradient in `adamw`.")
        beta2: float = Field(0.999, ge=0, lt=1, description="The same of its squared gradient.")
        detail: Literal[1, 2, 4] = Field(
            1, description="Side of the smallest detail that the decoder paints, pixels; the objective `pixels` has 4."
        )

    settings: Parameters
    before: nn.ModuleDict | None

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        mine = self.settings
        given = (task.input_shape(image_size)[-1] if self._relative else 0) + self.label.masked
        spectral = mine.kind != "wasserstein" if mine.spectral_norm is None else mine.spectral_norm
        self.discriminator = PatchDiscriminator(3 + given, image_size, mine.width, mine.layers, spectral)
        copies = {"backbone": frozen_copy(backbone), "decoder": frozen_copy(self.decoder)} if mine.start else {}
        self.before = nn.ModuleDict(copies) if copies else None

    @property
    def detail(self) -> int:
        """As in `PixelsObjective`."""
        return self.settings.detail

    @property
    def rests(self) -> bool:
        """Whether this step learns from pixels alone."""
        return self.step < self.settings.start * self.steps

    def weight(self) -> float:
        """The weight of the discriminator's judgement in this step."""
        since = self.step - self.settings.start * self.steps
        rise = since / (self.settings.ramp * self.steps) if self.settings.ramp else 1.0
        return 0.0 if self.rests else self.settings.weight * min(1.0, rise)

    def own_group(self) -> dict[str, Any]:
        """As in `Objective`: the discriminator's."""
        mine = self.settings
        own = {"betas": (mine.beta1, mine.beta2), "momentum": mine.beta1, "adapts": False}
        return {"params": list(self.discriminator.parameters()), "lr": mine.lr, "weight_decay": 0.0, **own}

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """As in `Objective`; the discriminator, too, computes in the run's precision."""
        answer = self.answer(backbone, batch, name, pixels)
        with in_float32(answer.device):
            answer = answer.float()
            outcome = self.judge(answer, batch, name)
            made, (real, _, hole) = self.composed(answer, batch, name), self._asked(batch, name)
            weight, given = counted(batch["weight"], hole), self._given(batch, name, hole)
            likeness = (ssim(made.detach().clamp(0, 1), real) * weight).sum()
        outcome = replace(outcome, also={**outcome.also, "ssim": likeness})
        if self.rests and self.training:
            return self._resting(outcome)
        fixed = {path: value.detach() for path, value in self.discriminator.named_parameters()}
        wanted = functional_call(self.discriminator, fixed, (made, given))
        scores = self.discriminator(torch.cat([real, made.detach()]), torch.cat([given, given]))
        with in_float32(answer.device):
            of_real, of_made = scores.chunk(2)
            learning = discriminator_loss(self.settings.kind, of_real, of_made)
            if self.settings.kind == "wasserstein" and self.training and torch.is_grad_enabled():
                learning = learning + self.settings.penalty * self._penalty(real, made.detach(), given, hole, batch["id"])
            judged = (generator_loss(self.settings.kind, wanted) * weight).sum()
            aside = (learning * weight).sum()
            right = accuracies(self.settings.kind, of_real.detach(), of_made.detach(), hole)
        names = ("adversarial", "discriminator", "real_accuracy", "made_accuracy")
        values = (judged.detach(), aside.detach(), *((one * weight).sum() for one in right))
        return replace(
            outcome,
            loss=outcome.loss + self.weight() * judged,
            aside=aside,
            also={**outcome.also, **dict(zip(names, values))},
        )

    def _resting(self, outcome: Outcome) -> Outcome:
        """The outcome of pixels alone; each of the discriminator's weights has a part in it, as distributed training needs."""
        none, half = torch.zeros_like(outcome.count), outcome.count / 2
        watched = {"adversarial": none, "discriminator": none, "real_accuracy": half, "made_accuracy": half}
        aside = torch.stack([0 * weight.sum() for weight in self.discriminator.parameters()]).sum()
        return replace(outcome, aside=aside, also={**outcome.also, **watched})

    def _given(self, batch: dict[str, Tensor], name: str, hole: Tensor) -> Tensor:
        """What the discriminator sees beside an image, float (n, c, h, w): the input, if it is not the image itself; the hole."""
        size = (hole.shape[2], hole.shape[3])
        given = batch[f"{name}.input"].permute(0, 3, 1, 2).float() / 255
        seen = [enlarged(given, size)] if self._relative else []
        return torch.cat([*seen, *([hole] if self.label.masked else [])], 1) if seen else hole[:, :0]

    def _penalty(self, real: Tensor, made: Tensor, given: Tensor, hole: Tensor, ids: Tensor) -> Tensor:
        """Squared difference from 1 of the gradient's norm at images between real and made ones, float (n,).

        Where in between depends on step and sample alone.
        """
        drawn = Draws(0, self.step, ids.view(torch.int64).cpu().numpy().view("uint64")).stream("between").uniform("share")
        share = torch.from_numpy(drawn).to(real).view(-1, 1, 1, 1)
        between = (share * real + (1 - share) * made).requires_grad_()
        scores = self.discriminator(between, given).mean(1).sum()
        (gradient,) = torch.autograd.grad(scores, between, create_graph=True)
        return ((gradient * hole).flatten(1).norm(dim=1) - 1).square()

    def before_update(self) -> None:
        """As in `Objective`; the discriminator is fixed while it rests."""
        for weight in self.discriminator.parameters() if self.rests else ():
            weight.grad = None

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; at the end of pixels alone it keeps a copy of what the network has learnt, to show it beside."""
        if not self.rests:
            self.discriminator.advance()
        elif self.before is not None and self.step + 1 >= self.settings.start * self.steps:
            self.before["backbone"].load_state_dict(backbone.state_dict())
            self.before["decoder"].load_state_dict(self.decoder.state_dict())

    def answer_before(self, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor | None:
        """What `answer` returned at the end of pixels alone; None if the run had no such part. Arguments as there."""
        if self.before is None:
            return None
        backbone: Any = self.before["backbone"]
        return self.answer_by(backbone, self.before["decoder"], batch, name, pixels)


def discriminator_loss(kind: Kind, real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator minimises, float (n,), for its scores of photos and of painted images, (n, patches) each."""
    if kind == "hinge":
        return (F.relu(1 - real) + F.relu(1 + made)).mean(1)
    if kind == "least_squares":
        return ((real - 1).square() + made.square()).mean(1) / 2
    return (made - real).mean(1)


def generator_loss(kind: Kind, made: Tensor) -> Tensor:
    """What the network minimises beside the error of pixels, float (n,), for the scores (n, patches) of its images."""
    return (made - 1).square().mean(1) / 2 if kind == "least_squares" else -made.mean(1)


def accuracies(kind: Kind, real: Tensor, made: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of patches of photos, and of painted images, that are taken for what they are, float (n,).

    Only patches count that hold a part of the hole: the others are the same in both images. Scores of `wasserstein` have no zero:
    they are compared with the mean of both images' scores.

    Args:
        kind: which scores they are.
        real, made: scores (n, patches) of photos and of painted images.
        hole: where images were painted, (n, 1, h, w) of 0 and 1.
    """
    between = {"hinge": 0.0, "least_squares": 0.5}.get(kind, (real.mean(1, True) + made.mean(1, True)) / 2)
    counts = F.adaptive_max_pool2d(hole, round(real.shape[1] ** 0.5)).flatten(1)
    found = [(right * counts).sum(1) / counts.sum(1).clamp(min=1) for right in (real > between, made < between)]
    return found[0], found[1]
