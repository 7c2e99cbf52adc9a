"""Clusters of features: labels beside the corpus, exactly once, the same in every way of running; and the report."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.materialize.driver import Progress
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from tests.trainers.labelling.conftest import rows_of
from trainers.labelling import cluster_job
from trainers.labelling.blocks import BlockPool
from trainers.labelling.cluster import cluster
from trainers.labelling.clusterings import FeatureView
from trainers.labelling.embed import embed
from trainers.labelling.information import mutual_information
from trainers.labelling.kmeans import assign

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def features(embedded: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "features"))


@pytest.mark.parametrize("spherical", [True, False])
def test_every_image_is_given_its_nearest_centroid(features: Path, tmp_path: Path, spherical: bool) -> None:
    out = tmp_path / "clusters"
    done, report = cluster(str(features), 6, str(out), spherical)
    assert (done.shards, done.made, done.rows) == (8, 8, 72)
    given, labels = rows_of(features), rows_of(out)
    for name in ("key", "id", "row", "class"):
        assert given.column(name).to_pylist() == labels.column(name).to_pylist()
    x = np.array(given.column("vector").to_pylist(), np.float32)
    nearest, distance, margin = assign(x, np.load(out / "centroids.npy"), spherical, BlockPool(1))
    np.testing.assert_array_equal(labels.column("label").to_numpy(), nearest)
    np.testing.assert_array_equal(labels.column("distance").to_numpy(), distance)
    np.testing.assert_array_equal(labels.column("margin").to_numpy(), margin)
    assert report == json.loads((out / "report.json").read_text())
    assert report["sizes"] == np.bincount(nearest, minlength=6).tolist()
    assert report["mean_distance"] == pytest.approx(distance.mean(), rel=1e-5)
    assert report["labels"]["images"] == 72
    assert report["labels"]["classes"] == 3
    assert verify(str(out)).problems == []


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_any_number_of_actors_gives_the_bytes_of_one_process(features: Path, tmp_path: Path, tree: Tree) -> None:
    cluster(str(features), 5, str(tmp_path / "alone"), duplicates=0.99)
    for actors in (1, 2, 4):
        cluster(str(features), 5, str(tmp_path / str(actors)), duplicates=0.99, actors=actors)
        assert tree(tmp_path / str(actors)) == tree(tmp_path / "alone")


def test_rows_at_a_time_threads_and_a_second_run_change_no_byte(features: Path, tmp_path: Path, tree: Tree) -> None:
    how: dict[str, Any] = {"k": [5, 9], "pca": 6, "duplicates": 0.99}
    cluster(str(features), out=str(tmp_path / "one"), threads=1, **how)
    for rows, threads in ((1, 1), (7, 3)):
        cluster(str(features), out=str(tmp_path / f"{rows}"), rows=rows, threads=threads, **how)
        assert tree(tmp_path / f"{rows}") == tree(tmp_path / "one")
    cluster(str(features), out=str(tmp_path / "seed"), seed=1, **how)
    assert (tmp_path / "seed" / "centroids.npy").read_bytes() != (tmp_path / "one" / "centroids.npy").read_bytes()


def test_an_interrupted_command_goes_on_to_the_same_bytes(
    features: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(str(features), 5, str(tmp_path / "calm"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(cluster_job, "kmeans", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cluster(str(features), 5, str(tmp_path / "out"))
    seen: list[int] = []

    def after_three(at: Progress) -> None:
        seen.append(at.shards_done)
        if at.shards_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster(str(features), 5, str(tmp_path / "out"), progress=after_three)
    with monkeypatch.context() as once:
        once.setattr(cluster_job, "kmeans", lambda *_: pytest.fail("the centroids are there"))
        done, _ = cluster(str(features), 5, str(tmp_path / "out"))
    assert done.made == 5
    assert tree(tmp_path / "out") == tree(tmp_path / "calm")


def test_the_sample_is_a_function_of_seed_and_ids_and_holds_no_more_than_it_may(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_job, "PER_CENTROID", 4)
    taken: list[np.ndarray] = []
    real = cluster_job.kmeans
    monkeypatch.setattr(cluster_job, "kmeans", lambda sample, *rest: taken.append(sample) or real(sample, *rest))
    for name, seed, rows in (("a", 0, 3), ("b", 0, 1000), ("c", 1, 1000)):
        _, report = cluster(str(features), 5, str(tmp_path / name), seed=seed, rows=rows)
        assert report["sample"] == 20
    np.testing.assert_array_equal(taken[0], taken[1])
    assert not np.array_equal(taken[0], taken[2])
    everything = {vector.tobytes() for vector in np.array(rows_of(features).column("vector").to_pylist(), np.float32)}
    assert len({vector.tobytes() for vector in taken[0]} & everything) == 20


def test_several_clusterings_are_those_that_each_number_alone_gives(features: Path, tmp_path: Path) -> None:
    """Of equal numbers each has other first centroids."""
    _, report = cluster(str(features), [4, 7, 4], str(tmp_path / "all"))
    both = rows_of(tmp_path / "all")
    assert [report["column"], *(one["column"] for one in report["more"])] == ["label", "label_2", "label_3"]
    for n, (k, end) in enumerate([(4, ""), (7, "_2")]):
        _, alone = cluster(str(features), k, str(tmp_path / f"{n}"))
        own = rows_of(tmp_path / f"{n}")
        assert (tmp_path / f"{n}" / "centroids.npy").read_bytes() == (tmp_path / "all" / f"centroids{end}.npy").read_bytes()
        for name in ("label", "distance", "margin"):
            assert both.column(f"{name}{end}").equals(own.column(name))
        found = [report, *report["more"]][n]
        assert {name: value for name, value in found.items() if name != "more"} == {**alone, "column": f"label{end}"}
    assert not both.column("label").equals(both.column("label_3"))
    assert verify(str(tmp_path / "all")).problems == []


def test_every_feature_is_read_and_assigned_once_with_duplicates_too(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = FeatureView.found
    monkeypatch.setattr(FeatureView, "found", lambda self, x: seen.append(len(x)) or real(self, x))
    cluster(str(features), [3, 5], str(tmp_path / "near"), duplicates=0.99)
    assert sum(seen) == 72


def test_components_are_clustered_and_anyone_can_assign_by_what_is_stored(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, report = cluster(str(features), 5, str(out), pca=4)
    table, centroids = np.load(out / "pca.npy"), np.load(out / "centroids.npy")
    assert (table.shape[0], centroids.shape) == (5, (5, 4))
    x = np.array(rows_of(features).column("vector").to_pylist(), np.float32)
    points = (x - table[0]) @ table[1:].T
    np.testing.assert_allclose(np.cov(points.T), np.eye(4), atol=0.02)
    cosines = points @ centroids.T / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_array_equal(rows_of(out).column("label").to_numpy(), cosines.argmax(1))
    assert report["pca"]["components"] == 4
    assert report["pca"]["whitened"]
    assert 0 < report["pca"]["variance"] < 1
    cluster(str(features), 5, str(tmp_path / "dull"), pca=4, whiten=False)
    rows = np.load(tmp_path / "dull" / "pca.npy")[1:]
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-5)
    assert verify(str(out)).problems == []
    with pytest.raises(UserError, match=rf"--pca 9999: the features have {x.shape[1]} numbers, so 1 to {x.shape[1]} components"):
        cluster(str(features), 5, str(tmp_path / "no"), pca=9999)


def test_more_clusters_than_a_limit_are_made_in_two_levels(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    _, report = cluster(str(features), [16, 4], str(tmp_path / "asked"), levels=2, pca=5)
    assert (sum(report["coarse"]["clusters"]), report["clusters"], sum(report["sizes"])) == (16, 16, 72)
    assert len(report["coarse"]["clusters"]) == len(np.load(tmp_path / "asked" / "coarse.npy")) == 4
    assert len(np.load(tmp_path / "asked" / "coarse_2.npy")) == 2
    assert verify(str(tmp_path / "asked")).problems == []
    monkeypatch.setattr("trainers.labelling.cluster.FLAT", 3)
    cluster(str(features), [16, 4], str(tmp_path / "limit"), pca=5, rows=7, threads=1)
    assert tree(tmp_path / "limit") == tree(tmp_path / "asked")
    with pytest.raises(UserError, match=r"--levels 3: it may be 1 or 2"):
        cluster(str(features), 4, str(tmp_path / "no"), levels=3)


def test_clusters_of_distinct_photos_tell_of_their_classes(features: Path, tmp_path: Path) -> None:
    _, report = cluster(str(features), 12, str(tmp_path / "out"))
    assert report["labels"]["purity"] > 0.6
    assert report["labels"]["normalised"] > 0.15


def test_fewer_distinct_features_than_clusters_give_fewer_clusters(
    run_recipe: MakeRecipe, tiles: Path, weights: str, tmp_path: Path
) -> None:
    """A corpus of one photo, many times."""
    photo = next((tiles.parent / "photos").rglob("*.jpg")).read_bytes()
    (tmp_path / "same").mkdir()
    for n in range(30):
        (tmp_path / "same" / f"{n:03d}.jpg").write_bytes(photo)
    pack(str(tmp_path / "same"), str(tmp_path / "shards"), labels="none")
    recipe = run_recipe({"corpus": {"shards": str(tmp_path / "shards")}})
    embed(recipe, str(tmp_path / "features"), weights=weights, here=True)
    _, report = cluster(str(tmp_path / "features"), 10, str(tmp_path / "out"))
    assert (report["asked"], report["clusters"], report["sizes"], report["labels"]) == (10, 1, [30], None)


def test_what_is_not_finished_features_is_refused(features: Path, run_recipe: MakeRecipe, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no finished folder of features is there; `pseudolabel embed` makes or completes one"):
        cluster(str(tmp_path), 3, str(out))
    cluster(str(features), 3, str(out))
    with pytest.raises(UserError, match=r"holds labels, not features; `pseudolabel embed` makes these"):
        cluster(str(out), 3, str(tmp_path / "again"))
    with pytest.raises(UserError, match=r"(?s)holds labels of another recipe.*k: 3 in the folder, 4 now"):
        cluster(str(features), 4, str(out))
    embed(run_recipe(precision="float32"), str(tmp_path / "others"), weights=weights, layer="stage3", here=True)
    with pytest.raises(UserError, match=r"(?s)features: \w+ in the folder"):
        cluster(str(tmp_path / "others"), 3, str(out))


def test_a_table_of_features_that_cannot_be_read_is_a_failed_shard(features: Path, tmp_path: Path, tree: Tree) -> None:
    cluster(str(features), 3, str(tmp_path / "calm"))
    out = tmp_path / "out"
    cluster(str(features), 3, str(out))
    lost = sorted((out / "commits").iterdir())[2]
    shard = json.loads(lost.read_text())["shard"]
    lost.unlink()
    rows = pq.read_table(features / "shards.parquet").to_pylist()
    table = next(features / row["outputs"][0]["name"] for row in rows if row["shard"] == shard)
    whole = table.read_bytes()
    table.write_bytes(b"PAR1 no more")
    done, report = cluster(str(features), 3, str(out))
    assert list(done.failed) == [shard]
    assert "cannot be read" in done.failed[shard]
    assert report["images"] < 72
    table.write_bytes(whole)
    done, _ = cluster(str(features), 3, str(out), retry_failed=True)
    assert done.failed == {}
    assert tree(out) == tree(tmp_path / "calm")


def test_mutual_information_of_equal_and_of_independent_labels() -> None:
    equal = mutual_information(np.array([[0, 5, 10], [1, 6, 10], [2, 7, 20]]))
    assert equal["nats"] == pytest.approx(-(0.5 * math.log(0.25) + 0.5 * math.log(0.5)))
    assert (equal["normalised"], equal["purity"]) == (pytest.approx(1), pytest.approx(1))
    apart = mutual_information(np.array([[a, b, 5] for a in range(3) for b in range(4)]))
    assert apart["nats"] == pytest.approx(0, abs=1e-12)
    assert apart["purity"] == pytest.approx(0.25)


def test_the_centroids_are_a_plain_array(features: Path, tmp_path: Path) -> None:
    cluster(str(features), 4, str(tmp_path / "out"))
    centroids = np.load(io.BytesIO((tmp_path / "out" / "centroids.npy").read_bytes()), allow_pickle=False)
    assert (centroids.dtype, centroids.shape[0]) == (np.float32, 4)


def test_clusters_keep_the_numbers_of_an_earlier_clustering_of_the_same_images(
    features: Path, run_recipe: MakeRecipe, weights: str, tmp_path: Path
) -> None:
    cluster(str(features), 5, str(tmp_path / "one"))
    _, same = cluster(str(features), 5, str(tmp_path / "same"), seed=7, before=str(tmp_path / "one"))
    assert same["before"]["normalised"] == pytest.approx(1, abs=0.05)
    was, now = (rows_of(tmp_path / name).column("label").to_numpy() for name in ("one", "same"))
    assert (was == now).mean() > 0.95
    with pytest.raises(UserError, match=r"--before: .* has 5 clusters, which keep numbers, and --k is 4: give 5 or more"):
        cluster(str(features), 4, str(tmp_path / "fewer"), before=str(tmp_path / "one"))


def test_labels_of_shards_that_were_packed_again_are_no_start(
    features: Path, run_recipe: MakeRecipe, tiles: Path, weights: str, tmp_path: Path
) -> None:
    cluster(str(features), 5, str(tmp_path / "one"))
    photos = Path(shutil.copytree(tiles.parent / "photos", tmp_path / "photos"))
    (photos / "cat" / "000.jpg").unlink()
    pack(str(photos), str(tmp_path / "again"), shard_size=30_000)
    recipe = run_recipe({"corpus": {"shards": str(tmp_path / "again")}})
    embed(recipe, str(tmp_path / "others"), weights=weights, here=True)
    with pytest.raises(UserError, match=r"--before: row \d+ of .* tells of another image than row"):
        cluster(str(tmp_path / "others"), 5, str(tmp_path / "two"), before=str(tmp_path / "one"))
