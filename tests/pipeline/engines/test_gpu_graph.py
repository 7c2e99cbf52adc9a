"""DALI's graph for the GPU: built and checked operator by operator where there is none, run where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.draws import Stream
from pipeline.engines import gpus_visible
from pipeline.engines.dali import build_graph
from pipeline.labels import Pixels
from pipeline.tasks import Drawn, Task, registry
from tests.pipeline.made_images import FRAMES, good, request

SIZE = 48


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message's fields (protobuf.dev/programming-guides/encoding)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            length = {1: 8, 5: 4}[key & 7] if key & 7 != 2 else varint()
            yield key >> 3, message[at : at + length]
            at += length


def operators(graph: bytes) -> list[tuple[str, str]]:
    """Name and device of every operator of a serialised graph."""
    found = []
    for number, operator in fields(graph):
        if number == 5:
            parts = list(fields(operator))
            name = next(value.decode() for field, value in parts if field == 1)
            arguments = [dict(fields(value)) for field, value in parts if field == 4]
            found.append((name, next(argument[5].decode() for argument in arguments if argument[1] == b"device")))
    return found


def without_a_kernel(graph: bytes) -> list[tuple[str, str]]:
    """Operators that DALI does not have for the device they are meant to run on."""
    from nvidia.dali import backend

    registered = {
        "cpu": set(backend.RegisteredCPUOps()),
        "gpu": set(backend.RegisteredGPUOps()),
        "mixed": set(backend.RegisteredMixedOps()),
    }
    return [(name, device) for name, device in operators(graph) if name not in registered[device]]


def tasks() -> dict[str, Task]:
    return {name: task() for name, task in registry().items()}


def serialised(of: dict[str, Task], gpu: bool = True) -> bytes:
    frames = max(task.frames for task in of.values())
    pipeline, _ = build_graph(of, SIZE, threads=1, batch=8, device_id=None, gpu=gpu, frames=frames)
    return pipeline.serialize()


@pytest.mark.parametrize("name", [*registry(), "all"])
def test_every_operator_of_the_gpu_graph_has_a_gpu_kernel(name: str) -> None:
    graph = serialised(tasks() if name == "all" else {name: tasks()[name]})
    assert without_a_kernel(graph) == []
    devices = dict(operators(graph))
    assert devices["decoders__ImageSlice"] == "mixed"
    assert devices["Resize"] == devices["Flip"] == "gpu"


def test_the_graph_is_the_same_on_both_devices() -> None:
    on_gpu, on_cpu = (sorted(name for name, _ in operators(serialised(tasks(), gpu))) for gpu in (True, False))
    assert [name for name in on_gpu if name != "Copy"] == on_cpu


class OnlyOnTheCpu(Task):
    """A task that asks for what the GPU cannot do, as somebody's own may."""

    name: ClassVar[str] = "only_on_the_cpu"
    source: ClassVar[str] = "this test"

    def label_kind(self) -> Pixels:
        return Pixels()

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {}

    def render(self, ops: Any, image: Any, drawn: Drawn) -> Any:
        from nvidia.dali import fn

        return fn.zeros_like(image, device="gpu")


def test_an_operator_without_a_gpu_kernel_is_caught() -> None:
    """The check above would be worth nothing if it let one pass; DALI itself does."""
    assert without_a_kernel(serialised({"mine": OnlyOnTheCpu()})) == [("ZerosLike", "gpu")]


needs_gpu = pytest.mark.skipif(gpus_visible() == 0, reason="no NVIDIA GPU is visible to this process")


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_renders_what_the_cpu_renders() -> None:
    """Moved pixels are the same; decoding and resizing on the GPU may be a level or so off."""
    from pipeline.draws import Draws
    from pipeline.engines.cpu import CpuEngine
    from pipeline.engines.dali import DaliEngine

    count = 6
    files = [file for name, file in good().items() if "pixel" not in name][: count * FRAMES]
    draws = Draws(0, 0, np.arange(count, dtype=np.uint64))
    drawn = {name: task.draw(draws.stream(name), SIZE) for name, task in tasks().items()}
    asked = request(files, drawn=drawn, frames=FRAMES, views=tasks(), size=SIZE)
    on_gpu, failures = DaliEngine(tasks(), SIZE, device_id=0, frames=FRAMES).run(asked)
    on_cpu, _ = CpuEngine(tasks(), SIZE).run(asked)
    assert not failures
    for name, pixels in on_cpu.items():
        assert np.abs(pixels.astype(int) - on_gpu[name]).mean() < 1.5, name
    turns = asked.drawn["rotation"]["turns"]
    assert all(np.array_equal(on_gpu["rotation.input"][i], np.rot90(on_gpu["image"][i], turns[i])) for i in range(count))


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_s_pixels_do_not_depend_on_the_batch() -> None:
    from pipeline.engines.dali import DaliEngine

    files = [file for name, file in good().items() if "pixel" not in name]
    machine = DaliEngine({}, SIZE, device_id=0)
    together = machine.run(request(files))[0]["image"]
    for i, file in enumerate(files):
        assert np.array_equal(machine.run(request([file]))[0]["image"][0], together[i])
