"""Latency against the smallest seen, which is looked for anew from time to time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from .._util import check_int, expected
from ._ported import (
    Ported,
    check_bounds,
    check_ratio,
    check_smoothing,
    check_tolerance,
    of_limit,
    root,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER: Final = -1


@final
class GradientLimit(Ported):
    """Multiplies the limit by ``rtt_tolerance * smallest latency / latency``, cut to .5 .. 1, and
    adds `queue_size`: how many may wait.

    A drop multiplies it by `backoff_ratio` instead.  `smoothing` (> 0, <= 1) is the share by which
    it follows downwards; upwards it does at once, unless less than half of it is in flight.
    `queue_size` is an int >= 0 or a function of the limit, by default its square root, but 4 at
    least.  Bounds are `min_limit` .. `max_limit`, and `queue_size` below, before both;
    `initial_limit` may lie outside.

    After `probe_interval` samples and some more the limit falls to the queue size and the smallest
    latency is forgotten; -1: never.  `countdown` says after how many, as an int >= 0, or a function
    of no arguments asked for one at the start and after each probe.  Netflix draws it from
    ``probe_interval .. 2 * probe_interval - 1``; the default is the middle, as a limit is pure.

    ValueError and TypeError name the argument.

    A port of Netflix/concurrency-limits, GradientLimit.

    >>> from trio_parallel_steps.limits import Outcome, Sample
    >>> limit = GradientLimit()
    >>> limit.on_sample(Sample(0.0, 0.1, 50, Outcome.OK))
    57
    >>> limit.on_sample(Sample(0.1, 0.4, 57, Outcome.OK))  # (57 * .5 + 7) by a fifth
    52
    """

    __slots__ = (
        "_backoff_ratio",
        "_base",
        "_max_limit",
        "_min_limit",
        "_next_countdown",
        "_queue_size",
        "_remaining",
        "_smoothing",
        "_tolerance",
    )

    def __init__(
        self,
        *,
        initial_limit: int = 50,
        min_limit: int = 1,
        max_limit: int = 1000,
        smoothing: float = 0.2,
        queue_size: int | Callable[[int], int] = root,
        rtt_tolerance: float = 2.0,
        probe_interval: int = 1000,
        backoff_ratio: float = 0.9,
        countdown: int | Callable[[], int] | None = None,
    ) -> None:
        super().__init__(initial_limit)
        self._min_limit, self._max_limit = check_bounds(min_limit, max_limit)
        self._smoothing = check_smoothing(smoothing)
        self._queue_size = of_limit("queue_size", queue_size)
        self._tolerance = check_tolerance(rtt_tolerance)
        self._backoff_ratio = check_ratio("backoff_ratio", backoff_ratio)
        self._next_countdown = _drawn(countdown, _check_interval(probe_interval))
        self._remaining = self._next_countdown()  # samples until the next probe
        self._base = 0  # nanoseconds; 0: none yet

    def _update(self, latency: int, in_flight: int, dropped: bool) -> None:
        estimate = self._estimate
        queue = self._queue_size(self.value)
        if self._probes():
            self._base = 0
            self._estimate = max(self._min_limit, queue)
            return
        if self._base == 0 or latency < self._base:
            self._base = latency
        if dropped:
            new = estimate * self._backoff_ratio
        elif in_flight < estimate / 2:
            return
        else:
            gradient = max(0.5, min(1.0, self._tolerance * self._base / latency))
            new = estimate * gradient + queue
        if new < estimate:
            smoothed = estimate * (1 - self._smoothing) + self._smoothing * new
            new = max(self._min_limit, smoothed)
        self._estimate = max(queue, min(self._max_limit, new))

    def _probes(self) -> bool:
        if self._remaining == NEVER:
            return False
        if self._remaining > 0:
            self._remaining -= 1
            return False
        self._remaining = self._next_countdown()
        return True


def _check_interval(interval: int) -> int:
    what = "an int >= 1, or -1 for never"
    if not isinstance(interval, int) or isinstance(interval, bool):
        raise TypeError(expected("probe_interval", what, interval))
    if interval < 1 and interval != NEVER:
        raise ValueError(expected("probe_interval", what, interval))
    return interval


def _drawn(given: int | Callable[[], int] | None, interval: int) -> Callable[[], int]:
    if given is not None and not callable(given):
        check_int("countdown", given, 0)
    if interval == NEVER:
        return lambda: NEVER
    if callable(given):
        return given
    countdown = interval + interval // 2 if given is None else given
    return lambda: countdown
