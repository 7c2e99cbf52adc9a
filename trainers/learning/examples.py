"""What a pretrained network does with some photos, as pictures: its answers where they are images, and nearest neighbours."""

from __future__ import annotations

import io
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.ordering.order import Geometry, Schedule
from pipeline.rendering.units import UnitRenderer, UnitSource
from pipeline.storage import exists, read_all, write_atomic
from trainers.learning.answers import figures
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import signed, to_device
from trainers.objectives.adversarial import AdversarialObjective
from trainers.objectives.pixels import PixelsObjective

SAMPLES = 128
"""Photos among which neighbours are looked for; all are rendered by the command itself."""

SHOWN, NEIGHBOURS = 6, 5

_PART = 16  # photos that are computed at a time

Pictures = dict[str, np.ndarray]


def example_columns(source: UnitSource) -> dict[str, Any]:
    """Render up to `SAMPLES` photos from all over the corpus, their centres, with all tasks; those that cannot be decoded are
    left out."""
    corpus = source.corpus
    wanted = min(SAMPLES, corpus.samples)
    lanes = Geometry(batch=wanted, lanes=wanted, groups=1, window=1)  # a unit takes one sample of each part
    schedule = Schedule(corpus.counts, lanes, source.recipe.seed, 1, tail="pad")
    chosen = UnitSource(source.recipe, corpus, schedule, image=True, center=True)
    with closing(UnitRenderer(chosen, source.recipe.placement.threads, in_child=True)) as render:
        columns = render(chosen.read(0))
    good = np.flatnonzero(columns["weight"])
    return {name: column[good] for name, column in columns.items()}


@torch.no_grad()
def example_pictures(model: PretextModel, columns: dict[str, Any]) -> Pictures:
    """Make the pictures.

    Args:
        model: the network; it is in evaluation mode afterwards.
        columns: a batch of all tasks, see `example_columns`.

    Returns:
        uint8 arrays: for each task whose label is an image `<task>.input`, `<task>.answer` and `<task>.target`, (n, h, w, c), and
        `<task>.before`, the answer before an adversary began to judge, if there was one; and `neighbours`, (n, 1 + k, h, w, 3):
        photos, each followed by those whose features are most like its own.
    """
    model.eval()
    batch, found = to_device(columns, "cpu"), {}
    photos = batch["image"]
    chosen = torch.linspace(0, max(0, len(photos) - 1), min(SHOWN, len(photos))).round().long()
    few = {name: signed(column)[chosen] for name, column in batch.items()}
    for name, objective in model.objectives.items():
        if isinstance(objective, PixelsObjective) and len(few["weight"]):
            found[f"{name}.input"] = few[f"{name}.input"].numpy()
            found |= {f"{name}.{part}": _as_bytes(image) for part, image in _painted(model, objective, few, name).items()}
    if len(photos) > NEIGHBOURS:
        embedding = model.backbone.embedding()
        features = F.normalize(torch.cat([embedding(model.pixels(part)).float() for part in photos.split(_PART)]), dim=1)
        likeness = features @ features.T
        likeness.fill_diagonal_(-torch.inf)
        nearest = likeness[chosen].topk(NEIGHBOURS, dim=1).indices
        found["neighbours"] = photos[torch.cat([chosen[:, None], nearest], dim=1)].numpy()
    return found


@torch.no_grad()
def example_figures(model: PretextModel, columns: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the network's answers, and those before an adversary began, on all examples.

    Returns:
        For each task whose label is an image, by `answer` and `before`, what `trainers.learning.answers.figures` returns.
        Arguments as of `example_pictures`.
    """
    model.eval()
    batch, found = {name: signed(column) for name, column in to_device(columns, "cpu").items()}, {}
    rows = len(batch["weight"])
    for name, objective in model.objectives.items():
        if isinstance(objective, PixelsObjective) and rows:
            parts = [
                _painted(model, objective, {key: column[first : first + _PART] for key, column in batch.items()}, name)
                for first in range(0, rows, _PART)
            ]
            whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            target = whole.pop("target")
            found[name] = {key: figures(images, target) for key, images in whole.items()}
    return found


def write_pictures(url: str, pictures: Pictures, identity: str) -> None:
    """Write pictures with the identity of the run that made them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, identity=np.array(identity), **pictures)  # type: ignore[arg-type]
    with write_atomic(url) as file:
        file.write(buffer.getvalue())


def read_pictures(url: str, identity: str) -> Pictures:
    """Read the pictures of a run; none if there are none, or they are those of another run."""
    if not exists(url):
        return {}
    with np.load(io.BytesIO(read_all(url)), allow_pickle=False) as content:
        pictures = dict(content)
    return pictures if str(pictures.pop("identity", "")) == identity else {}


def _painted(model: PretextModel, objective: PixelsObjective, batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Images, float (n, 3, h, w) in 0..1: `answer`, `target`, and `before` if there was an adversary."""
    answers = {"answer": objective.answer(model.backbone, batch, name, model.pixels)}
    if isinstance(objective, AdversarialObjective):
        before = objective.answer_before(batch, name, model.pixels)
        answers |= {} if before is None else {"before": before}
    images = {part: objective.shown(answer.float(), batch, name) for part, answer in answers.items()}
    return {**images, "target": objective.target(batch, name)}


def _as_bytes(image: Tensor) -> np.ndarray:
    """uint8 (n, h, w, 3) of float (n, 3, h, w) in 0..1."""
    return (255 * image).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
