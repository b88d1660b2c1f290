"""The first request to stop is the cause; the code decides the ending.  And what was meant for one
branch never reaches the next in the same place.

Each program runs under many schedules: whoever goes first among tasks that are ready at once, the
story is the same.
"""

import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
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
    Decision,
    Policy,
    StepResult,
    StepTimeout,
    Tally,
    current_branch,
    open_branch_nursery,
    run_branches,
    until,
)
from trio_parallel_steps.abc import Observer

# ---------------------------------------------------------------- the first cause wins, in pairs


@attrs.frozen
class Cause:
    """A way to stop the branch 'it', alone or with its step, at a given time."""

    name: str
    status: BranchStatus
    reason: str
    raised: type[BaseException] | None = None
    stops_step: bool = True
    at: Callable[[float], dict[str, Any]] = lambda when: {}
    timeout: bool = False
    act: Callable[["Stage"], object] | None = None
    trigger: Callable[[float], Awaitable[object]] | None = None

    def __str__(self) -> str:
        return self.name


@attrs.define
class Stage:
    nursery: BranchNursery
    outer: trio.CancelScope
    breach: Breach


CANCEL = Cause(
    "cancel",
    CANCELLED,
    "by cancel",
    stops_step=False,
    act=lambda stage: stage.nursery.cancel("it", "by cancel"),
)
RULE = Cause(
    "rule",
    CANCELLED,
    "'rule' succeeded: 'rule' cancels 'it'",
    stops_step=False,
    trigger=lambda when: give_after(when, 1),
)
SATISFIED = Cause(
    "satisfied",
    CANCELLED,
    "policy satisfied by 'satisfied'",
    stops_step=False,
    trigger=lambda when: give_after(when, 1),
)
TIMEOUT = Cause("timeout", TIMED_OUT, "timed out after {} s", BranchErrors, False, timeout=True)
POLICY = Cause(
    "policy",
    CANCELLED,
    "policy failed: 'policy' failed: OSError: policy",
    BranchErrors,
    trigger=lambda when: fail_after(when, OSError("policy")),
)
BODY = Cause("body", CANCELLED, "the body raised LookupError: body", BranchErrors)
FAIL_AFTER = Cause(
    "fail_after",
    TIMED_OUT,
    "step timed out after {} s",
    StepTimeout,
    at=lambda when: {"fail_after": when},
)
MOVE_ON_AFTER = Cause(
    "move_on_after",
    TIMED_OUT,
    "step timed out after {} s",
    at=lambda when: {"move_on_after": when},
)
BREACH = Cause(
    "breach",
    BREACHED,
    "by breach",
    Breached,
    act=lambda stage: stage.nursery.breach("by breach"),
)
SHARED_BREACH = Cause(
    "shared breach",
    BREACHED,
    "by trip",
    Breached,
    act=lambda stage: stage.breach.trip("by trip"),
)
OUTSIDE = Cause(
    "outside",
    CANCELLED,
    "cancelled from outside",
    trio.Cancelled,
    act=lambda stage: stage.outer.cancel(),
)
CAUSES = [
    CANCEL,
    RULE,
    SATISFIED,
    TIMEOUT,
    POLICY,
    BODY,
    FAIL_AFTER,
    MOVE_ON_AFTER,
    BREACH,
    SHARED_BREACH,
    OUTSIDE,
]


class FailFastOrSatisfied:
    """As FAIL_FAST, but satisfied by the branch that is to satisfy."""

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        if key == "satisfied" and result.success:
            return Decision.SATISFIED
        failed = result.status in (FAILED, TIMED_OUT)
        return Decision.FAILED if failed else Decision.GO_ON


