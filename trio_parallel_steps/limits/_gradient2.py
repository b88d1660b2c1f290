"""Latency against its own long average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from .._util import check_int
from ._ported import Ported, check_bounds, check_smoothing, check_tolerance, of_limit

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP: Final = 10


@final
class Gradient2Limit(Ported):
    """Multiplies the limit by ``rtt_tolerance * average latency / latency``, cut to .5 .. 1, adds
    `queue_size`, and follows the outcome by the share `smoothing` (> 0, <= 1).

    The average is exponential over `long_window` samples, plain over the first 10; when it is more
    than twice a latency it is taken down by a twentieth.  `queue_size` is an int >= 0 or a function
    of the limit.  Nothing moves while less than half of the limit is in flight.  It does not look
    at drops.  Bounds are `min_limit` .. `max_limit`; `initial_limit` may lie outside.  The
    defaults are Netflix' own, and so it never falls below 20 unless told to.

    ValueError and TypeError name the argument.

    A port of Netflix/concurrency-limits, Gradient2Limit.

    >>> from trio_parallel_steps.limits import Outcome, Sample
    >>> limit = Gradient2Limit(smoothing=1.0, min_limit=1)
    >>> limit.on_sample(Sample(0.0, 0.1, 20, Outcome.OK))
    24
    >>> limit.on_sample(Sample(0.1, 0.7, 24, Outcome.OK))  # 24 * 1.5 * .4 / .7 + 4
    24
    """

    __slots__ = (
        "_average",
        "_count",
        "_factor",
        "_max_limit",
        "_min_limit",
        "_queue_size",
        "_smoothing",
        "_sum",
        "_tolerance",
    )

    def __init__(
        self,
        *,
        initial_limit: int = 20,
        min_limit: int = 20,
        max_limit: int = 200,
        smoothing: float = 0.2,
        queue_size: int | Callable[[int], int] = 4,
        long_window: int = 600,
        rtt_tolerance: float = 1.5,
    ) -> None:
        super().__init__(initial_limit)
        self._min_limit, self._max_limit = check_bounds(min_limit, max_limit)
        self._smoothing = check_smoothing(smoothing)
        self._queue_size = of_limit("queue_size", queue_size)
        self._factor = 2 / (check_int("long_window", long_window, 1) + 1)
        self._tolerance = check_tolerance(rtt_tolerance)
        self._average = 0.0  # nanoseconds
        self._sum = 0.0  # of the first
        self._count = 0

    def _update(self, latency: int, in_flight: int, dropped: bool) -> None:
        self._take_in(latency)
        estimate = self._estimate
        if in_flight < estimate / 2:
            return
        gradient = max(0.5, min(1.0, self._tolerance * self._average / latency))
        new = estimate * gradient + self._queue_size(self.value)
        new = estimate * (1 - self._smoothing) + new * self._smoothing
        self._estimate = max(self._min_limit, min(self._max_limit, new))

    def _take_in(self, latency: int) -> None:
        if self._count < WARM_UP:
            self._count += 1
            self._sum += latency
            self._average = self._sum / self._count
        else:
            self._average = self._average * (1 - self._factor) + latency * self._factor
        if self._average / latency > 2:
            self._average *= 0.95  # this step's gradient is 1 all the same
