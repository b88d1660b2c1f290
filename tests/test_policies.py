"""Does the step go on?  Policies of the package, and a user's own."""

from collections.abc import Awaitable, Callable
from functools import partial
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
    fail,
    fail_after,
    fail_when_stopped,
    give,
    give_after,
    run_in_many_orders,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    BranchErrors,
    BranchNotDone,
    BranchStatus,
    Decision,
    Policy,
    StepResult,
    StepTimeout,
    Tally,
    open_branch_nursery,
    quorum,
    run_branches,
    tolerate,
    until,
)

Branches = dict[Any, Callable[[], Awaitable[Any]]]


def never(key: Any, result: StepResult[Any]) -> bool:
    return False


def succeed_after(*seconds: float) -> Branches:
    return {second: lambda second=second: give_after(second, second) for second in seconds}  # type: ignore[misc]


# ---------------------------------------------------------------- FAIL_FAST, tolerate, COLLECT


async def test_fail_fast_is_the_default(autojump_clock: MockClock) -> None:
    error = ValueError("first")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(2) as nursery:
            nursery.start_soon("slow", trio.sleep_forever)
            nursery.start_soon("fails", fail_after, 1, error)
            nursery.start_soon("waits", give, 1)
    assert caught.value.exceptions == (error,)
    assert statuses(nursery.result) == {"slow": CANCELLED, "fails": FAILED, "waits": SKIPPED}
    assert nursery.result.stop_reason == "policy failed: 'fails' failed: ValueError: first"
    assert not nursery.result.success


async def test_collect_runs_all_to_their_end_and_raises_nothing() -> None:
    error = ValueError("kept")
    result = await run_branches({"a": lambda: fail(error), "b": lambda: give(1)}, 1, policy=COLLECT)
    assert result.errors == {"a": error}
    assert result.outputs == {"b": 1}
    assert result.stop_reason is None
    assert not result.success


async def test_collect_is_kept_when_nothing_fails() -> None:
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", give, 1)
        nursery.start_soon("cancelled", give, 1)
        nursery.cancel("cancelled")
    assert nursery.result.success


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_tolerate_collects_up_to_that_many(failures: int, autojump_clock: MockClock) -> None:
    errors = [ValueError(n) for n in range(4)]
    async with open_branch_nursery(9, policy=tolerate(failures)) as nursery:
        for n in range(failures):
            nursery.start_soon(n, fail_after, 1 + n, errors[n])
        nursery.start_soon("a", give_after, 10, 1)
    assert nursery.result.success
    assert nursery.result.outputs == {"a": 1}

    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(9, policy=tolerate(failures)) as nursery:
            for n in range(4):
                nursery.start_soon(n, fail_after, 1 + n, errors[n])
            nursery.start_soon("a", give_after, 10, 1)
    assert caught.value.exceptions == tuple(errors[: failures + 1])
    assert nursery.result["a"].status is CANCELLED


