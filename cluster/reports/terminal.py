"""What commands print when they are done: tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cluster.console import PlainConsole
from cluster.reports.formatting import amount, curve, duration

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from cluster.doctor.checks import Findings
    from cluster.jobs.ray_jobs import ClusterJob
    from cluster.jobs.run_state import RunState
    from pipeline.labels import LabelKind
    from pipeline.materialize.driver import JobReport
    from pipeline.materialize.run import RenderReport
    from pipeline.materialize.verify import Verdict
    from pipeline.shards.inspect import CorpusReport, TargetCounts
    from pipeline.shards.pack import PackReport
    from pipeline.tasks import Task

_MOST_ROWS = 20
_LOG_WIDTH = 130
_LONGEST = 60  # characters of a default
_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def print_out(*parts: RenderableType) -> None:
    """Print to stdout; a plain string is printed unchanged and never wrapped, so that it can be copied or piped."""
    console = PlainConsole(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, highlight=False)
        else:
            console.print(part)


def print_json(content: Any) -> None:
    """Print JSON to stdout, without secrets, and nothing else."""
    from pipeline.storage import scrubbed_document

    print(json.dumps(scrubbed_document(content), indent=1))


def plan_table(command: str, facts: Mapping[str, str | int]) -> Table:
    """What a command would do; numbers of bytes and seconds are shown as sizes and times."""
    table = _facts("command", f"{command}, which was not run")
    for name, value in facts.items():
        table.add_row(*_fact(name, value))
    return table


def estimate_table(facts: Mapping[str, str | int]) -> Table:
    """What a command would take, as measured; see `plan_table`."""
    (name, value), *more = facts.items()
    table = _facts(*_fact(name, value))
    for name, value in more:
        table.add_row(*_fact(name, value))
    return table


def _fact(name: str, value: str | int) -> tuple[str, str]:
    title, _, unit = name.rpartition(" ")
    if isinstance(value, str) or unit not in ("bytes", "seconds"):
        return name, value if isinstance(value, str) else f"{value:,}"
    return title, amount(value, "B") if unit == "bytes" else duration(value)


def pack_table(report: PackReport) -> Table:
    """What `pack` wrote."""
    table = _facts("packed", report.folder)
    table.add_row("samples", f"{report.samples:,}")
    table.add_row("shards", f"{report.shards:,} ({amount(report.bytes, 'B')})")
    named = _some(report.classes) if report.classes else "none"
    table.add_row("labels", f"{report.target} of {named}" if report.target else named)
    if report.classes and len(report.classes) == 1 and not report.target:
        (name,) = report.classes
        table.add_row(
            "note", f"one class only: all images lie in the folder {name}; if the classes lie below it, pack that folder"
        )
    for reason, times in report.skipped.items():
        table.add_row("skipped", f"{times:,} {reason}")
    if report.faulty:
        times, first = sum(report.faulty.values()), next(iter(report.faulty))
        table.add_row("training will refuse", f"{amount(times, 'image')}; of the first, {first}")
    if report.skipped_files:
        table.add_row("skipped files", report.skipped_files)
    if report.test:
        table.add_row("for testing", f"{report.test.folder}: {amount(report.test.samples, 'sample')}")
    return table


def inspect_tables(report: CorpusReport) -> list[RenderableType]:
    """What `inspect` found: sums, then quarantined and damaged samples."""
    table = _facts(
        "corpus", f"{amount(report.samples, 'sample')} in {amount(report.shards, 'shard')}, {amount(report.bytes, 'B')}"
    )
    table.add_row(
        "formats", ", ".join(f"{name} {times:,}" for name, times in report.formats.items()) or "no image can be decoded"
    )
    for name, spread in (("width", report.width), ("height", report.height)):
        if spread:
            table.add_row(name, f"{spread.min} to {spread.max} pixels, median {spread.median}")
    labels = [f"{name} {times:,}" for name, times in report.labels.items()]
    table.add_row("labels", _some(labels) if labels else "none")
    if labels and report.unlabelled:
        table.add_row("without label", f"{report.unlabelled:,}")
    for name, words in (("masks", _mask_words(report.masks)), ("boxes", _box_words(report.boxes))):
        if words:
            table.add_row(name, words)
    if report.masks or report.boxes:
        table.add_row("refused targets", f"of {amount(len(report.unfit), 'sample')}")
    shared = (
        f", of {report.namesakes:,} samples; corpus.keys: shard tells those of different shards apart" if report.namesakes else ""
    )
    table.add_row("duplicate keys", f"{report.duplicate_keys:,}{shared}")
    table.add_row(
        "quarantine", amount(len(report.quarantine), "sample") + ("" if report.deep else " by their headers; --deep decodes all")
    )
    if report.deep:
        table.add_row("damaged images", f"{len(report.spoilt):,} that are decoded all the same")
    table.add_row("damaged shards", f"{len(report.damaged):,}")
    for remark in report.remarks:
        table.add_row("note", remark)
    parts: list[RenderableType] = [table]
    parts += _list("would be quarantined", ("shard", "key", "reason"), [(r.shard, r.key, r.reason) for r in report.quarantine])
    what = "damaged, and decoded as far as possible"
    parts += _list(what, ("shard", "key", "reason"), [(r.shard, r.key, r.reason) for r in report.spoilt])
    refused = "masks or boxes that training will refuse"
    parts += _list(refused, ("shard", "key", "reason"), [(r.shard, r.key, r.reason) for r in report.unfit])
    parts += _list("damaged shards", ("shard", "reason"), [(d.shard, d.reason) for d in report.damaged])
    parts += _list("duplicate keys", ("key", "shards"), [(d.key, ", ".join(d.shards)) for d in report.duplicates])
    return parts


def _mask_words(counts: TargetCounts | None) -> str:
    if counts is None:
        return ""
    total = max(sum(counts.classes.values()), 1)
    classes = [f"{name} {times / total:.1%}" for name, times in counts.classes.items()]
    return f"of {amount(counts.images, 'image')}: {_some(classes)}; {amount(counts.ignored, 'pixel')} that do not count"


def _box_words(counts: TargetCounts | None) -> str:
    if counts is None:
        return ""
    classes = [f"{name} {times:,}" for name, times in counts.classes.items()]
    also = {"crowds": counts.ignored, "without area, in refused targets": counts.degenerate}
    more = "".join(f"; {times:,} {words}" for words, times in also.items() if times)
    empty = f", {counts.empty:,} of which have none" if counts.empty else ""
    return f"{sum(counts.classes.values()):,} in {amount(counts.images, 'image')}{empty}: {_some(classes)}{more}"


def render_table(report: RenderReport) -> Table:
    """What `render` left."""
    table = _facts("rendered", report.out)
    table.add_row("shards", f"{report.shards - len(report.failed):,} of {report.shards:,}, {report.rendered:,} by this run")
    table.add_row("pairs", f"{report.pairs:,} of {amount(report.samples, 'sample')}")
    table.add_row("quarantined", amount(report.quarantined, "sample"))
    table.add_row("time", duration(report.seconds))
    return table


def job_table(report: JobReport, title: str, of: str) -> Table:
    """What a job other than a render left: `title` is what it makes, `of` are its samples in words."""
    table = _facts(title, report.out)
    table.add_row("shards", f"{report.shards - len(report.failed):,} of {report.shards:,}, {report.made:,} by this run")
    table.add_row(of, f"{report.rows:,} of {report.samples:,}, {report.quarantined:,} quarantined")
    table.add_row("time", duration(report.seconds))
    return table


def cluster_tables(found: Mapping[str, Any]) -> list[Table]:
    """The report of `cluster`, a table for each clustering."""
    first, *others = (_clustering(one) for one in (found, *found.get("more", ())))
    if pca := found.get("pca"):
        whitened = ", whitened" if pca["whitened"] else ""
        fewer = "" if pca["components"] == pca["asked"] else f" (of {pca['asked']:,}: features vary in no more directions)"
        first.add_row("components", f"{pca['components']:,}{fewer}, {pca['variance']:.1%} of the variance{whitened}")
    if near := found.get("duplicates"):
        groups = f"{amount(near['groups'], 'group')}, the largest of {near['largest_group']:,}" if near["groups"] else "no groups"
        first.add_row("duplicates", f"{amount(near['duplicates'], 'image')} near an original, in {groups}")
    return [first, *others]


def _clustering(found: Mapping[str, Any]) -> Table:
    """A clustering's part of the report of `cluster`."""
    sizes, labels, inertia = sorted(found["sizes"]), found["labels"], found["inertia"]
    fewer = "" if found["clusters"] == found["asked"] else f" (of {found['asked']:,}: the sample has no more distinct features)"
    table = _facts("clusters", f"{found['clusters']:,}{fewer}")
    if found["column"] != "label":
        table.add_row("column", found["column"])
    if coarse := found.get("coarse"):
        table.add_row("coarse clusters", f"{len(coarse['clusters']):,}")
    table.add_row("sizes", f"{sizes[0]:,} to {sizes[-1]:,}, half of them below {sizes[len(sizes) // 2]:,}")
    table.add_row("inertia", f"{inertia[0]:.4g} to {inertia[-1]:.4g} in {amount(len(inertia) - 1, 'round')}  {curve(inertia)}")
    table.add_row("mean distance", f"{found['mean_distance']:.4g}")
    if before := found.get("before"):
        table.add_row("before", f"{before['normalised']:.1%} mutual information with the earlier clusters")
    if labels:
        table.add_row("labels", f"{labels['normalised']:.1%} mutual information, {labels['purity']:.1%} purity")
    return table


