"""Pictures of pairs, for people: samples of the corpus on a contact sheet, each task's input and label beside the crop."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from cluster.pictures.gallery import PictureColumn, as_html
from pipeline import storage
from pipeline.draws import Draws
from pipeline.engines import gpus_visible
from pipeline.errors import RunError, UserError
from pipeline.labels import Colours, Pixels, Region, Views
from pipeline.materialize.rendered import is_rendered
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import engine_name
from pipeline.rendering.renderer import Columns, draw_tasks
from pipeline.rendering.units import UnitRenderer, UnitSource
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_training_corpus
from pipeline.tasks import Task, registry

_CELL, _GAP = 192, 9  # side of a picture, and the gap between the patches in it, pixels
_SQUARES_FROM = 3  # enlarged by so much, single pixels are to be seen
_LEAST_WIDTH, _WIDEST = 480, 2300  # of all columns; what is wider goes below
_LINE = 20
_MARGIN, _BETWEEN_TASKS, _WITHIN_TASK, _BETWEEN_ROWS = 40, 36, 10, 26
_INK, _QUIET, _RULE, _PAPER, _MARK = "#1c2330", "#6a7385", "#d9dde4", "#ffffff", "#e4572e"
_TRIES = 10  # so many bad samples in the place of each good one, and the corpus is not worth a picture


def sheet(recipe: Recipe, samples: int = 5, epoch: int = 0, progress: Callable[[int, int], None] | None = None) -> Image.Image:
    """Draw real pairs: a row a sample, first the crop, then for each task its input and, where the label is an image, that too.

    The samples come from all over the corpus, in another order for another seed or epoch; those that cannot be decoded are passed
    over.

    Args:
        recipe: corpus, image, tasks, seed and engine are read.
        samples: how many rows; fewer where the corpus is smaller.
        epoch: whose drawing to show.
        progress: for shards without an index, see `open_training_corpus`.

    Returns:
        An RGB image as large as it needs to be.

    Raises:
        UserError: no such shards, or a rendered corpus.
        RunError: hardly a sample can be decoded.
    """
    return _paint(*_gathered(recipe, samples, epoch, progress))


def page(recipe: Recipe, samples: int = 5, epoch: int = 0, progress: Callable[[int, int], None] | None = None) -> str:
    """The same as a page of HTML with all pictures in it, a part a task; arguments and errors as of `sheet`."""
    return as_html(*_gathered(recipe, samples, epoch, progress))


def with_all_tasks(recipe: Recipe) -> Recipe:
    """The recipe with every registered task, those that it lacks with their defaults where these fit its images and frames.

    Tasks of the images' own classes are left out: by default they expect a number of classes that the corpus may not have.
    """
    tasks = dict(recipe.tasks)
    for name, cls in registry().items():
        if cls.learns_classes:
            continue
        try:
            task = cls.model_validate({})
            recipe.check_task(task)
        except ValueError:
            continue
        tasks.setdefault(name, task)
    return recipe.model_copy(update={"tasks": tasks})


def save(picture: Image.Image | str, url: str) -> None:
    """Write a sheet as PNG, or a page as HTML, whole or not at all.

    Raises:
        UserError: another kind of file is asked for, or it cannot be written there.
    """
    ending = ".html" if isinstance(picture, str) else ".png"
    if not url.lower().endswith(ending):
        raise UserError(f"{url}: this is a file for a name that ends in {ending}")
    try:
        with storage.write_atomic(url) as file:
            if isinstance(picture, str):
                file.write(picture.encode())
            else:
                picture.save(file, "PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{url} cannot be written: {error.strerror or error}") from None


def _gathered(
    recipe: Recipe, samples: int, epoch: int, progress: Callable[[int, int], None] | None
) -> tuple[str, str, list[PictureColumn]]:
    """Title, facts and columns of a sheet."""
    if is_rendered(recipe):
        raise UserError(f"{recipe.corpus.shards} is a rendered corpus: its pairs are files, which any viewer shows")
    corpus = open_training_corpus(recipe.corpus, progress, recipe.seed)
    batch, keys = _pairs(recipe, corpus, min(samples, corpus.samples), epoch)
    columns = [_crops(batch, keys, corpus.classes)]
    drawn, _ = draw_tasks(recipe, Draws(recipe.seed, epoch, batch["id"]), batch)
    for name, task in recipe.tasks.items():
        rows = [{key: value[i] for key, value in drawn[name].items()} for i in range(len(keys))]
        columns.append(_task(name, task, batch, rows))
    engine = engine_name(recipe)
    if engine == "dali":
        engine += " on the GPU" if gpus_visible() else " on the CPU"
    size = recipe.image.size
    facts = [f"seed {recipe.seed}", f"epoch {epoch}", f"engine {engine}", f"{size} x {size} pixels"]
    return recipe.name, "   ·   ".join([*facts, f"{len(keys)} of {corpus.samples:,} samples"]), columns


def _pairs(recipe: Recipe, corpus: Corpus, wanted: int, epoch: int) -> tuple[Columns, list[str]]:
    """Columns and keys of samples that can be decoded, rendered as training renders them."""
    lanes = Geometry(batch=max(wanted, 1), lanes=max(wanted, 1), groups=1, window=1)  # a unit takes one sample of each part
    schedule = Schedule(corpus.counts, lanes, recipe.seed, epoch + 1, tail="pad")
    source = UnitSource(recipe, corpus, schedule, epoch * schedule.steps_per_epoch)
    parts: list[Columns] = []
    keys: list[str] = []
    reason = ""
    with closing(UnitRenderer(source, recipe.placement.threads, in_child=True)) as render:
        for number in range(min(_TRIES, schedule.steps_per_epoch)):
            unit = source.read(number)
            columns = render(unit)
            good = np.flatnonzero(columns["weight"])[: wanted - len(keys)]
            reason = next((str(text) for text in columns["failure"] if text), reason)
            parts.append({name: column[good] for name, column in columns.items()})
            keys += [unit.samples[i].key for i in good]
            if len(keys) == wanted:
                break
    if not keys:
        raise RunError(f"none of the first samples of the corpus could be decoded, the last because of: {reason}")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, keys


def _crops(batch: Columns, keys: list[str], classes: list[str] | None) -> PictureColumn:
    captions = []
    for key, label in zip(keys, batch["class"].tolist()):
        name = classes[label] if classes and 0 <= label < len(classes) else f"class {label}" if label >= 0 else ""
        captions.append(key if not name or key.startswith(f"{name}/") else f"{key} ({name})")
    crops = batch["image"]
    if "frames" in batch:
        crops = batch["frames"].reshape(len(keys), -1, *crops.shape[1:])
    return PictureColumn(["crop"], [[_picture(image)] for image in crops], captions)


def _task(name: str, task: Task, batch: Columns, drawn: list[dict[str, Any]]) -> PictureColumn:
    kind = task.label_kind()
    headings, pictures = [name], [[_picture(image)] for image in batch[f"{name}.input"]]
    if isinstance(kind, Views):
        headings += [f"view {k}" for k in range(2, kind.count + 1)]
        pictures = [[_picture(view) for view in views] for views in batch[f"{name}.input"]]
    if isinstance(kind, Views) and kind.small:
        headings.append("small views")
        for i, views in enumerate(batch[f"{name}.small"]):
            pictures[i].append(_picture(views))
    if isinstance(kind, Region):
        headings.append("label")
        for i, given in enumerate(batch[f"{name}.input"]):
            pictures[i].append(_outlined(_fitted(Image.fromarray(given)), batch[f"{name}.mask"][i]))
    if isinstance(kind, Pixels):
        headings.append("label")
        own = f"{name}.{kind.target}"
        for i, target in enumerate(batch[own if own in batch else kind.target]):
            picture = _chroma(target) if kind.channels == "chroma" else Image.fromarray(target)
            picture = _fitted(picture)
            if kind.masked:
                picture = _outlined(picture, batch[f"{name}.mask"][i])
            pictures[i].append(picture)
    if isinstance(kind, Colours):
        headings.append("label")
        for i, target in enumerate(batch[kind.target]):
            picture = _fitted(_in_palette(target, kind))
            pictures[i].append(_outlined(picture, batch[f"{name}.mask"][i]) if kind.masked else picture)
    about = ((type(task).__doc__ or "").split("\n\n")[0], task.source)
    return PictureColumn(headings, pictures, [task.caption(row) for row in drawn], about)


def _picture(pixels: np.ndarray) -> Image.Image:
    """An input as a picture: uint8 (h, w, 1 or 3), or (k, h, w, c) as a grid with gaps."""
    if pixels.ndim == 3:
        return _fitted(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    across = math.ceil(math.sqrt(len(pixels)))
    side = (_CELL - _GAP * (across - 1)) // across
    grid = Image.new("RGB", (_CELL, _CELL), _PAPER)
    for k, patch in enumerate(pixels):
        picture = _fitted(Image.fromarray(patch[:, :, 0] if patch.shape[2] == 1 else patch), side)
        grid.paste(picture, (k % across * (side + _GAP), k // across * (side + _GAP)))
    return grid


def _fitted(picture: Image.Image, side: int = _CELL) -> Image.Image:
    """Scaled so that its longer side has `side` pixels; small pictures show their pixels as squares."""
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if factor >= _SQUARES_FROM else Image.Resampling.LANCZOS)


def _chroma(image: np.ndarray) -> Image.Image:
    """The two colour-difference channels alone, at one brightness."""
    _, blue, red = Image.fromarray(image).convert("YCbCr").split()
    return Image.merge("YCbCr", (Image.new("L", blue.size, 150), blue, red)).convert("RGB")


def _in_palette(image: np.ndarray, kind: Colours) -> Image.Image:
    """The small version of an image in the label's colours; colours of chroma at one brightness."""
    side = kind.side or len(image) // 4
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    palette = np.array(kind.palette)
    if palette.shape[1] == 3:
        pixels = np.asarray(small, float)
        nearest = ((pixels[:, :, None] - palette) ** 2).sum(axis=3).argmin(axis=2)
        return Image.fromarray(palette[nearest].astype(np.uint8))
    pixels = np.asarray(small.convert("YCbCr"), float)[:, :, 1:] - 128
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(axis=3).argmin(axis=2)
    chroma = np.clip(palette[nearest] + 128, 0, 255)
    return Image.fromarray(np.concatenate([np.full((side, side, 1), 150), chroma], axis=2).astype(np.uint8), "YCbCr").convert(
        "RGB"
    )


