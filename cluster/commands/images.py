"""`pack` and `inspect`: images into shards, and what shards hold."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Result


class Labels(StrEnum):
    """Where labels come from when packing."""

    folder = "folder"
    none = "none"


def pack(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder of images, or a tar of one (.tar, .tar.gz, ...); a path or URL.", show_default=False
        ),
    ],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="Folder for the shards; new or empty; a path or URL.", show_default=False)
    ],
    labels: Annotated[
        Labels, typer.Option(help="`folder`: the topmost folder of each file is its class; `none`: images without labels.")
    ] = Labels.folder,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Size of a shard at most: 256MiB, 1GB, ...")] = "256MiB",
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Skip larger files, with a warning.")] = "1GiB",
    clips: Annotated[
        bool, typer.Option("--clips", help="Files named alike up to their first dot (a.0.jpg, a.1.jpg) are frames of one sample.")
    ] = False,
    test: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Set this share of each class apart for testing, such as 0.2: shards go to DST/train and DST/test.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Masks of the images, PNGs of the same names, whose grey levels or places in a palette are class numbers; "
            "classes.json in it may name them.",
            show_default=False,
        ),
    ] = None,
    voc: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Boxes in VOC's XML, one file an image.", show_default=False)
    ] = None,
    coco: Annotated[
        str | None, typer.Option(metavar="FILE", help="Boxes of all images in COCO's JSON.", show_default=False)
    ] = None,
    outlines: Annotated[bool, typer.Option("--outlines", help="With --coco: masks of the outlines in place of boxes.")] = False,
    result: Result = None,
) -> None:
    """Pack a folder of images into WebDataset shards with an index.

    The images' bytes stay as they are; each sample's key is its file's path, and its label is its member `cls`. The same input
    makes the same shards, byte by byte. A pack that was interrupted is completed by running the same command again.

    With --masks, --voc or --coco each sample also gets its mask (`seg.png`) or boxes (`boxes.json`), and no label.

    Example: [bold]pseudolabel pack photos/ shards/[/]
    """
    from cluster.jobs.command_result import recorded, result_url
    from cluster.reports.progress import counted
    from cluster.reports.terminal import pack_table, print_out
    from pipeline.shards.pack import pack as run
    from pipeline.storage import join
    from pipeline.targets import open_targets

    with recorded("pack", result) as outcome:
        size, most = _bytes(shard_size, "--shard-size"), _bytes(max_bytes, "--max-bytes")
        outcome.begin(result_url(dst, "pack"))
        with counted("packing", "B") as progress:
            report = run(src, dst, labels.value, size, progress, clips, most, test, open_targets(masks, voc, coco, outlines))
        outcome.counts = {"samples": report.samples, "shards": report.shards, "bytes": report.bytes}
        outcome.artefacts = {"shards": report.folder, "index.parquet": join(report.folder, "index.parquet")}
        if report.test:
            outcome.counts["test_samples"] = report.test.samples
            outcome.artefacts["test"] = report.test.folder
        print_out(pack_table(report))


def inspect(
    shards: Annotated[
        list[str],
        typer.Argument(
            help="Folder, pattern ('shards/{000000..000009}.tar', '*.tar') or names of shards; paths or URLs.", show_default=False
        ),
    ],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Decode every image completely, to find damage that a run would meet or silently crop away."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Inspect shards: counts, formats, sizes, labels, masks or boxes, and what would be quarantined.

    Reads shards that other tools made, too, and writes an index for those that have none.

    Example: [bold]pseudolabel inspect shards/ --deep[/]
    """
    from cluster.reports.progress import counted
    from cluster.reports.terminal import inspect_tables, print_json, print_out
    from pipeline.shards.inspect import inspect as run
    from pipeline.shards.opening import open_corpus
    from pipeline.targets import TargetReader

    with counted("indexing", "shard") as progress:
        corpus = open_corpus(shards, progress=progress, keep_damaged=True)
    with counted("looking through", "shard") as progress:
        numbers = None if corpus.numbers is None else frozenset(corpus.numbers)
        report = run(corpus, deep, progress=progress, targets=TargetReader(numbers))
    if json:
        print_json(report.as_dict())
    else:
        print_out(*inspect_tables(report))


def _bytes(text: str, option: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from pipeline.errors import UserError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UserError(f"{option} {text}: not a size; write it like 256MiB, 256MB or 1GB") from None
