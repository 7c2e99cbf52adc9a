"""Names the class of every image of a corpus by a fine-tuned network: Parquet tables beside it, each shard exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.commit import write_json
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import CHUNK, known_sums
from pipeline.materialize.run import asked, corpus_of, engine_chosen
from pipeline.recipe.schema import Recipe
from pipeline.storage import absolute
from pipeline.streaming.connection import connect_ray
from trainers.downstream.classifier import Classifier
from trainers.labelling.information import counted_with_class, mutual_information
from trainers.labelling.network_job import (
    BATCH,
    PIXELS,
    NetworkJob,
    check_corpus,
    images_alone,
    machine_identity,
    read_table,
    table_schema,
)
from trainers.labelling.weights import WeightsFile, classifier_url, read_classifier

VERSION = 1
LABELS = "labels"
REPORT = "report.json"
TOP = 5

_NOT_FINITE = "the network's answer is not finite"
_LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def label(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    top: int = TOP,
    retry_failed: bool = False,
    indexing: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> tuple[JobReport, dict[str, Any]]:
    """Let a fine-tuned network name the class of every image of a recipe's corpus; after an interruption the same call goes on.

    The centre of each photo goes through the network in evaluation mode, as `embed` does it, with the same promises. For each
    shard a Parquet table has the columns `key`, `id`, `row` in the shard, `class` where the shards have labels, `label`, the
    number of the most probable class, `confidence`, its probability, `margin`, by how much that of the next class is lower, and
    `top` and `scores`, the most probable classes and their probabilities. Probabilities are the softmax of the network's answers;
    they are not calibrated.

    Args:
        recipe: the recipe; its `corpus`, `image`, `placement` and `training.backbone` count.
        out: folder for the result, path or URL.
        run: folder of the run whose `classifier.pt` is taken, instead of the recipe's own.
        top: how many of the most probable classes are written.
        retry_failed: try those shards again that failed in an earlier run.
        indexing: called with (shards indexed, shards to index).
        progress: called after each shard.
        chunk: samples read and decoded at a time; what is written does not depend on it.
        here: compute in this process, without Ray.

    Returns:
        What was done, and the report, which is in the folder, too: how many images each class has, how many labels reach some
        levels of confidence, and the mutual information with the labels of the shards, where they have some.

    Raises:
        UserError: no classifier, no shards, or the folder holds something else.
        BudgetExceeded: too many samples cannot be used.
        RunError: storage refused an output, or the job failed; committed shards are kept.
    """
    job = label_job(recipe, out, run, top, indexing, chunk, here)
    report = materialize(job, retry_failed, progress, here)
    return report, json.loads(storage.read_all(job.url(REPORT)))


def label_job(
    recipe: Recipe,
    out: str,
    run: str | None = None,
    top: int = TOP,
    indexing: Callable[[int, int], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> LabelJob:
    """Make the job of `label`, before any output is written; arguments and errors as there."""
    file, classes = check(recipe, out, run, top)
    if not here:
        connect_ray()
    recipe = engine_chosen(images_alone(recipe), here)
    machine = asked(partial(_machine, recipe, len(classes)), recipe, here)
    corpus = corpus_of(recipe, indexing)
    top = min(top, len(classes))
    identity = {
        "version": VERSION,
        "makes": LABELS,
        "by": "label",
        "corpus": recipe.corpus.model_dump(mode="json", include={"image", "keys"}),
        "image": recipe.image.model_dump(mode="json", include=PIXELS),
        "backbone": recipe.training.backbone.architecture(),
        "weights": file.sha256,
        "top": top,
        "batch": BATCH,
        **machine,
    }
    return LabelJob(recipe, corpus, absolute(out), identity, known_sums(corpus), chunk, weights=file, classes=classes, top=top)


def check(recipe: Recipe, out: str, run: str | None = None, top: int = TOP) -> tuple[WeightsFile, tuple[str, ...]]:
    """Check, before anything is started, that labels can be computed and written; arguments and errors as of `label`.

    Returns:
        The file of the classifier, and the names of its classes.
    """
    if top < 1:
        raise UserError(f"--top {top}: at least one class is written")
    check_corpus(recipe, "labels")
    _, classes, file = read_classifier(classifier_url(recipe, run), recipe)
    check_access(out)
    return file, tuple(classes)


class _Logits(nn.Module):
    """From normalised images to logits, float (n, classes)."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model.head(self.model.backbone(images).vector)
        return logits


