"""fail_after, move_on_after and timeouts of branches: by the host's clock, kept to the instant."""

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from helpers import (
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    assert_complete,
    clean_up_for,
    fail_after,
    give,
    give_after,
    give_in_spite_of_all,
    give_when_stopped,
    run_in_many_orders,
    statuses,
)
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    StepTimeout,
    open_branch_nursery,
    run_branches,
)

# ---------------------------------------------------------------- of the step


async def test_fail_after_runs_from_entering_the_block(autojump_clock: MockClock) -> None:
    manager = open_branch_nursery(fail_after=5)
    await trio.sleep(100)
    start = trio.current_time()
    with pytest.raises(StepTimeout):
        async with manager as nursery:
            await trio.sleep(3)
            nursery.start_soon("a", trio.sleep_forever)
    assert trio.current_time() - start == 5


async def test_fail_after_keeps_what_had_ended(autojump_clock: MockClock) -> None:
    with pytest.raises(StepTimeout) as caught:
        await run_branches(
            {
                "in time": lambda: give_after(1, "kept"),
                "late": trio.sleep_forever,
                "told": lambda: give_when_stopped("kept too"),
                "never": lambda: give(1),
            },
            3,
            fail_after=2,
            priorities={"never": -1},
            name="timed",
        )
    result = caught.value.result
    assert result is not None
    assert result.outputs.items() >= {"in time": "kept", "told": "kept too"}.items()
    assert result["late"].status is TIMED_OUT
    assert result["late"].reason == "step timed out after 2 s"
    assert result["late"].exception is None
    assert not result.success


