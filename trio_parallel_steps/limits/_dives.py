"""`Dives`: when to look far below the best level, and from where.

1. Where latency is believed to rise already, and nothing lower was ever measured, less may be as
   good, and nothing else would tell.
2. A dive that loses nothing goes on: the next one is at once.  The others are ever less frequent,
   until the plant gets slower.  One that got faster has its best level above, not below.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._fit import Fit
    from ._level import Level

DIVE_TO: Final = 0.6
"""A factor of the level."""

EVERY: Final = 6
EVERY_MAX: Final = 48
"""Trials between two dives."""


class Dives:
    """Their times and depths."""

    __slots__ = ("_every", "_from", "_lowest", "_since")

    def __init__(self) -> None:
        self._since = 0
        self._every = EVERY
        self._from = 0.0  # the best level, before the last one
        self._lowest = inf  # log n of all trials since the plant got slower

    def due_in(self, trials: int) -> None:
        """The next one is after so many."""
        self._every = EVERY
        self._since = EVERY - trials

    def plant_is_slower(self) -> None:
        """What was measured is no longer so."""
        self._lowest = inf
        self._every = EVERY

    def measured(self, x: float) -> None:
        """A trial at log n = `x` is over."""
        self._lowest = min(self._lowest, x)

    def ended(self, best: float) -> None:
        """A dive is over, and this is the best level now."""
        if best < 0.9 * self._from:
            self.due_in(0)
        else:
            self._every = min(EVERY_MAX, 2 * self._every)

    def next(self, level: Level, fit: Fit) -> float | None:
        """Where to dive to, if now; one more trial is over."""
        self._since += 1
        above = self._start(level, fit) if self._since >= self._every else None
        if above is None:
            return None
        self._since = 0
        self._from = level.centre
        return above * DIVE_TO

    def _start(self, level: Level, fit: Fit) -> float | None:
        """The level to go below."""
        lower = min(level.centre, level.value)
        if lower < 3 or not level.filled:
            return None
        here = log(lower)
        if self._lowest < here - 0.25:
            here = self._lowest
        if lower > 2 * exp(here):
            return None
        slope = fit.predict(here + 0.1)[0] - fit.predict(here - 0.1)[0]
        return exp(here) if slope > 0.1 else None

    def __repr__(self) -> str:
        return f"<Dives {self._since} of {self._every}>"
