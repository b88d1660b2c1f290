"""Calls at a time, under trio: one system task for all of them, and none while there are none.

A system task, as a call may outlast the block that asked for it: a rate belongs to a limiter.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import spawn_system_task

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """One call that is to come."""

    __slots__ = ("_timers", "call", "number", "when")

    def __init__(
        self, timers: Timers, when: float, number: int, call: Callable[[], object]
    ) -> None:
        self.when = when
        self.number = number
        self.call: Callable[[], object] | None = call
        self._timers = timers

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.number) < (other.when, other.number)

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._timers.dropped()


class Timers:
    __slots__ = ("_due", "_is_running", "_live", "_now", "_number", "_scope")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: list[Timer] = []
        self._live = 0  # those not cancelled
        self._number = 0
        self._is_running = False
        self._scope = trio.CancelScope()

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        self._number += 1
        timer = Timer(self, when, self._number, call)
        heappush(self._due, timer)
        self._live += 1
        self._scope.deadline = min(self._scope.deadline, when)
        if not self._is_running:
            self._is_running = True
            spawn_system_task(self._serve, name="timers of trio_parallel_steps")
        return timer

    def dropped(self) -> None:
        self._live -= 1
        if not self._live:
            self._due.clear()
            self._scope.deadline = -math.inf
        elif len(self._due) > 2 * self._live + 100:
            self._due = [timer for timer in self._due if timer.call is not None]
            heapify(self._due)

    async def _serve(self) -> None:
        try:
            while self._live:
                self._scope = trio.CancelScope(deadline=self._due[0].when)
                with self._scope:
                    await trio.sleep_forever()
                while self._due and self._due[0].when <= self._now():
                    self._ring(heappop(self._due))
        finally:
            self._is_running = False
            self._due.clear()  # what is left was cancelled

    def _ring(self, timer: Timer) -> None:
        call, timer.call = timer.call, None
        if call is not None:
            self._live -= 1
            call()
