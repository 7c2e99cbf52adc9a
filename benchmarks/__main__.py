"""Measures this project and its alternatives on the same work, and fails if a gate of `gates.yaml` is missed.

    python -m benchmarks PHOTOS [--folder .bench] [--rounds 3] [--seconds 4] [--only PART ...] [--out runs/bench]

PHOTOS is a folder or tar of JPEGs. Contenders take turns, in rounds; the printed values are medians over the rounds. Every
contender's output is checked first. Leaves `bench.json`, `bench.md` and `bench.png`, up to date after each section, so that a run
that is stopped has reported what it measured; `--only` and `--merge` make a run in parts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import extras
from benchmarks.check import save_references
from benchmarks.photos import prepare
from benchmarks.report import gates, markdown, plot
from benchmarks.sections import Entry, sections
from cluster.reports.machine import this_machine, versions

_SIZES = ("500x375", "1600x1200", "32x32")
_UNCHECKED = ("floor", "ours_disk")  # they deliver no pixels; rendering to disk is checked by `pseudolabel verify`


class Host:
    """A process that runs contenders, so that none pays for another's imports, threads or memory."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, entry: Entry, **what: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"contender": entry.module, "job": asdict(entry.job), **what}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with {self._process.wait()}"}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Prepare, check and measure; yields the results so far after each section and each extra measurement."""
    cores = len(os.sched_getaffinity(0))
    folder = Path(given.folder).resolve()
    photos = {size: prepare(given.photos, folder, size) for size in _SIZES}
    for size, found in photos.items():
        _say(f"{size}: {found.about}")
    chosen = {
        name: {who: entry for who, entry in entries.items() if not given.who or any(part in who for part in given.who)}
        for name, entries in sections(photos, cores).items()
        if not given.only or any(part in name for part in given.only)
    }
    hosts: dict[str, Host] = {}
    wrong: list[str] = []
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks " + " ".join(["PHOTOS", *sys.argv[2:]]),
        "machine": this_machine().as_dict(),
        "versions": versions(),
        "photos": {size: found.about for size, found in photos.items()},
        "rounds": given.rounds,
        "wrong": wrong,
        "sections": {},
        "beside": {},
    }
    try:
        for name, entries in chosen.items():
            results: dict[str, list[dict[str, Any]]] = {who: [] for who in entries}
            for entry in entries.values():
                if entry.host not in hosts:
                    hosts[entry.host] = Host()
                if entry.module not in _UNCHECKED and not given.unchecked:
                    answer = hosts[entry.host].ask(_first(entry), references=_references(entry, folder))
                    if answer.get("wrong") or answer.get("error"):
                        wrong.append(f"{name}: {answer.get('wrong') or answer['error']}")
                        _say(f"WRONG {wrong[-1]}")
            for round_ in range(given.rounds):
                for who, entry in entries.items():
                    answer = hosts[entry.host].ask(entry, warm=given.warm, seconds=given.seconds)
                    if "error" in answer:
                        wrong.append(f"{name}: {who}: {answer['error']}")
                        _say(f"FAILED {wrong[-1]}")
                        continue
                    results[who].append({**answer, "cores": entry.cores})
                    rate = answer["images"] / answer["seconds"]
                    per_cpu = answer["images"] / max(answer["cpu"], 1e-9)
                    steady = "/".join(f"{part:.0f}" for part in answer["parts"])
                    _say(f"{name} {round_ + 1}: {who}: {rate:.0f} img/s ({steady}), {per_cpu:.0f} img/CPU s")
            content["sections"][name] = {who: rounds for who, rounds in results.items() if rounds}
            yield content
    finally:
        for host in hosts.values():
            host.close()
    for name in extras.MEASURES:
        if given.rounds and (not given.only or name in given.only):
            content["beside"][name] = extras.ask(name, folder)
            _say(f"{name}: {content['beside'][name]}")
            yield content


def merged(content: dict[str, Any], earlier: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Add the sections of earlier results that the content lacks, so that a run can be made in parts."""
    for path, before in reversed(earlier.items()):
        if before["machine"] != content["machine"] or before["versions"] != content["versions"]:
            raise SystemExit(f"{path}: another machine, or other versions")
        content = {
            **content,
            **{part: {**before[part], **content[part]} for part in ("sections", "beside")},
            "wrong": before["wrong"] + content["wrong"],
        }
    return content


def report(content: dict[str, Any], out: Path) -> bool:
    """Write the results and compare them with the gates; returns whether all gates are met."""
    content["gates"] = gates(content)
    (out / "bench.json").write_text(json.dumps(content, indent=1))
    (out / "bench.md").write_text(markdown(content))
    plot(content, out / "bench.png")
    return not content["wrong"] and not any(gate["missed"] for gate in content["gates"])


def _first(entry: Entry) -> Entry:
    """The entry on as many photos as a check uses."""
    return replace(entry, job=replace(entry.job, shards=entry.job.shards[:4]))


def _references(entry: Entry, folder: Path) -> str:
    shards = entry.job.shards[:4]
    path = folder / f"references-{Path(shards[0]).parent.name}-{entry.job.size}.npy"
    if not path.exists():
        save_references(shards, entry.job.size, path)
    return str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder or tar of JPEGs")
    parser.add_argument("--folder", default=".bench", help="where the shards go; made once")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where the results go")
    parser.add_argument("--rounds", type=int, default=3, help="0: check only")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--warm", type=float, default=1.5, help="seconds after the first batch that do not count")
    parser.add_argument("--only", nargs="*", help="sections and extra measurements whose name contains one of these")
    parser.add_argument("--who", nargs="*", help="contenders whose name contains one of these")
    parser.add_argument("--unchecked", action="store_true", help="leave out the check of what contenders deliver")
    parser.add_argument("--merge", type=Path, nargs="*", help="earlier bench.json files to merge in", default=[])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    earlier = {path: json.loads(path.read_text()) for path in given.merge}
    well = False
    for content in run(given):
        well = report(merged(content, earlier), given.out)
    print((given.out / "bench.md").read_text())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
