"""This project rendering to disk through Ray Data: WebDataset shards of PNGs, each exactly once."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.contenders import plain_ray
from benchmarks.contenders.ours import recipe_of
from benchmarks.work import Batch, Job
from pipeline.materialize.driver import Progress
from pipeline.materialize.run import render

PASSES = False


class _Enough(Exception):
    """Stops the work once no more batches are asked for."""


def batches(job: Job) -> Iterator[Batch]:
    """As many batches as the corpus has shards; what they hold lies on disk, and `image` has only the batch's length."""

    def work(out: str, note: Callable[[Progress], None]) -> None:
        render(recipe_of(job, actors=job.workers), out, progress=note)

    with closing(written(work)) as found:
        yield from (batch for batch, _ in found)


def written(work: Callable[[str, Callable[[Progress], None]], object]) -> Generator[tuple[Batch, str], None, None]:
    """Run work that writes shards, in a thread; yields an empty batch of the length of each, and the folder.

    Args:
        work: called with the folder to write, which is not there, and what to call after each shard.
    """
    done: queue.Queue[int | BaseException] = queue.Queue()
    enough = threading.Event()
    before = 0

    def note(progress: Progress) -> None:
        nonlocal before
        if enough.is_set():
            raise _Enough
        if progress.samples_done > before:
            done.put(progress.samples_done - before)
            before = progress.samples_done

    def run(out: str) -> None:
        try:
            work(out, note)
            done.put(_Enough())
        except _Enough:
            pass
        except BaseException as error:  # noqa: BLE001  raised where the batches are wanted
            done.put(error)

    with plain_ray.quietly(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # actors may still write
        out = str(Path(folder, "out"))
        thread = threading.Thread(target=run, args=(out,), daemon=True)
        thread.start()
        try:
            while True:
                item = done.get()
                if isinstance(item, _Enough):
                    return
                if isinstance(item, BaseException):
                    raise item
                yield {"image": np.empty((item, 0), np.uint8)}, out
        finally:
            enough.set()
            thread.join()
