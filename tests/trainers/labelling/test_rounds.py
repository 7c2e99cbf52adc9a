"""Rounds of features, clusters and training: the same bytes however often interrupted, numbers that persist, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.plain import trained_plainly
from pipeline.errors import UserError
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from tests.tiles import recipe_on
from tests.trainers.labelling.conftest import rows_of
from trainers.labelling.rounds import Round, done_rounds, rounds
from trainers.learning.collapse import Collapsed
from trainers.learning.pretext import PretextModel
from trainers.pretraining import prepared
from trainers.running.runs import RunFolder
from trainers.running.tracking import flat

Tree = Callable[[Path], dict[str, bytes]]
Calm = tuple[Recipe, dict[str, Any], list[dict[str, Any]]]
K = 6


def recipe_of(shards: Path, folder: Path, sections: dict[str, Any] | None = None, **how: Any) -> Recipe:
    """A recipe of rounds on shards, of a network without batch normalisation, whose statistics would take longer to settle."""
    spec = {"method": "deepcluster", "clusters": K, "count": 2, **how}
    network = {"backbone": {"name": "squeezenet1_1", "stem": "standard"}, "optimizer": {"name": "adamw", "lr": 1e-4}}
    training = {"precision": "float32", "epochs": 2, **network}
    return recipe_on(shards, folder, {"tasks": {}, "rounds": spec, **(sections or {})}, training)


def run(recipe: Recipe, **how: Any) -> dict[str, Any]:
    return rounds(recipe, train=trained_plainly, here=True, **how)


def left_by(recipe: Recipe, tree: Tree) -> dict[str, Any]:
    """The labels of each round, and the weights of each: all that a later round builds upon."""
    place = Path(RunFolder(recipe).url) / "rounds"
    labels = {str(path.relative_to(place)): tree(path) for path in sorted(place.glob("*/clusters*"))}
    weights = {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.glob("**/*.pt"))}
    return {**labels, **weights}


@pytest.fixture(scope="module")
def shards(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles in three shards. Read-only."""
    folder = tmp_path_factory.mktemp("few")
    pack(str(tiles.parent / "photos"), str(folder), shard_size=80_000)
    return folder


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Undisturbed rounds of DeepCluster: the recipe, what it returned, and the log lines. Read-only."""
    recipe, lines = recipe_of(shards, tmp_path_factory.mktemp("calm")), []
    return recipe, run(recipe, listeners=[lines.append]), lines


def test_what_is_learnt_and_what_rounds_have_in_common_is_told(calm: Calm) -> None:
    recipe, result, lines = calm
    folder = Path(RunFolder(recipe).url)
    assert result["rounds"] == json.loads((folder / "rounds.json").read_text())
    assert [line["round"] for line in result["rounds"]] == [1, 2]
    first, *later = (line["clusterings"][0] for line in result["rounds"])
    assert first["before"] is None
    for one in (first, *later):
        assert one["labels"]["images"] == 72
        assert 1 < one["effective"] <= K
    for number, one in enumerate(later, 2):
        was, now = (rows_of(folder / f"rounds/{n:03d}/clusters").column("label").to_numpy() for n in (number - 1, number))
        joint = np.zeros((K, K))
        np.add.at(joint, (was, now), 1 / len(was))
        inside = joint > 0
        nats = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)), where=inside, out=np.zeros_like(joint))).sum()
        assert one["before"]["nats"] == pytest.approx(nats)
        assert (was == now).mean() > 1.5 / K  # numbers persist
    assert [(line["step"], line["steps"], line["round"]) for line in lines[::8]] == [(1, 16, 1), (9, 16, 2)]
    assert flat(lines[-1])["clusters/before"] == later[-1]["before"]["normalised"]
    tracked = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["step"] for line in tracked] == list(range(1, 17))
    assert tracked[0]["clusters"]["labels"] == first["labels"]["normalised"]


def test_the_last_round_is_the_run_and_old_features_are_gone(calm: Calm) -> None:
    recipe, _, _ = calm
    folder = Path(RunFolder(recipe).url)
    assert [path.parent.name for path in sorted(folder.glob("rounds/*/features"))] == ["002"]
    last, whole = (torch.load(place / "backbone.pt", weights_only=True) for place in (folder / "rounds/002/run", folder))
    assert all(torch.equal(weight, whole["backbone"][name]) for name, weight in last["backbone"].items())
    assert whole["identity"] == RunFolder(recipe).identity("pretrain")
    assert verify(str(folder / "rounds/002/clusters")).problems == []
    assert done_rounds(recipe) == 2
    kept = json.loads((folder / "pretrain.json").read_text())
    assert {**kept, **run(recipe)} == kept


class Interrupted:
    """Interrupts rounds at the n-th event of a kind, once: a shard that is done, a step of training, a file that is removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
        self._kind, self._left = kind, count
        real = RunFolder.clear

        def clear(folder: RunFolder, name: str) -> None:
            if name.endswith("features"):
                next(Path(folder.path(name)).glob("*.parquet")).unlink()
                self._event("removing")
            real(folder, name)

        monkeypatch.setattr(RunFolder, "clear", clear)

    @contextmanager
    def shown(self, title: str) -> Iterator[Callable[[Any], None]]:
        kind = title.rpartition(" ")[2]
        self._event(f"before {kind}")
        yield lambda at: self._event(kind)

    def step(self, record: dict[str, Any]) -> None:
        self._event("training")

    def _event(self, kind: str) -> None:
        if kind == self._kind:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


POINTS = [
    ("embedding", 2), ("before clustering", 1), ("clustering", 2), ("training", 5), ("clustering", 2), ("training", 3),
    ("removing", 1),
]  # fmt: skip
"""An event of each kind, and how many of them a command sees until it is interrupted."""


