"""TCP Vegas: how many of those in flight only wait, told by how far latency is above its base."""

from __future__ import annotations

from math import ceil, log10
from typing import TYPE_CHECKING, final

from .._util import check_int, check_number
from ._ported import Ported, check_function, check_smoothing, of_limit

if TYPE_CHECKING:
    from collections.abc import Callable


def _magnitude(limit: int) -> int:
    return max(1, int(log10(limit)))


def _alpha(limit: int) -> int:
    return 3 * _magnitude(limit)


def _beta(limit: int) -> int:
    return 6 * _magnitude(limit)


def _increase(limit: float) -> float:
    return limit + _magnitude(int(limit))


def _decrease(limit: float) -> float:
    return limit - _magnitude(int(limit))


@final
class VegasLimit(Ported):
    """Keeps the queue that it estimates, ``limit * (1 - base / latency)``, between two marks.

    The base is the smallest latency since the last probe.  A queue of at most `threshold` raises
    the limit by `beta`, one below `alpha` to ``increase(limit)``; one above `beta`, or a drop,
    lowers it to ``decrease(limit)``.  While less than half of it is in flight only drops move it.
    `alpha`, `beta` and `threshold` are ints >= 0 or functions of the limit; by default 3, 6 and 1
    times its order of magnitude, ``max(1, int(log10(limit)))``, which is the step of `increase` and
    `decrease`, too: functions from a limit to the next, as floats.
    The value stays within 1 .. `max_limit`, and follows new estimates by the share `smoothing`
    (> 0, <= 1); `initial_limit` may be above.

    Every ``probe_jitter * probe_multiplier * limit`` samples the next one is the new base, whatever
    it is.  `probe_jitter` is a number (> 0, <= 1), or a function of no arguments asked for one at
    the start and after each probe.  Netflix draws it from [.5, 1); the default is the mean, as a
    limit is pure: give ``lambda: random.uniform(0.5, 1)`` to keep many processes apart.

    ValueError and TypeError name the argument.

    Brakmo and Peterson, TCP Vegas: End to End Congestion Avoidance on a Global Internet (1995); a
    port of Netflix/concurrency-limits, VegasLimit.

    >>> from trio_parallel_steps.limits import Outcome, Sample
    >>> limit = VegasLimit()
    >>> limit.on_sample(Sample(0.0, 0.1, 20, Outcome.OK))  # the base
    20
    >>> limit.on_sample(Sample(0.1, 0.1, 20, Outcome.OK))  # no queue
    26
    >>> limit.on_sample(Sample(0.2, 0.3, 26, Outcome.OK))  # two thirds of them wait
    25
    """

    __slots__ = (
        "_alpha",
        "_base",
        "_beta",
        "_count",
        "_decrease",
        "_increase",
        "_jitter",
        "_max_limit",
        "_next_jitter",
        "_probe_multiplier",
        "_smoothing",
        "_threshold",
    )

    def __init__(
        self,
        *,
        initial_limit: int = 20,
        max_limit: int = 1000,
        smoothing: float = 1.0,
        alpha: int | Callable[[int], int] = _alpha,
        beta: int | Callable[[int], int] = _beta,
        threshold: int | Callable[[int], int] = _magnitude,
        increase: Callable[[float], float] = _increase,
        decrease: Callable[[float], float] = _decrease,
        probe_multiplier: int = 30,
        probe_jitter: float | Callable[[], float] = 0.75,
    ) -> None:
        super().__init__(initial_limit)
        self._max_limit = check_int("max_limit", max_limit, 1)
        self._smoothing = check_smoothing(smoothing)
        self._alpha = of_limit("alpha", alpha)
        self._beta = of_limit("beta", beta)
        self._threshold = of_limit("threshold", threshold)
        self._increase = check_function("increase", increase)
        self._decrease = check_function("decrease", decrease)
        self._probe_multiplier = check_int("probe_multiplier", probe_multiplier, 1)
        self._next_jitter = _drawn(probe_jitter)
        self._jitter = self._next_jitter()
        self._count = 0  # samples since the last probe
        self._base = 0  # nanoseconds; 0: none yet

    def _update(self, latency: int, in_flight: int, dropped: bool) -> None:
        self._count += 1
        if self._jitter * self._probe_multiplier * self._estimate <= self._count:
            self._jitter = self._next_jitter()
            self._count = 0
            self._base = latency
        elif self._base == 0 or latency < self._base:
            self._base = latency
        else:
            self._follow(self._estimated(latency, in_flight, dropped))

    def _estimated(self, latency: int, in_flight: int, dropped: bool) -> float | None:
        """What this sample alone says; None: to stay."""
        estimate, limit = self._estimate, self.value
        if dropped:
            return self._decrease(estimate)
        if 2 * in_flight < estimate:
            return None
        queue = ceil(estimate * (1 - self._base / latency))
        beta = self._beta(limit)
        if queue <= self._threshold(limit):
            return estimate + beta
        if queue < self._alpha(limit):
            return self._increase(estimate)
        if queue > beta:
            return self._decrease(estimate)
        return None

    def _follow(self, estimated: float | None) -> None:
        if estimated is not None:
            bounded = max(1, min(self._max_limit, estimated))
            self._estimate = (1 - self._smoothing) * self._estimate + self._smoothing * bounded


def _drawn(given: float | Callable[[], float]) -> Callable[[], float]:
    if callable(given):
        return given
    what = "a number > 0 and <= 1, or a function that draws one"
    jitter = check_number("probe_jitter", given, what, lambda x: 0 < x <= 1)
    return lambda: jitter
