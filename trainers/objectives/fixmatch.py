"""FixMatch: cross-entropy of known classes; of other images, of the network's own answer to a weaker view, if it is sure."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import LabelledViews
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.networks.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome
from trainers.objectives.head import vector_head
from trainers.objectives.views import parameters_of


class FixmatchObjective(Objective):
    """Cross-entropy of a linear classifier on feature vectors (Sohn et al. 2020, equations 3 and 4).

    An image whose class is known learns it from its weak view. Another learns from its strong view the most probable class of its
    weak view, if the probability of that reaches `threshold`; as targets these have no gradient. Both views are one batch to
    batch normalisation. Loss and accuracy are shown for each image of known class; `confident` is the share of the other images
    that reach the threshold.
    """

    name = "fixmatch"
    kind = LabelledViews
    needs = ("vector",)
    metric = "accuracy"
    higher_is_better = True

    class Parameters(Objective.Parameters):
        """See the fields."""

        threshold: float = Field(0.95, ge=0, lt=1, description="Least probability of a class that becomes a label.")
        unlabelled: float = Field(
            1 / 7,
            ge=0,
            description="Weight of an image of unknown class, beside 1 of a labelled one; with `corpus.labelled.batch: 0.125` "
            "the default is the paper's.",
        )

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings, kind = self.Parameters(**parameters_of(task)), task.label_kind()
        assert isinstance(kind, LabelledViews)
        self.threshold, self.unlabelled = settings.threshold, settings.unlabelled
        self.classes, self.norm = kind.classes, task.input_norm
        self.head = vector_head(task.input_shape(image_size)[1:], backbone.vector_width, kind.classes)

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Logits, float (n, 2, classes), of the weak and the strong view, `<task>.input`, uint8 (n, 2, s, s, 3)."""
        views = batch[f"{name}.input"]
        logits: Tensor = self.head(backbone(pixels(views, self.norm)).vector)
        return logits.unflatten(0, views.shape[:2])

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare with the column `class`, int64 (n,), -1 where it is not known."""
        weak, strong = answer.unbind(1)
        label, weight = batch["class"], batch["weight"]
        labelled, others = weight * (label >= 0), weight * (label < 0)
        probability, guess = weak.detach().softmax(1).max(1)
        confident = others * (probability >= self.threshold)
        losses = labelled * F.cross_entropy(weak, label.clamp_min(0), reduction="none")
        losses = losses + self.unlabelled * confident * F.cross_entropy(strong, guess, reduction="none")
        count = labelled.sum()
        return Outcome(
            loss=losses.sum(),
            metric=(labelled * (guess == label)).sum(),
            trivial=count / self.classes,
            count=count,
            also={"confident": confident.sum()},
            counts={"confident": others.sum()},
        )
