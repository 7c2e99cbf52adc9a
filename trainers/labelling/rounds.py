"""Rounds of embedding, clustering and training: DeepCluster, SeLa and ClusterFit, each step exactly once however often killed."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from pipeline.errors import RunError, UserError
from pipeline.materialize.driver import JobReport, Progress
from pipeline.materialize.folder import IDENTITY, MANIFEST
from pipeline.recipe.rounds import Rounds
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training import BackboneSection
from pipeline.storage import absolute, exists, join, make_folder, read_all, write_atomic
from trainers.labelling.cluster import cluster
from trainers.labelling.embed import check as check_embed
from trainers.labelling.embed import embed
from trainers.labelling.features import open_features
from trainers.labelling.network_job import check_corpus
from trainers.labelling.selflabel import selflabel
from trainers.labelling.sinkhorn import evenness
from trainers.labelling.weights import read_weights
from trainers.learning.collapse import Collapsed
from trainers.learning.pretext import PretextModel
from trainers.pretraining import backbone_file, finished_result, log_model, pretrain, replacement_warning
from trainers.running.run_log import Record
from trainers.running.runs import BACKBONE, HEAD, PRETRAINED, RECIPE, RunFolder
from trainers.running.tracking import tracked

ROUNDS, LINES = "rounds", "rounds.json"
"""The folder of the rounds in that of the run, and the file that tells of all of them."""

_FEATURES, _START, _RUN = "features", "start.pt", "run"
_LEAST_CLUSTERS = 2.0  # effective ones; with fewer there is nothing to tell apart

log = logging.getLogger(__name__)

Train = Callable[[Recipe, list[Callable[[Record], None]]], dict[str, Any]]
Shown = Callable[[str], AbstractContextManager[Callable[[Progress], None] | None]]


def _unseen(title: str) -> AbstractContextManager[None]:
    return nullcontext()


def rounds(
    recipe: Recipe,
    listeners: list[Callable[[Record], None]] | None = None,
    shown: Shown = _unseen,
    fresh: bool = False,
    train: Train = pretrain,
    here: bool = False,
) -> dict[str, Any]:
    """Embed, cluster and train in turn, as the recipe's section `rounds` says; after an interruption the same call goes on.

    Round 2 lies in `rounds/002` of the run's folder: `features`, `clusters` (`clusters_2` and so on for further heads) and `run`,
    each left by the function of `embed`, `cluster` or `pretrain`, and recognised by the manifest or result that these leave. At
    the end the run's folder has `backbone.pt` of the last round, as after `pretrain`. Optimizers start fresh in every round, with
    the whole schedule of the learning rate.

    Args:
        recipe: the recipe; its tasks, if it has some, are learnt beside the clusters.
        listeners: called with each log line of the trainings, with `round`, `rounds`, and steps over all rounds.
        shown: called with the title of each step that is no training; yields a function to call after each shard.
        fresh: start again, whatever rounds there are.
        train: trains a round's recipe, as `pretrain` does.
        here: compute features in this process, without Ray; else Ray must be connected.

    Returns:
        What `pretrain` returned for the last round; and `rounds`, for each of them what `rounds.json` has: for each of its
        `clusterings` the effective number of clusters, their sizes, and what they have in common with those of the round
        `before` and with the `labels` of the shards; and of each task loss and metric.

    Raises:
        UserError: the recipe cannot run as it is, or the corpus or the recipe has changed since an earlier round.
        RunError: a shard or a training failed.
        Collapsed: the features are too few, or nearly all images are in one cluster.
    """
    spec, folder = check(recipe), RunFolder(recipe)
    outcome = finished_result(folder)
    if fresh:
        folder.clear(ROUNDS)
        if outcome is not None:
            folder.remove(PRETRAINED)  # else rounds that are then interrupted would be taken for complete
    elif outcome is not None:
        log.warning("%s holds the results of these rounds already; --fresh makes them again", folder.url)
        return outcome
    if warning := replacement_warning(folder, recipe):
        log.warning("%s", warning)
    folder.make()
    with tracked(recipe, ROUNDS) as tracker:
        for number in range(spec.count):
            one = Round(recipe, number)
            if one.result() is None:
                one.check_place()
                one.label(shown, here)
                train(one.training(), [one.told(listener) for listener in (tracker, *(listeners or []))])
            one.tidy()
            folder.write_json(LINES, [Round(recipe, n).line() for n in range(number + 1)])
    return _leave(recipe, one)


def check(recipe: Recipe) -> Rounds:
    """Check, before anything is started, that a recipe describes rounds; errors as of `rounds`."""
    spec = recipe.rounds
    if spec is None:
        raise UserError("the recipe has no section `rounds`, such as `rounds: {method: deepcluster, clusters: 128}`")
    heads = [_numbered(name, head) for name in ("assigned", "clusters") for head in range(spec.heads)]
    taken = [name for name in (*recipe.tasks, *recipe.corpus.annotations) if name in heads]
    if taken:
        raise UserError(f"{taken[0]} is the name of a task or of labels that the rounds add: give yours another one")
    first = Round(recipe, 0)
    if spec.run is not None:
        check_embed(first.embedded(), first.url(_FEATURES), weights=first.weights, layer=spec.layer)
    check_corpus(recipe, "features")
    return spec


def done_rounds(recipe: Recipe) -> int:
    """How many rounds are complete, from the first on."""
    assert recipe.rounds is not None
    results = (Round(recipe, number).result() for number in range(recipe.rounds.count))
    return sum(1 for _ in takewhile(lambda result: result is not None, results))


def _numbered(name: str, head: int) -> str:
    return f"{name}_{head + 1}" if head else name


@dataclass(frozen=True)
class Round:
    """One round: where its parts lie, and what each step makes.

    Args:
        whole: the recipe of all rounds.
        number: of the round, from 0; folders and words count from 1.
    """

    whole: Recipe
    number: int

    @property
    def spec(self) -> Rounds:
        assert self.whole.rounds is not None
        return self.whole.rounds

    @property
    def words(self) -> str:
        """The round in words."""
        return f"round {self.number + 1} of {self.spec.count}"

    def url(self, *names: str) -> str:
        """The URL of something in the round's folder."""
        return join(RunFolder(self.whole).url, "/".join((ROUNDS, f"{self.number + 1:03d}", *names)))

    @property
    def weights(self) -> str:
        """The file of the network whose features are clustered; but for `clusterfit` training starts from it, too."""
        if self.spec.run is not None:
            return join(absolute(self.spec.run), BACKBONE)
        return Round(self.whole, self.number - 1).url(_RUN, BACKBONE) if self.number else self.url(_START)

    @property
    def clusters(self) -> list[str]:
        """The folder of labels of each head."""
        return [self.url(_numbered("clusters", head)) for head in range(self.spec.heads)]

    def training(self) -> Recipe:
        """The recipe of the round's training."""
        scratch = self.spec.method == "clusterfit"
        kept, weights = self.spec.method == "selflabel", self.whole.training.backbone.weights if scratch else self.weights
        return self._recipe(weights, {"balance": self.spec.balance, "head": "kept" if kept else "new"})

    def alike(self) -> Recipe:
        """A recipe whose training costs as much as the round's, for estimates: rotations in place of labels not yet made."""
        document = self.whole.model_dump(mode="json")
        del document["rounds"]
        document["name"] = f"{self.whole.name}-round"
        document["tasks"] |= {f"labels_{head + 1}": {"task": "rotation"} for head in range(self.spec.heads)}
        return Recipe.model_validate(document)

    def embedded(self) -> Recipe:
        """The recipe by which features are computed: with the network that has the weights."""
        backbone = self.whole.training.backbone.model_copy(update={"weights": None})
        if self.spec.run is not None and exists(self.weights):
            saved = torch.load(io.BytesIO(read_all(self.weights)), map_location="cpu", weights_only=True)
            backbone = BackboneSection.model_validate(saved.get("spec", backbone.model_dump()))
        training = self.whole.training.model_copy(update={"backbone": backbone})
        return self.whole.model_copy(update={"training": training, "rounds": None})

    def _recipe(self, weights: str | None, how: dict[str, Any]) -> Recipe:
        """A recipe that learns the labels of this round, with a seed of its own: each draws other crops, in another order."""
        document, heads = self.whole.model_dump(mode="json"), range(self.spec.heads)
        del document["rounds"]
        task = {"task": "assigned", "classes": self.spec.clusters, "weight": 1 / self.spec.heads, **how}
        tables = {_numbered("clusters", head): self.clusters[head] for head in heads}
        tasks = {_numbered("assigned", head): {**task, "annotation": _numbered("clusters", head)} for head in heads}
        document |= {"name": _RUN, "seed": (self.whole.seed + self.number) % 2**63, "storage": {"runs": self.url()}}
        document["tasks"] |= tasks
        document["corpus"]["annotations"] = {**document["corpus"].get("annotations", {}), **tables}
        document["training"]["backbone"] |= {"weights": weights}
        document["tracking"] |= {"tensorboard": False, "mlflow": None, "wandb": None}  # all rounds are tracked together
        return Recipe.model_validate(document)

    def result(self) -> dict[str, Any] | None:
        """What the round's training returned, if that is complete."""
        if not exists(self.weights) or not all(exists(join(place, MANIFEST)) for place in self.clusters):
            return None
        return finished_result(RunFolder(self.training()))

    def check_place(self) -> None:
        """Refuse to make a round before one that is there already: that was made by another recipe."""
        after = Round(self.whole, self.number + 1)
        if exists(after.url(_FEATURES, IDENTITY)):
            raise UserError(
                f"{after.url()} follows a {self.words.partition(' of')[0]} of another recipe: change the recipe back, give it a "
                "name of its own (--set name=...), or start again with --fresh"
            )

    def label(self, shown: Shown = _unseen, here: bool = False) -> None:
        """Compute features and cluster them, as far as that is not done; errors as of `rounds`."""
        if self.spec.run is None and not self.number:
            self.write_start()
        title = f"{ROUNDS}: {self.words}"
        with shown(f"{title}, embedding") as progress:
            _refuse_failed(self._embed(progress, here))
        self._check_corpus()
        for head in range(self.spec.heads):
            with shown(f"{title}, clustering") as progress:
                report, found = self._cluster(head, progress)
            _refuse_failed(report)
            self._check_clusters(found)

    def told(self, listener: Callable[[Record], None]) -> Callable[[Record], None]:
        """A listener for the log lines of this round, which passes them on as lines of all rounds."""
        count, epochs = self.spec.count, self.number * self.whole.training.epochs
        figures = self.line()["figures"]

        def take(record: Record) -> None:
            step, steps = self.number * record["steps"] + record["step"], count * record["steps"]
            place = {"step": step, "steps": steps, "epoch": epochs + record["epoch"], "round": self.number + 1, "rounds": count}
            listener({**record, **place, "stage": ROUNDS, "clusters": figures})

        return take

    def line(self) -> dict[str, Any]:
        """What `rounds.json` tells of the round."""
        found = [json.loads(read_all(join(place, "report.json"))) for place in self.clusters]
        clusterings = [
            {
                "clusters": one["asked"],
                "effective": evenness(one["sizes"]),
                "smallest": min(one["sizes"]),
                "largest": max(one["sizes"]),
                "before": one.get("before"),
                "labels": one["labels"],
            }
            for one in found
        ]
        trained = self.result()
        tasks = {
            name: {"loss": task["loss"][-1], "metric": task["metric"], "trivial": task["trivial"]}
            for name, task in (trained["tasks"] if trained else {}).items()
        }
        return {"round": self.number + 1, "clusterings": clusterings, "figures": _figures(clusterings[0]), "tasks": tasks}

    def tidy(self) -> None:
        """Remove what the end of this round makes needless: the features of the round before, and checkpoints."""
        inner = RunFolder(self.training())
        for stage in inner.stages("pretrain-"):
            inner.clear(stage)
        if self.number and self.spec.keep == "last":
            RunFolder(self.whole).clear(f"{ROUNDS}/{self.number:03d}/{_FEATURES}")

    def write_start(self) -> None:
        """Write the weights from which the first round starts: those of `training.backbone.weights`, or random ones."""
        recipe = self._recipe(self.whole.training.backbone.weights, {})
        buffer = io.BytesIO()
        torch.save(backbone_file(PretextModel(recipe, recipe.seed), recipe, "start"), buffer)
        if not exists(self.weights) or read_all(self.weights) != buffer.getvalue():
            make_folder(self.url())
            with write_atomic(self.weights) as file:
                file.write(buffer.getvalue())

    def _embed(self, progress: Callable[[Progress], None] | None, here: bool) -> JobReport:
        out = self.url(_FEATURES)
        return embed(
            self.embedded(), out, weights=self.weights, layer=self.spec.layer, retry_failed=True, progress=progress, here=here
        )

    def _cluster(self, head: int, progress: Callable[[Progress], None] | None) -> tuple[JobReport, dict[str, Any]]:
        features, out = self.url(_FEATURES), self.clusters[head]
        before = Round(self.whole, self.number - 1).clusters[head] if self.number else None
        if self.spec.method != "selflabel":
            how: dict[str, Any] = {"seed": self.whole.seed + head, "pca": self.spec.pca, "before": before}
            return cluster(features, self.spec.clusters, out, retry_failed=True, progress=progress, **how)
        _, _, file = read_weights(self.weights, self.embedded())
        return selflabel(features, file, _numbered("assigned", head), out, before, retry_failed=True, progress=progress)

    def _check_corpus(self) -> None:
        """Refuse a corpus that is not that of the round before, whose labels and numbers are built upon."""
        before = Round(self.whole, self.number - 1)
        if not self.number or not exists(before.url(_FEATURES, MANIFEST)):
            return
        then, now = (
            open_features(one.url(_FEATURES)).shards.select(["shard", "bytes", "samples"]).to_pylist() for one in (before, self)
        )
        changed = [shard["shard"] for shard in [*then, *now] if (shard in then) != (shard in now)]
        if changed:
            raise UserError(
                f"the corpus has changed since {before.words}, such as {changed[0]}: put it back as it was, or start again with "
                "--fresh"
            )

    def _check_clusters(self, found: dict[str, Any]) -> None:
        """End the run where the clusters tell nothing apart; `failures.collapse` decides."""
        asked, effective = found["asked"], evenness(found["sizes"])
        if found["clusters"] < asked:
            words = f"{found['images']:,} images have {found['clusters']:,} distinct features, and rounds.clusters is {asked:,}"
        elif effective < _LEAST_CLUSTERS:
            words = f"nearly all images are in one of {asked:,} clusters (as if there were {effective:.2f} of equal size)"
        else:
            return
        words = (
            f"{self.words}: {words}: the photos are copies of few, or the network gives them all the same features. Look at "
            "some, lower rounds.clusters, or start from trained weights (training.backbone.weights)"
        )
        if self.whole.failures.collapse == "stop":
            raise Collapsed(f"{words}; with failures.collapse: warn the run continues")
        if self.whole.failures.collapse == "warn":
            log.warning("%s", words)


