"""The asyncio host: what all steps of one event loop share.  Each runs in a host of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ._abc import BaseRun, split, users_frames
from ._asyncio_host import AsyncioHost
from ._asyncio_ledger import CountingLedger
from ._asyncio_shields import run_in_thread, wait_shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from types import FrameType

    from ._abc import Event
    from ._asyncio_processes import LoopWorkers
    from ._calls import Call
    from ._commands import CommandGroup, CommandLine

T = TypeVar("T")


class AsyncioEvent(asyncio.Event):
    """Waiting is a checkpoint, as with trio's."""

    async def wait(self) -> None:  # type: ignore[override]
        await (asyncio.sleep(0) if self.is_set() else super().wait())


class AsyncioRun(BaseRun):
    """What all steps in one event loop share."""

    __slots__ = ("_slice_end", "_threads", "_workers", "loop", "now")

    groups_crashes = False  # they go through the loop, as ever

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.now: Callable[[], float] = loop.time
        self.loop = loop
        self._slice_end = 0.0
        self._threads: ThreadPoolExecutor | None = None
        self._workers: LoopWorkers | None = None

    def check_thread(self) -> None:
        running = asyncio._get_running_loop()
        if get_ident() != self.thread or (running is not None and running is not self.loop):
            raise RuntimeError(
                "called outside the event loop, or its thread: "
                "use loop.call_soon_threadsafe to call it there"
            )

    def call_at(self, when: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        return self.loop.call_at(when, call)

    def event(self) -> AsyncioEvent:
        return AsyncioEvent()

    def ledger(self, total_tokens: int | float) -> CountingLedger:
        return CountingLedger(total_tokens)

    def shared_ledger(self, limiter: object) -> NoReturn:
        raise RuntimeError(f"asyncio runs here, where tasks can't borrow from {limiter!r}")

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    def await_frames(self, task: asyncio.Task[Any]) -> Iterable[tuple[FrameType, int]]:
        return users_frames(task.get_coro())

    def host(self, name: str, redeliver: float) -> AsyncioHost:
        return AsyncioHost(self, name, redeliver)

    def split_cancelled(
        self, exc: BaseException
    ) -> tuple[BaseException | None, BaseException | None]:
        return split(exc, asyncio.CancelledError)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    def may_pass(self) -> bool:
        return perf_counter() < self._slice_end

    async def pass_by(self) -> None:
        await asyncio.sleep(0)
        self._slice_end = perf_counter() + self.slice

    async def wait_shielded(self, event: Event) -> None:
        await wait_shielded(event)

    async def run_in_thread(self, sync_fn: Callable[[], Any]) -> Any:
        if self._threads is None:
            # The step's limiter is the cap: no other.  Idle threads are used first.
            self._threads = ThreadPoolExecutor(1_000_000, "in_thread")
        return await run_in_thread(self._threads, sync_fn)

    async def finish_in_thread(self, sync_fn: Callable[[], None]) -> None:
        await self.run_in_thread(sync_fn)  # begins at once, and outlasts what it meets

    async def run_in_process(self, call: Call) -> Any:
        if self._workers is None:
            from ._asyncio_processes import LoopWorkers  # needs an extra

            self._workers = LoopWorkers()
        return await self._workers.run(call)

    async def run_command(self, command: CommandLine) -> CommandGroup:
        from ._asyncio_commands import run_command  # loaded by those who need it

        return await run_command(self, command)


def run(async_fn: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(async_fn())


def current_run() -> AsyncioRun:
    loop = asyncio.get_running_loop()
    run: AsyncioRun | None = getattr(loop, "_trio_parallel_steps", None)
    if run is None:
        run = AsyncioRun(loop)
        loop._trio_parallel_steps = run  # type: ignore[attr-defined]  # it goes with its loop
    run.thread = get_ident()  # a loop may run in one thread after another
    return run
