"""Writes a first recipe for a corpus: YAML with a comment on each line, from what was measured and what this machine has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rendering.measuring import Measured
from pipeline.tasks import registry
from trainers.networks.stem import SMALL_IMAGE

_SIZES = (32, 48, 64, 96, 128, 160, 224)
_STEPS = 1000
_MOST_EPOCHS = 200
_LEAST_BATCHES = 8  # in an epoch


@dataclass(frozen=True)
class Hardware:
    """What a run may use: logical CPUs and GPUs."""

    cpus: int
    gpus: int


def crop_size(side: int) -> int:
    """The side of crops for images whose shorter side is so many pixels: the largest usual size that does not enlarge them."""
    return max([size for size in _SIZES if size <= side], default=max(8, side))


def first_recipe(name: str, shards: str | Sequence[str], test: Sequence[str] | None, found: Measured, machine: Hardware) -> str:
    """Write the recipe.

    Args:
        name: of the run.
        shards: the unlabelled or labelled shards to pretrain on.
        test: labelled shards to test on, if there are any.
        found: what was measured on the shards.
        machine: where it will run.

    Returns:
        YAML, which is valid as it is, with a comment on each line.
    """
    batch = _batch(found, machine)
    steps = max(1, found.samples // batch)
    epochs = min(_MOST_EPOCHS, max(1, round(_STEPS / steps)))
    large = machine.gpus and found.size > SMALL_IMAGE
    network = (
        ("resnet50", "for large images on a GPU") if large else ("resnet18", "small; `pretrain --dry-run` says how long it takes")
    )
    clips = found.frames >= (frames := registry()["frame_order"].frames)
    stem = ("auto", "the small stem for images of 96 pixels or less, as a GPU can afford it")
    if not machine.gpus:
        stem = ("standard", "on a GPU, `auto` is better for small images; it costs ten times the work")
    lines: list[tuple[str, str]] = [
        (f"name: {name}", "results go to runs/<name>"),
        ("seed: 0", "all random numbers depend on it"),
        ("corpus:", f"{found.samples:,} samples"),
        (f"  shards: {_yaml(shards)}", "folder, pattern or list of shards; paths or URLs"),
        *([(f"  frames: {min(found.frames, 64)}", "images of each sample that are frames of a clip")] if clips else []),
        ("image:", "the crop that all tasks share"),
        (f"  size: {found.size}", f"pixels; the middle one of {found.looked_at} images has a shorter side of {found.side}"),
        ("  scale: [0.4, 1.0]", "share of the photo that a random crop covers"),
        (f"  mean: {_yaml(found.mean)}", f"channel means of {found.looked_at} images, measured"),
        (f"  std: {_yaml(found.std)}", "channel standard deviations, measured"),
        ("tasks:", "`pseudolabel tasks` lists them all, docs/methods.md compares methods"),
        ("  rotation: {}", "learns shapes; leave it out where photos have no up and down"),
        ("  occlusion: {}", "learns what belongs together"),
        *([] if found.is_grey else [("  colorization: {}", "learns what things look like; only of images that have colours")]),
        *([("  frame_order: {}", f"learns movement from {frames} frames")] if clips else []),
        ("placement:", "where pairs are rendered"),
        (f"  actors: {_actors(machine)}", "rendering processes; more if training waits for data"),
        (f"  cpus: {0.5 if machine.cpus < 4 else 1}", "of each"),
        ("training:", ""),
        ("  backbone:", ""),
        (f"    name: {network[0]}", network[1]),
        (f"    stem: {stem[0]}", stem[1]),
        (f"  batch: {batch}", f"{_times(steps, 'step')} an epoch"),
        (f"  epochs: {epochs}", f"{_times(epochs * steps, 'step')} in all; more is better"),
        *([("  gpus: 1", "of each training worker")] if machine.gpus else []),
        ("  optimizer: {name: adamw, lr: 1.0e-3}", "a safe start for batches of this size"),
        *_downstream(shards, test, found),
    ]
    width = min(64, max(len(key) for key, _ in lines))
    return "".join(f"{key:<{width}}  # {words}\n" if words else f"{key}\n" for key, words in lines)


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _downstream(shards: str | Sequence[str], test: Sequence[str] | None, found: Measured) -> list[tuple[str, str]]:
    if not found.has_labels:
        return [("# downstream:", "these shards have no labels: name some here to measure what was learnt")]
    if not test:
        return [
            ("# downstream:", "to measure what was learnt, take away the `# ` and name labelled test shards"),
            (f"#   train: {_yaml(shards)}", "labelled shards to train on"),
            ("#   test: shards/test", "labelled shards to test on, none of which is among those above"),
        ]
    return [
        ("downstream:", "the labelled task on which features are tested"),
        (f"  train: {_yaml(shards)}", "labelled shards to train on"),
        (f"  test: {_yaml(test[0] if len(test) == 1 else test)}", "labelled shards to test on"),
    ]


def _batch(found: Measured, machine: Hardware) -> int:
    """A power of two that leaves some steps in an epoch, and fits memory."""
    most = 256 if machine.gpus or found.size <= SMALL_IMAGE else 64
    batch = 8
    while batch < most and 2 * batch * _LEAST_BATCHES <= found.samples:
        batch *= 2
    return min(batch, max(1, found.samples))


def _actors(machine: Hardware) -> int:
    return 1 if machine.cpus < 6 else min(8, machine.cpus // 3)


def _yaml(value: object) -> str:
    """A value on one line: JSON is YAML, too."""
    return json.dumps(value, ensure_ascii=False)
