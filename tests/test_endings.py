"""Every cell of the endings table: what stops a step x a branch that runs, one that is queued, the
block.  And what the block shows of the errors that it met on its way out."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from helpers import (
    BREACHED,
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    assert_complete,
    assert_idle,
    clean_up_for,
    fail,
    fail_after,
    fail_when_stopped,
    give,
    give_after,
    give_in_spite_of_all,
    give_when_stopped,
    run,
    run_in_many_orders,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    CancelRule,
    ParallelResult,
    Policy,
    StepResult,
    StepTimeout,
    current_branch,
    open_branch_nursery,
    run_branches,
    until,
)

# ---------------------------------------------------------------- the table


@attrs.frozen
class Stop:
    """A way to stop a step at t=1, and what the table says of it."""

    name: str
    running: BranchStatus
    raised: type[BaseException] | None
    reason: str | None
    success: bool = False
    body_is_cancelled: bool = True
    options: dict[str, Any] = attrs.field(factory=dict)
    trigger: Callable[[], Awaitable[object]] = trio.sleep_forever
    act: Callable[[BranchNursery, trio.CancelScope], object] = lambda nursery, outer: None
    in_body: Callable[[], object] = lambda: None

    def __str__(self) -> str:
        return self.name


def raise_from_body() -> None:
    raise LookupError("from the body")


STOPS = [
    Stop(
        "the body raises",
        CANCELLED,
        BranchErrors,
        "the body raised LookupError: from the body",
        body_is_cancelled=False,
        in_body=raise_from_body,
    ),
    Stop(
        "policy failed",
        CANCELLED,
        BranchErrors,
        "policy failed: 'trigger' failed: OSError: from the trigger",
        trigger=lambda: fail_after(1, OSError("from the trigger")),
    ),
    Stop(
        "policy satisfied",
        CANCELLED,
        None,
        "policy satisfied by 'trigger'",
        success=True,
        body_is_cancelled=False,
        options={"policy": until(lambda key, result: key == "trigger")},
        trigger=lambda: give_after(1, "enough"),
    ),
    Stop(
        "fail_after", TIMED_OUT, StepTimeout, "step timed out after 1 s", options={"fail_after": 1}
    ),
    Stop(
        "move_on_after", TIMED_OUT, None, "step timed out after 1 s", options={"move_on_after": 1}
    ),
    Stop(
        "breach",
        BREACHED,
        Breached,
        "too much",
        act=lambda nursery, outer: nursery.breach("too much"),
    ),
    Stop(
        "outer cancellation",
        CANCELLED,
        trio.Cancelled,
        "cancelled from outside",
        act=lambda nursery, outer: outer.cancel(),
    ),
]


@attrs.define
class Seen:
    """What a program saw of its step."""

    nursery: BranchNursery
    raised: BaseException | None = None
    body_was_cancelled: bool = False


async def stopped_step(stop: Stop, body_waits: bool, **branches: Any) -> Seen:
    """A step under limit 4 that `stop` stops at t=1."""
    with trio.CancelScope() as outer:
        async with trio.open_nursery() as beside:
            manager = open_branch_nursery(4, **stop.options)
            seen = Seen(await manager.__aenter__())
            nursery = seen.nursery
            nursery.start_soon("done", give, "done")
            nursery.start_soon("running", trio.sleep_forever)
            nursery.start_soon("returns", give_when_stopped, "kept")
            nursery.start_soon("trigger", stop.trigger)
            for name, (async_fn, *args) in branches.items():
                nursery.start_soon(name, async_fn, *args)
            nursery.start_soon("more", trio.sleep_forever)  # takes the place of 'done'
            nursery.start_soon("queued", trio.sleep_forever, priority=-1)

            @beside.start_soon
            async def act() -> None:
                await trio.sleep(1)
                stop.act(nursery, outer)

            exc: BaseException | None = None
            try:
                if body_waits:
                    await trio.sleep(1)
                    stop.in_body()
                    await trio.sleep(1)
            except trio.Cancelled as cancelled:
                seen.body_was_cancelled = True
                exc = cancelled
            except Exception as error:
                exc = error
            try:
                swallowed = await manager.__aexit__(type(exc) if exc else None, exc, None)
            except BaseException as raised:
                seen.raised = raised
            else:
                seen.raised = None if swallowed else exc
            beside.cancel_scope.cancel()
            if isinstance(seen.raised, trio.Cancelled):
                raise seen.raised
    return seen


def body_waits_params() -> list[Any]:
    return [
        pytest.param(stop, waits, id=f"{stop}, {'in' if waits else 'after'} the body")
        for stop in STOPS
        for waits in (True, False)
        if waits or stop.name != "the body raises"
    ]


table = pytest.mark.parametrize(("stop", "body_waits"), body_waits_params())


@table
def test_a_running_branch_ends_as_the_table_says(stop: Stop, body_waits: bool) -> None:
    result = run(stopped_step, stop, body_waits).nursery.result
    running = result["running"]
    assert running.status is stop.running
    assert running.reason == stop.reason
    assert (running.output, running.exception) == (None, None)
    assert running.started_at is not None
    assert running.attempts == 1
    assert running.duration == 1
    assert not running.success


@table
def test_a_queued_branch_is_skipped_with_the_reason(stop: Stop, body_waits: bool) -> None:
    result = run(stopped_step, stop, body_waits).nursery.result
    queued = result["queued"]
    assert queued.status is SKIPPED
    assert queued.reason == stop.reason
    assert (queued.started_at, queued.attempts, queued.completion_index) == (None, 0, None)
    assert queued.wait_time == 1
    assert queued.duration == 0


@table
def test_the_block_is_left_as_the_table_says(stop: Stop, body_waits: bool) -> None:
    seen = run(stopped_step, stop, body_waits)
    assert type(seen.raised) is (stop.raised or type(None))
    assert seen.nursery.result.success is stop.success
    assert seen.nursery.result.stop_reason == stop.reason


@table
def test_the_body_is_cancelled_as_the_table_says(stop: Stop, body_waits: bool) -> None:
    seen = run(stopped_step, stop, body_waits)
    assert seen.body_was_cancelled is (stop.body_is_cancelled and body_waits)


@table
def test_what_returns_has_succeeded_even_if_told_to_stop(stop: Stop, body_waits: bool) -> None:
    result = run(stopped_step, stop, body_waits).nursery.result
    assert result["returns"].status is SUCCEEDED
    assert result["returns"].output == "kept"
    assert result["done"].output == "done"


@table
def test_what_raises_has_failed_even_if_told_to_stop(stop: Stop, body_waits: bool) -> None:
    error = ValueError("cleanup")
    seen = run(lambda: stopped_step_with_more_room(stop, body_waits, error))
    raises = seen.nursery.result["raises"]
    assert raises.status is FAILED
    assert raises.exception is error


async def stopped_step_with_more_room(stop: Stop, body_waits: bool, error: Exception) -> Seen:
    """The branch that raises takes the place of 'done', and 'more' stays queued."""
    return await stopped_step(stop, body_waits, raises=(fail_when_stopped, error))


@table
def test_results_are_complete_and_in_submission_order(stop: Stop, body_waits: bool) -> None:
    seen = run(stopped_step, stop, body_waits)
    assert_complete(seen.nursery, "done", "running", "returns", "trigger", "more", "queued")
    if isinstance(seen.raised, BranchErrors | Breached | StepTimeout):
        assert seen.raised.result is seen.nursery.result


@table
def test_a_branch_that_is_submitted_after_the_stop_is_skipped(stop: Stop, body_waits: bool) -> None:
    late: list[StepResult[Any]] = []

    async def submits_in_its_cleanup(nursery: list[BranchNursery]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            branch = nursery[0].start_soon("late", give, 1)
            assert branch.status is SKIPPED
            late.append(branch.result)

    async def program() -> Seen:
        nursery: list[BranchNursery] = []
        return await stopped_step(
            stop,
            body_waits,
            finds=(lambda: find(nursery),),
            submits=(submits_in_its_cleanup, nursery),
        )

    async def find(nursery: list[BranchNursery]) -> None:
        nursery.append(current_branch()._step.handle)  # type: ignore[union-attr]

    result = run(program).nursery.result
    assert result["submits"].exception is None
    assert result["late"].status is SKIPPED
    assert result["late"].reason == stop.reason
    assert late == [result["late"]]


# ---------------------------------------------------------------- one branch alone


async def test_a_branch_that_returns_succeeds() -> None:
    result = await run_branches({"a": lambda: give(1)})
    assert result["a"].status is SUCCEEDED
    assert result["a"].output == 1
    assert (result["a"].exception, result["a"].reason) == (None, None)
    assert result.success
    assert result.stop_reason is None


async def test_a_branch_that_raises_fails() -> None:
    error = ValueError("no")
    result = await run_branches({"a": lambda: fail(error)}, policy=COLLECT)
    assert result["a"].status is FAILED
    assert result["a"].exception is error
    assert result["a"].output is None
    assert not result.success
    assert result.stop_reason is None


async def test_a_branch_past_its_timeout_has_timed_out(autojump_clock: MockClock) -> None:
    result = await run_branches({"a": trio.sleep_forever}, branch_timeout=3, policy=COLLECT)
    ended = result["a"]
    assert ended.status is TIMED_OUT
    assert type(ended.exception) is trio.TooSlowError
    assert str(ended.exception) == "'a' timed out after 3 s"
    assert ended.reason == "timed out after 3 s"
    assert ended.duration == 3
    assert not result.success


async def test_a_branch_past_its_timeout_counts_as_a_failure(autojump_clock: MockClock) -> None:
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("slow", trio.sleep_forever, timeout=3)
            nursery.start_soon("other", trio.sleep_forever)
    (error,) = caught.value.exceptions
    assert type(error) is trio.TooSlowError
    assert not hasattr(caught.value, "__notes__")
    assert nursery.result["slow"].exception is error
    assert nursery.result["other"].status is CANCELLED


async def test_a_cancelled_branch_is_no_failure_and_the_step_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("runs", trio.sleep_forever)
        nursery.start_soon("waits", trio.sleep_forever)
        nursery.start_soon("goes on", give_after, 5, 5)
        await trio.sleep(1)
        assert nursery.cancel("runs", "not wanted")
        assert nursery.cancel("waits")
    result = nursery.result
    assert statuses(result) == {"runs": CANCELLED, "waits": SKIPPED, "goes on": SUCCEEDED}
    assert result["runs"].reason == "not wanted"
    assert result["waits"].reason == "cancelled"
    assert result.success
    assert result.stop_reason is None


async def test_a_rule_cancels_what_runs_and_skips_what_waits() -> None:
    rule = CancelRule("high", "low_*")
    async with open_branch_nursery(2, cancel_rules=[rule]) as nursery:
        nursery.start_soon("low_1", trio.sleep_forever)
        nursery.start_soon("high", give, 1)
        nursery.start_soon("low_2", trio.sleep_forever)
    result = nursery.result
    assert statuses(result) == {"low_1": CANCELLED, "high": SUCCEEDED, "low_2": SKIPPED}
    assert result["low_1"].reason == "'high' succeeded: 'high' cancels 'low_*'"
    assert result["low_2"].reason == result["low_1"].reason
    assert result.success


async def test_a_timeout_runs_from_admission(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("first", give_after, 10, 1)
        nursery.start_soon("second", give_after, 2, 2, timeout=3)
    assert nursery.result.outputs == {"first": 1, "second": 2}


async def test_its_own_too_slow_error_is_a_failure_not_a_timeout(
    autojump_clock: MockClock,
) -> None:
    async def too_slow() -> None:
        with trio.fail_after(1):
            await trio.sleep_forever()

    result = await run_branches({"a": too_slow}, policy=COLLECT)
    assert result["a"].status is FAILED
    assert type(result["a"].exception) is trio.TooSlowError


async def test_a_branch_may_cancel_itself() -> None:
    async def cancels_itself() -> None:
        assert current_branch().cancel("enough of me")
        assert not current_branch().cancel("again")
        await trio.sleep_forever()

    result = await run_branches({"a": cancels_itself, "b": lambda: give(1)}, 1)
    assert statuses(result) == {"a": CANCELLED, "b": SUCCEEDED}
    assert result["a"].reason == "enough of me"


async def test_a_branch_that_cancels_itself_and_returns_has_succeeded() -> None:
    async def cancels_itself() -> str:
        current_branch().cancel()
        return "anyway"

    result = await run_branches({"a": cancels_itself, "b": lambda: give(1)}, 1)
    assert result.outputs == {"a": "anyway", "b": 1}


async def test_what_swallows_its_cancellation_and_returns_has_succeeded() -> None:
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", give_when_stopped, 1)
        await until_nothing_is_ready()
        assert branch.cancel("please")
    assert nursery.result["a"].status is SUCCEEDED
    assert nursery.result["a"].output == 1


async def test_what_raises_out_of_its_cancellation_has_failed() -> None:
    error = ValueError("cleanup")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(1) as nursery:
            branch = nursery.start_soon("a", fail_when_stopped, error)
            await until_nothing_is_ready()
            branch.cancel("please")
    assert caught.value.exceptions == (error,)
    assert nursery.result["a"].status is FAILED


async def test_a_branch_that_is_granted_but_has_not_begun_is_skipped() -> None:
    """The first runner passes the second token on to a task that has not come up yet."""
    begun = []

    async def cancels_the_other(nursery: BranchNursery) -> None:
        begun.append("first")
        assert nursery.limiter.borrowed_tokens == 2
        assert nursery.cancel("second", "too late for you")

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("first", cancels_the_other, nursery)
        nursery.start_soon("second", give, begun)
    second = nursery.result["second"]
    assert begun == ["first"]
    assert second.status is SKIPPED
    assert second.reason == "too late for you"
    assert (second.attempts, second.started_at) == (0, None)
    assert_complete(nursery, "first", "second")


async def test_the_place_of_a_branch_skipped_before_it_began_goes_to_the_next() -> None:
    async def cancels_the_other(nursery: BranchNursery) -> None:
        nursery.cancel("second")
        await trio.sleep_forever()

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("first", cancels_the_other, nursery)
        nursery.start_soon("second", give, 2)
        third = nursery.start_soon("third", give, 3)
        assert (await third.wait()).output == 3
        nursery.cancel("first")


# ---------------------------------------------------------------- errors met while unwinding

RAISING = [stop for stop in STOPS if stop.name in ("the body raises", "policy failed")]
CHAINING = [stop for stop in STOPS if stop.name in ("fail_after", "breach")]


@pytest.mark.parametrize("stop", RAISING, ids=str)
def test_errors_of_cleanup_are_in_the_group(stop: Stop) -> None:
    error = ValueError("cleanup")
    seen = run(stopped_step_with_more_room, stop, True, error)
    assert isinstance(seen.raised, BranchErrors)
    assert error in seen.raised.exceptions
    assert len(seen.raised.exceptions) == 2


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, FIRST_SUCCESS], ids=repr)
def test_errors_of_cleanup_stand_beside_the_bodys_own(policy: Policy) -> None:
    async def program() -> None:
        of_body, of_cleanup = LookupError("body"), ValueError("cleanup")
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(policy=policy) as nursery:
                nursery.start_soon("a", fail_when_stopped, of_cleanup)
                await until_nothing_is_ready()
                raise of_body
        assert caught.value.exceptions == (of_body, of_cleanup)
        assert caught.value.result is nursery.result

    run_in_many_orders(program)


@pytest.mark.parametrize("stop", CHAINING, ids=str)
def test_errors_of_cleanup_are_the_cause(stop: Stop) -> None:
    error = ValueError("cleanup")
    seen = run(stopped_step_with_more_room, stop, True, error)
    assert seen.raised is not None
    cause = seen.raised.__cause__
    assert isinstance(cause, BranchErrors)
    assert cause.exceptions == (error,)
    assert cause.result is seen.nursery.result


@pytest.mark.parametrize("stop", CHAINING, ids=str)
def test_without_errors_there_is_no_cause(stop: Stop) -> None:
    seen = run(stopped_step, stop, True)
    assert seen.raised is not None
    assert seen.raised.__cause__ is None


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, FIRST_SUCCESS], ids=repr)
def test_an_error_met_at_the_deadline_is_shown_whoever_goes_first(policy: Policy) -> None:
    async def program() -> None:
        error = ValueError("cleanup")
        with pytest.raises(StepTimeout) as caught:
            async with open_branch_nursery(policy=policy, fail_after=1) as nursery:
                nursery.start_soon("raises", fail_when_stopped, error)
                nursery.start_soon("other", trio.sleep_forever)
        assert isinstance(caught.value.__cause__, BranchErrors)
        assert caught.value.__cause__.exceptions == (error,)
        assert nursery.result["raises"].status is FAILED
        assert nursery.result.stop_reason == "step timed out after 1 s"

    run_in_many_orders(program)


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT], ids=repr)
def test_a_deadline_that_only_met_an_error_is_still_a_timeout(policy: Policy) -> None:
    """The one branch was cut short, and its cleanup raised: the error does not hide the timeout."""

    async def program() -> None:
        error = ValueError("cleanup")
        with pytest.raises(StepTimeout) as caught:
            async with open_branch_nursery(policy=policy, fail_after=1) as nursery:
                nursery.start_soon("raises", fail_when_stopped, error)
        assert isinstance(caught.value.__cause__, BranchErrors)
        assert caught.value.__cause__.exceptions == (error,)

    run_in_many_orders(program)


async def test_move_on_after_raises_what_the_policy_raises(autojump_clock: MockClock) -> None:
    error = ValueError("cleanup")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(move_on_after=1) as nursery:
            nursery.start_soon("raises", fail_when_stopped, error)
            nursery.start_soon("slow", trio.sleep_forever)
    assert caught.value.exceptions == (error,)
    assert statuses(nursery.result) == {"raises": FAILED, "slow": TIMED_OUT}


async def test_move_on_after_keeps_what_collect_collects(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(move_on_after=1, policy=COLLECT) as nursery:
        nursery.start_soon("raises", fail_when_stopped, ValueError("cleanup"))
        nursery.start_soon("slow", trio.sleep_forever)
    assert statuses(nursery.result) == {"raises": FAILED, "slow": TIMED_OUT}
    assert not nursery.result.success


async def test_an_error_of_the_body_leaves_in_a_group_even_alone() -> None:
    error = LookupError("body")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            raise error
    assert caught.value.exceptions == (error,)
    assert caught.value.result is nursery.result
    assert str(caught.value) == "errors in 'step' (1 sub-exception)"


async def test_a_group_that_the_body_raises_stays_nested() -> None:
    group = ExceptionGroup("mine", [ExceptionGroup("inner", [ValueError(1)]), KeyError(2)])
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery():
            raise group
    assert caught.value.exceptions == (group,)
    assert isinstance(group.exceptions[0], ExceptionGroup)


async def test_a_group_of_the_users_own_type_that_the_body_raises_keeps_it() -> None:
    class Mine(ExceptionGroup[ValueError]):
        pass

    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery():
            raise Mine("mine", [ValueError(1)])
    assert type(caught.value.exceptions[0]) is Mine


async def test_a_group_that_a_branch_raises_stays_nested() -> None:
    group = ExceptionGroup("mine", [ExceptionGroup("inner", [ValueError(1)]), KeyError(2)])
    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: fail(group)})
    assert caught.value.exceptions == (group,)


async def test_a_failed_step_in_a_branch_is_a_group_in_the_group() -> None:
    error = ValueError("deep")

    async def nested() -> None:
        await run_branches({"deep": lambda: fail(error)}, BranchLimiter(1), name="inner")

    with pytest.raises(BranchErrors) as caught:
        await run_branches({"outer": nested}, name="outer")
    (inner,) = caught.value.exceptions
    assert isinstance(inner, BranchErrors)
    assert inner.exceptions == (error,)
    assert inner.result is not None
    assert inner.result.name == "inner"
    assert caught.value.result is not None
    assert caught.value.result.name == "outer"


def test_two_failures_at_once_are_both_in_the_group() -> None:
    async def program() -> None:
        first, second = ValueError(1), ValueError(2)
        go = trio.Event()

        async def fails(error: Exception) -> None:
            await go.wait()
            raise error

        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", fails, first)
                nursery.start_soon("b", fails, second)
                await until_nothing_is_ready()
                go.set()
        assert caught.value.exceptions == (first, second)

    run_in_many_orders(program)


async def test_an_error_whose_str_raises_is_shown_like_any_other() -> None:
    error = UnprintableError()
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", fail, error)
            nursery.start_soon("b", trio.sleep_forever)
    assert caught.value.exceptions == (error,)
    assert isinstance(nursery.result["a"].feedback, str)
    assert isinstance(nursery.result.to_dict(), dict)
    assert_complete(nursery, "a", "b")


async def test_an_error_of_the_body_whose_str_raises_is_shown_like_any_other() -> None:
    error = UnprintableError()
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("b", trio.sleep_forever)
            raise error
    assert caught.value.exceptions == (error,)
    assert_complete(nursery, "b")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


# ---------------------------------------------------------------- groups with Cancelled in them


async def fails_beside_a_sleeper(error: Exception) -> None:
    """A nursery of the branch's own: what leaves it is a group."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fail_when_stopped, error)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_branch_whose_own_nursery_met_an_error_has_failed_with_the_group(stop: Stop) -> None:
    """Out comes a group of Cancelled and the error: the Cancelled goes its way, the group stays."""
    error = ValueError("cleanup")

    async def program() -> Seen:
        return await stopped_step(stop, True, groups=(fails_beside_a_sleeper, error))

    seen = run(program)
    groups = seen.nursery.result["groups"]
    assert groups.status is FAILED
    assert type(groups.exception) is ExceptionGroup
    assert groups.exception.exceptions == (error,)
    if stop.name == "outer cancellation":
        assert isinstance(seen.raised, BaseExceptionGroup)
        rest = seen.raised.split(trio.Cancelled)[1]
        assert rest is not None
        assert isinstance(rest.exceptions[0], ExceptionGroup)
        assert rest.exceptions[0].exceptions == (error,)
    elif stop.name == "move_on_after":  # the policy raises it
        assert isinstance(seen.raised, BranchErrors)
    else:
        assert type(seen.raised) is (stop.raised or type(None))


