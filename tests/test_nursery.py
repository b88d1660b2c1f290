"""`BranchNursery`: submitting from the block and from branches, handles, cancelling, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNotDone,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    NurseryStatistics,
    StepTimeout,
    current_branch,
    open_branch_nursery,
)

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING
SUCCEEDED = BranchStatus.SUCCEEDED
CANCELLED = BranchStatus.CANCELLED
SKIPPED = BranchStatus.SKIPPED


async def give(value: Any) -> Any:
    await trio.sleep(1)
    return value


async def linger(seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


# ---------------------------------------------------------------- submitting


async def test_the_block_waits_for_all_branches(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2) as nursery:
        for n in range(4):
            nursery.start_soon(n, give, n)
    assert trio.current_time() == 2
    assert nursery.result.outputs == {0: 0, 1: 1, 2: 2, 3: 3}


async def test_an_empty_block_is_left() -> None:
    async with open_branch_nursery() as nursery:
        pass
    assert dict(nursery.result) == {}
    assert nursery.result.success
    assert nursery.result.feedback is None


async def test_arguments_are_passed_on(autojump_clock: MockClock) -> None:
    async def three(*args: object) -> tuple[object, ...]:
        return args

    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", three, 1, "two", None)
    assert nursery.result["a"].output == (1, "two", None)


async def test_branches_submit_siblings(autojump_clock: MockClock) -> None:
    async def crawl(nursery: BranchNursery, page: str, depth: int) -> int:
        await trio.sleep(1)
        if depth:
            for link in "ab":
                nursery.start_soon(page + link, crawl, nursery, page + link, depth - 1)
        return len(page)

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("/", crawl, nursery, "/", 2)
    assert sorted(nursery.result) == ["/", "/a", "/aa", "/ab", "/b", "/ba", "/bb"]
    assert list(nursery.result)[:3] == ["/", "/a", "/b"]
    assert nursery.result.peak_in_flight == 2
    assert nursery.result.success


async def test_the_last_branch_may_submit_another_one(autojump_clock: MockClock) -> None:
    async def chain(nursery: BranchNursery, left: int) -> None:
        if left:
            nursery.start_soon(left - 1, chain, nursery, left - 1)

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon(50, chain, nursery, 50)
    assert list(nursery.result.completion_order) == list(range(50, -1, -1))


async def test_a_task_beside_the_block_may_submit_while_branches_run(
    autojump_clock: MockClock,
) -> None:
    async def submit(nursery: BranchNursery) -> None:
        await trio.sleep(1)
        nursery.start_soon("late", give, 1)

    async with trio.open_nursery() as tasks, open_branch_nursery() as nursery:
        nursery.start_soon("slow", trio.sleep, 5)
        tasks.start_soon(submit, nursery)
    assert nursery.result["late"].success


async def test_a_sibling_has_a_token_of_its_own(autojump_clock: MockClock) -> None:
    async def spawn(nursery: BranchNursery) -> None:
        child = nursery.start_soon("child", give, 1)
        await trio.sleep(5)
        assert child.status is QUEUED  # the limit is one, and this is it

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("parent", spawn, nursery)
    assert nursery.result["child"].started_at == 5


async def test_a_finished_key_can_not_be_used_again(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        await nursery.start_soon("a", give, 1).wait()
        with pytest.raises(ValueError, match="duplicate key 'a'"):
            nursery.start_soon("a", give, 2)
    assert nursery.result.outputs == {"a": 1}


@pytest.mark.parametrize("key", [0, None, ("a", 1), frozenset(), 1.5, b"x", Branch])
async def test_any_hashable_is_a_key(key: Hashable) -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon(key, trio.lowlevel.checkpoint)
        assert nursery[key] is branch
        assert branch.key is key
    assert nursery.result[key].name == str(key)


async def test_after_the_block_it_is_closed() -> None:
    async with open_branch_nursery(name="crawl") as nursery:
        pass
    with pytest.raises(RuntimeError, match=r"<BranchNursery 'crawl': .*> is closed"):
        nursery.start_soon("late", trio.lowlevel.checkpoint)
    assert list(nursery.result) == []


STOPS: dict[str, Callable[[BranchNursery], object]] = {
    "breach": lambda nursery: nursery.breach("stop"),
    "failure": lambda nursery: nursery.start_soon("fails", fail, priority=1),
    "satisfied": lambda nursery: nursery.start_soon("wins", trio.lowlevel.checkpoint, priority=1),
}


async def fail() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("body", ["has ended", "goes on"])
async def test_a_branch_submitted_after_a_stop_is_skipped_already(
    stop: str, body: str, autojump_clock: MockClock
) -> None:
    late: list[Branch[Any]] = []

    async def spawn_as_it_unwinds(nursery: BranchNursery) -> None:
        try:
            await trio.sleep_forever()
        finally:
            late.append(nursery.start_soon("late", trio.sleep_forever))

    async def cause(nursery: BranchNursery) -> None:
        await trio.sleep(1)
        STOPS[stop](nursery)

    policy = FIRST_SUCCESS if stop == "satisfied" else COLLECT
    try:
        async with (
            trio.open_nursery() as tasks,
            open_branch_nursery(2, policy=policy)
            if stop != "failure"
            else open_branch_nursery(2) as nursery,
        ):
            nursery.start_soon("unwinds", spawn_as_it_unwinds, nursery)
            tasks.start_soon(cause, nursery)
            if body == "goes on":
                await trio.sleep(3)
    except* (Breached, ValueError):
        pass
    (branch,) = late
    assert branch.status is SKIPPED
    result = nursery.result
    assert result["late"].status is SKIPPED
    assert result["late"].reason == result.stop_reason
    assert result["unwinds"].status is not BranchStatus.FAILED


async def test_the_body_may_submit_after_a_satisfied_policy(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
        await nursery.start_soon("wins", give, 1).wait()
        assert nursery.start_soon("late", give, 2).status is SKIPPED
    assert nursery.result.success
    assert nursery.result["late"].reason == "policy satisfied by 'wins'"


async def test_in_a_cancelled_scope_nothing_starts(autojump_clock: MockClock) -> None:
    started = []

    async def start() -> None:
        started.append(1)

    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", start)
    assert scope.cancelled_caught
    assert not started
    assert nursery.result["a"].status is SKIPPED


CALLS: dict[str, Callable[[BranchNursery], object]] = {
    "cancel": lambda nursery: nursery.cancel("a"),
    "breach": lambda nursery: nursery.breach("too late"),
    "start_soon": lambda nursery: nursery.start_soon("b", trio.lowlevel.checkpoint),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_cancellation_from_outside_is_raised_however_the_step_learns_of_it(
    call: Callable[[BranchNursery], object],
) -> None:
    left = False
    with trio.CancelScope() as scope:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", trio.lowlevel.checkpoint)
            scope.cancel()
            call(nursery)
        left = True
    assert nursery.result["a"].status is SKIPPED
    assert scope.cancelled_caught
    assert not left


@pytest.mark.parametrize("seed", range(8))
async def test_what_stops_a_step_is_raised_or_it_has_ended_by_itself(seed: int) -> None:
    """A cancellation from outside and a switch, as the block is being left and all has ended."""
    switch = Breach()
    raised = True
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as tasks:

            async def stop() -> None:
                scope.cancel()
                switch.trip("late")

            async with open_branch_nursery(policy=COLLECT, breach=switch) as nursery:
                tasks.start_soon(stop)  # it runs at the next checkpoint: that of the exit
            raised = False
    assert raised == (nursery.result.stop_reason is not None)
    assert raised == (not nursery.result.success)


# ---------------------------------------------------------------- handles


async def test_a_branch_is_found_by_its_key(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", give, 1)
        assert nursery["a"] is branch
        assert (branch.key, branch.status, branch.priority) == ("a", QUEUED, 0)
        with pytest.raises(KeyError, match="unknown"):
            nursery["unknown"]
        await wait_all_tasks_blocked()
        assert branch.status is RUNNING
    assert nursery["a"].status is SUCCEEDED


async def test_reprs_say_how_things_stand(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2, name="crawl") as nursery:
        for n in range(4):
            nursery.start_soon(n, give, n)
        assert repr(nursery) == "<BranchNursery 'crawl': 4 queued, 0 running, 0 ended>"
        assert repr(nursery[0]) == "<Branch 0 queued>"
        await wait_all_tasks_blocked()
        assert repr(nursery) == "<BranchNursery 'crawl': 2 queued, 2 running, 0 ended>"
        nursery.cancel(3)
        assert repr(nursery[3]) == "<Branch 3 skipped>"
    assert repr(nursery) == "<BranchNursery 'crawl': 0 queued, 0 running, 4 ended>"
    assert repr(nursery.result) == "<ParallelResult of 'crawl': 3 of 4 succeeded>"
    assert nursery.name == nursery.result.name == "crawl"


async def test_looking_at_a_live_branch_does_not_change_its_ending(
    autojump_clock: MockClock,
) -> None:
    def look(branch: Branch[Any]) -> None:
        for name in dir(branch):
            try:
                getattr(branch, name)
            except Exception:  # some can't be asked yet
                continue

    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", give, 1)
        look(branch)
        await wait_all_tasks_blocked()
        look(branch)
    assert nursery.result["a"].status is SUCCEEDED
    assert nursery.result["a"].output == 1
    assert nursery.result["a"].completion_index == 0


async def test_a_tasks_name_tells_the_step_and_the_branch(autojump_clock: MockClock) -> None:
    async def name() -> str:
        await trio.sleep(1)
        return trio.lowlevel.current_task().name

    async with open_branch_nursery(1, name="crawl") as nursery:
        for key in ("a", ("b", 1)):
            nursery.start_soon(key, name)
    assert list(nursery.result.outputs.values()) == ["crawl/a", "crawl/('b', 1)"]


async def test_without_a_name_it_is_a_step() -> None:
    async with open_branch_nursery() as nursery:
        assert nursery.name == "step"


# ---------------------------------------------------------------- statistics, result


async def test_statistics_count(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2, policy=COLLECT) as nursery:
        assert nursery.statistics() == NurseryStatistics(0, 0, 0, 0, None)
        for n in range(5):
            nursery.start_soon(n, give, n)
        assert nursery.statistics() == NurseryStatistics(5, 0, 0, 0, None)
        await wait_all_tasks_blocked()
        assert nursery.statistics() == NurseryStatistics(3, 2, 0, 2, None)
        nursery.cancel(4)
        nursery.cancel(0)
        await wait_all_tasks_blocked()
        assert nursery.statistics() == NurseryStatistics(1, 2, 2, 2, None)
    assert nursery.statistics() == NurseryStatistics(0, 0, 5, 2, None)


async def test_statistics_tell_why_it_stops() -> None:
    with pytest.raises(Breached):
        async with open_branch_nursery() as nursery:
            nursery.breach("enough")
            assert nursery.statistics().stop_reason == "enough"
            await trio.sleep_forever()
    assert nursery.statistics().stop_reason == nursery.result.stop_reason == "enough"


async def test_there_is_no_result_before_the_block_is_left(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", give, 1)
        await trio.sleep(2)
        with pytest.raises(RuntimeError, match="is open: there is no result"):
            _ = nursery.result
    assert nursery.result["a"].output == 1
    assert nursery.result is nursery.result


async def test_the_result_is_complete_also_after_an_exception(autojump_clock: MockClock) -> None:
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            nursery.start_soon("b", trio.sleep_forever)
            await trio.sleep(1)
            raise KeyError("body")
    assert caught.value.result is nursery.result
    assert [ended.status for ended in nursery.result.values()] == [CANCELLED, SKIPPED]
    assert not nursery.result.success


class Custom(ExceptionGroup[Exception]):
    """Without a derive() of its own."""


async def test_a_group_that_the_body_raises_stays_what_it_is() -> None:
    group = Custom("mine", [ExceptionGroup("inner", [ValueError("x")])])
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery():
            raise group
    assert caught.value.exceptions == (group,)


async def test_a_group_that_a_branch_raises_stays_what_it_is() -> None:
    group = Custom("mine", [ExceptionGroup("inner", [ValueError("x")])])

    async def work() -> None:
        raise group

    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", work)
    assert caught.value.exceptions == (group,)
    assert nursery.result["a"].exception is group


# ---------------------------------------------------------------- cancelling


async def test_cancel_tells_if_it_was_the_first_request(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("running", linger, 1)
        nursery.start_soon("queued", give, 1)
        await wait_all_tasks_blocked()
        assert nursery.cancel("running", "first")
        assert not nursery.cancel("running", "second")
        assert nursery.cancel("queued")
        assert not nursery["queued"].cancel()
        with pytest.raises(KeyError, match="unknown"):
            nursery.cancel("unknown")
    assert not nursery.cancel("running")
    reasons = {key: ended.reason for key, ended in nursery.result.items()}
    assert reasons == {"running": "first", "queued": "cancelled"}


async def test_a_branch_may_cancel_itself_and_others(autojump_clock: MockClock) -> None:
    async def work(nursery: BranchNursery) -> None:
        assert nursery.cancel("other")
        assert current_branch().cancel("had enough")
        await trio.sleep_forever()

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("other", trio.sleep_forever)
        nursery.start_soon("a", work, nursery)
    assert nursery.result.with_status(CANCELLED) == ["other", "a"]
    assert nursery.result["a"].reason == "had enough"
    assert nursery.result.success


async def test_cancel_where_takes_the_live_ones_that_match(autojump_clock: MockClock) -> None:
    asked: list[int] = []

    def is_even(key: int) -> bool:
        asked.append(key)
        return key % 2 == 0

    async with open_branch_nursery(3) as nursery:
        for n in range(7):
            nursery.start_soon(n, give, n)
        await trio.sleep(1.5)  # 0, 1 and 2 have ended
        nursery.cancel(4)
        assert nursery.cancel_where(is_even, "odd ones only") == [6]
        assert asked == [3, 4, 5, 6]
    assert nursery.result.with_status(SKIPPED) == [6]
    assert nursery.result[6].reason == "odd ones only"
    assert nursery.result[4].reason == "cancelled"


async def test_cancel_where_asks_about_all_before_it_cancels_any(autojump_clock: MockClock) -> None:
    def broken(key: int) -> bool:
        if key == 3:
            raise ZeroDivisionError
        return True

    async with open_branch_nursery(1) as nursery:
        for n in range(4):
            nursery.start_soon(n, give, n)
        with pytest.raises(ZeroDivisionError):
            nursery.cancel_where(broken)
    assert len(nursery.result.outputs) == 4


async def test_cancel_where_does_not_count_those_told_already(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("a", linger, 1)
        nursery.start_soon("b", linger, 1)
        await wait_all_tasks_blocked()
        nursery.cancel("a")
        assert nursery.cancel_where(lambda key: True) == ["b"]
        assert nursery.cancel_where(lambda key: True) == []


async def test_a_late_cancel_does_not_touch_the_next_branch(autojump_clock: MockClock) -> None:
    async def cancel_as_it_returns() -> str:
        assert current_branch().cancel("too late: it returns")
        return "returned"

    async with open_branch_nursery(1) as nursery:
        for n in range(0, 10, 2):
            nursery.start_soon(n, cancel_as_it_returns)
            nursery.start_soon(n + 1, give, "whole")
    assert list(nursery.result.outputs.values()) == ["returned", "whole"] * 5


async def test_a_branch_that_succeeded_has_no_reason() -> None:
    async def cancel_as_it_returns() -> None:
        current_branch().cancel("but it returns")

    async def cancel_as_it_raises() -> None:
        current_branch().cancel("but it raises")
        raise ValueError

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("returns", cancel_as_it_returns)
        nursery.start_soon("raises", cancel_as_it_raises)
    assert nursery.result["returns"].reason is None
    assert nursery.result["raises"].reason is None


# ---------------------------------------------------------------- pause and resume


async def test_a_paused_step_admits_nothing_and_what_runs_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(1) as nursery:
        for n in range(3):
            nursery.start_soon(n, give, n)
        await wait_all_tasks_blocked()
        nursery.pause("for now")
        await trio.sleep(5)
        assert nursery.statistics() == NurseryStatistics(2, 0, 1, 1, None)
        nursery.resume()
    assert [ended.started_at for ended in nursery.result.values()] == [0, 5, 6]


async def test_a_pause_before_the_first_checkpoint_counts(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", give, 1)
        nursery.pause("for now")
        await trio.sleep(5)
        assert nursery["a"].status is QUEUED
        nursery.resume()
        nursery.resume()
    assert nursery.result["a"].success


async def test_a_pause_holds_its_own_step_only(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as paused, open_branch_nursery(limiter) as other:
        paused.pause("for now")
        paused.start_soon("a", give, 1, priority=9)
        for n in range(3):
            other.start_soon(n, give, n)
        await trio.sleep(2.5)
        assert other.statistics().ended == 2
        paused.resume()
    assert paused.result["a"].started_at == 3


async def test_what_is_submitted_to_a_paused_step_waits_too(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        nursery.pause("for now")
        await trio.sleep(1)
        nursery.start_soon("a", give, 1)
        await trio.sleep(1)
        assert nursery["a"].status is QUEUED
        assert nursery.cancel("a")
        nursery.start_soon("b", give, 1)
        await trio.sleep(1)
        nursery.resume()
    assert nursery.result["b"].started_at == 3


async def test_a_paused_step_can_be_stopped(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    with pytest.raises(StepTimeout):
        async with open_branch_nursery(limiter, fail_after=3) as nursery:
            nursery.pause("for ever")
            nursery.start_soon("a", give, 1)
    assert trio.current_time() == 3
    assert nursery.result["a"].status is SKIPPED
    assert limiter.statistics().tasks_waiting == 0


async def test_resuming_a_step_that_is_closed_changes_nothing(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as closed:
        closed.pause("and never resumed")
    async with open_branch_nursery(limiter) as other:
        other.pause("so that something waits")
        other.start_soon("a", give, 1)
        await wait_all_tasks_blocked()
        closed.resume()
        other.resume()
    assert other.result["a"].success


async def test_a_stopped_step_can_be_resumed_until_its_block_is_left_and_after() -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as other:
        other.pause("so that something waits for the free token")
        other.start_soon("a", trio.lowlevel.checkpoint)
        await wait_all_tasks_blocked()

        async def resume_in_every_pass(stopped: BranchNursery) -> None:
            for _ in range(10):
                stopped.resume()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as tasks:
            with pytest.raises(Breached):
                async with open_branch_nursery(limiter) as stopped:
                    stopped.breach("enough")
                    tasks.start_soon(resume_in_every_pass, stopped)
        other.resume()
    assert other.result["a"].success


# ---------------------------------------------------------------- deadlines that cut nothing


async def test_a_satisfied_policy_is_why_it_ended_though_a_deadline_passed_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(2, policy=FIRST_SUCCESS, fail_after=2) as nursery:
        nursery.start_soon("lingers", linger, 5)
        nursery.start_soon("wins", give, 1)
    assert nursery.result.stop_reason == "policy satisfied by 'wins'"
    assert nursery.result.success


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
async def test_an_unmet_goal_is_an_error_though_a_deadline_passed_that_cut_nothing(
    option: str, autojump_clock: MockClock
) -> None:
    timeout: dict[str, Any] = {option: 3.0}
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(1, policy=FIRST_SUCCESS, **timeout) as nursery:
            nursery.start_soon("a", linger, 5)
            await trio.sleep(1)
            nursery.cancel("a", "not needed")
    (error,) = caught.value.exceptions
    assert isinstance(error, BranchNotDone)
    assert str(error) == "'a' was cancelled: not needed"
    assert trio.current_time() == 6
    assert not nursery.result.success


async def test_a_branchs_own_timeout_comes_before_a_deadline_that_passes_as_it_unwinds(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(BranchErrors):
        async with open_branch_nursery(2, fail_after=2) as nursery:
            nursery.start_soon("a", linger, 5, timeout=1)
    ended = nursery.result["a"]
    assert ended.reason == "timed out after 1 s" or ended.reason == "timed out after 1.0 s"
    assert isinstance(ended.exception, trio.TooSlowError)
    assert ended.duration == 6


async def test_times_are_finite_by_default(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(fail_after=math.inf, move_on_after=math.inf) as nursery:
        nursery.start_soon("a", trio.sleep, 1e9, timeout=math.inf)
    assert nursery.result["a"].success
