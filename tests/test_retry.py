"""`Retry`: branches that are tried again, and what they are between tries."""

from __future__ import annotations

import contextvars
import gc
import math
import random
import re
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from helpers import (
    BREACHED,
    CANCELLED,
    FAILED,
    SUCCEEDED,
    TIMED_OUT,
    assert_complete,
    run,
    statuses,
)
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    Backpressure,
    Branch,
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
    Retry,
    StepResult,
    StepTimeout,
    Tally,
    current_branch,
    open_branch_nursery,
    run_branches,
    tolerate,
)
from trio_parallel_steps._tries import give_up, queue_again
from trio_parallel_steps.abc import Observer
from trio_parallel_steps.hosts import current_run

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING


class Oops(Exception):
    pass


def evenly(on: Any = Oops, attempts: int = 3, every: float = 1.0, **options: Any) -> Retry:
    """The same wait each time."""
    return Retry(
        on, attempts, wait_initial=every, wait_max=every, **{"wait_jitter": 0.0, **options}
    )


class Flaky:
    """Takes a second for each try, and fails so many times."""

    def __init__(self, failures: float = math.inf, takes: float = 1.0, error: Any = Oops) -> None:
        self.failures = failures
        self.takes = takes
        self.error = error
        self.opened = trio.current_time()
        self.starts: list[float] = []

    async def __call__(self) -> str:
        self.starts.append(trio.current_time() - self.opened)
        await trio.sleep(self.takes)
        if len(self.starts) <= self.failures:
            raise self.error(len(self.starts)) if isinstance(self.error, type) else self.error
        return "through"


def tries_of(branch: Branch[Any]) -> Any:
    record: Any = branch
    return record._tries


# ---------------------------------------------------------------- the arithmetic


def staminas_wait(retry: Retry, tries: int, jitter: float) -> float:
    """As its documentation has it, with a base of 2."""
    return min(retry.wait_max, retry.wait_initial * 2.0 ** (tries - 1) + jitter)


seconds = st.floats(0, 1e6)


@given(seconds, seconds, seconds, st.integers(1, 2000), st.floats(0, 1))
def test_the_back_off_is_staminas(
    initial: float, most: float, jitter: float, tries: int, drawn: float
) -> None:
    retry = Retry(Oops, 5000, initial, most, jitter)
    waits = retry.wait_after(Oops(), tries, drawn)
    if tries < 1000:
        assert waits == staminas_wait(retry, tries, drawn * jitter)
    assert waits is not None
    assert 0 <= waits <= most


def test_the_defaults_are_staminas_but_for_the_attempts() -> None:
    assert Retry(Oops) == Retry(
        on=Oops, attempts=3, wait_initial=0.1, wait_max=5.0, wait_jitter=1.0, timeout=math.inf
    )


async def test_waits_double_up_to_the_most(autojump_clock: MockClock) -> None:
    flaky = Flaky(takes=0)
    retry = Retry(Oops, 6, wait_initial=1, wait_max=5, wait_jitter=0)
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=retry)
    assert flaky.starts == [0, 1, 3, 7, 12, 17]
    assert result["a"].attempts == 6


async def test_jitter_is_drawn_for_each_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([0.5, 0.0, 1.0, 0.25])
    monkeypatch.setattr(current_run(), "random", lambda: next(drawn))
    flaky = Flaky(failures=4, takes=0)
    retry = Retry(Oops, 9, wait_initial=1, wait_max=9, wait_jitter=2)
    await run_branches({"a": flaky}, retry=retry)
    assert flaky.starts == [0, 2, 4, 10, 18.5]  # the most is the jitter's too


async def test_it_is_the_modules_random_by_default() -> None:
    assert current_run().random == random.random


# ---------------------------------------------------------------- when, and how often


async def test_it_is_tried_until_it_succeeds(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=2)
    result = await run_branches({"a": flaky}, retry=evenly(attempts=9))
    ended = result["a"]
    assert ended.output == "through"
    assert ended.status is SUCCEEDED
    assert ended.attempts == 3
    assert ended.exception is None
    assert ended.reason is None
    assert flaky.starts == [0, 2, 4]
    assert ended.started_at == flaky.opened  # the first admission
    assert ended.duration == 5
    assert ended.wait_time == 0


async def test_attempts_are_in_all(autojump_clock: MockClock) -> None:
    flaky = Flaky()
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(attempts=2))
    assert flaky.starts == [0, 2]
    assert result["a"].status is FAILED
    assert result["a"].attempts == 2
    assert repr(result["a"].exception) == "Oops(2)"  # the last one


async def test_one_attempt_is_no_retry(autojump_clock: MockClock) -> None:
    flaky = Flaky()
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(attempts=1))
    assert flaky.starts == [0]
    assert result["a"].attempts == 1


async def test_without_a_retry_nothing_is_tried_again(autojump_clock: MockClock) -> None:
    flaky = Flaky(error=Backpressure("busy", retry_after=1))
    result = await run_branches({"a": flaky}, policy=COLLECT)
    assert flaky.starts == [0]
    assert isinstance(result["a"].exception, Backpressure)


@pytest.mark.parametrize(
    ("on", "error", "attempts"),
    [
        (Oops, ValueError, 1),
        ((Oops, ValueError), ValueError, 2),
        ((Oops, ValueError), KeyError, 1),
        (LookupError, KeyError, 2),
        (Exception, Oops, 2),
        (ExceptionGroup, ExceptionGroup("", [Oops()]), 2),
        (Oops, ExceptionGroup("", [Oops()]), 1),
    ],
)
async def test_only_what_is_named_is_tried_again(
    on: Any, error: Any, attempts: int, autojump_clock: MockClock
) -> None:
    result = await run_branches(
        {"a": Flaky(error=error)}, policy=COLLECT, retry=evenly(on, attempts=2)
    )
    assert result["a"].attempts == attempts


