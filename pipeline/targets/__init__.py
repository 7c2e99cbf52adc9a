"""Targets: what a labelled sample asks for, a class, a mask or boxes; read from the shard, checked, and moved with the pixels."""

from pipeline.targets.base import TARGET_COLUMNS, BadTarget, Crops, Target
from pipeline.targets.boxes import BoxTarget
from pipeline.targets.classes import ClassTarget
from pipeline.targets.files import open_targets
from pipeline.targets.masks import MaskTarget
from pipeline.targets.survey import TargetReader

__all__ = [
    "TARGET_COLUMNS",
    "BadTarget",
    "BoxTarget",
    "ClassTarget",
    "Crops",
    "MaskTarget",
    "Target",
    "TargetReader",
    "open_targets",
]
