"""The search of `explore`: which schedules are tried, and in which order.

1. The first schedule takes every task in the order of spawning.  All others depart from it, and
   each has one parent: the same without its last departure.  Exhaustive search goes by the number
   of departures, so the first schedule to fail is a shortest.  An injected fault is one too.
2. Random schedules get their faults from a shuffled deck of each fault before each step, and none.
   One that fails is shortened: departures are taken away while it still fails so.
3. What has failed is run again, and must fail again; so must a prefix meet the same choices.  Else
   the program is not a function of its schedule, which is an error of its own.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import attrs
import trio

from . import _scheduler
from ._choices import Choices, Schedule, Unplayable
from ._run import Loops, Run, Session
from ._trace import Tracer

if TYPE_CHECKING:
    from ._faults import Fault

Program: TypeAlias = Callable[[], Awaitable[Any]]
Check: TypeAlias = Callable[[Run], object]

SHORTENING: Final = 400  # runs that making a schedule shorter may cost


class ScheduleFailed(AssertionError):
    """A program failed under a schedule; its cause is what went wrong.

    Its text shows how to run that schedule again, and what happened in it, step by step.
    """

    def __init__(self, message: str, schedule: str, trace: str, run: Run, explored: int) -> None:
        super().__init__(message)
        self.schedule = schedule
        """for `replay`"""
        self.trace = trace
        """what happened, a line a step"""
        self.run = run
        """what came of it"""
        self.explored = explored
        """how many schedules were run before it was found"""


class NotDeterministic(Exception):
    """The same schedule went differently the second time: the program depends on something else,
    such as real time, threads, the order of a set, or what an earlier run left behind."""


@final
@attrs.frozen
class Explored:
    """What `explore` has done; no schedule failed."""

    schedules: int
    """how many were run, all different if that was all of them"""
    complete: bool
    """whether that was all of them"""
    with_faults: int
    """how many of them had a fault injected"""


@attrs.frozen
class Branching:
    """A schedule to be tried: a prefix, and the fingerprint of what it was chosen from."""

    order: bytes
    fault: tuple[int, int] | None
    mark: int | None


class Search:
    """One exploration."""

    def __init__(
        self,
        async_fn: Program,
        check: Check | None,
        faults: tuple[Fault, ...],
        raises: tuple[type[BaseException], ...],
    ) -> None:
        if not callable(async_fn):
            raise TypeError(f"`async_fn` must be an async function, got {async_fn!r}")
        if inspect.isfunction(async_fn) and not inspect.iscoroutinefunction(async_fn):
            raise TypeError(f"`async_fn` must be an async function, got {async_fn!r}")
        if check is not None and not callable(check):
            raise TypeError(f"`check` must be a function of a Run, or None, got {check!r}")
        _scheduler.check_version()
        if trio.lowlevel.in_trio_run():
            raise RuntimeError("a program is explored from synchronous code: call it outside trio")
        self.async_fn = async_fn
        self.check = check
        self.faults = faults
        self.raises = raises
        self.explored = 0
        self.with_faults = 0
        self._loops = Loops()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loops.close()

    def judged(self, run: Run) -> BaseException | None:
        """What is wrong with it."""
        exc = run.exception
        if exc is not None and not self.is_allowed(run, exc):
            return exc
        if self.check is not None:
            try:
                self.check(run)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # pytest.fail() raises none but these
                return error
        return None

    def is_allowed(self, run: Run, exc: BaseException) -> bool:
        if run.fault is not None and run.fault.explains(exc):
            return True
        if isinstance(exc, self.raises):
            return True
        return isinstance(exc, BaseExceptionGroup) and all(
            self.is_allowed(run, inner) for inner in exc.exceptions
        )

    # ------------------------------------------------------------ all of them

    def all(self) -> Explored:
        pending = deque([Branching(b"", None, None)])
        first, _ = self._check_twice()
        while pending:
            branching = pending.popleft()
            schedule = Schedule(tuple(branching.order), branching.fault)
            choices = Choices(schedule, expected=branching.mark, marked=True)
            session = self.session(choices, schedule.fault, listing=True)
            try:
                run = self._loops.run(session)
            except Unplayable as exc:
                raise _not_deterministic(str(exc), schedule) from None
            if not self.explored and choices.mark != first:
                raise _not_deterministic("its steps were not the same", schedule)
            self._count(run)
            error = self.judged(run)
            if error is not None:
                self.fail(choices.schedule(), error)
            pending += _children(branching, session)
        return Explored(self.explored, True, self.with_faults)

    # ------------------------------------------------------------ some of them

    def some(self, schedules: int, seed: int) -> Explored:
        _, steps = self._check_twice()
        planned: list[tuple[int, int] | None] = []
        for number in range(schedules):
            random = Random(f"{seed} {number}")
            if not planned:
                planned = self._planned(steps, random)
            choices = Choices(Schedule(), random)
            session = self.session(choices, planned.pop(), exactly=False)
            run = self._loops.run(session)
            steps = max(steps, session.steps)
            self._count(run)
            error = self.judged(run)
            if error is not None:
                self.fail(*self.shortened(choices.schedule(), error))
        return Explored(self.explored, False, self.with_faults)

    def _planned(self, steps: int, random: Random) -> list[tuple[int, int] | None]:
        """Each fault before each step, and none, in any order."""
        planned: list[tuple[int, int] | None] = [None]
        for number, fault in enumerate(self.faults):
            at = range(steps) if fault.at == "every" else sorted(fault.at)
            planned += [(number, step) for step in at]
        random.shuffle(planned)
        return planned

    def shortened(self, schedule: Schedule, error: BaseException) -> tuple[Schedule, BaseException]:
        """Take departures away, first many at once, while it still fails with the like error."""
        runs = 0
        size = len(schedule.order)
        while size and runs < SHORTENING:
            at = 0
            while at < len(schedule.order) and runs < SHORTENING:
                order = list(schedule.order)
                if any(order[at : at + size]):
                    order[at : at + size] = [0] * len(order[at : at + size])
                    runs += 1
                    found = self._like(Schedule(tuple(order), schedule.fault), error)
                    if found is not None:
                        schedule, error = found
                at += size
            size //= 2
        if schedule.fault is not None:
            found = self._like(Schedule(schedule.order), error)
            if found is not None:
                schedule, error = found
        return schedule, error

    def _like(
        self, schedule: Schedule, error: BaseException
    ) -> tuple[Schedule, BaseException] | None:
        choices = Choices(schedule)
        try:
            found = self.judged(self._loops.run(self.session(choices, schedule.fault)))
        except Unplayable:
            return None
        if type(found) is not type(error):
            return None
        assert found is not None
        return choices.schedule(), found

    # ------------------------------------------------------------ one of them

    def session(
        self,
        choices: Choices,
        fault: tuple[int, int] | None,
        *,
        exactly: bool = True,
        listing: bool = False,
        tracer: Tracer | None = None,
    ) -> Session:
        return Session(
            self.async_fn,
            choices,
            self.faults,
            fault,
            exactly=exactly,
            listing=listing,
            tracer=tracer,
        )

    def traced(self, schedule: Schedule) -> tuple[Run, BaseException | None, Tracer]:
        tracer = Tracer()
        run = self._loops.run(self.session(Choices(schedule), schedule.fault, tracer=tracer))
        return run, self.judged(run), tracer

    def fail(self, schedule: Schedule, error: BaseException) -> None:
        """Raise, once it has been seen to fail again."""
        try:
            run, again, tracer = self.traced(schedule)
        except Unplayable as exc:
            raise _not_deterministic(str(exc), schedule) from error
        if type(again) is not type(error):
            what = f"it failed with {error!r}, and then with {again!r}"
            raise _not_deterministic(what, schedule) from error
        assert again is not None
        raise self.failure(run, again, tracer, self.explored) from again

    def failure(
        self, run: Run, error: BaseException, tracer: Tracer, explored: int
    ) -> ScheduleFailed:
        trace = str(tracer)
        count = "1 schedule" if explored == 1 else f"{explored} schedules"
        told = "" if run.fault is None else f"\ninjected before step {run.fault_step}: {run.fault}"
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        name = getattr(self.async_fn, "__name__", repr(self.async_fn))
        message = (
            f"{why}\nafter {count}, under {run.schedule!r}: "
            f"replay({name}, {run.schedule!r}, ...){told}\n{trace}"
        )
        return ScheduleFailed(message, run.schedule, trace, run, explored)

    def _count(self, run: Run) -> None:
        self.explored += 1
        self.with_faults += run.fault is not None

    def _check_twice(self) -> tuple[int, int]:
        """The first schedule, twice.  Returns its fingerprint, and how many steps it has."""
        seen = []
        for _ in range(2):
            choices = Choices(Schedule())
            session = Session(self.async_fn, choices, self.faults, tracer=_no_trace)
            run = self._loops.run(session)
            seen.append((choices.mark, session.steps, run.seconds, type(run.exception)))
        if seen[0] != seen[1]:
            raise _not_deterministic("its steps, or its end, were not the same", Schedule())
        return seen[0][:2]


def _no_trace(session: Session, task: trio.lowlevel.Task) -> None:
    """It is only to be watched."""


def _children(branching: Branching, session: Session) -> Iterator[Branching]:
    """All that depart once more, later than the last departure."""
    choices = session.choices
    assert choices.marks is not None
    order = bytes(choices.order)
    decided = len(branching.order)
    for at in range(decided, len(order)):
        size, mark = choices.marks[at]
        if size > 256:
            raise ValueError(f"{size} tasks are ready at once: that is too many for all schedules")
        for choice in range(1, size):
            yield Branching(order[:at] + bytes([choice]), branching.fault, mark)
    if branching.fault is not None or not session.possible:
        return
    assert session.chosen_at is not None
    since = session.chosen_at[decided - 1] if decided else 0
    for step, number, made in session.possible:
        if step >= since:
            seen = choices.marks[made - 1][1] if made else None
            yield Branching(order[:made], (number, step), seen)


def _not_deterministic(what: str, schedule: Schedule) -> NotDeterministic:
    return NotDeterministic(
        f"the program went differently under the same schedule, {str(schedule)!r}: {what}"
    )
