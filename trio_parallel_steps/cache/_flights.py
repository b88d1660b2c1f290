"""Equal calls in flight run once.

1. The first caller leads: it makes the call, and the others, its followers, wait for the value.
2. A leader that is stopped, or fails, leaves nothing: the first of the followers takes over at
   once, and the rest wait for that one.  An error is its own caller's.
3. A follower in a branch is parked, as in every wait of ours.
4. A wait that would close a circle is refused: of branches by `_parking`; of plain tasks, which it
   knows nothing of, by what the code that asks runs in.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from .._branch import ParkingEvent, enclosing_branch, parking_event
from .._parking import Awaited, check_no_circle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._records import Record, Waker
    from ..hosts._abc import Run

NOT_LANDED: Final = object()


class Flight(Awaited):
    """One call, whoever makes it in the end."""

    __slots__ = ("_done", "successor", "value", "within")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.value: Any = NOT_LANDED
        self.successor: Waker | None = None  # the follower that is to lead
        self.within: list[tuple[Flight, ...]] = []  # the plain calls that followers are part of
        self._done: list[Waker] | None = None

    def taken_by(self, leader: Record | None) -> None:
        self.leader = leader
        if leader is not None:
            self._done = leader._done = leader._done or []
            self._done.append(self)

    def left(self) -> None:
        self.leader = None
        done, self._done = self._done, None
        if done is not None:
            done.remove(self)

    def is_around(self, calls: tuple[Flight, ...]) -> bool:
        """Is any of these calls part of it, directly or through the calls that wait for them?"""
        due = list(calls)
        seen = set(calls)
        while due:
            flight = due.pop()
            if flight is self:
                return True
            outer = {each for within in flight.within for each in within} - seen
            seen |= outer
            due.extend(outer)
        return False


# The calls that the code is part of, as far as no branch makes them.
_calls: Final[ContextVar[tuple[Flight, ...]]] = ContextVar("_calls", default=())


class Flights:
    __slots__ = ("_by_key", "_run")

    def __init__(self) -> None:
        self._by_key: dict[str, Flight] = {}
        self._run: Run | None = None

    def __len__(self) -> int:
        return len(self._by_key)

    def bind(self, run: Run, cache: object) -> None:
        if run is not self._run:
            if self._by_key:
                raise RuntimeError(f"{cache!r} is in use by another run of an event loop")
            self._run = run

    async def fly(
        self, key: str, name: str, run: Run, call: Callable[[], Awaitable[tuple[Any, bool]]]
    ) -> tuple[Any, bool]:
        """What `call` returns; a follower has it from the cache."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = Flight(name)
            flight.taken_by(enclosing_branch(run))
        elif (value := await self._follow(key, flight, run)) is not NOT_LANDED:
            return value, True
        return await self._lead(key, flight, call)

    async def _lead(
        self, key: str, flight: Flight, call: Callable[[], Awaitable[tuple[Any, bool]]]
    ) -> tuple[Any, bool]:
        before = _calls.get()
        if flight.leader is None:
            _calls.set((*before, flight))
        try:
            value, from_cache = await call()
        except BaseException:
            self._pass_on(key, flight)
            raise
        finally:
            _calls.set(before)
        flight.value = value
        flight.left()
        del self._by_key[key]
        followers, flight.waits = flight.waits, []
        for follower in followers:
            follower.set()
        return value, from_cache

    async def _follow(self, key: str, flight: Flight, run: Run) -> Any:
        """The value; NOT_LANDED to who is to lead now."""
        calls = _calls.get()
        if flight.is_around(calls):
            raise RuntimeError(f"{flight.name}() would wait for ever: for an equal call around it")
        waiter = enclosing_branch(run)
        if waiter is not None and flight.leader is not None:
            leader = flight.leader
            what = f"{leader.key!r}, which makes an equal call"
            check_no_circle(waiter, lambda record: record is leader, f"{flight.name}()", what)
        flight.within.append(calls)
        event = parking_event(run, waiter, flight, flight.waits)
        try:
            await event.wait()
        except BaseException:
            if flight.successor is event:
                self._pass_on(key, flight)
            raise
        finally:
            flight.within.remove(calls)
            if event in flight.waits:  # it has been told nothing
                flight.waits.remove(event)
        return flight.value

    def _pass_on(self, key: str, flight: Flight) -> None:
        flight.left()
        if not flight.waits:
            del self._by_key[key]
            return
        successor = flight.successor = flight.waits.pop(0)
        flight.taken_by(successor.record if isinstance(successor, ParkingEvent) else None)
        successor.set()