def test_rounds_that_are_interrupted_anywhere_end_with_the_same_bytes(
    calm: Calm, shards: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, times = recipe_of(shards, tmp_path), 0
    for kind, count in POINTS:
        with monkeypatch.context() as patched:
            hook = Interrupted(patched, kind, count)
            try:
                run(recipe, shown=hook.shown, listeners=[hook.step])
            except KeyboardInterrupt:
                times += 1
    assert times == len(POINTS)
    assert run(recipe)["rounds"] == calm[1]["rounds"]
    assert left_by(recipe, tree) == left_by(calm[0], tree)


def test_more_rounds_go_on_from_those_that_are_there(calm: Calm, shards: Path, tmp_path: Path, tree: Tree) -> None:
    fewer = recipe_of(shards, tmp_path, count=1)
    run(fewer)
    run(recipe_of(shards, tmp_path))
    assert left_by(fewer, tree) == left_by(calm[0], tree)


def test_the_network_labels_itself_evenly_by_several_heads_that_stay(shards: Path, tmp_path: Path) -> None:
    recipe = recipe_of(shards, tmp_path, method="selflabel", heads=2, count=2, clusters=4)
    result = run(recipe)
    place = Path(RunFolder(recipe).url) / "rounds"
    for line in result["rounds"]:
        assert [one["clusters"] for one in line["clusterings"]] == [4, 4]
        assert all(one["effective"] > 3.5 for one in line["clusterings"])
        assert set(line["tasks"]) == {"assigned", "assigned_2"}
    one, other = (rows_of(place / "001" / name).column("label").to_numpy() for name in ("clusters", "clusters_2"))
    assert not np.array_equal(one, other)
    start, after = (
        torch.load(place / name, weights_only=True)["heads"]["assigned"] for name in ("001/start.pt", "001/run/backbone.pt")
    )
    assert not torch.equal(start["0.weight"], after["0.weight"])
    next_one = Round(recipe, 1).training()
    assert torch.equal(PretextModel(next_one, 0).heads()["assigned"]["0.weight"], after["0.weight"])


def test_clusterfit_trains_a_new_network_on_the_clusters_of_another(calm: Calm, shards: Path, tmp_path: Path) -> None:
    recipe = recipe_of(shards, tmp_path, {"name": "fit"}, method="clusterfit", run=RunFolder(calm[0]).url, count=1, pca=4)
    assert Round(recipe, 0).training().training.backbone.weights is None
    (line,) = run(recipe)["rounds"]
    assert line["clusterings"][0]["clusters"] == K
    place = Path(RunFolder(recipe).url) / "rounds/001"
    assert json.loads((place / "clusters/report.json").read_text())["pca"]["components"] == 4
    assert not (place / "start.pt").exists()


@pytest.mark.parametrize("method", ["deepcluster", "selflabel"])
def test_a_corpus_of_copies_ends_in_words(tiles: Path, tmp_path: Path, method: str) -> None:
    photo = next((tiles.parent / "photos").rglob("*.jpg")).read_bytes()
    (tmp_path / "same").mkdir()
    for n in range(40):
        (tmp_path / "same" / f"{n:03d}.jpg").write_bytes(photo)
    pack(str(tmp_path / "same"), str(tmp_path / "shards"), labels="none")
    words = {
        "deepcluster": r"round 1 of 2: 40 images have 1 distinct features, and rounds.clusters is 6: the photos are copies",
        "selflabel": r"round 1 of 2: nearly all images are in one of 6 clusters \(as if there were 1.00 of equal size\)",
    }
    with pytest.raises(Collapsed, match=words[method]):
        run(recipe_of(tmp_path / "shards", tmp_path, method=method))


def test_a_corpus_that_is_packed_again_between_rounds_is_refused(tiles: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(tiles, tmp_path / "shards"))
    run(recipe_of(shards, tmp_path, count=1))
    photos = Path(shutil.copytree(tiles.parent / "photos", tmp_path / "photos"))
    (photos / "cat" / "000.jpg").unlink()
    shutil.rmtree(shards)
    pack(str(photos), str(shards), shard_size=30_000)
    with pytest.raises(UserError, match=r"the corpus has changed since round 1 of 2, such as .*; .* --fresh|put it back"):
        run(recipe_of(shards, tmp_path, count=2))


def test_rounds_of_another_recipe_are_not_mixed_with_those_that_are_there(calm: Calm, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(calm[0].storage.runs, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"002 follows a round 1 of another recipe: .* --fresh"):
        run(recipe_of(shards, tmp_path, clusters=5))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"method": "clusterfit"}, "name its folder by `run`"),
        ({"method": "clusterfit", "run": "x"}, "count 2: clusterfit is one round"),
        ({"run": "x"}, "`run` is for clusterfit"),
        ({"method": "selflabel", "layer": "layer3"}, "selflabel takes the network's own answers"),
        ({"method": "selflabel", "pca": 2}, "selflabel takes the network's own answers, not its features"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(shards: Path, tmp_path: Path, how: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe_of(shards, tmp_path, **how)


def test_names_that_the_rounds_add_and_pretraining_on_rounds_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `pseudolabel rounds` on it"):
        prepared(recipe_of(shards, tmp_path))
    taken = {"corpus": {"shards": str(shards), "annotations": {"clusters": "x"}}}
    with pytest.raises(UserError, match="clusters is the name of a task or of labels that the rounds add"):
        run(recipe_of(shards, tmp_path, taken))
    with pytest.raises(UserError, match="no section `rounds`"):
        run(recipe_on(shards, tmp_path, {}, {}))
