"""How many run at once: exactly as many as the limit allows, also while it changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import BranchLimiter, open_branch_nursery, run_branches


class Meter:
    """Counts what runs at once, by the branches' own account."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.lowest_after_peak = 0

    async def work(self, seconds: float = 1) -> None:
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await trio.sleep(seconds)
        finally:
            self.now -= 1


@pytest.mark.parametrize("limit", [1, 2, 4, 100, math.inf])
@pytest.mark.parametrize("count", [1, 3, 150])
async def test_the_peak_is_the_limit_or_all_there_are(
    limit: int | float, count: int, autojump_clock: MockClock
) -> None:
    meter = Meter()
    result = await run_branches(dict.fromkeys(range(count), meter.work), limit)
    assert meter.peak == result.peak_in_flight == min(limit, count)
    # Work conserving: not a second is wasted.
    assert trio.current_time() == (1 if limit == math.inf else math.ceil(count / limit))


async def test_branches_that_never_block_run_one_after_another() -> None:
    meter = Meter()

    async def quick() -> None:
        meter.now += 1
        meter.peak = max(meter.peak, meter.now)
        meter.now -= 1

    result = await run_branches(dict.fromkeys(range(100), quick), 10)
    assert len(result.outputs) == 100
    assert meter.peak == result.peak_in_flight == 1


async def test_without_a_limit_the_default_is_the_cap(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("trio_parallel_steps.hosts._abc.usable_cpus", lambda: 3)
    result = await run_branches({n: Meter().work for n in range(20)})
    assert result.peak_in_flight == 6


async def test_the_default_is_ten_at_most(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("trio_parallel_steps.hosts._abc.usable_cpus", lambda: 64)
    result = await run_branches({n: Meter().work for n in range(20)})
    assert result.peak_in_flight == 10


async def test_two_steps_on_one_limiter_share_its_peak(autojump_clock: MockClock) -> None:
    meter = Meter()
    limiter = BranchLimiter(3)

    async def step() -> None:
        await run_branches(dict.fromkeys(range(9), meter.work), limiter)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(step)
        nursery.start_soon(step)
    assert meter.peak == 3
    assert trio.current_time() == 6


async def test_steps_with_limits_of_their_own_do_not_share(autojump_clock: MockClock) -> None:
    meter = Meter()

    async def step() -> None:
        await run_branches(dict.fromkeys(range(4), meter.work), 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(step)
        nursery.start_soon(step)
    assert meter.peak == 4


# ---------------------------------------------------------------- while running


@pytest.mark.parametrize("total", [5, 8, math.inf])
async def test_growing_admits_at_once_as_many_as_fit_now(
    total: int | float, autojump_clock: MockClock
) -> None:
    meter = Meter()
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(8):
            nursery.start_soon(n, meter.work, 10)
        await wait_all_tasks_blocked()
        assert meter.now == 2
        limiter.total_tokens = total
        await wait_all_tasks_blocked()
        assert meter.now == min(total, 8)
    assert nursery.result.peak_in_flight == min(total, 8)


async def test_shrinking_cancels_nobody_and_admits_nobody_until_there_is_room(
    autojump_clock: MockClock,
) -> None:
    meter = Meter()
    limiter = BranchLimiter(4)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(4):
            nursery.start_soon(n, meter.work, n + 1)  # they end at 1, 2, 3, 4
        for n in range(4, 8):
            nursery.start_soon(n, meter.work, 10)
        await wait_all_tasks_blocked()
        limiter.total_tokens = 2
        assert limiter.borrowed_tokens == 4
        assert limiter.available_tokens == -2
        running = []
        for _ in range(4):
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            running.append(meter.now)
        assert running == [3, 2, 2, 2]
    assert len(nursery.result.outputs) == 8


async def test_shrinking_to_one_and_growing_again(autojump_clock: MockClock) -> None:
    meter = Meter()
    limiter = BranchLimiter(math.inf)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(20):
            nursery.start_soon(n, meter.work, 1)
        await wait_all_tasks_blocked()
        assert meter.now == 20
        limiter.total_tokens = 1
        for n in range(20, 24):
            nursery.start_soon(n, meter.work, 1)
        await wait_all_tasks_blocked()
        assert meter.now == 20
        await trio.sleep(1.5)
        assert meter.now == 1
        limiter.total_tokens = 3
        await wait_all_tasks_blocked()
        assert meter.now == 3
    assert trio.current_time() == 3  # two end at 2.5, and the last began at 2


async def test_a_shrink_before_the_next_checkpoint_counts(autojump_clock: MockClock) -> None:
    meter = Meter()
    limiter = BranchLimiter(4)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(4):
            nursery.start_soon(n, meter.work)
        limiter.total_tokens = 1
    assert meter.peak == nursery.result.peak_in_flight == 1


CHANGES: dict[str, Callable[[int], int]] = {
    "down": lambda n: 12 - n,
    "up": lambda n: 1 + n,
    "to and fro": lambda n: 1 if n % 2 else 6,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_branches_may_change_the_limit_they_run_under(
    change: Callable[[int], int], autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(4)
    over: list[int] = []

    async def work(n: int) -> None:
        admitted = limiter.borrowed_tokens
        await trio.sleep(n % 3)
        if limiter.borrowed_tokens > max(admitted, limiter.total_tokens, 12):
            over.append(n)
        limiter.total_tokens = change(n % 11)

    async with open_branch_nursery(limiter) as nursery:
        for n in range(60):
            nursery.start_soon(n, work, n)
    assert len(nursery.result.outputs) == 60
    assert not over
    assert limiter.borrowed_tokens == 0
