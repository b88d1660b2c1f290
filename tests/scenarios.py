"""One table of scenarios: programs that know no host, each with what must come of it.

A row is an async function of a `World`.  It opens its steps by `block`, which records what left the
block and what became of every branch; the row's decorator says what that must be, for the step
named 'step', in words: ``a="failed !ValueError: x"``, ``b="cancelled (why)"``,
``c="succeeded =1"``.  `then` is what the function itself returns.

Where trio leaves an order open (it shuffles tasks that are ready at once) no row depends on it, or
says ``ordered=False``.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

import attrs
import pytest

from drivers import World
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    Backpressure,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    Decision,
    ParallelResult,
    Rate,
    Retry,
    StepResult,
    StepTimeout,
    Tally,
    abc,
    check_cancelled,
    current_branch,
    hedged,
    in_thread,
    map_branches,
    open_branch_nursery,
    quorum,
    run_branches,
    tolerate,
    until,
)

Program: TypeAlias = Callable[["Recorder"], Awaitable[Any]]


# ---------------------------------------------------------------- what is seen


@attrs.frozen
class Seen:
    """What came of one step, but for what differs between hosts: clocks' zeros, types' names."""

    left: str
    """what left the block; empty if nothing did"""
    branches: dict[str, str]
    order: tuple[str, ...]
    times: dict[str, tuple[float | None, float]]
    """begin and end, in seconds since the step was opened"""
    attempts: dict[str, int]
    success: bool
    stop_reason: str | None
    peak: int
    feedback: str | None


class Recorder:
    """A world, and what was seen in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: dict[str, Seen] = {}

    def describe(self, exc: BaseException | None) -> str:
        if exc is None:
            return ""
        if isinstance(exc, self.world.cancelled):
            return "Cancelled"
        if isinstance(exc, BaseExceptionGroup):
            inner = ", ".join(self.describe(each) for each in exc.exceptions)
            return f"{type(exc).__name__}[{inner}]"
        text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        return text if exc.__cause__ is None else f"{text} <- {self.describe(exc.__cause__)}"

    def see(self, exc: BaseException | None, result: ParallelResult[Any, Any]) -> Seen:
        opened_at = result.opened_at
        return Seen(
            self.describe(exc),
            {str(key): _ending(ended) for key, ended in result.items()},
            tuple(map(str, result.completion_order)),
            {
                str(key): (
                    None if ended.started_at is None else _since(ended.started_at, opened_at),
                    _since(ended.ended_at, opened_at),
                )
                for key, ended in result.items()
            },
            {str(key): ended.attempts for key, ended in result.items()},
            result.success,
            result.stop_reason,
            result.peak_in_flight,
            result.feedback,
        )


def _since(instant: float, start: float) -> float:
    return round(instant - start, 6)


def _ending(ended: StepResult[Any]) -> str:
    text = ended.status.value
    if ended.output is not None:
        text += f" ={ended.output}"
    if ended.exception is not None:
        text += f" !{type(ended.exception).__name__}: {ended.exception}"
    if ended.reason is not None and ended.status is not BranchStatus.TIMED_OUT:
        text += f" ({ended.reason})"
    return text


async def block(
    r: Recorder,
    body: Callable[[BranchNursery], Awaitable[object]],
    limit: Any = 10,
    **options: Any,
) -> ParallelResult[Any, Any]:
    """Run one step.  What leaves it is recorded, and goes no further, but for a cancellation."""
    name = options.setdefault("name", "step")
    manager = open_branch_nursery(limit, **options)
    nursery: BranchNursery | None = None
    left: BaseException | None = None
    try:
        async with manager as nursery:
            await body(nursery)
    except BaseException as exc:
        left = exc
        _check_carries_result(exc, nursery)
        if _holds(exc, r.world.cancelled):
            raise
    finally:
        if nursery is not None:
            r.seen[name] = r.see(left, nursery.result)
        del left
    assert nursery is not None
    return nursery.result


def _check_carries_result(exc: BaseException, nursery: BranchNursery | None) -> None:
    if nursery is not None and isinstance(exc, BranchErrors | Breached | StepTimeout):
        assert exc.result is nursery.result


def _holds(exc: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(kind) is not None
    return isinstance(exc, kind)


# ---------------------------------------------------------------- the table


@attrs.frozen
class Scenario:
    program: Program
    left: str | None
    branches: Mapping[str, str]
    then: Any
    ordered: bool
    stop_reason: str | None
    time: float | None
    """when the last branch ended"""

    @property
    def name(self) -> str:
        return self.program.__name__


SCENARIOS: Final[list[Scenario]] = []


def row(
    left: str | None = "",
    *,
    then: Any = None,
    ordered: bool = True,
    stop: str | None = None,
    time: float | None = None,
    **branches: str,
) -> Callable[[Program], Program]:
    def add(program: Program) -> Program:
        SCENARIOS.append(Scenario(program, left, branches, then, ordered, stop, time))
        return program

    return add


# ================================================================ endings: the table of design.md


@row(a="succeeded =1", b="succeeded =2", time=2.0)
async def all_return(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.give, 2, 2)

    await block(r, body)


@row()
async def an_empty_step(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        await r.world.sleep(1)

    await block(r, body)


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    time=1.0,
    a="failed !ValueError: x",
    b="cancelled (policy failed: 'a' failed: ValueError: x)",
)
async def a_failure_stops_the_others(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.sleep, 9)

    await block(r, body)


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    time=1.0,
    a="failed !ValueError: x",
    b="skipped (policy failed: 'a' failed: ValueError: x)",
)
async def a_failure_skips_what_is_queued(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.sleep, 9)

    await block(r, body, 1)


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    time=1.0,
    then="cancelled at 1",
    a="failed !ValueError: x",
)
async def a_failure_cancels_the_body(r: Recorder) -> str:
    told = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        start = r.world.now()
        try:
            await r.world.forever()
        except r.world.cancelled:
            told.append(f"cancelled at {round(r.world.now() - start)}")
            raise

    await block(r, body)
    return told[0]


