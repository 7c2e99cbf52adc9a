"""What all tests share: real photos, small, cropped from scikit-image's, which come in its wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from PIL import Image
from skimage import data

from tests.folders import differences, is_folder

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded: several processes test at the same time

settings.register_profile("whole", deadline=None)  # a busy machine is not a failure
settings.register_profile("short", settings.get_profile("whole"), max_examples=40)


def pytest_configure(config: pytest.Config) -> None:
    """Fewer examples where slow tests are left out, but where a test says how many it needs."""
    settings.load_profile("short" if config.option.markexpr == "not slow" else "whole")


def pytest_assertrepr_compare(op: str, left: Any, right: Any) -> list[str] | None:
    """Of two folders' bytes that are not equal: what differs."""
    return differences(left, right) if op == "==" and is_folder(left) and is_folder(right) else None


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of JPEG and PNG crops: `astronaut`, `cat`, `coffee`, 8 each, 40x48 to 68x48 pixels. Read-only."""
    root = tmp_path_factory.mktemp("photos")
    for name, pixels in {"astronaut": data.astronaut(), "cat": data.cat(), "coffee": data.coffee()}.items():
        (root / name).mkdir()
        photo = Image.fromarray(pixels)
        for n in range(8):
            left, top, width = 30 * n, 20 * n, 40 + 4 * n
            crop = photo.crop((left, top, left + width, top + 48))
            crop.save(root / name / f"{n:03d}.{'png' if n == 7 else 'jpg'}")
    return root
