"""`KneeLimit`: the concurrency past which throughput stops growing.

1. In a closed loop, where all work waits at the door, in flight = throughput * latency (Little's
   law), so throughput grows exactly as far as latency grows more slowly than concurrency.  Latency
   is compared between levels; alone it says nothing, and no latency without load is assumed.
2. First it grows (`Growth`), then there is one trial after another (`Trials`), each at the `Level`
   that is best by what is known (`Fit`), or at one that is worth a look.
3. A loss of throughput makes a `Brink`, and the limit stays below it.
4. Refusals make a `Ceiling`, and end the growth.  The limit is above it only for one start at a
   time.
"""

from __future__ import annotations

from math import inf, isfinite, log
from typing import final

from .._util import check_int, expected, is_number
from ._brink import Brink
from ._ceiling import MANY, Ceiling
from ._fit import Fit
from ._growth import Growth
from ._level import Level
from ._sample import Outcome, Sample
from ._trials import Trials


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

    __slots__ = ("_ceiling", "_fit", "_growth", "_level", "_trials")

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
        self._level = level = Level(initial, min_limit, max_limit)
        self._fit = fit = Fit()
        self._ceiling = Ceiling()
        self._trials = Trials(level, fit, self._ceiling, Brink(), latency_weight)
        self._growth = Growth(level, fit, self._trials, latency_weight)

    @property
    def value(self) -> int:
        """How many may be in flight."""
        return self._level.value

    @property
    def reason(self) -> str:
        """Why the value is what it is, in words."""
        return self._level.reason

    def on_sample(self, sample: Sample) -> int:
        """Take a branch that has run into account; returns the new value."""
        now = sample.started_at + sample.latency
        if sample.outcome is Outcome.OK:
            self._succeeded(sample, now)
        elif sample.outcome is Outcome.DROPPED:
            self._refused(sample, now)
        return self._level.value

    def _succeeded(self, sample: Sample, now: float) -> None:
        level = self._level
        in_flight = min(max(1, sample.in_flight), MANY)
        latency = min(max(1e-9, sample.latency), 1e9)
        level.trial.peak = max(level.trial.peak, in_flight)
        self._ceiling.succeeded(now, latency)
        if self._ceiling.value < inf and self._is_trying_one_more(sample, now):
            return
        trial = level.trial
        trial.passed += 1
        x, y = log(in_flight), log(latency)
        if trial.n or sample.started_at >= trial.since:
            trial.ended += 1
        if not self._growth.is_over:
            self._growth.grow(x, y, now)
        elif level.value < level.goal:
            level.climb(now)
        elif sample.started_at >= trial.since:
            self._trials.hold(x, y, now)
        else:
            self._trials.wait(now)

    def _is_trying_one_more(self, sample: Sample, now: float) -> bool:
        level, ceiling = self._level, self._ceiling
        if level.value > ceiling.value:
            level.value = level.clamp(ceiling.value)  # one start was enough
        if ceiling.accepts(sample.started_at, sample.in_flight):
            ceiling.rise(now)
            level.jump(ceiling.value, "what was refused is accepted now", now)
            level.centre = float(level.value)
        elif ceiling.survived(sample.started_at):
            level.jump(ceiling.value, "more got through than was thought", now)
            level.centre = float(level.value)
        elif ceiling.value <= level.value < min(level.wanted, level.max) and ceiling.is_due(now):
            ceiling.try_one(now)
            level.set(level.value + 1, "probe: is one more accepted?")
            return True
        return False

    def _refused(self, sample: Sample, now: float) -> None:
        level, ceiling = self._level, self._ceiling
        if ceiling.refuse(sample.started_at, sample.in_flight, now, level.value):
            best = level.centre if self._growth.is_over else level.value
            level.centre = min(best, ceiling.value)
            self._growth.is_over = True
            level.jump(min(level.value, ceiling.value), f"refused at {sample.in_flight}", now)
        elif level.value > ceiling.value:
            level.value = level.clamp(ceiling.value)  # the one more was one too many

    def __repr__(self) -> str:
        return f"<KneeLimit: {self._level.value}, {self._level.reason}>"
