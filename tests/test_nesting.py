"""Nesting as users on trio see it; what is the same on every host is in `scenarios`."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from helpers import assert_idle, give_after
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    Retry,
    StepTimeout,
    open_branch_nursery,
    run_branches,
)


def sleepers(*keys: str) -> dict[str, Any]:
    return {key: lambda: trio.sleep(1) for key in keys}


async def test_many_levels_share_one_limit(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(3)
    running = peak = 0

    async def tree(depth: int) -> int:
        nonlocal running, peak
        if not depth:
            running += 1
            peak = max(peak, running)
            await trio.sleep(1)
            running -= 1
            return 1
        result = await run_branches({n: lambda: tree(depth - 1) for n in range(3)})
        return sum(result.outputs.values())

    result = await run_branches({"root": lambda: tree(4)}, limiter)
    assert result.outputs == {"root": 81}
    assert (peak, trio.current_time()) == (3, 27)
    assert_idle(limiter)


async def test_a_nested_step_shares_the_default_limit_too(autojump_clock: MockClock) -> None:
    async def nest(outer: BranchNursery) -> None:
        async with open_branch_nursery() as inner:
            assert inner.limiter is outer.limiter

    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", nest, nursery)


async def test_weights_of_run_branches(autojump_clock: MockClock) -> None:
    result = await run_branches(sleepers("a", "b", "c"), 3, weights={"a": 2, "b": 2})
    starts = {key: ended.started_at for key, ended in result.items()}
    assert starts == {"a": 0, "b": 1, "c": 1}  # nobody passes b


async def test_hand_over_goes_to_the_parent_before_other_resumers(
    autojump_clock: MockClock,
) -> None:
    limiter = BranchLimiter(1)
    order = []

    async def early(nursery: BranchNursery) -> None:
        with trio.move_on_after(0.5):
            await nursery["a"].wait()
        order.append("early")

    async def nest() -> None:
        await run_branches(sleepers("x"))
        order.append("a")

    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("early", early, nursery)
        nursery.start_soon("a", nest)
    assert order == ["a", "early"]


async def test_a_task_that_has_outlived_its_branch_lends_nothing(
    autojump_clock: MockClock,
) -> None:
    limiter = BranchLimiter(2)

    async def wait(nursery: BranchNursery) -> None:
        await nursery["b"].wait()
        seen.append(limiter.borrowed_tokens)

    async def leave_it_behind(nursery: BranchNursery) -> None:
        trio.lowlevel.spawn_system_task(wait, nursery, context=contextvars.copy_context())
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 1  # parked, by a task of its own

    seen: list[int] = []
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", leave_it_behind, nursery)
        nursery.start_soon("b", trio.sleep, 1)
        await trio.sleep(0.5)
        assert limiter.borrowed_tokens == 1
        assert nursery["a"].status.value == "succeeded"
        await nursery["b"].wait()
        await wait_all_tasks_blocked()
    assert seen == [0]
    assert_idle(limiter)


@pytest.mark.parametrize("how", ["a deadline of the step", "a cancellation from outside"])
async def test_a_stop_reaches_one_that_waits_for_its_token(
    how: str, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(2)

    async def wait(nursery: BranchNursery) -> None:
        await wait_all_tasks_blocked()
        await nursery["b"].wait()
        await trio.sleep_forever()

    async def hold() -> None:
        async with limiter:
            await trio.sleep(9)

    async with trio.open_nursery() as tasks:
        tasks.start_soon(hold)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as outside:
            deadline = 3 if how == "a deadline of the step" else 99
            outside.deadline = 102 - deadline
            try:
                async with open_branch_nursery(limiter, fail_after=deadline) as nursery:
                    nursery.start_soon("a", wait, nursery)
                    nursery.start_soon("b", trio.sleep, 1)
                    await trio.sleep(0.5)
                    limiter.total_tokens = 1
            except StepTimeout:
                assert how == "a deadline of the step"
        assert trio.current_time() == 3
    assert nursery.result["a"].status.value in ("timed_out", "cancelled")
    assert_idle(limiter)


async def test_a_wait_cut_short_by_a_scope_of_ones_own_takes_the_token_back_first(
    autojump_clock: MockClock,
) -> None:
    async def gives_up(nursery: BranchNursery) -> tuple[float, int]:
        with trio.move_on_after(1):
            await nursery["b"].wait()
        return trio.current_time(), nursery.limiter.borrowed_tokens

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", gives_up, nursery)
        nursery.start_soon("b", trio.sleep, 3)
        nursery.start_soon("c", trio.sleep, 3)
    assert nursery.result["a"].output == (3, 1)
    assert nursery.result.peak_in_flight == 1


async def test_a_limit_of_a_nested_step_may_be_changed(autojump_clock: MockClock) -> None:
    async def nest() -> float:
        async with open_branch_nursery(1) as inner:
            for n in range(4):
                inner.start_soon(n, trio.sleep, 1)
            inner.limiter.total_tokens = 4
        return trio.current_time()

    result = await run_branches({"a": nest}, 2)
    assert result.outputs == {"a": 2}


async def test_the_result_of_one_that_was_waited_for_is_given(autojump_clock: MockClock) -> None:
    async def wait(nursery: BranchNursery) -> object:
        return (await nursery["b"].wait()).output

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("a", wait, nursery)
        nursery.start_soon("b", give_after, 1, "b's")
    assert nursery.result.outputs == {"a": "b's", "b": "b's"}


async def test_a_wait_of_an_earlier_try_lends_and_asks_for_nothing(
    autojump_clock: MockClock,
) -> None:
    """Its task has outlived the try, and what it waited for ends while the next one runs."""
    tries = 0

    async def straggle() -> None:
        await nursery["other"].wait()

    async def flaky() -> tuple[int, int]:
        nonlocal tries
        tries += 1
        if tries == 1:
            tasks.start_soon(straggle)
            await trio.sleep(0.5)
            raise OSError
        await trio.sleep(2)  # the other one ends meanwhile
        return nursery.limiter.borrowed_tokens, nursery.limiter.statistics().tasks_waiting

    async with trio.open_nursery() as tasks, open_branch_nursery(2) as nursery:
        retry = Retry(OSError, wait_initial=0.5, wait_jitter=0)
        nursery.start_soon("flaky", flaky, retry=retry)
        nursery.start_soon("other", trio.sleep, 2)
    assert nursery.result["flaky"].output == (1, 0)
    assert nursery.limiter.borrowed_tokens == 0
