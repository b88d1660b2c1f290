"""`KneeLimit`: the concurrency past which throughput stops growing.

1. In a closed loop, where all work waits at the door, in flight = throughput * latency (Little's
   law), so throughput grows exactly as far as latency grows more slowly than concurrency.  Latency
   is compared between levels; alone it says nothing, and no latency without load is assumed.
2. A trial is a time of constant limit, as long for every level in turns (TURNS completions a slot):
   short branches, which end first, are over-represented alike at all levels.  It counts only what
   started within it, at the concurrency that the samples tell.
3. Growing, once at the start: one more per completion, for as long as the fit says that the best
   level is higher.  Its latencies lag, so that they count for little afterwards.
4. Then after each trial the best level (`Fit`) is next.  Now and then it is a probe above, or a
   dive below when nothing below was ever measured; a dive that loses nothing goes on.
5. A trial that ran far higher than expected, at a level that is known, means that the plant is
   slower now: all is forgotten but the latency without load.  Far lower, or somewhat lower several
   times: it is faster now, and what was measured fades.
6. A trial above a good level is over as soon as throughput is surely lost; then the limit stays
   below the `Brink`.
7. Refusals make a `Ceiling`.  The limit is above it only for one start at a time.
8. The limit is not raised where it is not reached: growing stops at three times what was in
   flight, and a trial that was not filled is followed by none above.
"""

from __future__ import annotations

from enum import Enum, auto
from math import exp, inf, isfinite, log, sqrt
from typing import Final, final

import attrs

from .._util import check_int, expected, is_number
from ._brink import Brink
from ._ceiling import MANY, Ceiling
from ._fit import Fit
from ._sample import Outcome, Sample

TURNS: Final = 3
SHORTEST: Final = 12
"""Completions of a trial, for the smallest limits."""

GLANCE: Final = 8
"""Samples between two looks at a trial that may have to end early."""

SURPRISE: Final = 4.5
"""Standard errors that chance does not explain."""

LOSS: Final = 0.15
"""Of log throughput, that makes a brink."""

PROBE_UP: Final = 1.15
PROBE_EVERY: Final = 3
DIVE_TO: Final = 0.6
DIVE_EVERY: Final = 6
DIVE_EVERY_MAX: Final = 48
"""Factors of the level, and trials between."""

GROWTH_KEPT: Final = 0.2
"""Weight of what was seen while growing."""

RISE: Final = 5
RISE_MAX: Final = 20
"""Bins that one trial may be above the one before it."""


class _Move(Enum):
    """What a trial is for."""

    SETTLED = auto()
    PROBE = auto()
    DIVE = auto()
    RETRY = auto()


@attrs.define
class _Trial:
    """Samples taken at one limit."""

    since: float
    ended: int = 0  # all that ended, whenever it had started
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

    def lost(self, since: tuple[float, float]) -> float:
        """Log throughput lost against another level's log n and log latency."""
        return self.y - since[1] - max(0.0, self.x - since[0])