def label_table(found: Mapping[str, Any]) -> Table:
    """The report of `label`."""
    images, sizes = max(1, found["images"]), list(zip(found["sizes"], found["classes"]))
    table = _facts("classes", f"{len(sizes):,}")
    for title, (count, name) in (("most frequent", max(sizes)), ("least frequent", min(sizes))):
        table.add_row(title, f"{name}: {amount(count, 'image')}")
    table.add_row("confidence", f"{found['confidence']:.3f} on average")
    for level, count in found["reached"].items():
        table.add_row(f"at least {level}", f"{count / images:.1%} of the images")
    if labels := found["labels"]:
        table.add_row("labels", f"{labels['normalised']:.1%} mutual information, {labels['purity']:.1%} purity")
    return table


def selection_table(found: Mapping[str, Any]) -> Table:
    """What `label` chose for a student."""
    table = _facts("kept", f"{amount(found['images'], 'image')}: {found['out']}")
    for title, (count, name) in (
        ("most", max(zip(found["sizes"], found["classes"]))),
        ("least", min(zip(found["sizes"], found["classes"]))),
    ):
        table.add_row(f"{title} of a class", f"{name}: {amount(count, 'image')}")
    table.add_row("not sure enough", amount(sum(found["below"]), "image"))
    table.add_row("more than asked for", amount(sum(found["beyond"]), "image"))
    return table


