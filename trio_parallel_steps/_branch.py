"""`Branch`: what users hold of one branch, live."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, final

from ._parking import Wait, check_no_circle, force
from ._records import QUEUED, RUNNING, Record, running_record, running_try
from ._util import NoPublicConstructor, check_int, check_str, expected, is_number
from .hosts import current_run, protected

if TYPE_CHECKING:
    from ._core import StepCore
    from ._outcomes import StepResult
    from ._parking import Awaited
    from ._records import Waker
    from .hosts._abc import Event, Run

T = TypeVar("T")


@final
class Branch(Record, Generic[T], metaclass=NoPublicConstructor):
    """A live handle; `current_branch` is the one that the caller runs in.

    Made by `BranchNursery.start_soon`.  It stays valid after its end.

    >>> import trio
    >>> from trio_parallel_steps import open_branch_nursery
    >>> async def main():
    ...     async with open_branch_nursery(2) as nursery:
    ...         branch = nursery.start_soon("slow", trio.sleep_forever)
    ...         branch.cancel("not needed")
    ...     return branch, nursery.result["slow"].reason
    >>> trio.run(main)
    (<Branch 'slow' skipped>, 'not needed')
    """

    __slots__ = ()

    @property
    def priority(self) -> int:
        """Higher is admitted first.  Settable while queued, else RuntimeError."""
        return self._priority

    @priority.setter
    @protected
    def priority(self, priority: int) -> None:
        check_int("priority", priority)
        if self.status is not QUEUED or self._step is None:
            raise RuntimeError(f"{self!r} is not queued: its priority can't change any more")
        self._step.run.check_thread()
        self._step.reorder(self, priority)

    @protected
    def cancel(self, reason: str | None = None) -> bool:
        """Tell it to stop; queued, it ends at once as SKIPPED.

        Returns True if it was live and this was the first request to stop it (it may still
        return), else False.
        """
        if reason is not None:
            check_str("reason", reason)
        step = self._step
        if step is None:
            return False
        step.run.check_thread()
        if not step.cancels_branches:
            raise RuntimeError(
                f"{self!r} can't be cancelled by itself: its step has individual_cancellation=False"
            )
        return step.cancel(self, "cancelled" if reason is None else reason)

    @protected
    async def wait(self) -> StepResult[T]:
        """Wait until it has ended.  A checkpoint.

        A branch that waits is parked: it lends its token meanwhile, and goes on once it has it
        again.  RuntimeError, naming the circle, if this branch waits for the caller's, directly or
        through others.
        """
        run = current_run()
        if self._step is None:
            await run.checkpoint()
            return self.result
        self._step.run.check_thread()
        waiter = enclosing_branch(run)
        if waiter is not None:
            check_no_circle(waiter, lambda record: record is self, "Branch.wait()", repr(self.key))
        done = self._done = self._done or []
        event = parking_event(run, waiter, self, done)
        try:
            await event.wait()
        finally:
            done.remove(event)
        return self.result

    @protected
    def report(self, done: float, total: float | None = None) -> None:
        """Progress, for observers: ``done`` of ``total`` units of any kind."""
        if not is_number(done):
            raise TypeError(expected("done", "a number", done))
        if total is not None and not is_number(total):
            raise TypeError(expected("total", "a number or None", total))
        if (step := self._step) is not None:
            step.run.check_thread()
            if step.observers:
                step.tell("branch_progressed", self, done, total)


def _running() -> Record | None:
    """None outside, and in a task that has outlived the branch, or the try, that it came from."""
    running = running_record.get(None)
    record = None if running is None else running()
    if record is None or record.status is not RUNNING:
        return None
    if record._tries is not None and running_try.get() != record.attempts:
        return None
    return record


def enclosing_branch(run: Run) -> Branch[Any] | None:
    record = _running()
    if record is None:
        return None
    step = record._step
    if step is None or step.run is not run:  # in a run of its own in a thread of the branch
        return None
    return cast("Branch[Any]", record)


class ParkingEvent(Wait):
    """An event that a branch waits for, parked."""

    __slots__ = ("_event",)

    def __init__(self, record: Record, target: Record | StepCore | Awaited, event: Event) -> None:
        super().__init__(record, target)
        self._event: Event = event

    def set(self) -> None:
        self.end()
        self._event.set()

    async def wait(self) -> None:
        try:
            await self._event.wait()
        finally:
            await go_on(self)


def parking_event(
    run: Run, waiter: Record | None, target: Record | StepCore | Awaited, wakers: list[Waker]
) -> Event | ParkingEvent:
    """One of `wakers`, before its wait begins: an eager branch that then gets the token sees it, if
    it would wait for the waiter."""
    if waiter is None:
        wakers.append(event := run.event())
        return event
    wakers.append(parking := ParkingEvent(waiter, target, run.event()))
    parking.begin()
    return parking


async def go_on(wait: Wait) -> None:
    """The wait is over, or is cut short: wait until its branch has its token again."""
    wait.end()
    record = wait.record
    step = record._step
    if step is None or not wait.is_held_up():
        return
    step.notice_late(record)
    if wait.is_held_up():
        event = step.run.event()
        record._resumed = [*(record._resumed or ()), event]
        await step.host.resume(record, event)
        if wait.is_held_up():  # its own timeout has passed
            step.notice_late(record)
            force(step, record)


def current_branch() -> Branch[Any]:
    """The branch that the caller runs in: its own code, or tasks and threads that it started.

    RuntimeError outside a branch; a task that outlives the branch it came from is outside.

    >>> current_branch()
    Traceback (most recent call last):
    RuntimeError: not inside a branch
    """
    record = _running()
    if record is None:
        raise RuntimeError("not inside a branch")
    return cast("Branch[Any]", record)


new_branch: Final = cast("type[Branch[Any]]", partial(type.__call__, Branch))
