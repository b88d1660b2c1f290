"""What `map_branches` adds to a step: branches that come as there is room, and go once consumed.

1. What is queued, running or unconsumed is in the core's records, and nothing else is kept; there
   are never more of them than the pool's cap, as it is now.
2. At most one is queued: the next item is pulled once the one before it has its token.
3. A result is unconsumed from the end of its branch until an iterator returns it.  In order, that
   is when all before it have been.
4. Nothing is pulled once the step was told to stop or its block is being left; the input is closed
   after the last branch has ended.
5. What the input raises, or the function that makes keys, counts as an error of the body.
6. The policy may raise what was consumed long ago: at most `KEPT` exceptions are kept for it.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, overload

from ._branch import enclosing_branch, new_branch, parking_event
from ._core import GOES_ON
from ._errors import BranchNotDone
from ._outcomes import said
from ._parking import check_no_circle
from ._records import SUCCEEDED, Cause
from ._util import check_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator
    from contextvars import Context

    from ._core import StepCore
    from ._inputs import Input
    from ._outcomes import StepResult
    from ._records import Record, Waker

KEPT: Final = 100


class Feed:
    """Stands between an input, the core of a step, and those who iterate over the results."""

    __slots__ = (
        "_ahead",
        "_async_fn",
        "core",
        "_count",
        "input",
        "_in_order",
        "is_closed",
        "is_exhausted",
        "_kept",
        "_key",
        "left_out",
        "_line",
        "_more",
        "_unconsumed",
    )

    def __init__(
        self,
        core: StepCore,
        async_fn: Callable[[Any], Awaitable[Any]],
        key: Callable[[Any], Hashable] | None,
        in_order: bool,
    ) -> None:
        self.core: StepCore = core
        self.input: Input
        self.is_exhausted: bool = False
        self.is_closed: bool = False  # the block is being left
        self._async_fn = async_fn
        self._key = key
        self._in_order = in_order
        self._count = 0
        self._ahead: Record | None = None  # what was submitted and has not begun
        self._line: deque[Record] = deque()  # to be consumed, in this order; the first has to end
        self._unconsumed = core.endings = Unconsumed()
        self._kept: list[Exception] = []
        self._more = 0
        self.left_out: int = 0  # of what is raised, for its note

    # ------------------------------------------------------------ the input's side

    def has_room(self) -> bool:
        """May the next item be pulled?"""
        core = self.core
        if core.cause is not None or self.is_closed or self.is_exhausted:
            return False
        if len(core.records) >= max(1, core.pool.in_use()[1]):
            return False
        return self._ahead is None or self._ahead._entry is None

    def is_over(self) -> bool:
        """Will nothing be pulled any more?"""
        return self.is_exhausted or self.is_closed or self.core.cause is not None

    def key_of(self, item: Any) -> Hashable:
        """Raises what counts as an error of the body."""
        key = self._count if self._key is None else self.input.call(self._key, item)
        check_key(key)
        if key in self.core.records:
            raise ValueError(f"duplicate key {key!r} among what is running or unconsumed")
        return key

    def submit(self, key: Hashable, item: Any, context: Context) -> None:
        core = self.core
        if self.is_over():  # while it was pulled
            return
        now = core.host.now()
        self._count += 1
        record = self._ahead = new_branch(
            core, key, self._async_fn, (item,), 0, 1, inf, context, now
        )
        root = core.pool.will_dispatch()
        core.submit(record)
        root.dispatch()

    def exhausted(self) -> None:
        self.is_exhausted = True
        if not self.core.outstanding:
            self.wake()

    def raised(self, exc: Exception) -> None:
        core = self.core
        why = f"the input raised {said(exc)}"
        core.errors.append(exc)
        if not core.stop(Cause.BODY, why) and core.cause in GOES_ON:  # all else has ended
            core.cause, core.reason = Cause.BODY, why

    # ------------------------------------------------------------ what the core reports

    def submitted(self, record: Record) -> None:
        """One of ours, or of an observer's, which has the nursery too."""
        if self._in_order:
            self._line.append(record)
            self.wake()

    def begun(self, record: Record) -> None:
        if record is self._ahead:
            self._ahead = None
            self.input.look()

    def ended(self, record: Record) -> None:
        if not self._in_order:
            self._line.append(record)
        if record is self._ahead:  # it was skipped
            self._ahead = None
            self.input.look()

    def all_ended(self) -> None:
        self.input.all_ended()

    def stopped(self) -> None:
        self.input.look()
        self.wake()

    def look(self) -> None:
        """There may be room."""
        self.input.look()

    # ------------------------------------------------------------ the iterator's side

    def is_ready(self) -> bool:
        """Is there a result to consume, or will there never be one?"""
        line = self._line
        if line:
            return line[0]._step is None
        return self.is_over() and not self.core.outstanding

    def consume(self) -> StepResult[Any] | None:
        if not self._line:
            return None
        record = self._line.popleft()
        self._unconsumed.remove(record)
        del self.core.records[record.key]
        result = record.result
        if record.status is not SUCCEEDED and self.core.policy.asked_on:
            self._keep(record.exception, result)
        self.input.look()
        return result

    async def wait(self) -> None:
        """Until something changes.  A branch that waits is parked."""
        core = self.core
        waiter = enclosing_branch(core.run)
        if waiter is not None:
            what = f"the branches of step {core.name!r}"
            check_no_circle(waiter, lambda record: record._step is core, "map_branches()", what)
        wakers = self._wakers()
        event = parking_event(core.run, waiter, core, wakers)
        try:
            await event.wait()
        finally:
            wakers.remove(event)
            del waiter, event  # what comes out of here may become the branch's: no cycles

    def _wakers(self) -> list[Waker]:
        if not (self._in_order and self._line):
            return self.core.listeners  # set at the next ending
        first = self._line[0]
        done = first._done = first._done or []
        return done

    def wake(self) -> None:
        core = self.core
        listeners, core.listeners = core.listeners, []
        for waker in listeners:
            waker.set()

    # ------------------------------------------------------------ the end

    def close(self, stop: bool) -> None:
        """The block is being left; `stop` what runs."""
        self.is_closed = True
        core = self.core
        self.input.close()
        if stop:
            for record in tuple(core.records.values()):
                core.cancel(record, "the block was left")
        self.wake()
        if not core.outstanding:
            self.input.all_ended()

    def _keep(self, exception: Exception | None, result: StepResult[Any]) -> None:
        if exception is None and self.core.policy.has_goal:
            exception = BranchNotDone(result.feedback)
        if exception is None:
            return
        if len(self._kept) < KEPT:
            self._kept.append(exception)
        else:
            self._more += 1

    def with_kept(self, errors: list[Exception]) -> list[Exception]:
        """Those of branches that were consumed, first, as far as `KEPT` in all allows."""
        shown = self._kept[: max(0, KEPT - len(errors))]
        self.left_out = self._more + len(self._kept) - len(shown)
        return [*shown, *errors]


class Unconsumed:
    """In place of a core's list of endings: all are counted, but what was consumed is gone."""

    __slots__ = ("_ended", "_number")

    def __init__(self) -> None:
        self._ended: dict[Record, int] = {}
        self._number = 0

    def append(self, record: Record) -> None:
        self._ended[record] = self._number
        self._number += 1

    def remove(self, record: Record) -> None:
        del self._ended[record]

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Record]:
        return iter(self._ended)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, int):
            raise RuntimeError("results of map_branches are read from its own iterator")
        return [record for record, number in self._ended.items() if number >= place.start]
