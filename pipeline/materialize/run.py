"""Renders a corpus to disk: the plan of a render, and its checks before any output is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.errors import ShardError, UserError
from pipeline.materialize.columns import stored_columns
from pipeline.materialize.driver import JobReport, materialize
from pipeline.materialize.driver import Progress as Progress
from pipeline.materialize.folder import check_access, identity_there
from pipeline.materialize.job import CHUNK, identity_of, known_sums
from pipeline.materialize.shard import RenderJob
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import build_engine, engine_name, settled
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import annotated, open_corpus, warn_of_namesakes
from pipeline.shards.remarks import Remarks
from pipeline.storage import absolute
from pipeline.streaming.connection import connect_ray

log = logging.getLogger(__name__)

T = TypeVar("T")


class RenderReport(JobReport):
    """The result of a render."""

    @property
    def rendered(self) -> int:
        """The input shards that this run rendered."""
        return self.made

    @property
    def pairs(self) -> int:
        """Pairs on disk, all drawings together."""
        return self.rows


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
    corpus = corpus_of(recipe, progress)
    identity = identity_of(recipe, engine, identity_there(out))
    return RenderJob(recipe, corpus, absolute(out), identity, known_sums(corpus))


def corpus_of(recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Open a recipe's shards for a job, damaged ones among them, and warn of what is odd; arguments and errors as of `plan`."""
    corpus = opened(recipe, progress)
    warn_of_namesakes(corpus)
    _warn_of_other_images(corpus)
    return corpus


def opened(recipe: Recipe, progress: Callable[[int, int], None] | None = None, index: bool = True) -> Corpus:
    """Open a recipe's shards, damaged ones among them, with the labels that it names and the images that it keeps.

    `index` is as of `open_corpus`, other arguments and errors are as of `plan`.
    """
    spec = recipe.corpus
    corpus = open_corpus(
        spec.shards,
        spec.image,
        index=index,
        progress=progress,
        keep_damaged=True,
        frames=spec.frames,
        index_in=spec.index,
        keys=spec.keys,
    )
    return annotated(corpus, spec, recipe.seed)


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
    if recipe.corpus.labelled:
        raise UserError("corpus.labelled: which labels are known is no part of a rendered corpus; train from the shards")
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
    job = render_job(recipe, out, indexing, chunk, here)
    done = materialize(job, retry_failed, progress, here)
    return RenderReport(**{**vars(done), "seconds": time.perf_counter() - started})


def render_job(
    recipe: Recipe, out: str, indexing: Callable[[int, int], None] | None = None, chunk: int = CHUNK, here: bool = False
) -> RenderJob:
    """Make the job of `render`, before any output is written; arguments and errors as there."""
    check(recipe, out)
    if not here:
        connect_ray()
    recipe = engine_chosen(recipe, here)
    engine = asked(lambda: build_engine(recipe).identity(), recipe, here)
    return replace(plan(recipe, out, engine, indexing), chunk=chunk)


def engine_chosen(recipe: Recipe, here: bool) -> Recipe:
    """The recipe with `engine: auto` replaced, by the GPUs that this process sees or that the actors are given."""
    if here:
        return recipe.model_copy(update={"engine": engine_name(recipe)})
    place = recipe.placement.model_copy(update={"render": "workers"})
    return settled(recipe.model_copy(update={"placement": place}))


def asked(ask: Callable[[], T], recipe: Recipe, here: bool) -> T:
    """The answer of a function where actors would run it, or in this process: they may have GPUs where the driver has none."""
    if here:
        return ask()
    import ray

    def there() -> T:  # Ray takes plain functions only
        return ask()

    place = recipe.placement
    answer: T = ray.get(ray.remote(num_cpus=place.cpus, num_gpus=place.gpus)(there).remote())
    return answer
