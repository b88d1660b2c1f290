"""Worker processes, by trio-parallel, for a trio run.

1. A worker serves one call at a time and is kept for the next.  The run's own trio_parallel context
   keeps them, in a system task, and closes them when the run ends: trio-parallel's default one
   would keep them until the interpreter ends.
2. A cancelled call kills its worker and has waited for its end.
3. `TrioThread` is such a run in a thread of its own, for a loop that isn't trio's.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from trio.lowlevel import RunVar, current_trio_token, spawn_system_task
from trio_parallel import BrokenWorkerError, WorkerContext, open_worker_context

from .._util import signal_name
from ._calls import NotTaken, call as run_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._calls import Call

    Soon = Callable[..., None]  # takes what to call, and its arguments

GRACE: Final = 5.0  # seconds an idle worker has to leave by itself, when the run has ended
FRESH: Final = 3  # new workers that may die before one has taken the call

MAIN: Final = (
    "a worker imports the program's main module: "
    'what that runs must be under `if __name__ == "__main__"`'
)


class Workers:
    """Those of one trio run."""

    __slots__ = ("_context", "_limiter", "_open")

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(math.inf)  # the step's limiter is the only cap
        self._open = trio.Event()
        self._context: WorkerContext

    async def keep(self) -> None:
        # One that has died idle, or that doesn't leave, is gone: which is all that is wanted.
        with suppress(BrokenWorkerError):
            async with open_worker_context(grace_period=GRACE) as self._context:
                self._open.set()
                await trio.sleep_forever()

    async def run(self, call: Call) -> bytes:
        await self._open.wait()
        context = self._context
        call.sends_left = context.statistics().idle_workers + FRESH
        pickled: bytes = await context.run_sync(
            run_call, call, kill_on_cancel=True, limiter=self._limiter
        )
        return pickled


_workers: Final[RunVar[Workers]] = RunVar("trio_parallel_steps.workers")


async def run_in_process(call: Call) -> Any:
    try:
        workers = _workers.get()
    except LookupError:
        workers = Workers()
        _workers.set(workers)
        spawn_system_task(workers.keep, name="worker processes")
    try:
        pickled = await workers.run(call)
    except NotTaken:
        raise BrokenWorkerError(
            f"no worker process has lived to take {call.name}: see stderr; {MAIN}"
        ) from None
    except BrokenWorkerError as exc:
        raise BrokenWorkerError(
            f"the worker process of {call.name} died: {_ending(exc.args[-1].exitcode)}"
        ) from exc
    return call.answer(pickled)


def _ending(code: int | None) -> str:
    assert code is not None  # it has been waited for
    if code == 1:
        return f"exit code 1, see stderr; {MAIN}"
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal_name(-code)}"


# ---------------------------------------------------------------- beside another event loop


class Settled(Protocol):
    """A future of the other event loop's."""

    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...
    def cancel(self) -> bool: ...


class TrioThread:
    """A trio run that makes calls for another thread."""

    __slots__ = ("_nursery", "_stopped", "_token", "ended")

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self._stopped = False
        started: Future[tuple[trio.Nursery, trio.lowlevel.TrioToken]] = Future()
        # A daemon: where the loop was never closed, it doesn't keep the interpreter, and nor do
        # the workers.
        args = (started, self.ended)
        Thread(target=_trio_thread, args=args, name="in_process", daemon=True).start()
        self._nursery, self._token = started.result()

    def start(self, call: Call, future: Settled, soon: Soon) -> trio.CancelScope:
        """`soon` settles it in the caller's thread: it is cancelled once the scope has been, and
        the worker is gone."""
        if self._stopped:
            raise RuntimeError("the event loop has been shut down, and its workers with it")
        scope = trio.CancelScope()
        self._token.run_sync_soon(self._nursery.start_soon, _serve, call, scope, future, soon)
        return scope

    def cancel(self, scope: trio.CancelScope) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(scope.cancel)

    def stop(self) -> None:
        """Soon, and the workers with it."""
        self._stopped = True
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)


def _trio_thread(
    started: Future[tuple[trio.Nursery, trio.lowlevel.TrioToken]], ended: Future[None]
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            started.set_result((nursery, current_trio_token()))
            await trio.sleep_forever()

    try:
        trio.run(main)
    except BaseException as exc:
        (ended if started.done() else started).set_exception(exc)
    else:
        ended.set_result(None)


async def _serve(call: Call, scope: trio.CancelScope, future: Settled, soon: Soon) -> None:
    try:
        with scope:
            soon(future.set_result, await run_in_process(call))
        if scope.cancelled_caught:
            soon(future.cancel)
    except trio.Cancelled:  # the thread stops
        soon(future.cancel)
        raise
    except BaseException as exc:
        # Whatever the function raised.
        soon(future.set_exception, exc)
    finally:
        del future  # its exception's traceback keeps this frame: no cycles