class Quit(BaseException):
    pass


def test_what_no_one_collects_is_never_tried_again() -> None:
    async def main() -> int:
        flaky = Flaky(error=Quit)
        with pytest.raises(BaseExceptionGroup) as caught:
            await run_branches({"a": flaky}, retry=evenly(Exception))
        assert caught.group_contains(Quit)
        return len(flaky.starts)

    assert run(main) == 1


async def test_a_function_that_is_not_async_may_be_retried_as_any_failure(
    autojump_clock: MockClock,
) -> None:
    calls = []

    def sync() -> Any:
        calls.append(1)

    await run_branches({"a": sync}, policy=COLLECT, retry=evenly(TypeError))
    assert len(calls) == 3


# ---------------------------------------------------------------- Backpressure


async def test_backpressure_says_after_how_long(autojump_clock: MockClock) -> None:
    """Longer than `wait_max`, and though it is not in `on`."""
    flaky = Flaky(failures=1, takes=0, error=Backpressure("busy", retry_after=60))
    await run_branches({"a": flaky}, retry=evenly())
    assert flaky.starts == [0, 60]


async def test_backpressure_may_ask_for_the_next_try_at_once(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1, takes=0, error=Backpressure(retry_after=0))
    await run_branches({"a": flaky}, retry=evenly())
    assert flaky.starts == [0, 0]


async def test_backpressure_that_does_not_say_is_backed_off_from(
    autojump_clock: MockClock,
) -> None:
    flaky = Flaky(failures=2, takes=0, error=Backpressure)
    await run_branches({"a": flaky}, retry=Retry(Oops, 3, 1.0, 9.0, 0.0))
    assert flaky.starts == [0, 1, 3]


async def test_backpressure_counts_as_an_attempt(autojump_clock: MockClock) -> None:
    flaky = Flaky(error=Backpressure(retry_after=0))
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(attempts=2))
    assert result["a"].attempts == 2
    assert isinstance(result["a"].exception, Backpressure)


async def test_backpressure_for_ever_is_the_end(autojump_clock: MockClock) -> None:
    flaky = Flaky(error=Backpressure(retry_after=math.inf))
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(timeout=9))
    assert result["a"].attempts == 1
    result = await run_branches({"a": flaky}, policy=COLLECT, retry=evenly())
    assert result["a"].attempts == 1


def test_backpressure_as_an_exception() -> None:
    assert str(Backpressure()) == "backpressure"
    assert Backpressure().retry_after is None
    assert str(Backpressure("slow down", retry_after=2)) == "slow down"
    assert Backpressure(retry_after=2).retry_after == 2


@pytest.mark.parametrize(
    ("given", "error"),
    [(-1, ValueError), (math.nan, ValueError), (True, TypeError), ("1", TypeError)],
)
def test_retry_after_is_in_seconds(given: Any, error: type[Exception]) -> None:
    message = f"`retry_after` must be a number of seconds >= 0, or math.inf, got {given!r}"
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Backpressure(retry_after=given)


# ---------------------------------------------------------------- its timeout, over all tries


async def test_past_the_timeout_no_try_starts(autojump_clock: MockClock) -> None:
    """It ends at once, if the next try would come too late."""
    flaky = Flaky()
    result = await run_branches(
        {"a": flaky}, policy=COLLECT, retry=evenly(attempts=99, every=2, timeout=5)
    )
    assert flaky.starts == [0, 3]
    assert result["a"].status is FAILED
    assert repr(result["a"].exception) == "Oops(2)"
    assert result["a"].ended_at - flaky.opened == 4


async def test_at_the_timeout_none_starts_either(autojump_clock: MockClock) -> None:
    flaky = Flaky()
    await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(attempts=9, timeout=2))
    assert flaky.starts == [0]


async def test_a_timeout_of_zero_is_one_try(autojump_clock: MockClock) -> None:
    flaky = Flaky(takes=0)
    await run_branches({"a": flaky}, policy=COLLECT, retry=evenly(attempts=9, every=0, timeout=0))
    assert flaky.starts == [0]


async def test_the_timeout_never_cuts_a_try_short(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1, takes=4)
    result = await run_branches({"a": flaky}, retry=evenly(timeout=6))
    assert flaky.starts == [0, 5]
    assert result["a"].output == "through"
    assert result["a"].duration == 9


async def test_the_timeout_runs_while_it_waits_for_its_token(autojump_clock: MockClock) -> None:
    opened = trio.current_time()
    flaky = Flaky()
    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("a", flaky, retry=evenly(timeout=5))
        nursery.start_soon("b", trio.sleep, 100)
        await trio.sleep(3)
        assert nursery["a"].status is QUEUED
        assert nursery.explain() == {"a": "limit: 1 of 1 in use"}
    ended = nursery.result["a"]
    assert ended.status is FAILED
    assert repr(ended.exception) == "Oops(1)"
    assert ended.ended_at - opened == 5
    assert ended.attempts == 1
    assert ended.completion_index == 0
    assert nursery.result.success is False
    assert_complete(nursery, "a", "b")


