"""The recipe's section `rounds`: features, clusters and training in turn, for methods that learn labels of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe.section import Section


class Rounds(Section):
    """Rounds of embedding, clustering and training on the clusters' numbers, by `pseudolabel rounds`.

    Each round trains for `training.epochs`.
    """

    method: Literal["deepcluster", "selflabel", "clusterfit"] = Field(
        description="`deepcluster` (Caron et al. 2018): k-means, and each round starts from the weights of the one before, with "
        "a new head; `selflabel` (Asano et al. 2020): the network's own answers, balanced over all classes, and the head stays; "
        "`clusterfit` (Yan et al. 2020): k-means on the features of `run`, and one round of training from random weights."
    )
    clusters: int = Field(128, ge=2, description="Number of clusters, which are the classes that are learnt.")
    heads: int = Field(
        1, ge=1, le=100, description="Clusterings, each learnt by a head of its own; every head costs a pass through the network."
    )
    count: int = Field(4, ge=1, description="Number of rounds. If not set: 1 for `clusterfit`, 4 for the others.")
    run: str | None = Field(
        None, description="Folder of a finished run, path or URL, whose backbone's features `clusterfit` clusters; only for it."
    )
    layer: str | None = Field(
        None, description="The layer whose output is clustered, as `--layer` of `embed`; not for `selflabel`."
    )
    pca: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda components: components is None,
        description="Cluster so many principal components of the features, whitened, as `--pca` of `cluster`; not for "
        "`selflabel`. DeepCluster's paper takes 256.",
    )
    balance: bool = Field(
        False,
        description="Weigh images so that all clusters count alike, as `balance` of the task `assigned`. If not set: true for "
        "`deepcluster`, whose paper draws images evenly over clusters.",
    )
    keep: Literal["last", "all"] = Field(
        "last", description="Which rounds' features stay on disk; labels and weights of all rounds do."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_method(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        usual: dict[str, dict[str, Any]] = {"clusterfit": {"count": 1}, "deepcluster": {"balance": True}}
        return {**usual.get(str(given.get("method")), {}), **given}

    @model_validator(mode="after")
    def _fits(self) -> Rounds:
        if self.method == "clusterfit" and self.run is None:
            raise ValueError("clusterfit clusters the features of a finished run: name its folder by `run`")
        if self.method == "clusterfit" and self.count > 1:
            raise ValueError(f"count {self.count}: clusterfit is one round; take deepcluster for more")
        if self.method != "clusterfit" and self.run is not None:
            raise ValueError(f"`run` is for clusterfit; {self.method} starts from `training.backbone.weights`, or random weights")
        if self.method == "selflabel" and self.layer is not None:
            raise ValueError("`layer`: selflabel takes the network's own answers; leave it out")
        if self.method == "selflabel" and self.pca is not None:
            raise ValueError("`pca`: selflabel takes the network's own answers, not its features; leave it out")
        return self
