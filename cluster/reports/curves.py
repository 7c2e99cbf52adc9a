"""Curves of a report as SVG: a task's loss and metric, the learning rate, and fine-tuning from both starts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.reports.formatting import PER_CENT, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREY = "#2f6fdf", "#8a93a3"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "svg.hashsalt": "report",
}


def task_curves(task: Mapping[str, Any], measured: str) -> bytes:
    """Loss and metric over the steps, the trivial answer's metric dashed.

    Args:
        task: a task's part of `pretrain.json`.
        measured: name of its metric.
    """
    factor, unit = unit_of(measured)
    title = f"{measured}, %" if unit == PER_CENT else {"psnr": "PSNR, dB"}.get(measured, measured)
    trivials = task.get("trivials") or [task["trivial"]] * len(task["step"])  # runs of earlier versions kept the last one only
    with _drawn(2) as (left, right, file):
        left.plot(task["step"], task["loss"], color=BLUE, linewidth=1.6)
        left.set_title("loss", loc="left", fontsize=9)
        right.plot(task["step"], [factor * value for value in task["metrics"]], color=BLUE, linewidth=1.6)
        right.plot(task["step"], [factor * value for value in trivials], color=GREY, linestyle="--", linewidth=1.2)
        right.set_title(f"{title} (dashed: trivial answer)", loc="left", fontsize=9)
    return file.getvalue()


def tuning_curves(curves: Mapping[str, Mapping[str, Any]], measured: str = "accuracy") -> bytes:
    """Loss and training metric of fine-tuning over the steps, from pretrained weights and, dashed, from random ones.

    Args:
        curves: `curves` of `finetune.json`, by start.
        measured: name of the metric, a share.
    """
    with _drawn(2) as (left, right, file):
        for init, curve in curves.items():
            line: dict[str, Any] = {"color": GREY, "linestyle": "--"} if init == "random" else {"color": BLUE}
            left.plot(curve["step"], curve["loss"], label=init, linewidth=1.6, **line)
            right.plot(curve["step"], [100 * value for value in curve["metrics"]], linewidth=1.6, **line)
        left.set_title("loss", loc="left", fontsize=9)
        left.legend(frameon=False, fontsize=8)
        right.set_title(f"{measured} on training images, %", loc="left", fontsize=9)
    return file.getvalue()


def rate_curve(rates: Sequence[float], steps: Sequence[int]) -> bytes:
    """The learning rate at some steps."""
    with _drawn(1) as (axes, file):
        axes.plot(steps, rates, color=BLUE, linewidth=1.6)
        axes.set_title("learning rate", loc="left", fontsize=9)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    return file.getvalue()


@contextmanager
def _drawn(count: int) -> Iterator[tuple[Any, ...]]:
    """Axes to draw in, side by side, and last the file into which they are written at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.2 * count, 2.3), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
        yield (*panels, file)
        for axes in panels:
            axes.set_xlabel("step")
            axes.grid(axis="y", color="#e6e9ee")
            axes.set_axisbelow(True)
        figure.savefig(file, format="svg", metadata={"Date": None})