async def stopped_twice(
    first: Cause, second: Cause, times: tuple[float, float], it: Callable[[], Awaitable[Any]]
) -> tuple[BranchNursery, BaseException | None]:
    """'it' is stopped by `first` at times[0] and by `second` at times[1]; its body decides when it
    hears of it."""
    causes = dict(
        zip((first.name, second.name), zip((first, second), times, strict=True), strict=True)
    )
    options: dict[str, Any] = {}
    timeout = float("inf")
    raised: BaseException | None = None
    for cause, when in causes.values():
        options |= cause.at(when)
        timeout = when if cause.timeout else timeout
    breach = Breach()
    with trio.CancelScope() as outer:
        async with trio.open_nursery() as beside:
            manager = open_branch_nursery(
                policy=FailFastOrSatisfied(),
                breach=breach,
                cancel_rules=[CancelRule("rule", "it")],
                **options,
            )
            nursery = await manager.__aenter__()
            stage = Stage(nursery, outer, breach)
            nursery.start_soon("it", it, timeout=timeout)
            for name, (cause, when) in causes.items():
                if cause.trigger is not None:
                    nursery.start_soon(name, cause.trigger, when)
                if cause.act is not None:
                    beside.start_soon(act_at, when, cause.act, stage)
            exc: BaseException | None = None
            try:
                if "body" in causes:
                    await trio.sleep(causes["body"][1])
                    raise LookupError("body")
            except (trio.Cancelled, LookupError) as left:
                exc = left
            try:
                swallowed = await manager.__aexit__(type(exc) if exc else None, exc, None)
                assert swallowed or exc is None
            except BaseException as left:
                raised = left
            beside.cancel_scope.cancel()
    return nursery, raised


async def act_at(when: float, act: Callable[[Stage], object], stage: Stage) -> None:
    await trio.sleep(when)
    act(stage)


PAIRS = [
    pytest.param(first, second, id=f"{first} before {second}")
    for first, second in itertools.permutations(CAUSES, 2)
    if {first, second} != {FAIL_AFTER, MOVE_ON_AFTER}
    # What is raised or satisfied by a branch that was told to stop never comes to be.
    if not (first.stops_step and second.trigger is not None)
    if not (first is SATISFIED and second.trigger is not None)
    if not (first.stops_step and second is BODY)
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_first_cause_wins(first: Cause, second: Cause) -> None:
    """Both come while the branch can't hear them; then only Cancelled comes out of it."""

    async def program() -> tuple[BranchNursery, BaseException | None]:
        return await stopped_twice(first, second, (1, 2), lambda: clean_up_for_all(4))

    for nursery, _ in run_in_many_orders(program, orders=4):
        it = nursery.result["it"]
        assert it.status is first.status
        assert it.reason == first.reason.format(1)
        assert_idle(nursery.limiter)


async def clean_up_for_all(seconds: float) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    await trio.sleep_forever()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_what_returns_after_two_causes_has_succeeded(first: Cause, second: Cause) -> None:
    async def program() -> tuple[BranchNursery, BaseException | None]:
        return await stopped_twice(first, second, (1, 2), lambda: give_in_spite_of_all(4, "kept"))

    for nursery, _ in run_in_many_orders(program, orders=4):
        assert nursery.result["it"].status is SUCCEEDED
        assert nursery.result["it"].output == "kept"


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_what_raises_after_two_causes_has_failed(first: Cause, second: Cause) -> None:
    error = ValueError("its own")

    async def fails() -> None:
        await give_in_spite_of_all(4, None)
        raise error

    async def program() -> tuple[BranchNursery, BaseException | None]:
        return await stopped_twice(first, second, (1, 2), fails)

    for nursery, _ in run_in_many_orders(program, orders=4):
        assert nursery.result["it"].status is FAILED
        assert nursery.result["it"].exception is error


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_block_raises_for_the_first_cause_that_stops_it(first: Cause, second: Cause) -> None:
    async def program() -> tuple[BranchNursery, BaseException | None]:
        return await stopped_twice(first, second, (1, 2), lambda: clean_up_for(4))

    raised = first.raised
    if second in (FAIL_AFTER, MOVE_ON_AFTER):
        pass  # 'it' was told to stop already: nothing is left to be cut short
    elif not first.stops_step and second.stops_step:
        raised = second.raised
    elif second is SATISFIED:
        raised = None  # before 'it' has ended and counts as a failure
    if OUTSIDE in (first, second):
        raised = trio.Cancelled
    for _, left in run_in_many_orders(program, orders=4):
        if isinstance(left, BaseExceptionGroup) and raised is trio.Cancelled:
            left = left.split(trio.Cancelled)[0]
            assert left is not None
        else:
            assert type(left) is (raised or type(None))


# ---------------------------------------------------------------- the deadline that cut nothing


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
async def test_a_deadline_that_cut_nothing_short_is_no_timeout(
    option: str, autojump_clock: MockClock
) -> None:
    options: Any = {option: 1}
    result = await run_branches({"a": lambda: give_in_spite_of_all(5, 1)}, **options)
    assert result.outputs == {"a": 1}
    assert result.success
    assert result.stop_reason is None


async def test_a_failure_past_the_deadline_is_raised_as_the_policy_would(
    autojump_clock: MockClock,
) -> None:
    error = LookupError("body")
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(fail_after=1):
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            raise error
    assert caught.value.exceptions == (error,)


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
def test_a_deadline_that_cut_nothing_short_hides_no_missed_goal(option: str) -> None:
    """All branches failed and the body ended by themselves: it is the goal that was missed."""
    error = ValueError("no")

    async def program() -> None:
        options: Any = {option: 5}
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(policy=FIRST_SUCCESS, **options) as nursery:
                nursery.start_soon("a", fail_after, 1, error)
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)
        assert caught.value.exceptions == (error,)
        assert not nursery.result.success

    run_in_many_orders(program)


