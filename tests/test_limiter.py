"""`BranchLimiter`: one pool for many steps, and a semaphore for any code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    LimiterStatistics,
    current_branch,
    open_branch_nursery,
    run_branches,
)


def busy(limiter: BranchLimiter) -> tuple[int, int]:
    how = limiter.statistics()
    return how.borrowed_tokens, how.tasks_waiting


async def hold(limiter: BranchLimiter, seconds: float, log: list[str], name: str) -> None:
    async with limiter:
        log.append(name)
        await trio.sleep(seconds)


# ---------------------------------------------------------------- how it stands


def test_one_that_was_never_used() -> None:
    limiter = BranchLimiter(3, name="database")
    assert repr(limiter) == "<BranchLimiter 'database': 0 of 3 in use, 0 waiting>"
    assert limiter.statistics() == LimiterStatistics(3, 0, 0, None, 0)
    assert (limiter.name, limiter.borrowed_tokens, limiter.available_tokens) == ("database", 0, 3)


def test_one_without_a_name_or_a_limit() -> None:
    limiter = BranchLimiter(math.inf)
    assert repr(limiter) == "<BranchLimiter: 0 of inf in use, 0 waiting>"
    assert limiter.available_tokens == math.inf
    assert limiter.name is None


async def test_statistics_follow_what_happens(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        assert nursery.limiter is limiter
        for n in range(5):
            nursery.start_soon(n, trio.sleep, 1)
        assert limiter.statistics() == LimiterStatistics(2, 0, 5, None, 0)
        await wait_all_tasks_blocked()
        assert limiter.statistics() == LimiterStatistics(2, 2, 3, None, 2)
        assert (limiter.borrowed_tokens, limiter.available_tokens) == (2, 0)
        assert repr(limiter) == "<BranchLimiter: 2 of 2 in use, 3 waiting>"
        nursery.cancel(4)
        assert limiter.statistics() == LimiterStatistics(2, 2, 2, None, 2)
        limiter.pause("memory")
        assert limiter.statistics().paused == "memory"
        assert repr(limiter) == "<BranchLimiter: 2 of 2 in use, 2 waiting, paused: memory>"
        limiter.resume()
    assert limiter.statistics() == LimiterStatistics(2, 0, 0, None, 4)


async def test_the_tokens_are_borrowed_from_a_capacity_limiter(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(3):
            nursery.start_soon(n, trio.sleep, 1)
        await wait_all_tasks_blocked()
        pool: Any = limiter._pool
        borrowed: trio.CapacityLimiter = pool._ledger._limiter
        assert borrowed.borrowed_tokens == 2
        limiter.total_tokens = 5
        assert borrowed.total_tokens == 5
        holders = {repr(token) for token in borrowed.statistics().borrowers}
        assert holders == {"<token of <Branch 0 running>>", "<token of <Branch 1 running>>"}
    assert borrowed.borrowed_tokens == 0


async def test_a_number_as_limit_makes_a_limiter_of_the_steps_own() -> None:
    async with open_branch_nursery(3) as one, open_branch_nursery(3) as other:
        assert one.limiter.total_tokens == 3
        assert one.limiter is not other.limiter


# ---------------------------------------------------------------- a semaphore


async def test_it_is_a_semaphore_first_come_first_served(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(hold, limiter, 2 - n % 2 / 2, log, f"{n}")
            await wait_all_tasks_blocked()
        assert busy(limiter) == (2, 3)
    assert log == ["0", "1", "2", "3", "4"]
    assert trio.current_time() == 5.5
    assert busy(limiter) == (0, 0)


async def test_entrants_and_branches_share_the_tokens(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    log: list[str] = []
    async with limiter, trio.open_nursery() as nursery:

        async def step() -> None:
            await run_branches({"a": lambda: trio.sleep(1)}, limiter)
            log.append("branch")

        nursery.start_soon(step)
        await wait_all_tasks_blocked()
        assert busy(limiter) == (1, 1)
        nursery.cancel_scope.cancel()
    assert busy(limiter) == (0, 0)
    assert not log


async def test_an_entrant_holds_its_token_through_every_wait(autojump_clock: MockClock) -> None:
    limiter, other = BranchLimiter(1), BranchLimiter(1)
    async with limiter:
        await run_branches({"a": lambda: trio.sleep(1)}, other)
        assert busy(limiter) == (1, 0)


async def test_the_token_is_given_back_whatever_the_block_raises() -> None:
    limiter = BranchLimiter(1)
    with pytest.raises(ValueError, match="no"):
        async with limiter:
            raise ValueError("no")
    assert busy(limiter) == (0, 0)


async def test_an_entrant_that_gives_up_leaves_the_queue(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, limiter, 5, log, "holder")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            async with limiter:
                log.append("never")
        assert scope.cancelled_caught
        assert busy(limiter) == (1, 0)
    assert log == ["holder"]


async def test_a_grant_that_comes_with_a_cancellation_is_passed_on(
    autojump_clock: MockClock,
) -> None:
    limiter = BranchLimiter(1)
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def give_up() -> None:
            with first:
                await hold(limiter, 1, log, "cancelled")

        async with limiter:
            nursery.start_soon(give_up)
            await wait_all_tasks_blocked()
            nursery.start_soon(hold, limiter, 1, log, "next")
            await wait_all_tasks_blocked()
            first.cancel()  # it has not run since when the token is given to it
        await wait_all_tasks_blocked()
        assert log == ["next"]
    assert busy(limiter) == (0, 0)


async def test_entering_is_a_checkpoint() -> None:
    limiter = BranchLimiter(1)
    with trio.testing.assert_checkpoints():
        await limiter.__aenter__()
    await limiter.__aexit__(None, None, None)


async def test_entering_in_a_cancelled_scope_takes_nothing() -> None:
    limiter = BranchLimiter(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with limiter:
            raise AssertionError("unreachable")
    assert scope.cancelled_caught
    assert busy(limiter) == (0, 0)


async def test_an_entrant_is_not_held_up_by_waiters_of_a_paused_step(
    autojump_clock: MockClock,
) -> None:
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        nursery.pause("for now")
        nursery.start_soon("held", trio.sleep, 1)
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            async with limiter:
                assert nursery["held"].status is BranchStatus.QUEUED
        nursery.resume()


async def test_two_tasks_at_once_need_two_tokens(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    async with limiter, trio.open_nursery() as nursery:
        log: list[str] = []
        nursery.start_soon(hold, limiter, 1, log, "child")  # another task: its own token
        await wait_all_tasks_blocked()
        assert busy(limiter) == (2, 0)


# ---------------------------------------------------------------- who may not wait


async def test_a_task_that_is_in_it_can_not_enter_again() -> None:
    limiter = BranchLimiter(5, name="five")
    async with limiter:
        with pytest.raises(RuntimeError, match="this task holds a token of <BranchLimiter 'five'"):
            await limiter.__aenter__()
    assert busy(limiter) == (0, 0)


async def test_a_step_can_not_be_opened_on_it_by_a_task_that_is_in_it() -> None:
    limiter = BranchLimiter(5)
    async with limiter:
        with pytest.raises(RuntimeError, match="this task holds a token"):
            async with open_branch_nursery(limiter):
                raise AssertionError("unreachable")
    assert busy(limiter) == (0, 0)
    await run_branches({"a": trio.lowlevel.checkpoint}, limiter)


async def test_a_branch_can_not_enter_the_limiter_that_it_runs_on() -> None:
    limiter = BranchLimiter(5)

    async def enter() -> None:
        with pytest.raises(RuntimeError, match="is the one that branch 'a' runs on"):
            await limiter.__aenter__()

    await run_branches({"a": enter}, limiter)
    assert busy(limiter) == (0, 0)


async def test_a_task_of_a_branch_can_not_either() -> None:
    limiter = BranchLimiter(5)

    async def enter() -> None:
        with pytest.raises(RuntimeError, match="is the one that branch 'a' runs on"):
            await limiter.__aenter__()

    async def spawn() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter)

    await run_branches({"a": spawn}, limiter)


async def test_nor_a_sub_cap_of_it() -> None:
    """It would wait for the token that it holds."""

    async def enter() -> None:
        async with open_branch_nursery(2) as nested:
            with pytest.raises(RuntimeError, match="is a sub-cap of one that branch 'a' runs on"):
                async with nested.limiter:
                    pass

    await run_branches({"a": enter}, 1)


@pytest.mark.parametrize("nested", ["a step", "an entrant"])
async def test_a_descendant_of_a_branch_can_wait_for_the_limiter_that_it_runs_on(
    nested: str, autojump_clock: MockClock
) -> None:
    """The branch has lent its token while it waits for its own step's end."""
    outer, inner = BranchLimiter(1), BranchLimiter(1)
    log: list[str] = []

    async def grandchild() -> None:
        if nested == "a step":
            await run_branches({"c": trio.lowlevel.checkpoint}, outer)
        else:
            await hold(outer, 1, log, "entrant")

    async def child() -> None:
        await run_branches({"b": grandchild}, inner)
        assert (busy(outer), busy(inner)) == ((1, 0), (0, 0))

    with trio.fail_after(10):
        await run_branches({"a": child}, outer)
    assert busy(outer) == (0, 0)


