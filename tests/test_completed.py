"""`completed()` and `Branch.wait()`: results as they come."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    COLLECT,
    BranchNursery,
    BranchStatus,
    StepResult,
    current_branch,
    open_branch_nursery,
    run_branches,
)

SUCCEEDED = BranchStatus.SUCCEEDED
SKIPPED = BranchStatus.SKIPPED


def submit(nursery: BranchNursery, **seconds: float) -> None:
    for key, duration in seconds.items():
        nursery.start_soon(key, trio.sleep, duration)


async def test_results_come_in_the_order_of_ending(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, slow=3, quick=1, middling=2)
        times = [(result.key, trio.current_time()) async for result in nursery.completed()]
    assert times == [("quick", 1), ("middling", 2), ("slow", 3)]


async def test_skipped_ones_are_included(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        submit(nursery, a=1, b=1, c=1)
        nursery.cancel("b")
        found = [(result.key, result.status) async for result in nursery.completed()]
    assert found == [("b", SKIPPED), ("a", SUCCEEDED), ("c", SUCCEEDED)]


async def test_the_results_are_those_of_the_step(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=1, b=2)
        found = [result async for result in nursery.completed()]
    assert found == list(nursery.result.values())


async def test_each_iterator_begins_with_the_first_result(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=1, b=2)
        first = [result.key async for result in nursery.completed()]
        second = [result.key async for result in nursery.completed()]
    assert first == second == ["a", "b"]


async def test_iterators_are_independent(autojump_clock: MockClock) -> None:
    found: dict[str, list[object]] = {"quick": [], "slow": []}

    async def consume(nursery: BranchNursery, name: str, pace: float) -> None:
        async for result in nursery.completed():
            found[name].append(result.key)
            await trio.sleep(pace)

    async with trio.open_nursery() as tasks, open_branch_nursery(2) as nursery:
        submit(nursery, a=1, b=2, c=3, d=4)
        tasks.start_soon(consume, nursery, "quick", 0)
        tasks.start_soon(consume, nursery, "slow", 10)
    assert found == {"quick": ["a", "b", "c", "d"], "slow": ["a", "b", "c", "d"]}


async def test_it_ends_when_it_has_caught_up_and_nothing_is_outstanding() -> None:
    async with open_branch_nursery(1) as nursery:
        results = nursery.completed()
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        nursery.start_soon("a", trio.lowlevel.checkpoint)
        assert (await anext(results)).key == "a"
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_what_is_submitted_while_iterating_is_seen(autojump_clock: MockClock) -> None:
    found = []
    async with open_branch_nursery(1) as nursery:
        submit(nursery, a=1)
        async for result in nursery.completed():
            found.append(result.key)
            if len(found) < 4:
                submit(nursery, **{f"{result.key}'": 1})
    assert found == ["a", "a'", "a''", "a'''"]


async def test_what_branches_submit_is_seen(autojump_clock: MockClock) -> None:
    async def grow(nursery: BranchNursery, depth: int) -> None:
        await trio.sleep(1)
        if depth:
            nursery.start_soon(depth - 1, grow, nursery, depth - 1)

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon(3, grow, nursery, 3)
        assert [result.key async for result in nursery.completed()] == [3, 2, 1, 0]


async def test_breaking_out_needs_no_aclose_and_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=1, b=2, c=3)
        async for result in nursery.completed():
            assert result.key == "a"
            break
        assert not hasattr(nursery.completed(), "aclose")
        core: Any = nursery._core
        assert not core.listeners
    assert len(nursery.result.outputs) == 3


async def test_a_cancelled_wait_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=2, b=3)
        results = nursery.completed()
        found: list[object] = []
        for _ in range(4):
            with trio.move_on_after(0.75):
                found.append((await anext(results)).key)
        assert found == ["a"]
        core: Any = nursery._core
        assert not core.listeners
        found += [result.key async for result in results]
    assert found == ["a", "b"]


async def test_each_step_of_it_is_a_checkpoint() -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=0, b=0)
        await wait_all_tasks_blocked()
        results = nursery.completed()
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                await anext(results)
        with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_after_the_block_it_yields_all_that_there_was(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        submit(nursery, a=1, b=1)
    assert [result.key async for result in nursery.completed()] == ["a", "b"]


async def test_a_consumer_in_the_body_sees_results_until_a_stop(autojump_clock: MockClock) -> None:
    found = []

    async def fail() -> None:
        await trio.sleep(2)
        raise ValueError("no")

    with pytest.raises(ExceptionGroup):
        async with open_branch_nursery(9) as nursery:
            submit(nursery, a=1, slow=9)
            nursery.start_soon("fails", fail)
            async for result in nursery.completed():
                found.append(result.key)
    assert found == ["a", "fails"]  # it was woken before it was told to stop
    assert list(nursery.result.completion_order) == ["a", "fails", "slow"]


async def test_a_consumer_outside_the_body_sees_all_endings_of_a_stopped_step(
    autojump_clock: MockClock,
) -> None:
    found: list[object] = []

    async def consume(nursery: BranchNursery) -> None:
        async for result in nursery.completed():
            found.append(result.key)

    async with trio.open_nursery() as tasks:
        with pytest.raises(Exception, match="enough"):
            async with open_branch_nursery(1) as nursery:
                submit(nursery, a=1, b=9, c=9)
                tasks.start_soon(consume, nursery)
                await trio.sleep(2)
                nursery.breach("enough")
    assert found == ["a", "c", "b"]


# ---------------------------------------------------------------- inside a branch


async def test_a_branch_can_not_iterate_over_its_own_step(autojump_clock: MockClock) -> None:
    async def work(nursery: BranchNursery) -> None:
        with pytest.raises(RuntimeError, match=r"^completed\(\) would wait for ever"):
            nursery.completed()

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", work, nursery)


async def test_nor_by_an_iterator_that_the_body_has_made(autojump_clock: MockClock) -> None:
    async def work(results: Any) -> None:
        with pytest.raises(RuntimeError, match=r"^completed\(\) would wait for ever: 'a' "):
            await anext(results)

    with trio.fail_after(10):
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", work, nursery.completed())


# ---------------------------------------------------------------- wait()


async def test_wait_returns_the_result(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=3, b=1)
        result = await nursery["a"].wait()
        assert trio.current_time() == 3
        assert (result.key, result.status) == ("a", SUCCEEDED)
        again = await nursery["a"].wait()
        assert again is result
    assert nursery.result["a"] is result
    assert await nursery["b"].wait() is nursery.result["b"]


async def test_many_may_wait_for_one(autojump_clock: MockClock) -> None:
    results: list[StepResult[None]] = []

    async def wait(nursery: BranchNursery) -> None:
        results.append(await nursery["a"].wait())

    async with trio.open_nursery() as tasks, open_branch_nursery(9) as nursery:
        submit(nursery, a=1)
        for _ in range(3):
            tasks.start_soon(wait, nursery)
    assert results == [nursery.result["a"]] * 3


@pytest.mark.parametrize("how", ["fails", "is skipped", "is cancelled"])
async def test_wait_raises_nothing_of_the_branchs(how: str, autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(1)
        raise ValueError("no")

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        branch = nursery.start_soon("a", fail)
        if how == "is skipped":
            branch.cancel()
        elif how == "is cancelled":
            await wait_all_tasks_blocked()
            branch.cancel()
        result = await branch.wait()
    expected = {"fails": "failed", "is skipped": "skipped", "is cancelled": "cancelled"}
    assert result.status.value == expected[how]


async def test_a_wait_that_is_cancelled_leaves_the_branch_alone(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=3)
        with trio.move_on_after(1) as scope:
            await nursery["a"].wait()
        assert scope.cancelled_caught
    assert nursery.result["a"].success


async def test_wait_is_a_checkpoint_also_after_the_end() -> None:
    async with open_branch_nursery(9) as nursery:
        submit(nursery, a=0)
        await wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await nursery["a"].wait()


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_branch_can_wait_for_another(limit: int, autojump_clock: MockClock) -> None:
    async def work(nursery: BranchNursery) -> object:
        result = await nursery["b"].wait()
        assert current_branch().key == "a"
        return result

    async with open_branch_nursery(limit) as nursery:
        nursery.start_soon("a", work, nursery)
        submit(nursery, b=1)
    assert nursery.result["a"].output is nursery.result["b"]
    assert trio.current_time() == 1
    await run_branches({"later": trio.lowlevel.checkpoint})
