"""Prediction from feature vectors: a head that is linear for one image and has a hidden layer for several patches."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.networks.inputs import Normaliser
from trainers.objectives.base import Objective

HIDDEN = 512
"""Width of the layer that sees all patches together."""


def vector_head(shape: tuple[int, ...], width: int, outputs: int) -> nn.Sequential:
    """Build the layers from the concatenated feature vectors of a sample to `outputs` numbers.

    For one image this is one linear layer. Of k patches each goes through the backbone alone, and a hidden layer sees their k
    concatenated vectors: the context-free network of Noroozi & Favaro 2016, section 3.2.

    Args:
        shape: shape of the task's input: (h, w, c), or (k, h, w, c) for k patches.
        width: length of one feature vector.
        outputs: how many numbers to predict.
    """
    if len(shape) == 4:
        hidden = [nn.Linear(shape[0] * width, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(inplace=True)]
        return nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))
    return nn.Sequential(nn.Linear(width, outputs))


class VectorObjective(Objective):
    """Base class of objectives that predict a label from feature vectors.

    Args:
        outputs: how many numbers are predicted for a sample; the other arguments as in `Objective`.
    """

    needs = ("vector",)

    def __init__(self, task: Task, backbone: Backbone, image_size: int, outputs: int) -> None:
        super().__init__(task, backbone, image_size)
        self.norm = task.input_norm
        self.head = vector_head(task.input_shape(image_size), backbone.vector_width, outputs)

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """The head's numbers, float (n, outputs), for `<task>.input`, uint8 (n, h, w, c) or (n, k, h, w, c)."""
        vector = backbone(pixels(batch[f"{name}.input"], self.norm)).vector
        numbers: Tensor = self.head(vector.reshape(len(batch["weight"]), -1))
        return numbers
