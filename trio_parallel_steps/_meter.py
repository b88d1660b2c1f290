"""What a pool's `Limit` is told of those who run by its tokens, and what becomes of its answer.

1. A sample is one try of a branch, or one stay of a task in a limiter.  Its latency is the time in
   which it held a token: neither the wait for the first, nor what it lent while parked.
2. In flight are the tokens of those who have begun and are not parked.
3. As long as all there are fit under the initial limit, nothing is measured: it would say nothing.
   Tasks that enter a limiter are always measured.
4. What the limit says holds before the token of who ended is passed on.
5. A limit that raises, or says no int >= 1, is not asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ._errors import Backpressure
from ._records import SUCCEEDED, Cause
from ._util import check_int
from .limits import Outcome, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._admission import Pool, Waiter
    from ._records import Record
    from .limits import Limit

OK: Final = Outcome.OK
DROPPED: Final = Outcome.DROPPED
IGNORED: Final = Outcome.IGNORED


class Meter:
    """Of one pool, in one run of an event loop."""

    __slots__ = (
        "_began",
        "_is_broken",
        "_is_engaged",
        "_limit",
        "_parked",
        "_pool",
        "_set",
        "in_flight",
    )

    def __init__(self, limit: Limit, pool: Pool, set_limit: Callable[[int, Sample], None]) -> None:
        self._limit: Limit = limit
        self._pool: Pool = pool
        self._set: Callable[[int, Sample], None] = set_limit
        self._is_engaged: bool = False
        self._is_broken: bool = False
        self.in_flight: int = 0
        self._began: dict[Any, tuple[float, int, float]] = {}  # when, in flight then, time lent
        self._parked: dict[Any, float] = {}  # since when

    def began(self, waiter: Waiter, now: float) -> None:
        """A branch."""
        in_flight = self.in_flight = self.in_flight + waiter._weight
        if self._is_engaged:
            self._began[waiter] = (now, in_flight, 0.0)
        elif self._pool.used + self._pool.waiting >= self._pool.cap:
            self._is_engaged = True
            self._began[waiter] = (now, in_flight, 0.0)

    def entered(self, waiter: Any, now: float) -> None:
        """A task."""
        self.in_flight += 1
        self._began[waiter] = (now, self.in_flight, 0.0)

    def pressed(self, now: float) -> None:
        """Resources run short: as if one of those that run had been turned away."""
        self._ask(Sample(now, 0.0, self.in_flight, DROPPED))

    def parked(self, waiter: Waiter, now: float) -> None:
        self.in_flight -= waiter._weight
        self._parked[waiter] = now

    def resumed(self, waiter: Waiter, now: float) -> None:
        self.in_flight += waiter._weight
        since = self._parked.pop(waiter)
        if (begun := self._began.get(waiter)) is not None:
            started_at, in_flight, lent = begun
            self._began[waiter] = (started_at, in_flight, lent + now - since)

    def ended(self, waiter: Any, weight: int, now: float, outcome: Outcome) -> None:
        """Raises what the limit raises."""
        since = self._parked.pop(waiter, None)
        if since is None:
            self.in_flight -= weight
        begun = self._began.pop(waiter, None)
        if begun is None:
            return
        started_at, in_flight, lent = begun
        if since is not None:
            lent += now - since
        self._ask(Sample(started_at, now - started_at - lent, in_flight, outcome))

    def _ask(self, sample: Sample) -> None:
        if self._is_broken:
            return
        try:
            value = self._limit.on_sample(sample)
            if value != self._pool.cap:
                self._set(check_int("on_sample(...)", value, 1), sample)
        except Exception:
            self._is_broken = True
            raise


def outcome(record: Record) -> Outcome:
    """Of one that has ended."""
    if record.status is SUCCEEDED:
        return OK
    return DROPPED if record._cause is Cause.TIMEOUT else outcome_of(record._value)


def outcome_of(error: object) -> Outcome:
    """Of one that raised it: did it say 'overloaded', by itself or among others?"""
    if isinstance(error, BaseExceptionGroup):
        return IGNORED if error.subgroup(Backpressure) is None else DROPPED
    return DROPPED if isinstance(error, Backpressure) else IGNORED
