"""Records the samples that cannot be used, and counts them against the failure budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.errors import BudgetExceeded

JUDGED_FROM = 1000
"""A share is taken of at least so many samples, so that one bad image in the first batch does not exceed a budget of 1%."""

_UNKNOWN = -1  # the row of a sample in a record of an older version, which has none


def check_budget(budget: int | float, bad: int, seen: int, rows: Callable[[], list[dict[str, Any]]]) -> None:
    """Raise BudgetExceeded where too many samples are bad.

    Args:
        budget: allowed number (int) or share of the samples seen (float).
        bad: samples that cannot be used: damaged ones, and where labels are learnt, those without a label.
        seen: samples, good and bad.
        rows: returns shard, key and reason of some bad samples, the first of which the message names.

    Raises:
        BudgetExceeded: there are more than allowed.
    """
    if bad > _allowed(budget, seen):
        words = f"{budget}" if isinstance(budget, int) else f"{budget:.2%} of the samples"
        some = "\n".join(f"  {row['shard']} {row['key']}: {row['reason']}" for row in rows()[:5])
        raise BudgetExceeded(
            f"{bad} of {seen} samples cannot be used, over failures.budget of {words}. The first:\n{some}\n"
            "`pseudolabel inspect --deep` lists them all; raise the budget to go on without them"
        )


def share_of_budget(budget: int | float, bad: int, seen: int) -> float:
    """How much of the budget is used: 1 is all of it; arguments as in `check_budget`."""
    allowed = _allowed(budget, seen)
    return bad / allowed if allowed else float(bad)


def _allowed(budget: int | float, seen: int) -> float:
    return budget if isinstance(budget, int) else budget * max(seen, JUDGED_FROM)


def failure_reason(text: str) -> str:
    """The reason in an entry of the column `failure` of `UnitRenderer`."""
    reason: str = json.loads(text)["reason"]
    return reason


class Quarantine:
    """Collects quarantined samples, each once, and stops the run when there are too many.

    A sample is identified by its shard and row: samples of one shard with the same key are counted one by one.

    Args:
        budget: allowed number (int) or share of the samples seen (float).
        samples: size of the corpus: later epochs see no new samples.
    """

    def __init__(self, budget: int | float, samples: int) -> None:
        self._budget, self._samples, self._seen = budget, samples, 0
        self._rows: dict[tuple[str, str, int], str] = {}  # reason by shard, key and row

    def add(self, seen: int, failures: Iterable[str]) -> None:
        """Count what was seen and what failed.

        Args:
            seen: samples, good and bad.
            failures: the column `failure` of `UnitRenderer`.

        Raises:
            BudgetExceeded: if more failed than the budget allows; names the first reasons.
        """
        self._seen = min(self._seen + seen, self._samples)
        for text in failures:
            if text:
                self._put(json.loads(text))
        check_budget(self._budget, len(self._rows), self._seen, self.rows)

    def restore(self, rows: list[dict[str, Any]], seen: int) -> None:
        """Restore the count of a run that is resumed; `rows` is the result of `rows()`, in older versions without `row`."""
        self._rows = {}
        for row in rows:
            self._put(row)
        self._seen = min(seen, self._samples)

    def rows(self) -> list[dict[str, Any]]:
        """What was quarantined: shard, key, row in the shard (where it is known) and reason, in order of the first three."""
        return [
            {"shard": shard, "key": key, **({} if row == _UNKNOWN else {"row": row}), "reason": reason}
            for (shard, key, row), reason in sorted(self._rows.items())
        ]

    def _put(self, row: dict[str, Any]) -> None:
        shard, key, number = row["shard"], row["key"], row.get("row", _UNKNOWN)
        self._rows.pop((shard, key, _UNKNOWN), None)  # the same sample, as recorded by an older version
        self._rows[shard, key, number] = row["reason"]

    def __len__(self) -> int:
        return len(self._rows)
