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
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import signed, to_device
from trainers.objectives.pixels import PixelsObjective

SAMPLES = 128
"""Photos among which neighbours are looked for; all are rendered by the command itself."""

SHOWN, NEIGHBOURS = 6, 5

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
        uint8 arrays: for each task whose label is an image `<task>.input`, `<task>.answer` and `<task>.target`, (n, h, w, c);
        and `neighbours`, (n, 1 + k, h, w, 3): photos, each followed by those whose features are most like its own.
    """
    model.eval()
    batch, found = to_device(columns, "cpu"), {}
    photos = batch["image"]
    chosen = torch.linspace(0, max(0, len(photos) - 1), min(SHOWN, len(photos))).round().long()
    few = {name: signed(column)[chosen] for name, column in batch.items()}
    for name, objective in model.objectives.items():
        if isinstance(objective, PixelsObjective) and len(few["weight"]):
            answer = objective.answer(model.backbone, few, name, model.pixels).float()
            found[f"{name}.input"] = few[f"{name}.input"].numpy()
            found[f"{name}.answer"] = _as_bytes(objective.shown(answer, few, name))
            found[f"{name}.target"] = _as_bytes(objective.target(few, name))
    if len(photos) > NEIGHBOURS:
        embedding = model.backbone.embedding()
        features = F.normalize(torch.cat([embedding(model.pixels(part)).float() for part in photos.split(16)]), dim=1)
        likeness = features @ features.T
        likeness.fill_diagonal_(-torch.inf)
        nearest = likeness[chosen].topk(NEIGHBOURS, dim=1).indices
        found["neighbours"] = photos[torch.cat([chosen[:, None], nearest], dim=1)].numpy()
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


def _as_bytes(image: Tensor) -> np.ndarray:
    """uint8 (n, h, w, 3) of float (n, 3, h, w) in 0..1."""
    return (255 * image).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
