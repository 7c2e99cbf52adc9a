"""Rendering that survives a crash of its decoder: only the sample that causes the crash is lost."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.draws import hash64
from pipeline.errors import RunError
from pipeline.processes.child import ChildProcess, Died
from pipeline.recipe.schema import Recipe
from pipeline.rendering.find_crashers import ChildRenderer, find_crashers, portable
from pipeline.rendering.in_flight import InFlight, is_old
from pipeline.rendering.renderer import Pairs, Renderer
from pipeline.shards.corpus import Sample
from pipeline.targets import Target

_MOST_DEATHS = 3
"""Deaths of one run at the same samples that stop it, where no sample explains them."""

_DEATHS_ELSEWHERE = 2
"""Deaths in other runs that call for a search. One does not: to stop a stream is to kill its actors at whatever they work on."""

_KILLER = "killer-"


class CrashSafeRenderer:
    """A `Renderer` that finds the samples that crash their process, records them on local disk, and leaves them out.

    Records expire after a week, or when their folder is deleted.

    Args:
        recipe: the recipe.
        threads: CPU threads of the engine.
        center: as for `Renderer`.
        gpu: as for `Renderer`.
        in_child: render in a child process, so that this one survives a crash; else this one dies, and the process that takes
            its place searches for the sample.
        image: as for `Renderer`; a child process always makes it.
        target: as for `Renderer`.
        run: name of the run, whose crashes are counted together. By default that of this Ray actor, which it keeps when Ray
            restarts it, or else of this process; `this_job` for processes that are replaced by others.
    """

    def __init__(
        self,
        recipe: Recipe,
        threads: int = 1,
        center: bool = False,
        gpu: int | None = None,
        in_child: bool = False,
        image: bool = True,
        target: Target | None = None,
        run: str | None = None,
    ) -> None:
        self._recipe, self._center = recipe, center
        self._child = ChildProcess(ChildRenderer, recipe, threads, center, target) if in_child else None
        self._renderer = None if in_child else Renderer(recipe, threads, center, gpu, image, target)
        # Killers are recorded for a recipe and a version of the decoder: a run that restarts meets them again.
        identity = hash64(recipe.digest(), *(f"{k} {v}" for k, v in sorted(self.engine_identity().items())))
        self._folder = Path(tempfile.gettempdir()) / f"pseudolabel-{os.getuid()}" / f"{identity:016x}"
        self._in_flight = InFlight(self._folder, run or _this_run())
        self._killers: dict[tuple[int, str], str] = {}
        for file in self._folder.glob(f"{_KILLER}*"):
            if is_old(file):
                file.unlink(missing_ok=True)
                continue
            number, _, content = file.name.removeprefix(_KILLER).partition("-")
            self._killers[int(number, 16), content] = file.read_text()

    def engine_identity(self) -> dict[str, str]:
        """The engine's identity, see `Engine.identity`."""
        if self._renderer is not None:
            return self._renderer.engine.identity()
        assert self._child is not None
        (identity,) = self._child.call("identity")
        return dict(identity)

    def close(self) -> None:
        """Release the child process, if there is one."""
        if self._child is not None:
            self._child.close()

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Pairs:
        """Render as `Renderer` does; a sample that crashes the decoder is a failure with that reason.

        Raises:
            RunError: processes of this run died at these samples again and again, though each of them can be rendered alone.
        """
        if not samples:
            return self._rendered(samples, epoch)
        name = f"unit-{epoch}-{samples[0].id:016x}-{samples[-1].id:016x}"
        ours, of_all_runs = self._in_flight.deaths(name)
        if ours or of_all_runs >= _DEATHS_ELSEWHERE:
            self._search(samples, epoch, ours)
        with self._in_flight.at(name):
            return self._rendered(samples, epoch)

    def _rendered(self, samples: Sequence[Sample], epoch: int) -> Pairs:
        for deaths in count(1):
            left = [self._unless_killer(sample) for sample in samples] if self._killers else samples
            if self._renderer is not None:
                return self._renderer(left, epoch)
            assert self._child is not None
            try:
                (pairs,) = self._child.call("batch", portable(left), epoch)
            except Died:
                self._search(samples, epoch, deaths)
            else:
                return pairs
        raise AssertionError("it counts for ever")

    def _search(self, samples: Sequence[Sample], epoch: int, deaths: int) -> None:
        """Find out, in a child process, whether one of the samples crashed the process that worked on them.

        Args:
            samples: the samples.
            epoch: as of `__call__`.
            deaths: how many processes of this run died at them. Those that a user or a scheduler killed together with an
                earlier run do not count: each run counts from 0.
        """
        samples = [self._unless_killer(sample) for sample in samples]
        killers = find_crashers(samples, self._recipe, epoch, self._center)
        for i, reason in killers.items():
            number, content = samples[i].id, _content(samples[i])
            self._killers[number, content] = reason
            (self._folder / f"{_KILLER}{number:016x}-{content}").write_text(reason)
        if not killers and deaths >= _MOST_DEATHS:
            raise RunError(
                f"{deaths} processes died while they rendered the {len(samples)} samples from {samples[0].key} to "
                f"{samples[-1].key}, though each of them can be rendered alone: is there enough memory? "
                "Lower training.batch or placement.actors"
            )

    def _unless_killer(self, sample: Sample) -> Sample:
        if not any(number == sample.id for number, _ in self._killers):
            return sample
        reason = self._killers.get((sample.id, _content(sample)))
        return sample if reason is None else replace(sample, encoded=b"", sizes=(), problem=reason)


def _content(sample: Sample) -> str:
    """A hash of the sample's bytes, which tells it from another of its name, or from itself once it is repaired."""
    return hashlib.blake2b(sample.encoded, digest_size=8).hexdigest()


def this_job() -> str:
    """The name of the run that is all processes of this Ray job on this machine, or this process alone."""
    context = _ray_context()
    return secrets.token_hex(8) if context is None else f"{context.get_node_id()}-{context.get_job_id()}"


def _this_run() -> str:
    """The name of the run that is this Ray actor, or this process."""
    context = _ray_context()
    return (context and context.get_actor_id()) or secrets.token_hex(8)


def _ray_context() -> Any:
    """What Ray knows of this process; None where it is not connected. Ray is not imported for the question."""
    ray = sys.modules.get("ray")
    return None if ray is None or not ray.is_initialized() else ray.get_runtime_context()
