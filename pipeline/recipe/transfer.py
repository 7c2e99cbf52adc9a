"""The recipe's section `transfer`: which starts are tried on which data sets, problems, label fractions and seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.recipe.downstream import Problem
from pipeline.recipe.section import Section, Shards

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class TransferStart(Section):
    """Weights from which cells start; random ones where neither key is given."""

    run: str | None = Field(None, description="Folder of a run whose backbone it is; a path or URL.")
    weights: str | None = Field(None, description="A file of weights, as in `training.backbone.weights`.")

    @model_validator(mode="after")
    def _one(self) -> TransferStart:
        if self.run and self.weights:
            raise ValueError("names a `run` and `weights`: leave one out")
        return self


class TransferDataset(Section):
    """A labelled data set."""

    train: Shards = Field(description="Labelled shards to train on.")
    test: Shards = Field(description="Labelled shards to test on.")
    problems: tuple[Problem, ...] = Field(("classification",), min_length=1, description="What is learnt on it.")


class Transfer(Section):
    """A grid of downstream runs. All else of them is as in `downstream`, or its defaults."""

    starts: dict[_Name, TransferStart] = Field(
        min_length=1,
        description="Where cells start, by names of your own: `{run: <folder of a run>}`, `{weights: <file>}`, or `{}` for "
        "random weights.",
    )
    datasets: dict[_Name, TransferDataset] = Field(
        min_length=1,
        description="Labelled data sets by names of your own, each with `train` and `test`, shards, and `problems`, as in "
        "`downstream.problem`; by default `[classification]`.",
    )
    by: Literal["finetune", "evaluate"] = Field(
        "finetune", description="The command that each cell is: the whole network learns, or frozen features are judged."
    )
    labels: tuple[_Fraction, ...] = Field((1.0,), min_length=1, description="Fractions of the labels, as in `downstream.labels`.")
    seeds: tuple[_Seed, ...] = Field((0,), min_length=1, description="Seeds, each of which takes the place of `seed`.")

    @model_validator(mode="after")
    def _once(self) -> Transfer:
        for key in ("labels", "seeds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: one is given twice")
        return self
