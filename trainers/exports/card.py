"""The model card of an exported backbone: how it is used, what it was trained on, and what it is worth."""

from __future__ import annotations

import json
from typing import Any

import yaml

from pipeline.storage import scrubbed_document
from trainers.exports.finished import FinishedRun
from trainers.running.measures import measure_words, measured_value

_LIBRARIES = {"torchvision": "pytorch", "safetensors": "pytorch", "timm": "timm", "huggingface": "timm", "onnx": "onnx"}


def model_card(finished: FinishedRun, to: str, code: str, difference: float, largest: float) -> str:
    """Write a card in Markdown, with the header that Hugging Face reads.

    Args:
        finished: the run.
        to: the format of the export.
        code: Python that computes `features` of normalised `images` from the exported files.
        difference: the largest difference of features between the exported network and the backbone.
        largest: the largest feature.
    """
    extractor, recipe = finished.network, scrubbed_document(finished.recipe)
    about, name = extractor.preprocessing, recipe["name"]
    tasks = list(finished.pretrained.get("tasks") or recipe["tasks"])  # rounds add tasks of their own
    header = {
        "library_name": _LIBRARIES[to],
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", *tasks],
    }
    layer = (
        f"the mean of `{extractor.layer}` over positions" if extractor.layer else "what the network's own classifier would see"
    )
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name}",
        f"A {extractor.spec.name} that learnt from unlabelled images by the pretext tasks {', '.join(tasks)} (pseudolabel).",
        f"## Use\n\nInput: `images`, float32 (n, 3, {about.size}, {about.size}), for any n. Output: `features`, float32 (n, "
        f"{extractor.width}): {layer}.\n\n```python\n{code}\n```",
        "Photos become inputs so: the shorter side is resized to "
        f"{about.size} pixels (bilinear, antialiased), the middle square of {about.size} x {about.size} is cut out, and "
        f"values in 0..1 are normalised by mean {_numbers(about.mean)} and standard deviation {_numbers(about.std)} of the "
        "channels (RGB).",
        f"Batch normalisation, where the network has it, keeps the statistics of pretraining. These features differ by at most "
        f"{difference:.2g} from those of the run's own network, whose largest is {largest:.2g}.",
        f"## Data\n\n{_data(finished, recipe)}",
    ]
    if metrics := _metrics(finished):
        parts.append(f"## Metrics\n\n{metrics}")
    parts.append(f"## Recipe\n\n```json\n{json.dumps(recipe, indent=1, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _data(finished: FinishedRun, recipe: dict[str, Any]) -> str:
    corpus, seen = recipe["corpus"], finished.pretrained.get("stages", {}).get("samples")
    mixture = {name: part["shards"] for name, part in corpus.get("mix", {}).items()} or {"": corpus.get("shards")}
    where = "; ".join(f"{f'{name}: ' if name else ''}`{shards}`" for name, shards in mixture.items())
    counts = f" {seen:,.0f} samples were trained in {finished.pretrained['steps']:,} steps." if seen else ""
    return f"Shards: {where}.{counts}"


def _metrics(finished: FinishedRun) -> str:
    rows = []
    for row in finished.downstream:
        error = row.get("standard_error")
        spread = "" if error is None else f" ± {100 * error:.1f}"
        where = f" on `{row['layer']}`" if "layer" in row else ""
        steps = f", {row['steps']:,} steps" if "steps" in row else ""
        words = f"{measure_words(row)} " if "measure" in row else ""
        about = f"{row['protocol']}{where}, {row['labels']:,} labels{steps}"
        rows.append(f"| {about} | {row['init']} weights | {words}{100 * measured_value(row):.1f}{spread} % |")
    for name, task in finished.pretrained.get("tasks", {}).items():
        measured = task.get("measured", "its metric")
        rows.append(f"| pretext task {name} | {measured}; trivial answer {task['trivial']:.3g} | {task['metric']:.3g} |")
    if not rows:
        return ""
    notes = [
        f"{command} ran with another recipe than the one below: "
        + ", ".join(f"`{key}` {json.dumps(now)} instead of {json.dumps(was)}" for key, (was, now) in keys.items())
        + "."
        for command, keys in finished.differs.items()
        if keys
    ]
    return "\n\n".join(["\n".join(["| measured | of | result |", "| --- | --- | --- |", *rows]), *notes])
