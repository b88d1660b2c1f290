"""How to run one async program on every host, in virtual time.

A `World` is what such a program may use of its event loop; a driver makes the world and runs the
program in it.  Raw drivers use the loop's own words (edge cancellation on asyncio), anyio drivers
use anyio's (level cancellation on both backends).
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final, Protocol, TypeVar, cast

import anyio
import pytest
import trio
import trio.testing

from loops import Stalled, VirtualLoop, VirtualUvloop

T = TypeVar("T")

EAGER: Final = sys.version_info >= (3, 12)

PAUSE = 0.0
"""Seconds of real time that trio, with nothing to do, sleeps before time jumps.  A loop that does
not sleep takes the interpreter from threads that work: see `threads_work` in conftest."""


class Event(Protocol):
    def set(self) -> object: ...
    async def wait(self) -> object: ...


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class World(ABC):
    """What a program that knows no host may use."""

    backend: str
    edge: bool
    """Is a cancellation told once (asyncio's own way)?"""
    cancelled: type[BaseException]

    @abstractmethod
    def now(self) -> float: ...
    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...
    @abstractmethod
    def event(self) -> Event: ...
    @abstractmethod
    def scope(self, seconds: float = math.inf) -> AbstractAsyncContextManager[Cancellable]:
        """Cancels what is in it after some time, or by ``.cancel()``; leaves quietly then."""

    @abstractmethod
    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """As `scope`, but raises TimeoutError."""

    @abstractmethod
    def shield(self) -> AbstractAsyncContextManager[object]:
        """Cleanup that awaits.  (Edge cancellation needs none: it is told once.)"""

    @abstractmethod
    def tasks(self) -> AbstractAsyncContextManager[Callable[..., object]]:
        """Structured tasks of one's own: yields what starts one."""

    async def forever(self) -> None:
        await self.event().wait()

    async def turns(self, number: int) -> None:
        for _ in range(number):
            await self.sleep(0)

    async def give(self, seconds: float, value: Any = None) -> Any:
        await self.sleep(seconds)
        return value

    async def fail(self, seconds: float, text: str = "") -> None:
        await self.sleep(seconds)
        raise ValueError(text)


class TrioWorld(World):
    backend = "trio"
    edge = False
    cancelled = trio.Cancelled

    def now(self) -> float:
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def event(self) -> Event:
        return trio.Event()

    @asynccontextmanager
    async def scope(self, seconds: float = math.inf) -> AsyncIterator[Cancellable]:
        with trio.move_on_after(seconds) as scope:
            yield scope

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[object]:
        try:
            with trio.fail_after(seconds) as scope:
                yield scope
        except trio.TooSlowError:
            raise TimeoutError from None

    @asynccontextmanager
    async def shield(self) -> AsyncIterator[object]:
        with trio.CancelScope(shield=True) as scope:
            yield scope

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Callable[..., object]]:
        async with trio.open_nursery() as nursery:
            yield nursery.start_soon


class AsyncioScope:
    """`asyncio.timeout`, but one that can be cancelled at once too, and is quiet."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._baseline = task.cancelling()
        self.called = False

    def cancel(self) -> None:
        if not self.called:
            self.called = True
            self._task.cancel("the scope is cancelled")

    def caught(self) -> bool:
        return self.called and self._task.uncancel() <= self._baseline


class AsyncioWorld(World):
    backend = "asyncio"
    edge = True
    cancelled = asyncio.CancelledError

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def event(self) -> Event:
        return asyncio.Event()

    @asynccontextmanager
    async def scope(self, seconds: float = math.inf) -> AsyncIterator[Cancellable]:
        scope = AsyncioScope()
        timer = None
        if seconds != math.inf:
            timer = asyncio.get_running_loop().call_later(seconds, scope.cancel)
        try:
            yield scope
        except asyncio.CancelledError:
            if not scope.caught():
                raise
        except BaseException:
            scope.caught()
            raise
        else:
            scope.caught()
        finally:
            if timer is not None:
                timer.cancel()

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)

    @asynccontextmanager
    async def shield(self) -> AsyncIterator[object]:
        yield None

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Callable[..., object]]:
        async with asyncio.TaskGroup() as group:
            yield lambda fn, *args: group.create_task(fn(*args))


class AnyioWorld(World):
    edge = False

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.cancelled = anyio.get_cancelled_exc_class()

    def now(self) -> float:
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def event(self) -> Event:
        return anyio.Event()

    @asynccontextmanager
    async def scope(self, seconds: float = math.inf) -> AsyncIterator[Cancellable]:
        with anyio.move_on_after(None if seconds == math.inf else seconds) as scope:
            yield scope

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[object]:
        with anyio.fail_after(seconds) as scope:
            yield scope

    @asynccontextmanager
    async def shield(self) -> AsyncIterator[object]:
        with anyio.CancelScope(shield=True) as scope:
            yield scope

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Callable[..., object]]:
        async with anyio.create_task_group() as group:
            yield group.start_soon


# ---------------------------------------------------------------- running


def run_trio(program: Callable[..., Awaitable[T]], *args: Any) -> T:
    return trio.run(
        program,
        *args,
        clock=trio.testing.MockClock(autojump_threshold=PAUSE),
        strict_exception_groups=True,
    )


class Complaints(AssertionError):
    """What the loop's exception handler was told: nothing may be lost without anyone seeing it."""


