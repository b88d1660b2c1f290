"""Additive increase, multiplicative decrease: the rule of TCP's congestion avoidance."""

from __future__ import annotations

from typing import final

from .._util import check_number
from ._ported import Ported, check_bounds, check_ratio
from ._sample import nanoseconds


@final
class AIMDLimit(Ported):
    """One more after a branch that met its time with the limit at least half used, a share of
    `backoff_ratio` after a drop.

    A drop is `Outcome.DROPPED`, or a latency over `timeout_s` seconds (> 0, or math.inf).  The
    value is cut to a whole number, and to `min_limit` .. `max_limit`, after every sample;
    `initial_limit` may lie outside.  Latency below the timeout tells it nothing: without drops it
    climbs to `max_limit`.

    ValueError and TypeError name the argument.

    Chiu and Jain, Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in
    Computer Networks (1989); a port of Netflix/concurrency-limits, AIMDLimit.

    >>> from trio_parallel_steps.limits import Outcome, Sample
    >>> limit = AIMDLimit()
    >>> limit.on_sample(Sample(0.0, 0.1, 20, Outcome.OK))
    21
    >>> AIMDLimit(min_limit=1).on_sample(Sample(0.0, 0.1, 20, Outcome.DROPPED))
    18
    """

    __slots__ = ("_backoff_ratio", "_max_limit", "_min_limit", "_timeout")

    def __init__(
        self,
        *,
        initial_limit: int = 20,
        min_limit: int = 20,
        max_limit: int = 200,
        backoff_ratio: float = 0.9,
        timeout_s: float = 5.0,
    ) -> None:
        super().__init__(initial_limit)
        self._min_limit, self._max_limit = check_bounds(min_limit, max_limit)
        self._backoff_ratio = check_ratio("backoff_ratio", backoff_ratio)
        what = "a number of seconds > 0, or math.inf"
        check_number("timeout_s", timeout_s, what, lambda x: x > 0)
        self._timeout = nanoseconds(timeout_s)

    def _update(self, latency: int, in_flight: int, dropped: bool) -> None:
        limit = self.value
        if dropped or latency > self._timeout:
            limit = int(limit * self._backoff_ratio)
        elif 2 * in_flight >= limit:
            limit += 1
        self._estimate = min(self._max_limit, max(self._min_limit, limit))