def _figures(clustering: dict[str, Any]) -> dict[str, float]:
    """What trackers are told of a clustering: the effective number of clusters, shares of mutual information, and purity."""
    before, labels = clustering["before"], clustering["labels"]
    return {
        "effective": clustering["effective"],
        **({"before": before["normalised"]} if before else {}),
        **({"labels": labels["normalised"], "purity": labels["purity"]} if labels else {}),
    }


def _refuse_failed(report: JobReport) -> None:
    if report.failed:
        shard, reason = next(iter(report.failed.items()))
        raise RunError(
            f"{len(report.failed)} of {report.shards} shards failed, such as {shard}: {reason}\n"
            "Rounds need all: put them right, or leave them out of corpus.shards; the same command tries them again"
        )


def _leave(recipe: Recipe, last: Round) -> dict[str, Any]:
    """Leave in the run's folder what `pretrain` leaves, of the last round; returns what that returned, and the rounds."""
    folder, inner = RunFolder(recipe), RunFolder(last.training())
    trained, identity = last.result(), folder.identity("pretrain")
    assert trained is not None
    outcome = {**trained, "rounds": folder.read_json(LINES)}
    for stage in folder.stages("finetune-"):
        folder.clear(stage)  # they started from other weights
    folder.write_weights(BACKBONE, {**inner.read_weights(BACKBONE), "identity": identity})
    if exists(inner.path(HEAD)):
        folder.write_weights(HEAD, {**inner.read_weights(HEAD), "identity": identity})
    else:
        folder.remove(HEAD)
    folder.write_json(RECIPE, recipe.model_dump(mode="json"))
    folder.write_json("quarantine.json", inner.read_json("quarantine.json"))
    folder.write_json(PRETRAINED, {"identity": identity, "recipe_sha256": recipe.digest(), **outcome})
    if recipe.tracking.mlflow:
        log_model(recipe)
    return outcome