async def test_a_branch_on_a_sub_cap_can_not_enter_the_limiter_around_it() -> None:
    limiter = BranchLimiter(5)

    async def enter() -> None:
        with pytest.raises(RuntimeError, match="is the one that branch 'b' runs on"):
            await limiter.__aenter__()

    async def nest() -> None:
        await run_branches({"b": enter}, 2)

    await run_branches({"a": nest}, limiter)
    assert busy(limiter) == (0, 0)


async def test_a_step_in_a_branch_works_on_another_limiter(autojump_clock: MockClock) -> None:
    outer, inner = BranchLimiter(2), BranchLimiter(1)

    async def nest() -> int:
        result = await run_branches({n: lambda: trio.sleep(1) for n in range(2)}, inner)
        assert current_branch().key in ("a", "b")
        return len(result.outputs)

    result = await run_branches({"a": nest, "b": nest}, outer)
    assert result.outputs == {"a": 2, "b": 2}
    assert trio.current_time() == 4


async def test_leaving_without_having_entered_is_an_error() -> None:
    limiter = BranchLimiter(1)
    with pytest.raises(RuntimeError, match="this task holds no token of <BranchLimiter"):
        await limiter.__aexit__(None, None, None)


# ---------------------------------------------------------------- pause and resume


async def test_a_paused_limiter_admits_nobody_and_stops_nobody(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    log: list[str] = []
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 1)
        await wait_all_tasks_blocked()
        limiter.pause("memory")
        tasks.start_soon(hold, limiter, 1, log, "entrant")
        await trio.sleep(5)
        assert busy(limiter) == (0, 3)
        assert not log
        limiter.resume()
        await wait_all_tasks_blocked()
        assert busy(limiter) == (2, 1)
    assert log == ["entrant"]
    assert len(nursery.result.outputs) == 4


