"""Tests what this machine can do, and whether its engines render correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from cluster.doctor.selftest import BAD, EngineOutput, reference, render_apart
from cluster.reports.formatting import amount
from cluster.reports.machine import Machine, this_machine, versions
from pipeline.errors import RunError, UserError
from pipeline.streaming.connection import cluster_address, join_cluster

MEAN_TOLERANCE, FAR, FAR_SHARE = 1.5, 16, 0.01
"""An engine may differ by `MEAN_TOLERANCE` levels (of 255) on average, and by more than `FAR` levels in at most `FAR_SHARE` of
the values: decoders and resize kernels round differently, mostly at edges. A larger difference is another picture."""

PRECISION = "bfloat16 against float32"
"""The name of the one check that is of a device and not of an engine."""

_MEANINGS = {
    "runs": "the engine cannot be used here: set `engine` in recipes to one that passed; the end of its output says why",
    "bad data": "damaged files would become pairs, or intact ones would be lost; do not train with this engine here",
    "repeats": "the same sample gives other pixels in another batch; runs with this engine here cannot be repeated",
    "decode": "photos come out wrong: compare the versions with another machine's, and the GPU's driver with what DALI needs",
    "precision": "networks would get wrong gradients in bfloat16: runs compute in float32 here, and say so when they start",
    "task": "the engine renders this task differently from the cpu engine; do not train with it here",
}


@dataclass(frozen=True)
class Check:
    """One test of one engine, or of the arithmetic of one device; `meaning` is what it means if it failed."""

    engine: str
    name: str
    status: Literal["ok", "failed", "skipped"]
    found: str
    meaning: str = ""


@dataclass(frozen=True)
class Findings:
    """What `examine` found."""

    machine: Machine
    torch_gpus: int
    versions: dict[str, str | None]
    ray: str
    checks: list[Check]

    @property
    def failed(self) -> bool:
        """Whether a test failed."""
        return any(check.status == "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "failed": self.failed, "verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """Whether this machine is fine, in one line, and what to do if not."""
        of_engines = [check for check in self.checks if check.name != PRECISION]
        wrong = {_name(check) for check in of_engines if check.status == "failed"}
        right = dict.fromkeys(_name(check) for check in of_engines if check.status == "ok" and _name(check) not in wrong)
        if not right:
            return "this machine cannot render: no engine passed; mend what the lines above say"
        if wrong:
            words = f"this machine is fine with `engine: {next(iter(right))}` in recipes; {' and '.join(sorted(wrong))} failed"
        else:
            words = f"this machine is fine: {' and '.join(right)} rendered correctly"
        if any(check.name == PRECISION and check.status == "failed" for check in self.checks):
            words += "; runs compute in float32 by themselves, which takes longer"
        return words

    def machine_words(self) -> dict[str, str]:
        """The machine in words, by subject."""
        gpus = self.machine.gpus
        if gpus and self.torch_gpus < len(gpus):
            hint = f" (torch uses {self.torch_gpus} of them: CUDA_VISIBLE_DEVICES, or a torch without CUDA, hides the rest)"
        else:
            hint = ""
        return {
            "system": self.machine.system,
            "processor": f"{self.machine.cpu}, {self.machine.cores} logical cores",
            "computes in": ", ".join(self.machine.features) or "nothing special",
            "memory": amount(self.machine.memory, "B"),
            "GPUs": "; ".join(gpus) + hint if gpus else "none visible",
            "NVIDIA driver": self.machine.driver or "none",
            "Ray": self.ray,
        }


def examine(on_progress: Callable[[str], None]) -> Findings:
    """Look at this machine and test its engines.

    Args:
        on_progress: called with what is being done.
    """
    import torch

    on_progress("machine")
    machine, gpus = this_machine(), torch.cuda.device_count()
    on_progress("Ray")
    cluster = _ray()
    checks: list[Check] = []
    base: EngineOutput | None = None
    for engine, absent in _engines(gpus):
        on_progress(engine)
        if absent:
            checks.append(Check(engine, "runs", "skipped", absent))
            continue
        try:
            rendered = render_apart(engine)
        except RunError as error:
            checks.append(Check(engine, "runs", "failed", str(error), _MEANINGS["runs"]))
            continue
        base = rendered if engine == "cpu" else base
        checks += compare(engine, rendered, base)
    for device in ["cpu", *(f"cuda:{index}" for index in range(gpus))]:
        on_progress(f"bfloat16 on {device}")
        checks.append(compare_precision(device))
    return Findings(machine, gpus, versions(), cluster, checks)


def compare(engine: str, rendered: EngineOutput, base: EngineOutput | None) -> list[Check]:
    """Judge what an engine rendered.

    Args:
        engine: its name.
        rendered: its pixels.
        base: the cpu engine's, or None where that one failed.
    """
    return [*_judge_itself(engine, rendered), *_judge_tasks(engine, rendered, base)]


def compare_precision(device: str) -> Check:
    """Compare a network's products and gradients in bfloat16 with those in float32, on maps down to one position."""
    import torch

    from pipeline.recipe.training import BackboneSection
    from trainers.learning.optim import place
    from trainers.networks.backbones import build_backbone
    from trainers.networks.precision import TOLERANCE, compute_dtype, disagreements

    if compute_dtype(device, "auto") is torch.float32:
        return Check(device, PRECISION, "skipped", "it has no instructions for bfloat16: runs compute in float32")
    found: list[str] = []
    for size in (8, 32):
        network = place(build_backbone(BackboneSection(name="resnet18", stem="standard"), size, 0), device).eval()
        images = torch.zeros(8, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        found += disagreements(device, partial(network, images))
    if found:
        return Check(device, PRECISION, "failed", "; ".join(found), _MEANINGS["precision"])
    return Check(device, PRECISION, "ok", f"products and gradients of a ResNet-18 are at most {TOLERANCE:.0%} apart")


def _judge_itself(engine: str, rendered: EngineOutput) -> Iterator[Check]:
    right = rendered.refused == sorted(BAD)
    found = f"refused: {', '.join(rendered.refused) or 'nothing'}" + ("" if right else f"; expected: {', '.join(sorted(BAD))}")
    yield Check(engine, "refuses bad data only", "ok" if right else "failed", found, _MEANINGS["bad data"])
    other = [name for name, column in rendered.columns.items() if not np.array_equal(column, rendered.alone[name])]
    found = f"{', '.join(other)} differ" if other else "byte-identical alone and in a batch"
    yield Check(engine, "repeats itself", "failed" if other else "ok", found, _MEANINGS["repeats"])
    if right:
        yield near(engine, "image against PIL", rendered.columns["image"], reference(), _MEANINGS["decode"])


def _judge_tasks(engine: str, rendered: EngineOutput, base: EngineOutput | None) -> Iterator[Check]:
    for name, column in rendered.columns.items():
        if not name.endswith(".input"):
            continue
        test = f"{name.removesuffix('.input')} against cpu"
        if base is rendered:
            continue
        if base is None or base.columns[name].shape != column.shape:
            yield Check(engine, test, "skipped", "there is nothing to compare with")
        else:
            yield near(engine, test, column, base.columns[name], _MEANINGS["task"])


def near(engine: str, test: str, pixels: np.ndarray, wanted: np.ndarray, meaning: str) -> Check:
    """Compare an engine's pixels, uint8, with a reference of the same shape: do they differ by no more than rounding?"""
    off = np.abs(pixels.astype(np.int16) - wanted)
    mean, far = float(off.mean()), float((off > FAR).mean())
    fine = mean <= MEAN_TOLERANCE and far <= FAR_SHARE
    found = f"{mean:.2f} levels apart on average, {far:.2%} by more than {FAR}"
    return Check(engine, test, "ok" if fine else "failed", found, meaning)


def _name(check: Check) -> str:
    """The engine of a check as recipes name it, whichever its device."""
    return check.engine.partition(":")[0]


def _engines(gpus: int) -> Iterator[tuple[str, str]]:
    """Every engine, with the reason why it cannot be tested, if it cannot."""
    yield "cpu", "" if find_spec("nvidia") and find_spec("nvidia.nvimgcodec") else "nvidia-nvimgcodec is not installed"
    dali = "" if find_spec("nvidia") and find_spec("nvidia.dali") else "nvidia-dali is not installed"
    yield "dali", dali
    for device in range(gpus):
        yield f"dali:{device}", dali
    if not gpus:
        yield "dali:0", dali or "no GPU is visible"


def _ray() -> str:
    """The cluster that runs would use, in words."""
    address = cluster_address()
    if address is None:
        return "no cluster named (RAY_ADDRESS is not set): runs start Ray on this machine"
    try:
        join_cluster(address)
    except UserError as error:
        return str(error)
    import ray

    have = ray.cluster_resources()
    ray.shutdown()
    return f"the cluster at {address} (RAY_ADDRESS) answers: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
