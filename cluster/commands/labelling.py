"""`embed`, `cluster` and `label`: what a model says of every image, in tables beside a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import typer

from cluster.commands.dry_running import say_plan
from cluster.commands.interrupts import interruptible
from cluster.commands.options import AsJson, DryRun, Overrides, RecipePath, Result
from cluster.commands.shard_jobs import RESUMES, RetryFailed, record_job, refuse_failed, shard_job, silence_data


def embed(
    recipe: RecipePath,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Folder for the features; a path or URL.", show_default=False)
    ],
    run: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Folder of the run whose backbone is taken; by default the recipe's own.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of weights, such as torchvision's, instead of a run's.", show_default=False),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="The layer whose output, averaged over positions, is the feature; by default the deepest that is trained.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Type of the vectors on disk.")] = "float16",
    views: Annotated[
        int,
        typer.Option(min=1, help="Average this many views of an image: its centre, and crops that are drawn as for training."),
    ] = 1,
    retry_failed: RetryFailed = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    result: Result = None,
) -> None:
    """Compute a feature vector of every image with a trained backbone, as Parquet.

    Each shard is written exactly once. If the command is killed at any moment, the same command resumes. The centre of each image
    goes through the network, and with `--views` random crops, too. Exit code 1 if shards failed.

    Example: [bold]pseudolabel embed recipe.yaml --out features/[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.terminal import job_table, print_out
    from pipeline.recipe import load_recipe
    from trainers.labelling.embed import check
    from trainers.labelling.embed import embed as compute

    if dry_run:
        from trainers.labelling.embed import embed_job
        from trainers.planning.dry_run import embed_plan
        from trainers.planning.estimates import estimate_job

        given = (load_recipe(recipe, overrides or []), out, run, weights, layer, dtype, views)
        return say_plan("embed", lambda: embed_plan(*given), lambda: estimate_job(embed_job, *given))
    with recorded("embed", result) as outcome:
        loaded = load_recipe(recipe, overrides or [])
        check(loaded, out, run, weights, layer, dtype, views)
        with shard_job("embed", loaded, out, outcome, "embedding") as shown:
            report = compute(loaded, out, run, weights, layer, dtype, views, retry_failed, *shown)
        record_job(outcome, report, "features")
        print_out(job_table(report, "features", "images"))
        refuse_failed(report)


def cluster(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="Folder that `embed` has written.", show_default=False)],
    k: Annotated[
        list[int],
        typer.Option("--k", "-k", min=1, help="How many clusters; give it again for several clusterings.", show_default=False),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Folder for the labels; a path or URL.", show_default=False)
    ],
    spherical: Annotated[
        bool, typer.Option("--spherical/--plain", help="Compare directions by cosine, or points by Euclidean distance.")
    ] = True,
    pca: Annotated[
        int | None,
        typer.Option(metavar="D", min=1, help="Cluster so many principal components of the features, in place of these."),
    ] = None,
    whiten: Annotated[bool, typer.Option("--whiten/--no-whiten", help="With --pca: make all components vary alike.")] = True,
    levels: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="2: coarse clusters first, then those of each; by default above 20,000 clusters.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of k-means, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Chooses the sample and the first centroids.")] = 0,
    duplicates: Annotated[
        float | None,
        typer.Option(metavar="COSINE", help="Find near-duplicates in each cluster: the least cosine of two, such as 0.95."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Labels of an earlier clustering of the same images: clusters keep their numbers."),
    ] = None,
    actors: Annotated[
        int,
        typer.Option(min=0, help="How many actors of Ray, of a CPU each, find each image's cluster; 0: this process does."),
    ] = 0,
    sheet: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw photos of some clusters, the nearest to the centroids and the furthest, as PNG.",
            show_default=False,
        ),
    ] = None,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    json: AsJson = False,
    result: Result = None,
) -> None:
    """Cluster features by k-means, and give every image the number of its cluster.

    Centroids come from a sample of at most 256 features a cluster; then each shard's labels are written exactly once, as Parquet.
    If the command is killed at any moment, the same command resumes.

    Example: [bold]pseudolabel cluster features/ --k 1000 --out clusters/[/]
    """
    from cluster.jobs.command_result import recorded, result_url
    from cluster.reports.progress import rendering
    from cluster.reports.terminal import cluster_tables, job_table, print_json, print_out
    from pipeline.materialize.folder import check_access
    from pipeline.storage import absolute
    from trainers.labelling.cluster import cluster as compute
    from trainers.labelling.cluster import placed
    from trainers.labelling.features import open_features
    from trainers.running.exclusive import exclusive
    from trainers.running.preflight import check_render
    from trainers.running.session import connect

    if dry_run:
        from trainers.labelling.cluster import clustering_job
        from trainers.planning.dry_run import cluster_plan
        from trainers.planning.estimates import estimate_cluster

        how: dict[str, Any] = {"pca": pca, "whiten": whiten, "levels": levels, "before": before}
        job = clustering_job(features, k, out, spherical, rounds, seed, duplicates, **how)
        return say_plan("cluster", lambda: cluster_plan(job), lambda: estimate_cluster(job))
    with recorded("cluster", result) as outcome:
        source = open_features(features)
        check_access(out)
        outcome.begin(result_url(out, "cluster"))
        with interruptible(outcome, RESUMES), rendering("clustering") as progress:
            if actors:
                connect(placed(source.recipe, actors), check_render)
                silence_data()
            given = (features, k, out, spherical, rounds, seed, duplicates, retry_failed, progress)
            with exclusive(f"cluster into {absolute(out)}") if actors else nullcontext():
                report, found = compute(*given, pca=pca, whiten=whiten, levels=levels, before=before, actors=actors)
        record_job(outcome, report, "labels")
        outcome.metrics = _metrics(found, "mean_distance")
        outcome.counts["clusters"] = found["clusters"]
        if json:
            print_json(found)
        else:
            print_out(job_table(report, "labels", "images"), *cluster_tables(found))
        if sheet is not None:
            from cluster.pictures.cluster_sheet import draw_clusters

            draw_clusters(out, sheet)
            outcome.artefacts["sheet"] = absolute(sheet)
        refuse_failed(report)


