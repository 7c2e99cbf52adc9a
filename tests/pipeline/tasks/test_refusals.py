"""Parameters that cannot work are refused when the recipe is read, in words that say why."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.recipe import parse_recipe


@pytest.mark.parametrize(
    ("task", "parameters", "size", "words"),
    [
        ("jigsaw", {"grid": 9}, 32, "tasks.jigsaw.grid: must be less than or equal to 6"),
        ("jigsaw", {"grid": 6}, 32, "a 6x6 jigsaw on 32 pixels has cells of 5 and patches of 5 pixels"),
        ("jigsaw_order", {"grid": 6}, 32, "a 6x6 jigsaw on 32 pixels"),
        ("rotation", {"turns": [0, 1, 2, 3, 4]}, 32, "tasks.rotation.turns.4: must be 0, 1, 2 or 3"),
        ("rotation", {"turns": [0, 1, 2, 3, 0]}, 32, "there are four different quarter turns"),
        ("rotation_angle", {"answer": "class", "classes": 1}, 64, "greater than or equal to 2"),
        ("rotation_angle", {}, 16, "of 16 pixels . are left after turning"),
        ("occlusion", {"area": [0.2, 0.9]}, 32, "can be 1.34 of the image's side"),
        ("occlusion", {"blocks": 32, "area": [0.01, 0.02]}, 32, "covers less than 4 pixels"),
        ("masked_patches", {"grid": 32}, 32, "a 32x32 grid on 32 pixels has patches of less than 2"),
        ("masked_patches", {"share": 0.999}, 32, "hides 64 of 64 patches"),
        ("masked_patches", {"fill": [0, 0, 256]}, 32, "between 0 and 255"),
        ("relative_position", {"gap": 0.5, "jitter": 0.3}, 64, "a cell has 21 and a patch 5 pixels"),
        ("corrupted_region", {"grid": 16}, 32, "cells of 2 pixels; they need at least 4"),
        ("corrupted_region", {"faults": []}, 32, "one or more faults"),
        ("corrupted_region", {"faults": ["blur", "blur"]}, 32, "each once"),
        ("denoising", {"level": [30, 10]}, 32, "1 <= least <= greatest <= 255"),
        ("denoising", {"level": [0.1, 10]}, 32, "would be rounded away"),
        ("deblurring", {"width": [0.1, 0.5]}, 32, "beyond which no picture is left"),
        ("deblurring", {"width": [0.001, 0.01]}, 32, "pixels blur nothing"),
        ("colour_restoration", {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}, 32, "nothing is changed"),
        ("super_resolution", {"factor": 3}, 32, "must be 2, 4 or 8"),
        ("super_resolution", {"factor": 8}, 36, "take an image.size of 32 or 40"),
        ("super_resolution", {"factor": 8}, 24, "reduced by 8 are fewer than 4"),
        ("reconstruction", {"code": 4000}, 32, "no bottleneck for the 3072"),
        ("next_pixel", {"side": 20}, 32, "32 pixels cannot be reduced to 20"),
        ("next_pixel", {"palette": [[1, 2, 3], [1, 2, 3]]}, 32, "each once"),
        ("next_pixel", {"palette": [[1, 2, 3], [1, 2, 300]]}, 32, "between 0 and 255"),
        ("quantised_colorization", {"shares": [0.5, 0.5]}, 32, "2 shares for the 101 colours"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(task: str, parameters: dict[str, Any], size: int, words: str) -> None:
    document = {"name": "a", "seed": 1, "corpus": {"shards": "x"}, "image": {"size": size}, "tasks": {task: parameters}}
    with pytest.raises(UserError, match=words):
        parse_recipe(document)
