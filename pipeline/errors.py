"""The two ways a command can fail, told apart by whose move is next.

`UserError` is a mistake in a call or a recipe: nothing was started, and the message says what to change (exit code 2).
`RunError` is a run that started and could not finish (exit code 1). Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """What was asked for cannot be done; the message says what is wrong, where, and what to do."""


class UnderWay(UserError):
    """The same run is being done by another process; nothing was begun."""


class RunError(Exception):
    """The run began and could not be completed; the message says how far it came and what to do."""


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
        # The default would hand the joined message to __init__, which takes two.
        return (type(self), (self.shard, self.reason))


class BudgetExceeded(RunError):
    """More samples were quarantined than the recipe's failure budget allows."""
