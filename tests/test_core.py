"""The core of a step with a host that only notes what it is asked: no event loop, no clock."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

import pytest

from fakes import StrictLedger
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    Branch,
    BranchStatus,
    CancelRule,
    Decision,
    Policy,
    StepResult,
    Tally,
    quorum,
    tolerate,
    until,
)
from trio_parallel_steps._admission import Pool
from trio_parallel_steps._announce import Announcer
from trio_parallel_steps._branch import new_branch
from trio_parallel_steps._core import StepCore
from trio_parallel_steps._policies import engine_policy
from trio_parallel_steps._records import Cause
from trio_parallel_steps._rules import Rules
from trio_parallel_steps.abc import Observer

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING
SUCCEEDED = BranchStatus.SUCCEEDED
FAILED = BranchStatus.FAILED
TIMED_OUT = BranchStatus.TIMED_OUT
CANCELLED = BranchStatus.CANCELLED
BREACHED = BranchStatus.BREACHED
SKIPPED = BranchStatus.SKIPPED


class FakeHost:
    """A run and a host in one; the test moves everything."""

    def __init__(self) -> None:
        self.announcer = Announcer()
        self.time = 0.0
        self.calls: list[Callable[[], None]] = []
        self.places: list[Any] = []  # records to run, each in a place of its own
        self.told: list[Any] = []  # records that were told to stop
        self.stopped_all: list[str] = []
        self.first: Cause | None = None  # what the core has not been told of
        self.wakes = 0

    def now(self) -> float:
        return self.time

    def check_thread(self) -> None:
        pass

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self, record: Any) -> None:
        self.places.append(record)

    def stop(self, record: Any, reason: str) -> None:
        self.told.append(record)

    def stop_all(self, reason: str) -> None:
        self.stopped_all.append(reason)

    def overtaken(self, record: Any) -> Cause | None:
        return self.first

    def is_cancelled(self) -> bool:
        return bool(self.stopped_all) or self.first in (Cause.DEADLINE, Cause.OUTSIDE)

    def wake(self) -> None:
        self.wakes += 1


class Step:
    """A step whose branches end when the test says so."""

    def __init__(
        self,
        policy: Policy = COLLECT,
        limit: int | float = 2,
        rules: tuple[CancelRule, ...] = (),
        observers: tuple[Observer, ...] = (),
    ) -> None:
        self.host = FakeHost()
        self.ledger = StrictLedger(limit)
        self.pool = Pool(self.ledger, limit)
        run: Any = self.host
        self.core = StepCore(
            "step",
            self.pool,
            engine_policy(policy),
            Rules(rules) if rules else None,
            list(observers),
            run,
            None,
            math.inf,
        )
        self.core.host = run  # the core enters and leaves nothing: that is the block's
        self.core.handle = "the nursery"
        self.pool.steps[self.core] = None
        self.running: dict[Any, Branch[Any]] = {}

    async def never(self) -> None:
        raise AssertionError("the core calls no code of a branch")

    def submit(self, *keys: str, priority: int = 0) -> None:
        for key in keys:
            record = new_branch(
                self.core,
                key,
                self.never,
                (),
                priority,
                1,
                math.inf,
                contextvars.copy_context(),
                self.host.time,
            )
            self.core.submit(record)

    def checkpoint(self) -> None:
        calls, self.host.calls = self.host.calls, []
        for call in calls:
            call()
        places, self.host.places = self.host.places, []
        for record in places:
            self._place(record)

    def _place(self, record: Any) -> None:
        while record is not None:
            if record.status is QUEUED:
                self.core.begin(record, self.host.time)
                self.running[record.key] = record
                return
            record = self.core.not_begun(record)

    def start(self, *keys: str) -> None:
        self.submit(*keys)
        self.checkpoint()

    def end(self, key: str, how: Any = "value") -> None:
        """`how`: a value, an Exception, or None: only Cancelled came out."""
        record = self.running.pop(key)
        if how is None:
            following = self.core.stopped(record, self.host.time)
        elif isinstance(how, Exception):
            following = self.core.raised(record, how, self.host.time)
        else:
            following = self.core.returned(record, how, self.host.time)
        self._place(following)
        self.checkpoint()

    def __getitem__(self, key: str) -> Any:
        return self.core.records[key]

    def statuses(self) -> dict[Any, BranchStatus]:
        return {key: record.status for key, record in self.core.records.items()}

    def cancel(self, key: str) -> bool:
        return self.core.cancel(self[key], "not needed")

    def reorder_and_breach(self, branch: Any) -> None:
        self.core.reorder(branch, 1)
        self.core.stop(Cause.BREACH, "why")

    def is_idle(self) -> bool:
        return not (self.pool.used or self.pool.waiting or self.ledger.out)


# ---------------------------------------------------------------- running


def test_branches_run_under_the_limit_and_follow_each_other() -> None:
    step = Step(limit=2)
    step.start("a", "b", "c")
    assert list(step.running) == ["a", "b"]
    step.end("a", 1)
    assert list(step.running) == ["b", "c"]
    step.end("c", 3)
    assert not step.host.wakes
    step.end("b", 2)
    assert step.host.wakes
    assert [record.key for record in step.core.endings] == ["a", "c", "b"]
    assert [step[key].output for key in "abc"] == [1, 2, 3]
    assert step.core.peak == 2
    assert step.is_idle()


def test_a_follower_needs_no_checkpoint() -> None:
    step = Step(limit=1)
    step.start("a", "b")
    following = step.core.returned(step["a"], None, 0.0)
    assert following is step["b"]


def test_a_record_that_has_ended_refers_to_nothing_of_the_step() -> None:
    step = Step()
    step.start("a")
    record = step["a"]
    step.end("a")
    assert (record._fn, record._args, record._context, record._step) == (None, (), None, None)
    assert record._token is None


def test_times_are_the_hosts() -> None:
    step = Step(limit=1)
    step.start("a", "b")
    step.host.time = 2.0
    step.end("a")
    step.host.time = 5.0
    step.end("b")
    result = step["b"].result
    assert (result.submitted_at, result.started_at, result.ended_at) == (0.0, 2.0, 5.0)
    assert (result.wait_time, result.duration) == (2.0, 3.0)


# ---------------------------------------------------------------- stops


CAUSES = {
    Cause.BODY: CANCELLED,
    Cause.DEADLINE: TIMED_OUT,
    Cause.BREACH: BREACHED,
    Cause.OUTSIDE: CANCELLED,
    Cause.POLICY: CANCELLED,
}


@pytest.mark.parametrize(("cause", "status"), CAUSES.items())
def test_a_stop_skips_what_is_queued_and_stops_what_runs(
    cause: Cause, status: BranchStatus
) -> None:
    step = Step(limit=1)
    step.start("a", "b")
    assert step.core.stop(cause, "why")
    assert step.statuses() == {"a": RUNNING, "b": SKIPPED}
    assert step.host.stopped_all == ["why"]
    step.end("a", None)
    assert step.statuses() == {"a": status, "b": SKIPPED}
    assert {record._reason for record in step.core.endings} == {"why"}
    assert step.is_idle()


@pytest.mark.parametrize("first", CAUSES)
@pytest.mark.parametrize("second", CAUSES)
def test_the_first_stop_is_the_cause(first: Cause, second: Cause) -> None:
    step = Step(limit=1)
    step.start("a")
    assert step.core.stop(first, "first")
    assert not step.core.stop(second, "second")
    assert (step.core.cause, step.core.reason) == (first, "first")
    step.end("a", None)
    assert step["a"].status is CAUSES[first]


@pytest.mark.parametrize("cause", [Cause.DEADLINE, Cause.OUTSIDE])
def test_what_the_host_knows_of_came_before_a_stop(cause: Cause) -> None:
    step = Step(limit=1)
    step.start("a", "b")
    step.host.first = cause
    assert not step.core.stop(Cause.BREACH, "too late")
    assert step.core.cause is cause
    assert step["b"].status is SKIPPED


def test_what_the_host_knows_of_came_before_a_cancel() -> None:
    step = Step(limit=1)
    step.start("a")
    step.host.first = Cause.TIMEOUT
    assert not step.cancel("a")
    step.end("a", None)
    assert step["a"].status is TIMED_OUT


def test_a_branch_that_was_told_first_keeps_its_cause() -> None:
    step = Step(limit=1)
    step.start("a")
    assert step.cancel("a")
    assert step.host.told == [step["a"]]
    step.core.stop(Cause.BREACH, "later")
    step.end("a", None)
    assert (step["a"].status, step["a"].result.reason) == (CANCELLED, "not needed")


@pytest.mark.parametrize(("how", "status"), [("value", SUCCEEDED), (OSError(), FAILED)])
def test_the_code_decides_the_ending_even_if_told_to_stop(how: Any, status: BranchStatus) -> None:
    step = Step(limit=1)
    step.start("a")
    step.core.stop(Cause.BREACH, "stop")
    step.end("a", how)
    assert step["a"].status is status


def test_one_that_is_skipped_between_its_grant_and_its_start_passes_its_token_on() -> None:
    step = Step(limit=1)
    step.submit("a", "b")
    calls, step.host.calls = step.host.calls, []
    for call in calls:
        call()
    assert step.host.places == [step["a"]]
    assert step.cancel("a")
    assert step["a"].status is SKIPPED
    step.checkpoint()
    assert list(step.running) == ["b"]
    step.end("b")
    assert step.is_idle()


def test_a_queued_branch_is_cancelled_once() -> None:
    step = Step(limit=1)
    step.start("a", "b")
    assert step.cancel("b")
    assert not step.cancel("b")
    assert step["b"].status is SKIPPED
    assert step.pool.waiting == 0


def test_the_block_is_woken_as_the_last_one_ends_without_having_run() -> None:
    step = Step()
    step.submit("a")
    step.submit("b")
    step.cancel("a")
    assert step.host.wakes == 0
    step.cancel("b")
    assert step.host.wakes == 1


def test_a_breach_that_drains_is_one_however_often_it_is_asked_for() -> None:
    step = Step()
    step.core.drains = True
    step.start("a")
    assert step.core.stop(Cause.BREACH, "enough")
    assert not step.core.stop(Cause.BREACH, "again")
    assert step.core.reason == "enough"


def test_what_is_submitted_after_a_stop_is_skipped_already() -> None:
    step = Step()
    step.start("a")
    step.core.stop(Cause.BREACH, "why")
    step.submit("late")
    assert step["late"].status is SKIPPED
    assert step["late"].result.reason == "why"
    assert step.pool.waiting == 0


@pytest.mark.parametrize("cause", [Cause.DEADLINE, Cause.OUTSIDE])
def test_what_is_submitted_after_a_stop_that_the_host_alone_knows_of_ends_once(
    cause: Cause,
) -> None:
    step = Step()
    step.host.first = cause
    step.submit("late")
    step.checkpoint()
    if step["late"].status is QUEUED:
        step.core.interrupted()
    assert step["late"].status is SKIPPED
    assert [record.key for record in step.core.endings] == ["late"]
    assert step.core.outstanding == 0
    assert step.pool.waiting == 0


# ---------------------------------------------------------------- policies


def test_fail_fast_stops_at_the_first_failure() -> None:
    step = Step(FAIL_FAST, limit=2)
    step.start("a", "b", "c")
    step.end("a", OSError("no"))
    assert step.core.cause is Cause.POLICY
    assert step.host.stopped_all
    assert step["c"].status is SKIPPED


def test_a_satisfied_policy_stops_branches_but_not_the_body() -> None:
    step = Step(FIRST_SUCCESS, limit=2)
    step.start("a", "b", "c")
    step.end("a")
    assert step.host.told == [step["b"]]
    assert not step.host.stopped_all
    assert step["c"].status is SKIPPED
    step.end("b", None)
    assert step["b"].status is CANCELLED
    assert step.core.succeeded_as_asked()


def test_a_satisfied_policy_stays_so_when_the_body_ends() -> None:
    step = Step(policy=until(lambda key, result: result.success))
    step.start("a")
    step.end("a")
    assert step.core.cause is Cause.SATISFIED
    step.core.body_ended()
    assert step.core.cause is Cause.SATISFIED


def test_a_crash_says_whose_it_is() -> None:
    class Crashes(Observer):
        def branch_started(self, branch: Branch[Any]) -> None:
            raise KeyboardInterrupt

    class Decides:
        def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
            raise SystemExit(3)

    step = Step(observers=(Crashes(),))
    step.start("a")
    assert step.core.cause is Cause.CRASH
    assert step.core.reason == "a callback raised KeyboardInterrupt"
    step = Step(policy=Decides())
    step.start("a")
    step.end("a")
    assert step.core.cause is Cause.CRASH
    assert step.core.reason == "the policy raised SystemExit: 3"


def test_tolerate_counts_failures() -> None:
    step = Step(tolerate(1), limit=3)
    step.start("a", "b", "c")
    step.end("a", OSError())
    assert step.core.cause is None
    step.end("b", OSError())
    assert step.core.cause is Cause.POLICY


@pytest.mark.parametrize("policy", [FIRST_SUCCESS, quorum(1), until(lambda key, result: False)])
def test_a_goal_is_judged_out_of_reach_once_the_body_has_ended(policy: Policy) -> None:
    step = Step(policy)
    step.start("a")
    step.end("a", OSError())
    assert step.core.cause is None
    step.core.body_ended()
    assert step.core.cause is Cause.POLICY


@pytest.mark.parametrize("policy", [FIRST_SUCCESS, quorum(1), until(lambda key, result: False)])
def test_an_empty_step_meets_no_goal(policy: Policy) -> None:
    step = Step(policy)
    step.core.body_ended()
    assert step.core.cause is Cause.POLICY


@pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, tolerate(2)])
def test_an_empty_step_satisfies_a_policy_without_a_goal(policy: Policy) -> None:
    step = Step(policy)
    step.core.body_ended()
    assert step.core.cause is None
    assert step.core.succeeded_as_asked()


def test_a_rule_is_applied_before_the_freed_token_admits_anyone() -> None:
    step = Step(limit=1, rules=(CancelRule("high", "low*"),))
    step.start("high", "low1", "other", "low2")
    step.end("high")
    assert list(step.running) == ["other"]
    assert step["low1"].status is step["low2"].status is SKIPPED


def test_the_policy_is_asked_before_the_freed_token_admits_anyone() -> None:
    step = Step(FAIL_FAST, limit=1)
    step.start("a", "b")
    step.end("a", OSError())
    assert not step.running
    assert step["b"].status is SKIPPED


# ---------------------------------------------------------------- changes


def test_setting_the_same_priority_over_and_over_costs_no_memory() -> None:
    step = Step(limit=1)
    step.start("a", "b")
    for _ in range(5_000):
        step.core.reorder(step["b"], 0)
    assert len(step.pool._queue) < 5_000


def test_a_paused_step_admits_nothing_until_it_is_resumed() -> None:
    step = Step(limit=1)
    step.start("a", "b", "c")
    step.core.pause("wait")
    step.end("a")
    assert not step.running
    step.core.resume()
    step.checkpoint()
    assert list(step.running) == ["b"]


def test_a_stop_ends_what_a_pause_has_set_aside() -> None:
    step = Step(limit=1)
    step.core.pause("wait")
    step.start("a", "b")
    step.core.stop(Cause.BREACH, "why")
    assert set(step.statuses().values()) == {SKIPPED}
    assert step.is_idle()
    step.core.resume()
    step.checkpoint()
    assert not step.running


class Acting(Observer):
    """Does something when it is told that a branch is queued."""

    def __init__(self) -> None:
        self.act: Callable[[Any], object] = lambda branch: None
        self.told: list[str] = []

    def branch_queued(self, branch: Branch[Any]) -> None:
        self.told.append(f"queued {branch.key}")
        self.act(branch)

    def branch_ended(self, branch: Branch[Any], result: Any) -> None:
        self.told.append(f"ended {branch.key}")


ACTS: dict[str, Callable[[Step, Any], object]] = {
    "breach": lambda step, branch: step.core.stop(Cause.BREACH, "why"),
    "cancel": lambda step, branch: step.core.cancel(branch, "why"),
    "satisfied": lambda step, branch: step.core.stop(Cause.SATISFIED, "why"),
    "reorder, breach": lambda step, branch: step.reorder_and_breach(branch),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_what_an_observer_stops_as_it_is_queued_ends_once(
    act: Callable[[Step, Any], object],
) -> None:
    observer = Acting()
    step = Step(observers=(observer,))
    observer.act = lambda branch: act(step, branch)
    step.submit("a")
    step.checkpoint()
    assert step["a"].status is SKIPPED
    assert [record.key for record in step.core.endings] == ["a"]
    assert step.core.outstanding == 0
    assert observer.told == ["queued a", "ended a"]
    assert step.is_idle()


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("cause", [Cause.SATISFIED, Cause.BODY])
def test_what_is_submitted_after_a_stop_ends_once_whatever_an_observer_does(
    cause: Cause, act: Callable[[Step, Any], object]
) -> None:
    observer = Acting()
    step = Step(observers=(observer,))
    step.core.stop(cause, "before")
    observer.act = lambda branch: act(step, branch)
    step.submit("a")
    assert step["a"].status is SKIPPED
    assert [record.key for record in step.core.endings] == ["a"]
    assert step.core.outstanding == 0
    assert observer.told == ["queued a", "ended a"]
    assert step.is_idle()


def test_an_observer_that_sets_priorities_as_branches_are_queued_keeps_their_order() -> None:
    observer = Acting()
    step = Step(limit=1, observers=(observer,))
    observer.act = lambda branch: step.core.reorder(branch, 5)
    step.start("a", "b", "c")
    order = list(step.running)
    while step.running:
        step.end(next(iter(step.running)))
        order += step.running
    assert order == ["a", "b", "c"]