@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
def test_a_deadline_in_a_satisfied_steps_cleanup_does_not_take_its_reason(option: str) -> None:
    async def program() -> None:
        options: Any = {option: 5}
        async with open_branch_nursery(policy=FIRST_SUCCESS, **options) as nursery:
            nursery.start_soon("fast", give_after, 1, 1)
            nursery.start_soon("slow", clean_up_for, 9)
        result = nursery.result
        assert result.stop_reason == "policy satisfied by 'fast'"
        assert result["slow"].status is CANCELLED
        assert result["slow"].reason == "policy satisfied by 'fast'"
        assert result.success

    run_in_many_orders(program)


# ---------------------------------------------------------------- in the same instant


def test_cancel_against_return() -> None:
    """Cancelled in the very pass in which it would go on: it returns, or only Cancelled comes out;
    never anything between."""

    async def program() -> BranchStatus:
        async with open_branch_nursery(1) as nursery:
            branch = nursery.start_soon("a", give_after, 1, "value")
            nursery.start_soon("b", give_after, 1, "next")
            await trio.sleep(1)
            told = branch.cancel("race")
        a, b = nursery.result["a"], nursery.result["b"]
        assert b.output == "next"
        if a.status is SUCCEEDED:
            assert a.output == "value"
        else:
            assert told
            assert (a.status, a.reason) == (CANCELLED, "race")
        return a.status

    run_in_many_orders(program)


def test_a_cancel_after_the_return_was_under_way_is_too_late() -> None:
    async def program() -> None:
        go = trio.Event()

        async def returns() -> str:
            await go.wait()
            return "value"

        async with open_branch_nursery(1) as nursery:
            branch = nursery.start_soon("a", returns)
            nursery.start_soon("b", give_after, 1, "next")
            await until_nothing_is_ready()
            go.set()
            assert branch.cancel("it may still return")
        assert nursery.result.outputs == {"a": "value", "b": "next"}

    run_in_many_orders(program)