def verify_tables(verdict: Verdict) -> list[RenderableType]:
    """What `verify` found."""
    table = _facts("rendered corpus" if verdict.holds == "pairs" else verdict.holds, verdict.url)
    table.add_row("shards", f"{verdict.shards:,} in {amount(verdict.files, 'file')}")
    table.add_row(verdict.holds, f"{verdict.pairs:,} of {amount(verdict.samples, 'sample')}, {verdict.quarantined:,} quarantined")
    if verdict.rendered_again:
        table.add_row("rendered again", amount(verdict.rendered_again, "shard"))
    for note in verdict.notes:
        table.add_row("note", note)
    table.add_row("verdict", amount(len(verdict.problems), "problem") if verdict.problems else "everything matches the manifest")
    return [table, *_list("problems", ("file", "reason"), [(p.file, p.reason) for p in verdict.problems])]


def tasks_table(known: Mapping[str, type[Task]]) -> Table:
    """All pretext tasks."""
    table = Table(title="pretext tasks", box=SIMPLE_HEAD, title_justify="left")
    for heading in ("task", "label", "what it does", "paper"):
        table.add_column(heading, overflow="fold")
    for name, task in known.items():
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(_label(task)).__name__).lower()
        table.add_row(name, kind, _first_sentence(task), task.source)
    return table


