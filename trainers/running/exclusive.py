"""Lets only one process of a cluster do the same work at a time.

Nothing large is imported here: the actor that holds a name would import it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import UnderWay

_NAMESPACE = "pseudolabel"


@contextmanager
def exclusive(work: str) -> Iterator[None]:
    """While the block runs, no other process of the cluster can do the same work.

    It holds the name of a Ray actor, which only one process can have; Ray frees the name however that process ends.

    Args:
        work: the command, and where its results go.

    Raises:
        UnderWay: another process is doing this work.
    """
    import ray

    name = hashlib.sha256(work.encode()).hexdigest()
    try:
        holder: Any = ray.remote(num_cpus=0)(_Holder).options(name=name, namespace=_NAMESPACE).remote()
    except ValueError:
        raise UnderWay(
            f"{work} is under way on this cluster already: wait for it, or stop it; `pseudolabel list` shows the jobs"
        ) from None
    try:
        yield
    finally:
        if ray.is_initialized():  # an interrupted command has disconnected already, which frees the name
            ray.kill(holder)


class _Holder:
    """An actor that only holds a name."""
