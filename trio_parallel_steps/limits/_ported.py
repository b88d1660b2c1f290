"""What the ports share.

1. The estimate is a float, the value what it is cut down to.
2. A latency counts in whole nanoseconds, and at least one: a branch on a virtual clock may have
   taken none, and the algorithms divide by it.  (In Java that raises.)
3. The first value is the `initial_limit` itself, even outside the bounds: they hold from the first
   update on.
"""

from __future__ import annotations

from math import inf, isqrt
from typing import TYPE_CHECKING

from .._util import check_int, check_number, expected
from ._sample import Outcome, nanoseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._sample import Sample


class Ported:
    """A limit that keeps an estimate."""

    __slots__ = ("_estimate",)

    def __init__(self, initial_limit: int) -> None:
        self._estimate: float = check_int("initial_limit", initial_limit, 1)

    @property
    def value(self) -> int:
        """How many may run now, >= 1."""
        return int(self._estimate)

    def on_sample(self, sample: Sample) -> int:
        """Take in how a branch ended; the new value."""
        if sample.outcome is not Outcome.IGNORED:
            latency = max(1, nanoseconds(sample.latency))
            self._update(latency, sample.in_flight, sample.outcome is Outcome.DROPPED)
        return int(self._estimate)

    def _update(self, latency: int, in_flight: int, dropped: bool) -> None:
        raise NotImplementedError  # pragma: no cover

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.value}>"


def check_bounds(min_limit: int, max_limit: int) -> tuple[int, int]:
    check_int("min_limit", min_limit, 1)
    check_int("max_limit", max_limit, 1)
    if min_limit > max_limit:
        raise ValueError(expected("min_limit", f"<= `max_limit`, {max_limit}", min_limit))
    return min_limit, max_limit


def check_smoothing(smoothing: float) -> float:
    return check_number("smoothing", smoothing, "a number > 0 and <= 1", lambda x: 0 < x <= 1)


def check_ratio(name: str, ratio: float) -> float:
    return check_number(name, ratio, "a number > 0 and < 1", lambda x: 0 < x < 1)


def check_tolerance(tolerance: float) -> float:
    what = "a finite number >= 1"
    return check_number("rtt_tolerance", tolerance, what, lambda x: 1 <= x < inf)


def of_limit(name: str, given: int | Callable[[int], int]) -> Callable[[int], int]:
    """A constant is a function of the limit, too."""
    if callable(given):
        return given
    what = "an int >= 0, or a function of the limit"
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(expected(name, what, given))
    if given < 0:
        raise ValueError(expected(name, what, given))
    return lambda limit: given


def check_function(name: str, given: Callable[[float], float]) -> Callable[[float], float]:
    if not callable(given):
        raise TypeError(expected(name, "a function of the limit", given))
    return given


def root(limit: int) -> int:
    return max(4, isqrt(limit))
