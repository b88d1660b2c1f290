"""`Trials`: what is learned at one level, and which is next.

1. All trials are as long in turns, TURNS completions a slot: short branches, which end first, are
   over-represented alike at all levels.  One that tells enough before that is over at once.
2. After each the best level that the `Fit` knows of is next, below `Ceiling` and `Brink`.
3. Now and then it is a probe above, a retry of what was a brink, or a dive below.
4. A trial above a good level is over as soon as throughput is surely lost, or so little ends that
   it must be; then the limit stays below the brink.
5. One that was not filled is followed by none above.
"""

from __future__ import annotations

from enum import Enum, auto
from math import exp, log
from typing import TYPE_CHECKING, Final

from ._dives import Dives
from ._drift import SURPRISE, Drift

if TYPE_CHECKING:
    from ._brink import Brink
    from ._ceiling import Ceiling
    from ._fit import Fit
    from ._level import Level, Measured

TURNS: Final = 3
SHORTEST: Final = 12
"""Completions of a trial, for the smallest limits."""

GLANCE: Final = 8
"""Samples between two looks at a trial that may have to end early."""

LOSS: Final = 0.15
"""Of log throughput, that makes a brink."""

PROBE_UP: Final = 1.15
PROBE_EVERY: Final = 3
"""A factor of the level, and trials between."""

RISE: Final = 5
RISE_MAX: Final = 20
"""Bins that one trial may be above the one before it."""


class _Move(Enum):
    """What a trial is for."""

    SETTLED = auto()
    PROBE = auto()
    DIVE = auto()
    RETRY = auto()