def test_timeout_against_raise() -> None:
    async def program() -> None:
        error = ValueError("just then")

        async def raises() -> None:
            await give_in_spite_of_all(3, None)
            raise error

        result = await run_branches({"a": raises}, branch_timeout=3, policy=COLLECT)
        assert result["a"].status is FAILED
        assert result["a"].exception is error

    run_in_many_orders(program)


def test_timeout_against_cancel_in_the_same_instant() -> None:
    """The timeout has passed as the clock says, so a cancel at that instant comes second."""

    async def program() -> None:
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon("a", trio.sleep_forever, timeout=3)
            await trio.sleep(3)
            assert not branch.cancel("too late")
        assert nursery.result["a"].status is TIMED_OUT

    run_in_many_orders(program)


def test_step_deadline_against_cancel_in_the_same_instant() -> None:
    async def program() -> None:
        async with open_branch_nursery(move_on_after=3) as nursery:
            branch = nursery.start_soon("a", trio.sleep_forever)
            nursery.start_soon("b", trio.sleep_forever)
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            assert not branch.cancel("too late")
        assert statuses(nursery.result) == {"a": TIMED_OUT, "b": TIMED_OUT}
        assert nursery.result["a"].reason == "step timed out after 3 s"

    run_in_many_orders(program)


def test_step_deadline_against_breach_in_the_same_instant() -> None:
    async def program() -> None:
        with pytest.raises(StepTimeout):
            async with open_branch_nursery(fail_after=3) as nursery:
                nursery.start_soon("a", trio.sleep_forever)
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
                nursery.breach("too late")
        assert nursery.result["a"].status is TIMED_OUT

    run_in_many_orders(program)


def test_outer_cancel_against_cancel_and_breach_in_the_same_instant() -> None:
    async def program() -> None:
        with trio.CancelScope() as outer:
            async with open_branch_nursery() as nursery:
                a = nursery.start_soon("a", trio.sleep_forever)
                await until_nothing_is_ready()
                outer.cancel()
                assert not a.cancel("too late")
                nursery.breach("too late as well")
        assert outer.cancelled_caught
        assert nursery.result["a"].status is CANCELLED
        assert nursery.result["a"].reason == "cancelled from outside"

    run_in_many_orders(program)


def test_breach_against_cancel_in_the_same_instant() -> None:
    async def program() -> None:
        with pytest.raises(Breached, match="first"):
            async with open_branch_nursery() as nursery:
                a = nursery.start_soon("a", trio.sleep_forever)
                b = nursery.start_soon("b", trio.sleep_forever)
                await until_nothing_is_ready()
                assert a.cancel("before")
                nursery.breach("first")
                nursery.breach("second")
                assert not b.cancel("after")
                assert nursery.cancel_where(lambda key: True) == []
        assert statuses(nursery.result) == {"a": CANCELLED, "b": BREACHED}

    run_in_many_orders(program)


def test_breach_against_the_bodys_own_error() -> None:
    async def program() -> None:
        error = LookupError("body")
        with pytest.raises(Breached) as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", trio.sleep_forever)
                nursery.breach("first")
                raise error
        assert isinstance(caught.value.__cause__, BranchErrors)
        assert caught.value.__cause__.exceptions == (error,)

    run_in_many_orders(program)


def test_policy_stop_against_the_bodys_own_error() -> None:
    async def program() -> None:
        of_branch, of_body = ValueError("branch"), LookupError("body")
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", fail, of_branch)
                try:
                    await trio.sleep_forever()
                finally:
                    raise of_body
        assert set(caught.value.exceptions) == {of_branch, of_body}
        assert nursery.result.stop_reason is not None
        assert nursery.result.stop_reason.startswith("policy failed")

    run_in_many_orders(program)


def test_a_satisfied_policy_against_the_bodys_error() -> None:
    async def program() -> None:
        error = LookupError("body")
        with pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
                nursery.start_soon("fast", give_after, 1, 1)
                nursery.start_soon("slow", clean_up_for, 5)
                await trio.sleep(2)
                raise error
        assert caught.value.exceptions == (error,)
        assert statuses(nursery.result) == {"fast": SUCCEEDED, "slow": CANCELLED}
        assert nursery.result["slow"].reason == "policy satisfied by 'fast'"
        assert not nursery.result.success

    run_in_many_orders(program)


