"""The tests' own clocks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio

import loops
from clocks import Stalled, stalls_fail
from drivers import run_asyncio, run_trio
from helpers import run


async def stall_in_a_child() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


def test_a_stall_fails_on_trio() -> None:
    for run_it in (run, run_trio):
        with stalls_fail(patience=0):
            with pytest.raises(Stalled):
                run_it(trio.sleep_forever)
            with pytest.raises(ExceptionGroup) as caught:
                run_it(stall_in_a_child)
        assert caught.group_contains(Stalled)


def test_a_stall_fails_on_asyncio() -> None:
    forever: Any = asyncio.Event
    with pytest.raises(loops.Stalled):
        run_asyncio(lambda: forever().wait())


def test_a_thread_is_waited_for() -> None:
    async def thread() -> str:
        return await trio.to_thread.run_sync(lambda: "done")

    with stalls_fail(patience=10):
        assert run(thread) == "done"
