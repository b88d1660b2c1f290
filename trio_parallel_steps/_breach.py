"""`Breach`: one switch for any number of steps.

No watcher: tripping it cancels each step's root scope synchronously, in the caller's own turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from ._records import Cause
from ._util import check_str, expected
from .hosts import protected

if TYPE_CHECKING:
    from ._core import StepCore


@final
class Breach:
    """One switch for any number of steps.  Tripping it cancels all of them in the same instant.

    >>> import trio
    >>> from trio_parallel_steps import BranchStatus, Breached, run_branches
    >>> async def main():
    ...     breach = Breach()
    ...     async def trip(): breach.trip("enough")
    ...     await run_branches({"slow": trio.sleep_forever, "trip": trip}, 2, breach=breach)
    >>> try:
    ...     trio.run(main)
    ... except Breached as breached:
    ...     print(breached.reason, breached.result.with_status(BranchStatus.BREACHED))
    enough ['slow']
    """

    __slots__ = ("_reason", "_steps")

    def __init__(self) -> None:
        self._reason: str | None = None
        self._steps: dict[StepCore, None] = {}  # the open ones

    @property
    def reason(self) -> str | None:
        """Why it was tripped; None while it was not."""
        return self._reason

    @protected
    def trip(self, reason: str) -> None:
        """Breach all open steps that were given it, and every step opened on it from now on.

        Synchronous; the first reason stands.  RuntimeError outside the thread of the steps' event
        loop.
        """
        check_str("reason", reason)
        for step in self._steps:
            step.run.check_thread()
        if self._reason is None:
            self._reason = reason
            # The inner one first: to it, a stop of the one around it is from outside.
            for step in reversed(tuple(self._steps)):
                step.stop(Cause.BREACH, reason)

    def __repr__(self) -> str:
        state = "" if self._reason is None else f" tripped: {self._reason}"
        return f"<Breach of {len(self._steps)} open steps{state}>"


def check_breach(breach: Any) -> Breach | None:
    if not isinstance(breach, Breach | None):
        raise TypeError(expected("breach", "a Breach or None", breach))
    return breach