async def test_the_timeout_runs_from_the_first_admission(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("b", trio.sleep, 100, priority=1)
        flaky = Flaky(failures=1)
        nursery.start_soon("a", flaky, retry=evenly(timeout=5))
    assert flaky.starts == [100, 102]


async def test_a_try_that_has_begun_in_time_is_let_be(autojump_clock: MockClock) -> None:
    """Its timer is gone: what ended by itself is not ended again."""
    flaky = Flaky(failures=1, takes=2)
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", flaky, retry=evenly(timeout=4))
    assert nursery.result["a"].output == "through"
    assert branch.status is SUCCEEDED
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_what_it_gave_up_on_is_a_failure_for_the_policy(autojump_clock: MockClock) -> None:
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", Flaky(), retry=evenly(timeout=5))
            nursery.start_soon("b", trio.sleep, 100)
    assert list(map(repr, caught.value.exceptions)) == ["Oops(1)"]
    assert statuses(nursery.result) == {"a": FAILED, "b": CANCELLED}
    assert nursery.result.stop_reason == "policy failed: 'a' failed: Oops: 1"


async def test_a_timed_out_try_that_is_given_up_on_has_timed_out(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        retry = evenly(trio.TooSlowError, timeout=5)
        nursery.start_soon("a", trio.sleep_forever, timeout=1, retry=retry)
        nursery.start_soon("b", trio.sleep, 100)
    ended = nursery.result["a"]
    assert ended.status is TIMED_OUT
    assert isinstance(ended.exception, trio.TooSlowError)
    assert ended.duration == 5


# ---------------------------------------------------------------- the branch's own timeout


async def test_a_branchs_timeout_is_for_each_try(autojump_clock: MockClock) -> None:
    flaky = Flaky(takes=9)
    retry = evenly(trio.TooSlowError)
    result = await run_branches({"a": flaky}, policy=COLLECT, branch_timeout=2.0, retry=retry)
    assert flaky.starts == [0, 3, 6]
    ended = result["a"]
    assert ended.status is TIMED_OUT
    assert ended.attempts == 3
    assert str(ended.exception) == "'a' timed out after 2.0 s"
    assert ended.reason == "timed out after 2.0 s"
    assert ended.duration == 8


async def test_a_timeout_is_not_retried_unless_it_is_named(autojump_clock: MockClock) -> None:
    flaky = Flaky(takes=9)
    result = await run_branches({"a": flaky}, policy=COLLECT, branch_timeout=2, retry=evenly())
    assert flaky.starts == [0]
    assert result["a"].status is TIMED_OUT


async def test_after_a_timeout_it_may_succeed(autojump_clock: MockClock) -> None:
    takes = iter([9, 1])

    async def fn() -> str:
        await trio.sleep(next(takes))
        return "through"

    retry = evenly(trio.TooSlowError)
    result = await run_branches({"a": fn}, branch_timeout=2, retry=retry)
    assert result["a"].output == "through"
    assert result["a"].reason is None
    assert result["a"].duration == 4


async def test_an_error_met_as_it_times_out_is_what_is_retried(autojump_clock: MockClock) -> None:
    calls = []

    async def fn() -> None:
        calls.append(1)
        try:
            await trio.sleep_forever()
        finally:
            raise Oops

    result = await run_branches(
        {"a": fn}, policy=COLLECT, branch_timeout=2, retry=evenly(attempts=2)
    )
    assert len(calls) == 2
    assert result["a"].status is FAILED


async def clean_up(seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


async def test_a_cancel_while_a_timed_out_try_unwinds_stops_it_for_good(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with open_branch_nursery(observers=[told]) as nursery:
        retry = evenly(trio.TooSlowError)
        branch = nursery.start_soon("a", clean_up, 4, timeout=1, retry=retry)
        await trio.sleep(2)
        assert branch.cancel("enough") is True
        assert branch.cancel("again") is False
    ended = nursery.result["a"]
    assert (ended.status, ended.reason, ended.attempts) == (CANCELLED, "enough", 1)
    assert told.events[-2:] == ["cancel_requested a: enough", "branch_ended a"]


async def test_a_rule_while_a_timed_out_try_unwinds_stops_it_too(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(cancel_rules=[CancelRule("b", "a")]) as nursery:
        retry = evenly(trio.TooSlowError)
        nursery.start_soon("a", clean_up, 4, timeout=1, retry=retry)
        nursery.start_soon("b", trio.sleep, 2)
    assert nursery.result["a"].status is CANCELLED


@pytest.mark.parametrize("retry", [evenly(), evenly(trio.TooSlowError, 1)])
async def test_if_it_would_not_be_tried_again_the_timeout_came_first(
    retry: Retry, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(policy=COLLECT) as nursery:
        branch = nursery.start_soon("a", clean_up, 4, timeout=1, retry=retry)
        await trio.sleep(2)
        assert branch.cancel("too late") is False
    assert nursery.result["a"].status is TIMED_OUT


# ---------------------------------------------------------------- between tries


async def test_between_tries_it_holds_no_token(autojump_clock: MockClock) -> None:
    opened = trio.current_time()
    flaky = Flaky(failures=1)
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", flaky, retry=evenly(every=5))
        nursery.start_soon("b", trio.sleep, 1)
        await trio.sleep(1.5)
        assert branch.status is QUEUED
        assert nursery["b"].status is RUNNING
        assert nursery.limiter.borrowed_tokens == 1
        statistics = nursery.statistics()
        assert (statistics.queued, statistics.running, statistics.ended) == (1, 1, 0)
        assert repr(branch) == "<Branch 'a' queued>"
        with pytest.raises(RuntimeError, match="has not ended"):
            branch.result  # noqa: B018
        await trio.sleep(1)
        assert nursery.limiter.borrowed_tokens == 0
        assert nursery.limiter.statistics().tasks_waiting == 0  # it waits for its time
        assert nursery.explain() == {"a": "retry: 3.5 s"}
    assert nursery.result["b"].started_at == opened + 1
    assert flaky.starts == [0, 6]
    assert nursery.result.peak_in_flight == 1
    assert_complete(nursery, "a", "b")


async def test_it_waits_its_turn_again(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1)
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", flaky, retry=evenly())
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 1)
    assert flaky.starts == [0, 5]


async def test_it_keeps_its_priority(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1)
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", flaky, retry=evenly(every=1.5), priority=1)
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 1)
        await trio.sleep(2)
        assert nursery["a"].priority == 1
    assert flaky.starts == [0, 3]


async def test_its_priority_can_be_set_while_it_is_queued_again(
    autojump_clock: MockClock,
) -> None:
    flaky = Flaky(failures=2)
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", flaky, retry=evenly(every=1.5))
        for n in range(9):
            nursery.start_soon(n, trio.sleep, 1)
        await trio.sleep(1.5)
        branch.priority = 1  # while it backs off
        await trio.sleep(2)
        assert branch.status is RUNNING
        with pytest.raises(RuntimeError, match="is not queued"):
            branch.priority = 2
        await trio.sleep(2.25)
        assert branch.status is QUEUED
        assert nursery.limiter.statistics().tasks_waiting == 6
        branch.priority = -1  # while it waits for its token
    assert flaky.starts == [0, 3, 11]


async def test_a_paused_step_holds_the_next_try(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1)
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", flaky, retry=evenly())
        await trio.sleep(1.5)
        nursery.pause("lunch")
        await trio.sleep(2)
        assert nursery.explain() == {"a": "paused: lunch"}
        nursery.resume()
    assert flaky.starts == [0, 3.5]


async def test_a_paused_step_gives_up_at_the_timeout(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", Flaky(), retry=evenly(timeout=3))
        await trio.sleep(1.5)
        nursery.pause("lunch")
        assert (await nursery["a"].wait()).duration == 3
        nursery.resume()
        nursery.start_soon("b", trio.sleep, 0)
    assert statuses(nursery.result) == {"a": FAILED, "b": SUCCEEDED}
    assert_complete(nursery, "a", "b")


async def test_a_paused_limiter_holds_the_next_try(autojump_clock: MockClock) -> None:
    flaky = Flaky(failures=1)
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", flaky, retry=evenly())
        await trio.sleep(1.5)
        limiter.pause("lunch")
        await trio.sleep(2)
        assert nursery.explain() == {"a": "paused: lunch"}
        limiter.resume()
    assert flaky.starts == [0, 3.5]


async def test_who_waits_for_it_waits_until_it_has_ended(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon("a", Flaky(failures=2), retry=evenly())
        assert (await branch.wait()).output == "through"
        assert [result.key async for result in nursery.completed()] == ["a"]


async def test_with_weights_and_a_sub_cap(autojump_clock: MockClock) -> None:
    async def outer() -> None:
        async with open_branch_nursery(2) as inner:
            inner.start_soon("heavy", Flaky(failures=1), retry=evenly(), weight=2)
            inner.start_soon("light", trio.sleep, 1.5)

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("outer", outer, retry=evenly())
    assert nursery.result["outer"].duration == 3.5
    assert_complete(nursery, "outer")


# ---------------------------------------------------------------- what is told


class Told(Observer):
    def __init__(self) -> None:
        self.events: list[str] = []

    def branch_queued(self, branch: Branch[Any]) -> None:
        self.events.append(f"branch_queued {branch.key} {branch.status.value}")

    def branch_started(self, branch: Branch[Any]) -> None:
        self.events.append(f"branch_started {branch.key} {branch.status.value}")

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self.events.append(f"branch_ended {branch.key}")

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self.events.append(f"cancel_requested {branch.key}: {reason}")


async def test_observers_are_told_of_each_try(autojump_clock: MockClock) -> None:
    told = Told()
    await run_branches({"a": Flaky(failures=1)}, retry=evenly(), observers=[told])
    assert told.events == [
        "branch_queued a queued",
        "branch_started a running",
        "branch_queued a queued",
        "branch_started a running",
        "branch_ended a",
    ]


class Stops(Observer):
    """Stops the branch, or the step, as it is queued again."""

    def __init__(self, how: Callable[[Branch[Any]], object]) -> None:
        self.how = how

    def branch_queued(self, branch: Branch[Any]) -> None:
        record: Any = branch
        if record.attempts:
            self.how(branch)


async def test_an_observer_may_cancel_it_as_it_is_queued_again(
    autojump_clock: MockClock,
) -> None:
    flaky = Flaky()
    observer = Stops(lambda branch: branch.cancel("seen"))
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        nursery.start_soon("a", flaky, retry=evenly())
        nursery.start_soon("b", trio.sleep, 1)
    ended = nursery.result["a"]
    assert (ended.status, ended.reason, repr(ended.exception)) == (CANCELLED, "seen", "Oops(1)")
    assert nursery.result.success
    assert_complete(nursery, "a", "b")


async def test_an_observer_may_breach_the_step_as_it_is_queued_again(
    autojump_clock: MockClock,
) -> None:
    switch = Breach()
    observer = Stops(lambda branch: switch.trip("seen"))
    with pytest.raises(Breached):
        async with open_branch_nursery(1, breach=switch, observers=[observer]) as nursery:
            nursery.start_soon("a", Flaky(), retry=evenly())
    assert statuses(nursery.result) == {"a": BREACHED}
    assert_complete(nursery, "a")


class Asked:
    def __init__(self) -> None:
        self.keys: list[Any] = []

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        self.keys.append((key, result.status, tally.failed, tally.outstanding))
        return Decision.GO_ON


async def test_the_policy_is_not_asked_about_a_failure_that_is_retried(
    autojump_clock: MockClock,
) -> None:
    asked = Asked()
    await run_branches({"a": Flaky(failures=1)}, policy=asked, retry=evenly())
    assert asked.keys == [("a", SUCCEEDED, 0, 0)]


async def test_a_failing_try_does_not_end_a_step_that_fails_fast(
    autojump_clock: MockClock,
) -> None:
    result = await run_branches(
        {"a": Flaky(failures=1), "b": Flaky(failures=0, takes=9)}, retry=evenly()
    )
    assert result.success
    assert result.stop_reason is None


async def test_a_goal_can_still_be_met_while_it_backs_off(autojump_clock: MockClock) -> None:
    result = await run_branches({"a": Flaky(failures=1)}, policy=FIRST_SUCCESS, retry=evenly())
    assert result.success


async def test_a_rule_fires_for_the_last_try_only(autojump_clock: MockClock) -> None:
    opened = trio.current_time()
    rules = [CancelRule("a", "b", on="end")]
    async with open_branch_nursery(cancel_rules=rules, policy=COLLECT) as nursery:
        nursery.start_soon("a", Flaky(), retry=evenly(attempts=2))
        nursery.start_soon("b", trio.sleep_forever)
    assert nursery.result["b"].ended_at - opened == 3


# ---------------------------------------------------------------- stopped between tries


def cancel(nursery: BranchNursery) -> None:
    assert nursery.cancel("a", "why") is True
    assert nursery.cancel("a", "again") is False


def breach(nursery: BranchNursery) -> None:
    nursery.breach("why")


def fail_body(nursery: BranchNursery) -> None:
    raise ValueError("why")


def nothing(nursery: BranchNursery) -> None:
    pass


@attrs.frozen
class Stop:
    """A way to stop a branch at an instant, and what must come of it."""

    name: str
    status: BranchStatus
    reason: str
    at: Callable[[BranchNursery], None] = nothing
    options: Callable[[float], dict[str, Any]] = lambda seconds: {}
    outside: bool = False
    raises: type[BaseException] | None = None
    helper: bool = False
    """a branch 'b' that ends then"""

    def __repr__(self) -> str:
        return self.name


STOPS = [
    Stop("cancel", CANCELLED, "why", cancel),
    Stop(
        "rule",
        CANCELLED,
        "'b' succeeded: 'b' cancels 'a'",
        options=lambda seconds: {"cancel_rules": [CancelRule("b", "a")]},
        helper=True,
    ),
    Stop(
        "satisfied policy",
        CANCELLED,
        "policy satisfied by 'b'",
        options=lambda seconds: {"policy": FIRST_SUCCESS},
        helper=True,
    ),
    Stop(
        "failed body", CANCELLED, "the body raised ValueError: why", fail_body, raises=BranchErrors
    ),
    Stop("breach", BREACHED, "why", breach, raises=Breached),
    Stop(
        "drain",
        BREACHED,
        "why",
        breach,
        options=lambda seconds: {"on_breach": "drain"},
        raises=Breached,
    ),
    Stop(
        "fail_after",
        TIMED_OUT,
        "step timed out after {} s",
        options=lambda seconds: {"fail_after": seconds},
        raises=StepTimeout,
    ),
    Stop(
        "move_on_after",
        TIMED_OUT,
        "step timed out after {} s",
        options=lambda seconds: {"move_on_after": seconds},
    ),
    Stop("outside", CANCELLED, "cancelled from outside", outside=True),
]

every_stop = pytest.mark.parametrize("stop", STOPS, ids=repr)


@pytest.fixture(params=["backing off", "queued"])
def when(request: pytest.FixtureRequest) -> tuple[float, bool]:
    """When it is to be stopped, and whether it waits for its token again by then."""
    return (1.5, False) if request.param == "backing off" else (2.5, True)


@every_stop
async def test_stopped_between_tries_it_ends_as_a_running_one_would(
    stop: Stop, when: tuple[float, bool], autojump_clock: MockClock
) -> None:
    seconds, is_queued = when
    flaky = Flaky()
    limiter = BranchLimiter(2)
    told = Told()
    options: dict[str, Any] = {"observers": [told], **stop.options(seconds)}
    caught: BaseException | None = None
    with trio.CancelScope() as outside:
        if stop.outside:
            outside.deadline = flaky.opened + seconds
        try:
            async with open_branch_nursery(limiter, **options) as nursery:
                nursery.start_soon("a", flaky, retry=evenly())
                if stop.helper:
                    nursery.start_soon("b", trio.sleep, seconds)
                await trio.sleep(1.25)
                if is_queued:
                    limiter.pause("full")
                await trio.sleep(seconds - 1.25)
                if not stop.helper:
                    assert nursery["a"].status is QUEUED
                    record: Any = nursery["a"]
                    assert (record._entry is not None) == is_queued
                stop.at(nursery)
        except BaseException as exc:
            caught = exc
    result = nursery.result
    ended = result["a"]
    assert ended.status is stop.status
    assert ended.reason == stop.reason.format(seconds)
    assert repr(ended.exception) == "Oops(1)"
    assert ended.attempts == 1
    assert ended.completion_index is not None
    assert ended.ended_at - flaky.opened == pytest.approx(seconds)
    assert flaky.starts == [0]
    assert told.events.count("branch_ended a") == 1
    if stop.raises is None:
        assert caught is None or (stop.outside and isinstance(caught, trio.Cancelled))
    else:
        assert type(caught) is stop.raises
    assert_complete(nursery, *(["a", "b"] if stop.helper else ["a"]))
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_one_that_ends_between_tries_leaves_those_in_flight_as_they_are(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(3, policy=COLLECT) as nursery:
        for key in ("a", "b"):
            nursery.start_soon(key, Flaky(), retry=evenly(every=5))
        d = nursery.start_soon("d", trio.sleep, 4)
        nursery.start_soon("c", d.wait)
        await trio.sleep(2)
        nursery["a"].cancel()
        nursery["b"].cancel()
        statistics = nursery.statistics()
        assert (statistics.queued, statistics.running, statistics.ended) == (0, 2, 2)
        core: Any = nursery._core
        assert (core.running, core.parked) == (2, 1)
    assert [nursery.result[key].status for key in "abcd"] == [CANCELLED] * 2 + [SUCCEEDED] * 2


@pytest.mark.parametrize(("failures", "satisfied"), [(1, False), (2, True)])
async def test_each_that_has_waited_for_too_long_is_one_failure(
    failures: int, satisfied: bool, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(2)
    with nullcontext() if satisfied else pytest.raises(BranchErrors):
        async with open_branch_nursery(limiter, policy=tolerate(failures)) as nursery:
            for key in ("a", "b"):
                nursery.start_soon(key, Flaky(), retry=evenly(timeout=5))
            await trio.sleep(1.5)
            limiter.pause("full")
            await trio.sleep(9)
            limiter.resume()
    assert nursery.result.success is satisfied
    assert nursery.result["a"].status is FAILED


@pytest.mark.parametrize("stop", [stop for stop in STOPS if stop.at is not nothing], ids=repr)
async def test_stopped_when_it_has_its_token_but_has_not_begun(
    stop: Stop, autojump_clock: MockClock
) -> None:
    flaky = Flaky()
    caught: BaseException | None = None
    try:
        async with open_branch_nursery(1, **stop.options(9)) as nursery:
            branch: Any = nursery.start_soon("a", flaky, retry=evenly())
            await trio.sleep(1.5)
            assert tries_of(branch).timer is not None
            queue_again(nursery._core, branch)  # as its timer would, between two passes
            assert branch.status is QUEUED
            assert branch._token is not None
            assert nursery.explain() == {}
            stop.at(nursery)
    except (BranchErrors, Breached) as exc:
        caught = exc
    ended = nursery.result["a"]
    assert ended.status is stop.status
    assert ended.reason == stop.reason
    assert repr(ended.exception) == "Oops(1)"
    assert ended.completion_index == 0
    assert flaky.starts == [0]
    assert (None if caught is None else type(caught)) is stop.raises
    assert_complete(nursery, "a")


async def test_granted_but_not_begun_at_its_timeout(autojump_clock: MockClock) -> None:
    flaky = Flaky()
    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        branch: Any = nursery.start_soon("a", flaky, retry=evenly(timeout=5))
        await trio.sleep(1.5)
        core: Any = nursery._core
        queue_again(core, branch)
        give_up(core, branch)
        nursery.start_soon("b", trio.sleep, 0)
    assert statuses(nursery.result) == {"a": FAILED, "b": SUCCEEDED}
    assert flaky.starts == [0]
    assert_complete(nursery, "a", "b")


async def test_a_try_that_was_told_to_stop_is_not_retried(autojump_clock: MockClock) -> None:
    async def fn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Oops

    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", fn, retry=evenly())
        await trio.sleep(1)
        nursery.cancel("a")
    assert nursery.result["a"].status is FAILED
    assert nursery.result["a"].attempts == 1


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_a_try_that_fails_after_a_breach_is_not_retried(
    how: str, autojump_clock: MockClock
) -> None:
    async def fn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise Oops

    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(on_breach=how) as nursery:
            nursery.start_soon("a", fn, retry=evenly())
            await trio.sleep(1)
            nursery.breach("why")
    assert nursery.result["a"].status is FAILED
    assert nursery.result["a"].attempts == 1
    assert isinstance(caught.value.__cause__, BranchErrors)


async def test_what_it_raised_last_is_shown_by_what_the_block_raises(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", Flaky(), retry=evenly(every=9))
            nursery.start_soon("b", Flaky(takes=2, error=ValueError))
    assert {type(error) for error in caught.value.exceptions} == {Oops, ValueError}
    assert nursery.result["a"].feedback == (
        "'a' was cancelled: policy failed: 'b' failed: ValueError: 1"
    )


async def test_a_refusal_that_breaches_the_step_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    budget = Budget(usd=1)
    calls = []

    async def fn() -> None:
        calls.append(1)
        await trio.sleep(1)
        budget.spend(usd=2)

    with pytest.raises(BudgetExceeded):
        await run_branches({"a": fn}, budget=budget, retry=evenly(Exception))
    assert len(calls) == 1


async def test_a_refusal_that_breaches_nothing_is_an_error_as_any(
    autojump_clock: MockClock,
) -> None:
    budget = Budget(usd=1)
    calls = []

    async def fn() -> None:
        calls.append(1)
        budget.spend(usd=2)

    result = await run_branches({"a": fn}, policy=COLLECT, retry=evenly(BudgetExceeded))
    assert len(calls) == 3
    assert result["a"].status is FAILED


# ---------------------------------------------------------------- each try by itself

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")


async def test_each_try_has_a_fresh_copy_of_the_context(autojump_clock: MockClock) -> None:
    seen = []

    async def fn() -> None:
        seen.append(variable.get())
        variable.set(99)
        await trio.sleep(1)
        assert variable.get() == 99
        raise Oops

    variable.set(1)
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", fn, retry=evenly())
        variable.set(2)
    assert seen == [1, 1, 1]


async def test_a_task_of_an_earlier_try_is_outside(autojump_clock: MockClock) -> None:
    """It has no branch, and its waits lend nothing."""
    seen: list[Any] = []

    async def straggler() -> None:
        seen.append(current_branch().key)
        await trio.sleep(1.5)
        with pytest.raises(RuntimeError, match="not inside a branch"):
            current_branch()
        await trio.sleep(1)
        with pytest.raises(RuntimeError, match="not inside a branch"):
            current_branch()
        assert branch.status is RUNNING
        assert await nursery["b"].wait() is nursery.result_of_b
        seen.append(trio.current_time() - opened)

    async def fn() -> None:
        assert current_branch() is branch
        if branch.attempts == 1:
            around.start_soon(straggler)
            await trio.sleep(1)
            raise Oops
        await trio.sleep(4)
        seen.append(limiter.borrowed_tokens)

    opened = trio.current_time()
    limiter = BranchLimiter(2)
    async with trio.open_nursery() as around, open_branch_nursery(limiter) as real:
        nursery: Any = Proxy(real)
        branch = real.start_soon("a", fn, retry=evenly())
        real.start_soon("b", trio.sleep, 7)
    assert seen == ["a", 2, 7.0]


class Proxy:
    def __init__(self, nursery: BranchNursery) -> None:
        self.nursery = nursery

    def __getitem__(self, key: str) -> Branch[Any]:
        return self.nursery[key]

    @property
    def result_of_b(self) -> StepResult[Any]:
        result: StepResult[Any] = self.nursery["b"].result
        return result


async def test_a_task_of_an_earlier_try_that_waits_still_is_in_nobodys_way(
    autojump_clock: MockClock,
) -> None:
    """Not in that of one that waits for the branch: it is no circle."""

    async def straggler() -> None:
        await nursery["b"].wait()

    async def a() -> str:
        if nursery["a"].attempts == 1:
            around.start_soon(straggler)
            await trio.sleep(1)
            raise Oops
        await trio.sleep(2)
        return "through"

    async def b() -> Any:
        await trio.sleep(1.5)
        return (await nursery["a"].wait()).output

    async with trio.open_nursery() as around, open_branch_nursery(2) as nursery:
        nursery.start_soon("a", a, retry=evenly())
        nursery.start_soon("b", b)
    assert nursery.result["b"].output == "through"
    assert_complete(nursery, "a", "b")


@pytest.mark.parametrize("resuming", [False, True])
async def test_a_try_fails_while_the_branch_is_parked_in_another_task(
    resuming: bool, autojump_clock: MockClock
) -> None:
    """It has lent its token, or is about to get it back: the next try needs one of its own."""

    async def waits() -> None:
        await nursery["b"].wait()

    async def a() -> None:
        starts.append(trio.current_time() - opened)
        if len(starts) == 1:
            async with trio.open_nursery() as own:
                own.start_soon(waits)
                with trio.CancelScope(shield=True):
                    await trio.sleep(4)
                raise Oops
        await trio.sleep(1)

    opened = trio.current_time()
    starts: list[float] = []
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", a, retry=evenly(Exception))
        nursery.start_soon("b", trio.sleep, 3 if resuming else 5)
        nursery.start_soon("c", trio.sleep, 6, priority=-1)
        nursery.start_soon("d", trio.sleep, 6, priority=-1)
        await trio.sleep(3.5)
        assert limiter.borrowed_tokens == 2
    # 'a' failed at 4, and was due at 5: a token came free at 5, or at 6.
    assert starts[0] == 0
    assert nursery.result["a"].attempts == 2
    assert nursery.result.success
    assert_complete(nursery, "a", "b", "c", "d")


async def test_a_step_nested_in_a_branch_that_is_retried(autojump_clock: MockClock) -> None:
    inner_flaky = Flaky(failures=3)

    async def outer() -> str:
        result = await run_branches({"in": inner_flaky}, retry=evenly(attempts=2))
        return str(result["in"].output)

    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer, retry=evenly(BranchErrors))
    assert nursery.result["outer"].output == "through"
    assert nursery.result["outer"].attempts == 2
    assert inner_flaky.starts == [0, 2, 4, 6]
    assert_complete(nursery, "outer")


async def test_the_last_nested_branch_gives_up(autojump_clock: MockClock) -> None:
    """Its parent goes on, though no token is handed over."""

    async def outer() -> None:
        async with open_branch_nursery(policy=COLLECT) as inner:
            inner.start_soon("in", Flaky(), retry=evenly(timeout=5))
            inner.start_soon("other", trio.sleep, 1)
            await trio.sleep(1.5)
            inner.pause("mine")

    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
    assert nursery.result.success
    assert nursery.result["outer"].duration >= 5
    assert_complete(nursery, "outer")


async def test_a_retry_is_an_admission_of_the_policy_of_the_step_only(
    autojump_clock: MockClock,
) -> None:
    """Cancelled from outside while nothing runs: the next try does not start."""
    flaky = Flaky()
    with trio.CancelScope() as scope:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", flaky, retry=evenly())
            await trio.sleep(1.5)
            core: Any = nursery._core
            scope.cancel()
            queue_again(core, nursery["a"])
    assert flaky.starts == [0]
    assert statuses(nursery.result) == {"a": CANCELLED}
    assert_complete(nursery, "a")


@pytest.mark.parametrize("seed", range(10))
def test_many_that_fail_at_random(seed: int) -> None:
    """All are through in the end, never more than the limit at once."""
    rng = random.Random(seed)

    async def main() -> None:
        running = 0

        async def fn() -> None:
            nonlocal running
            running += 1
            assert running <= 3
            try:
                await trio.sleep(rng.random())
                if rng.random() < 0.5:
                    raise Oops
            finally:
                running -= 1

        async with open_branch_nursery(3) as nursery:
            for n in range(30):
                nursery.start_soon(n, fn, retry=Retry(Oops, 99, 0.1, 1.0, 0.5), priority=n % 3)
        assert nursery.result.success
        assert nursery.result.peak_in_flight == 3
        assert_complete(nursery, *range(30))

    run(main)


# ---------------------------------------------------------------- nothing is kept


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Thing:
    pass


async def given_up(refs: list[weakref.ref[Any]]) -> BranchNursery:
    async def fail(thing: Thing) -> None:
        refs.append(weakref.ref(current_branch()))
        await trio.sleep(1)
        error = Oops()
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async with open_branch_nursery(policy=COLLECT) as nursery:
        thing = Thing()
        refs.append(weakref.ref(thing))
        nursery.start_soon("a", fail, thing, retry=evenly())
    return nursery


async def stopped(refs: list[weakref.ref[Any]]) -> BranchNursery:
    nurseries = []

    async def timed_out() -> None:
        refs.append(weakref.ref(current_branch()))
        await trio.sleep_forever()

    with trio.move_on_after(1.5):
        async with open_branch_nursery() as nursery:
            nurseries.append(nursery)
            retry = evenly(trio.TooSlowError)
            nursery.start_soon("a", timed_out, timeout=1, retry=retry)
    return nurseries.pop()


async def came_through(refs: list[weakref.ref[Any]]) -> BranchNursery:
    errors: list[weakref.ref[Any]] = []

    async def fn() -> Thing:
        await trio.sleep(1)
        if not errors:
            error = Oops()
            errors.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error
        return Thing()

    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", fn, retry=evenly())
    assert errors[0]() is None  # with the end of the branch
    refs.append(weakref.ref(nursery.result["a"].output))
    return nursery


async def came_through_in_time(refs: list[weakref.ref[Any]]) -> BranchNursery:
    errors: list[Oops] = []

    async def fn() -> None:
        if len(errors) < 2:
            errors.append(Oops())
            raise errors[-1]

    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", fn, retry=Retry(Oops, wait_initial=1, timeout=3600))
    return nursery


@pytest.mark.parametrize("program", [given_up, stopped, came_through, came_through_in_time])
@pytest.mark.usefixtures("no_collector")
def test_nothing_is_kept_alive(program: Callable[[Any], Awaitable[BranchNursery]]) -> None:
    async def main() -> list[weakref.ref[Any]]:
        refs: list[weakref.ref[Any]] = []
        nursery = await program(refs)
        record: Any = nursery["a"]
        for slot in ("_fn", "_context", "_step", "_token", "_place", "_tries", "_entry"):
            assert getattr(record, slot) is None, slot
        refs.append(weakref.ref(nursery))
        del record, nursery
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        return refs

    refs = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [ref() for ref in refs] == [None] * len(refs)


# ---------------------------------------------------------------- bad input

ON = "an exception class, or a tuple of them"
SECONDS = "a number of seconds >= 0, or math.inf"


@pytest.mark.parametrize(
    ("field", "value", "error", "what"),
    [
        ("on", "Oops", TypeError, ON),
        ("on", Oops(), TypeError, ON),
        ("on", None, TypeError, ON),
        ("on", [Oops], TypeError, ON),
        ("on", (Oops, "x"), TypeError, ON),
        ("on", ((Oops,),), TypeError, ON),
        ("on", (), ValueError, ON),
        ("on", BaseException, ValueError, ON),
        ("on", KeyboardInterrupt, ValueError, ON),
        ("on", (Oops, SystemExit), ValueError, ON),
        ("on", int, ValueError, ON),
        ("attempts", 0, ValueError, "an int >= 1"),
        ("attempts", -1, ValueError, "an int >= 1"),
        ("attempts", 1.0, TypeError, "an int >= 1"),
        ("attempts", math.inf, TypeError, "an int >= 1"),
        ("attempts", True, TypeError, "an int >= 1"),
        ("attempts", None, TypeError, "an int >= 1"),
        *(
            (field, value, error, SECONDS)
            for field in ("wait_initial", "wait_max", "wait_jitter", "timeout")
            for value, error in [
                (-1, ValueError),
                (math.nan, ValueError),
                (True, TypeError),
                ("1", TypeError),
                (None, TypeError),
            ]
        ),
    ],
)
def test_a_field_that_is_wrong(field: str, value: Any, error: type[Exception], what: str) -> None:
    options = {"on": Oops, field: value}
    message = f"`{field}` must be {what}, got {value!r}"
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Retry(**options)


@pytest.mark.parametrize("given", [3, Oops, "3", Retry, True])
async def test_what_is_no_retry(given: Any) -> None:
    message = f"`retry` must be a Retry or None, got {given!r}"
    async with open_branch_nursery() as nursery:
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            nursery.start_soon("a", trio.sleep, 0, retry=given)
        assert nursery.statistics().queued == 0
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        await run_branches({"a": lambda: trio.lowlevel.checkpoint()}, retry=given)


def test_a_retry_is_a_value() -> None:
    assert Retry(Oops) == Retry(Oops)
    assert hash(Retry(Oops)) == hash(Retry(Oops))
    with pytest.raises(AttributeError):
        Retry(Oops).attempts = 4  # type: ignore[misc]