async def test_a_timeout_of_its_own_counts_for_tolerate(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(policy=tolerate(1)) as nursery:
        nursery.start_soon("slow", trio.sleep_forever, timeout=1)
        nursery.start_soon("a", give_after, 2, 1)
    assert statuses(nursery.result) == {"slow": TIMED_OUT, "a": SUCCEEDED}
    with pytest.raises(BranchErrors):
        await run_branches({"a": trio.sleep_forever, "b": trio.sleep_forever}, branch_timeout=1)


@pytest.mark.parametrize("policy", [FAIL_FAST, tolerate(0), tolerate(3)], ids=repr)
async def test_what_was_cancelled_is_no_failure(policy: Policy) -> None:
    async with open_branch_nursery(policy=policy) as nursery:
        nursery.start_soon("runs", trio.sleep_forever)
        nursery.start_soon("fine", give, 1)
        await until_nothing_is_ready()
        nursery.cancel("runs")
    assert nursery.result.success


# ---------------------------------------------------------------- FIRST_SUCCESS, quorum


async def test_first_success_cancels_the_rest(autojump_clock: MockClock) -> None:
    branches = succeed_after(3, 1, 2)
    result = await run_branches({**branches, "waits": lambda: give(1)}, 3, policy=FIRST_SUCCESS)
    assert statuses(result) == {3: CANCELLED, 1: SUCCEEDED, 2: CANCELLED, "waits": SKIPPED}
    assert result.success
    assert result.stop_reason == "policy satisfied by 1"


async def test_first_success_collects_the_failures_before_it(autojump_clock: MockClock) -> None:
    error = ValueError("early")
    result = await run_branches(
        {"fails": lambda: fail(error), **succeed_after(1, 2)}, policy=FIRST_SUCCESS
    )
    assert result.errors == {"fails": error}
    assert result.success


async def test_errors_of_those_that_a_success_cancels_are_kept_not_raised() -> None:
    error = ValueError("cleanup")
    async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
        nursery.start_soon("raises", fail_when_stopped, error)
        await until_nothing_is_ready()
        nursery.start_soon("first", give, 1)
    assert nursery.result.errors == {"raises": error}
    assert nursery.result.success


async def test_a_satisfied_policy_leaves_the_body_alone(autojump_clock: MockClock) -> None:
    log = []
    async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
        nursery.start_soon("first", give_after, 1, 1)
        nursery.start_soon("other", trio.sleep_forever)
        await trio.sleep(5)
        log.append("the body went on")
        late = nursery.start_soon("late", give, 1)
        assert late.status is SKIPPED
    assert log == ["the body went on"]
    assert nursery.result["late"].reason == "policy satisfied by 'first'"
    assert nursery.result.success


async def test_a_quorum_stops_once_it_is_met(autojump_clock: MockClock) -> None:
    result = await run_branches(succeed_after(1, 2, 3, 4), policy=quorum(3))
    assert statuses(result) == {1: SUCCEEDED, 2: SUCCEEDED, 3: SUCCEEDED, 4: CANCELLED}
    assert result.stop_reason == "policy satisfied by 3"


async def test_a_goal_out_of_reach_stops_the_step_at_once(autojump_clock: MockClock) -> None:
    errors = ValueError("a"), ValueError("b")
    with pytest.raises(BranchErrors) as caught:
        await run_branches(
            {
                "a": lambda: fail_after(1, errors[0]),
                "fine": lambda: give_after(1, 1),
                "b": lambda: fail_after(2, errors[1]),
                "slow": lambda: give_after(3, 1),
            },
            policy=quorum(3),
        )
    first, second, third = caught.value.exceptions
    assert (first, second) == errors
    assert type(third) is BranchNotDone
    assert str(third) == "'slow' was cancelled: quorum(3) can no longer be met"
    result = caught.value.result
    assert result is not None
    assert statuses(result) == {"a": FAILED, "fine": SUCCEEDED, "b": FAILED, "slow": CANCELLED}
    assert result.stop_reason == "quorum(3) can no longer be met"
    assert not result.success


async def test_reach_is_judged_once_the_body_has_ended(autojump_clock: MockClock) -> None:
    """Until then more branches may come."""
    async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
        nursery.start_soon("fails", fail, ValueError())
        await trio.sleep(1)
        assert nursery.statistics().stop_reason is None
        nursery.start_soon("a later one", give, 1)
    assert nursery.result.outputs == {"a later one": 1}


async def test_reach_counts_the_branches_that_branches_submit() -> None:
    async with open_branch_nursery(1, policy=FIRST_SUCCESS) as nursery:

        async def fails_but_submits() -> None:
            nursery.start_soon("child", give, 1)
            raise ValueError

        nursery.start_soon("parent", fails_but_submits)
    assert nursery.result.outputs == {"child": 1}
    assert nursery.result.success


@pytest.mark.parametrize("policy", [FIRST_SUCCESS, until(never)], ids=repr)
@pytest.mark.parametrize("when", ["in the body", "after the body"])
async def test_skipped_and_cancelled_branches_do_not_help_to_reach_a_goal(
    policy: Policy, when: str, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as beside:
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(1, policy=policy) as nursery:
                nursery.start_soon("runs", trio.sleep_forever)
                nursery.start_soon("waits", give, 1)
                beside.start_soon(cancel_both, nursery)
                if when == "in the body":
                    await trio.sleep(2)
    assert [str(error) for error in caught.value.exceptions] == [
        "'runs' was cancelled: nor this one",
        "'waits' never ran: not this one",
    ]
    assert statuses(nursery.result)["runs"] is CANCELLED
    assert statuses(nursery.result)["waits"] is SKIPPED
    assert nursery.result.stop_reason == f"{policy!r} can no longer be met"


async def cancel_both(nursery: Any) -> None:
    await trio.sleep(1)
    nursery.cancel("waits", "not this one")
    nursery.cancel("runs", "nor this one")


@pytest.mark.parametrize("policy", [FIRST_SUCCESS, quorum(1), quorum(5), until(never)], ids=repr)
async def test_an_empty_step_meets_no_goal(policy: Policy) -> None:
    with pytest.raises(BranchErrors) as caught:
        await run_branches({}, policy=policy, name="empty")
    (error,) = caught.value.exceptions
    assert type(error) is BranchNotDone
    assert str(error) == f"'empty': {policy!r} can no longer be met"


class Own:
    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.GO_ON


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, tolerate(0), tolerate(2), Own()])
async def test_an_empty_step_satisfies_the_others(policy: Policy) -> None:
    branches: Branches = {}
    result = await run_branches(branches, policy=policy)
    assert result.success
    assert result.stop_reason is None