@contextmanager
def no_complaints(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Nothing is reported to the loop's exception handler, garbage included."""
    complaints: list[str] = []

    def complain(_: object, told: dict[str, Any]) -> None:
        complaints.append(f"{told.get('message')} {told.get('exception')!r}")

    loop.set_exception_handler(complain)
    yield
    if complaints:
        raise Complaints(complaints)


def run_asyncio(
    program: Callable[..., Awaitable[T]],
    *args: Any,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = VirtualLoop,
    eager: bool = False,
    collect: bool = False,
) -> T:
    """Run it as `asyncio.run` would.  At its end the main task is alone, and nothing was reported.

    `collect` looks for what only the garbage collector would report.
    """

    async def main() -> T:
        loop = asyncio.get_running_loop()
        if eager:
            loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        with no_complaints(loop):
            result = await program(*args)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks are left: {left}"
            if collect:
                gc.collect()
            await asyncio.sleep(0)
        return result

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            return runner.run(main())
        except RuntimeError:
            if getattr(runner.get_loop(), "stalled", False):
                raise Stalled from None
            raise


class Driver(Protocol):
    def __call__(self, program: Callable[[World], Awaitable[T]]) -> T: ...


def on_trio(program: Callable[[World], Awaitable[T]]) -> T:
    return run_trio(program, TrioWorld())


def on_asyncio(program: Callable[[World], Awaitable[T]]) -> T:
    return run_asyncio(program, AsyncioWorld())


def on_uvloop(program: Callable[[World], Awaitable[T]]) -> T:
    return run_asyncio(program, AsyncioWorld(), loop_factory=VirtualUvloop)


def on_eager(program: Callable[[World], Awaitable[T]]) -> T:
    return run_asyncio(program, AsyncioWorld(), eager=True)


async def _in_anyio(program: Callable[[World], Awaitable[T]], backend: str) -> T:
    """In a task of an anyio group, as an endpoint of a web framework is."""
    results: list[T] = []

    async def task() -> None:
        results.append(await program(AnyioWorld(backend)))

    async with anyio.create_task_group() as group:
        group.start_soon(task)
    return results[0]


def on_anyio_trio(program: Callable[[World], Awaitable[T]]) -> T:
    clock = trio.testing.MockClock(autojump_threshold=PAUSE)
    options = {"clock": clock}
    result: Any = anyio.run(_in_anyio, program, "trio", backend="trio", backend_options=options)
    return cast(T, result)


def on_anyio_asyncio(program: Callable[[World], Awaitable[T]]) -> T:
    result: Any = run_asyncio(_in_anyio, program, "asyncio")
    return cast(T, result)


DRIVERS: Final[dict[str, Driver]] = {
    "trio": on_trio,
    "asyncio": on_asyncio,
    "uvloop": on_uvloop,
    "eager": on_eager,
    "anyio-trio": on_anyio_trio,
    "anyio-asyncio": on_anyio_asyncio,
}


needs_eager: Final = pytest.mark.skipif(not EAGER, reason="eager task factories are of 3.12")


def driver_params() -> list[Any]:
    marks = {"eager": [needs_eager]}
    return [
        pytest.param(driver, id=name, marks=marks.get(name, [])) for name, driver in DRIVERS.items()
    ]


EVERY_DRIVER: Final = pytest.mark.parametrize("driver", driver_params())