def label(
    recipe: RecipePath,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Folder for the labels; a path or URL.", show_default=False)
    ],
    run: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Folder of the fine-tuned run that names the classes; by default the recipe's own.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the most probable classes are written.")] = 5,
    least: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Then choose images for a student: the least confidence of one.", show_default=False),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Then choose the N most confident images of each class.", show_default=False),
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Folder for what was chosen; by default `kept` in that of the labels.", show_default=False
        ),
    ] = None,
    retry_failed: RetryFailed = False,
    json: AsJson = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    result: Result = None,
) -> None:
    """Let a fine-tuned network name the class of every image, with its confidence, as Parquet.

    The recipe says which images are labelled. Each shard is written exactly once. If the command is killed at any moment, the
    same command resumes. With --least or --per-class, a second folder of tables says which images to keep, for `corpus.keep`.
    Exit code 1 if shards failed.

    Example: [bold]pseudolabel label recipe.yaml --out labels/[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.terminal import job_table, label_table, print_json, print_out, selection_table
    from pipeline.errors import UserError
    from pipeline.recipe import load_recipe
    from pipeline.storage import join
    from trainers.labelling.label import check
    from trainers.labelling.label import label as compute
    from trainers.labelling.selection import check_bounds, select

    check_bounds(least or 0.0, per_class)
    chooses = least is not None or per_class is not None
    if kept is not None and not chooses:
        raise UserError("--kept names a folder for what --least or --per-class choose: give one of these, too")
    if dry_run:
        from trainers.labelling.label import label_job
        from trainers.planning.dry_run import label_plan
        from trainers.planning.estimates import estimate_job

        given = (load_recipe(recipe, overrides or []), out, run, top)
        return say_plan("label", lambda: label_plan(*given), lambda: estimate_job(label_job, *given))
    with recorded("label", result) as outcome:
        loaded = load_recipe(recipe, overrides or [])
        check(loaded, out, run, top)
        with shard_job("label", loaded, out, outcome, "labelling") as shown:
            report, found = compute(loaded, out, run, top, retry_failed, *shown)
        record_job(outcome, report, "labels")
        outcome.metrics = _metrics(found, "confidence")
        if chooses and not report.failed:
            with interruptible(outcome, RESUMES):
                chosen, found["kept"] = select(out, kept or join(out, "kept"), least or 0.0, per_class, retry_failed)
            found["kept"]["out"] = chosen.out
        if json:
            print_json(found)
        else:
            print_out(job_table(report, "labels", "images"), label_table(found))
            if "kept" in found:
                print_out(selection_table(found["kept"]))
        refuse_failed(report)


def _metrics(found: Mapping[str, Any], mean: str) -> dict[str, float]:
    """What a report measures: the mean that it has under this name, and what its labels tell of the shards' own."""
    return {mean: found[mean], **{f"labels/{name}": value for name, value in (found["labels"] or {}).items()}}
