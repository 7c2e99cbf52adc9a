"""The machine that a command runs on: processor, memory, GPUs, and the versions of the packages that a run depends on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.processes.cpu import cpu_caches, cpu_info, cpu_model, is_virtual

_FEATURES = {"amx_bf16": "AMX bfloat16", "avx512_bf16": "AVX-512 bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
_PACKAGES = (
    "pseudolabel", "ray", "torch", "torchvision", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12", "pyarrow", "webdataset",
    "fsspec", "numpy", "opencv-python-headless", "simplejpeg", "pillow", "isal",
)  # fmt: skip
_SECONDS = 20.0  # a driver that hangs is a finding, not a reason to hang


@dataclass(frozen=True)
class Machine:
    """The hardware and the system of a machine.

    Args:
        cpu: model of the processor.
        cores: logical processors that this process may use.
        memory: bytes.
        features: what the processor computes in that matters for training, by readable name.
        caches: of one core, and those that it shares, with their sizes.
        virtual: whether this is a virtual machine, as far as it says so.
        gpus: name and memory of each NVIDIA GPU that the driver shows.
        driver: version of the NVIDIA driver, or None.
        system: operating system and Python.
    """

    cpu: str
    cores: int
    memory: int
    features: list[str]
    caches: list[str]
    virtual: bool
    gpus: list[str]
    driver: str | None
    system: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """Look at this machine; takes a moment where there is a GPU driver to ask."""
    flags = set(cpu_info().get("flags", "").split())
    gpus, driver = _gpus()
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=[words for flag, words in _FEATURES.items() if flag in flags],
        caches=cpu_caches(),
        virtual=is_virtual(),
        gpus=gpus,
        driver=driver,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )


def versions() -> dict[str, str | None]:
    """Versions of the packages whose behaviour a run depends on; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _gpus() -> tuple[list[str], str | None]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], None
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return [], "installed, but nvidia-smi fails"
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.count(",") == 2]
    return [f"{name}, {memory}" for name, memory, _ in rows], rows[0][2] if rows else None
