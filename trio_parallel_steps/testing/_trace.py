"""What happened in a run, a line a step, for people.

::

    step 0        0 s  #1 waiter begins
    step 1        0 s  #2 setter begins  <- Cancel()
    step 2        0 s  #1 waiter at test_lost.py:12 in waiter
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._tasks import position

if TYPE_CHECKING:
    from ._run import Session

LINES = 200  # the rest is left out


class Tracer:
    """Looks on before each step."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._left_out = 0

    def __call__(self, session: Session, task: trio.lowlevel.Task) -> None:
        if session.trouble is not None:
            return  # it is being ended
        if len(self._lines) >= LINES:
            self._left_out += 1
            return
        fault = ""
        if session.planned is not None and session.planned[1] == session.steps:
            fault = f"  <- {session.faults[session.planned[0]]}"
        now = f"{trio.current_time():.6g}"
        self._lines.append(
            f"  step {session.steps:<3} {now:>6} s  {session.name(task)} {position(task)}{fault}"
        )

    def __str__(self) -> str:
        rest = [f"  ... and {self._left_out} more steps"] if self._left_out else []
        return "\n".join(self._lines + rest)