async def test_a_cancelled_branch_whose_own_nursery_met_an_error_has_failed_with_the_group() -> (
    None
):
    error = ValueError("cleanup")
    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        branch = nursery.start_soon("a", fails_beside_a_sleeper, error)
        nursery.start_soon("b", give, 1)
        await until_nothing_is_ready()
        assert branch.cancel()
    ended = nursery.result["a"]
    assert ended.status is FAILED
    assert type(ended.exception) is ExceptionGroup
    assert ended.exception.exceptions == (error,)
    assert nursery.result.outputs == {"b": 1}


# ---------------------------------------------------------------- cancellation from outside


async def test_an_outer_cancellation_goes_through_and_all_cleanup_is_done(
    autojump_clock: MockClock,
) -> None:
    log: list[str] = []
    with trio.move_on_after(1) as outer:
        async with open_branch_nursery(2) as nursery:
            nursery.start_soon("a", clean_up_for, 3, log)
            nursery.start_soon("b", clean_up_for, 5, log)
            nursery.start_soon("c", clean_up_for, 7, log)
        pytest.fail("the block was left as if nothing had happened")
    assert outer.cancelled_caught
    assert trio.current_time() - nursery.result.opened_at == 6
    assert log == ["cleaned up", "cleaned up"]
    assert statuses(nursery.result) == {"a": CANCELLED, "b": CANCELLED, "c": SKIPPED}
    assert_complete(nursery, "a", "b", "c")


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, FIRST_SUCCESS], ids=repr)
async def test_it_is_the_very_cancelled_that_goes_through(policy: Policy) -> None:
    with trio.CancelScope() as outer:
        outer.cancel()
        with pytest.raises(trio.Cancelled) as caught:
            async with open_branch_nursery(policy=policy):
                try:
                    await trio.sleep_forever()
                except trio.Cancelled as exc:
                    cancelled = exc
                    raise
        assert caught.value is cancelled
        raise cancelled


