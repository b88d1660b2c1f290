"""`Growth`: from the initial limit up, once, at the start.

1. One more per completion, for as long as the fit says that the best level is higher.
2. A look is taken after about half as many completions as the limit; a loss of throughput is looked
   for more often, and ends it below the `Brink`.
3. Latency that falls while concurrency grows was a cold start's: what was seen before is forgotten.
4. Its latencies lag behind the limit, so that they count for little afterwards.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt
from typing import TYPE_CHECKING, Final

from ._trials import GLANCE

if TYPE_CHECKING:
    from ._fit import Fit
    from ._level import Level, Measured
    from ._trials import Trials

KEPT: Final = 0.2
"""Weight of what was seen while growing."""

REACH: Final = 13
SPREAD: Final = 30
"""Bins: how far above the limit it may be told to grow, and a knee be believed in."""


class Growth:
    """What comes before the trials."""

    __slots__ = ("_fit", "_good", "_grown", "_level", "_price", "_roof", "_trials", "is_over")

    def __init__(self, level: Level, fit: Fit, trials: Trials, latency_weight: float) -> None:
        self.is_over = False
        self._level = level
        self._fit = fit
        self._trials = trials
        self._price = latency_weight
        self._roof = inf
        self._grown = level.value  # when the last look was
        self._good: Measured | None = None  # what was measured then

    def grow(self, x: float, y: float, now: float) -> None:
        """Take a completion into account."""
        level, trial = self._level, self._level.trial
        trial.add((x + log(level.value)) / 2, y)  # concurrency has grown while it ran
        if level.value < self._roof and level.has_room:
            level.set(level.value + 1, "growing: latency does not keep pace with concurrency")
        if trial.n % GLANCE == 0 and self._loses(0.5):
            self._fall(now)
        elif trial.ended >= max(GLANCE, level.value / 2):
            self._look(now)

    def _look(self, now: float) -> None:
        level, trial, fit = self._level, self._level.trial, self._fit
        fit.learn_variance(trial.variance, trial.n)
        if self._loses(0.25):
            self._fall(now)
            return
        if self._has_warmed_up():
            fit.forget()
        fit.add(trial.x, trial.y, trial.n, log(level.value))
        fit.solve(SPREAD, far=False)
        best, _ = fit.best(log(level.value), REACH, self._price)
        level.wanted = exp(best)
        wanted = min(level.wanted, level.max)
        self._good = max(log(self._grown), trial.x), trial.y
        level.filled = trial.filled(self._grown)
        if level.max > level.value <= wanted and (level.has_room or not level.filled):
            self._roof = wanted
            self._grown = level.value
            level.start_trial(now)
            return
        self.is_over = True
        fit.fade(KEPT)
        self._trials.dive_in(0)
        self._trials.settle(wanted, now)

    def _has_warmed_up(self) -> bool:
        trial, good = self._level.trial, self._good
        error = sqrt(2 * self._fit.variance / trial.n)
        return good is not None and good[1] - trial.y > 3 * error

    def _loses(self, loss: float) -> bool:
        return self._level.trial.loses(loss, self._good, 3.0, self._fit.variance)

    def _fall(self, now: float) -> None:
        assert self._good is not None
        self.is_over = True
        self._trials.fall(self._good, now)
        self._trials.dive_in(1)

    def __repr__(self) -> str:
        return f"<Growth {'over' if self.is_over else f'to {self._roof:.0f}'}>"