def _outlined(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with a line around what the mask covers, with dark edges, so that it is seen on any colour."""
    area = Image.fromarray(mask * 255).resize(picture.size, Image.Resampling.NEAREST)
    marked = picture.copy()
    for width, colour in ((5, _INK), (3, _MARK)):
        line = ImageChops.difference(area.filter(ImageFilter.MaxFilter(width)), area.filter(ImageFilter.MinFilter(width)))
        marked.paste(colour, mask=line)
    return marked


# Typeset by hand: matplotlib wraps text at the edge of the figure, not of a column, so wrapping would be ours all the same.
def _paint(title: str, facts: str, columns: list[PictureColumn]) -> Image.Image:
    large, small = ImageFont.load_default(34), ImageFont.load_default(15)
    bands = [_band(band) for band in _bands(columns)]
    width = max(2 * _MARGIN + _LEAST_WIDTH, *(band.width for band in bands))
    lines = _wrapped(facts, width - 2 * _MARGIN, small)
    head = 100 + _LINE * (len(lines) - 1)
    paper = Image.new("RGB", (width, head + sum(band.height for band in bands)), _PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((_MARGIN, 58), _clipped(title, width - 2 * _MARGIN, large), _INK, large, anchor="ls")
    for k, text in enumerate(lines):
        pen.text((_MARGIN, 84 + k * _LINE), text, _QUIET, small, anchor="ls")
    for band in bands:
        paper.paste(band, (0, head))
        head += band.height
    return paper


def _bands(columns: list[PictureColumn]) -> list[list[PictureColumn]]:
    """The columns in as many bands as the sheet's width asks for, each with the crops first."""
    crops, *tasks = columns
    bands, wide = [[crops]], _span(crops)
    for column in tasks:
        if wide + _BETWEEN_TASKS + _span(column) > _WIDEST and len(bands[-1]) > 1:
            bands.append([crops])
            wide = _span(crops)
        bands[-1].append(column)
        wide += _BETWEEN_TASKS + _span(column)
    return bands


def _widths(column: PictureColumn) -> list[int]:
    return [max(row[k].width for row in column.pictures) for k in range(len(column.headings))]


def _span(column: PictureColumn) -> int:
    return sum(_widths(column)) + _WITHIN_TASK * (len(column.headings) - 1)


def _band(columns: list[PictureColumn]) -> Image.Image:
    """Columns beside each other, with their headings."""
    small = ImageFont.load_default(15)
    spans = [_span(column) for column in columns]
    captions = [[_wrapped(text, span, small) for text in column.captions] for column, span in zip(columns, spans)]
    rows, head = len(columns[0].pictures), 50
    heights = [max(picture.height for column in columns for picture in column.pictures[i]) for i in range(rows)]
    words = [max(len(of_column[i]) for of_column in captions) * _LINE for i in range(rows)]
    width = 2 * _MARGIN + sum(spans) + _BETWEEN_TASKS * (len(columns) - 1)
    height = head + sum(heights) + sum(words) + rows * 8 + (rows - 1) * _BETWEEN_ROWS + _MARGIN
    paper = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(paper)
    left = _MARGIN
    for column, span, of_column in zip(columns, spans, captions):
        pen.line((left, head - 14, left + span - 1, head - 14), _RULE, 2)
        top = head
        for i in range(rows):
            x = left
            for picture, wide, heading in zip(column.pictures[i], _widths(column), column.headings):
                paper.paste(picture, (x, top))
                if i == 0:
                    font = _fitting(heading, wide)
                    pen.text((x, head - 24), _clipped(heading, wide, font), _INK if x == left else _QUIET, font, anchor="ls")
                x += wide + _WITHIN_TASK
            for k, text in enumerate(of_column[i]):
                pen.text((left, top + heights[i] + 8 + 14 + k * _LINE), text, _QUIET, small, anchor="ls")
            top += heights[i] + 8 + words[i] + _BETWEEN_ROWS
        left += span + _BETWEEN_TASKS
    return paper


def _fitting(text: str, width: int) -> Any:
    """The font of a heading, smaller where the text is too long for `width` pixels."""
    size = 20
    while size > 14 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """Lines no wider than `width` pixels, two at most."""
    lines: list[str] = []
    for given in text.split("\n"):
        lines.append("")
        for word in given.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if not lines[-1] or font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    kept = lines if len(lines) <= 2 else [lines[0], " ".join(lines[1:])]
    return [_clipped(one, width, font) for one in kept]


def _clipped(text: str, width: int, font: Any) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
