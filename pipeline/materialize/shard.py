"""The job of a render: input shards to rendered shards and commit records, as a stream, so that no shard is held in memory."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.materialize.columns import as_row, stored_columns
from pipeline.materialize.commit import BAD, Bad, CommitRecord, Output
from pipeline.materialize.job import Job, OnChunk, identity_of, writing
from pipeline.materialize.writers import ShardFormat, Writer
from pipeline.rendering.crash_safe import CrashSafeRenderer
from pipeline.rendering.renderer import Pairs
from pipeline.shards import naming
from pipeline.shards.corpus import Sample
from pipeline.shards.writing import TarWriter
from pipeline.storage import join, write_atomic
from pipeline.streaming.batches import ahead

Chunk = list[tuple[Sample, dict[str, memoryview]]]


@dataclass(frozen=True)
class RenderJob(Job):
    """A render: each shard becomes a file of pairs for each drawing."""

    command = "render"
    past = "rendered"
    makes = "pairs"

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardRenderer:
        return ShardRenderer(self, threads, on_chunk)

    def described(self) -> dict[str, Any]:
        return {
            "columns": [as_row(column) for column in stored_columns(self.recipe)],
            "labels": {name: repr(task.label_kind()) for name, task in self.recipe.tasks.items()},
        }

    @property
    def folders(self) -> tuple[str, ...]:
        return (BAD,) if self.recipe.render.keep_bad else ()

    def output(self, i: int, epoch: int) -> str:
        """The file name of one drawing of shard `i`."""
        return f"{self.stem(i)}-e{epoch}.{'tar' if self.recipe.render.format == 'webdataset' else 'parquet'}"


class ShardRenderer:
    """Renders input shards to disk, one after another.

    Args:
        job: what to render, and where to.
        threads: CPU threads that decode, and that compress.
        on_chunk: called after each chunk.
        in_child: as for `CrashSafeRenderer`.

    Raises:
        RunError: this machine's engine or libraries are not those of the job.
    """

    def __init__(self, job: RenderJob, threads: int = 1, on_chunk: OnChunk | None = None, in_child: bool = False) -> None:
        self._job, self._on_chunk = job, on_chunk
        self._render = CrashSafeRenderer(job.recipe, threads, in_child=in_child)
        here = identity_of(job.recipe, self._render.engine_identity(), job.identity)["engine"]
        if here != job.identity["engine"]:
            raise RunError(
                f"the machines do not render alike: one has {job.identity['engine']}, another has {here}; give all the same"
            )
        self._format = ShardFormat(job.recipe, stored_columns(job.recipe))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, i: int, out: str | None = None) -> CommitRecord:
        """Render shard `i` and write its outputs, but not its commit record.

        Args:
            i: the shard's place in the corpus.
            out: another folder than the job's.

        Raises:
            ShardError: the shard is damaged, gone, or cannot be read.
            OutputError: the outputs cannot be written.
            RunError: processes died again and again at the same samples.
        """
        job, out = self._job, out or self._job.out
        job.corpus.forget_members()  # those of the shard before: no shard comes twice
        samples = len(job.corpus.members(i))
        epochs = range(job.recipe.render.epochs)
        bad: list[Bad] = []
        reported = 0
        with writing(out), ExitStack() as files:
            writers = [files.enter_context(self._format.open(join(out, job.output(i, epoch)))) for epoch in epochs]
            bad_files = _BadFiles(files, join(out, f"{BAD}/{job.stem(i)}.tar")) if job.recipe.render.keep_bad else None
            for first, chunk, read in ahead(chunks_of(job, i, samples), 1):
                rows: set[int] = set()
                seconds = Counter({"read": read})
                for epoch, writer in zip(epochs, writers):
                    pairs = self._render([sample for sample, _ in chunk], epoch)
                    started = time.perf_counter()
                    self._write(writer, pairs, chunk, [job.corpus.row(i, first + n) for n in range(len(chunk))], epoch)
                    seconds.update({**pairs.seconds, "write": time.perf_counter() - started})
                    for n in sorted(pairs.failures):
                        bad.append(bad_sample(first + n, chunk[n][0].key, epoch, pairs.failures[n], self._images(*chunk[n])))
                    rows |= pairs.failures.keys()
                if bad_files:
                    for n in sorted(rows):
                        bad_files.keep(chunk[n][0].key, first + n, self._images(*chunk[n]))
                if self._on_chunk:
                    reasons = [one.reason for one in bad[reported:]]
                    drawn = len(chunk) * len(epochs)
                    self._on_chunk(drawn, (drawn - len(reasons)) * len(job.recipe.tasks), reasons, dict(seconds))
                    reported = len(bad)
            for writer in writers:
                writer.finish()
            if bad_files:
                bad_files.finish()
        return CommitRecord(
            shard=job.shard(i),
            bytes=int(job.corpus.sizes[i]),
            samples=samples,
            outputs=[writer.output(job.output(i, epoch)) for epoch, writer in zip(epochs, writers)],
            bad=sorted(bad, key=lambda one: (one.epoch, one.row)),
            kept=bad_files.output() if bad_files else None,
        )

    def close(self) -> None:
        """Release the child process, if there is one."""
        self._render.close()

    def _images(self, sample: Sample, parts: dict[str, memoryview]) -> dict[str, memoryview]:
        """A sample's image, or all images of a clip, by extension."""
        clips = self._job.recipe.corpus.frames is not None
        return {ext: body for ext, body in parts.items() if ext == sample.ext or (clips and naming.is_image(ext))}

    def _write(self, writer: Writer, pairs: Pairs, chunk: Chunk, rows: list[int], epoch: int) -> None:
        def prepare(n: int) -> dict[str, object]:
            return self._format.prepare({column.name: pairs.columns[column.name][n] for column in self._format.columns})

        good = [n for n in range(len(chunk)) if n not in pairs.failures]
        suffix = f"-e{epoch}" if self._job.recipe.render.epochs > 1 else ""
        for n, files in zip(good, self._pool.map(prepare, good) if self._pool else map(prepare, good)):
            sample, parts = chunk[n]
            others = {ext: bytes(body) for ext, body in parts.items() if ext != sample.ext and not naming.is_image(ext)}
            writer.add(sample.key + suffix, rows[n], sample, others, files)


