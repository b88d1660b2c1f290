"""Branches that never block do not starve the tasks beside them.

Not measured in seconds of the real clock: `perf_counter` is patched to advance by a fixed time each
time a branch runs, and what is counted is how many branches run between two turns of a task beside.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    open_branch_nursery,
)
from trio_parallel_steps.hosts import _abc

LASTS = 0.00001  # seconds that a branch holds the thread, by the patched clock
IN_A_SLICE = round(_abc.SLICE / LASTS)
BRANCHES = 20 * IN_A_SLICE
TWO_SLICES = 2 * IN_A_SLICE
"""trio shuffles who goes first: a slice may end one pass and begin the next.  In each pass every
runner but one may run a branch before it sees that the slice is over."""


class Thread:
    """The time that goes by while branches hold the thread."""

    def __init__(self) -> None:
        self.time = 0.0
        self.ran = 0
        self.longest = 0  # how many branches ran between two turns of the task beside
        self._ran_before = 0

    def perf_counter(self) -> float:
        return self.time

    def work(self) -> None:
        self.time += LASTS
        self.ran += 1

    async def beside(self) -> None:
        while True:
            self.longest = max(self.longest, self.ran - self._ran_before)
            self._ran_before = self.ran
            await trio.lowlevel.checkpoint()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    thread = Thread()
    patched = False
    for module in ("_trio", "_trio_runner"):
        name = f"trio_parallel_steps.hosts.{module}.perf_counter"
        try:
            monkeypatch.setattr(name, thread.perf_counter)
        except (AttributeError, ImportError):
            continue
        patched = True
    assert patched
    return thread


async def run_beside(
    thread: Thread,
    submit: Callable[[BranchNursery], object],
    limit: int | float | BranchLimiter,
    **options: Any,
) -> None:
    async with trio.open_nursery() as tasks:
        tasks.start_soon(thread.beside)
        async with open_branch_nursery(limit, policy=COLLECT, **options) as nursery:
            submit(nursery)
            thread._ran_before = thread.ran
        tasks.cancel_scope.cancel()
    assert thread.ran == BRANCHES


def submit_all(
    async_fn: Callable[[], Awaitable[object]], **options: Any
) -> Callable[[BranchNursery], None]:
    def submit(nursery: BranchNursery) -> None:
        for n in range(BRANCHES):
            nursery.start_soon(n, async_fn, **options)

    return submit


@pytest.mark.parametrize("limit", [1, 10, 100])
async def test_branches_that_return_at_once(thread: Thread, limit: int) -> None:
    async def work() -> None:
        thread.work()

    await run_beside(thread, submit_all(work), limit)
    assert thread.longest <= TWO_SLICES + 2 * limit + 2


async def test_all_runners_share_one_slice(thread: Thread) -> None:
    async def work() -> None:
        thread.work()

    await run_beside(thread, submit_all(work), 10)
    assert thread.longest <= TWO_SLICES + 2 * 10 + 2  # not ten of them


async def test_a_slice_is_used_up_before_others_are_let_run(thread: Thread) -> None:
    """Or each branch would cost a pass of the scheduler."""

    async def work() -> None:
        thread.work()

    await run_beside(thread, submit_all(work), 1)
    assert thread.longest >= IN_A_SLICE - 1


@pytest.mark.parametrize("limit", [1, 10])
async def test_branches_with_timeouts(thread: Thread, limit: int) -> None:
    async def work() -> None:
        thread.work()

    await run_beside(thread, submit_all(work, timeout=1e9), limit)
    assert thread.longest <= TWO_SLICES + 2 * limit + 2


@pytest.mark.parametrize("limit", [1, 10])
async def test_branches_that_raise(thread: Thread, limit: int) -> None:
    async def work() -> None:
        thread.work()
        raise ValueError

    await run_beside(thread, submit_all(work), limit)
    assert thread.longest <= TWO_SLICES + 2 * limit + 2


@pytest.mark.parametrize("limit", [1, 10])
async def test_branches_that_were_told_to_stop_and_return(thread: Thread, limit: int) -> None:
    nursery: BranchNursery

    async def work(n: int) -> None:
        thread.work()
        nursery.cancel(n)

    def submit(opened: BranchNursery) -> None:
        nonlocal nursery
        nursery = opened
        for n in range(BRANCHES):
            nursery.start_soon(n, work, n)

    await run_beside(thread, submit, limit)
    assert thread.longest <= TWO_SLICES + 2 * limit + 2


async def test_branches_that_submit_the_next(thread: Thread) -> None:
    async def work(nursery: BranchNursery, left: int) -> None:
        thread.work()
        if left:
            nursery.start_soon(left - 1, work, nursery, left - 1)

    def submit(nursery: BranchNursery) -> None:
        nursery.start_soon(BRANCHES - 1, work, nursery, BRANCHES - 1)

    await run_beside(thread, submit, 1)
    assert thread.longest <= TWO_SLICES + 2


async def test_two_steps_at_once_share_one_slice(thread: Thread) -> None:
    async def work() -> None:
        thread.work()

    async def step() -> None:
        async with open_branch_nursery(10, policy=COLLECT) as nursery:
            for n in range(BRANCHES // 2):
                nursery.start_soon(n, work)

    async with trio.open_nursery() as tasks:
        tasks.start_soon(thread.beside)
        async with trio.open_nursery() as steps:
            steps.start_soon(step)
            steps.start_soon(step)
        tasks.cancel_scope.cancel()
    assert thread.ran == BRANCHES
    assert thread.longest <= TWO_SLICES + 2 * 20 + 2


async def test_two_steps_on_one_limiter_alternate_fairly(thread: Thread) -> None:
    limiter = BranchLimiter(1)
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(name)

    async with open_branch_nursery(limiter) as one, open_branch_nursery(limiter) as two:
        for n in range(50):
            one.start_soon(n, work, "one")
            two.start_soon(n, work, "two")
    assert order == ["one", "two"] * 50


async def test_a_timer_beside_is_on_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Branches that block are no burden: virtual time goes on as if there were none of them."""
    woken: list[float] = []

    async def tick() -> None:
        for _ in range(5):
            await trio.sleep(1)
            woken.append(trio.current_time())

    async with trio.open_nursery() as tasks, open_branch_nursery(math.inf) as nursery:
        tasks.start_soon(tick)
        for n in range(200):
            nursery.start_soon(n, trio.sleep, n % 7 / 2)
    assert woken == [1, 2, 3, 4, 5]