class Trials:
    """One after another."""

    __slots__ = (
        "_base",
        "_brink",
        "_ceiling",
        "_dives",
        "_drift",
        "_fit",
        "_level",
        "_move",
        "_price",
        "_since_probe",
        "_solved_at",
        "_tops",
    )

    def __init__(
        self, level: Level, fit: Fit, ceiling: Ceiling, brink: Brink, latency_weight: float
    ) -> None:
        self._level = level
        self._fit = fit
        self._ceiling = ceiling
        self._brink = brink
        self._price = latency_weight
        self._dives = Dives()
        self._drift = Drift()
        self._move = _Move.SETTLED
        self._base: Measured | None = None  # of a good level below this trial's
        self._since_probe = 0
        self._tops = 0  # trials in a row whose best was the highest they might choose
        self._solved_at: tuple[float, float, bool] | None = None  # level, and the best from there

    def dive_in(self, trials: int) -> None:
        """A look below is due after so many."""
        self._dives.due_in(trials)

    # ---------------------------------------------------------------- learning

    def hold(self, x: float, y: float, now: float) -> None:
        """Take a completion of the trial that is on into account."""
        level, trial = self._level, self._level.trial
        trial.add(x, y)
        if trial.ended >= max(SHORTEST, TURNS * level.value):
            self._judge(now)
        elif trial.n % GLANCE == 0 and self._fit.is_solved:
            if self._loses(2.5):
                self._fall(now)
            elif self._surprise() > SURPRISE:
                self._judge(now)

    def wait(self, now: float) -> None:
        """What ended had started before the trial that is on."""
        if self._level.trial.falls_short(self._base, self._fit.variance, now):
            self._fall(now)

    def _judge(self, now: float) -> None:
        level, trial = self._level, self._level.trial
        self._fit.learn_variance(trial.variance, trial.n)
        if self._loses(2.0):
            self._fall(now)
            return
        self._learn()
        level.wanted = exp(self._best())
        best = min(level.wanted, level.max, self._ceiling.value, self._brink.value)
        level.filled = trial.filled(level.value)
        if not level.filled:
            best = min(best, level.centre)
        if self._move is _Move.DIVE:
            self._dives.ended(best)
        self.settle(best, now)

    def _learn(self) -> None:
        level, trial, fit, brink = self._level, self._level.trial, self._fit, self._brink
        surprise = self._surprise() if fit.is_solved else 0.0
        changed = self._drift.heed(surprise, trial, fit, brink)
        if changed and surprise > 0:
            self._dives.plant_is_slower()
        else:
            self._dives.measured(trial.x)
        worse = fit.forget_worse(trial.x, trial.y)
        if worse < brink.bad:
            brink.fell(level.value, int(worse))
            changed = True
        brink.held(level.value)
        fit.add(trial.x, trial.y, trial.n, log(level.centre))
        if changed or fit.is_stale or abs(surprise) > 2.5 or self._move is not _Move.SETTLED:
            fit.solve()
            self._solved_at = None

    def _best(self) -> float:
        """The log of the best level, as it was found for this centre."""
        centre = self._level.centre
        if self._solved_at is None or self._solved_at[0] != centre:
            rise = min(RISE_MAX, RISE << self._tops)
            self._solved_at = centre, *self._fit.best(log(centre), rise, self._price)
        _, best, is_top = self._solved_at
        self._tops = min(self._tops + 1, 2) if is_top else 0
        return best

    def _surprise(self) -> float:
        trial = self._level.trial
        return self._fit.surprise(trial.x, trial.y, trial.n)

    # ---------------------------------------------------------------- losing

    def _loses(self, errors: float) -> bool:
        return self._level.trial.loses(LOSS, self._base, errors, self._fit.variance)

    def _fall(self, now: float) -> None:
        assert self._base is not None
        self.fall(self._base, now)

    def fall(self, base: Measured, now: float) -> None:
        """Throughput was lost: back to the good level, and stay below the brink."""
        level, trial = self._level, self._level.trial
        good, bad = int(exp(base[0]) + 0.01), level.value
        if trial.n:
            bad = min(bad, round(exp(trial.x)))
        self._brink.fell(good, bad)
        self.settle(self._brink.value, now)
        level.reason = f"throughput was lost at {bad}, against {good}"

    # ---------------------------------------------------------------- the next one

    def settle(self, best: float, now: float) -> None:
        """Go to the best level, or to one that is worth a look from there."""
        level, old = self._level, self._level.value
        level.centre = max(1.0, best)
        self._since_probe += 1
        self._move = _Move.SETTLED
        self._base = None
        goal, why = level.centre, f"the knee is at about {round(level.centre)}"
        if (below := self._dives.next(level, self._fit)) is not None:
            self._move = _Move.DIVE
            goal, why = below, "probe: is less as good?"
        elif level.clamp(goal + 0.5) > old:
            self._base = self._expected(float(old))
        elif goal < old and self._since_probe < PROBE_EVERY:
            why = self._past_the_knee(log(goal))
        elif self._brink.value <= goal * PROBE_UP:
            if self._brink.is_due() and goal >= self._brink.value:
                goal = self._retry()
                why = f"probe: is throughput still lost at {round(goal)}?"
        elif self._since_probe >= PROBE_EVERY and level.filled:
            goal, why = self._probe(), "probe: is more better?"
        level.go(min(goal + 0.5, self._ceiling.value), why, now)

    def _retry(self) -> float:
        centre = self._level.centre
        self._move = _Move.RETRY
        self._brink.retry()
        self._base = self._expected(centre)
        return max(self._brink.bad, centre + 1)

    def _probe(self) -> float:
        centre = self._level.centre
        self._move = _Move.PROBE
        self._since_probe = 0
        self._base = self._expected(centre)
        return min(max(centre * PROBE_UP, centre + 1), self._brink.value)

    def _expected(self, level: float) -> Measured:
        return log(level), self._fit.predict(log(level))[0]

    def _past_the_knee(self, here: float) -> str:
        low, high = self._fit.predict(here)[0], self._fit.predict(here + 0.3)[0]
        return (
            f"past the knee at about {round(exp(here))}: "
            f"latency grows {(high - low) / 0.3:.1f} as fast as concurrency"
        )

    def __repr__(self) -> str:
        return f"<Trials at {self._level.value}: {self._move.name.lower()}>"
