"""The downstream problems by the name that a recipe gives them."""

from __future__ import annotations

from pipeline.recipe.downstream import Downstream
from trainers.downstream.classification import Classification
from trainers.downstream.detection import Detection
from trainers.downstream.problem import DownstreamProblem
from trainers.downstream.segmentation import Segmentation

PROBLEMS: dict[str, DownstreamProblem] = {
    "classification": Classification(),
    "segmentation": Segmentation(),
    "detection": Detection(),
}


def problem_of(spec: Downstream | None) -> DownstreamProblem:
    """The problem of a recipe's section `downstream`; classification where there is no section."""
    return PROBLEMS[spec.problem if spec else "classification"]
