"""The recipe's section `downstream`: the labelled task on which features are tested."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.recipe.section import Section, Shards, without_defaults
from pipeline.recipe.training import Optimizer

Problem = Literal["classification", "segmentation", "detection"]


def _ascending(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    shares = value if isinstance(value, tuple) else (value,)
    if not shares or len(set(shares)) < len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError("needs a number above 0, at most 1, or a list of different ones")
    return tuple(sorted(shares)) if isinstance(value, tuple) else value


class Downstream(Section):
    """The labelled task on which features are tested."""

    problem: Problem = Field(
        "classification",
        description="What is learnt: a class for each image (`cls`), a class for each pixel (`seg.png`), or boxes with classes "
        "(`boxes.json`).",
    )
    head: Literal["fcn", "deeplab"] = Field(
        "fcn", description="What segments on the backbone's map: FCN's convolutions, or DeepLab v3's, which see further."
    )
    train: Shards = Field(description="Labelled shards to train on.")
    test: Shards = Field(description="Labelled shards to test on.")
    labels: Annotated[float | tuple[float, ...], AfterValidator(_ascending)] = Field(
        1.0,
        description="Share of the training labels that is used, the same for each class, at least one of each; a list such as "
        "`[0.01, 0.1, 1]`: one after the other, each with its own results.",
    )
    layer: str | None = Field(
        None, description="Layer whose pooled features are probed, such as `layer3`; if not set, the last layer that was trained."
    )
    epochs: int = Field(20, ge=1, description="Epochs of fine-tuning.")
    batch: int = Field(128, ge=1, description="Global batch, over all workers.")
    optimizer: Optimizer = Optimizer(lr=5e-4)
    neighbours: int = Field(20, ge=1, description="k of the k-nearest-neighbour vote.")
    protocols: tuple[Literal["linear", "knn", "attentive", "concatenated"], ...] = Field(
        ("linear", "knn"),
        min_length=1,
        description="How `evaluate` judges frozen features: by a linear probe, a vote of nearest neighbours, a probe that learns "
        "where to look on the last map, or a linear probe on the features of `layers` side by side.",
    )
    layers: tuple[str, ...] = Field((), description="Layers of the protocol `concatenated`, such as `[layer2, layer3]`.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the labels, ascending."""
        return self.labels if isinstance(self.labels, tuple) else (self.labels,)

    @model_validator(mode="after")
    def _head_fits(self) -> Downstream:
        if self.problem != "segmentation" and self.head != "fcn":
            raise ValueError("head: it is for `problem: segmentation`; classes are learnt by a linear layer, boxes by FCOS")
        return self

    @model_validator(mode="after")
    def _protocols_fit(self) -> Downstream:
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError("protocols: one is named twice")
        if ("concatenated" in self.protocols) != (len(self.layers) > 1) or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                "layers: the protocol `concatenated`, and no other, puts two or more different layers side by side: name them, "
                "such as `[layer2, layer3]`, and `concatenated` among `protocols`"
            )
        return self

    @model_serializer(mode="wrap")
    def _canonical(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), "problem", "head", "protocols", "layers")
