"""The precision of matrix products: bfloat16 where the device computes in it and comes to the same result as float32."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["auto", "float32", "bfloat16"]

TOLERANCE = 0.05
"""Largest relative error, in Euclidean norms, of a product in bfloat16 and of its gradients; rounding alone makes up to 0.013."""

_CONVOLUTIONS = frozenset((torch.conv1d, torch.conv2d, torch.conv3d))
_PRODUCTS = _CONVOLUTIONS | {
    F.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.einsum,
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
}
"""Functions that autocast runs in bfloat16."""


def compute_dtype(device: torch.device | str, precision: Precision) -> torch.dtype:
    """The type of matrix products: bfloat16 where asked for, or where `auto` finds a processor with instructions for it."""
    if precision == "auto":
        device = torch.device(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextmanager
def autocast(device: torch.device | str, precision: Precision) -> Iterator[None]:
    """A context in which the forward pass computes its matrix products in `compute_dtype`; weights stay float32.

    Convolutions with `idle_taps` run in float32 on a CPU: oneDNN 3.12 (in torch 2.14) leaves their weight gradients partly
    unwritten in bfloat16. Their maps are smaller than their kernels, so this costs next to nothing.
    """
    device = torch.device(device)
    if compute_dtype(device, precision) is torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16), ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(_IdleTapsInFloat32())
        yield


def in_float32(device: torch.device | str) -> torch.autocast:
    """A context, inside `autocast`, in which everything is computed in the types of its arguments: for losses and metrics."""
    kind = torch.device(device).type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)


def idle_taps(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
) -> bool:
    """Whether some weight of a convolution's kernel only ever meets padding, so that its gradient is exactly zero.

    Args:
        size: of the map, without batch and channels.
        kernel: of the same number of axes.
        stride, padding, dilation: as of `torch.nn.functional.conv2d`.
    """
    axes = len(kernel)
    steps, spread = _per_axis(stride, axes), _per_axis(dilation, axes)
    if isinstance(padding, str):
        margins = [(d * (k - 1) // 2, d * (k - 1)) if padding == "same" else (0, 0) for k, d in zip(kernel, spread)]
    else:
        margins = [(p, 2 * p) for p in _per_axis(padding, axes)]
    for n, k, s, d, (before, both) in zip(size, kernel, steps, spread, margins):
        starts = range(-before, n + both - before - d * (k - 1), s)  # where the kernel's first weight comes to lie
        if any(all(not 0 <= start + d * tap < n for start in starts) for tap in range(k)):
            return True
    return False


def disagreements(device: torch.device | str, run: Callable[[], object]) -> list[str]:
    """Compare in bfloat16 and in float32 each matrix product that a network computes, with its gradients.

    Each distinct product is repeated on random numbers in the shapes of its arguments, as `autocast` runs it, into memory that
    was filled with NaN before: what a faulty kernel leaves unwritten is seen.

    Args:
        device: the network's.
        run: computes the network once, on a batch of any size.

    Returns:
        Descriptions of the products that are further apart than `TOLERANCE`, or not finite; empty if all agree.
    """
    recorder = _Recorder()
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16), recorder:
        run()
    found = []
    with _memory_filled(torch.device(device)):
        for words, (product, arguments, named) in recorder.calls.items():
            apart = _apart(torch.device(device), product, arguments, named)
            if not apart <= TOLERANCE:
                found.append(f"{words} ({f'{apart:.0%} from float32' if math.isfinite(apart) else 'not finite'})")
    return found


def checked(device: torch.device | str, precision: Precision, run: Callable[[], object]) -> tuple[Precision, str]:
    """The precision in which a network can be computed here, and the reason if it is not the one asked for.

    Args:
        device: the network's.
        precision: asked for.
        run: as of `disagreements`.

    Returns:
        `precision` and an empty text; or `float32` and what disagrees, where `bfloat16` is not to be trusted.
    """
    if compute_dtype(device, precision) is torch.float32 or not (found := disagreements(device, run)):
        return precision, ""
    more = f" and {len(found) - 1} more" if found[1:] else ""
    return "float32", f"bfloat16 is wrong on this processor for {found[0]}{more}: it computes in float32"


class _IdleTapsInFloat32(TorchFunctionMode):
    """Runs convolutions with idle taps without autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and _has_idle_taps(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                return func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
        return func(*args, **kwargs)


class _Recorder(TorchFunctionMode):
    """Keeps one call of each matrix product: by its description the function, its arguments and its named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS and not any(isinstance(value, Tensor) and value.is_meta for value in args):
            given = [words for value in (*args, *kwargs.values()) if (words := _words(value))]
            self.calls.setdefault(f"{func.__name__}({', '.join(given)})", (func, args, kwargs))
        return func(*args, **kwargs)


def _apart(device: torch.device, product: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> float:
    """The largest relative error of a product and its gradients on random numbers; NaN where one is not finite."""
    generator = torch.Generator().manual_seed(0)
    values = [_random(value, generator) for value in arguments]
    others = {name: _random(value, generator) for name, value in named.items()}
    inputs = [value for value in (*values, *others.values()) if isinstance(value, Tensor) and value.requires_grad]

    def results(precision: Precision, seed: Tensor | None) -> list[Tensor]:
        with autocast(device, precision):
            out = product(*values, **others)
        out = out[0] if isinstance(out, tuple) else out
        seed = torch.randn(out.shape, generator=generator).to(device) if seed is None else seed
        grown = torch.autograd.grad(out, inputs, seed.to(out.dtype), allow_unused=True)
        return [seed, out.detach(), *(gradient for gradient in grown if gradient is not None)]

    seed, *exact = results("float32", None)
    _, *quick = results("bfloat16", seed)
    errors = [(a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12) for a, b in zip(quick, exact, strict=True)]
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())


@contextmanager
def _memory_filled(device: torch.device) -> Iterator[None]:
    """While this lasts, memory that torch allocates on a CPU holds NaN until it is written."""
    if device.type != "cpu":  # a GPU would take other kernels with torch's deterministic algorithms
        yield
        return
    memory: Any = torch.utils.deterministic
    fills, strict = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        memory.fill_uninitialized_memory = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        memory.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)


def _has_idle_taps(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> bool:
    axes = weight.ndim - 2
    return idle_taps(tuple(input.shape[-axes:]), tuple(weight.shape[2:]), stride, padding, dilation)


def _random(value: Any, generator: torch.Generator) -> Any:
    """Normal numbers in place of a tensor of numbers, in float32 and in the same memory format; other values as they are.

    Weights get the scale at which a sum over their inputs is of the inputs' size, so that no softmax saturates.
    """
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    scale = (len(value) / value.numel()) ** 0.5 if isinstance(value, nn.Parameter) else 1.0
    numbers = torch.empty_like(value, dtype=torch.float32)
    return numbers.copy_(scale * torch.randn(value.shape, generator=generator)).requires_grad_()


def _words(value: Any) -> str:
    """Describe a value: a tensor by its shape, numbers and equations as they are, other values not at all."""
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape))
    return str(value) if isinstance(value, int | tuple | str) and not isinstance(value, bool) else ""


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _per_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):  # public since torch 2.11
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_bf16", False) or has.get("avx512_bf16", False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
