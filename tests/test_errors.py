"""What is raised carries its result, stays what it is when it is split, and pickles."""

import copy
import pickle
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from helpers import fail, fail_when_stopped, give, until_nothing_is_ready
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchNotDone,
    BranchStatus,
    Breached,
    Decision,
    ParallelResult,
    StepResult,
    StepTimeout,
    Tally,
    open_branch_nursery,
    run_branches,
)


async def branch_errors() -> BranchErrors:
    with pytest.raises(BranchErrors) as caught:
        await run_branches(
            {
                "a": lambda: fail(ValueError("a")),
                "b": lambda: fail(ExceptionGroup("b", [KeyError("b"), OSError("b")])),
                "c": lambda: give(3),
            },
            policy=FailedOnceAllHaveEnded(),
        )
    return caught.value


class FailedOnceAllHaveEnded:
    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.FAILED if tally.failed and not tally.outstanding else Decision.GO_ON


# ---------------------------------------------------------------- BranchErrors


async def test_branch_errors_are_an_exception_group_in_submission_order() -> None:
    errors = await branch_errors()
    assert isinstance(errors, ExceptionGroup)
    assert [type(error) for error in errors.exceptions] == [ValueError, ExceptionGroup]
    assert errors.message == "errors in 'step'"
    assert isinstance(errors.result, ParallelResult)
    assert list(errors.result.errors.values()) == list(errors.exceptions)


async def test_except_star_works_and_what_it_splits_off_keeps_the_result() -> None:
    errors = await branch_errors()
    caught: list[Any] = []
    try:
        try:
            raise errors
        except* OSError as group:
            caught.append(group)
    except BranchErrors as left:
        caught.append(left)
    of_os, rest = caught
    assert isinstance(of_os, BranchErrors)
    assert isinstance(of_os.exceptions[0], ExceptionGroup)  # still nested
    assert of_os.result is rest.result is errors.result
    assert [type(error) for error in rest.exceptions] == [ValueError, ExceptionGroup]


async def test_subgroup_split_and_derive_keep_the_result() -> None:
    errors = await branch_errors()
    subgroup = errors.subgroup(ValueError)
    matched, rest = errors.split(KeyError)
    derived = errors.derive([RuntimeError()])
    for group in (subgroup, matched, rest, derived):
        assert type(group) is BranchErrors
        assert group.message == errors.message
        assert group.result is errors.result


async def test_derived_with_what_is_no_exception_it_is_a_base_exception_group() -> None:
    errors = await branch_errors()
    derived: Any = errors.derive([KeyboardInterrupt(), ValueError()])
    assert not isinstance(derived, Exception)
    assert derived.result is errors.result
    rest = derived.subgroup(ValueError)
    assert type(rest) is BranchErrors
    assert rest.result is errors.result


async def test_branch_errors_pickle() -> None:
    errors = await branch_errors()
    for again in (pickle.loads(pickle.dumps(errors)), copy.copy(errors)):
        assert type(again) is BranchErrors
        assert again.message == errors.message
        assert repr(again.exceptions) == repr(errors.exceptions)
        assert isinstance(again.result, ParallelResult)
        assert list(again.result) == ["a", "b", "c"]
        assert again.result["c"].output == 3


async def test_what_leaves_beside_cancelled_keeps_the_result() -> None:
    with trio.CancelScope() as outer, pytest.raises(BaseExceptionGroup) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", fail_when_stopped, ValueError("a"))
            await until_nothing_is_ready()
            outer.cancel()
    assert caught.value.result is nursery.result  # type: ignore[attr-defined]
    assert str(caught.value) == "errors in 'step' (2 sub-exceptions)"


# ---------------------------------------------------------------- Breached, StepTimeout


async def breached() -> Breached:
    with pytest.raises(Breached) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", fail_when_stopped, ValueError("cleanup"))
            nursery.start_soon("b", give, 2)
            await until_nothing_is_ready()
            nursery.breach("too much")
    return caught.value


async def test_breached_says_why_and_what_there_is() -> None:
    error = await breached()
    assert (error.reason, str(error)) == ("too much", "too much")
    assert isinstance(error.result, ParallelResult)
    assert error.result.outputs == {"b": 2}
    assert error.result.with_status(BranchStatus.FAILED) == ["a"]


