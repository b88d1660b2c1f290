"""The trio host: a step's branches run in one nursery, on runner tasks (`_trio_runner`).

1. There are never more runners than tokens.  The first is started by what asks for a look at the
   queue at the next checkpoint: that task looks, and runs the first record it finds.
2. The nursery's cancel scope is the step's root: a breach, a deadline or a failed policy cancels
   it, and with it the body and every branch, in the same instant.
3. trio.Cancelled is never turned into a value: what the nursery's scope does not take leaves the
   block.
4. The engine's code is protected from KeyboardInterrupt; the user's, below `start_call`, is not.
"""

from __future__ import annotations

import math
from collections import deque
from contextvars import copy_context
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from trio.lowlevel import (
    Abort,
    RunVar,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_clock,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._records import Cause, Record
from ._abc import (
    BaseRun,
    await_frames,
    first_leaf,
    is_users,
    split,
    thread_check,
    users_frames,
)
from ._trio_runner import Runner, drive
from ._trio_shared import TrioSharedLedger
from ._trio_timers import Timers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType, TracebackType

    from .._core import StepCore
    from ._abc import Event, Timer
    from ._calls import Call
    from ._commands import CommandGroup, CommandLine

protected = enable_ki_protection
unprotected = disable_ki_protection
run = trio.run
CapacityLimiter = trio.CapacityLimiter


class TrioRun(BaseRun):
    """What all steps of one trio run share."""

    __slots__ = ("_slices", "call_at", "now", "slice_end")

    groups_crashes = True

    def __init__(self) -> None:
        super().__init__()
        self.now: Callable[[], float] = current_clock().current_time
        self.call_at: Callable[[float, Callable[[], object]], Timer] = Timers(self.now).call_at
        self.slice_end = 0.0
        # How long the thread is held in real time is no part of a schedule that is to be run again:
        # a clock may say that real time counts for nothing.
        if not getattr(current_clock(), "counts_real_time", True):
            self.slice = self.slice_end = math.inf
        self._slices = 0

    def check_thread(self) -> None:
        if get_ident() != self.thread:
            raise RuntimeError(
                "called outside the trio thread: use trio.from_thread.run_sync to call it there"
            )

    def event(self) -> trio.Event:
        return trio.Event()

    def ledger(self, total_tokens: int | float) -> TrioLedger:
        return TrioLedger(trio.CapacityLimiter(total_tokens))

    def shared_ledger(self, limiter: trio.CapacityLimiter) -> TrioSharedLedger:
        return TrioSharedLedger(limiter)

    def current_task(self) -> trio.lowlevel.Task:
        return current_task()

    def await_frames(self, task: trio.lowlevel.Task) -> Iterator[tuple[FrameType, int]]:
        for frame, line in await_frames(task.coro):
            if frame.f_code is drive.__code__:  # it sends to the branch's coroutine itself
                yield from users_frames(frame.f_locals["coroutine"])
            elif is_users(frame):
                yield frame, line

    def host(self, name: str, redeliver: float) -> TrioHost:
        return TrioHost(self, name)

    def split_cancelled(
        self, exc: BaseException
    ) -> tuple[BaseException | None, BaseException | None]:
        return split(exc, trio.Cancelled)

    async def checkpoint(self) -> None:
        await checkpoint()

    async def run_in_thread(self, sync_fn: Callable[[], Any]) -> Any:
        unlimited = trio.CapacityLimiter(math.inf)  # the step's limiter is the only cap
        context = copy_context()
        context.run(thread_check.set, trio.from_thread.check_cancelled)
        return await trio.to_thread.run_sync(context.run, sync_fn, limiter=unlimited)

    async def finish_in_thread(self, sync_fn: Callable[[], None]) -> None:
        with trio.CancelScope(shield=True):
            await self.run_in_thread(sync_fn)

    async def run_in_process(self, call: Call) -> Any:
        from ._trio_processes import run_in_process  # needs an extra

        return await run_in_process(call)

    async def run_command(self, command: CommandLine) -> CommandGroup:
        from ._trio_commands import run_command  # loaded by those who need it

        return await run_command(self, command)

    async def wait_shielded(self, event: Event) -> None:
        with trio.CancelScope(shield=True):
            await event.wait()

    def may_pass(self) -> bool:
        if current_task()._cancel_status.effectively_cancelled:
            return False
        return perf_counter() < self.slice_end

    async def pass_by(self) -> None:
        await checkpoint_if_cancelled()
        await self.next_slice()

    async def next_slice(self) -> None:
        """Let the others run, and start a new slice for all who share it."""
        ended = self._slices
        await cancel_shielded_checkpoint()
        if self._slices == ended:  # the first runner to go on in this pass
            self._slices += 1
            self.slice_end = perf_counter() + self.slice


_run: Final[RunVar[TrioRun]] = RunVar("trio_parallel_steps")


def current_run() -> TrioRun:
    try:
        return _run.get()
    except LookupError:
        run = TrioRun()
        _run.set(run)
        return run


class TrioLedger:
    """Tokens borrowed from a `trio.CapacityLimiter` on behalf of whoever the core says."""

    __slots__ = ("_limiter", "give", "take")

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self.take: Callable[[object], None] = limiter.acquire_on_behalf_of_nowait
        self.give: Callable[[object], None] = limiter.release_on_behalf_of

    def available(self) -> int | float:
        return self._limiter.available_tokens

    def set_total(self, total_tokens: int | float) -> None:
        self._limiter.total_tokens = total_tokens


class TrioHost:
    """Runs the branches of one step in a nursery of its own."""

    __slots__ = (
        "core",
        "granted",
        "_idle",
        "_is_leaving",
        "_manager",
        "name",
        "_nursery",
        "_resting",
        "trio_run",
        "_vacant",
        "now",
    )

    def __init__(self, run: TrioRun, name: str) -> None:
        self.trio_run = run
        self.name = name
        self._idle: trio.Event | None = None
        self.granted: deque[Record] = deque()
        self._vacant = False
        self._resting: list[trio.lowlevel.Task] = []  # runners without a record
        self._is_leaving = False
        self.now = run.now
        self.core: StepCore
        self._manager: Any
        self._nursery: trio.Nursery

    async def enter(self, core: StepCore, timeout: float) -> None:
        self.core = core
        self._manager = trio.open_nursery(strict_exception_groups=True)
        self._nursery = await self._manager.__aenter__()
        if timeout != math.inf:
            self._nursery.cancel_scope.deadline = self.now() + timeout

    async def leave(
        self, exc: BaseException | None, traceback: TracebackType | None
    ) -> list[BaseException]:
        core = self.core
        try:
            # A stopped step has nothing queued: the nursery waits for what runs.
            while core.outstanding and not core.is_stopping():
                self._idle = trio.Event()
                await self._idle.wait()
            if core.is_stopping() and exc is None:
                await checkpoint()  # if from outside, Cancelled goes on, though nothing was left
        except trio.Cancelled as cancelled:  # re-raised inside the nursery, by its own __aexit__
            core.interrupted()
            exc, traceback = cancelled, cancelled.__traceback__
        except BaseException as crash:
            core.crashed("waiting", crash)
        core.leave_pool()
        self._is_leaving = True
        self._end_rest()
        try:
            await self._manager.__aexit__(type(exc) if exc else None, exc, traceback)
        except BaseException as left:  # the caller raises it
            return _outside(left)
        finally:
            core.closed = True
            del exc, traceback, self.core  # no cycles
        return []

    async def resume(self, record: Record, event: Event) -> None:
        with trio.CancelScope(shield=True, deadline=record._place.deadline):
            await event.wait()

    # ------------------------------------------------------------ what the core asks

    def soon(self, call: Callable[[], None]) -> None:
        self._nursery.start_soon(self._look, call, name=self.name)

    def run(self, record: Record) -> None:
        self.granted.append(record)
        if self._resting:
            reschedule(self._resting.pop())
        elif self._vacant:  # the task that looks can run one
            self._vacant = False
        else:
            self._nursery.start_soon(Runner(self).run, name=self.name)

    def stop(self, record: Record, reason: str) -> None:
        record._place.cancel(reason)

    def stop_all(self, reason: str) -> None:
        self._nursery.cancel_scope.cancel(reason)

    def wake(self) -> None:
        if self._idle is not None:
            self._idle.set()

    def start_beside(
        self, async_fn: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], object]:
        scope = trio.CancelScope()
        self._nursery.start_soon(self._beside, async_fn, scope, name=f"{self.name}/input")
        return scope.cancel

    @enable_ki_protection
    async def _beside(
        self, async_fn: Callable[[], Coroutine[Any, Any, None]], scope: trio.CancelScope
    ) -> None:
        with scope:
            await async_fn()

    def overtaken(self, record: Record | None) -> Cause | None:
        root = self._nursery.cancel_scope
        if record is not None and record._timeout != math.inf and record._place is not None:
            scope = record._place
            if scope.cancel_called and not (root.cancel_called and root.deadline < scope.deadline):
                return Cause.TIMEOUT
        if root.cancel_called:  # not by the core, or it would not ask
            return Cause.DEADLINE if root.deadline <= self.now() else Cause.CRASH
        return Cause.OUTSIDE if self.is_cancelled() else None

    def is_cancelled(self) -> bool:
        status = self._nursery.cancel_scope._cancel_status
        return status is not None and status.effectively_cancelled

    def task_of(self, record: Record) -> trio.lowlevel.Task | None:
        name = f"{self.name}/{record.key}"
        named = [task for task in self._nursery.child_tasks if task.name == name]
        # Two keys may read the same; and one that has never waited is not in its context yet.
        return max(named, key=lambda task: task.context is record._context, default=None)

    # ------------------------------------------------------------ its tasks

    async def rest(self) -> Record | None:
        """For a runner of a step that is fed: the next record, or None at its end."""
        if self.core.feed is None or self._is_leaving:
            return None
        task = current_task()

        def abort(raise_cancel: Callable[[], NoReturn]) -> Abort:
            self._resting.remove(task)
            return Abort.SUCCEEDED

        self._resting.append(task)
        await wait_task_rescheduled(abort)
        return self.granted.popleft() if self.granted else None

    def _end_rest(self) -> None:
        while self._resting:
            reschedule(self._resting.pop())

    @enable_ki_protection
    async def _look(self, call: Callable[[], None]) -> None:
        self._vacant = True
        call()
        if self._vacant:  # nothing was granted
            self._vacant = False
        else:
            await Runner(self).run()


def _outside(exc: BaseException) -> list[BaseException]:
    """What the nursery could not keep: one Cancelled for all of them, and the rest."""
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    outside: list[BaseException] = []
    a_cancelled: BaseException | None = None
    for child in exc.exceptions:  # one by one: a group without Cancelled in it stays itself
        cancelled, rest = split(child, trio.Cancelled)
        a_cancelled = a_cancelled or cancelled
        if rest is not None:
            outside.append(rest)
    return outside if a_cancelled is None else [first_leaf(a_cancelled), *outside]
