"""Checks the outputs of a job against their manifest: files by checksum, samples by count, some shards by rendering again."""

from __future__ import annotations

import hashlib
import math
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.draws import permutation
from pipeline.errors import ShardError, UserError
from pipeline.materialize.folder import IDENTITY, RECIPE, read_identity
from pipeline.materialize.job import CHUNK, difference, identity_of, known_sums
from pipeline.materialize.opened import PAIRS, Materialized, open_materialized
from pipeline.materialize.publish import QUARANTINE
from pipeline.materialize.run import opened
from pipeline.materialize.shard import RenderJob, ShardRenderer
from pipeline.materialize.threads import mapped
from pipeline.shards.described import SHARDS
from pipeline.shards.index import NAME as INDEX
from pipeline.shards.members import Members, sidecar
from pipeline.shards.scanning import scan
from pipeline.storage import is_local, join, open_seekable, read_all, read_range
from pipeline.storage import size as size_of

_PIECE, _BATCH = 16 * 2**20, 1024
_LOCAL, _REMOTE = 2, 8  # files at a time


@dataclass(frozen=True)
class Problem:
    """A difference between outputs and their manifest."""

    file: str
    reason: str


@dataclass
class Verdict:
    """The result of `verify`.

    Args:
        url: the folder.
        shards: input shards.
        files: files that were read.
        samples, pairs, quarantined: sums of the manifest; a sample counts as quarantined if any of its drawings is missing.
        rendered_again: input shards that were rendered again and compared.
        problems: what is wrong.
        notes: what could not be checked.
        holds: what the outputs hold, such as `pairs`.
    """

    url: str
    shards: int
    files: int
    samples: int
    pairs: int
    quarantined: int
    rendered_again: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    holds: str = PAIRS