def test_a_satisfied_policy_against_a_breach() -> None:
    async def program() -> None:
        with pytest.raises(Breached):
            async with open_branch_nursery(policy=FIRST_SUCCESS) as nursery:
                nursery.start_soon("fast", give_after, 1, 1)
                nursery.start_soon("slow", clean_up_for, 5)
                await trio.sleep(2)
                nursery.breach("after all")
        assert statuses(nursery.result) == {"fast": SUCCEEDED, "slow": CANCELLED}
        assert nursery.result.stop_reason == "after all"

    run_in_many_orders(program)


def test_its_own_timeout_and_the_steps_at_once() -> None:
    """Its own was there first, as it is the nearer one."""

    async def program() -> None:
        async with open_branch_nursery(move_on_after=3, policy=COLLECT) as nursery:
            nursery.start_soon("own", trio.sleep_forever, timeout=3)
            nursery.start_soon("none", trio.sleep_forever)
        own, none = nursery.result["own"], nursery.result["none"]
        assert (own.status, none.status) == (TIMED_OUT, TIMED_OUT)
        assert own.reason == "timed out after 3 s"
        assert type(own.exception) is trio.TooSlowError
        assert none.reason == "step timed out after 3 s"
        assert none.exception is None

    run_in_many_orders(program)


@pytest.mark.parametrize("second", [FAIL_AFTER, MOVE_ON_AFTER, OUTSIDE], ids=str)
def test_its_own_timeout_before_a_stop_that_it_is_the_first_to_hear_of(second: Cause) -> None:
    """The body is shielded: who tells the step of the second cause is the branch."""

    async def program() -> BranchNursery:
        options: Any = second.at(2)
        with trio.CancelScope() as outer:
            if second is OUTSIDE:
                outer.deadline = trio.current_time() + 2
            try:
                async with open_branch_nursery(policy=COLLECT, **options) as nursery:
                    nursery.start_soon("it", clean_up_for_all, 4, timeout=1)
                    nursery.start_soon("other", clean_up_for_all, 5)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(9)
            except StepTimeout:
                pass
        return nursery

    for nursery in run_in_many_orders(program):
        it = nursery.result["it"]
        assert it.status is TIMED_OUT
        assert it.reason == "timed out after 1 s"
        assert type(it.exception) is trio.TooSlowError
        assert nursery.result["other"].status is second.status
        assert nursery.result["other"].reason == second.reason.format(2)


def test_its_own_timeout_after_a_deadline_that_it_is_the_first_to_hear_of() -> None:
    async def program() -> None:
        async with open_branch_nursery(policy=COLLECT, move_on_after=1) as nursery:
            nursery.start_soon("it", clean_up_for_all, 4, timeout=2)
            with trio.CancelScope(shield=True):
                await trio.sleep(9)
        it = nursery.result["it"]
        assert (it.status, it.reason) == (TIMED_OUT, "step timed out after 1 s")
        assert it.exception is None

    run_in_many_orders(program)


def test_its_own_timeout_later_than_the_stop_that_it_is_still_unwinding_from() -> None:
    async def program() -> None:
        with pytest.raises(Breached) as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", clean_up_for, 9, timeout=3)
                await trio.sleep(1)
                nursery.breach("first")
        assert nursery.result["a"].status is BREACHED
        assert caught.value.__cause__ is None

    run_in_many_orders(program)


def test_an_outer_cancellation_that_the_steps_deadline_follows_still_goes_through() -> None:
    async def program() -> None:
        with trio.move_on_after(1) as outer:
            async with open_branch_nursery(fail_after=3) as nursery:
                nursery.start_soon("a", clean_up_for, 9)
            pytest.fail("left as if nothing had happened")
        assert outer.cancelled_caught
        assert nursery.result["a"].status is CANCELLED

    run_in_many_orders(program)


