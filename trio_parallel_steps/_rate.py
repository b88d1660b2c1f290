"""`Rate`: admissions spaced in time.

1. GCRA, the generic cell rate algorithm (ITU-T I.371, annex A): one number, the theoretical arrival
   time of the next admission, says whether one may come now and when the next may.
2. Only an admission spends: a branch stopped while it waits has cost nothing, nor has one that was
   granted a token and stopped before its function was called.
3. A rate holds what is queued, never a branch that resumes; a gated waiter is nobody's head.
"""

from __future__ import annotations

from math import inf
from sys import float_info
from typing import TYPE_CHECKING, Final, final

import attrs

from ._util import check_int, expected, is_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from .hosts._abc import Run, Timer


POSITIVE: Final = "a finite number > 0"


def _check_positive(rate: Rate, attribute: attrs.Attribute[float], value: float) -> None:
    if not is_number(value):
        raise TypeError(expected(attribute.name, POSITIVE, value))
    if not 0 < value <= float_info.max:  # NaN too, and ints past all floats
        raise ValueError(expected(attribute.name, POSITIVE, value))


def _check_burst(rate: Rate, attribute: attrs.Attribute[int], value: int) -> None:
    check_int(attribute.name, value, 1)


@final
@attrs.frozen
class Rate:
    """Admissions spaced ``per / amount`` seconds apart; after a rest up to `burst` at once, so that
    any window of `per` seconds holds at most ``amount + burst - 1`` (`amount` rounded up).

    Given to a `BranchLimiter`.  A branch stopped while it waits spends nothing, one that goes on
    after a wait of its own neither; a retry is an admission.  The algorithm is GCRA.

    >>> Rate(10, per=60.0, burst=3)
    Rate(amount=10, per=60.0, burst=3)
    """

    amount: float = attrs.field(validator=_check_positive)
    per: float = attrs.field(default=1.0, validator=_check_positive)
    burst: int = attrs.field(default=1, validator=_check_burst)

    def __attrs_post_init__(self) -> None:
        if self.per / self.amount == inf:
            raise ValueError(expected("per` / `amount", POSITIVE, inf))


class Gate:
    """A rate as it stands in one run of an event loop."""

    __slots__ = ("_interval", "_next", "_run", "_timer", "_tolerance")

    def __init__(self, rate: Rate, run: Run) -> None:
        self._interval: float = rate.per / rate.amount
        self._tolerance: float = (rate.burst - 1) * self._interval
        self._next: float = -inf  # the theoretical arrival time
        self._run: Run = run
        self._timer: Timer | None = None

    def opens_in(self) -> float:
        """Seconds until one may be admitted."""
        return max(0.0, self._next - self._tolerance - self._run.now())

    def is_open(self, look: Callable[[], object]) -> bool:
        """May one be admitted now?  If not, `look` is called when one may."""
        opens_at = self._next - self._tolerance
        if self._run.now() >= opens_at:
            return True
        if self._timer is None:
            self._timer = self._run.call_at(opens_at, lambda: self._opens(look))
        return False

    def _opens(self, look: Callable[[], object]) -> None:
        self._timer = None
        look()

    def spend(self) -> None:
        self._next = max(self._next, self._run.now()) + self._interval

    def refund(self) -> None:
        """What was spent on one that never began."""
        self._next -= self._interval

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