def verify(url: str, deep: float = 0.0, seed: int | None = None, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Check a rendered corpus, or what another job wrote, against its manifest.

    Args:
        url: its folder.
        deep: share of the input shards that are rendered again and compared byte for byte; needs the original corpus.
        seed: chooses these shards; without it they are chosen at random.
        progress: called with (files, of how many).

    Raises:
        UserError: there is no finished output; or, with `deep`, no source, no such engine, or no pairs.
    """
    rendered = open_materialized(url)
    if deep and rendered.holds != PAIRS:
        raise UserError(f"{rendered.url} holds {rendered.holds}: only pairs can be made again to compare them; leave --deep out")
    totals, files = rendered.manifest["totals"], sum(1 for _ in _files(rendered))
    verdict = Verdict(
        rendered.url, totals["shards"], files, totals["samples"], totals["pairs"], totals["quarantined"], holds=rendered.holds
    )
    _check_described(rendered, verdict)
    verdict.problems += _unaccounted(rendered)
    threads = _LOCAL if is_local(rendered.url) else _REMOTE
    for done, problems in enumerate(mapped(lambda file: _check_file(rendered, *file), _files(rendered), threads), 1):
        verdict.problems += problems
        if progress:
            progress(done, files)
    if deep:
        _render_again(rendered, deep, seed, verdict)
    return verdict


def _check_described(rendered: Materialized, verdict: Verdict) -> None:
    """Check the files that describe the corpus, besides those that `open_rendered` has checked."""
    sums = rendered.manifest["sha256"]
    for name in sorted({INDEX, IDENTITY, *sums} - {SHARDS, QUARANTINE, RECIPE}):
        try:
            content = read_all(join(rendered.url, name))
        except OSError as error:
            verdict.problems.append(
                Problem(name, "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}")
            )
            continue
        if name in sums and hashlib.sha256(content).hexdigest() != sums[name]:
            verdict.problems.append(Problem(name, "its bytes have changed: the checksum is not the manifest's"))
    if unknown := [name for name in (RECIPE, IDENTITY) if name not in sums]:
        verdict.notes.append(
            f"{' and '.join(unknown)}: not checked, for the manifest is of a version that kept no checksum of them"
        )


def _files(rendered: Materialized) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every file that the manifest names, and whether it holds pairs."""
    for row in rendered.rows():
        for output in row["outputs"] or ():
            yield output, True
        if row["kept"]:
            yield row["kept"], False


def _unaccounted(rendered: Materialized) -> Iterator[Problem]:
    """Find shards with samples that are neither a pair nor a row of the quarantine table, in any drawing."""
    columns = zip(rendered.quarantine.column("shard").to_pylist(), rendered.quarantine.column("epoch").to_pylist())
    bad = Counter(columns)
    for row in rendered.rows():
        if row["failure"] is not None:
            yield Problem(row["shard"], f"failed, and is not rendered: {row['failure']}")
            continue
        if len(row["outputs"]) != rendered.recipe.render.epochs:
            yield Problem(row["shard"], f"has {len(row['outputs'])} drawings of {rendered.recipe.render.epochs}")
        for epoch, output in enumerate(row["outputs"]):
            pairs, missing = output["pairs"], bad[row["shard"], epoch]
            if pairs + missing != row["samples"]:
                words = f"{pairs} pairs and {missing} quarantined are not the {row['samples']} samples of the shard"
                yield Problem(row["shard"], f"drawing {epoch}: {words}")


def _check_file(rendered: Materialized, output: dict[str, Any], holds_pairs: bool) -> list[Problem]:
    url = join(rendered.url, output["name"])
    try:
        found = size_of(url)
        if found != output["bytes"]:
            return [Problem(output["name"], f"has {found} bytes, {output['bytes']} by the manifest")]
        if _sha256(url, found) != output["sha256"]:
            return [Problem(output["name"], "its bytes have changed: the checksum is not the manifest's")]
        if holds_pairs:
            return _check_pairs(rendered, url, output)
    except FileNotFoundError:
        return [Problem(output["name"], "is missing")]
    except (OSError, ShardError) as error:
        return [Problem(output["name"], f"cannot be read: {error}")]
    return []


def _check_pairs(rendered: Materialized, url: str, output: dict[str, Any]) -> list[Problem]:
    """Count the pairs in the file itself, and check that none lacks a part or occurs twice."""
    problems = []
    if url.endswith(".parquet"):
        import pyarrow.parquet as pq

        with open_seekable(url) as file:
            keys = pq.read_table(file, columns=["key"]).column("key").to_pylist()
    else:
        wanted, keys = {column["member"] for column in rendered.manifest["columns"]}, []
        members = scan(url)
        for row in (row for batch in members.table.to_batches(_BATCH) for row in batch.to_pylist()):
            keys.append(row["key"])
            if missing := wanted - {row["ext"], *(part["ext"] for part in row["others"])}:
                problems.append(Problem(output["name"], f"sample {row['key']} lacks {', '.join(sorted(missing))}"))
        problems += _check_members(url, output["name"], members)
    if len(keys) != output["pairs"]:
        problems.append(Problem(output["name"], f"holds {len(keys)} pairs, {output['pairs']} by the manifest"))
    if len(set(keys)) != len(keys):
        problems.append(Problem(output["name"], f"holds {len(keys) - len(set(keys))} keys more than once"))
    return problems


def _check_members(url: str, name: str, there: Members) -> list[Problem]:
    """Check that the table of members beside a tar agrees with it; where the labels were of no use, it has none."""
    beside = sidecar(url) or ""
    shown = sidecar(name) or ""
    try:
        found = Members.load(beside)
    except FileNotFoundError:  # it is optional, and made by a reader that needs it
        return []
    except (OSError, ValueError) as error:
        return [Problem(shown, f"cannot be read: {str(error).removeprefix(beside + ': ')}")]
    labels = (found.labels == there.labels) | (found.labels < 0) if len(found) == len(there) else np.zeros(1, bool)
    alike = found.table.drop_columns("label").equals(there.table.drop_columns("label"))
    return [] if alike and labels.all() else [Problem(shown, "does not say what lies in its tar")]


def _sha256(url: str, size: int) -> str:
    found = hashlib.sha256()
    for start in range(0, size, _PIECE):
        found.update(read_range(url, start, min(size, start + _PIECE)))
    return found.hexdigest()


def _render_again(rendered: Materialized, share: float, seed: int | None, verdict: Verdict) -> None:
    if not 0 < share <= 1:
        raise UserError(f"a share of {share}: it must be above 0 and at most 1")
    recipe = rendered.recipe
    corpus = opened(recipe, index=False)
    job = RenderJob(recipe, corpus, rendered.url, read_identity(rendered.url), known_sums(corpus), CHUNK)
    from pipeline.rendering.engine import build_engine

    here = identity_of(recipe, build_engine(recipe).identity(), job.identity)
    if lines := difference(job.identity, here):
        raise UserError("this machine does not render as that one did, so nothing can be compared:\n  " + "\n  ".join(lines))
    order = permutation(len(corpus.urls), "verify", secrets.randbits(63) if seed is None else seed)
    chosen = {job.shard(i): i for i in order[: math.ceil(share * len(corpus.urls))].tolist()}
    rows = {row["shard"]: row for row in rendered.rows() if row["shard"] in chosen and row["failure"] is None}
    with closing(ShardRenderer(job, in_child=True)) as render:
        for shard, i in chosen.items():
            row = rows.get(shard)
            if row is None:
                continue
            verdict.rendered_again += 1
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "quarantine").mkdir()
                try:
                    again = render(i, folder)
                except ShardError as error:
                    verdict.problems.append(Problem(row["shard"], f"cannot be rendered again: {error.reason}"))
                    continue
            for there, now in zip(row["outputs"], again.outputs):
                if there["name"] != now.name:
                    verdict.problems.append(Problem(row["shard"], "the input shard is not the one that was rendered"))
                    break
                if there["sha256"] != now.sha256:
                    verdict.problems.append(Problem(there["name"], "rendered again it has other bytes"))
