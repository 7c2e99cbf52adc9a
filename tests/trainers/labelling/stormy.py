"""Commands that write tables, on a corpus for storms: what to run under kills, and what it leaves undisturbed."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.recipe import load_recipe
from tests.pipeline.materialize.storm import prepare
from tests.trainers.labelling.conftest import random_classifier, random_weights
from trainers.labelling.cluster import cluster
from trainers.labelling.embed import embed
from trainers.labelling.label import label

WORKS = ("embed", "label", "cluster")
PAUSE = (0.5, 5.0)
"""Seconds between two kills: an actor loads torch and its network before it does a shard."""


def stormy_work(work: str, folder: Path, images: int) -> tuple[list[str], Path]:
    """Prepare a corpus for a command, and run it undisturbed.

    Args:
        work: the command, one of `WORKS`.
        folder: where everything goes.
        images: as of `prepare`.

    Returns:
        The command's words, without `--out`; and what it left.
    """
    path = prepare(folder, images)
    document = yaml.safe_load(path.read_text())
    document["training"] = {"backbone": {"name": "shufflenet_v2_x0_5", "stem": "standard"}}
    path.write_text(yaml.safe_dump({**document, "storage": {"runs": str(folder / "runs")}}))
    recipe, calm = load_recipe(path), folder / "calm"
    if work == "label":
        random_classifier(recipe)
        label(recipe, str(calm), here=True)
        return ["label", str(path)], calm
    weights = random_weights(recipe, folder)
    if work == "embed":
        embed(recipe, str(calm), weights=weights, here=True)
        return ["embed", str(path), "--weights", weights], calm
    features = str(folder / "features")
    embed(recipe, features, weights=weights, here=True)
    cluster(features, 16, str(calm))
    return ["cluster", features, "--k", "16", "--actors", "1"], calm