async def test_errors_of_cleanup_leave_beside_the_outer_cancelled_in_one_group() -> None:
    error = ValueError("cleanup")
    with trio.CancelScope() as outer, pytest.raises(BaseExceptionGroup) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("raises", fail_when_stopped, error)
            nursery.start_soon("sleeps", trio.sleep_forever)
            await until_nothing_is_ready()
            outer.cancel()
    cancelled, rest = caught.value.split(trio.Cancelled)
    assert cancelled is not None
    assert len(cancelled.exceptions) == 1
    assert isinstance(rest, BranchErrors)
    assert rest.exceptions == (error,)
    assert rest.result is nursery.result
    assert statuses(nursery.result) == {"raises": FAILED, "sleeps": CANCELLED}


async def test_once_the_outer_scope_has_its_cancelled_branch_errors_are_left() -> None:
    error = ValueError("cleanup")
    with pytest.raises(BranchErrors) as caught, trio.CancelScope() as outer:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("raises", fail_when_stopped, error)
            await until_nothing_is_ready()
            outer.cancel()
    assert caught.value.exceptions == (error,)
    assert caught.value.result is nursery.result


async def test_errors_that_collect_keeps_do_not_leave_beside_the_outer_cancelled() -> None:
    with trio.CancelScope() as outer:
        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("raises", fail_when_stopped, ValueError("cleanup"))
            await until_nothing_is_ready()
            outer.cancel()
    assert outer.cancelled_caught
    assert nursery.result["raises"].status is FAILED


