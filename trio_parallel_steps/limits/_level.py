"""`Level`: where the limit is, where it is going, and the `Trial` that is on there.

1. A trial is a time of constant limit.  It counts only what started within it, at the concurrency
   that the samples tell.
2. The limit goes down at once, and up by one per completion; arriving starts the next trial.
3. It is between its bounds, wherever it is told to go.
4. It has room to grow as long as it is no more than three times what was in flight.
5. Throughput is lost where latency rises by more than concurrency.  What ends tells it sooner than
   what has started there, though less exactly: latencies that long are long in coming.
"""

from __future__ import annotations

from math import exp, inf, sqrt
from typing import Final, TypeAlias

import attrs

Measured: TypeAlias = tuple[float, float]
"""Log n, and the mean of log latency there."""

HALF: Final = 0.5
"""Of throughput: a loss of more is believed before the first latency is known."""


@attrs.define
class Trial:
    """Samples taken at one limit."""

    since: float
    passed: int = 0  # all that ended, whenever it had started
    ended: int = 0  # the same, but from the first on that had started here
    n: int = 0
    peak: int = 1
    sum_x: float = 0.0
    sum_y: float = 0.0
    sum_yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.n += 1
        self.sum_x += x
        self.sum_y += y
        self.sum_yy += y * y

    @property
    def x(self) -> float:
        return self.sum_x / self.n

    @property
    def y(self) -> float:
        return self.sum_y / self.n

    @property
    def variance(self) -> float:
        return self.sum_yy / self.n - self.y**2

    def filled(self, limit: int) -> bool:
        """Was the limit reached, or nearly?"""
        return self.peak * 1.25 >= limit

    def loses(self, loss: float, base: Measured | None, errors: float, variance: float) -> bool:
        """Is it sure, by so many standard errors, that log throughput is down by more than `loss`
        against `base`, a lower level?"""
        if base is None:
            return False
        lost = self.y - base[1] - max(0.0, self.x - base[0])
        return lost > loss + errors * sqrt(variance / self.n)

    def falls_short(self, base: Measured | None, variance: float, now: float) -> bool:
        """Have so few ended that throughput is surely less than HALF of that at `base`, a lower
        level?  The first turn doesn't count: those that start together end together."""
        if base is None:
            return False
        x, y = base
        turns = (now - self.since) / exp(y + variance / 2) - 1  # the mean, of logs that are normal
        expected = HALF * exp(x) * max(0.0, turns)
        return self.passed + 3 * sqrt(variance * expected) < expected


class Level:
    """The limit, between bounds."""

    __slots__ = (
        "_before",
        "_max",
        "_min",
        "centre",
        "filled",
        "goal",
        "reason",
        "trial",
        "value",
        "wanted",
    )

    def __init__(self, initial: int, low: int, high: int) -> None:
        self._min = low
        self._max = high
        self._before = 0  # the most in flight in the trial before this one
        self.value = self.clamp(initial)
        self.reason = "initial"
        """Why it is there or goes there, in words."""
        self.goal = self.value
        """Where it is going."""
        self.centre = float(self.value)
        """The best level; trials are there or near by."""
        self.wanted = inf
        """What that would be without ceiling, brink and bounds."""
        self.filled = True
        """Has the last trial reached its limit?"""
        self.trial = Trial(-inf)

    @property
    def max(self) -> int:
        """The upper bound."""
        return self._max

    @property
    def has_room(self) -> bool:
        """May it be raised, by rule 4?"""
        return self.value < min(self._max, 3 * max(self.trial.peak, self._before))

    def clamp(self, level: float) -> int:
        """The nearest one within the bounds, a whole number."""
        return int(max(self._min, min(level, self._max)))

    def set(self, value: int, reason: str) -> None:
        """Be there, in the same trial."""
        self.value = self.clamp(value)
        self.reason = reason

    def jump(self, level: float, reason: str, now: float) -> None:
        """Be there at once."""
        self.value = self.goal = self.clamp(level)
        self.reason = reason
        self.start_trial(now)

    def go(self, level: float, reason: str, now: float) -> None:
        """Be there by rule 2."""
        old, self.goal = self.value, self.clamp(level)
        if self.goal <= old:
            self.value = self.goal
            self.start_trial(now)
        if self.goal != old:
            self.reason = reason

    def climb(self, now: float) -> None:
        """One more, on the way."""
        self.value += 1
        if self.value == self.goal:
            self.start_trial(now)

    def start_trial(self, now: float) -> None:
        if self.trial.ended:
            self._before = self.trial.peak
        self.trial = Trial(now)

    def __repr__(self) -> str:
        return f"<Level {self.value}, going to {self.goal}>"