async def test_a_pause_before_anyone_uses_it_holds(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    limiter.pause("not yet")
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", trio.lowlevel.checkpoint)
        await trio.sleep(5)
        assert nursery["a"].status is BranchStatus.QUEUED
        limiter.resume()
    assert nursery.result["a"].started_at == 5


async def test_a_pause_with_only_entrants_waiting_is_lifted_too(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    log: list[str] = []
    limiter.pause("not yet")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, limiter, 1, log, "entrant")
        await trio.sleep(1)
        assert not log
        limiter.resume()
    assert log == ["entrant"]


async def test_the_last_reason_of_a_pause_stands() -> None:
    limiter = BranchLimiter(1)
    limiter.pause("one")
    limiter.pause("two")
    assert limiter.statistics().paused == "two"
    limiter.resume()
    limiter.resume()
    assert limiter.statistics().paused is None


async def test_a_limit_changed_while_paused_counts_afterwards(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        limiter.pause("wait")
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 1)
        limiter.total_tokens = 3
        await trio.sleep(1)
        assert busy(limiter) == (0, 4)
        limiter.resume()
        await wait_all_tasks_blocked()
        assert busy(limiter) == (3, 1)


# ---------------------------------------------------------------- between runs and threads


def test_a_limiter_serves_one_run_after_another() -> None:
    limiter = BranchLimiter(2)

    async def main() -> None:
        await run_branches(dict.fromkeys(range(5), trio.lowlevel.checkpoint), limiter)

    for _ in range(3):
        trio.run(main)
        assert limiter.statistics() == LimiterStatistics(2, 0, 0, None, 5)  # afresh in each run


def test_a_limiter_serves_another_run_after_a_step_that_was_stopped() -> None:
    limiter = BranchLimiter(1)

    async def breached() -> None:
        with pytest.raises(Exception, match="enough"):
            async with open_branch_nursery(limiter) as nursery:
                for n in range(5):
                    nursery.start_soon(n, trio.sleep_forever)
                await wait_all_tasks_blocked()
                nursery.breach("enough")

    async def again() -> None:
        await run_branches(dict.fromkeys(range(5), trio.lowlevel.checkpoint), limiter)

    trio.run(breached)
    trio.run(again)


async def test_a_limiter_in_use_refuses_another_run() -> None:
    limiter = BranchLimiter(2)

    async def other() -> None:
        await run_branches({"b": trio.lowlevel.checkpoint}, limiter)

    async with limiter:
        with pytest.raises(RuntimeError, match="is in use by another run of an event loop"):
            await trio.to_thread.run_sync(trio.run, other)


async def test_a_change_from_another_thread_is_refused_while_it_is_in_use() -> None:
    limiter = BranchLimiter(2)

    def change() -> None:
        for call in (limiter.resume, lambda: limiter.pause("x")):
            with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
                call()
        with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
            limiter.total_tokens = 5

    async with limiter:
        await trio.to_thread.run_sync(change)
        assert limiter.total_tokens == 2
        assert limiter.statistics().paused is None
        await trio.to_thread.run_sync(trio.from_thread.run_sync, limiter.pause, "from there")
        assert limiter.statistics().paused == "from there"
    limiter.resume()


def test_an_idle_limiter_can_be_changed_anywhere() -> None:
    limiter = BranchLimiter(2)
    limiter.total_tokens = 4
    trio.run(run_branches, {"a": trio.lowlevel.checkpoint}, limiter)
    limiter.total_tokens = 1
    limiter.pause("x")
    limiter.resume()
    assert limiter.statistics().total_tokens == 1


# ---------------------------------------------------------------- a stopped step


async def test_a_stopped_step_lets_the_other_have_the_tokens(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter, policy=COLLECT) as survivor:
        with pytest.raises(Exception, match="enough"):
            async with open_branch_nursery(limiter) as breached:
                for n in range(6):
                    breached.start_soon(n, trio.sleep_forever, priority=1)
                for n in range(4):
                    survivor.start_soon(n, trio.sleep, 1)
                await wait_all_tasks_blocked()
                assert survivor.statistics().running == 0
                breached.breach("enough")
        await wait_all_tasks_blocked()
        assert survivor.statistics().running == 2
    assert len(survivor.result.outputs) == 4
    assert busy(limiter) == (0, 0)


async def test_a_stopped_branch_holds_its_token_until_its_cleanup_is_done(
    autojump_clock: MockClock,
) -> None:
    limiter = BranchLimiter(1)

    async def linger() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async def stop(nursery: BranchNursery) -> None:
        await trio.sleep(1)
        nursery.cancel("slow")

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("slow", linger)
        nursery.start_soon("next", trio.lowlevel.checkpoint)
        tasks.start_soon(stop, nursery)
    assert nursery.result["next"].started_at == 4
