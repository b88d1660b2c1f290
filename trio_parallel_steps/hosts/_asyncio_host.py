"""The asyncio host: a task for each admitted branch.

1. The end of a branch is seen by a done callback, not by a wrapper: a task that is cancelled before
   its first step never enters its coroutine, and still frees its place.
2. Cancellation is an edge: a branch is told once, or again after `redeliver` seconds.
3. A stop cancels the block's task while it is in the body, and takes exactly its own requests back.
   What is left over is from outside and goes through, once every branch has ended.
4. While a block that was cancelled from outside waits for its branches, an anyio scope is kept from
   cancelling it again each turn of the loop.
5. Whoever else cancels a branch's task, itself included, ends that branch alone.
6. A record begins in its task's first step, which an eager factory makes inside `create_task`.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from .._announce import warn
from .._records import QUEUED, RUNNING, Cause, Record
from ._abc import first_leaf, name_foreign, start_call, strip
from ._asyncio_shields import shield, wait_shielded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from .._core import StepCore
    from ._abc import Event
    from ._asyncio import AsyncioRun


class AsyncioHost:
    """Runs the branches of one step as tasks of the running loop."""

    __slots__ = (
        "_baseline",
        "_beside",
        "_core",
        "_deadline",
        "_has_factory",
        "_idle",
        "_loop",
        "_name",
        "_own",
        "_redeliver",
        "_run",
        "_task",
        "_tasks",
        "_timers",
        "_told",
        "now",
    )

    def __init__(self, run: AsyncioRun, name: str, redeliver: float) -> None:
        self._run = run
        self._name = name
        self._redeliver = redeliver
        self._loop = run.loop
        self._has_factory = run.loop.get_task_factory() is not None
        self.now = run.now
        self._tasks = 0  # the live ones
        self._beside: asyncio.Task[None] | None = (
            None  # the one that is no branch, until it is told
        )
        self._told: set[Record] = set()  # to stop
        self._idle: asyncio.Future[None] | None = None
        self._timers: dict[Any, asyncio.TimerHandle] = {}  # by record; the step's own by None
        self._deadline = math.inf
        self._own = 0  # how often we have cancelled the body
        self._core: StepCore
        task = asyncio.current_task()
        assert task is not None
        # Weakly: a task that has failed keeps its frames, and with them an async generator that it
        # has abandoned inside the block.  The loop closes that one once nobody holds it.
        self._task = ref(task)
        self._baseline = _met(task)

    async def enter(self, core: StepCore, timeout: float) -> None:
        self._core = core
        if timeout != math.inf:
            self._deadline = self.now() + timeout
            self._timers[None] = self._loop.call_at(self._deadline, self._expire)

    async def leave(
        self, exc: BaseException | None, traceback: TracebackType | None
    ) -> list[BaseException]:
        core = self._core
        own, self._own = self._own, 0
        task = asyncio.current_task()
        assert task is not None
        if task is self._task():
            for _ in range(own):
                task.uncancel()
        else:  # such a generator is closed in a task of the loop's own
            self._task, self._baseline, own = ref(task), _met(task), 0
        outside = exc and first_leaf(exc)
        if own and not self._is_requested():
            outside = None
        if own or (exc is None and (self._is_requested() or not self._is_busy())):
            # A request that the body has not seen yet (or has swallowed) is met here: ours must not
            # be met outside, and one from outside goes on, though nothing may be left to wait for.
            outside = await self._wait(asyncio.sleep(0), outside)
        if outside is None:
            self._baseline = _met(task)  # the body has swallowed the rest
        while self._is_busy():
            self._idle = self._loop.create_future()
            outside = await self._wait(self._idle, outside)
        core.leave_pool()
        core.closed = True
        for timer in self._timers.values():
            timer.cancel()
        del self._core, self._timers
        try:
            return [] if outside is None else [outside]
        finally:
            del outside, exc, traceback  # its traceback may keep this frame: no cycles

    def _expire(self) -> None:
        self._deadline = min(self._deadline, self.now())  # a loop may call early
        self._core.interrupted()

    def _is_busy(self) -> bool:
        return self._core.outstanding > 0 or self._tasks > 0

    async def _wait(
        self, awaitable: Awaitable[None], outside: BaseException | None
    ) -> BaseException | None:
        """The first cancellation from outside, if one was met."""
        try:
            with shield() if outside is not None else nullcontext():
                await awaitable
        except asyncio.CancelledError as cancelled:
            if outside is None and self._is_requested():
                self._core.interrupted()
                return cancelled
        return outside

    def _is_requested(self) -> bool:
        """Has anyone else asked the block's task to stop (which it may have met already)?"""
        task = self._task()
        return task is not None and task.cancelling() > self._baseline

    async def resume(self, record: Record, event: Event) -> None:
        await wait_shielded(event)

    # ------------------------------------------------------------ what the core asks

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def run(self, record: Record) -> None:
        following: Record | None = record
        while following is not None:
            following = self._start(following)

    def _start(self, record: Record) -> Record | None:
        if record.status is not QUEUED:  # pragma: no cover  (3.12+)
            # Skipped by an eager one that was granted just after it.
            return self._core.not_begun(record)
        context = record._context
        assert context is not None
        branch = self._branch(record)
        try:
            name = f"{self._name}/{record.key}"
            if self._has_factory:  # one of the user's own: it need not take a name or context
                task = context.run(self._loop.create_task, branch)
                task.set_name(name)
            else:
                task = self._loop.create_task(branch, name=name, context=context)
        except Exception as exc:  # of the task factory: the branch's failure
            branch.close()
            self._core.begin(record, self.now())
            return self._core.raised(record, exc, self.now())
        except BaseException:  # pragma: no cover  (3.12+)
            # An eager first step lets a KeyboardInterrupt through.
            if record._place is not None:
                self._tasks += 1
                record._place.add_done_callback(partial(self._done, record))
            raise
        self._tasks += 1
        task.add_done_callback(partial(self._done, record))
        return None

    def stop(self, record: Record, reason: str) -> None:
        task = record._place
        if task is not None and task is not RETURNED:
            self._told.add(record)
            task.cancel(reason)
            if self._redeliver != math.inf:
                again = partial(self._stop_again, record, reason)
                self._set_timer(record, self.now() + self._redeliver, again)

    def _stop_again(self, record: Record, reason: str) -> None:
        self.stop(record, reason)
        warn(
            f"branch {record.key!r} goes on {self._redeliver} s after it was cancelled ({reason}): "
            "it is told again"
        )

    def stop_all(self, reason: str) -> None:
        if self._core.body_open and (task := self._task()) is not None:
            self._own += 1
            task.cancel(reason)
        self._stop_beside()
        for record in self._core.records.values():
            if record.status is RUNNING and record not in self._told:
                self.stop(record, reason)

    def start_beside(
        self, async_fn: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], object]:
        self._tasks += 1  # before an eager first step
        task = self._loop.create_task(async_fn())
        task.set_name(f"{self._name}/input")
        self._beside = task
        task.add_done_callback(self._beside_done)
        return self._stop_beside

    def _stop_beside(self) -> None:
        task, self._beside = self._beside, None
        if task is not None:
            task.cancel()

    def _beside_done(self, task: asyncio.Task[None]) -> None:
        self._beside = None
        self._tasks -= 1
        if not task.cancelled():
            task.exception()  # a cancellation in a group: all else has been told to the core
        if not self._tasks:
            self.wake()

    def wake(self) -> None:
        if self._idle is not None and not self._idle.done() and not self._core.outstanding:
            self._idle.set_result(None)

    def task_of(self, record: Record) -> asyncio.Task[None] | None:
        return record._place if isinstance(record._place, asyncio.Task) else None

    def overtaken(self, record: Record | None) -> Cause | None:
        now = self.now()
        timer = None if record is None else self._timers.get(record)
        if timer is not None and timer.when() <= min(now, self._deadline):
            return Cause.TIMEOUT
        if self._deadline <= now:
            return Cause.DEADLINE
        # Any other cancellation from outside can't be told from one by a scope in the body.
        return Cause.OUTSIDE if self._core.is_stopped_further_out() else None

    def is_cancelled(self) -> bool:
        # What is told to a branch reaches the steps inside it a turn or two later.
        return self._deadline <= self.now() or self._core.is_stopped_further_out()

    def _set_timer(self, record: Record, when: float, call: Callable[[], object]) -> None:
        if (timer := self._timers.get(record)) is not None:
            timer.cancel()
        self._timers[record] = self._loop.call_at(when, call)

    # ------------------------------------------------------------ tasks

    async def _branch(self, record: Record) -> None:
        now = self.now()
        core = self._core
        if now >= self._deadline or (core.parent is not None and self.is_cancelled()):
            core.interrupted()
        if record.status is not QUEUED:
            return
        record._place = asyncio.current_task()  # not kept here: its traceback will keep this frame
        core.begin(record, now)
        if record._timeout != math.inf:
            self._set_timer(record, now + record._timeout, partial(self._timed_out, record))
        try:
            value = await start_call(record)
        except BaseException:
            del self, core, record  # its traceback may keep this frame: no cycles
            raise
        # Here, not as the task's result: a request to stop that comes too late would replace it.
        record._value = value
        record._place = RETURNED

    def _timed_out(self, record: Record) -> None:
        if record._cause is None and not self._core.is_stopping():
            self._core.timed_out(record)
        if record not in self._told:
            assert record._reason is not None
            self.stop(record, record._reason)

    def _done(self, record: Record, task: asyncio.Task[None]) -> None:
        self._tasks -= 1
        core = self._core
        if self._told:
            self._told.discard(record)
        if self._timers and (timer := self._timers.pop(record, None)) is not None:
            timer.cancel()
        place, record._place = record._place, None
        exc = None if task.cancelled() else task.exception()
        if record.status is not RUNNING:
            if record.status is QUEUED:  # by someone else, before its first step
                core.cancel(record, TASK_CANCELLED)
            following = core.not_begun(record)
        elif place is RETURNED:
            following = core.returned(record, record._value, self.now())
        elif exc is None:
            following = self._cancelled(record)
        else:
            following = self._raised(record, exc)
        if following is not None:
            self.run(following)
        if not self._tasks:
            self.wake()

    def _cancelled(self, record: Record) -> Record | None:
        core = self._core
        if record._cause is None and not core.is_stopping():
            record._cause = Cause.CANCEL
            record._reason = TASK_CANCELLED
        return core.stopped(record, self.now())

    def _raised(self, record: Record, exc: BaseException) -> Record | None:
        core = self._core
        _, rest = self._run.split_cancelled(exc)
        if rest is None:
            return self._cancelled(record)
        if not isinstance(rest, Exception):
            core.crashed(repr(record.key), rest)
            return core.stopped(record, self.now())
        strip(rest, ENGINE)
        return core.raised(record, name_foreign(rest, record, "asyncio", "trio"), self.now())


def _met(task: asyncio.Task[Any]) -> int:
    """How many requests to stop the running task has met.  One that it has not is still to come,
    whoever made it: code before the block, or a signal while our own code runs."""
    return max(0, task.cancelling() - bool(getattr(task, "_must_cancel", False)))


RETURNED: Final = "returned"
TASK_CANCELLED: Final = "its task was cancelled"
ENGINE: Final = frozenset({AsyncioHost._branch.__code__, start_call.__code__})
