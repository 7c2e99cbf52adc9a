"""The Ray Data plan of a render: shard numbers -> a pool of actors -> a row of counts each; and the driver that watches it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import RunError, ShardError, UserError
from pipeline.materialize.columns import stored_columns
from pipeline.materialize.commit import CommitRecord, failure_url, load_failure, save_failure
from pipeline.materialize.folder import State, check_access, claim, identity_there, read_state
from pipeline.materialize.job import CHUNK, RenderJob, identity_of, kept_recipe, known_sums
from pipeline.materialize.publish import publish
from pipeline.materialize.shard import OutputError, ShardRenderer
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import build_engine, engine_name, settled
from pipeline.rendering.quarantine import check_budget
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus, warn_of_namesakes
from pipeline.shards.remarks import Remarks
from pipeline.storage import absolute, is_local, remove
from pipeline.storage.files import pause
from pipeline.streaming.connection import connect_ray, quiet_data
from pipeline.streaming.metrics import Gauges, Meter

log = logging.getLogger(__name__)

DONE, FAILED, STOPPED = "done", "failed", "stopped"
_TRIES = 3
_NAMED = 5
_MOST_INIT_DEATHS = 10


@dataclass(frozen=True)
class Progress:
    """How far a render is: shards and samples of the whole corpus, including those of earlier runs."""

    shards: int
    shards_done: int
    samples: int
    samples_done: int
    quarantined: int
    failed: int


@dataclass(frozen=True)
class RenderReport:
    """The result of a render.

    Args:
        out: URL of the folder.
        shards: input shards.
        rendered: those of them that this run rendered.
        samples: samples in the shards that are done.
        pairs: pairs on disk, all drawings together.
        quarantined: samples of which a drawing is missing.
        failed: reason by the name of each shard that failed.
        seconds: how long this run took.
    """

    out: str
    shards: int
    rendered: int
    samples: int
    pairs: int
    quarantined: int
    failed: dict[str, str]
    seconds: float


def plan(recipe: Recipe, out: str, engine: dict[str, str], progress: Callable[[int, int], None] | None = None) -> RenderJob:
    """Make the job of rendering a recipe, before any output is written.

    Args:
        recipe: the recipe.
        out: folder for the result, path or URL.
        engine: identity of the engine that will render.
        progress: called with (shards indexed, shards to index).

    Raises:
        UserError: no tasks, no shards, an output that cannot be written.
    """
    check(recipe, out)
    spec = recipe.corpus
    corpus = open_corpus(
        spec.shards,
        spec.image,
        progress=progress,
        keep_damaged=True,
        frames=spec.frames,
        index_in=spec.index,
        keys=spec.keys,
    )
    warn_of_namesakes(corpus)
    _warn_of_other_images(corpus)
    identity = identity_of(recipe, engine, identity_there(out))
    return RenderJob(recipe, corpus, absolute(out), identity, known_sums(corpus))


def _warn_of_other_images(corpus: Corpus) -> None:
    """Warn where samples of the first shard hold several images: only one of them is rendered."""
    first = next((i for i, count in enumerate(corpus.counts) if count), None)
    if first is None or corpus.frames:
        return
    remarks = Remarks()
    try:
        remarks.add_images(corpus.members(first))
    except ShardError:
        return  # its own commit record will say so
    if remarks.several:
        log.warning(
            "%d samples of the first shard hold several images, such as %s: pairs are rendered of %s, the other images are left "
            "out, and members that are no images are kept",
            *(remarks.several, remarks.example, f"the member {corpus.image}" if corpus.image else "the first"),
        )


def check(recipe: Recipe, out: str) -> None:
    """Check that the recipe can be rendered to `out`; errors as in `plan`."""
    check_recipe(recipe)
    check_access(out)


def check_recipe(recipe: Recipe) -> None:
    """Check that the recipe can be rendered; errors as in `plan`."""
    if not recipe.tasks:
        raise UserError("the recipe names no tasks, so there are no pairs to render; `pseudolabel tasks` lists them")
    if recipe.corpus.mix:
        raise UserError("corpus.mix: a mixture is not rendered as one; render each of its corpora with `corpus.shards`")
    stored_columns(recipe)


def render(
    recipe: Recipe,
    out: str,
    retry_failed: bool = False,
    indexing: Callable[[int, int], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    chunk: int = CHUNK,
    here: bool = False,
) -> RenderReport:
    """Render a corpus to disk on Ray; after an interruption the same call completes it.

    Connects to Ray if this process is not connected. Each input shard is one piece of work: its outputs are written, each whole
    or not at all, and then its commit record. A shard that has one is never read again.

    Args:
        recipe: the recipe.
        out: folder for the result, path or URL.
        retry_failed: try those shards again that failed in an earlier run.
        indexing: called with (shards indexed, shards to index).
        progress: called after each shard.
        chunk: samples rendered at a time; what is written does not depend on it.
        here: render in this process, one shard after another, without Ray.

    Returns:
        What is on disk now. It names the shards that failed; the manifest is written without them.

    Raises:
        UserError: the render cannot start.
        BudgetExceeded: too many samples cannot be used.
        RunError: storage refused an output, or the job failed; committed shards are kept.
    """
    started = time.perf_counter()
    check(recipe, out)
    if not here:
        connect_ray()
    recipe = _engine_chosen(recipe, here)
    job = replace(plan(recipe, out, _engine_identity(recipe, here), indexing), chunk=chunk)
    state = read_state(job)
    shards = set(range(len(job.corpus.urls)))
    todo = sorted(shards.difference(state.done, () if retry_failed else state.failed))
    rendered: set[int] = set()
    if todo or not state.finished:
        claim(job, kept_recipe(recipe))
        rendered = _run(job, todo, state, progress, here)
    done = sorted({*state.done, *rendered})
    totals = publish(job, done)
    broken = [load_failure(job.out, job.stem(i)) for i in sorted(shards.difference(done))]
    reasons = {row["shard"]: row["reason"] for row in broken}
    seconds = time.perf_counter() - started
    return RenderReport(job.out, totals.shards, len(rendered), totals.samples, totals.pairs, totals.quarantined, reasons, seconds)


def _engine_chosen(recipe: Recipe, here: bool) -> Recipe:
    """The recipe with `engine: auto` replaced, by the GPUs that this process sees or that the actors are given."""
    if here:
        return recipe.model_copy(update={"engine": engine_name(recipe)})
    place = recipe.placement.model_copy(update={"render": "workers"})
    return settled(recipe.model_copy(update={"placement": place}))


def _engine_identity(recipe: Recipe, here: bool) -> dict[str, str]:
    """The identity of the engine as the actors will have it: they may have GPUs where the driver has none."""

    def ask() -> dict[str, str]:
        return build_engine(recipe).identity()

    if here:
        return ask()
    import ray

    place = recipe.placement
    answer: dict[str, str] = ray.get(ray.remote(num_cpus=place.cpus, num_gpus=place.gpus)(ask).remote())
    return answer


def _run(job: RenderJob, todo: list[int], state: State, progress: Callable[[Progress], None] | None, here: bool) -> set[int]:
    """Render the shards of `todo`; returns those that are done."""
    corpus = job.corpus
    counted = int(corpus.counts[state.done].sum()) if state.done else 0
    done: set[int] = set()
    broken: set[int] = set()
    seen = bad = 0
    some: list[dict[str, str]] = []
    gauges = Gauges(job.recipe.name, "render", job.recipe.failures.budget)

    def report() -> None:
        gauges.render(len(state.done) + len(done), len(broken), len(corpus.urls), seen, bad)
        if progress:
            progress(Progress(len(corpus.urls), len(state.done) + len(done), corpus.samples, counted, bad, len(broken)))

    if not todo:
        return done
    report()
    with closing(_rows_here(job, todo) if here else _rows(job, todo)) as rows:  # on any exit, the actors stop
        for row in rows:
            i, status = int(row["shard"]), row["status"]
            if i in done:  # a node was lost after it had rendered the shard, and the shard came again
                continue
            if status == STOPPED:
                raise RunError(
                    f"{row['words']}\nWhat is committed stays ({len(done)} shards of this run); the same command goes on"
                )
            if status == FAILED:
                broken.add(i)
            else:
                done.add(i)
                counted += int(corpus.counts[i])
                seen, bad = seen + int(row["samples"]), bad + int(row["quarantined"])
                if row["words"] and len(some) < _NAMED:
                    some.append({"shard": job.shard(i), "key": row["key"], "reason": row["words"]})
                check_budget(job.recipe.failures.budget, bad, seen, lambda: some)
            report()
    return done


def _rows(job: RenderJob, todo: list[int]) -> Generator[dict[str, Any], None, None]:
    """The result of each shard as a row, in the order in which they finish."""
    import ray
    import ray.data

    quiet_data()
    place = job.recipe.placement
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a shard may take its time
    context.max_consecutive_actor_init_deaths = _MOST_INIT_DEATHS
    with ray.data.DataContext.current(context):
        dataset = (
            ray.data.range(len(todo), override_num_blocks=1)
            .repartition(target_num_rows_per_block=1)
            .map_batches(
                _RenderShards,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=place.actors),
                num_cpus=place.cpus,
                num_gpus=place.gpus,
                fn_constructor_args=(job, np.asarray(todo, np.int64), place.threads),
            )
        )
        # With a split, an actor on this node runs the plan; in this process Ray would print a harmless error (its issue 53727).
        (split,) = dataset.streaming_split(1)
    try:
        yield from split.iter_rows()
    except ray.exceptions.RayError as error:
        raise RunError(f"the render was stopped by Ray: {_first_line(error)}; the same command goes on from there") from error


def _rows_here(job: RenderJob, todo: list[int]) -> Generator[dict[str, Any], None, None]:
    """Render the shards in this process; rows as of `_rows`."""
    actor = _RenderShards(job, np.asarray(todo, np.int64), job.recipe.placement.threads)
    for number in range(len(todo)):
        for row in actor({"id": np.array([number])}):
            yield {name: value[0] for name, value in row.items()}


class _RenderShards:
    """Actor that renders one shard a call, commits it, and returns the result as a row; failures of known kinds are rows, too."""

    def __init__(self, job: RenderJob, todo: np.ndarray, threads: int) -> None:
        self._job, self._todo, self._threads = job, todo, threads
        self._render: ShardRenderer | None = None
        self._meter = Meter(job.recipe.name, "render")

    def __call__(self, batch: dict[str, np.ndarray]) -> Generator[dict[str, Any], None, None]:
        for number in batch["id"]:
            row = self._one(int(self._todo[number]))
            yield {name: np.array([value], object if isinstance(value, str) else None) for name, value in row.items()}

    def _one(self, i: int) -> dict[str, Any]:
        started, job = time.perf_counter(), self._job
        row = {"shard": i, "status": DONE, "samples": 0, "pairs": 0, "quarantined": 0, "words": "", "key": "", "seconds": 0.0}
        try:
            record = self._record(i)
            row |= {"samples": record.samples, "pairs": sum(o.pairs for o in record.outputs), "quarantined": record.quarantined}
            if record.bad:
                row |= {"key": record.bad[0].key, "words": record.bad[0].reason}
        except ShardError as error:
            row |= self._fail(i, error.reason)
        except OutputError as error:
            row |= {"status": STOPPED, "words": str(error)}
        except (RunError, UserError) as error:
            row |= {"status": STOPPED, "words": f"{job.shard(i)}: {error}"}
        return {**row, "seconds": time.perf_counter() - started}

    def _record(self, i: int) -> CommitRecord:
        """The shard's record: the one that is there, or that of rendering the shard now."""
        job = self._job
        try:
            return CommitRecord.load(job.out, job.stem(i))
        except (OSError, ValueError):  # not done, or damaged
            pass
        if self._render is None:
            self._render = ShardRenderer(job, self._threads, self._meter.rendered)
        for attempt in range(_TRIES):
            try:
                record = self._render(i)
                try:
                    record.save(job.out, job.stem(i))
                    self._meter.wrote(sum(output.bytes for output in record.outputs))
                    remove(failure_url(job.out, job.stem(i)))
                except OSError as error:
                    raise OutputError(f"{job.out} cannot be written: {error}") from error
                return record
            except OutputError:
                if is_local(job.out) or attempt == _TRIES - 1:  # a full disk stays full
                    raise
                pause(attempt + 2)
        raise AssertionError("the last attempt returns or raises")

    def _fail(self, i: int, reason: str) -> dict[str, Any]:
        job = self._job
        try:
            save_failure(job.out, job.stem(i), job.shard(i), reason)
        except OSError as error:
            return {"status": STOPPED, "words": f"{job.out} cannot be written: {error}"}
        return {"status": FAILED, "words": reason}


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