def test_an_outer_deadline_at_the_steps_own_goes_through() -> None:
    async def program() -> None:
        with trio.move_on_after(3) as outer:
            async with open_branch_nursery(fail_after=3) as nursery:
                nursery.start_soon("a", trio.sleep_forever)
        assert outer.cancelled_caught
        assert nursery.result["a"].status in (CANCELLED, TIMED_OUT)

    run_in_many_orders(program)


# ---------------------------------------------------------------- late cancels, one runner


async def test_a_late_cancel_does_not_touch_the_next_branch() -> None:
    async with open_branch_nursery(1) as nursery:
        first = nursery.start_soon("first", give, 1)
        nursery.start_soon("second", check_then, lambda: first.cancel("late"))
        nursery.start_soon("third", give, 3)
    assert nursery.result.outputs == {"first": 1, "second": False, "third": 3}


async def check_then(act: Callable[[], Any]) -> Any:
    answer = act()
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    return answer


ENDS_TOUCHED: dict[str, Callable[[], Awaitable[object]]] = {}


def ends_touched(async_fn: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    ENDS_TOUCHED[async_fn.__name__] = async_fn
    return async_fn


@ends_touched
async def cancels_itself_and_returns() -> None:
    current_branch().cancel()


@ends_touched
async def cancels_itself_and_raises() -> None:
    current_branch().cancel()
    raise ValueError


@ends_touched
async def cancels_itself_and_heeds_it() -> None:
    current_branch().cancel()
    await trio.sleep_forever()


@ends_touched
async def cancels_itself_and_swallows_it() -> None:
    current_branch().cancel()
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return


@ends_touched
async def cancels_itself_in_a_nursery_of_its_own() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        current_branch().cancel()


@ends_touched
async def outlasts_its_timeout() -> None:
    await give_in_spite_of_all(10, None)


@ends_touched
async def heeds_its_timeout() -> None:
    await trio.sleep_forever()


@ends_touched
async def is_just_in_time() -> None:
    await trio.sleep(4.5)


@ends_touched
async def raises_past_its_timeout() -> None:
    await give_in_spite_of_all(10, None)
    raise ValueError


@pytest.mark.parametrize("touched", list(ENDS_TOUCHED))
def test_what_stopped_one_branch_never_reaches_the_next(touched: str) -> None:
    async def program() -> None:
        async with open_branch_nursery(1, policy=COLLECT) as nursery:
            nursery.start_soon("touched", ENDS_TOUCHED[touched], timeout=5)
            nursery.start_soon("next", give_after, 20, 1)
            nursery.start_soon("and the one after", give_after, 20, 2)
        assert nursery.result.outputs.items() >= {"next": 1, "and the one after": 2}.items()
        assert nursery.result["next"].duration == 20

    run_in_many_orders(program)


async def test_a_short_timeout_of_one_branch_does_not_stay_for_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("short", give_after, 1, 1, timeout=2)
        nursery.start_soon("long", give_after, 10, 2)
        nursery.start_soon("short again", trio.sleep_forever, timeout=2)
        nursery.cancel("short again")
        nursery.start_soon("last", give_after, 10, 3)
    assert nursery.result.outputs == {"short": 1, "long": 2, "last": 3}


def test_a_cancel_of_one_that_waits_does_not_touch_the_one_in_its_future_place() -> None:
    async def program() -> None:
        async with open_branch_nursery(2) as nursery:
            for n in range(6):
                nursery.start_soon(n, give_after, 1, n)
            await trio.sleep(1)
            assert nursery.cancel_where(lambda key: key in (4, 5)) == [4, 5]
        assert statuses(nursery.result) == {
            0: SUCCEEDED,
            1: SUCCEEDED,
            2: SUCCEEDED,
            3: SUCCEEDED,
            4: SKIPPED,
            5: SKIPPED,
        }

    run_in_many_orders(program)


# ---------------------------------------------------------------- from an observer


class OnEvent(Observer):
    """Does something, once, when something happens to a branch."""

    def __init__(self, hook: str, key: str, act: Callable[[BranchNursery], object]) -> None:
        self.nursery: BranchNursery
        self.done = False
        setattr(self, hook, self._told)
        self._key = key
        self._act = act

    def step_opened(self, step: BranchNursery) -> None:
        self.nursery = step

    def _told(self, branch: Any, *args: Any) -> None:
        if branch.key == self._key and not self.done:
            self.done = True
            self._act(self.nursery)


HOOKS = ["branch_queued", "branch_started", "branch_ended"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_observer_may_cancel_another_branch(hook: str) -> None:
    observer = OnEvent(hook, "a", lambda nursery: nursery.cancel("other", "observed"))
    async with open_branch_nursery(2, observers=[observer]) as nursery:
        nursery.start_soon("other", trio.sleep_forever)
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b", give, 2)
    assert nursery.result["other"].status in (CANCELLED, SKIPPED)
    assert nursery.result["other"].reason == "observed"
    assert nursery.result.outputs == {"a": 1, "b": 2}
    assert_complete(nursery, "other", "a", "b")


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_observer_may_cancel_the_branch_that_it_is_told_of(hook: str) -> None:
    observer = OnEvent(hook, "a", lambda nursery: nursery.cancel("a", "observed"))
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b", give, 2)
    assert nursery.result["b"].output == 2
    assert (
        nursery.result["a"].status
        is {
            "branch_queued": SKIPPED,
            "branch_started": CANCELLED,
            "branch_ended": SUCCEEDED,
        }[hook]
    )
    assert_complete(nursery, "a", "b")


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_observer_may_breach_the_step(hook: str) -> None:
    observer = OnEvent(hook, "a", lambda nursery: nursery.breach("observed"))
    with pytest.raises(Breached, match="observed"):
        async with open_branch_nursery(1, observers=[observer]) as nursery:
            nursery.start_soon("a", give, 1)
            nursery.start_soon("b", give, 2)
    assert nursery.result["b"].status is SKIPPED
    assert (
        nursery.result["a"].status
        is {
            "branch_queued": SKIPPED,
            "branch_started": BREACHED,
            "branch_ended": SUCCEEDED,
        }[hook]
    )
    assert nursery.statistics().ended == 2
    assert_complete(nursery, "a", "b")


@pytest.mark.parametrize("hook", [*HOOKS, "cancel_requested"])
async def test_an_observer_may_submit(hook: str) -> None:
    observer = OnEvent(hook, "a", lambda nursery: nursery.start_soon("more", give, 3))
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        nursery.start_soon("a", give, 1)
        if hook == "cancel_requested":
            nursery.cancel("a")
    assert nursery.result["more"].output == 3
    assert_complete(nursery, "a", "more")


async def test_a_policy_stopped_by_a_branch_that_an_observer_cancels_as_it_is_queued() -> None:
    """Skipped at once, it ends an `until`; it ends only once."""
    observer = OnEvent("branch_queued", "a", lambda nursery: nursery.cancel("a"))
    policy: Policy = until(lambda key, result: key == "a")
    async with open_branch_nursery(1, observers=[observer], policy=policy) as nursery:
        nursery.start_soon("b", trio.sleep_forever)
        await until_nothing_is_ready()
        nursery.start_soon("a", give, 1)
    assert statuses(nursery.result) == {"b": CANCELLED, "a": SKIPPED}
    assert nursery.statistics().ended == 2
    assert_complete(nursery, "b", "a")


# ---------------------------------------------------------------- nothing starts after a stop


@pytest.mark.parametrize("cause", [BREACH, SHARED_BREACH, OUTSIDE, FAIL_AFTER, MOVE_ON_AFTER])
def test_nothing_starts_after_a_stop(cause: Cause) -> None:
    async def program() -> None:
        started: list[float] = []

        async def starts() -> None:
            started.append(trio.current_time())
            await trio.sleep(0.25)

        breach = Breach()
        opened = trio.current_time()
        with trio.CancelScope() as outer:
            options: Any = cause.at(1)
            try:
                async with open_branch_nursery(2, breach=breach, **options) as nursery:
                    for n in range(40):
                        nursery.start_soon(n, starts)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1)
                    if cause.act is not None:
                        cause.act(Stage(nursery, outer, breach))
                        begun = len(started)
            except (Breached, StepTimeout):
                pass
        if cause.act is not None:
            assert len(started) == begun
        assert all(instant <= opened + 1 for instant in started)

    run_in_many_orders(program)


def test_a_shared_limiter_goes_on_for_others_after_one_step_was_breached() -> None:
    async def program() -> None:
        limiter = BranchLimiter(1)
        breached = []

        async def doomed() -> None:
            with pytest.raises(Breached) as caught:
                async with open_branch_nursery(limiter) as nursery:
                    for n in range(3):
                        nursery.start_soon(n, clean_up_for, 1)
                    await trio.sleep(1)
                    nursery.breach("doomed")
            breached.append(caught.value)

        async with trio.open_nursery() as beside:
            beside.start_soon(doomed)
            await trio.sleep(0.5)
            result = await run_branches({n: lambda n=n: give_after(1, n) for n in "ab"}, limiter)  # type: ignore[misc]
        assert result.outputs == {"a": "a", "b": "b"}
        assert len(breached) == 1
        assert_idle(limiter)

    run_in_many_orders(program)


def test_a_breach_of_what_swallowed_a_cancel_leaves_the_first_cause() -> None:
    async def program() -> None:
        with pytest.raises(Breached):
            async with open_branch_nursery(1) as nursery:
                branch = nursery.start_soon("a", cleans_up_by_sleeping_unshielded)
                await until_nothing_is_ready()
                assert branch.cancel("once")
                await until_nothing_is_ready()
                nursery.breach("now")
        assert nursery.result["a"].status is CANCELLED
        assert nursery.result["a"].reason == "once"

    async def cleans_up_by_sleeping_unshielded() -> None:
        try:
            await give_when_stopped(None)
        finally:
            await trio.sleep_forever()

    run_in_many_orders(program)


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT], ids=repr)
def test_the_block_never_leaves_a_branch_behind(policy: Policy) -> None:
    """Cancels, failures and ends, all in one instant."""

    async def program() -> None:
        with suppress(BranchErrors):
            async with open_branch_nursery(3, policy=policy) as nursery:
                for n in range(9):
                    if n % 3 == 0:
                        nursery.start_soon(n, fail_after, 1, ValueError(n))
                    else:
                        nursery.start_soon(n, give_after, 1, n)
                await trio.sleep(1)
                nursery.cancel_where(lambda key: key % 2 == 0)
        assert_complete(nursery, *range(9))

    run_in_many_orders(program)


def test_programs_are_the_same_under_the_same_schedule() -> None:
    async def program() -> list[tuple[Any, ...]]:
        log: list[tuple[Any, ...]] = []

        class Log(Observer):
            def branch_started(self, branch: Any) -> None:
                log.append(("started", branch.key))

            def branch_ended(self, branch: Any, result: Any) -> None:
                log.append(("ended", branch.key, result.status))

        async with open_branch_nursery(3, policy=COLLECT, observers=[Log()]) as nursery:
            for n in range(20):
                nursery.start_soon(n, give_after, n % 4, n, priority=n % 3)
            await trio.sleep(2)
            nursery.cancel_where(lambda key: key % 5 == 0)
        return log

    assert run_in_many_orders(program) == run_in_many_orders(program)
    assert run(program)
