"""Tables of features, of labels and of clusters that are killed again and again have the bytes of undisturbed ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from pipeline.materialize.commit import CommitRecord
from pipeline.materialize.driver import materialize
from pipeline.materialize.folder import claim
from pipeline.materialize.job import Job
from pipeline.materialize.writers import TableWriter
from pipeline.recipe import Recipe
from tests.pipeline.materialize.storm import ONE_OF_EACH, weather
from tests.trainers.labelling.conftest import K, random_classifier
from tests.trainers.labelling.stormy import PAUSE, WORKS, stormy_work
from trainers.labelling.cluster import clustering_job
from trainers.labelling.embed import embed_job
from trainers.labelling.label import label_job

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


class Killed(BaseException):
    """What stands for the end of a process: nothing catches it."""


@pytest.fixture(params=["embed", pytest.param("label", marks=pytest.mark.slow), "cluster"])
def make(request: pytest.FixtureRequest, run_recipe: MakeRecipe, weights: str, embedded: Path) -> Callable[[Path], Job]:
    """Makes the job that writes a folder."""
    if request.param == "embed":
        return lambda out: embed_job(run_recipe(), str(out), weights=weights, here=True)
    if request.param == "label":
        random_classifier(run_recipe())
        return lambda out: label_job(run_recipe(), str(out), here=True)
    return lambda out: clustering_job(str(embedded), K, str(out))


def test_deaths_and_a_slow_attempt_that_ends_after_a_second_has_committed_change_no_byte(
    make: Callable[[Path], Job], tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths within a table, and between a table and its record. The slow attempt is of a node that was taken for dead."""
    materialize(make(tmp_path / "calm"), here=True)
    job = make(tmp_path / "stormy")
    claim(job)
    job.prepare()
    second = job.worker(1)
    committed: list[CommitRecord] = []

    def meanwhile(*_: object) -> None:
        if not committed:
            committed.append(second(0))
            committed[0].save(job.out, job.stem(0))

    late = job.worker(1, meanwhile)(0)
    assert committed == [late]

    def deadly(place: type, method: str, when: set[int]) -> None:
        """Die in the calls of these numbers, before anything of them is done."""
        whole, number = getattr(place, method), count(1)

        def call(*given: object) -> object:
            if next(number) in when:
                raise Killed
            return whole(*given)

        monkeypatch.setattr(place, method, call)

    deadly(CommitRecord, "save", {1, 4})
    deadly(TableWriter, "finish", {3})
    for _ in range(3):
        with pytest.raises(Killed):
            materialize(job, here=True)
        assert not (tmp_path / "stormy" / "manifest.json").exists()
    done = materialize(job, here=True)
    assert done.rows == 72
    assert done.made < 7, "the record of the second attempt stands, and so do those before a death"
    late.save(job.out, job.stem(0))
    assert tree(tmp_path / "stormy") == tree(tmp_path / "calm")


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize("work", WORKS)
def test_kills_of_actors_nodes_and_driver_change_no_byte(tmp_path: Path, tree: Tree, work: str) -> None:
    """Three of them; `benchmarks/kill_storm.py` has twenty, and many seeds."""
    words, calm = stormy_work(work, tmp_path, 480)
    outcome = weather(words, tmp_path, 11, ONE_OF_EACH, PAUSE)
    assert outcome.surprises == [], (tmp_path / "driver.log").read_text()
    assert outcome.killed == Counter(ONE_OF_EACH)
    for folder in outcome.folders:
        assert tree(folder) == tree(calm)
