"""Renders encoded photos to a batch of pairs: checks them, draws parameters, runs the engine, and reports failures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.draws import Draws
from pipeline.engines import Engine, Request, pixel_shapes, with_views
from pipeline.engines.output_buffers import rows_on
from pipeline.engines.windows import center_windows, flips, random_windows, whole_windows
from pipeline.images.check import Header, check_frames
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import build_engine
from pipeline.rendering.windows import add_views, stored
from pipeline.shards.annotations import NO_LABEL
from pipeline.shards.corpus import Sample
from pipeline.targets import BadTarget, Crops, Target
from pipeline.tasks import Drawn
from pipeline.tasks.base import ANNOTATION, WEIGHT

Columns = dict[str, Any]


class Clock:
    """A point in time, in seconds of elapsed and of processor time."""

    def __init__(self) -> None:
        self._now = time.perf_counter(), time.process_time()

    def since(self, earlier: Clock) -> tuple[float, float]:
        """Elapsed seconds, and processor seconds of this process, since an earlier point."""
        return self._now[0] - earlier._now[0], self._now[1] - earlier._now[1]


@dataclass
class Pairs:
    """A rendered batch of n samples.

    Args:
        columns: `id` uint64 (n,), `weight` float32 (n,) of 1 or 0, `class` int64 (n,) or -1, `image` uint8 (n, s, s, 3), and for
            each task `<task>.input` and, if it draws them, `<task>.label`, `<task>.mask` and `<task>.weight`; small views are
            `<task>.small`; what `known_columns` gives; the columns of a target. For clips, `image` is the first frame, and
            `frames` uint8 (n, f * s, s, 3) are all of them below each other. A row of weight 0 could not be decoded; it keeps its
            place and its pixels are zero. Columns are numpy arrays; pixels that stay on a GPU are torch tensors.
        failures: the reason for each row of weight 0.
        seconds: time spent in each stage, by name.
        cpu: processor time of this process in each stage, by name, seconds.
    """

    columns: Columns
    failures: dict[int, str]
    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def known_columns(recipe: Recipe, samples: Sequence[Sample]) -> Columns:
    """What is known of samples: `class`, int64 (n,), and for each of `corpus.annotations` the labels, `annotation.<name>`, int64
    (n,), -1 where there is none; where a column weighs them, `annotation.<name>.weight`, float32 (n,), too.
    """
    found: Columns = {"class": np.array([sample.label for sample in samples], np.int64)}
    for k, (name, spec) in enumerate(recipe.corpus.annotations.items()):
        labels = [sample.annotations[k] if sample.annotations else NO_LABEL for sample in samples]
        found[f"{ANNOTATION}{name}"] = np.array(labels, np.int64)
        if spec.weight:
            weights = [sample.weights[k] if sample.weights else 0.0 for sample in samples]
            found[f"{ANNOTATION}{name}{WEIGHT}"] = np.array(weights, np.float32)
    return found


def draw_tasks(recipe: Recipe, draws: Draws, columns: Columns) -> tuple[dict[str, Drawn], Columns]:
    """Draw the parameters of a recipe's tasks; returns them by task name, and the columns that are drawn and not rendered.

    Args:
        recipe: the recipe.
        draws: of the samples.
        columns: what is known of the samples: `known_columns`, and any others.
    """
    known = {name: column for name, column in columns.items() if name == "class" or name.startswith(ANNOTATION)}
    per_task = {name: task.draw(draws.stream(name), recipe.image.size) | task.given(known) for name, task in recipe.tasks.items()}
    return per_task, {f"{name}.{key}": d[key] for name, d in per_task.items() for key in ("label", "mask", "weight") if key in d}


class Renderer:
    """Renders samples by a recipe; it has an engine, and no state that changes.

    Args:
        recipe: the recipe.
        threads: CPU threads of the engine.
        center: whether to take the centre of each photo, unmirrored, as evaluation does, whatever the recipe's crop is; all of it
            where the target asks for that.
        gpu: the GPU on which to leave the pixels, None for the host; see `pipeline.rendering.engine.build_engine`.
        image: whether to make the column `image`; False leaves it out if no task needs the crop. Other columns are the same.
        target: what is read of each sample beside its image, and moved as its crop is cut; None reads nothing more.
    """

    def __init__(
        self,
        recipe: Recipe,
        threads: int = 1,
        center: bool = False,
        gpu: int | None = None,
        image: bool = True,
        target: Target | None = None,
    ) -> None:
        self._target = target
        self._recipe, self._center = recipe, center or recipe.image.crop == "center"
        self._flip = recipe.image.flip and not center
        self._frames = recipe.corpus.frames or 1
        self._views = with_views(recipe.tasks, recipe.image.size)
        # With image.reduced the crop is made in any case: by how much a photo is reduced depends on all of its windows.
        self._crop = image or self._frames > 1 or recipe.image.reduced or len(self._views) < max(1, len(recipe.tasks))
        self._shapes = pixel_shapes(recipe.tasks, recipe.image.size, self._frames, self._crop)
        self.engine: Engine = build_engine(recipe, threads, gpu, self._crop)

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Pairs:
        """Draw parameters for each sample and render it.

        Args:
            samples: the samples, as a corpus's `read` returns them.
            epoch: number of the epoch, from 0; each epoch has other parameters.
        """
        started = Clock()
        headers: list[Header] = []
        failures: dict[int, str] = {}
        good: list[int] = []
        targets: list[Any] = [None] * len(samples)
        for row, sample in enumerate(samples):
            found = sample.problem or check_frames(sample.files(), self._recipe.image.max_pixels)
            try:
                if not isinstance(found, str) and self._target is not None:
                    targets[row] = self._target.read(sample.target, found[0].height, found[0].width)
            except BadTarget as error:
                found = str(error)
            if isinstance(found, str):
                failures[row] = found
            else:
                headers += found
                good.append(row)
        checked = Clock()
        ids = np.array([sample.id for sample in samples], np.uint64)
        rows = np.array(good, np.int64)
        known = known_columns(self._recipe, samples)
        request, drawn, cut = self._draw(headers, rows, Draws(self._recipe.seed, epoch, ids), known)
        pixels, undecoded = self.engine.run(request)
        failures |= {int(rows[i]): reason for i, reason in undecoded.items()}
        for row in failures:
            targets[row] = None
        columns: Columns = {
            "id": ids,
            "weight": np.ones(len(samples), np.float32),
            **known,
            **self._whole(pixels, rows, len(samples)),
            **drawn,
            **({} if self._target is None else self._target.columns(targets, cut)),
        }
        for row in failures:
            columns["weight"][row] = 0
            for name in self._shapes:
                columns[name][row] = 0
        stages = {"check": checked.since(started), "render": Clock().since(checked)}
        return Pairs(columns, failures, *({name: spent[k] for name, spent in stages.items()} for k in (0, 1)))

    def _draw(self, headers: list[Header], rows: np.ndarray, draws: Draws, known: Columns) -> tuple[Request, Columns, Crops]:
        """Draw everything that is random: columns and crops for all samples, and a request for those that can be decoded.

        A sample's frames have the same size and the same crop.
        """
        per_task, columns = draw_tasks(self._recipe, draws, known)
        crops = draws.of(rows).stream("crop")
        heights, widths, orientations = (
            np.array([getattr(header, name) for header in headers], np.int64) for name in ("height", "width", "orientation")
        )
        frames, own = self._frames, slice(None, None, self._frames)
        if self._center:
            whole = self._target is not None and self._target.whole
            upright = (whole_windows if whole else center_windows)(heights[own], widths[own])
        else:
            upright = random_windows(crops, heights[own], widths[own], self._recipe.image.scale, self._recipe.image.ratio)
        windows, turn, mirror = stored(upright.repeat(frames, axis=0), heights, widths, orientations)
        flipped = flips(crops) if self._flip else np.zeros(len(rows), bool)
        mirror[:, 0] ^= flipped.repeat(frames)
        n = draws.stream("crop").n
        cut = Crops(np.zeros((n, 4), np.int32), np.zeros(n, bool), self._recipe.image.size)
        cut.windows[rows], cut.mirror[rows] = upright, flipped
        drawn = {name: {key: value[rows] for key, value in d.items()} for name, d in per_task.items()}
        encoded, streams = [header.encoded for header in headers], [header.stream for header in headers]
        request = Request(encoded, streams, windows, turn, mirror, drawn, frames)
        if self._views:
            chance, of = draws.of(rows), (heights[own], widths[own], orientations[own])
            views = {
                name: task.windows(chance.stream(name), *of[:2], self._recipe.image.size) for name, task in self._views.items()
            }
            add_views(request, views, *of, crop=self._crop)
        return request, columns, cut

    def _whole(self, pixels: Columns, rows: np.ndarray, n: int) -> Columns:
        """Pixel columns of all n rows; rows that were not decoded are zero."""
        if len(rows) == n:
            return pixels
        whole = {}
        for name, column in pixels.items():
            shape, here = (n, *self._shapes[name]), isinstance(column, np.ndarray)
            whole[name] = np.zeros(shape, np.uint8) if here else column.new_zeros(shape)
            whole[name][rows if here else rows_on(column.device, rows)] = column
        return whole