async def test_an_error_of_the_body_under_an_outer_cancellation_is_not_lost() -> None:
    error = LookupError("body")
    with pytest.raises(BranchErrors) as caught, trio.CancelScope() as outer:
        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("sleeps", trio.sleep_forever)
            await until_nothing_is_ready()
            outer.cancel()
            try:
                await trio.sleep_forever()
            finally:
                raise error
    assert caught.value.exceptions == (error,)
    assert nursery.result["sleeps"].status is CANCELLED


async def test_a_body_that_ends_in_a_group_of_cancelled_and_errors_loses_neither() -> None:
    error = ValueError("cleanup")
    with pytest.raises(BranchErrors) as caught, trio.CancelScope() as outer:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("sleeps", trio.sleep_forever)
            async with trio.open_nursery() as own:
                own.start_soon(trio.sleep_forever)
                own.start_soon(fail_when_stopped, error)
                await until_nothing_is_ready()
                outer.cancel()
    assert outer.cancelled_caught
    (group,) = caught.value.exceptions
    assert type(group) is ExceptionGroup
    assert group.exceptions == (error,)


async def test_a_breach_whose_unwinding_is_cancelled_from_outside_lets_cancelled_through(
    autojump_clock: MockClock,
) -> None:
    with trio.move_on_after(2) as outer:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", clean_up_for, 5)
            await trio.sleep(1)
            nursery.breach("first")
    assert outer.cancelled_caught
    assert nursery.result["a"].status is BREACHED
    assert nursery.result.stop_reason == "first"