# ---------------------------------------------------------------- until


async def test_until_stops_once_it_is_done(autojump_clock: MockClock) -> None:
    policy = until(lambda key, result: key >= 2 and result.success)
    result = await run_branches(succeed_after(1, 2, 3), policy=policy)
    assert statuses(result) == {1: SUCCEEDED, 2: SUCCEEDED, 3: CANCELLED}
    assert result.success


async def test_until_is_asked_of_failures_too() -> None:
    policy = until(lambda key, result: result.status is FAILED)
    result = await run_branches(
        {"a": lambda: give(1), "b": lambda: fail(ValueError()), "c": lambda: give(1)},
        1,
        policy=policy,
    )
    assert statuses(result) == {"a": SUCCEEDED, "b": FAILED, "c": SKIPPED}
    assert result.success


async def test_until_that_never_came_about_names_itself_if_all_succeeded() -> None:
    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: give(1)}, policy=until(never), name="it")
    (error,) = caught.value.exceptions
    assert type(error) is BranchNotDone
    assert str(error) == "'it': until(never) can no longer be met"
    assert caught.value.result is not None
    assert caught.value.result.outputs == {"a": 1}


async def test_until_that_never_came_about_shows_what_failed() -> None:
    error = ValueError("b")
    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: give(1), "b": lambda: fail(error)}, policy=until(never))
    assert caught.value.exceptions == (error,)


def test_a_predicate_that_raises_stops_the_step_as_the_body_would() -> None:
    error = ZeroDivisionError("predicate")

    def done(key: Any, result: StepResult[Any]) -> bool:
        raise error

    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(2, policy=until(done)) as nursery:
                nursery.start_soon("a", give, 1)
                nursery.start_soon("b", trio.sleep_forever)
                nursery.start_soon("c", trio.sleep_forever)
                await trio.sleep_forever()
        assert caught.value.exceptions == (error,)
        assert statuses(nursery.result)["a"] is SUCCEEDED
        assert nursery.result.stop_reason == "the policy raised ZeroDivisionError: predicate"
        assert_complete(nursery, "a", "b", "c")

    run_in_many_orders(program)


# ---------------------------------------------------------------- a user's own


class Recording:
    """Asked of every ending; says what it was told to say."""

    def __init__(self, **decisions: Any) -> None:
        self.asked: list[tuple[Any, BranchStatus, Tally]] = []
        self.decisions = decisions

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        self.asked.append((key, result.status, tally))
        decision: Any = self.decisions.get(key, Decision.GO_ON)
        if isinstance(decision, Exception):
            raise decision
        return decision  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return "<mine>"


async def test_it_is_asked_of_every_ending_with_a_tally_that_counts_it(
    autojump_clock: MockClock,
) -> None:
    policy = Recording()
    async with open_branch_nursery(4, policy=policy) as nursery:
        nursery.start_soon("a", give_after, 1, 1)
        nursery.start_soon("b", fail_after, 2, ValueError())
        nursery.start_soon("c", trio.sleep_forever, timeout=3)
        nursery.start_soon("d", trio.sleep_forever)
        nursery.start_soon("e", give, 1, priority=-1)
        nursery.cancel("e")
        await trio.sleep(4)
        nursery.cancel("d")
    assert policy.asked == [
        ("e", SKIPPED, Tally(0, 0, 1, 4)),
        ("a", SUCCEEDED, Tally(1, 0, 2, 3)),
        ("b", FAILED, Tally(1, 1, 3, 2)),
        ("c", TIMED_OUT, Tally(1, 2, 4, 1)),
        ("d", CANCELLED, Tally(1, 2, 5, 0)),
    ]
    assert nursery.result.stop_reason is None


