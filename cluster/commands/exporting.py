"""`export`: a pretrained backbone in the format of another library."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cluster.commands.options import Result, Run


def export(
    run: Run,
    to: Annotated[
        Literal["torchvision", "timm", "safetensors", "onnx", "huggingface"],
        typer.Option("--to", help="The library that is to read it.", show_default=False),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Folder for the files; a path or URL.", show_default=False)
    ],
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest difference that is accepted, as a share of the largest feature.")
    ] = 1e-4,
    result: Result = None,
) -> None:
    """Export a run's backbone to another library, with its preprocessing and a model card.

    The exported network is loaded back and compared with the backbone on batches of 1, 2 and 7 images; nothing is written if they
    differ by more than the tolerance. README.md, the model card, has the lines of code that load it.

    Example: [bold]pseudolabel export runs/photos --to timm --out photos-timm/[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.terminal import print_out
    from trainers.exports.export import export as work

    with recorded("export", result) as outcome:
        found = work(run, to, out, tolerance)
        outcome.artefacts = {"folder": found.folder}
        outcome.metrics = {"difference": found.difference, "largest_feature": found.largest}
        print_out(
            f"{found.folder}: {', '.join(found.files)}",
            f"images (n, 3, {found.size}, {found.size}), normalised -> features (n, {found.width})",
            f"largest difference {found.difference:.2g}, of features up to {found.largest:.2g}",
        )
