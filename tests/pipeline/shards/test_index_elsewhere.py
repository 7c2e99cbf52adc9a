"""With a place for their index, shards whose folder cannot be written are read whole once; without one the cost is said."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.materialize.job import known_sums, shaping
from pipeline.recipe import Recipe, parse_recipe, schema
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus, open_training_corpus
from trainers.running.runs import RunFolder

BODY = 200_000


@pytest.fixture
def shards(tmp_path: Path, make_tar) -> Path:
    """Two shards of three samples of 200 kB."""
    for name in ("a", "b"):
        members = [m for n in range(3) for m in ((f"{name}{n}.jpg", bytes([n]) * BODY), (f"{name}{n}.cls", b"%d" % n))]
        make_tar(tmp_path / "s" / f"{name}.tar", members)
    return tmp_path / "s"


def sent(log: list[str], folder: Path) -> int:
    """Bytes of shards that a server was asked for."""
    total = 0
    for line in log:
        path, wanted = re.fullmatch(r"GET /([^\s?]+)\S* (.*)", line).groups()  # type: ignore[union-attr]
        if path.endswith(".tar"):
            size = (folder / path).stat().st_size
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups() if wanted != "None" else ("0", "")  # type: ignore[union-attr]
            total += min(size, int(last or size) + 1) - int(first)
    return total


def labels(corpus: Corpus) -> list[tuple[str, int]]:
    return [(s.key, s.label) for i, count in enumerate(corpus.counts) for s in corpus.read(i, np.arange(count))]


def recipe(url: str, index: Path | None) -> Recipe:
    corpus = {"shards": f"{url}/{{a,b}}.tar", **({"index": str(index)} if index else {})}
    return parse_recipe(
        {"name": "r", "seed": 0, "engine": "cpu", "corpus": corpus, "image": {"size": 16}, "tasks": {"rotation": {}}}
    )


def test_with_a_place_for_the_index_shards_over_http_are_read_whole_once(shards: Path, serve, tmp_path: Path) -> None:
    log: list[str] = []
    spec, whole = recipe(serve(shards, log=log), tmp_path / "index").corpus, sum(path.stat().st_size for path in shards.iterdir())
    corpus = open_training_corpus(spec)
    assert whole <= sent(log, shards) <= 1.1 * whole, "once, by the driver"
    log.clear()
    sums = known_sums(corpus)
    for actor in (pickle.loads(pickle.dumps(corpus)), open_training_corpus(spec, progress=lambda *_: pytest.fail("scanned"))):  # noqa: S301
        actor.forget_members()
        assert labels(actor.select([np.array([1]), np.array([2])])) == [("a1", 1), ("b2", 2)]
        assert known_sums(actor).tolist() == sums.tolist()
        assert len(set(sums.tolist()) | {b""}) == 3, "each shard's content is told"
    assert sent(log, shards) <= 2 * 2 * (BODY + 10_000), "each of them read two samples"
    assert sorted(path.name for path in shards.iterdir()) == ["a.tar", "b.tar"]


def test_a_shard_that_is_rewritten_is_indexed_anew_elsewhere_too(shards: Path, serve, tmp_path: Path, make_tar) -> None:
    spec = recipe(serve(shards), tmp_path / "index").corpus
    open_training_corpus(spec)
    path = make_tar(shards / "a.tar", [m for n in range(3) for m in ((f"a{n}.jpg", bytes(BODY)), (f"a{n}.cls", b"7"))])
    later = path.stat().st_mtime + 5
    os.utime(path, (later, later))
    assert [label for key, label in labels(open_training_corpus(spec)) if key[0] == "a"] == [7, 7, 7]


def test_the_folder_s_own_index_is_used_before_another_place(shards: Path, serve, tmp_path: Path) -> None:
    open_corpus(str(shards))
    spec = recipe(serve(shards), tmp_path / "index").corpus
    assert len(labels(open_training_corpus(spec, progress=lambda *_: pytest.fail("scanned")))) == 6
    assert not (tmp_path / "index").exists()


def test_without_a_place_the_cost_is_said(shards: Path, serve, caplog: pytest.LogCaptureFixture) -> None:
    open_training_corpus(recipe(serve(shards), None).corpus)
    assert "2 shards have no index and their folder cannot be written: 0.00123 GB are read to index them" in caplog.text
    assert "corpus.index: URL" in caplog.text
    caplog.clear()
    open_corpus(str(shards))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "sign", ["?X-Amz-Date={}&X-Amz-Signature={}", "?sv=2024-11-04&se={}&sig={}%3D", "?Expires={}&Signature={}"]
)
def test_signed_shards_are_read_whole_once_however_they_are_signed_later(shards: Path, serve, tmp_path: Path, sign: str) -> None:
    log: list[str] = []
    host, whole = serve(shards, log=log), sum(path.stat().st_size for path in shards.iterdir())

    def signed(n: int) -> schema.CorpusSection:
        urls = [f"{host}/{name}.tar{sign.format(n, n)}" for name in ("a", "b")]
        return schema.CorpusSection(shards=urls, index=str(tmp_path / "index"))

    corpus = open_training_corpus(signed(1))
    assert whole <= sent(log, shards) <= 1.1 * whole, "once, by the driver"
    log.clear()
    again = open_training_corpus(signed(2), progress=lambda *_: pytest.fail("scanned"))
    for actor in (pickle.loads(pickle.dumps(corpus)), again):  # noqa: S301
        actor.forget_members()
        assert labels(actor.select([np.array([1]), np.array([2])])) == [("a1", 1), ("b2", 2)]
        assert known_sums(actor).tolist() == known_sums(corpus).tolist()
    assert sent(log, shards) <= 2 * 2 * (BODY + 10_000), "each of them read two samples"


def test_without_a_place_the_cost_of_signed_shards_is_said(
    shards: Path, serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"{serve(shards)}/{name}.tar?X-Amz-Signature=1" for name in ("a", "b")]
    assert len(labels(open_corpus(urls))) == 6
    (said,) = caplog.messages
    assert "2 shards have no index and their folder cannot be written: 0.00123 GB are read to index them, now, and again" in said
    assert said.endswith("corpus.index: URL names a place to keep it")


def test_a_query_that_may_choose_the_shard_is_never_left_out_of_its_name(
    shards: Path, serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"{serve(shards)}/a.tar?version={n}" for n in (1, 2)]
    assert len(labels(open_corpus(urls, index_in=str(tmp_path / "index")))) == 6
    assert not (tmp_path / "index").exists()
    assert "keeps the index of names that end in .tar and have no query but a signature" in caplog.text


def test_where_the_index_lies_is_no_part_of_what_a_run_or_a_render_is(tmp_path: Path) -> None:
    plain, placed = recipe("http://host", None), recipe("http://host", tmp_path)
    assert shaping(plain) == shaping(placed)
    assert RunFolder(plain).identity("pretrain") == RunFolder(placed).identity("pretrain")
    assert "index" not in plain.canonical()
