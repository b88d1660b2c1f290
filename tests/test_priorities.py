"""Who is admitted first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    current_branch,
    open_branch_nursery,
    run_branches,
)


class Order:
    """Bodies that note when they begin."""

    def __init__(self) -> None:
        self.keys: list[object] = []

    async def work(self) -> None:
        self.keys.append(current_branch().key)
        await trio.sleep(1)

    def submit(self, nursery: BranchNursery, **priorities: int) -> None:
        for key, priority in priorities.items():
            nursery.start_soon(key, self.work, priority=priority)


@pytest.fixture
def order() -> Order:
    return Order()


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_higher_first_then_first_come(
    limit: int, order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(limit) as nursery:
        order.submit(nursery, a=0, b=5, c=-3, d=5, e=0, f=10)
    assert order.keys == ["f", "b", "d", "a", "e", "c"]


async def test_run_branches_takes_priorities(order: Order, autojump_clock: MockClock) -> None:
    branches: dict[str, Callable[[], Awaitable[None]]] = dict.fromkeys("abcd", order.work)
    await run_branches(branches, 1, priorities={"c": 2, "b": -1})
    assert order.keys == ["c", "a", "d", "b"]


async def test_what_is_submitted_without_a_checkpoint_between_is_sorted(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, low=0)
        order.submit(nursery, high=1)
        await wait_all_tasks_blocked()
        assert order.keys == ["high"]


async def test_what_was_admitted_at_a_checkpoint_is_not_displaced(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, low=0)
        await wait_all_tasks_blocked()
        order.submit(nursery, high=1)
        await wait_all_tasks_blocked()
        assert order.keys == ["low"]
    assert order.keys == ["low", "high"]


async def test_from_inside_a_branch_priority_counts_at_its_end(
    order: Order, autojump_clock: MockClock
) -> None:
    async def spawn(nursery: BranchNursery) -> None:
        order.submit(nursery, low=-1, high=1)

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("spawner", spawn, nursery, priority=9)
        order.submit(nursery, first=0, second=0)
    assert order.keys == ["high", "first", "second", "low"]


# ---------------------------------------------------------------- changed while queued


async def test_a_raised_priority_counts(order: Order, autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, running=0, a=0, b=0, c=0)
        await wait_all_tasks_blocked()
        nursery["c"].priority = 1
        assert nursery["c"].priority == 1
    assert order.keys == ["running", "c", "a", "b"]


async def test_a_lowered_priority_counts(order: Order, autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, running=0, a=0, b=0, c=0)
        await wait_all_tasks_blocked()
        nursery["a"].priority = -1
    assert order.keys == ["running", "b", "c", "a"]


async def test_a_change_before_the_first_checkpoint_counts(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, a=0, b=0)
        nursery["b"].priority = 1
    assert order.keys == ["b", "a"]


async def test_one_that_comes_to_a_priority_keeps_its_turn(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, running=0, a=0, b=5, c=5)
        await wait_all_tasks_blocked()
        assert order.keys == ["b"]
        nursery["running"].priority = 5  # submitted before c
    assert order.keys == ["b", "running", "c", "a"]


async def test_a_branch_may_change_its_siblings_priorities(
    order: Order, autojump_clock: MockClock
) -> None:
    async def promote(nursery: BranchNursery) -> None:
        nursery["b"].priority = 7

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("promote", promote, nursery, priority=9)
        order.submit(nursery, a=0, b=0)
    assert order.keys == ["b", "a"]


async def test_a_priority_can_be_set_while_queued_only(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, a=0, b=0)
        await wait_all_tasks_blocked()
        running, queued = nursery["a"], nursery["b"]
        with pytest.raises(RuntimeError, match=r"<Branch 'a' running> is not queued"):
            running.priority = 1
        queued.priority = 1
        queued.cancel()
        with pytest.raises(RuntimeError, match=r"<Branch 'b' skipped> is not queued"):
            queued.priority = 2
    with pytest.raises(RuntimeError, match=r"<Branch 'a' succeeded> is not queued"):
        running.priority = 1
    assert running.priority == 0


async def test_a_priority_changed_while_its_step_is_paused_counts(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.pause("setting up")
        order.submit(nursery, a=0, b=0, c=3)
        await wait_all_tasks_blocked()
        nursery["b"].priority = 4
        nursery["c"].priority = -1
        nursery.resume()
    assert order.keys == ["b", "a", "c"]


# ---------------------------------------------------------------- one queue for many steps


async def test_priority_is_global_across_steps_on_one_limiter(
    order: Order, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as one, open_branch_nursery(limiter) as two:
        order.submit(one, a1=0, a2=2, a3=4)
        order.submit(two, b1=1, b2=3, b3=5)
    assert order.keys == ["b3", "a3", "b2", "a2", "b1", "a1"]


async def test_a_change_of_priority_counts_across_steps(
    order: Order, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as one, open_branch_nursery(limiter) as two:
        order.submit(one, a1=0, a2=0)
        order.submit(two, b1=0, b2=0)
        await wait_all_tasks_blocked()
        two["b2"].priority = 1
    assert order.keys == ["a1", "b2", "a2", "b1"]


async def test_first_come_first_served_across_steps(
    order: Order, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as one, open_branch_nursery(limiter) as two:
        for n in range(3):
            order.submit(one, **{f"a{n}": 0})
            order.submit(two, **{f"b{n}": 0})
    assert order.keys == ["a0", "b0", "a1", "b1", "a2", "b2"]


async def test_a_step_of_low_priority_waits_for_a_step_of_high_priority(
    order: Order, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(2)
    low = [f"low{n}" for n in range(4)]
    high = [f"high{n}" for n in range(4)]

    async def step(keys: list[str], priority: int, after: float) -> None:
        await trio.sleep(after)
        branches: dict[str, Callable[[], Awaitable[None]]] = dict.fromkeys(keys, order.work)
        await run_branches(branches, limiter, priorities=dict.fromkeys(branches, priority))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(step, low, 0, 0)
        nursery.start_soon(step, high, 1, 0.5)
    assert order.keys[:2] == ["low0", "low1"]
    assert sorted(map(str, order.keys[2:6])) == ["high0", "high1", "high2", "high3"]


async def test_a_deeper_branch_goes_first_among_equals(
    order: Order, autojump_clock: MockClock
) -> None:
    outer, shared = BranchLimiter(1), BranchLimiter(1)

    async def nest() -> None:
        async with open_branch_nursery(shared) as inner:
            await trio.sleep(0.5)  # all others are queued by now
            order.submit(inner, deep=0)

    async with open_branch_nursery(shared) as top, open_branch_nursery(outer) as nursery:
        order.submit(top, running=0, queued=0, urgent=1)
        top.start_soon("later", order.work)
        nursery.start_soon("nest", nest)
    assert order.keys == ["urgent", "deep", "running", "queued", "later"]


async def test_an_entrant_waits_its_turn_at_priority_zero(
    order: Order, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(1)

    async def enter() -> None:
        async with limiter:
            order.keys.append("entrant")
            await trio.sleep(1)

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        order.submit(nursery, running=0)
        await wait_all_tasks_blocked()
        order.submit(nursery, low=-1, before=0, high=1)
        tasks.start_soon(enter)
        await wait_all_tasks_blocked()
        order.submit(nursery, after=0)
    assert order.keys == ["running", "high", "before", "entrant", "after", "low"]


async def test_a_cancelled_waiter_leaves_the_order_of_the_rest_alone(
    order: Order, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1) as nursery:
        order.submit(nursery, a=0, b=3, c=2, d=1)
        nursery.cancel("c")
        assert nursery["c"].status is BranchStatus.SKIPPED
    assert order.keys == ["b", "d", "a"]