async def test_breached_pickles() -> None:
    error = await breached()
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is Breached
        assert (again.reason, str(again)) == ("too much", "too much")
        assert isinstance(again.result, ParallelResult)
        assert again.result.outputs == {"b": 2}


def test_breached_without_a_result_pickles() -> None:
    again = pickle.loads(pickle.dumps(Breached("why")))
    assert (again.reason, again.result) == ("why", None)


async def timed_out() -> StepTimeout:
    with pytest.raises(StepTimeout) as caught:
        await run_branches({"a": lambda: give(1), "b": trio.sleep_forever}, fail_after=3, name="x")
    return caught.value


async def test_a_step_timeout_is_a_too_slow_error_with_what_there_is(
    autojump_clock: MockClock,
) -> None:
    error = await timed_out()
    assert isinstance(error, trio.TooSlowError)
    assert str(error) == "'x': step timed out after 3 s"
    assert isinstance(error.result, ParallelResult)
    assert error.result.outputs == {"a": 1}
    assert error.result["b"].status is BranchStatus.TIMED_OUT


async def test_a_step_timeout_pickles(autojump_clock: MockClock) -> None:
    error = await timed_out()
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is StepTimeout
        assert str(again) == str(error)
        assert isinstance(again.result, ParallelResult)
        assert again.result.outputs == {"a": 1}


# ---------------------------------------------------------------- BranchNotDone


async def test_unwrap_of_what_has_no_output_and_no_error_names_status_and_reason(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(1, move_on_after=5, policy=COLLECT) as nursery:
        nursery.start_soon("cancelled", trio.sleep_forever)
        nursery.start_soon("timed out", trio.sleep_forever)
        nursery.start_soon("skipped", give, 1)
        await trio.sleep(1)
        nursery.cancel("cancelled", "not wanted")
    for key, message in {
        "cancelled": "'cancelled' was cancelled: not wanted",
        "timed out": "'timed out' timed out: step timed out after 5 s",
        "skipped": "'skipped' never ran: step timed out after 5 s",
    }.items():
        with pytest.raises(BranchNotDone) as caught:
            nursery.result[key].unwrap()
        assert str(caught.value) == message
        assert str(pickle.loads(pickle.dumps(caught.value))) == message


async def test_unwrap_of_what_was_breached_says_so() -> None:
    with pytest.raises(Breached) as breached:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            await until_nothing_is_ready()
            nursery.breach("stop")
    assert isinstance(breached.value.result, ParallelResult)
    with pytest.raises(BranchNotDone, match=r"^'a' was breached: stop$"):
        breached.value.result["a"].unwrap()


async def test_unwrap_of_a_failure_raises_the_exception_itself() -> None:
    error = ValueError("mine")
    result = await run_branches({"a": lambda: fail(error)}, policy=COLLECT)
    with pytest.raises(ValueError, match="mine") as caught:
        result["a"].unwrap()
    assert caught.value is error


async def test_unwrap_of_a_timeout_raises_its_too_slow_error(autojump_clock: MockClock) -> None:
    result = await run_branches({"a": trio.sleep_forever}, branch_timeout=2, policy=COLLECT)
    with pytest.raises(trio.TooSlowError, match=r"^'a' timed out after 2 s$"):
        result["a"].unwrap()


async def test_raise_for_errors_raises_all_of_them_or_nothing() -> None:
    first, second = ValueError(1), ValueError(2)
    result = await run_branches(
        {"a": lambda: fail(first), "b": lambda: give(1), "c": lambda: fail(second)},
        policy=COLLECT,
        name="many",
    )
    with pytest.raises(BranchErrors, match="2 branches of 'many' failed") as caught:
        result.raise_for_errors()
    assert caught.value.exceptions == (first, second)
    assert caught.value.result is result
    (await run_branches({"b": lambda: give(1)}, policy=FIRST_SUCCESS)).raise_for_errors()


async def test_a_traceback_begins_in_the_users_code() -> None:
    result = await run_branches({"a": lambda: fail(ValueError())}, policy=COLLECT)
    error = result["a"].exception
    assert error is not None
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "fail"