def task_panels(name: str, task: type[Task]) -> list[RenderableType]:
    """One task: what it does, its label, and its parameters from the fields' own types, defaults and descriptions."""
    table = Table(title=f"parameters (in a recipe: tasks.{name}.<parameter>)", box=SIMPLE_HEAD, title_justify="left")
    for heading in ("parameter", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for parameter, field in task.model_fields.items():
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        table.add_row(parameter, _type(field), default, field.description or "")
    about = "\n".join(" ".join(part.split()) for part in (task.__doc__ or "").split("\n\n"))
    return [f"{name}: {about}\n", f"source: {task.source}", f"label:  {_label(task)}\n", table]


def _shown(value: Any) -> str:
    """A default as JSON; if it would fill the screen, its length."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{len(value)} values"


def doctor_tables(findings: Findings) -> list[RenderableType]:
    """What `doctor` found."""
    machine = _facts("machine", "")
    for name, words in findings.machine_words().items():
        machine.add_row(name, words)
    versions = _facts("versions", "")
    for name, number in findings.versions.items():
        versions.add_row(name, number or "not installed")
    tests = Table(title="self-test", box=SIMPLE_HEAD, title_justify="left")
    for heading in ("engine", "test", "result", "found"):
        tests.add_column(heading, overflow="fold")
    colours = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
    for check in findings.checks:
        tests.add_row(check.engine, check.name, Text(check.status, colours[check.status]), check.found)
    meanings = {check.meaning for check in findings.checks if check.status == "failed"}
    return [machine, versions, tests, *(f"failed: {meaning}" for meaning in sorted(meanings)), f"verdict: {findings.verdict}"]


def run_table(run: str, state: RunState) -> Table:
    """What a run is doing, or has done."""
    table = _facts("run", run)
    table.add_row("command", state.command)
    table.add_row("status", state.status)
    if state.error:
        table.add_row("error", state.error)
    if state.lines:
        newest = state.lines[-1]
        if "round" in newest:
            table.add_row("round", f"{newest['round']} of {newest['rounds']}")
        table.add_row("step", f"{newest['step']:,} of {newest['steps']:,} ({newest['stage']})")
        table.add_row("loss", ", ".join(f"{name} {task['loss']:.3f}" for name, task in newest["tasks"].items()))
        table.add_row("newest line", f"{duration(max(0.0, time.time() - newest['time']))} ago")
    if state.left is not None:
        table.add_row("left", duration(state.left))
    return table


def jobs_table(jobs: list[ClusterJob]) -> Table:
    """The jobs of a cluster."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("job", "command", "status", "started", "took"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        started = datetime.fromtimestamp(job.started).isoformat(" ", "seconds") if job.started else ""
        took = duration((job.ended or time.time()) - job.started) if job.started else ""
        table.add_row(job.id, job.command, job.status, started, took)
    return table


def _facts(name: str, value: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(name, value)
    return table


def _list(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[RenderableType]:
    if not rows:
        return []
    more = f"and {len(rows) - _MOST_ROWS:,} more; --json lists all" if len(rows) > _MOST_ROWS else None
    table = Table(title=title, caption=more, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*row)
    return [table]


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _MOST_ROWS:,} more" if len(names) > _MOST_ROWS else ""
    classes = "1 class" if len(names) == 1 else f"{len(names):,} classes"
    return f"{classes}: {', '.join(names[:_MOST_ROWS])}{more}"


def _first_sentence(task: type[Task]) -> str:
    return " ".join((task.__doc__ or "").split()).split(". ")[0].rstrip(".") + "."


def _label(task: type[Task]) -> LabelKind | None:
    """The label kind with default parameters; None where a parameter has no default."""
    try:
        return task.model_validate({}).label_kind()
    except ValidationError:
        return None


def _type(field: FieldInfo) -> str:
    """A field's type and its limits."""
    kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation).replace("typing.", "")
    limits = [f"{sign} {getattr(m, name):g}" for m in field.metadata for name, sign in _LIMITS.items() if hasattr(m, name)]
    return ", ".join([kind, *limits])