@row(
    "BranchErrors[KeyError: 'body']",
    stop="the body raised KeyError: 'body'",
    time=1.0,
    a="cancelled (the body raised KeyError: 'body')",
    b="skipped (the body raised KeyError: 'body')",
)
async def the_body_raises(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.start_soon("b", r.world.sleep, 9)
        await r.world.sleep(1)
        raise KeyError("body")

    await block(r, body, 1)


@row("BranchErrors[KeyError: 'body']", stop="the body raised KeyError: 'body'")
async def the_body_raises_before_anything(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        raise KeyError("body")

    await block(r, body)


@row(
    "BranchErrors[KeyError: 'body']",
    stop="the body raised KeyError: 'body'",
    a="skipped (the body raised KeyError: 'body')",
)
async def the_body_raises_before_anything_is_admitted(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        raise KeyError("body")

    await block(r, body)


@row(
    "BranchErrors[KeyError: 'body', ValueError: cleanup]",
    stop="the body raised KeyError: 'body'",
    a="failed !ValueError: cleanup",
)
async def cleanup_fails_beside_the_bodys_error(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            raise ValueError("cleanup")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        raise KeyError("body")

    await block(r, body)


@row(
    "BranchErrors[TooSlowError: 'a' timed out after 1.0 s]",
    stop="policy failed: 'a' timed out: TooSlowError: 'a' timed out after 1.0 s",
    time=1.0,
    a="timed_out !TooSlowError: 'a' timed out after 1.0 s",
    b="cancelled (policy failed: 'a' timed out: TooSlowError: 'a' timed out after 1.0 s)",
)
async def a_branchs_own_timeout_is_a_failure(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever, timeout=1.0)
        n.start_soon("b", r.world.forever)

    await block(r, body)


@row(
    time=3.0,
    a="succeeded",
    b="timed_out !TooSlowError: 'b' timed out after 1.0 s",
)
async def a_timeout_runs_from_admission(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 2)
        n.start_soon("b", r.world.forever, timeout=1.0)

    await block(r, body, 1, policy=COLLECT)


@row(a="timed_out !TooSlowError: 'a' timed out after 0.0 s", time=0.0)
async def a_timeout_of_zero_is_legal(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever, timeout=0.0)

    await block(r, body, policy=COLLECT)


@row(a="succeeded =late", time=3.0)
async def a_branch_that_returns_in_spite_of_its_timeout(r: Recorder) -> None:
    async def a() -> str:
        try:
            await r.world.forever()
        except r.world.cancelled:
            async with r.world.shield():
                await r.world.sleep(2)
        return "late"

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a, timeout=1.0)

    await block(r, body)


@row(
    then=(True, False, False),
    time=2.0,
    a="cancelled (enough)",
    b="succeeded",
    c="skipped (not wanted)",
)
async def one_is_cancelled(r: Recorder) -> tuple[bool, bool, bool]:
    told = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.start_soon("b", r.world.sleep, 2)
        n.start_soon("c", r.world.sleep, 9)
        await r.world.sleep(1)
        n.cancel("c", "not wanted")
        told.append(n.cancel("a", "enough"))
        told.append(n.cancel("a", "again"))
        await r.world.sleep(0.5)
        told.append(n["a"].cancel("too late"))

    await block(r, body, 2)
    return told[0], told[1], told[2]


@row(time=1.0, a="cancelled (cancelled)")
async def a_cancel_without_a_reason(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        await r.world.sleep(1)
        n.cancel("a")

    await block(r, body)


@row(a="succeeded =kept", time=1.0)
async def a_branch_that_returns_though_cancelled(r: Recorder) -> None:
    async def a() -> str:
        with suppress(r.world.cancelled):
            await r.world.forever()
        return "kept"

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.cancel("a", "why")

    await block(r, body)


@row(
    "BranchErrors[ValueError: cleanup]",
    stop="policy failed: 'a' failed: ValueError: cleanup",
    a="failed !ValueError: cleanup",
)
async def a_branch_that_raises_though_cancelled(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        except r.world.cancelled:
            raise ValueError("cleanup") from None

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.cancel("a", "why")

    await block(r, body)


@row(a="skipped (early)", b="succeeded", time=1.0)
async def a_cancel_before_admission(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.start_soon("b", r.world.sleep, 1)
        n.cancel("a", "early")

    await block(r, body, 1)


@row(a="cancelled (by itself)", b="succeeded", time=2.0)
async def a_branch_cancels_itself(r: Recorder) -> None:
    async def a() -> None:
        await r.world.sleep(1)
        current_branch().cancel("by itself")
        await r.world.sleep(9)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 2)

    await block(r, body)


@row(a="succeeded =done", time=1.0)
async def a_branch_cancels_itself_and_returns(r: Recorder) -> None:
    async def a() -> str:
        await r.world.sleep(1)
        current_branch().cancel("by itself")
        return "done"

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    await block(r, body)


@row(a="cancelled (by itself)", time=0.0)
async def a_branch_cancels_itself_in_its_first_step(r: Recorder) -> None:
    async def a() -> None:
        current_branch().cancel("by itself")
        await r.world.sleep(9)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    await block(r, body)


@row(
    time=1.0,
    high="succeeded",
    low1="cancelled ('high' succeeded: 'h*' cancels 'low*')",
    low2="skipped ('high' succeeded: 'h*' cancels 'low*')",
)
async def a_rule_cancels(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("high", r.world.sleep, 1)
        n.start_soon("low1", r.world.sleep, 9)
        n.start_soon("low2", r.world.sleep, 9)

    await block(r, body, 2, cancel_rules=[CancelRule("h*", "low*")])


@row(
    time=1.0,
    high="failed !ValueError: x",
    low="cancelled ('high' ended: 'h*' cancels 'low*')",
)
async def a_rule_on_end_cancels_after_a_failure(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("high", r.world.fail, 1, "x")
        n.start_soon("low", r.world.sleep, 9)

    await block(r, body, policy=COLLECT, cancel_rules=[CancelRule("h*", "low*", on="end")])


@row(
    stop="policy satisfied by 'b'",
    time=1.0,
    then="body lives",
    a="cancelled (policy satisfied by 'b')",
    b="succeeded =1",
    c="skipped (policy satisfied by 'b')",
)
async def a_satisfied_policy_leaves_the_body_alone(r: Recorder) -> str:
    lives = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.start_soon("b", r.world.give, 1, 1)
        n.start_soon("c", r.world.sleep, 9)
        await r.world.sleep(3)
        lives.append("body lives")

    await block(r, body, 2, policy=FIRST_SUCCESS)
    return lives[0]


@row(
    "BranchErrors[ValueError: x, ValueError: y]",
    stop="FIRST_SUCCESS can no longer be met",
    a="failed !ValueError: x",
    b="failed !ValueError: y",
)
async def a_first_success_that_does_not_come(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.fail, 2, "y")

    await block(r, body, policy=FIRST_SUCCESS)


@row(
    stop="policy satisfied by 'b'",
    time=2.0,
    a="succeeded =1",
    b="succeeded =2",
    c="cancelled (policy satisfied by 'b')",
    d="failed !ValueError: x",
)
async def a_quorum(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.give, 2, 2)
        n.start_soon("c", r.world.give, 9, 3)
        n.start_soon("d", r.world.fail, 0.5, "x")

    await block(r, body, policy=quorum(2))


@row(
    "BranchErrors[ValueError: x, BranchNotDone: 'b' was cancelled: quorum(2) can no longer be met]",
    stop="quorum(2) can no longer be met",
    time=1.0,
    a="failed !ValueError: x",
    b="cancelled (quorum(2) can no longer be met)",
)
async def a_quorum_out_of_reach(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.sleep, 9)

    await block(r, body, policy=quorum(2))


@row(
    "BranchErrors[ValueError: x, ValueError: y]",
    stop="policy failed: 'b' failed: ValueError: y",
    time=2.0,
    a="failed !ValueError: x",
    b="failed !ValueError: y",
    c="cancelled (policy failed: 'b' failed: ValueError: y)",
)
async def more_failures_than_tolerated(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.fail, 2, "y")
        n.start_soon("c", r.world.sleep, 9)

    await block(r, body, policy=tolerate(1))


@row(
    stop="policy satisfied by 'b'",
    a="succeeded =1",
    b="succeeded =7",
    c="cancelled (policy satisfied by 'b')",
)
async def until_a_result_will_do(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.give, 2, 7)
        n.start_soon("c", r.world.give, 9, 9)

    await block(r, body, policy=until(lambda key, result: (result.output or 0) > 5))


@row(a="failed !ValueError: x", b="succeeded =1", time=2.0)
async def failures_are_collected(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", r.world.give, 2, 1)

    await block(r, body, policy=COLLECT)


class _Raises:
    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        raise LookupError("policy")


@row(
    "BranchErrors[LookupError: policy]",
    stop="the policy raised LookupError: policy",
    a="succeeded",
    b="cancelled (the policy raised LookupError: policy)",
)
async def a_policy_that_raises(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        n.start_soon("b", r.world.sleep, 9)

    await block(r, body, policy=_Raises())


@row(
    "StepTimeout: 'step': step timed out after 2.0 s",
    stop="step timed out after 2.0 s",
    time=2.0,
    a="succeeded =1",
    b="timed_out",
    c="skipped (step timed out after 2.0 s)",
)
async def the_step_fails_after_a_time(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.forever)
        n.start_soon("c", r.world.forever)

    await block(r, body, 1, fail_after=2.0)


@row(
    "",
    stop="step timed out after 2.0 s",
    time=2.0,
    a="succeeded =1",
    b="timed_out",
    c="skipped (step timed out after 2.0 s)",
)
async def the_step_moves_on_after_a_time(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.forever)
        n.start_soon("c", r.world.forever)

    await block(r, body, 1, move_on_after=2.0)


@row("StepTimeout: 'step': step timed out after 2.0 s", stop="step timed out after 2.0 s")
async def a_deadline_cuts_the_body_short(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        await r.world.forever()

    await block(r, body, fail_after=2.0)


@row(a="succeeded", time=1.0)
async def a_deadline_that_cuts_nothing(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)

    await block(r, body, fail_after=2.0)


@row(
    "StepTimeout: 'step': step timed out after 0.0 s",
    stop="step timed out after 0.0 s",
    a="skipped (step timed out after 0.0 s)",
)
async def a_deadline_of_zero(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        await r.world.sleep(1)

    await block(r, body, fail_after=0.0)


@row(
    "StepTimeout: 'step': step timed out after 0.0 s",
    stop="step timed out after 0.0 s",
    a="skipped (step timed out after 0.0 s)",
)
async def a_deadline_that_has_passed_as_the_only_branch_is_submitted(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)

    await block(r, body, fail_after=0.0)


@row(
    "StepTimeout: 'step': step timed out after 2.0 s <- BranchErrors[ValueError: cleanup]",
    stop="step timed out after 2.0 s",
    a="failed !ValueError: cleanup",
    b="timed_out",
    ordered=False,
)
async def cleanup_fails_after_the_deadline(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        except r.world.cancelled:
            raise ValueError("cleanup") from None

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.forever)

    await block(r, body, fail_after=2.0, policy=COLLECT)


@row(
    left=None,
    then=["timed_out", "timed_out"],
)
async def a_timeout_and_the_deadline_at_once(r: Recorder) -> list[str]:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever, timeout=1.0)
        n.start_soon("b", r.world.forever)

    await block(r, body, fail_after=1.0, policy=COLLECT)
    seen = r.seen.pop("step")  # which of the two came first is open
    assert seen.left.startswith("StepTimeout: 'step': step timed out after 1.0 s")
    return [ending.partition(" ")[0] for ending in seen.branches.values()]


@row(
    "Breached: stop it",
    stop="stop it",
    time=1.0,
    a="breached (stop it)",
    b="skipped (stop it)",
    c="skipped (stop it)",
)
async def a_breach(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.start_soon("b", r.world.sleep, 9)
        await r.world.sleep(1)
        n.breach("stop it")
        n.start_soon("c", r.world.sleep, 9)
        n.breach("again")

    await block(r, body, 1)


@row("Breached: now", stop="now", a="skipped (now)")
async def a_breach_before_anything_is_admitted(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 9)
        n.breach("now")

    await block(r, body)


@row("Breached: by a", stop="by a", time=1.0, a="succeeded =1", b="breached (by a)")
async def a_breach_by_a_branch_that_returns(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> int:
            await r.world.sleep(1)
            n.breach("by a")
            return 1

        n.start_soon("a", a)
        n.start_soon("b", r.world.forever)

    await block(r, body)


@row(
    "Breached: by a", stop="by a", time=1.0, a="breached (by a)", b="breached (by a)", ordered=False
)
async def a_breach_by_a_branch_that_goes_on(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            await r.world.sleep(1)
            n.breach("by a")
            await r.world.sleep(9)

        n.start_soon("a", a)
        n.start_soon("b", r.world.forever)

    await block(r, body)


@row("Breached: at once", stop="at once", time=0.0, a="breached (at once)", b="skipped (at once)")
async def a_breach_in_a_branchs_first_step(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            n.breach("at once")
            await r.world.sleep(9)

        n.start_soon("a", a)
        n.start_soon("b", r.world.forever)
        await r.world.forever()

    await block(r, body, 1)


@row(
    "Breached: stop it <- BranchErrors[ValueError: cleanup]",
    stop="stop it",
    a="failed !ValueError: cleanup",
)
async def cleanup_fails_after_a_breach(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            raise ValueError("cleanup")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.breach("stop it")

    await block(r, body)


@row("Breached: stop it", stop="stop it", a="succeeded =kept", b="breached (stop it)", time=3.0)
async def a_breach_waits_for_cleanup(r: Recorder) -> None:
    async def a() -> str:
        try:
            await r.world.forever()
        except r.world.cancelled:
            async with r.world.shield():
                await r.world.sleep(2)
        return "kept"

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.forever)
        await r.world.sleep(1)
        n.breach("stop it")

    await block(r, body)


@row("Breached: both", stop="both", then="Breached: both", a="breached (both)", time=1.0)
async def one_switch_for_two_steps(r: Recorder) -> str:
    switch = Breach()

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)

    async def tripper(n: BranchNursery) -> None:
        n.start_soon("b", r.world.forever)
        await r.world.sleep(1)
        switch.trip("both")

    async def one() -> None:
        await block(r, body, breach=switch)

    async def two() -> None:
        await block(r, tripper, breach=switch, name="other")

    async with r.world.tasks() as start:
        start(one)
        start(two)
    try:
        async with open_branch_nursery(breach=switch):
            raise AssertionError("not opened")
    except Breached as exc:
        assert exc.result is None
    return r.seen["other"].left


@row(
    "Cancelled",
    stop="cancelled from outside",
    then="went on at 2",
    time=2.0,
    a="succeeded =1",
    b="cancelled (cancelled from outside)",
    c="skipped (cancelled from outside)",
)
async def a_cancellation_from_outside(r: Recorder) -> str:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.give, 1, 1)
        n.start_soon("b", r.world.forever)
        n.start_soon("c", r.world.forever)

    start = r.world.now()
    async with r.world.scope(2):
        await block(r, body, 1)
        raise AssertionError("cancelled")
    return f"went on at {round(r.world.now() - start)}"


@row("Cancelled", stop="cancelled from outside", a="cancelled (cancelled from outside)")
async def a_cancellation_from_outside_reaches_the_body(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        await r.world.forever()

    async with r.world.scope(2):
        await block(r, body)


@row(
    "Cancelled",
    stop="cancelled from outside",
    then="TimeoutError at 4",
    a="cancelled (cancelled from outside)",
    time=4.0,
)
async def a_timeout_around_waits_for_cleanup(r: Recorder) -> str:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            async with r.world.shield():
                await r.world.sleep(2)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    start = r.world.now()
    try:
        async with r.world.timeout(2):
            await block(r, body)
    except TimeoutError:
        return f"TimeoutError at {round(r.world.now() - start)}"
    return "nothing"


@row(
    "BaseBranchErrors[Cancelled, ValueError: cleanup]",
    stop="cancelled from outside",
    a="failed !ValueError: cleanup",
)
async def cleanup_fails_under_a_cancellation_from_outside(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            raise ValueError("cleanup")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    try:
        async with r.world.scope(2):
            await block(r, body)
    except* ValueError:
        pass
    except* r.world.cancelled:  # a raw asyncio scope does not look into groups
        pass


@row("Cancelled", stop="cancelled from outside", a="failed !ValueError: cleanup")
async def collected_errors_stay_in_the_result_under_a_cancellation(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            raise ValueError("cleanup")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    async with r.world.scope(2):
        await block(r, body, policy=COLLECT)


@row("Cancelled", stop="stop it", a="breached (stop it)", time=3.0)
async def a_cancellation_from_outside_goes_before_a_breach(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            async with r.world.shield():
                await r.world.sleep(2)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.breach("stop it")

    async with r.world.scope(2):
        await block(r, body)


# ================================================================ budgets and drains

REFUSED = "budget exceeded: 0.2 usd requested, 0.9 of 1.0 used"


@row(
    f"BudgetExceeded: {REFUSED}",
    stop=REFUSED,
    time=2.0,
    then={"usd": 0.8},
    a="succeeded",
    b=f"breached ({REFUSED})",
    c=f"breached ({REFUSED})",
    d=f"skipped ({REFUSED})",
    ordered=False,
)
async def a_budget_refuses(r: Recorder) -> dict[str, float]:
    budget = Budget(usd=1.0)

    async def work(seconds: float, reserved: float, cost: float) -> None:
        with budget.reserve(usd=reserved) as reservation:
            await r.world.sleep(seconds)
            reservation.settle(usd=cost)

    async def b() -> None:
        await r.world.sleep(2)
        await work(1, 0.2, 0.2)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", work, 1, 0.9, 0.8)
        n.start_soon("b", b)
        await r.world.sleep(1.5)
        n.start_soon("c", work, 9, 0.1, 0.1)
        n.start_soon("d", work, 9, 0.1, 0.1)

    await block(r, body, 2, budget=budget)
    return budget.used()


@row("", then="caught", a="failed !BudgetExceeded: budget exceeded: 2 usd requested, 0 of 1 used")
async def a_budget_of_no_step_fails_the_branch_that_asks(r: Recorder) -> str:
    budget = Budget(usd=1)

    async def a() -> None:
        budget.spend(usd=2)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    result = await block(r, body, policy=COLLECT)
    assert isinstance(result["a"].exception, BudgetExceeded)
    return "caught"


@row(
    "Breached: enough <- BranchErrors[TooSlowError: 'c' timed out after 2.5 s]",
    stop="enough",
    time=3.0,
    then=2.0,
    a="succeeded =1",
    b="cancelled (mine)",
    c="timed_out !TooSlowError: 'c' timed out after 2.5 s",
    d="skipped (enough)",
)
async def a_breach_that_drains(r: Recorder) -> float:
    went_on = []

    async def body(n: BranchNursery) -> None:
        start = r.world.now()
        n.start_soon("a", r.world.give, 3, 1)
        n.start_soon("b", r.world.forever)
        n.start_soon("c", r.world.forever, timeout=2.5)
        n.start_soon("d", r.world.forever)
        await r.world.sleep(1)
        n.breach("enough")
        await r.world.sleep(1)
        n.cancel("b", "mine")
        went_on.append(r.world.now() - start)

    await block(r, body, 3, on_breach="drain", policy=FIRST_SUCCESS)
    return went_on[0]


@row("Breached: enough", stop="enough", time=2.0, a="timed_out")
async def a_deadline_cuts_a_drain_short(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        await r.world.sleep(1)
        n.breach("enough")
        await r.world.forever()

    await block(r, body, on_breach="drain", move_on_after=2)


@row("Cancelled", stop="enough", time=2.0, a="cancelled (cancelled from outside)")
async def a_cancellation_from_outside_cuts_a_drain_short(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        await r.world.sleep(1)
        n.breach("enough")

    async with r.world.scope(2):
        await block(r, body, on_breach="drain")


# ================================================================ admission


@row(then=["c", "a", "b"], a="succeeded", b="succeeded", c="succeeded", time=3.0)
async def priority_decides_who_is_next(r: Recorder) -> list[str]:
    started = []

    async def note(key: str) -> None:
        started.append(key)
        await r.world.sleep(1)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", note, "a")
        n.start_soon("b", note, "b")
        n.start_soon("c", note, "c", priority=1)

    await block(r, body, 1)
    return started


@row(then=["a", "c", "b"], a="succeeded", b="succeeded", c="succeeded")
async def a_priority_is_changed_while_queued(r: Recorder) -> list[str]:
    started = []

    async def note(key: str) -> None:
        started.append(key)
        await r.world.sleep(1)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", note, "a")
        n.start_soon("b", note, "b")
        n.start_soon("c", note, "c")
        await r.world.sleep(0.5)
        n["c"].priority = 5
        try:
            n["a"].priority = 5
        except RuntimeError:
            return
        raise AssertionError("it runs already")

    await block(r, body, 1)
    return started


@row(
    then=3,
    ordered=False,
    **{str(i): f"succeeded ={i}" for i in range(9)},
    time=3.0,
)
async def the_limit_is_exact(r: Recorder) -> int:
    running = peak = 0

    async def note(value: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await r.world.sleep(1)
        running -= 1
        return value

    result = await run_branches({i: _bind(note, i) for i in range(9)}, 3)
    r.seen["step"] = r.see(None, result)
    assert result.peak_in_flight == peak
    return peak


def _bind(fn: Callable[..., Awaitable[Any]], *args: Any) -> Callable[[], Awaitable[Any]]:
    def bound() -> Awaitable[Any]:
        return fn(*args)

    return bound


@row(
    ordered=False,
    time=4.0,
    a="succeeded",
    b="succeeded",
    c="succeeded",
    d="succeeded",
    e="succeeded",
    f="succeeded",
)
async def a_limit_shrinks_and_grows(r: Recorder) -> None:
    limiter = BranchLimiter(2)

    async def body(n: BranchNursery) -> None:
        for key in "abcdef":
            n.start_soon(key, r.world.sleep, 1)
        await r.world.sleep(0.5)
        limiter.total_tokens = 1  # a, b go on; then c alone
        await r.world.sleep(1)
        limiter.total_tokens = 2  # d beside it: c ends at 2, d at 2.5, e at 3, f at 3.5
        assert (limiter.borrowed_tokens, limiter.available_tokens) == (1, 1)
        await r.world.sleep(0.25)
        limiter.total_tokens = 1  # e after both: 2.5 to 3.5
        await r.world.sleep(1.25)
        limiter.total_tokens = 2

    await block(r, body, limiter)
    assert limiter.borrowed_tokens == 0


@row(a="succeeded", b="succeeded", c="succeeded", time=6.0)
async def a_step_is_paused(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 1)
        await r.world.sleep(0.5)
        n.pause("wait")
        await r.world.sleep(3.5)
        n.resume()

    await block(r, body, 1)


@row(a="succeeded", b="succeeded", time=5.0)
async def a_limiter_is_paused(r: Recorder) -> None:
    limiter = BranchLimiter(1)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        n.start_soon("b", r.world.sleep, 1)
        await r.world.sleep(0.5)
        limiter.pause("wait")
        await r.world.sleep(3.5)
        assert limiter.statistics().paused == "wait"
        limiter.resume()

    await block(r, body, limiter)


@row("Breached: paused", stop="paused", a="skipped (paused)")
async def a_paused_step_is_breached(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.pause("wait")
        n.start_soon("a", r.world.sleep, 1)
        await r.world.sleep(1)
        n.breach("paused")

    await block(r, body, 1)


@row(
    "",
    then=(2, ("x", "y"), 0),
    ordered=False,
    a="succeeded",
    b="succeeded",
    c="succeeded",
)
async def two_steps_share_a_limiter(r: Recorder) -> tuple[int, tuple[str, ...], int]:
    limiter = BranchLimiter(2)
    running = peak = 0

    async def work(seconds: float) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await r.world.sleep(seconds)
        running -= 1

    async def first() -> None:
        async def body(n: BranchNursery) -> None:
            for key in "abc":
                n.start_soon(key, work, 1)

        await block(r, body, limiter)

    async def second() -> None:
        await r.world.sleep(0.25)

        async def body(n: BranchNursery) -> None:
            n.start_soon("x", work, 0.75)
            n.start_soon("y", work, 1.5)

        await block(r, body, limiter, name="other")

    async with r.world.tasks() as start:
        start(first)
        start(second)
    return peak, r.seen["other"].order, limiter.borrowed_tokens


@row(
    "Breached: inner only",
    stop="inner only",
    then=("", "succeeded"),
    a="skipped (inner only)",
)
async def a_step_that_only_waits_for_a_shared_limiter_is_breached(
    r: Recorder,
) -> tuple[str, str]:
    limiter = BranchLimiter(1)

    async def first() -> None:
        async def body(n: BranchNursery) -> None:
            n.start_soon("long", r.world.sleep, 5)

        await block(r, body, limiter, name="other")

    async def second() -> None:
        async def body(n: BranchNursery) -> None:
            await r.world.sleep(1)
            n.start_soon("a", r.world.sleep, 1)
            await r.world.sleep(1)
            n.breach("inner only")

        await block(r, body, limiter)

    async with r.world.tasks() as start:
        start(first)
        start(second)
    other = r.seen["other"]
    return other.left, other.branches["long"]


@row(a="succeeded", then=[1.0, 2.0], time=2.0)
async def a_limiter_is_a_semaphore_too(r: Recorder) -> list[float]:
    limiter = BranchLimiter(1)
    entered = []
    start_time = r.world.now()

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        await r.world.sleep(1.5)

    async def enters() -> None:
        await r.world.sleep(0.5)
        async with limiter:
            entered.append(round(r.world.now() - start_time, 6))
            await r.world.sleep(1)
        entered.append(round(r.world.now() - start_time, 6))

    async def step() -> None:
        await block(r, body, limiter)

    async with r.world.tasks() as start:
        start(step)
        start(enters)
    # the step's only branch ran first
    seen = r.seen["step"]
    r.seen["step"] = attrs.evolve(seen, times={"a": (0.0, 2.0)})
    return entered


@row(then=(0, 1), left=None)
async def an_entrant_is_cancelled_while_it_waits(r: Recorder) -> tuple[int, int]:
    limiter = BranchLimiter(1)
    async with limiter:
        async with r.world.tasks() as start:

            async def enters() -> None:
                async with r.world.scope(1), limiter:
                    raise AssertionError("held by another")

            start(enters)
        waiting = limiter.statistics().tasks_waiting
        borrowed = limiter.borrowed_tokens
    assert limiter.borrowed_tokens == 0
    return waiting, borrowed


# ================================================================ branches start branches


@row(a="succeeded", b="succeeded =2", c="succeeded =3", time=4.0)
async def a_branch_starts_a_sibling(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def b() -> int:
            await r.world.sleep(1)
            n.start_soon("c", r.world.give, 2, 3)
            return 2

        async def a() -> None:
            n.start_soon("b", b)
            await r.world.sleep(1)

        n.start_soon("a", a)

    await block(r, body, 1)


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    a="failed !ValueError: x",
    b="cancelled (policy failed: 'a' failed: ValueError: x)",
    c="skipped (policy failed: 'a' failed: ValueError: x)",
)
async def a_stopped_branch_starts_a_sibling_in_vain(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def b() -> None:
            try:
                await r.world.forever()
            finally:
                branch = n.start_soon("c", r.world.sleep, 1)
                assert branch.status is BranchStatus.SKIPPED

        n.start_soon("a", r.world.fail, 1, "x")
        n.start_soon("b", b)

    await block(r, body)


@row(
    "",
    then="Breached: inner",
    a="succeeded =Breached: inner",
    b="succeeded",
    time=2.0,
)
async def a_step_inside_a_branch(r: Recorder) -> str:
    async def inner(n: BranchNursery) -> None:
        n.start_soon("x", r.world.forever)
        await r.world.sleep(1)
        n.breach("inner")

    async def a() -> str:
        await block(r, inner, BranchLimiter(2), name="inner")
        return r.seen["inner"].left

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 2)

    result = await block(r, body)
    return str(result["a"].output)


@row(
    "Breached: outer",
    stop="outer",
    then=("Cancelled", "cancelled (cancelled from outside)"),
    a="breached (outer)",
    time=1.0,
)
async def a_breach_goes_through_a_nested_step(r: Recorder) -> tuple[str, str]:
    async def inner(n: BranchNursery) -> None:
        n.start_soon("x", r.world.forever)

    async def a() -> None:
        await block(r, inner, BranchLimiter(2), name="inner")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.breach("outer")

    await block(r, body)
    seen = r.seen["inner"]
    return seen.left, seen.branches["x"]


@row(
    "BranchErrors[BranchErrors[ValueError: deep]]",
    stop="policy failed: 'a' failed: BranchErrors: errors in 'inner' (1 sub-exception)",
    a="failed !BranchErrors: errors in 'inner' (1 sub-exception)",
)
async def groups_are_not_flattened(r: Recorder) -> None:
    async def a() -> None:
        await run_branches({"x": _bind(r.world.fail, 1, "deep")}, BranchLimiter(2), name="inner")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    await block(r, body)


@row(a="cancelled (why)", then="cancelled (cancelled from outside)", time=1.0)
async def a_branch_is_cancelled_in_a_nested_step(r: Recorder) -> str:
    async def inner(n: BranchNursery) -> None:
        n.start_soon("x", r.world.forever)

    async def a() -> None:
        await block(r, inner, BranchLimiter(2), name="inner")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await r.world.sleep(1)
        n.cancel("a", "why")

    await block(r, body)
    return r.seen["inner"].branches["x"]


# ================================================================ watching


@row(then=["b", "c", "a"], a="succeeded", b="succeeded", c="cancelled (no)", time=3.0)
async def results_as_they_come(r: Recorder) -> list[Any]:
    keys = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 3)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 9)
        async for result in n.completed():
            keys.append(result.key)
            if result.key == "b":
                await r.world.sleep(0.5)
                n.cancel("c", "no")

    await block(r, body, 2)
    return keys


@row(then=["a", "b"], a="succeeded", b="succeeded")
async def a_cancelled_iterator_loses_nothing(r: Recorder) -> list[Any]:
    keys: list[Any] = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 2)
        n.start_soon("b", r.world.sleep, 3)
        results = n.completed()
        async with r.world.scope(1):
            await results.__anext__()
            raise AssertionError("none has ended")
        async for result in results:
            keys.append(result.key)

    await block(r, body)
    return keys


@row(then=("succeeded =5", 2.0), a="succeeded =5", time=2.0)
async def a_branch_is_waited_for(r: Recorder) -> tuple[str, float]:
    seen = []

    async def body(n: BranchNursery) -> None:
        branch = n.start_soon("a", r.world.give, 2, 5)
        start = r.world.now()
        ended = await branch.wait()
        assert await branch.wait() is ended
        seen.append((_ending(ended), r.world.now() - start))

    await block(r, body)
    return seen[0]


@row(a="succeeded", b="skipped (no)")
async def the_order_of_events(r: Recorder) -> None:
    events = []

    class Log(abc.Observer):
        def step_opened(self, step: BranchNursery) -> None:
            events.append("opened")

        def branch_queued(self, branch: Any) -> None:
            events.append(f"queued {branch.key}")

        def branch_started(self, branch: Any) -> None:
            events.append(f"started {branch.key}")

        def branch_progressed(self, branch: Any, done: float, total: float | None) -> None:
            events.append(f"progress {branch.key} {done}/{total}")

        def branch_ended(self, branch: Any, result: Any) -> None:
            events.append(f"ended {branch.key} {result.status.value}")

        def cancel_requested(self, branch: Any, reason: str) -> None:
            events.append(f"cancel {branch.key} {reason}")

        def limit_changed(self, limiter: Any, old: float, new: float, reason: str) -> None:
            events.append(f"limit {old} {new}")

        def step_closed(self, step: Any, result: Any) -> None:
            events.append(f"closed {len(result)}")

    async def a() -> None:
        current_branch().report(1, 2)
        await r.world.sleep(1)

    limiter = BranchLimiter(1)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 1)
        await r.world.sleep(0.5)
        n.cancel("b", "no")
        limiter.total_tokens = 2

    await block(r, body, limiter, observers=[Log()])
    assert events == [
        "opened",
        "queued a",
        "queued b",
        "started a",
        "progress a 1/2",
        "cancel b no",
        "ended b skipped",
        "limit 1 2",
        "ended a succeeded",
        "closed 2",
    ]


@row(a="succeeded", b="cancelled (seen)", c="succeeded =9", time=3.0)
async def an_observer_acts(r: Recorder) -> None:
    """What an observer may call: any synchronous method, from wherever it is told."""

    class Acts(abc.Observer):
        def branch_ended(self, branch: Any, result: Any) -> None:
            if branch.key == "a":
                nursery.cancel("b", "seen")
                nursery.start_soon("c", r.world.give, 2, 9)

    nursery: BranchNursery

    async def body(n: BranchNursery) -> None:
        nonlocal nursery
        nursery = n
        n.start_soon("a", r.world.sleep, 1)
        n.start_soon("b", r.world.sleep, 9)

    await block(r, body, observers=[Acts()])


@row(then=["a", "c", "b"], a="succeeded", b="succeeded", c="succeeded")
async def an_observer_changes_a_priority(r: Recorder) -> list[str]:
    started = []

    class Prefers(abc.Observer):
        def branch_ended(self, branch: Any, result: Any) -> None:
            if branch.key == "a":
                nursery["c"].priority = 5

        def branch_started(self, branch: Any) -> None:
            started.append(branch.key)

    nursery: BranchNursery

    async def body(n: BranchNursery) -> None:
        nonlocal nursery
        nursery = n
        for key in "abc":
            n.start_soon(key, r.world.sleep, 1)

    await block(r, body, 1, observers=[Prefers()])
    return started


@row(
    then=[(2, 1, 0), (0, 0, 3)],
    a="succeeded",
    b="succeeded",
    c="succeeded",
)
async def statistics(r: Recorder) -> list[tuple[int, int, int]]:
    seen = []

    def note(n: BranchNursery) -> None:
        now = n.statistics()
        seen.append((now.queued, now.running, now.ended))

    async def body(n: BranchNursery) -> None:
        for key in "abc":
            n.start_soon(key, r.world.sleep, 1)
        await r.world.sleep(0.5)
        note(n)
        await r.world.sleep(5)
        note(n)

    await block(r, body, 1)
    return seen


# ================================================================ contexts


VALUE: Final = contextvars.ContextVar("VALUE", default="none")


@row(
    then="outer",
    a="succeeded =outer then a",
    b="succeeded =outer then b",
    c="succeeded =changed then c",
)
async def each_branch_has_a_copy_of_its_submitters_context(r: Recorder) -> str:
    async def work(key: str) -> str:
        before = VALUE.get()
        VALUE.set(key)
        await r.world.sleep(1)
        return f"{before} then {VALUE.get()}"

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", work, "a")
        n.start_soon("b", work, "b")
        token = VALUE.set("changed")
        n.start_soon("c", work, "c")
        VALUE.reset(token)

    VALUE.set("outer")
    await block(r, body, 1)
    return VALUE.get()


@row(then=("a", "not inside a branch"), a="succeeded =a")
async def the_current_branch(r: Recorder) -> tuple[str, str]:
    async def a() -> Any:
        await r.world.sleep(0)
        return current_branch().key

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    result = await block(r, body)
    try:
        current_branch()
    except RuntimeError as exc:
        return str(result["a"].output), str(exc)
    raise AssertionError


# ================================================================ the body and its own scopes


@row(a="cancelled (no longer)", b="succeeded =1", then="went on", time=3.0)
async def a_branch_is_cancelled_as_a_scope_in_the_body_ends(r: Recorder) -> str:
    """The body's own timeout is no cancellation from outside."""
    told = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        n.start_soon("b", r.world.give, 3, 1)
        async with r.world.scope(1):
            try:
                await r.world.forever()
            finally:
                assert n.cancel("a", "no longer")
        told.append("went on")

    await block(r, body)
    return told[0]


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    a="failed !ValueError: x",
    b="cancelled (policy failed: 'a' failed: ValueError: x)",
    time=2.0,
)
async def a_branch_fails_while_a_scope_in_the_body_ends(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 2, "x")
        n.start_soon("b", r.world.forever)
        async with r.world.scope(1):
            try:
                await r.world.forever()
            finally:
                async with r.world.shield():
                    await r.world.sleep(3)

    await block(r, body)


@row("Breached: in the end", stop="in the end", a="breached (in the end)", time=1.0)
async def a_breach_as_a_scope_in_the_body_ends(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        async with r.world.scope(1):
            try:
                await r.world.forever()
            finally:
                n.breach("in the end")

    await block(r, body)


@row(
    "BranchErrors[ValueError: x]",
    stop="policy failed: 'a' failed: ValueError: x",
    a="failed !ValueError: x",
    time=2.0,
    then="TimeoutError",
)
async def a_timeout_in_the_body_is_caught_there(r: Recorder) -> str:
    told = []

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 2, "x")
        try:
            async with r.world.timeout(1):
                await r.world.forever()
        except TimeoutError:
            told.append("TimeoutError")
        await r.world.forever()

    await block(r, body)
    return told[0]


@row("Breached: stop it", stop="stop it", a="breached (stop it)")
async def a_body_that_swallows_its_cancellation(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        await r.world.sleep(1)
        n.breach("stop it")
        with suppress(r.world.cancelled):
            await r.world.forever()

    await block(r, body)


@row("Breached: stop it <- BranchErrors[KeyError: 'body']", stop="stop it")
async def a_body_that_raises_as_it_is_cancelled(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.breach("stop it")
        try:
            await r.world.forever()
        finally:
            raise KeyError("body")

    await block(r, body)


@row("Breached: stop it <- BranchErrors[KeyError: 'body']", stop="stop it")
async def a_body_that_raises_before_its_cancellation_is_delivered(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.breach("stop it")
        raise KeyError("body")

    await block(r, body)


@row("Breached: stop it <- BranchErrors[ExceptionGroup[KeyError: 'body']]", stop="stop it")
async def a_body_that_raises_a_group_with_its_cancellation(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.breach("stop it")
        try:
            await r.world.forever()
        except r.world.cancelled as exc:
            raise BaseExceptionGroup("mixed", [exc, KeyError("body")]) from None

    await block(r, body)


@row("", then="slept")
async def nothing_is_left_of_a_stop_behind_the_block(r: Recorder) -> str:
    """No request to cancel that was the step's own is met after its block."""

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever)
        n.breach("stop it")

    await block(r, body, name="first")
    await r.world.sleep(1)

    async def fails(n: BranchNursery) -> None:
        n.start_soon("a", r.world.fail, 0, "x")
        await r.world.sleep(1)

    await block(r, fails, name="second")
    await r.world.sleep(1)
    await block(r, _nothing)
    return "slept"


async def _nothing(nursery: BranchNursery) -> None:
    pass


# ================================================================ in_thread


@row(a="succeeded =3", b="failed !ValueError: invalid literal for int() with base 10: 'x'")
async def sync_functions(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", in_thread(pow), 3, 1)
        n.start_soon("b", in_thread(int), "x")

    await block(r, body, 1, policy=COLLECT)


@row("Breached: now", stop="now", a="succeeded =through")
async def a_thread_is_not_interrupted(r: Recorder) -> None:
    gate = threading.Event()
    started = r.world.event()

    async def a() -> Any:
        started.set()
        return await in_thread(_through)(gate)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await started.wait()
        await r.world.turns(3)
        n.breach("now")
        gate.set()

    await block(r, body)


def _through(gate: threading.Event) -> str:
    gate.wait()
    return "through"


@row("Breached: now", stop="now", a="breached (now)")
async def a_thread_asks_whether_to_stop(r: Recorder) -> None:
    gate = threading.Event()
    started = r.world.event()

    def poll() -> None:
        gate.wait()
        while True:
            check_cancelled()

    async def a() -> None:
        started.set()
        await in_thread(poll)()

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        await started.wait()
        await r.world.turns(3)
        n.breach("now")
        gate.set()

    await block(r, body)


# ================================================================ what no one collects


class Quit(BaseException):
    """As pytest's own outcomes are: no Exception, and no one's to keep."""


async def _quit(r: Recorder) -> None:
    await r.world.sleep(1)
    raise Quit("quit")


def _leaves(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        return [name for each in exc.exceptions for name in _leaves(each)]
    return [type(exc).__name__]


@row(left=None, then=["Quit"])
async def a_branch_raises_what_no_one_collects(r: Recorder) -> list[str]:
    try:
        await run_branches({"a": _bind(_quit, r), "b": r.world.forever}, 2, policy=COLLECT)
    except BaseException as exc:
        return _leaves(exc)
    return []


@row(left=None, then=["Quit"])
async def the_body_raises_what_no_one_collects(r: Recorder) -> list[str]:
    try:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("b", r.world.forever)
            await _quit(r)
    except BaseException as exc:
        return _leaves(exc)
    return []


# ================================================================ run_branches


@row(then=({"a": 1, "b": 2}, ("b", "a")), left=None)
async def run_branches_keeps_the_order_of_submission(r: Recorder) -> Any:
    branches = {"a": _bind(r.world.give, 2, 1), "b": _bind(r.world.give, 1, 2)}
    result = await run_branches(branches)
    return result.outputs, result.completion_order


@row(
    a="timed_out !TooSlowError: 'a' timed out after 1.0 s",
    b="succeeded",
    time=1.0,
)
async def run_branches_with_a_timeout_for_each(r: Recorder) -> None:
    branches = {"a": _bind(r.world.sleep, 2), "b": _bind(r.world.sleep, 0.5)}
    result = await run_branches(branches, policy=COLLECT, branch_timeout=1.0)
    r.seen["step"] = r.see(None, result)


@row(then=["b", "a"], left=None)
async def run_branches_with_priorities(r: Recorder) -> list[str]:
    started = []

    async def note(key: str) -> None:
        started.append(key)

    await run_branches({k: _bind(note, k) for k in "ab"}, 1, priorities={"b": 1})
    return started


# ================================================================ tries


def _every(seconds: float, on: Any = ValueError, attempts: int = 3, **options: Any) -> Retry:
    return Retry(on, attempts, seconds, seconds, 0.0, **options)


class _Flaky:
    """Takes a second for each try, and fails so many times."""

    def __init__(self, r: Recorder, failures: int = 99, error: Exception | None = None) -> None:
        self.r = r
        self.failures = failures
        self.error = error
        self.opened = r.world.now()
        self.starts: list[float] = []

    async def __call__(self) -> str:
        self.starts.append(_since(self.r.world.now(), self.opened))
        await self.r.world.sleep(1)
        if len(self.starts) <= self.failures:
            raise self.error or ValueError(len(self.starts))
        return "through"


@row(then=[0.0, 3.0, 6.0], a="succeeded =through", b="succeeded", time=7.0)
async def tried_again_until_it_succeeds(r: Recorder) -> list[float]:
    """Another runs meanwhile, under a limit of one."""
    flaky = _Flaky(r, 2)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(2))
        n.start_soon("b", r.world.sleep, 1.5)

    await block(r, body, 1)
    return flaky.starts


@row(then=[0.0, 2.0], a="failed !ValueError: 2", time=3.0)
async def tried_so_many_times_in_all(r: Recorder) -> list[float]:
    flaky = _Flaky(r)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(1, attempts=2))

    await block(r, body, policy=COLLECT)
    return flaky.starts


@row(then=[0.0, 8.0], a="succeeded =through")
async def backpressure_says_after_how_long(r: Recorder) -> list[float]:
    flaky = _Flaky(r, 1, Backpressure("busy", retry_after=7))

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(1))

    await block(r, body)
    return flaky.starts


@row(then=[0.0], a="failed !ValueError: 1", time=1.0)
async def no_try_starts_at_the_timeout_over_all(r: Recorder) -> list[float]:
    flaky = _Flaky(r)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(1, timeout=2))

    await block(r, body, policy=COLLECT)
    return flaky.starts


@row(then=[0.0], a="failed !ValueError: 1", b="succeeded", time=9.0)
async def a_try_that_waits_for_a_token_for_too_long(r: Recorder) -> list[float]:
    flaky = _Flaky(r)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(1, timeout=5))
        n.start_soon("b", r.world.sleep, 8)

    await block(r, body, 1, policy=COLLECT)
    assert r.seen["step"].times["a"] == (0.0, 5.0)
    return flaky.starts


@row(a="timed_out !TooSlowError: 'a' timed out after 2 s", time=5.0)
async def a_timeout_is_for_each_try(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.forever, timeout=2, retry=_every(1, Exception, 2))

    await block(r, body, policy=COLLECT)
    assert r.seen["step"].attempts == {"a": 2}


@row(a="cancelled (enough)", time=4.0)
async def cancelled_while_a_timed_out_try_unwinds(r: Recorder) -> None:
    async def a() -> None:
        try:
            await r.world.forever()
        finally:
            async with r.world.shield():
                await r.world.sleep(3)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a, timeout=1, retry=_every(1, Exception))
        await r.world.sleep(2)
        assert n.cancel("a", "enough")

    await block(r, body)


async def _stopped_between_tries(
    r: Recorder, stop: Callable[[BranchNursery], object], **options: Any
) -> list[float]:
    """One that backs off, and one whose next try is held by a pause."""
    flaky = _Flaky(r)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", flaky, retry=_every(5))
        n.start_soon("b", flaky, retry=_every(1))
        await r.world.sleep(1.5)
        n.pause("lunch")
        await r.world.sleep(1.5)
        stop(n)

    await block(r, body, **options)
    assert r.seen["step"].attempts == {"a": 1, "b": 1}
    return flaky.starts


@row(
    a="cancelled !ValueError: 2 (why)",
    b="cancelled !ValueError: 2 (why)",
    then=[0.0, 0.0],
    time=3.0,
)
async def cancelled_between_tries(r: Recorder) -> list[float]:
    return await _stopped_between_tries(r, lambda n: n.cancel_where(lambda key: True, "why"))


@row(
    "Breached: why <- BranchErrors[ValueError: 2, ValueError: 2]",
    stop="why",
    a="breached !ValueError: 2 (why)",
    b="breached !ValueError: 2 (why)",
    then=[0.0, 0.0],
    time=3.0,
)
async def breached_between_tries(r: Recorder) -> list[float]:
    return await _stopped_between_tries(r, lambda n: n.breach("why"))


@row(
    "Breached: why <- BranchErrors[ValueError: 2, ValueError: 2]",
    stop="why",
    a="breached !ValueError: 2 (why)",
    b="breached !ValueError: 2 (why)",
    then=[0.0, 0.0],
    time=3.0,
)
async def drained_between_tries(r: Recorder) -> list[float]:
    return await _stopped_between_tries(r, lambda n: n.breach("why"), on_breach="drain")


@row(
    a="timed_out !ValueError: 2",
    b="timed_out !ValueError: 2",
    stop="step timed out after 2.5 s",
    then=[0.0, 0.0],
    time=2.5,
)
async def a_deadline_between_tries(r: Recorder) -> list[float]:
    return await _stopped_between_tries(r, lambda n: None, policy=COLLECT, move_on_after=2.5)


@row(
    "Cancelled",
    a="cancelled !ValueError: 2 (cancelled from outside)",
    b="cancelled !ValueError: 2 (cancelled from outside)",
    stop="cancelled from outside",
    time=2.5,
)
async def cancelled_from_outside_between_tries(r: Recorder) -> None:
    async with r.world.scope(2.5):
        await _stopped_between_tries(r, lambda n: None, policy=COLLECT)


@row(a="succeeded =2", then=["queued", "started", "queued", "started", "ended"])
async def each_try_is_told(r: Recorder) -> list[str]:
    told: list[str] = []

    class Told(abc.Observer):
        def branch_queued(self, branch: Any) -> None:
            told.append("queued")

        def branch_started(self, branch: Any) -> None:
            told.append("started")

        def branch_ended(self, branch: Any, result: Any) -> None:
            told.append("ended")

    async def a() -> Any:
        if len(told) < 3:
            raise ValueError
        return current_branch().attempts

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a, retry=_every(0))

    await block(r, body, observers=[Told()])
    return told


@row(a="succeeded =['in', 'in']", time=4.0)
async def a_nested_step_in_a_branch_that_is_retried(r: Recorder) -> None:
    """Under a limit of one: parked, it lends its token, and between tries it has none."""
    started = []

    async def inner() -> None:
        started.append(current_branch().key)
        await r.world.sleep(1)
        if len(started) == 1:
            raise ValueError

    async def a() -> list[Any]:
        await run_branches({"in": inner})
        return started

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a, retry=_every(2, BranchErrors))

    await block(r, body, 1)


# ================================================================ rates


@row(a="succeeded", b="skipped (gone)", c="succeeded", d="succeeded", time=2.0)
async def admissions_are_spaced(r: Recorder) -> None:
    """One that was stopped while it waited has spent nothing."""

    async def body(n: BranchNursery) -> None:
        for key in "abcd":
            n.start_soon(key, r.world.sleep, 0)
        await r.world.sleep(0.5)
        n.cancel("b", "gone")

    await block(r, body, BranchLimiter(9, rate=Rate(1)))
    assert [r.seen["step"].times[key][0] for key in "acd"] == [0.0, 1.0, 2.0]


@row(a="succeeded", b="succeeded", c="succeeded", time=4.0)
async def a_rate_does_not_hold_who_goes_on(r: Recorder) -> None:
    limiter = BranchLimiter(9, rate=Rate(1, per=4.0, burst=2))

    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            await n["b"].wait()
            assert r.world.now() == pytest.approx(opened + 1)

        opened = r.world.now()
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 0)

    await block(r, body, limiter)


@row(left=None, then=[0.0, 0.0, 2.0, 4.0])
async def a_rate_for_tasks_that_enter(r: Recorder) -> list[float]:
    limiter = BranchLimiter(1, rate=Rate(0.5, burst=2))
    opened, times = r.world.now(), []
    for _ in range(4):
        async with limiter:
            times.append(_since(r.world.now(), opened))
    return times


# ================================================================ hedged calls


@row(left=None, then=(1, [0.0, 1.0], 3.0))
async def a_slow_call_is_asked_again(r: Recorder) -> Any:
    opened = r.world.now()
    asked: list[float] = []

    async def ask(*takes: float) -> int:
        number = len(asked)
        asked.append(_since(r.world.now(), opened))
        await r.world.sleep(takes[number])
        return number

    answer = await hedged(ask, after=1)(9, 2)
    return answer, asked, _since(r.world.now(), opened)


@row(a="failed !BranchErrors: errors in 'fail' (2 sub-exceptions)", time=3.0)
async def a_hedged_call_that_fails_both_times(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", hedged(r.world.fail, after=1), 2, "x")

    await block(r, body, 2, policy=COLLECT)


@row(a="succeeded =1", b="succeeded", time=4.0)
async def a_hedged_call_lends_the_token_of_its_branch(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", hedged(r.world.give, after=1), 3, 1)
        n.start_soon("b", r.world.sleep, 1)

    await block(r, body, 1)


# ================================================================ misuse


@row(
    then=[
        "ValueError: duplicate key 'a'",
        "KeyError: 'z'",
        (
            "RuntimeError: <BranchNursery 'step': 0 queued, 0 running, 1 ended> is closed: "
            "its block has been left"
        ),
        "RuntimeError: a branch nursery can be opened once: call open_branch_nursery again",
    ],
    a="succeeded",
)
async def misuse_is_told_where_it_happens(r: Recorder) -> list[str]:
    told: list[str] = []

    def tells(fn: Callable[..., object], *args: Any) -> None:
        try:
            fn(*args)
        except Exception as exc:
            told.append(f"{type(exc).__name__}: {exc}")

    manager = open_branch_nursery(name="step")
    async with manager as n:
        n.start_soon("a", r.world.sleep, 1)
        tells(n.start_soon, "a", r.world.sleep, 1)
        tells(n.cancel, "z")
    tells(n.start_soon, "b", r.world.sleep, 1)
    try:
        await manager.__aenter__()
    except RuntimeError as exc:
        told.append(f"{type(exc).__name__}: {exc}")
    r.seen["step"] = r.see(None, n.result)
    return told


@row(
    a="failed !TypeError: `async_fn` must be an async function, got {fn}, which is not: "
    "wrap it in in_thread(...) or in_process(...) to run it beside the event loop",
    b="failed !ValueError: at the call",
)
async def a_function_that_is_not_async_after_all(r: Recorder) -> None:
    def a() -> Any:
        return 1

    def b() -> Any:
        raise ValueError("at the call")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", b)

    await block(r, body, 1, policy=COLLECT)
    seen = r.seen["step"]
    named = {key: text.replace(repr(a), "{fn}") for key, text in seen.branches.items()}
    feedback = None if seen.feedback is None else seen.feedback.replace(repr(a), "{fn}")
    r.seen["step"] = attrs.evolve(seen, branches=named, feedback=feedback)


@row(then=["wait", "completed", "enter"], a="succeeded")
async def what_a_branch_may_not_do(r: Recorder) -> list[str]:
    refused = []

    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            try:
                await n["a"].wait()
            except RuntimeError:
                refused.append("wait")
            try:
                n.completed()
            except RuntimeError:
                refused.append("completed")
            try:
                await n.limiter.__aenter__()
            except RuntimeError:
                refused.append("enter")

        n.start_soon("a", a)

    await block(r, body)
    return refused


# ================================================================ nesting: lend and swap


async def nap(r: Recorder, seconds: float, **options: Any) -> ParallelResult[Any, Any]:
    """A nested step of two that sleep."""
    branches = {key: _bind(r.world.sleep, seconds) for key in "xy"}
    return await run_branches(branches, **options)


@row(a="succeeded =(1, 2)", b="succeeded =(1, 2)", time=4.0)
async def nested_on_the_same_limiter_of_one(r: Recorder) -> None:
    async def a() -> tuple[int, int]:
        result = await nap(r, 1)
        return result.peak_in_flight, len(result.outputs)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", a)

    await block(r, body, 1)


@row(then="1 of 1", a="succeeded", time=1.0)
async def nested_nine_deep_under_a_limit_of_one(r: Recorder) -> str:
    async def deeper(depth: int) -> None:
        if depth:
            await run_branches({depth: _bind(deeper, depth - 1)})
            return
        await r.world.sleep(1)
        seen.append(f"{limiter.borrowed_tokens} of {limiter.total_tokens}")

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", deeper, 9)

    seen: list[str] = []
    limiter = BranchLimiter(1)
    await block(r, body, limiter)
    return seen[0]


@row(then=[(1, 2), (1, 2)], a="succeeded", b="succeeded", time=3.0)
async def a_sub_cap_and_the_cap_around_it_hold_both(r: Recorder) -> list[tuple[int, int]]:
    async def look(n: BranchNursery) -> None:
        await r.world.sleep(1)
        seen.append((n.limiter.borrowed_tokens, limiter.borrowed_tokens))

    async def a() -> None:
        async with open_branch_nursery(1) as n:
            n.start_soon("x", look, n)
            n.start_soon("y", look, n)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 3)

    seen: list[tuple[int, int]] = []
    limiter = BranchLimiter(2)
    await block(r, body, limiter)
    return seen


@row(then=(5, 3), a="succeeded", time=1.0)
async def another_limiter_opts_out(r: Recorder) -> tuple[int, int]:
    async def a() -> None:
        async with open_branch_nursery(other) as n:
            for key in range(5):
                n.start_soon(key, r.world.sleep, 1)
            peak.append(limiter.borrowed_tokens)
        peak.append(n.result.peak_in_flight)

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a, weight=3)

    peak: list[int] = []
    limiter, other = BranchLimiter(3), BranchLimiter(9)
    await block(r, body, limiter)
    return peak[1], peak[0]


@row(a="succeeded =1", b="succeeded", time=2.0)
async def the_exit_of_a_nested_block_waits_for_the_token(r: Recorder) -> None:
    async def a() -> int:
        await nap(r, 1, limit=BranchLimiter(2))
        return limiter.borrowed_tokens

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 2)

    limiter = BranchLimiter(1)
    result = await block(r, body, limiter)
    assert (result["a"].duration, result["b"].started_at) == (2, result["a"].started_at)


@row(a="succeeded", b="succeeded", heavy="succeeded", c="succeeded", time=4.0)
async def one_above_the_limit_runs_alone(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        n.start_soon("a", r.world.sleep, 1)
        n.start_soon("b", r.world.sleep, 2)
        n.start_soon("heavy", r.world.sleep, 1, weight=9)
        n.start_soon("c", r.world.sleep, 1)

    result = await block(r, body, 2)
    assert (result["heavy"].wait_time, result["c"].wait_time) == (2, 3)


@row(a="succeeded =2", b="succeeded =2", time=2.0)
async def waiting_for_another_branch_lends(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> Any:
            return (await n["b"].wait()).output

        n.start_soon("a", a)
        n.start_soon("b", r.world.give, 2, 2)

    await block(r, body, 1)


@row(then=["x", "y"], a="succeeded", time=2.0)
async def iterating_in_a_branch_lends(r: Recorder) -> list[Any]:
    async def a() -> None:
        async with open_branch_nursery() as inner:
            inner.start_soon("x", r.world.sleep, 1)
            inner.start_soon("y", r.world.sleep, 1)
            seen.extend([result.key async for result in inner.completed()])

    async def body(n: BranchNursery) -> None:
        n.start_soon("a", a)

    seen: list[Any] = []
    await block(r, body, 1)
    return seen


@row(
    a="failed !RuntimeError: Branch.wait() would wait for ever: 'b' waits for 'a' waits for 'b'",
    b="succeeded",
)
async def two_that_wait_for_each_other(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def b() -> None:
            await n["a"].wait()

        async def a() -> None:
            while n["b"].status is not BranchStatus.RUNNING:
                await r.world.sleep(1)
            await r.world.sleep(1)
            await n["b"].wait()

        n.start_soon("a", a)
        n.start_soon("b", b)

    await block(r, body, 2, policy=COLLECT)


@row(
    a="failed !RuntimeError: completed() would wait for ever: 'x' waits for 'a' waits for "
    "the branches of step 'inner'",
)
async def an_iterator_in_a_circle(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def x() -> None:
            await n["a"].wait()

        async def a() -> None:
            await r.world.sleep(1)
            async for _ in inner.completed():
                pass

        n.start_soon("a", a)
        async with open_branch_nursery(name="inner") as inner:
            inner.start_soon("x", x)

    await block(r, body, policy=COLLECT)


@row(then=(True, 3.0), a="succeeded", b="succeeded", time=3.0)
async def a_scope_of_ones_own_around_a_wait_ends_with_the_token(r: Recorder) -> tuple[bool, float]:
    start = r.world.now()

    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            async with r.world.scope(1):
                await n["b"].wait()
                pytest_fail()
            seen.append((limiter.borrowed_tokens == 1, r.world.now() - start))

        def pytest_fail() -> None:
            raise AssertionError("it was cut short")

        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 3)

    seen: list[tuple[bool, float]] = []
    limiter = BranchLimiter(1)
    await block(r, body, limiter)
    return seen[0]


@row(then=[1.0, 2], a="cancelled (why)", b="succeeded", time=3.0)
async def a_parked_branch_that_is_cancelled_unwinds_at_once(r: Recorder) -> list[float]:
    start = r.world.now()

    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            try:
                await n["b"].wait()
            finally:
                seen.extend([r.world.now() - start, limiter.borrowed_tokens])

        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 3)
        await r.world.sleep(1)
        n.cancel("a", "why")

    seen: list[float] = []
    limiter = BranchLimiter(1)
    await block(r, body, limiter, policy=COLLECT)
    return seen


@row(
    a="timed_out !TooSlowError: 'a' timed out after 2 s",
    b="succeeded",
    c="succeeded",
    time=4.0,
)
async def a_timeout_of_its_own_while_it_waits_for_its_token(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            await n["b"].wait()
            await r.world.forever()

        n.start_soon("a", a, timeout=2)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 4)
        await r.world.sleep(0.5)
        limiter.total_tokens = 1

    limiter = BranchLimiter(3)
    result = await block(r, body, limiter, policy=COLLECT)
    assert result["a"].duration == 2


@row(then=(0, 1), a="succeeded", b="succeeded", c="succeeded", time=2.0)
async def who_waits_for_its_token_is_counted_as_waiting(r: Recorder) -> tuple[int, int]:
    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            await n["b"].wait()

        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 2)
        await r.world.sleep(0.5)
        before = limiter.statistics().tasks_waiting
        limiter.total_tokens = 1
        await r.world.sleep(1)
        seen.append((before, limiter.statistics().tasks_waiting))

    seen: list[tuple[int, int]] = []
    limiter = BranchLimiter(3)
    await block(r, body, limiter)
    return seen[0]


@row(then=[(1, 1.0), (2, 2.0)], a="succeeded", b="succeeded", c="succeeded", time=2.0)
async def two_waits_at_once_in_tasks_of_ones_own(r: Recorder) -> list[tuple[int, float]]:
    start = r.world.now()

    async def body(n: BranchNursery) -> None:
        async def wait(key: str, number: int) -> None:
            await n[key].wait()
            seen.append((number, r.world.now() - start))

        async def a() -> None:
            async with r.world.tasks() as start_task:
                start_task(wait, "b", 1)
                start_task(wait, "c", 2)
            assert limiter.borrowed_tokens == 1

        n.start_soon("a", a)
        n.start_soon("b", r.world.sleep, 1)
        n.start_soon("c", r.world.sleep, 1)

    seen: list[tuple[int, float]] = []
    limiter = BranchLimiter(1)
    await block(r, body, limiter)
    return seen


@row(a="succeeded", b="succeeded", c="succeeded", time=5.0)
async def pauses_hold_neither_who_resumes_nor_what_is_nested(r: Recorder) -> None:
    async def body(n: BranchNursery) -> None:
        async def a() -> None:
            await nap(r, 1)  # though the step is paused
            limiter.pause("memory")
            await n["b"].wait()

        n.start_soon("b", r.world.sleep, 3)
        n.start_soon("a", a)
        await r.world.sleep(0.5)
        n.pause("wait")
        n.start_soon("c", r.world.sleep, 1)
        await r.world.sleep(3.5)
        assert n["a"].status is BranchStatus.SUCCEEDED
        assert n["c"].status is BranchStatus.QUEUED
        n.resume()
        limiter.resume()

    limiter = BranchLimiter(2)
    await block(r, body, limiter)


# ================================================================ and more


@row(left=None, then=list(range(200)))
async def many_branches_that_never_wait(r: Recorder) -> list[int]:
    async def value(i: int) -> int:
        return i

    result = await run_branches({i: _bind(value, i) for i in range(200)}, 1)
    assert result.completion_order == tuple(range(200))
    return list(result.outputs.values())


@row(left=None, then=True)
async def a_step_is_a_schedule_point_even_if_empty(r: Recorder) -> bool:
    """A loop over empty steps starves no one."""
    done = False

    async def other() -> None:
        nonlocal done
        done = True

    async with r.world.tasks() as start:
        start(other)
        for _ in range(20):
            await run_branches({})
        return done


# ---------------------------------------------------------------- map_branches


@row(left=None, then=[(0, 3.0), (1, 3.0), (2, 3.0), (3, 6.0)])
async def a_map_in_order(r: Recorder) -> list[tuple[Any, float]]:
    start = r.world.now()

    async def nap(n: int) -> None:
        await r.world.sleep(3 - n % 3)

    seen = []
    async with map_branches(nap, range(4), 3, in_order=True) as results:
        async for result in results:
            assert result.success
            seen.append((result.key, round(r.world.now() - start, 6)))
            if result.key == 2:
                await r.world.sleep(1)
    return seen


@row(left=None, then=["pulled 3", "pulled 4", "closed", "cancelled 3"])
async def a_map_that_is_left_early(r: Recorder) -> list[str]:
    """A slow consumer holds the input back; leaving cancels, waits, then closes the generator."""
    log = []
    pulled = 0

    async def items() -> AsyncIterator[int]:
        nonlocal pulled
        try:
            while True:
                pulled += 1
                yield pulled - 1
        finally:
            log.append("closed")

    async def body(n: int) -> None:
        await (r.world.forever() if n == 3 else r.world.sleep(1))

    class Watch(abc.Observer):
        def step_closed(self, step: Any, result: ParallelResult[Any, Any]) -> None:
            log.extend(f"cancelled {key}" for key in result.with_status(BranchStatus.CANCELLED))

    async with map_branches(body, items(), 3, observers=[Watch()]) as results:
        await r.world.sleep(10)
        log.append(f"pulled {pulled}")
        await anext(results)
        await r.world.sleep(10)
        log.append(f"pulled {pulled}")
    return log


@row(left=None, then=["BranchErrors[KeyError: 'input']", "BranchErrors[ValueError: 2]"])
async def a_map_whose_input_or_branch_fails(r: Recorder) -> list[str]:
    def failing() -> Iterator[int]:
        yield 0
        raise KeyError("input")

    async def body(n: int) -> None:
        if n == 2:
            await r.world.fail(1, "2")
        await r.world.forever()

    left = []
    for items in (failing(), iter(range(10))):
        try:
            async with map_branches(body, items, 4) as results:
                async for _ in results:
                    pass
        except BranchErrors as exc:
            left.append(r.describe(exc))
    return left


@row(left=None, then=[0, 1, 2, 3, 4, 5])
async def a_map_inside_a_branch_with_one_token(r: Recorder) -> list[int]:
    async def outer() -> list[Any]:
        async with map_branches(lambda n: r.world.give(1, n), range(6), in_order=True) as results:
            return [result.output async for result in results]

    return (await run_branches({"a": outer}, 1))["a"].unwrap()
