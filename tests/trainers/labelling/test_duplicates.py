"""Near-duplicates are the groups that comparing all pairs of a cluster finds, and can be left out of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.streaming.pairs import pairs
from tests.trainers.labelling.conftest import rows_of
from trainers.labelling import duplicates
from trainers.labelling.blocks import BlockPool
from trainers.labelling.cluster import cluster
from trainers.labelling.duplicates import near_duplicates


def plainly(x: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """The first of each group, by comparing all pairs until nothing changes."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    alike = (x @ x.T >= threshold) & (labels[:, None] == labels[None])
    first, before = np.arange(len(x)), None
    while before is None or (first != before).any():
        before = first
        first = np.minimum(first, np.where(alike, first[None], len(x)).min(1))
    return first


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    clusters=st.integers(1, 4),
    block=st.sampled_from([4, 16, 1024]),
    room=st.sampled_from([1, 200, 2**30]),
    rows=st.sampled_from([1, 7, 100]),
)
def test_groups_are_those_of_all_pairs_of_a_cluster(seed: int, n: int, clusters: int, block: int, room: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.integers(-1, 2, (n, 4)) + 0.1 * random.normal(size=(n, 4))).astype(np.float32)
    labels = random.integers(0, clusters, n).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", block)
        patch.setattr(duplicates, "BYTES", room)
        found = near_duplicates(labels, lambda: (x[start : start + rows] for start in range(0, n, rows)), 0.93, BlockPool(2))
    assert found.tolist() == plainly(x, labels, 0.93).tolist()


def test_tables_name_originals_and_training_leaves_the_others_out(
    run_recipe: Callable[..., Recipe], embedded: Path, tmp_path: Path
) -> None:
    vectors = rows_of(embedded)
    x = np.stack(vectors.column("vector").to_pylist()).astype(np.float32)
    cluster(str(embedded), 3, str(tmp_path / "plain"))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    threshold = (
        float(np.quantile(np.sort(unit @ unit.T - 2 * np.eye(len(x)), axis=1)[:, -1], 0.7)) - 1e-6
    )  # beside the cosine of a pair, which may round either way
    _, report = cluster(str(embedded), 3, str(tmp_path / "near"), duplicates=threshold)
    found, ids = rows_of(tmp_path / "near"), vectors.column("id").to_numpy()
    assert found.drop_columns(["duplicate", "original"]).equals(rows_of(tmp_path / "plain"))
    first = plainly(x, found.column("label").to_numpy(), threshold)
    assert found.column("original").to_pylist() == ids[first].tolist()
    copies = first != np.arange(len(x))
    assert found.column("duplicate").to_pylist() == copies.astype(int).tolist()
    assert 0 < copies.sum() < 60
    groups = np.unique(first[copies], return_counts=True)[1]
    assert report["duplicates"] == {
        "groups": len(groups), "duplicates": int(copies.sum()), "largest_group": int(groups.max()) + 1,
    }  # fmt: skip
    section = {"shards": run_recipe().corpus.shards, "keep": {"table": str(tmp_path / "near"), "most": {"duplicate": 0}}}
    trained = np.concatenate([columns["id"] for columns in pairs(run_recipe({"corpus": section}))])
    assert sorted(trained.tolist()) == sorted(ids[~copies].tolist())


def test_what_is_no_cosine_is_refused(embedded: Path, tmp_path: Path) -> None:
    for cosine in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"--duplicates .*: a cosine above 0 and at most 1"):
            cluster(str(embedded), 3, str(tmp_path / "out"), duplicates=cosine)
