"""One input shard to its rendered shards and its commit record: streamed, so that neither is ever held."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np

from pipeline.errors import RunError, ShardError
from pipeline.materialize.columns import stored_columns
from pipeline.materialize.commit import BAD, Bad, CommitRecord, Output
from pipeline.materialize.job import RenderJob, identity_of
from pipeline.materialize.writers import Form, Writer
from pipeline.rendering.crash_safe import CrashSafeRenderer
from pipeline.rendering.renderer import Pairs
from pipeline.shards import naming
from pipeline.shards.corpus import Sample
from pipeline.shards.writing import TarWriter
from pipeline.storage import join, write_atomic
from pipeline.streaming.batches import ahead

_Chunk = list[tuple[Sample, dict[str, memoryview]]]
Told = Callable[[int, int, list[str], dict[str, float]], None]


class OutputError(RunError):
    """Storage refused what was to be written: the fault of no shard."""


class ShardRenderer:
    """Renders input shards to disk, one after another.

    Args:
        job: what to render, and where to.
        threads: CPU threads that decode, and that compress.
        told: called after each chunk, as `pipeline.streaming.metrics.Meter.rendered` is.
        aside: as for `CrashSafeRenderer`.

    Raises:
        RunError: this machine's engine or libraries are not those of the job.
    """

    def __init__(self, job: RenderJob, threads: int = 1, told: Told | None = None, aside: bool = False) -> None:
        self._job, self._told = job, told
        self._render = CrashSafeRenderer(job.recipe, threads, aside=aside)
        here = identity_of(job.recipe, self._render.engine_identity(), job.identity)["engine"]
        if here != job.identity["engine"]:
            raise RunError(
                f"the machines do not render alike: one has {job.identity['engine']}, another has {here}; give all the same"
            )
        self._form = Form(job.recipe, stored_columns(job.recipe))
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
        job.corpus.forget_members()  # of the shard before: no shard comes twice
        samples = len(job.corpus.members(i))
        epochs = range(job.recipe.render.epochs)
        bad: list[Bad] = []
        told = 0
        with _outputs(out), ExitStack() as files:
            writers = [files.enter_context(self._form.open(join(out, job.output(i, epoch)))) for epoch in epochs]
            keeper = _Keeper(files, join(out, f"{BAD}/{job.stem(i)}.tar")) if job.recipe.render.keep_bad else None
            for first, chunk, read in ahead(self._chunks(i, samples), 1):
                rows: set[int] = set()
                seconds = Counter({"read": read})
                for epoch, writer in zip(epochs, writers):
                    pairs = self._render([sample for sample, _ in chunk], epoch)
                    started = time.perf_counter()
                    self._write(writer, pairs, chunk, first, epoch)
                    seconds.update({**pairs.seconds, "write": time.perf_counter() - started})
                    for n in sorted(pairs.failures):
                        bad.append(_bad(first + n, chunk[n][0].key, epoch, pairs.failures[n], self._images(*chunk[n])))
                    rows |= pairs.failures.keys()
                if keeper:
                    for n in sorted(rows):
                        keeper.keep(chunk[n][0].key, first + n, self._images(*chunk[n]))
                if self._told:
                    reasons = [one.reason for one in bad[told:]]
                    drawn = len(chunk) * len(epochs)
                    self._told(drawn, (drawn - len(reasons)) * len(job.recipe.tasks), reasons, dict(seconds))
                    told = len(bad)
            for writer in writers:
                writer.finish()
            if keeper:
                keeper.finish()
        return CommitRecord(
            shard=job.shard(i),
            bytes=int(job.corpus.sizes[i]),
            samples=samples,
            outputs=[writer.output(job.output(i, epoch)) for epoch, writer in zip(epochs, writers)],
            bad=sorted(bad, key=lambda one: (one.epoch, one.row)),
            kept=keeper.output() if keeper else None,
        )

    def close(self) -> None:
        """End its process, where it has one of its own."""
        self._render.close()

    def _chunks(self, i: int, samples: int) -> Iterator[tuple[int, _Chunk, float]]:
        """First row, samples, and the seconds that reading them took."""
        for first in range(0, samples, self._job.chunk):
            started = time.perf_counter()
            rows = np.arange(first, min(first + self._job.chunk, samples))
            chunk = self._job.corpus.read_members(i, rows)
            yield first, chunk, time.perf_counter() - started

    def _images(self, sample: Sample, parts: dict[str, memoryview]) -> dict[str, memoryview]:
        """A sample's image, or all images of a clip, by extension."""
        clips = self._job.recipe.corpus.frames is not None
        return {ext: body for ext, body in parts.items() if ext == sample.ext or (clips and naming.is_image(ext))}

    def _write(self, writer: Writer, pairs: Pairs, chunk: _Chunk, first: int, epoch: int) -> None:
        def prepare(n: int) -> dict[str, object]:
            return self._form.prepare({column.name: pairs.columns[column.name][n] for column in self._form.columns})

        good = [n for n in range(len(chunk)) if n not in pairs.failures]
        suffix = f"-e{epoch}" if self._job.recipe.render.epochs > 1 else ""
        for n, files in zip(good, self._pool.map(prepare, good) if self._pool else map(prepare, good)):
            sample, parts = chunk[n]
            others = {ext: bytes(body) for ext, body in parts.items() if ext != sample.ext and not naming.is_image(ext)}
            writer.add(sample.key + suffix, first + n, sample, others, files)


class _Keeper:
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


def _bad(row: int, key: str, epoch: int, reason: str, images: dict[str, memoryview]) -> Bad:
    sha256 = hashlib.sha256(b"".join(images.values())).hexdigest() if images else ""
    return Bad(row, key, epoch, reason, sum(map(len, images.values())), sha256)


@contextmanager
def _outputs(out: str) -> Iterator[None]:
    """Tell storage's refusals, which are about the outputs, from those of the shard, which are ShardErrors already."""
    try:
        yield
    except ShardError:
        raise
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
