"""Reports a run of the benchmark: gates, a table in Markdown, and a plot."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks import extras

GATES = Path(__file__).with_name("gates.yaml")

Rounds = list[dict[str, Any]]


def rates(rounds: Rounds, by: str) -> list[float]:
    """Photos a second and core of each round: `wall` divides by the cores it may use, `cpu` by the processor time it used."""
    if by == "wall":
        return [one["images"] / (one["seconds"] * one["cores"]) for one in rounds]
    return [one["images"] / max(one["cpu"], 1e-9) for one in rounds]


def gates(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Every gate of `gates.yaml` for which there are measurements: what was found, and whether it is promised here and missed."""
    wanted, found = yaml.safe_load(GATES.read_text()), []
    for gate in wanted["ratios"]:
        section = content["sections"].get(gate["section"], {})
        others = [section[name] for name in gate["over"] if section.get(name)]
        if not section.get(gate["ours"]) or not others:
            continue
        ratios = {}
        for by in gate.get("by", ["wall", "cpu"]):
            ours = statistics.median(rates(section[gate["ours"]], by)) * gate.get("times", 1)
            ratios[by] = ours / max(statistics.median(rates(rounds, by)) for rounds in others)
        promised = any(kind in content["machine"]["cpu"] for kind in gate.get("processors", [""]))
        missed = promised and min(ratios.values()) < gate["at_least"]
        found.append({**gate, "ratios": ratios, "promised": promised, "missed": missed})
    for gate in wanted["limits"]:
        value = _find(content, gate["value"])
        if value is not None:
            missed = value > gate["at_most"] if "at_most" in gate else value != gate["exactly"]
            found.append({**gate, "found": value, "missed": missed})
    return found


def _find(content: Any, path: str) -> Any:
    """The number at a path of keys; of a list, its length."""
    for key in path.split("/"):
        if key not in content:
            return None
        content = content[key]
    return len(content) if isinstance(content, list) else content


def markdown(content: dict[str, Any]) -> str:
    """Everything as Markdown."""
    machine = content["machine"]
    lines = [
        f"`{content['command']}`, {content['date']}, {machine['cores']} cores of {machine['cpu']}"
        f"{' (virtual machine)' if machine['virtual'] else ''}: {', '.join([*machine['features'], *machine['caches']])}.",
        f"Medians of {content['rounds']} rounds, in brackets the least and the greatest.",
        "",
        *(f"- {size}: {about}" for size, about in content["photos"].items()),
        "",
        ", ".join(f"{name} {number}" for name, number in content["versions"].items() if number),
        "",
    ]
    for name, section in content["sections"].items():
        lines += [f"### {name}", "", *_table(section), ""]
    for name, values in content["beside"].items():
        numbers = [(key, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}") for key, value in values.items()]
        lines += [f"### {name}", "", extras.MEASURES[name].__doc__ or "", "", *_rows((name, ""), numbers), ""]
    if content.get("gates"):
        head = ("goal", "by wall time", "by CPU time", "wanted", "")
        lines += ["### Gates", "", *_rows(head, _gate_rows(content["gates"])), ""]
    lines += [f"**wrong**: {text}" for text in content["wrong"]]
    return "\n".join(lines)


def _table(section: dict[str, Rounds]) -> list[str]:
    rows = []
    for who, rounds in section.items():
        if not rounds:
            continue
        mean = statistics.median
        rows.append(
            (
                who,
                _spread(rates(rounds, "wall")),
                _spread(rates(rounds, "cpu")),
                f"{mean(one['cpu'] / one['images'] for one in rounds) * 1000:.2f}",
                f"{rounds[0]['first']:.1f}",
                f"{mean(one['own'] for one in rounds) / 1e6:.0f} + {mean(one['others'] for one in rounds) / 1e6:.0f}",
            )
        )
    head = ("contender", "photos/s and core", "photos/CPU s", "CPU ms a photo", "first batch, s", "MB, own + others'")
    return _rows(head, rows)


def _gate_rows(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for gate in found:
        if "ratios" in gate:
            values = [f"{gate['ratios'][by]:.2f}" if by in gate["ratios"] else "" for by in ("wall", "cpu")]
            wanted = f"at least {gate['at_least']}"
        else:
            values = [f"{gate['found']:,.2f}" if isinstance(gate["found"], float) else f"{gate['found']:,}", ""]
            wanted = f"at most {gate['at_most']}" if "at_most" in gate else f"exactly {gate['exactly']:,}"
        said = "**missed**" if gate["missed"] else "reached" if gate.get("promised", True) else "not promised here"
        rows.append((gate["goal"], *values, wanted, said))
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, ruler, *rows)]


def plot(content: dict[str, Any], path: Path) -> None:
    """Bars of photos a CPU second, a panel a section; ours in another colour, thin lines from the least to the greatest round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {name: {who: r for who, r in section.items() if r} for name, section in content["sections"].items()}
    shown = {name: section for name, section in shown.items() if section}
    if not shown:
        return
    heights = [len(section) + 1 for section in shown.values()]
    size = (9, 0.32 * sum(heights))
    figure, axes = pyplot.subplots(len(shown), 1, figsize=size, squeeze=False, height_ratios=heights, layout="constrained")
    for axis, (name, section) in zip(axes[:, 0], shown.items()):
        for place, (who, rounds) in enumerate(reversed(section.items())):
            values = rates(rounds, "cpu")
            middle = statistics.median(values)
            axis.barh(place, middle, color="#c2410c" if who.startswith("ours") else "#94a3b8")
            axis.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
            axis.text(max(values), place, f"  {middle:,.0f}", va="center", fontsize=8)
        axis.set_yticks(range(len(section)), list(reversed(section)), fontsize=8)
        axis.set_title(f"{name}: photos a CPU second", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(32).save(path, optimize=True)
