"""A clock that stands still while anything can run, and else jumps to the next deadline.

trio's MockClock does that too, but where nothing can run and no deadline is ahead it turns round
and round for ever.  This one says so.
"""

import math
from collections.abc import Callable

import trio

GRACE = 0.05  # real seconds; what another thread or the system is about to do may come by then


class VirtualClock(trio.abc.Clock):
    """`on_hang` is called when nothing can run, no deadline is ahead and nothing has come from
    outside.  `awaits_idle` tells whether a task waits for that (``wait_all_tasks_blocked``)."""

    counts_real_time = False  # what our own runners ask: holding the thread long changes nothing

    def __init__(self, awaits_idle: Callable[[], bool]) -> None:
        self.on_hang: Callable[[], None] | None = None
        self._now = 0.0
        self._awaits_idle = awaits_idle
        self.has_waited = False  # in real time, since a task ran

    def reset(self) -> None:
        """As if it were new."""
        self._now = 0.0
        self.has_waited = False

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """trio asks when no task is ready."""
        if self._awaits_idle():
            return math.inf  # trio wakes it first, without waiting
        if deadline < math.inf:
            self._now = max(self._now, deadline)
            self.has_waited = False
            return 0
        if not self.has_waited:
            self.has_waited = True
            return GRACE
        self.has_waited = False
        if self.on_hang is not None:
            self.on_hang()
        return 0