@final
class KneeLimit:
    """Finds the concurrency past which throughput stops growing, and stays there: the knee of a
    saturated server or pool, the peak of a plant that loses throughput beyond it, the edge of a
    cliff, a quota's size, or what a rate limit lets through.  It follows them when they move.

    Made for closed loops, as steps are: all work waits at the door, so latency under load tells
    nothing by itself.  Latencies are compared between levels of concurrency instead, which takes
    some trials: expect a level near the best one within about ten times the usual latency.

    `initial` is the limit to start from.  It grows from there at once while latency doesn't.
    `min_limit` and `max_limit` are bounds of the value.  `latency_weight` is the price of latency:
    at w a rise in concurrency is worth while if it raises latency by less than 1 / (1 + w) of it,
    both in percent.  Less finds more throughput on plants whose knee is soft, and longer latencies.

    Deterministic, without clock or I/O.  A sample costs a few microseconds, amortised; memory is
    bounded.

    >>> from trio_parallel_steps.limits import KneeLimit, Outcome, Sample
    >>> limit = KneeLimit(initial=4, max_limit=50)
    >>> limit.on_sample(Sample(started_at=0.0, latency=0.2, in_flight=4, outcome=Outcome.OK))
    5
    >>> limit.on_sample(Sample(started_at=0.1, latency=0.2, in_flight=5, outcome=Outcome.DROPPED))
    4
    >>> limit.reason
    'refused at 5'

    Sources: J. D. C. Little, "A proof for the queuing formula L = λW" (1961); N. J. Gunther, "A
    general theory of computational scalability based on rational functions" (2008), for plants
    that lose throughput; K. J. Arrow, T. Harris and J. Marschak, "Optimal inventory policy" (1951),
    for the newsvendor's quantile; B. Schroeder, A. Wierman and M. Harchol-Balter, "Open versus
    closed: a cautionary tale" (2006).
    """

    __slots__ = (
        "_base",
        "_before",
        "_brink",
        "_ceiling",
        "_centre",
        "_dive_every",
        "_dived_from",
        "_drift",
        "_filled",
        "_fit",
        "_goal",
        "_good",
        "_grown",
        "_growing",
        "_latency_weight",
        "_lowest",
        "_max",
        "_min",
        "_move",
        "_reason",
        "_roof",
        "_since_dive",
        "_since_probe",
        "_slower",
        "_solved_at",
        "_tops",
        "_trial",
        "_unloaded",
        "_value",
        "_want",
    )

    def __init__(
        self,
        initial: int = 16,
        *,
        min_limit: int = 1,
        max_limit: int = 1000,
        latency_weight: float = 0.17,
    ) -> None:
        check_int("initial", initial, 1)
        check_int("min_limit", min_limit, 1)
        check_int("max_limit", max_limit, min_limit)
        if max_limit > MANY:
            raise ValueError(expected("max_limit", f"an int <= {MANY}", max_limit))
        if not is_number(latency_weight):
            raise TypeError(expected("latency_weight", "a finite number >= 0", latency_weight))
        if not (isfinite(latency_weight) and latency_weight >= 0):
            raise ValueError(expected("latency_weight", "a finite number >= 0", latency_weight))
        self._min = min_limit
        self._max = max_limit
        self._latency_weight = latency_weight
        self._value = max(min_limit, min(initial, max_limit))
        self._reason = "initial"
        self._fit = Fit()
        self._ceiling = Ceiling()
        self._brink = Brink()
        self._trial = _Trial(-inf)
        self._before = 0  # the most in flight in the trial before this one
        self._filled = True  # has the last trial reached its limit?
        # Growing:
        self._growing = True
        self._roof = inf
        self._grown = self._value  # when the last look was
        self._good: tuple[float, float] | None = None  # log n and log latency, the last time
        # Settled:
        self._centre = float(self._value)  # the best level
        self._want = inf  # what it would be without ceiling and brink
        self._goal = self._value  # on the way there, one more per completion
        self._move = _Move.SETTLED
        self._base: tuple[float, float] | None = None  # of a good level below this trial's
        self._tops = 0  # trials in a row whose best was the highest they might choose
        self._slower = 0  # trials in a row that ran higher than expected
        self._unloaded = 0.0  # log latency, before that
        self._drift = 0.0  # surprises of trials that ran lower, fading
        self._solved_at: tuple[float, float, bool] | None = None  # level, and the best from there
        self._since_probe = 0
        self._since_dive = 0
        self._dive_every = DIVE_EVERY
        self._dived_from = 0.0
        self._lowest = inf  # log n of all trials since the plant has changed

    @property
    def value(self) -> int:
        """How many may be in flight."""
        return self._value

    @property
    def reason(self) -> str:
        """Why the value is what it is, in words."""
        return self._reason

    def on_sample(self, sample: Sample) -> int:
        """Take a branch that has run into account; returns the new value."""
        now = sample.started_at + sample.latency
        if sample.outcome is Outcome.OK:
            self._succeeded(sample, now)
        elif sample.outcome is Outcome.DROPPED:
            self._refused(sample, now)
        return self._value

    def _succeeded(self, sample: Sample, now: float) -> None:
        trial = self._trial
        in_flight = min(max(1, sample.in_flight), MANY)
        latency = min(max(1e-9, sample.latency), 1e9)
        trial.peak = max(trial.peak, in_flight)
        self._ceiling.succeeded(now, latency)
        if self._ceiling.value < inf and self._is_trying_one_more(sample, now):
            return
        trial = self._trial
        x, y = log(in_flight), log(latency)
        if trial.n or sample.started_at >= trial.since:
            trial.ended += 1
        if self._growing:
            self._grow(x, y, now)
        elif self._value < self._goal:
            self._climb(now)
        elif sample.started_at >= trial.since:
            self._hold(x, y, now)

    # ---------------------------------------------------------------- growing

    def _grow(self, x: float, y: float, now: float) -> None:
        trial = self._trial
        trial.add((x + log(self._value)) / 2, y)  # concurrency has grown while it ran
        if self._value < self._roof and self._has_room():
            self._set(self._value + 1, "growing: latency does not keep pace with concurrency")
        if trial.n % GLANCE == 0 and self._loses(0.5, 3.0, self._good):
            self._fall(now)
        elif trial.ended >= max(GLANCE, self._value / 2):
            self._judge_growth(now)

    def _judge_growth(self, now: float) -> None:
        trial, fit, good = self._trial, self._fit, self._good
        fit.learn_variance(trial.variance, trial.n)
        if self._loses(0.25, 3.0, good):
            self._fall(now)
            return
        if good is not None and good[1] - trial.y > 3 * sqrt(2 * fit.variance / trial.n):
            fit.forget()  # a cold start is over
        fit.add(trial.x, trial.y, trial.n, log(self._value))
        fit.solve(30, far=False)
        best, _ = fit.best(log(self._value), 13, self._latency_weight)
        self._want = exp(best)
        level = min(self._want, self._max)
        self._good = max(log(self._grown), trial.x), trial.y
        self._filled = trial.peak * 1.25 >= self._grown
        if self._max > self._value <= level and (self._has_room() or not self._filled):
            self._roof = level
            self._grown = self._value
            self._start_trial(now)
            return
        self._growing = False
        fit.fade(GROWTH_KEPT)
        self._since_dive = self._dive_every = DIVE_EVERY
        self._settle(level, now)

    # ---------------------------------------------------------------- trials

    def _climb(self, now: float) -> None:
        self._value += 1
        if self._value == self._goal:
            self._start_trial(now)

    def _hold(self, x: float, y: float, now: float) -> None:
        trial = self._trial
        trial.add(x, y)
        if trial.ended >= max(SHORTEST, TURNS * self._value):
            self._judge(now)
        elif trial.n % GLANCE == 0 and self._fit.is_solved:
            if self._loses(LOSS, 2.5, self._base):
                self._fall(now)
            elif self._fit.surprise(trial.x, trial.y, trial.n) > SURPRISE:
                self._judge(now)

    def _judge(self, now: float) -> None:
        trial, fit = self._trial, self._fit
        fit.learn_variance(trial.variance, trial.n)
        if self._loses(LOSS, 2.0, self._base):
            self._fall(now)
            return
        surprise = fit.surprise(trial.x, trial.y, trial.n) if fit.is_solved else 0.0
        changed = self._heed(surprise)
        self._lowest = inf if changed else min(self._lowest, trial.x)
        worse = fit.forget_worse(trial.x, trial.y)
        if worse < self._brink.bad:
            self._brink.fell(self._value, int(worse))
            changed = True
        self._brink.held(self._value)
        fit.add(trial.x, trial.y, trial.n, log(self._centre))
        if changed or fit.is_stale or abs(surprise) > 2.5 or self._move is not _Move.SETTLED:
            fit.solve()
            self._solved_at = None
        if self._solved_at is None or self._solved_at[0] != self._centre:
            rise = min(RISE_MAX, RISE << self._tops)
            best, is_top = fit.best(log(self._centre), rise, self._latency_weight)
            self._solved_at = self._centre, best, is_top
        _, best, is_top = self._solved_at
        self._tops = min(self._tops + 1, 2) if is_top else 0
        self._want = exp(best)
        level = min(self._want, self._max, self._ceiling.value, self._brink.value)
        self._filled = trial.peak * 1.25 >= self._value
        if not self._filled:
            level = min(level, self._centre)
        if self._move is _Move.DIVE:
            if level < 0.9 * self._dived_from:
                self._since_dive = self._dive_every = DIVE_EVERY
            else:
                self._dive_every = min(DIVE_EVERY_MAX, 2 * self._dive_every)
        self._settle(level, now)

    def _heed(self, surprise: float) -> bool:
        """Rule 5; has the plant changed?"""
        trial, fit = self._trial, self._fit
        self._drift = min(0.0, 0.7 * self._drift + surprise)
        if surprise > SURPRISE and fit.was_better(trial.x, trial.y):
            if not self._slower:
                self._unloaded = fit.base
            self._slower += 1
            if self._slower <= 2:
                fit.keep_base(self._unloaded)
            else:
                fit.forget()
            self._brink.forget()
        elif self._drift < -SURPRISE:
            self._slower = 0
            self._drift = 0.0
            fit.expect_less(trial.x, trial.y)
            self._brink.doubt()
        else:
            self._slower = 0
            return False
        self._dive_every = DIVE_EVERY
        return True

    def _settle(self, level: float, now: float) -> None:
        """Go to a level, or to one that is worth a look from there."""
        fit, brink, old = self._fit, self._brink, self._value
        self._centre = goal = max(1.0, level)
        self._since_probe += 1
        self._since_dive += 1
        self._move = _Move.SETTLED
        self._base = None
        here = log(goal)
        why = f"the knee is at about {round(goal)}"
        if self._since_dive >= self._dive_every and (above := self._dive_from()):
            self._move = _Move.DIVE
            self._dived_from = goal
            self._since_dive = 0
            goal = above * DIVE_TO
            why = "probe: is less as good?"
        elif self._clamp(goal + 0.5) > old:
            self._base = log(old), fit.predict(log(old))[0]
        elif goal < old and self._since_probe < PROBE_EVERY:
            why = self._past_the_knee(here)
        elif brink.value <= goal * PROBE_UP:
            if brink.is_due() and goal >= brink.value:
                self._move = _Move.RETRY
                brink.retry()
                self._base = here, fit.predict(here)[0]
                goal = max(brink.bad, goal + 1)
                why = f"probe: is throughput still lost at {round(goal)}?"
        elif self._since_probe >= PROBE_EVERY and self._filled:
            self._move = _Move.PROBE
            self._since_probe = 0
            self._base = here, fit.predict(here)[0]
            goal = min(max(goal * PROBE_UP, goal + 1), brink.value)
            why = "probe: is more better?"
        self._goal = self._clamp(min(goal + 0.5, self._ceiling.value))
        if self._goal <= old:
            self._value = self._goal
            self._start_trial(now)
        if self._goal != old:
            self._reason = why

    def _dive_from(self) -> float | None:
        """The level that a dive should go below: latency is believed to rise there already, and
        nothing below it was measured."""
        level = min(self._centre, self._value)
        if level < 3 or not self._filled:
            return None
        here = log(level)
        if self._lowest < here - 0.25:
            here = self._lowest
        if level > 2 * exp(here):
            return None
        slope = self._fit.predict(here + 0.1)[0] - self._fit.predict(here - 0.1)[0]
        return exp(here) if slope > 0.1 else None

    def _past_the_knee(self, here: float) -> str:
        low, high = self._fit.predict(here)[0], self._fit.predict(here + 0.3)[0]
        return (
            f"past the knee at about {round(exp(here))}: "
            f"latency grows {(high - low) / 0.3:.1f} as fast as concurrency"
        )

    def _loses(self, loss: float, errors: float, base: tuple[float, float] | None) -> bool:
        """Does the trial surely lose this much throughput, against a good level?"""
        trial = self._trial
        return base is not None and trial.lost(base) > loss + errors * sqrt(
            self._fit.variance / trial.n
        )

    def _fall(self, now: float) -> None:
        """Throughput was lost: back to the good level, and stay below the brink."""
        base = self._good if self._growing else self._base
        assert base is not None
        good, bad = int(exp(base[0]) + 0.01), min(self._value, round(exp(self._trial.x)))
        self._brink.fell(good, bad)
        self._settle(self._brink.value, now)
        if self._growing:
            self._growing = False
            self._since_dive = DIVE_EVERY - 1
        self._reason = f"throughput was lost at {bad}, against {good}"

    # ---------------------------------------------------------------- refusals

    def _is_trying_one_more(self, sample: Sample, now: float) -> bool:
        ceiling = self._ceiling
        if self._value > ceiling.value:
            self._value = self._clamp(ceiling.value)  # one start was enough
        if ceiling.accepts(sample.started_at, sample.in_flight):
            ceiling.rise(now)
            self._goal = self._clamp(ceiling.value)
            self._set(self._goal, "what was refused is accepted now")
            self._centre = float(self._value)
            self._start_trial(now)
        elif ceiling.survived(sample.started_at):
            self._goal = self._clamp(ceiling.value)
            self._set(self._goal, "more got through than was thought")
            self._centre = float(self._value)
            self._start_trial(now)
        elif ceiling.value <= self._value < min(self._want, self._max) and ceiling.is_due(now):
            ceiling.try_one(now)
            self._set(self._value + 1, "probe: is one more accepted?")
            return True
        return False

    def _refused(self, sample: Sample, now: float) -> None:
        ceiling = self._ceiling
        if ceiling.refuse(sample.started_at, sample.in_flight, now, self._value):
            self._centre = min(self._value if self._growing else self._centre, ceiling.value)
            self._growing = False
            self._goal = self._clamp(min(self._value, ceiling.value))
            self._value = self._goal
            self._reason = f"refused at {sample.in_flight}"
            self._start_trial(now)
        elif self._value > ceiling.value:
            self._value = self._clamp(ceiling.value)  # the one more was one too many

    # ---------------------------------------------------------------- the value

    def _clamp(self, level: float) -> int:
        return int(max(self._min, min(level, self._max)))

    def _set(self, value: int, reason: str) -> None:
        self._value = self._clamp(value)
        self._reason = reason

    def _has_room(self) -> bool:
        return self._value < min(self._max, 3 * max(self._trial.peak, self._before))

    def _start_trial(self, now: float) -> None:
        if self._trial.ended:
            self._before = self._trial.peak
        self._trial = _Trial(now)

    def __repr__(self) -> str:
        return f"<KneeLimit {self._value}: {self._reason}>"
