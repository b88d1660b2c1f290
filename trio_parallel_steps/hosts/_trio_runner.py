"""A runner: a trio task that goes from branch to branch.

1. It keeps its token and its cancel scope from branch to branch.  It takes a new scope once the
   old one was touched, by a cancellation or a deadline of the branch that ran in it: a late cancel
   never reaches the next.
2. A branch runs in its own copy of the context of its submission.  The runner makes the branch's
   first step inside that context and leaves the task in it, so a change of context costs no
   scheduler pass, and nothing leaks from one branch to the next.
3. A branch that never blocks is followed by another without a checkpoint, but all runners together
   hold the thread at most a slice of time between two passes of the scheduler.
4. User code may leave a scope of its own open in the task (a half-consumed async generator that
   holds one).  Then that branch fails, and the runner's task is retired.

trio's `Task._cancel_status` has no public name: it tells, without a walk up the scopes, whether the
task is cancelled and whether its scopes are its own again.
"""

from __future__ import annotations

import math
import types
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import trio
from trio.lowlevel import checkpoint, current_task, disable_ki_protection, enable_ki_protection

from .._records import QUEUED, Cause, Record
from ._abc import name_foreign, split, start_call, strip

if TYPE_CHECKING:
    from collections.abc import Generator

    from .._core import StepCore
    from ._trio import TrioHost

disable_ki_protection(start_call)


class Runner:
    __slots__ = (
        "_core",
        "_has_blocked",
        "_host",
        "_is_misnested",
        "_prefix",
        "_run",
        "_running",
        "_task",
    )

    def __init__(self, host: TrioHost) -> None:
        self._host = host
        self._core: StepCore = host.core
        self._run = host.trio_run
        self._prefix = host.name + "/"
        self._task: trio.lowlevel.Task
        self._running: Record | None = None
        self._has_blocked = False
        self._is_misnested = False

    @enable_ki_protection
    async def run(self) -> None:
        """The task: runs a record that the host was granted, and its followers."""
        core, host, run, prefix = self._core, self._host, self._run, self._prefix
        task = self._task = current_task()
        own = task.context
        # trio starts tasks in any order; branches start in the order of their admission.
        record: Record | None = host.granted.popleft()
        context = None
        try:
            while record is not None:
                try:
                    with trio.CancelScope() as scope:
                        status = task._cancel_status
                        instant = run.now()
                        while record is not None:  # until the scope has been touched
                            if record.status is not QUEUED:
                                record = core.not_begun(record)
                                continue
                            if status.effectively_cancelled:
                                core.interrupted()
                                core.not_begun(record)
                                await checkpoint()  # raises Cancelled
                            self._running = record
                            record._place = scope
                            if record._timeout != math.inf:
                                scope.deadline = instant + record._timeout
                            core.begin(record, instant)
                            task.name = f"{prefix}{record.key}"
                            context = record._context
                            value = await drive(record, task)
                            if task._cancel_status is not status:
                                break  # leaving the scope will raise
                            self._has_blocked = task.context is context
                            record._place = self._running = None
                            touched = record._cause is not None or record._timeout != math.inf
                            instant = run.now()
                            record = core.returned(record, value, instant)
                            if touched:
                                break
                            if record is None:
                                value = context = None
                                task.context = own  # what has ended is not kept
                                record = await host.rest()
                                instant = run.now()
                            elif not self._has_blocked and perf_counter() > run.slice_end:
                                await run.next_slice()
                                instant = run.now()
                except Exception as exc:
                    record = self._raised(exc)
                except BaseException as exc:
                    if self._running is None or self._escaped(exc):
                        raise
                    return
                else:
                    if self._running is not None:  # the scope has taken its Cancelled
                        record = self._stopped()
                if record is not None:
                    if self._is_misnested:  # this task is retired
                        self._host.run(record)
                        return
                    await self._give_way()
        finally:
            # The frame of an error that the user keeps may keep this one: no cycles.
            del self, core, host, task, record, context

    async def _give_way(self) -> None:
        if not self._has_blocked and perf_counter() > self._run.slice_end:
            await self._run.next_slice()

    def _note_blocking(self) -> None:
        assert self._running is not None
        self._has_blocked = self._task.context is self._running._context

    def _take_running(self) -> Record:
        record, self._running = self._running, None
        assert record is not None
        record._place = None
        return record

    def _raised(self, exc: Exception) -> Record | None:
        self._note_blocking()
        record = self._take_running()
        strip(exc, ENGINE)
        if type(exc) is RuntimeError and str(exc).startswith("Cancel scope stack corrupted"):
            self._is_misnested = True
            exc = _misnesting(record, exc)
        exc = name_foreign(exc, record, "trio", "asyncio")
        return self._core.raised(record, exc, self._run.now())

    def _stopped(self) -> Record | None:
        self._note_blocking()
        record = self._take_running()
        if record._cause is None:
            self._core.timed_out(record)
        return self._core.stopped(record, self._run.now())

    def _escaped(self, exc: BaseException) -> bool:
        """What its scope did not take: a Cancelled of the whole step or from further out, or what
        no one collects, which leaves with the block.  True if it has to go on."""
        core = self._core
        cancelled, rest = split(exc, trio.Cancelled)
        if cancelled is not None:
            core.interrupted()  # while the record's own deadline is still to be seen
        record = self._take_running()
        if isinstance(rest, Exception):
            core.raised(record, rest, self._run.now())
        else:
            if rest is not None:
                core.crashed(repr(record.key), rest)
            core.stopped(record, self._run.now())
        if cancelled is exc:
            if core.cause is not Cause.OUTSIDE:
                # It ends in the step's own scope, where nobody reads it: ten thousand tracebacks
                # would only keep their frames.
                exc.__traceback__ = None
            return True
        if cancelled is not None:
            try:
                raise cancelled from None
            finally:
                del cancelled, rest, exc, record  # no cycles
        return False


@disable_ki_protection
async def call(record: Record) -> Any:
    """The user's own code, which KeyboardInterrupt may interrupt."""
    awaitable = start_call(record)
    del record  # an exception's traceback must not keep it
    return await awaitable


@enable_ki_protection
@types.coroutine
def drive(record: Record, task: trio.lowlevel.Task) -> Generator[Any, Any, Any]:
    """Run the branch in its context: the first step here, the others where trio resumes the task.

    Like ``yield from``, which can't begin in one context and go on in another.
    """
    coroutine: Any = call(record)
    context = record._context
    assert context is not None
    del record
    try:
        message = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    except BaseException:
        del coroutine, context, task  # as in `run`
        raise
    task.context = context
    while True:
        try:
            message = coroutine.send((yield message))
        except StopIteration as stop:
            return stop.value
        except BaseException as exc:
            if coroutine.cr_frame is None:  # the branch's own: it has ended
                del coroutine, context, task
                raise
            try:
                message = coroutine.throw(exc)  # how trio answers a foreign await
            except StopIteration as stop:
                return stop.value  # pragma: no cover  (tracers don't see a resumption by throw)


def _misnesting(record: Record, exc: Exception) -> RuntimeError:
    error = RuntimeError(
        f"{record.key!r} left a cancel scope or nursery of its own open in its task"
    )
    error.__cause__ = exc
    return error


OWN: Final = (Runner.run, drive, call, start_call, trio.CancelScope.__exit__)
ENGINE: Final = frozenset(function.__code__ for function in OWN)
