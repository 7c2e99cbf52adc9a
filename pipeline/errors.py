"""The exceptions of the package: `UserError` for mistakes in a call or a recipe, `RunError` for runs that could not finish.

With a `UserError` nothing was started, and the message says what to change (exit code 2). With a `RunError` the run had started
(exit code 1). Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


def installing(extra: str) -> str:
    """The words that say how to install what an extra of the project brings."""
    return f"in the project's folder, `pip install --constraint constraints.txt --editable '.[{extra}]'`"


class UserError(Exception):
    """The user asked for something that cannot be done; the message says what is wrong, where, and what to do."""


class UnderWay(UserError):
    """Another process is doing the same run; this one started nothing."""


class RunError(Exception):
    """The run started and could not be completed; the message says how far it came and what to do."""


class ShardError(RunError):
    """A shard cannot be read as a tar of samples.

    Args:
        shard: URL of the shard.
        reason: what is wrong with it, and at which byte where that is known.
    """

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"{shard}: {reason}")
        self.shard = shard
        self.reason = reason

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str]]:
        # The default passes the joined message to __init__, which takes two arguments.
        return (type(self), (self.shard, self.reason))


class BudgetExceeded(RunError):
    """More samples were quarantined than the recipe's failure budget allows."""
