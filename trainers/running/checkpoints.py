"""Checkpoints: one file each, written atomically in the background of training, and checked by its digest when it is read."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from pipeline.storage import join, make_folder, read_all, remove, walk, write_atomic

_NAME = re.compile(r"step-(\d{12})-([0-9a-f]{16})\.pt")

log = logging.getLogger(__name__)

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    A name holds the step and a digest of the content, by which a damaged file is recognised; the file is written by `torch.save`.

    Args:
        folder: path or URL that all workers reach.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: str, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: State) -> None:
        """Serialise the state as it is now, and write it in the background after the previous one.

        Raises:
            OSError: the previous one could not be written.
        """
        self.wait()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._writing = self._writer.submit(self._write, step, buffer)

    def wait(self) -> None:
        """Wait until all is written; errors as in `save`."""
        if self._writing is not None:
            self._writing.result()

    def newest(self) -> str | None:
        """Name of the newest checkpoint that is intact, None if there is none; warns of damaged ones."""
        for name in self.names():
            try:
                _checked(name, read_all(join(self._folder, name)))
            except ValueError as error:
                log.warning("%s is skipped, and the one before it is used: %s", join(self._folder, name), error)
            except FileNotFoundError:
                continue  # gone since it was listed
            else:
                return name
        return None

    def load(self, name: str, device: torch.device | str = "cpu") -> State:
        """Load a checkpoint by its name; tensors and plain data only.

        Raises:
            ValueError: it is damaged.
            OSError: it cannot be read.
        """
        content = _checked(name, read_all(join(self._folder, name)))
        state: State = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        return state

    def names(self) -> list[str]:
        """Names of all checkpoints, the newest first."""
        try:
            files = [name for name, _ in walk(self._folder)]
        except FileNotFoundError:
            return []
        return sorted(filter(_NAME.fullmatch, files), reverse=True)

    def discard_all_but(self, name: str) -> None:
        """Remove all other checkpoints, which are not needed any more; warns of any that cannot be removed."""
        for other in self.names():
            if other != name:
                try:
                    remove(join(self._folder, other))
                except OSError as error:
                    log.warning("%s is not needed any more and cannot be removed: %s", join(self._folder, other), error)

    def _write(self, step: int, buffer: io.BytesIO) -> None:
        content = buffer.getbuffer()
        name = f"step-{step:012d}-{_digest(content)}.pt"
        make_folder(self._folder)
        with write_atomic(join(self._folder, name)) as file:
            file.write(content)
        older = [other for other in self.names() if other <= name]  # a later one is damaged: else the run would have used it
        for other in older[self._keep :]:
            remove(join(self._folder, other))


def _checked(name: str, content: bytes) -> bytes:
    found = _NAME.fullmatch(name)
    if found is None or _digest(content) != found[2]:
        raise ValueError(f"it is damaged or incomplete ({len(content)} bytes)")
    return content


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
