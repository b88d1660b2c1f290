"""Both hosts where what runs is real (processes, threads): time that passes for a timeout is jumped
over, and nothing else waits for it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import trio
import uvloop
from trio.testing import MockClock

T = TypeVar("T")

Jump = Callable[[float], None]
Run = Callable[[Callable[[Jump], Awaitable[Any]]], Any]


def on_trio(program: Callable[[Jump], Awaitable[T]]) -> T:
    clock = MockClock()
    return trio.run(program, clock.jump, clock=clock)


class StillLoop(asyncio.SelectorEventLoop):
    """Its time stands still, as a MockClock's does."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        self.now += seconds


def on_asyncio(program: Callable[[Jump], Awaitable[T]]) -> T:
    loop = StillLoop()

    async def main() -> T:
        return await program(loop.jump)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


def no_jump(seconds: float) -> None:
    pytest.fail("jumped")


def on_uvloop(program: Callable[[Jump], Awaitable[T]]) -> T:
    async def main() -> T:
        return await program(no_jump)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


EVERY_HOST = pytest.mark.parametrize("run", [on_trio, on_asyncio])


@contextmanager
def garbage() -> Iterator[list[Any]]:
    """What only the garbage collector could free, of our own making or an exception."""
    gc.collect()
    gc.disable()
    found: list[Any] = []
    flags = gc.get_debug()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for each in gc.garbage:
            module = type(each).__module__
            if module.startswith("trio_parallel_steps") or isinstance(each, BaseException):
                found.append(each)
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        gc.enable()
