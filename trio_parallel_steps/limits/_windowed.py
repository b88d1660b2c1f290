"""One sample made of many, for algorithms that are easily led by single ones.

1. A window closes with the first sample that ends later than the window does; the next one ends
   twice the smallest latency after that, within bounds.  The first sample closes a window of one.
2. A window with too few samples is thrown away.
3. A mean is cut down to whole nanoseconds, not rounded.
"""

from __future__ import annotations

from math import floor, inf
from typing import TYPE_CHECKING, Final, Literal, final

from .._util import check_int, check_number, check_seconds, expected
from ._ported import check_ratio
from ._sample import Limit, Outcome, Sample, nanoseconds

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH: Final = "a number of seconds > 0, or math.inf"


class _Window:
    """What has ended since the last one closed."""

    __slots__ = ("dropped", "in_flight", "latencies")

    def __init__(self) -> None:
        self.latencies: list[int] = []
        self.in_flight = 0
        self.dropped = False

    def add(self, latency: int, sample: Sample) -> None:
        self.latencies.append(latency)
        self.in_flight = max(self.in_flight, sample.in_flight)
        self.dropped |= sample.outcome is Outcome.DROPPED


@final
class WindowedLimit:
    """Gives `delegate`, any `Limit`, one sample a window: when the last one started, a latency that
    stands for all, the most in flight, and whether any was dropped.

    A window lasts twice the smallest latency in it, at least `min_window_s` and at most
    `max_window_s` seconds (> 0), and counts if it has `window_size` samples (an int >= 1).  Samples
    shorter than `min_rtt_threshold_s` seconds are left out.

    `sampler` is ``"average"``, or ``"percentile"``, which needs `percentile` (> 0, < 1) and
    `sampler_size`, an int >= 1: how many samples it holds.  Later ones of the window are as if they
    had not been, drops too; if it holds fewer than `window_size`, the delegate hears nothing.

    ValueError and TypeError name the argument.

    A port of Netflix/concurrency-limits, WindowedLimit.

    >>> from trio_parallel_steps.limits import AIMDLimit
    >>> limit = WindowedLimit(AIMDLimit(), window_size=2)
    >>> for started_at in 0.0, 0.5, 0.8, 2.0:
    ...     print(limit.on_sample(Sample(started_at, 0.1, 20, Outcome.OK)))
    20
    20
    20
    21
    """

    __slots__ = (
        "_closes_at",
        "_delegate",
        "_max_window",
        "_min_window",
        "_shortest",
        "_size",
        "_summary",
        "_window",
        "_window_size",
    )

    def __init__(
        self,
        delegate: Limit,
        *,
        min_window_s: float = 1.0,
        max_window_s: float = 1.0,
        window_size: int = 10,
        min_rtt_threshold_s: float = 0.0001,
        sampler: Literal["average", "percentile"] = "average",
        percentile: float | None = None,
        sampler_size: int | None = None,
    ) -> None:
        if isinstance(delegate, type) or not isinstance(delegate, Limit):
            raise TypeError(expected("delegate", "a Limit", delegate))
        self._delegate = delegate
        check_number("min_window_s", min_window_s, LENGTH, lambda x: x > 0)
        check_number("max_window_s", max_window_s, LENGTH, lambda x: x > 0)
        if min_window_s > max_window_s:
            what = f"<= `max_window_s`, {max_window_s}"
            raise ValueError(expected("min_window_s", what, min_window_s))
        self._min_window = nanoseconds(min_window_s)
        self._max_window = nanoseconds(max_window_s)
        self._window_size = check_int("window_size", window_size, 1)
        threshold = check_seconds("min_rtt_threshold_s", min_rtt_threshold_s)
        self._shortest = nanoseconds(threshold)
        self._summary, self._size = _sampling(sampler, percentile, sampler_size)
        self._window = _Window()
        self._closes_at = 0  # nanoseconds

    @property
    def value(self) -> int:
        """The delegate's."""
        return self._delegate.value

    def on_sample(self, sample: Sample) -> int:
        """Take in how a branch ended; the delegate's value."""
        latency = nanoseconds(sample.latency)
        if sample.outcome is Outcome.IGNORED or latency < self._shortest:
            return self._delegate.value
        window = self._window
        if len(window.latencies) < self._size:
            window.add(latency, sample)
        ended_at = nanoseconds(sample.started_at) + latency
        if ended_at <= self._closes_at:
            return self._delegate.value
        self._window = _Window()
        length = max(2 * min(window.latencies), self._min_window)
        self._closes_at = ended_at + min(length, self._max_window)
        if len(window.latencies) < self._window_size:
            return self._delegate.value
        return self._delegate.on_sample(self._summed_up(window, sample.started_at))

    def _summed_up(self, window: _Window, started_at: float) -> Sample:
        outcome = Outcome.DROPPED if window.dropped else Outcome.OK
        latency = self._summary(window.latencies) / 1e9
        return Sample(started_at, latency, window.in_flight, outcome)

    def __repr__(self) -> str:
        return f"<WindowedLimit of {self._delegate!r}>"


def _sampling(
    sampler: str, percentile: float | None, size: int | None
) -> tuple[Callable[[list[int]], int], float]:
    """What stands for the latencies of a window, and how many of them it takes."""
    if sampler == "percentile":
        # None is no number: it is refused as any other wrong type.
        share = check_ratio("percentile", percentile)  # type: ignore[arg-type]
        taken = check_int("sampler_size", size, 1)  # type: ignore[arg-type]
        return lambda latencies: _at(share, latencies), taken
    if sampler != "average":
        raise ValueError(expected("sampler", "'average' or 'percentile'", sampler))
    for name, given in ("percentile", percentile), ("sampler_size", size):
        if given is not None:
            raise ValueError(expected(name, "left out with the sampler 'average'", given))
    return _mean, inf


def _mean(latencies: list[int]) -> int:
    return sum(latencies) // len(latencies)


def _at(share: float, latencies: list[int]) -> int:
    place = floor(len(latencies) * share + 0.5) - 1
    return sorted(latencies)[max(0, place)]