class _BadFiles:
    """A tar of the files that could not be decoded, made when the first one comes."""

    def __init__(self, files: ExitStack, url: str) -> None:
        self._files, self._url = files, url
        self._tar: TarWriter | None = None
        self._keys: set[str] = set()
        self._count = 0

    def keep(self, key: str, row: int, images: dict[str, memoryview]) -> None:
        if not images:
            return
        name = f"{key}-row{row}" if key in self._keys else key  # else the tar would hold two files of one name
        self._keys.add(key)
        if self._tar is None:
            self._tar = TarWriter(self._files.enter_context(write_atomic(self._url)))
        for ext, body in images.items():
            self._tar.add(f"{name}.{ext}", body)
        self._count += 1

    def finish(self) -> None:
        if self._tar is not None:
            self._tar.finish()

    def output(self) -> Output | None:
        name = self._url.rpartition("/")[2]
        return Output(f"{BAD}/{name}", self._tar.position, self._tar.sha256.hexdigest(), self._count) if self._tar else None


def chunks_of(job: Job, i: int, samples: int) -> Iterator[tuple[int, Chunk, float]]:
    """The samples of shard `i`, some at a time: the first row, the samples, and the seconds that reading them took."""
    for first in range(0, samples, job.chunk):
        started = time.perf_counter()
        rows = np.arange(first, min(first + job.chunk, samples))
        yield first, job.corpus.read_members(i, rows), time.perf_counter() - started


def bad_sample(row: int, key: str, epoch: int, reason: str, images: dict[str, memoryview]) -> Bad:
    """The record of a sample that cannot be used, with the size and hash of its images' files."""
    sha256 = hashlib.sha256(b"".join(images.values())).hexdigest() if images else ""
    return Bad(row, key, epoch, reason, sum(map(len, images.values())), sha256)