async def test_what_is_cancelled_before_it_starts_runs_nothing() -> None:
    with trio.CancelScope() as outer:
        outer.cancel()
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", give, 1)
    assert outer.cancelled_caught
    assert nursery.result["a"].status is SKIPPED
    assert nursery.result["a"].reason == "cancelled from outside"


# ---------------------------------------------------------------- a step in a branch


async def nested_sleepers(inner: dict[str, BranchNursery], error: Exception | None = None) -> None:
    async with open_branch_nursery(BranchLimiter(2), name="inner") as nursery:
        inner["nursery"] = nursery
        nursery.start_soon("sleeps", trio.sleep_forever)
        if error is None:
            nursery.start_soon("sleeps too", trio.sleep_forever)
        else:
            nursery.start_soon("raises", fail_when_stopped, error)
        nursery.start_soon("waits", trio.sleep_forever)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_only_the_outermost_stopped_step_raises_its_own(stop: Stop) -> None:
    inner: dict[str, BranchNursery] = {}
    seen = run(lambda: stopped_step(stop, True, nests=(nested_sleepers, inner)))
    assert type(seen.raised) is (stop.raised or type(None))
    assert seen.nursery.result["nests"].status is stop.running
    assert seen.nursery.result["nests"].exception is None
    nested = inner["nursery"].result
    assert statuses(nested) == {"sleeps": CANCELLED, "sleeps too": CANCELLED, "waits": SKIPPED}
    assert nested.stop_reason == "cancelled from outside"
    assert_complete(inner["nursery"], "sleeps", "sleeps too", "waits")


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_errors_of_a_nested_step_that_is_stopped_stay_in_a_group_of_their_own(stop: Stop) -> None:
    inner: dict[str, BranchNursery] = {}
    error = ValueError("cleanup")
    seen = run(lambda: stopped_step(stop, True, nests=(nested_sleepers, inner, error)))
    nests = seen.nursery.result["nests"]
    assert nests.status is FAILED
    assert isinstance(nests.exception, BranchErrors)
    assert nests.exception.exceptions == (error,)
    assert nests.exception.result is inner["nursery"].result