async def test_move_on_after_goes_on_with_what_there_is(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    result = await run_branches(
        {"in time": lambda: give_after(1, "kept"), "late": trio.sleep_forever}, move_on_after=2
    )
    assert trio.current_time() - start == 2
    assert statuses(result) == {"in time": SUCCEEDED, "late": TIMED_OUT}
    assert result.stop_reason == "step timed out after 2 s"
    assert not result.success


async def test_a_deadline_that_stopped_nothing_leaves_the_first_word_to_the_policy(
    autojump_clock: MockClock,
) -> None:
    async def shielded(seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    branches = {key: lambda n=n: shielded(n) for n, key in enumerate("ab", 2)}
    result = await run_branches(branches, policy=FIRST_SUCCESS, move_on_after=1)
    assert result.stop_reason == "policy satisfied by 'a'"


async def test_move_on_after_cancels_the_body_and_the_program_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(move_on_after=1) as nursery:
        nursery.start_soon("a", give, 1)
        await trio.sleep_forever()
        pytest.fail("the body went on")
    assert nursery.result.outputs == {"a": 1}
    assert nursery.result.stop_reason == "step timed out after 1 s"


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
async def test_a_step_that_ends_in_time_has_no_deadline(
    option: str, autojump_clock: MockClock
) -> None:
    options: Any = {option: 5}
    result = await run_branches({"a": lambda: give_after(4, 1)}, **options)
    await trio.sleep(10)
    assert result.success
    assert result.stop_reason is None


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
def test_zero_seconds_start_nothing_that_waits(option: str) -> None:
    async def program() -> None:
        options: Any = {option: 0}
        begun = []

        async def begins() -> None:
            begun.append(1)
            await trio.sleep_forever()

        nursery: Any = None
        try:
            async with open_branch_nursery(**options) as nursery:
                nursery.start_soon("a", begins)
                nursery.start_soon("b", begins)
        except StepTimeout:
            assert option == "fail_after"
        else:
            assert option == "move_on_after"
        assert begun == []
        assert statuses(nursery.result) == {"a": SKIPPED, "b": SKIPPED}
        assert nursery.result["a"].reason == "step timed out after 0 s"

    run_in_many_orders(program)


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
async def test_an_empty_step_of_zero_seconds_is_in_time(option: str) -> None:
    options: Any = {option: 0}
    branches: dict[str, Any] = {}
    result = await run_branches(branches, **options)
    assert result.success
    assert result.stop_reason is None


async def test_infinity_is_no_deadline(autojump_clock: MockClock) -> None:
    result = await run_branches(
        {"a": lambda: give_after(1e6, 1)},
        fail_after=math.inf,
        move_on_after=math.inf,
        branch_timeout=math.inf,
    )
    assert result.outputs == {"a": 1}


async def test_a_deadline_waits_for_cleanup(autojump_clock: MockClock) -> None:
    log: list[str] = []
    start = trio.current_time()
    with pytest.raises(StepTimeout):
        await run_branches({"a": lambda: clean_up_for(5, log)}, fail_after=1)
    assert log == ["cleaned up"]
    assert trio.current_time() - start == 6


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
def test_cleanup_that_outlasts_all_other_work_was_still_cut_short(option: str) -> None:
    async def program() -> None:
        options: Any = {option: 2}
        nursery: Any = None
        try:
            async with open_branch_nursery(**options) as nursery:
                nursery.start_soon("a", give_in_spite_of_all, 9, 1)
                nursery.start_soon("b", clean_up_for, 1)
        except StepTimeout as error:
            assert option == "fail_after"
            assert error.__cause__ is None
        assert statuses(nursery.result) == {"a": SUCCEEDED, "b": TIMED_OUT}
        assert nursery.result.stop_reason == "step timed out after 2 s"

    run_in_many_orders(program)


async def test_move_on_after_raises_the_failures_there_were(autojump_clock: MockClock) -> None:
    """A failure at that very instant or while unwinding is the policy's business."""
    error = ValueError("late")

    async def fails_late() -> None:
        await give_in_spite_of_all(5, None)
        raise error

    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": fails_late, "b": trio.sleep_forever}, move_on_after=1)
    assert caught.value.exceptions == (error,)
    assert caught.value.result is not None
    assert statuses(caught.value.result) == {"a": FAILED, "b": TIMED_OUT}


async def test_first_success_under_move_on_after_may_end_with_nothing(
    autojump_clock: MockClock,
) -> None:
    result = await run_branches({"a": trio.sleep_forever}, move_on_after=1, policy=FIRST_SUCCESS)
    assert statuses(result) == {"a": TIMED_OUT}
    assert not result.success


async def test_the_nearest_of_nested_deadlines_counts(autojump_clock: MockClock) -> None:
    async def nests() -> Any:
        return await run_branches({"deep": trio.sleep_forever}, BranchLimiter(1), move_on_after=1)

    result = await run_branches({"nests": nests}, fail_after=5)
    assert statuses(result.outputs["nests"]) == {"deep": TIMED_OUT}


# ---------------------------------------------------------------- of a branch


async def test_branch_timeout_is_each_branchs_own(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    result = await run_branches(
        {n: lambda n=n: give_after(n, n) for n in (1, 2, 3, 4)},  # type: ignore[misc]
        1,
        branch_timeout=2.5,
        policy=COLLECT,
    )
    assert statuses(result) == {1: SUCCEEDED, 2: SUCCEEDED, 3: TIMED_OUT, 4: TIMED_OUT}
    assert trio.current_time() - start == 8


async def test_a_timeout_waits_for_cleanup_and_holds_the_place(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("slow", clean_up_for, 5, timeout=1)
        nursery.start_soon("next", give_after, 1, 1)
    assert nursery.result["slow"].duration == 6
    assert nursery.result["next"].wait_time == 6
    assert_complete(nursery, "slow", "next")


async def test_a_branch_in_time_keeps_nothing_of_its_timeout(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", give_after, 1, 1, timeout=1.5)
        nursery.start_soon("b", give_after, 9, 2)
    assert nursery.result.outputs == {"a": 1, "b": 2}


async def test_a_cancelled_branch_does_not_time_out_later(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", clean_up_for, 9, timeout=3)
        await trio.sleep(1)
        nursery.cancel("a", "first")
    assert nursery.result["a"].status is CANCELLED
    assert nursery.result["a"].reason == "first"


async def test_a_timed_out_branch_may_still_return_or_raise(autojump_clock: MockClock) -> None:
    error = ValueError()

    async def raises() -> None:
        await give_in_spite_of_all(3, None)
        raise error

    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("returns", give_in_spite_of_all, 3, 1, timeout=1)
        nursery.start_soon("raises", raises, timeout=1)
    assert statuses(nursery.result) == {"returns": SUCCEEDED, "raises": FAILED}
    assert nursery.result.errors == {"raises": error}


async def test_a_failure_before_the_timeout_is_a_failure(autojump_clock: MockClock) -> None:
    error = ValueError()
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", fail_after, 1, error, timeout=2)
    assert nursery.result["a"].exception is error
    assert nursery.result["a"].status is FAILED