async def test_it_may_be_satisfied(autojump_clock: MockClock) -> None:
    policy = Recording(a=Decision.SATISFIED)
    result = await run_branches(
        {"a": lambda: give_after(1, 1), "b": trio.sleep_forever}, policy=policy
    )
    assert statuses(result) == {"a": SUCCEEDED, "b": CANCELLED}
    assert result.success
    assert result.stop_reason == "policy satisfied by 'a'"


async def test_it_may_fail_and_shows_the_errors_that_there_are(
    autojump_clock: MockClock,
) -> None:
    error = ValueError("a")
    with pytest.raises(BranchErrors) as caught:
        await run_branches(
            {"a": lambda: fail_after(1, error), "b": trio.sleep_forever},
            policy=Recording(a=Decision.FAILED),
        )
    assert caught.value.exceptions == (error,)


async def test_it_may_fail_without_any_error(autojump_clock: MockClock) -> None:
    with pytest.raises(BranchErrors) as caught:
        await run_branches(
            {"a": lambda: give_after(1, 1), "b": trio.sleep_forever},
            policy=Recording(a=Decision.FAILED),
        )
    (error,) = caught.value.exceptions
    assert type(error) is BranchNotDone
    assert str(error) == "'step': policy failed: 'a' succeeded"


async def test_one_that_raises_stops_the_step_as_the_body_would() -> None:
    error = ZeroDivisionError("policy")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(policy=Recording(a=error)) as nursery:
            nursery.start_soon("a", give, 1)
            nursery.start_soon("b", trio.sleep_forever)
            await trio.sleep_forever()
    assert caught.value.exceptions == (error,)
    assert nursery.result["a"].output == 1
    assert_complete(nursery, "a", "b")


@pytest.mark.parametrize("nonsense", [True, "go_on", 0, Decision], ids=repr)
async def test_one_that_returns_nonsense_is_a_type_error(nonsense: Any) -> None:
    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: give(1)}, policy=Recording(a=nonsense))
    (error,) = caught.value.exceptions
    assert type(error) is TypeError
    assert str(error) == f"`on_end()` must be a Decision, got {nonsense!r} from <mine>"


async def test_one_that_forgets_to_return_is_a_type_error() -> None:
    class Forgets:
        def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:  # type: ignore[empty-body]
            ...

        def __repr__(self) -> str:
            return "<forgets>"

    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: give(1)}, policy=Forgets())
    (error,) = caught.value.exceptions
    assert str(error) == "`on_end()` must be a Decision, got None from <forgets>"


async def test_one_of_the_users_that_fails_is_like_fail_fast_under_move_on_after(
    autojump_clock: MockClock,
) -> None:
    """'Errors that the policy raises are raised', whoever wrote the policy."""

    class FailsFast:
        def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
            return Decision.FAILED if tally.failed else Decision.GO_ON

    error = ValueError("cleanup")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(policy=FailsFast(), move_on_after=1) as nursery:
            nursery.start_soon("raises", fail_when_stopped, error)
            nursery.start_soon("slow", trio.sleep_forever)
    assert caught.value.exceptions == (error,)


async def test_what_a_policy_of_the_users_own_lets_pass_is_not_shown_by_a_later_stop(
    autojump_clock: MockClock,
) -> None:
    class GoesOn:
        def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
            return Decision.GO_ON

    early, late = ValueError("early"), ValueError("cleanup")

    async def fail_early() -> None:
        raise early

    with pytest.raises(StepTimeout) as caught:
        async with open_branch_nursery(policy=GoesOn(), fail_after=1) as nursery:
            nursery.start_soon("early", fail_early)
            nursery.start_soon("late", fail_when_stopped, late)
    assert isinstance(caught.value.__cause__, BranchErrors)
    assert caught.value.__cause__.exceptions == (late,)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (FAIL_FAST, "FAIL_FAST"),
        (COLLECT, "COLLECT"),
        (FIRST_SUCCESS, "FIRST_SUCCESS"),
        (quorum(3), "quorum(3)"),
        (tolerate(3), "tolerate(3)"),
        (until(never), "until(never)"),
    ],
)
def test_reprs_say_how_they_are_made(policy: Policy, said: str) -> None:
    assert repr(policy) == said


def test_what_has_no_name_of_its_own_is_shown_as_it_is() -> None:
    done = partial(never)
    assert repr(until(done)) == f"until({done!r})"