def _machine(recipe: Recipe, classes: int) -> dict[str, Any]:
    return machine_identity(recipe, lambda: _Logits(Classifier(recipe, classes, None)).eval())


@dataclass(frozen=True)
class LabelJob(NetworkJob):
    """The naming of classes: each shard becomes a table of labels.

    Args:
        classes: the names of the classes.
        top: as of `label`, at most as many as there are classes.
    """

    command = "label"
    past = "labelled"
    makes = LABELS

    classes: tuple[str, ...] = field(kw_only=True)
    top: int = field(kw_only=True)

    def machine(self) -> dict[str, Any]:
        return _machine(self.recipe, len(self.classes))

    def network(self) -> tuple[nn.Module, WeightsFile]:
        model, _, file = read_classifier(self.weights.url, self.recipe)
        return _Logits(model), file

    def schema(self, network: nn.Module) -> pa.Schema:
        return self._schema

    @cached_property
    def _schema(self) -> pa.Schema:
        return table_schema(
            pa.field("label", pa.int32()),
            pa.field("confidence", pa.float32()),
            pa.field("margin", pa.float32()),
            pa.field("top", pa.list_(pa.int32(), self.top)),
            pa.field("scores", pa.list_(pa.float32(), self.top)),
        )

    def described(self) -> dict[str, Any]:
        names = ("label", "confidence", "margin", "top", "scores")
        columns = [{"name": name, "dtype": str(self._schema.field(name).type)} for name in names]
        return {"columns": columns, "classes": list(self.classes)}

    def columns(self, answers: np.ndarray) -> tuple[Mapping[str, Any], np.ndarray, str]:
        finite = np.isfinite(answers).all(1)
        logits = answers[finite].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        shares /= shares.sum(1, keepdims=True)
        order = np.argsort(-shares, axis=1, kind="stable")
        falling = np.take_along_axis(shares, order, 1)
        second = falling[:, 1] if falling.shape[1] > 1 else 0
        top, scores = (part[:, : self.top] for part in (order.astype(np.int32), falling.astype(np.float32)))
        schema = self._schema
        return (
            {
                "label": top[:, 0],
                "confidence": scores[:, 0],
                "margin": (falling[:, 0] - second).astype(np.float32),
                "top": pa.FixedSizeListArray.from_arrays(pa.array(top.ravel()), type=schema.field("top").type),
                "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), type=schema.field("scores").type),
            },
            ~finite,
            _NOT_FINITE,
        )

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables of labels."""
        sizes, levels, total = np.zeros(len(self.classes), np.int64), np.zeros(len(_LEVELS), np.int64), 0.0
        pairs = np.zeros((0, 3), np.int64)
        for name in outputs:
            table = read_table(self.url(name), ["class", "label", "confidence"])
            labels, confidence = table.column("label").to_numpy(), table.column("confidence").to_numpy()
            sizes += np.bincount(labels, minlength=len(sizes))
            levels += [int((confidence >= level).sum()) for level in _LEVELS]
            total += float(confidence.sum(dtype=np.float64))
            pairs = counted_with_class(pairs, labels, table.column("class").fill_null(-1).to_numpy())
        report = {
            "images": int(sizes.sum()),
            "classes": list(self.classes),
            "sizes": sizes.tolist(),
            "confidence": total / max(1, int(sizes.sum())),
            "reached": {str(level): int(count) for level, count in zip(_LEVELS, levels)},
            "labels": mutual_information(pairs) if len(pairs) else None,
        }
        write_json(self.url(REPORT), report)
        return (REPORT,)