async def test_a_cancelled_branch_takes_its_nested_step_with_it() -> None:
    inner: dict[str, BranchNursery] = {}
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("nests", nested_sleepers, inner)
        nursery.start_soon("next", give, 1)
        await until_nothing_is_ready()
        branch.cancel("away")
    assert statuses(nursery.result) == {"nests": CANCELLED, "next": SUCCEEDED}
    assert inner["nursery"].result.stop_reason == "cancelled from outside"


async def test_a_nested_step_that_times_out_fails_its_branch_alone(
    autojump_clock: MockClock,
) -> None:
    async def nests() -> None:
        await run_branches({"deep": trio.sleep_forever}, BranchLimiter(1), fail_after=1)

    result = await run_branches({"nests": nests, "b": lambda: give_after(2, 1)}, policy=COLLECT)
    assert statuses(result) == {"nests": FAILED, "b": SUCCEEDED}
    assert type(result["nests"].exception) is StepTimeout
    assert result["nests"].exception.result is not None
    assert result["nests"].exception.result["deep"].status is TIMED_OUT


async def test_a_nested_step_that_is_breached_fails_its_branch_alone() -> None:
    async def nests() -> None:
        async with open_branch_nursery(BranchLimiter(1)) as nursery:
            nursery.breach("inside")

    result = await run_branches({"nests": nests, "b": lambda: give(1)}, policy=COLLECT)
    assert statuses(result) == {"nests": FAILED, "b": SUCCEEDED}
    assert type(result["nests"].exception) is Breached


