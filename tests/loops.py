"""asyncio loops with virtual time: `time()` stands still while anything is ready, and jumps to the
next timer once nothing is.

1. Nothing ready, no timer and no thread to wait for is a stall: `Stalled`, never a hang.
2. While a thread of `run_in_executor` is out, time stands still and the loop waits for it.
3. `ShuffledLoop` runs what is ready at once in an order of its seed.
4. `turns` counts the turns of the loop: what spins is seen without a clock.
"""

from __future__ import annotations

import asyncio
import selectors
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context


class Stalled(Exception):
    """Every task waits, and nothing will ever wake one."""


class _Selector(selectors.BaseSelector):
    """Never sleeps: where it should, the loop's time jumps."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.loop: VirtualLoop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self.loop
        loop.turns += 1
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if loop.threads:
            return self._real.select(None)
        if timeout is None:
            raise Stalled
        loop.jump()
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        self.threads = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def jump(self) -> None:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self.now = max(self.now, timers[0].when())

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_is_back)
        return future

    def _thread_is_back(self, future: asyncio.Future[Any]) -> None:
        self.threads -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.threads -= 1


class Ready:
    """What is ready, in place of a loop's queue; see `ShuffledLoop`."""

    def __init__(self, random: Random, before_step: Callable[[], None]) -> None:
        self._random = random
        self._before_step = before_step
        self._handles: list[tuple[object, asyncio.Handle]] = []  # each with what made it ready
        self._left = 0  # of this turn
        self._running: object = None

    def __len__(self) -> int:
        return len(self._handles)

    def clear(self) -> None:
        self._handles.clear()

    def append(self, handle: asyncio.Handle) -> None:
        alone = self._running is None or isinstance(handle, asyncio.TimerHandle)
        self._handles.append((handle if alone else self._running, handle))

    def turn(self) -> None:
        """What becomes ready now does so from outside."""
        self._running = None

    def popleft(self) -> asyncio.Handle:
        if not self._left:
            self._left = len(self._handles)
        self._running = object()
        self._before_step()
        firsts: dict[object, int] = {}
        for number in range(self._left):
            firsts.setdefault(self._handles[number][0], number)
        _, handle = self._handles.pop(self._random.choice(list(firsts.values())))
        self._left -= 1
        self._running = handle
        return handle


class ShuffledLoop(VirtualLoop):
    """Runs what is ready in one turn in an order of its seed, and calls `before_step` before each.

    asyncio promises that what is ready first runs first, and its own code relies on it.  So the
    order of what one callback (a task's step, say) makes ready is kept, and what becomes ready in a
    turn runs in the next.  What else is ready in the same turn, steps of tasks that go on by
    themselves, timers that are due, may have become so in any order, and runs in any.
    """

    def __init__(self, seed: int, before_step: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._ready = Ready(Random(seed), before_step)

    def _process_events(self, events: Any) -> None:
        self._ready.turn()
        super()._process_events(events)  # type: ignore[misc]


class VirtualUvloop(uvloop.Loop):
    """uvloop's own scheduling of what is ready, under virtual time.

    Its timers are libuv's, out of reach; so those of this class are kept in a heap here, and fire
    when the last callback that was ready has run.  (Its real timers have tests of their own.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0
        self.threads = 0
        self.stalled = False
        self._ready_now = 0
        self._idle_passes = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready_now += 1
        super().call_soon(self._run_ready, handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        super().call_soon_threadsafe(self._run_from_thread, handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """What `TimerHandle.cancel` calls; it is passed over when it comes up."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        # Its stubs say that it is a coroutine.
        future: Any = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_is_back)
        return future  # type: ignore[no-any-return]

    def _thread_is_back(self, future: asyncio.Future[Any]) -> None:
        self.threads -= 1

    def _run_ready(self, handle: asyncio.Handle) -> None:
        self._ready_now -= 1
        self._run_handle(handle)

    def _run_from_thread(self, handle: asyncio.Handle) -> None:
        self._run_handle(handle)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        self._idle_passes = 0
        try:
            if not handle.cancelled():
                handle._run()
        finally:
            if not self._ready_now:
                super().call_soon(self._none_is_ready)

    def _none_is_ready(self) -> None:
        if self._ready_now or self.threads:
            return
        self.turns += 1
        while self._timers and self._timers[0][2].cancelled():
            heappop(self._timers)
        if not self._timers:
            if self._idle_passes < 3:  # what a run left behind is met at the start of the next
                self._idle_passes += 1
                super().call_soon(self._none_is_ready)
                return
            self.stalled = True
            self.stop()
            return
        self.now = max(self.now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self.now:
            _, _, handle = heappop(self._timers)
            if not handle.cancelled():
                self.call_soon(self._run_timer, handle)

    def _run_timer(self, handle: asyncio.TimerHandle) -> None:
        if not handle.cancelled():
            handle._run()
