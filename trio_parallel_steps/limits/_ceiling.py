"""`Ceiling`: how many may be in flight before some are refused.

1. A refusal with n in flight means that n - 1 was allowed: the first one makes the ceiling.
2. At the ceiling one branch more is started now and then, alone: if it is refused, nothing else was
   lost, and the next try waits twice as long.  What is accepted raises the ceiling, by twice as
   much each time in a row.
3. Refusals at or below the ceiling are borne while they are few, as a rate limit's are when
   concurrency is just above what it lets pass.  When they are many the ceiling becomes what did get
   through: by Little's law the mean number in flight is the sum of latencies over the time passed.
4. What had started before a cut says nothing about what the cut has left, but for the first: of
   those who start together any may come first, whatever they were told, so that the ceiling is no
   less than how many were in flight then and did get through.
"""

from __future__ import annotations

from math import inf
from typing import Final

MANY: Final = 10**9
"""More than any limit."""

TOLERATED: Final = 24
"""Successes that make up for one refusal."""

MANY_REFUSED: Final = 3
"""Fewer may be chance."""

PATIENCE: Final = 6.0
PATIENCE_MAX: Final = 128.0
"""Latencies between tries to go beyond the ceiling."""


class Ceiling:
    """What refusals say."""

    __slots__ = (
        "_cut_at",
        "_latencies",
        "_latency",
        "_patience",
        "_probing",
        "_raised",
        "_risen_from",
        "_refused",
        "_since",
        "_succeeded",
        "_survived",
        "_wait_for",
        "_wait_from",
        "value",
    )

    def __init__(self) -> None:
        self.value: float = inf
        """A whole number, or infinite until something is refused."""
        self._latency: float | None = None  # smoothed
        self._patience = PATIENCE
        self._wait_from = 0.0
        self._wait_for = 0.0  # in latencies
        self._risen_from = inf
        self._probing = False
        self._raised = 0  # times in a row
        self._cut_at = -inf
        self._survived: int | None = None  # of those in flight at the first cut
        self._count_from(0.0)

    def _count_from(self, now: float) -> None:
        self._since = now
        self._succeeded = self._refused = 0
        self._latencies = 0.0

    def succeeded(self, now: float, latency: float) -> None:
        """A branch got through."""
        if self._latency is None:
            self._latency = latency
        self._latency += 0.05 * (latency - self._latency)
        self._succeeded += 1
        self._latencies += latency

    def accepts(self, started_at: float, in_flight: int) -> bool:
        """Did a branch that succeeded start beyond the ceiling?"""
        return in_flight > self.value and started_at > self._cut_at

    def survived(self, started_at: float) -> bool:
        """A branch got through; was the first cut too deep?"""
        if self._survived is None or started_at > self._cut_at:
            return False
        self._survived += 1
        if self._survived <= self.value:
            return False
        self.value = float(self._survived)
        return True

    def is_due(self, now: float) -> bool:
        """Is it time to try one more?"""
        return now >= self._wait_from + self._wait_for * (self._latency or 0.0)

    def try_one(self, now: float) -> None:
        """One more is started."""
        if self._raised:
            self._patience = PATIENCE
        self._probing = True
        self._wait(now, 2.0)

    def rise(self, now: float) -> None:
        """The one more was not one too many."""
        self._raised += 1
        self._probing = False
        self._risen_from = self.value
        step = min(self.value // 4, 2 ** (self._raised - 1))
        self.value += max(1.0, step)
        self._count_from(now)
        self._wait(now, PATIENCE / self._raised)

    def refuse(self, started_at: float, in_flight: int, now: float, limit: int) -> bool:
        """A branch was refused; is the ceiling a new one?"""
        if started_at <= self._cut_at:
            return False
        first = self.value == inf
        if first:
            allowed = min(in_flight, MANY) - 1.0
        elif in_flight > self.value:
            self._back_off(now)
            return False
        elif self._raised and not self.is_due(now):
            self._refused += 1
            if self._refused < MANY_REFUSED:
                return False
            allowed = self._risen_from
        elif self._is_too_much(now, limit):
            passed = now - self._since
            allowed = min(self.value - 1, self._latencies // passed if passed > 0 else inf)
        else:
            return False
        self.value = max(1.0, allowed)
        self._cut_at = now
        self._survived = 0 if first else None
        self._raised = 0
        self._patience = PATIENCE
        self._count_from(now)
        self._wait(now, PATIENCE)
        return True

    def _is_too_much(self, now: float, limit: int) -> bool:
        self._refused += 1
        if self._succeeded >= max(128, 8 * limit):
            self._count_from(now)
        return (
            self._refused >= MANY_REFUSED
            and self._succeeded >= max(8, limit)
            and self._refused * TOLERATED > self._succeeded
        )

    def _back_off(self, now: float) -> None:
        if not self._probing:
            return
        self._probing = False
        self._raised = 0
        self._wait(now, self._patience)
        self._patience = min(PATIENCE_MAX, 2 * self._patience)

    def _wait(self, now: float, latencies: float) -> None:
        self._wait_from = now
        self._wait_for = latencies

    def __repr__(self) -> str:
        return f"<Ceiling {self.value}>"