# ---------------------------------------------------------------- nothing outlives the block


@table
def test_the_block_waits_for_all_cleanup(stop: Stop, body_waits: bool) -> None:
    log: list[str] = []
    seen = run(lambda: stopped_step(stop, body_waits, cleans=(clean_up_for, 9, log)))
    assert log == ["cleaned up"]
    assert seen.nursery.result["cleans"].ended_at - seen.nursery.result.opened_at == 10
    assert seen.nursery.result["cleans"].status is stop.running


@table
def test_after_the_block_nothing_can_be_submitted(stop: Stop, body_waits: bool) -> None:
    async def program() -> None:
        seen = await stopped_step(stop, body_waits)
        with pytest.raises(RuntimeError, match="is closed: its block has been left"):
            seen.nursery.start_soon("late", give, 1)
        assert "late" not in seen.nursery.result

    run(program)


async def test_an_empty_step_ends_well() -> None:
    async with open_branch_nursery() as nursery:
        assert nursery.statistics().ended == 0
    assert len(nursery.result) == 0
    assert nursery.result.success
    assert nursery.result.feedback is None
    assert (await run_branches({})).outputs == {}


async def test_an_empty_step_can_be_breached() -> None:
    with pytest.raises(Breached, match="empty") as caught:
        async with open_branch_nursery() as nursery:
            nursery.breach("empty")
    assert caught.value.result is nursery.result
    assert len(nursery.result) == 0


async def test_an_empty_step_that_waits_in_its_body_can_time_out(autojump_clock: MockClock) -> None:
    with pytest.raises(StepTimeout, match=r"^'idle': step timed out after 1 s$"):
        async with open_branch_nursery(fail_after=1, name="idle"):
            await trio.sleep_forever()


async def test_a_branch_can_submit_to_a_block_whose_body_has_ended() -> None:
    async def submits(nursery: BranchNursery, n: int) -> int:
        await trio.lowlevel.checkpoint()
        if n:
            nursery.start_soon(n - 1, submits, nursery, n - 1)
        return n

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon(3, submits, nursery, 3)
    assert nursery.result.outputs == {3: 3, 2: 2, 1: 1, 0: 0}


# ---------------------------------------------------------------- scopes left open


