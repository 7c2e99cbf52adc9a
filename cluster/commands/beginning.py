"""`init`: a first recipe for a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    shards: Annotated[list[str], typer.Argument(help="Folder, pattern or names of shards; paths or URLs.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The recipe; a new file.")] = Path("recipe.yaml"),
    test: Annotated[
        list[str] | None, typer.Option("--test", metavar="SHARDS", help="Labelled shards to test on; may be repeated.")
    ] = None,
) -> None:
    """Write a recipe that fits a corpus, with a comment on each line.

    Up to 512 images are decoded, to choose the size of crops and to measure the means and deviations of the channels. Backbone,
    batch and workers fit this machine. The recipe runs as it is, and is meant to be changed.

    Example: [bold]pseudolabel init shards/ --out photos.yaml[/]
    """
    from cluster.reports.progress import counted
    from cluster.reports.terminal import print_out
    from pipeline.engines import gpus_visible
    from pipeline.errors import UserError
    from pipeline.recipe.document import parse_yaml
    from pipeline.recipe.load import parse_recipe
    from pipeline.rendering.measuring import measure
    from pipeline.shards.opening import open_corpus
    from pipeline.streaming.connection import DATA_TASK_CPUS, local_cpus
    from trainers.running.first_recipe import Hardware, crop_size, first_recipe

    if out.exists():
        raise UserError(f"{out}: it is there already; name another file with --out, or remove it")
    with counted("indexing", "shard") as progress:
        corpus = open_corpus(shards, progress=progress)
    machine = Hardware(cpus=int(local_cpus() - DATA_TASK_CPUS), gpus=int(bool(gpus_visible())))
    found, given = measure(corpus, crop_size), shards[0] if len(shards) == 1 else shards
    text = first_recipe(_name(shards[0]), given, test, found, machine)
    parse_recipe(parse_yaml(text))
    try:
        out.write_text(text)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    print_out(text.rstrip("\n"), "", f"written to {out}; look at its pairs next: pseudolabel preview {out} -o pairs.png")


def _name(shards: str) -> str:
    """A name for the run: the last folder that does not itself mean shards."""
    import re

    from pipeline.storage import without_secrets

    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in without_secrets(shards).split("/")]
    named = [
        part
        for part in parts
        if part and not part.endswith(".tar") and part not in ("shards", "train", "s3", "gs", "http", "https")
    ]
    return named[-1] if named else "first"