async def ticks(seconds: float) -> AsyncIterator[int]:
    with trio.move_on_after(seconds):
        while True:
            yield 1
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("then", ["returns", "raises", "sleeps into the scope's deadline"])
def test_a_scope_left_open_fails_its_branch_and_not_the_next(then: str) -> None:
    half_consumed = []

    async def leaves_a_scope_open() -> None:
        generator = ticks(1)
        half_consumed.append(generator)
        async for _ in generator:
            break
        if then == "raises":
            raise ValueError("mine")
        if then != "returns":
            await trio.sleep(5)

    async def program() -> ParallelResult[str, Any]:
        branches: dict[str, Callable[[], Awaitable[Any]]] = {
            "before": lambda: give_after(1, 0),
            "leaves": leaves_a_scope_open,
            "next": lambda: give_after(10, 1),
            "after": lambda: give_after(10, 2),
        }
        limiter = BranchLimiter(1)
        result = await run_branches(branches, limiter, policy=COLLECT)
        assert_idle(limiter)
        return result

    result = run(program)
    assert statuses(result) == {
        "before": SUCCEEDED,
        "leaves": FAILED,
        "next": SUCCEEDED,
        "after": SUCCEEDED,
    }
    error = result["leaves"].exception
    assert type(error) is RuntimeError
    assert str(error) == "'leaves' left a cancel scope or nursery of its own open in its task"
    assert result["after"].duration == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_nursery_left_open_stops_the_step_and_is_told_as_that() -> None:
    """trio can't end a task that left one: it cancels all that are beside it."""
    left: list[AsyncGenerator[None, None]] = []

    async def opens_a_nursery() -> AsyncGenerator[None, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield

    async def leaves_it_open() -> None:
        left.append(opens_a_nursery())
        await left[0].asend(None)

    async def program() -> None:
        with pytest.RaisesGroup(
            pytest.RaisesExc(RuntimeError, match="Nursery stack corrupted")
        ) as caught:
            branches = {"leaves": leaves_it_open, "next": trio.sleep_forever}
            await run_branches(branches, 1, policy=COLLECT)
        result = caught.value.result  # type: ignore[attr-defined]
        assert result["leaves"].status is FAILED
        assert result["next"].status is SKIPPED
        assert result.stop_reason == "a task that branches ran in could not be ended"

    run(program)


async def test_a_generator_that_is_closed_in_time_is_no_trouble() -> None:
    async def closes_it() -> int:
        generator = ticks(1)
        async for tick in generator:
            await generator.aclose()  # type: ignore[attr-defined]
            return tick
        raise AssertionError("unreachable")

    assert (await run_branches({"a": closes_it, "b": closes_it}, 1)).outputs == {"a": 1, "b": 1}


# ---------------------------------------------------------------- breach, from within


async def test_a_branch_can_breach_its_own_step() -> None:
    async def breaches(nursery: BranchNursery) -> None:
        nursery.breach("from within")
        await trio.sleep_forever()

    with pytest.raises(Breached, match="from within") as caught:
        async with open_branch_nursery(2) as nursery:
            nursery.start_soon("a", breaches, nursery)
            nursery.start_soon("b", trio.sleep_forever)
            nursery.start_soon("c", trio.sleep_forever)
    assert caught.value.reason == "from within"
    result = nursery.result
    assert statuses(result)["a"] is BREACHED
    assert statuses(result)["c"] is SKIPPED


async def test_an_outer_step_on_the_same_breach_raises_for_the_inner_one() -> None:
    breach = Breach()

    async def nests() -> None:
        await run_branches({"deep": trio.sleep_forever}, BranchLimiter(1), breach=breach)

    with pytest.raises(Breached, match="both") as caught:
        async with open_branch_nursery(breach=breach) as nursery:
            nursery.start_soon("nests", nests)
            await until_nothing_is_ready()
            breach.trip("both")
    assert caught.value.__cause__ is None
    assert nursery.result["nests"].status is BREACHED


async def test_work_that_shields_itself_is_waited_for(autojump_clock: MockClock) -> None:
    with pytest.raises(StepTimeout) as caught:
        await run_branches(
            {"shielded": lambda: give_in_spite_of_all(5, 1), "slow": trio.sleep_forever},
            fail_after=1,
        )
    assert caught.value.result is not None
    assert caught.value.result.outputs == {"shielded": 1}


async def test_a_body_that_leaves_a_scope_of_its_own_open_is_told_by_trio(
    autojump_clock: MockClock,
) -> None:
    async def numbers() -> AsyncIterator[int]:
        with trio.move_on_after(9):
            yield 1

    generator = numbers()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", give, 1)
            await anext(generator)
    assert "Cancel scope stack corrupted" in str(caught.value.exceptions[0])
    assert nursery.result["a"].status is SUCCEEDED


async def test_a_branch_that_leaves_a_nursery_of_its_own_open_is_told_by_trio(
    autojump_clock: MockClock,
) -> None:
    """Its task can't be saved, but every branch is accounted for."""

    async def numbers() -> AsyncIterator[int]:
        async with trio.open_nursery():
            yield 1

    async def leaves_it_open() -> None:
        kept.append(numbers())
        await anext(kept[0])

    kept: list[AsyncIterator[int]] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", leaves_it_open)
            nursery.start_soon("b", give, 1)
    assert "stack corrupted" in repr(caught.value)
    assert nursery.result["a"].status is FAILED
    assert list(nursery.result) == ["a", "b"]
