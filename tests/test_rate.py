"""`Rate`: admissions spaced in time, by GCRA."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from drivers import EVERY_DRIVER, Driver, World
from helpers import SKIPPED, SUCCEEDED, assert_complete, assert_idle, run, statuses
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    Rate,
    Retry,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps._rate import Gate

FINITE = "must be a finite number > 0, got "


# ---------------------------------------------------------------- the gate, by itself


class FakeRun:
    """Time as exact fractions, moved by the test; it holds what it was asked to call."""

    def __init__(self) -> None:
        self.time: Any = Fraction(0)
        self.timers: list[FakeTimer] = []

    def now(self) -> Any:
        return self.time

    def call_at(self, when: Any, call: Callable[[], object]) -> FakeTimer:
        self.timers.append(FakeTimer(self, when, call))
        return self.timers[-1]


class FakeTimer:
    def __init__(self, run: FakeRun, when: Any, call: Callable[[], object]) -> None:
        self.run = run
        self.when = when
        self.call = call

    def cancel(self) -> None:
        self.run.timers.remove(self)

    def ring(self) -> None:
        self.run.timers.remove(self)
        self.call()


def gate(rate: Rate) -> tuple[Gate, FakeRun]:
    fake: Any = FakeRun()
    return Gate(rate, fake), fake


def never() -> None:
    raise AssertionError("nobody asked to be called")


# What floats hold exactly, so that the model's fractions and the gate's numbers are the same.
rates = st.builds(
    Rate,
    amount=st.sampled_from([0.25, 0.5, 1, 2, 4, 8]),
    per=st.sampled_from([0.5, 1.0, 2.0, 64.0]),
    burst=st.integers(1, 5),
)
gaps = st.lists(st.integers(0, 40).map(lambda n: n / 16), max_size=60)


def bucket_admits(rate: Rate, arrivals: list[float]) -> list[float]:
    """A bucket of `burst` tokens, refilled with one each interval, in exact fractions: the other
    description of the same algorithm."""
    interval = Fraction(rate.per) / Fraction(rate.amount)
    level, filled_at = Fraction(rate.burst), Fraction(0)
    admitted = []
    for arrival in map(Fraction, arrivals):
        level = min(Fraction(rate.burst), level + (arrival - filled_at) / interval)
        filled_at = arrival
        if level >= 1:
            level -= 1
            admitted.append(float(arrival))
    return admitted


@given(rates, gaps)
def test_it_admits_what_a_bucket_of_tokens_would(rate: Rate, gaps: list[float]) -> None:
    under_test, fake = gate(rate)
    arrivals, admitted = [], []
    for gap in gaps:
        fake.time += Fraction(gap)
        arrivals.append(float(fake.time))
        if under_test.is_open(lambda: None):
            assert under_test.opens_in() == 0.0
            under_test.spend()
            admitted.append(float(fake.time))
        else:
            assert under_test.opens_in() > 0
    assert admitted == bucket_admits(rate, arrivals)


@given(rates, gaps)
def test_no_window_holds_more_than_was_promised(rate: Rate, gaps: list[float]) -> None:
    """And as many come as may: whoever waits goes in the instant in which the gate opens."""
    under_test, fake = gate(rate)
    admitted: list[Any] = []
    for gap in gaps:
        fake.time += Fraction(gap)
        while not under_test.is_open(lambda: None):
            (timer,) = fake.timers
            assert timer.when == fake.time + Fraction(under_test.opens_in()) > fake.time
            fake.time = timer.when
            timer.ring()
        under_test.spend()
        admitted.append(fake.time)
    most = math.ceil(rate.amount) + rate.burst - 1
    for start in admitted:
        assert sum(start <= at < start + Fraction(rate.per) for at in admitted) <= most
    interval = Fraction(rate.per) / Fraction(rate.amount)
    for first, later in zip(admitted, admitted[rate.burst :], strict=False):
        assert later - first >= interval


@given(rates, gaps, st.data())
def test_what_never_began_is_refunded(rate: Rate, gaps: list[float], data: st.DataObject) -> None:
    """In its instant the gate is as it was; and never ahead of one that was not asked."""
    refunding, fake = gate(rate)
    other, other_fake = gate(rate)
    for gap in gaps:
        fake.time += Fraction(gap)
        other_fake.time = fake.time
        if not refunding.is_open(lambda: None):
            continue
        before = refunding.opens_in()
        refunding.spend()
        if data.draw(st.booleans()):
            refunding.refund()
            assert refunding.opens_in() == before
        else:
            assert other.is_open(never)
            other.spend()
        assert other.opens_in() <= refunding.opens_in()


def test_it_asks_for_one_call_however_often_it_is_asked() -> None:
    under_test, fake = gate(Rate(1))
    assert under_test.is_open(never)
    under_test.spend()
    told: list[int] = []
    for n in range(3):
        assert not under_test.is_open(lambda n=n: told.append(n))  # type: ignore[misc]
    (timer,) = fake.timers
    assert timer.when == 1.0
    fake.time = 1.0
    timer.ring()
    assert told == [0]
    assert under_test.is_open(never)
    under_test.close()  # with nothing to close
    under_test.spend()
    assert not under_test.is_open(never)
    under_test.close()
    assert not fake.timers


# ---------------------------------------------------------------- branches


async def starts(
    limiter: BranchLimiter, count: int, fn: Callable[[], Awaitable[object]] | None = None
) -> list[float]:
    """When each of so many began, since the first instant."""
    opened = trio.current_time()
    times = []

    async def body() -> None:
        times.append(round(trio.current_time() - opened, 9))
        if fn is not None:
            await fn()

    await run_branches(dict.fromkeys(range(count), body), limiter)
    return times


def test_admissions_are_spaced() -> None:
    assert run(starts, BranchLimiter(9, rate=Rate(4)), 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_per_is_in_seconds() -> None:
    assert run(starts, BranchLimiter(9, rate=Rate(2, per=60.0)), 3) == [0.0, 30.0, 60.0]


def test_amount_may_be_less_than_one() -> None:
    assert run(starts, BranchLimiter(9, rate=Rate(0.1)), 3) == [0.0, 10.0, 20.0]


def test_a_burst_comes_at_once_and_then_one_at_a_time() -> None:
    limiter = BranchLimiter(9, rate=Rate(2, burst=3))
    assert run(starts, limiter, 6) == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5]


def test_after_a_rest_there_is_a_burst_again_and_no_more_than_that() -> None:
    async def main() -> list[float]:
        limiter = BranchLimiter(9, rate=Rate(1, burst=2))
        async with open_branch_nursery():
            await starts(limiter, 3)  # the last at 1
            await trio.sleep(1)  # half of a rest
            first = await starts(limiter, 3)
            await trio.sleep(100)
        return [*first, *await starts(limiter, 4)]

    assert run(main) == [0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0]


def test_the_limit_holds_too() -> None:
    limiter = BranchLimiter(1, rate=Rate(1))
    assert run(starts, limiter, 3, lambda: trio.sleep(1.5)) == [0.0, 1.5, 3.0]


def test_the_end_of_a_branch_does_not_let_the_next_one_through() -> None:
    """A place that has come free takes no follower before its time."""
    limiter = BranchLimiter(1, rate=Rate(1))
    assert run(starts, limiter, 3, lambda: trio.sleep(0.25)) == [0.0, 1.0, 2.0]


def test_an_unlimited_limiter_may_have_a_rate() -> None:
    limiter = BranchLimiter(math.inf, rate=Rate(1))
    assert run(starts, limiter, 3, lambda: trio.sleep(9)) == [0.0, 1.0, 2.0]


def test_priority_decides_among_those_that_wait() -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def body(key: str) -> None:
            order.append(key)

        async with open_branch_nursery(BranchLimiter(9, rate=Rate(1))) as nursery:
            for key in "abc":
                nursery.start_soon(key, body, key)
            await trio.sleep(0.5)
            nursery.start_soon("urgent", body, "urgent", priority=1)
            nursery["c"].priority = 2
        return order

    assert run(main) == ["a", "c", "urgent", "b"]


async def test_a_branch_stopped_while_it_waits_spends_nothing(autojump_clock: MockClock) -> None:
    opened = trio.current_time()
    async with open_branch_nursery(BranchLimiter(9, rate=Rate(1))) as nursery:
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 0)
        await trio.sleep(0.5)
        assert nursery.cancel(1)
        assert nursery.cancel(2)
    result = nursery.result
    assert [statuses(result)[n] for n in range(4)] == [SUCCEEDED, SKIPPED, SKIPPED, SUCCEEDED]
    started = result[3].started_at
    assert started is not None
    assert started - opened == pytest.approx(1.0)
    assert_complete(nursery, *range(4))


async def stop_b(nursery: BranchNursery) -> None:
    b: Any = nursery["b"]
    assert b._token is not None
    assert b.cancel()


async def test_a_branch_stopped_before_its_function_is_called_spends_nothing(
    autojump_clock: MockClock,
) -> None:
    """It had its token, but not yet its place to run in."""
    opened = trio.current_time()
    async with open_branch_nursery(BranchLimiter(9, rate=Rate(1, burst=2))) as nursery:
        nursery.start_soon("a", stop_b, nursery)
        nursery.start_soon("b", trio.sleep, 0)
        nursery.start_soon("c", trio.sleep, 0)
    assert statuses(nursery.result) == {"a": SUCCEEDED, "b": SKIPPED, "c": SUCCEEDED}
    assert nursery.result["c"].started_at == opened


async def test_a_task_cancelled_as_it_enters_spends_nothing(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1))
    entered: list[float] = []

    async def enter() -> None:
        async with limiter:
            entered.append(trio.current_time())

    opened = trio.current_time()
    for _ in range(3):  # granted at once, and cancelled before it goes on
        with trio.CancelScope() as scope:
            scope.cancel()
            await enter()
    await enter()
    assert entered == [opened]
    with trio.move_on_after(0.5):  # while it waits
        await enter()
    await enter()
    assert entered == [opened, pytest.approx(opened + 1)]
    assert_idle(limiter)


async def test_who_goes_on_is_not_held(autojump_clock: MockClock) -> None:
    """A branch that was parked, and one that its last nested branch hands its token to."""
    opened = trio.current_time()
    went_on = []

    async def outer() -> None:
        await run_branches({"in": trio.lowlevel.checkpoint})  # a sub-step: it is admitted at 10
        went_on.append(trio.current_time() - opened)
        with trio.move_on_after(5):
            await nursery["sleeps"].wait()
        went_on.append(trio.current_time() - opened)

    limiter = BranchLimiter(9, rate=Rate(1, per=10.0, burst=2))
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        nursery.start_soon("sleeps", trio.sleep, 100)
        for n in range(3):
            nursery.start_soon(n, trio.sleep, 0, priority=-1)
    assert went_on == [pytest.approx(10), pytest.approx(15)]
    assert [result.started_at for result in nursery.result.values()] == [
        pytest.approx(opened + after) for after in (0, 0, 20, 30, 40)
    ]


async def test_a_retry_is_an_admission(autojump_clock: MockClock) -> None:
    opened = trio.current_time()
    starts = []

    async def fail() -> None:
        starts.append(trio.current_time() - opened)
        raise ValueError

    async with open_branch_nursery(BranchLimiter(9, rate=Rate(0.1)), policy=COLLECT) as nursery:
        nursery.start_soon("a", fail, retry=Retry(ValueError, wait_initial=1, wait_jitter=0))
    assert starts == [0, 10, 20]


async def test_nested_branches_spend_the_rate_they_run_under(autojump_clock: MockClock) -> None:
    """Under a sub-cap too."""
    opened = trio.current_time()
    times = []

    async def inner() -> None:
        times.append(trio.current_time() - opened)

    async def outer() -> None:
        await run_branches(dict.fromkeys(range(3), inner), 2)

    await run_branches({"outer": outer}, BranchLimiter(9, rate=Rate(1)))
    assert times == [1.0, 2.0, 3.0]


async def test_a_rate_is_shared_by_steps_and_by_who_enters(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1))
    opened = trio.current_time()
    times: list[tuple[str, float]] = []

    async def note(key: str) -> None:
        times.append((key, trio.current_time() - opened))

    async def step(key: str) -> None:
        await run_branches({n: lambda: note(key) for n in range(2)}, limiter)

    async def enter(key: str) -> None:
        async with limiter:
            await note(key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(step, "one")
        await wait_all_tasks_blocked()
        nursery.start_soon(step, "two")
        await wait_all_tasks_blocked()
        nursery.start_soon(enter, "enters")
    assert times == [("one", 0), ("one", 1), ("two", 2), ("two", 3), ("enters", 4)]
    assert_idle(limiter)


async def test_only_who_enters(autojump_clock: MockClock) -> None:
    """Without any step open."""
    limiter = BranchLimiter(1, rate=Rate(2))
    opened = trio.current_time()
    for n in range(4):
        async with limiter:
            assert trio.current_time() - opened == n / 2


async def test_in_a_new_run_the_rate_is_fresh() -> None:
    limiter = BranchLimiter(9, rate=Rate(1, per=1000.0))
    for _ in range(3):
        assert await trio.to_thread.run_sync(run, starts, limiter, 1) == [0.0]


async def test_a_pause_holds_beside_the_rate(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1))
    opened = trio.current_time()
    async with open_branch_nursery(limiter) as nursery:
        for n in range(4):
            nursery.start_soon(n, trio.sleep, 0)
        await trio.sleep(0.5)
        limiter.pause("lunch")
        await trio.sleep(5)
        assert nursery.statistics().ended == 1
        limiter.resume()  # the rate allows one at once
        await trio.sleep(0.5)
        nursery.pause("mine")
        await trio.sleep(5)
        nursery.resume()
    times = [ended.started_at for ended in nursery.result.values()]
    assert times == [opened, opened + 5.5, opened + 11, opened + 12]


async def test_a_pause_of_one_step_leaves_the_rate_to_others(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1))
    opened = trio.current_time()
    async with open_branch_nursery(limiter) as paused, open_branch_nursery(limiter) as other:
        paused.pause("mine")
        paused.start_soon("a", trio.sleep, 0, priority=9)
        for n in range(2):
            other.start_soon(n, trio.sleep, 0)
        await trio.sleep(5)
        assert [ended.started_at for ended in [r async for r in other.completed()]] == [
            opened,
            opened + 1,
        ]
        paused.resume()


# ---------------------------------------------------------------- nothing is left


def deadline() -> float:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


class Tasks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.alive: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.alive.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.alive.discard(task)


async def all_go(limiter: BranchLimiter, rest: Callable[[BranchNursery], object]) -> None:
    """What waits for the rate goes; then nothing of the timers is left."""
    tasks = Tasks()
    trio.lowlevel.add_instrument(tasks)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(3):
            nursery.start_soon(n, trio.sleep, 0)
        await wait_all_tasks_blocked()
        assert deadline() == pytest.approx(100)
        rest(nursery)
        await wait_all_tasks_blocked()
        assert deadline() == math.inf
        assert not tasks.alive
    trio.lowlevel.remove_instrument(tasks)


async def test_no_timer_is_left_once_all_are_cancelled(mock_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1, per=100.0))
    await all_go(limiter, lambda nursery: nursery.cancel_where(lambda key: True))
    assert_idle(limiter)


async def test_no_timer_is_left_after_a_cancelled_entry(mock_clock: MockClock) -> None:
    limiter = BranchLimiter(9, rate=Rate(1, per=100.0))
    async with limiter:
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limiter.__aenter__)
        await wait_all_tasks_blocked()
        assert deadline() == 100
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert deadline() == math.inf


async def test_no_timer_is_left_once_the_last_that_waits_has_gone_on(
    mock_clock: MockClock,
) -> None:
    """A gated branch goes while another waits for its token: that one needs no timer."""
    limiter = BranchLimiter(1, rate=Rate(1, per=100.0, burst=2))
    released = trio.Event()

    async def waits() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await nursery["gated"].wait()

    scopes: list[trio.CancelScope] = []
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("waits", waits)
        nursery.start_soon("runs", released.wait)
        nursery.start_soon("gated", trio.sleep, 0)
        await wait_all_tasks_blocked()
        limiter.total_tokens = 2
        await wait_all_tasks_blocked()
        assert deadline() == pytest.approx(100)
        limiter.total_tokens = 1
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert nursery.explain()["waits"] == "to go on: limit: 1 of 1 in use"
        nursery.cancel("gated")
        released.set()
        await wait_all_tasks_blocked()
        assert deadline() == math.inf


def test_a_timer_that_is_left_keeps_nobody() -> None:
    """A run may end while someone waits for the rate."""

    async def main() -> None:
        limiter = BranchLimiter(9, rate=Rate(1, per=100.0))
        with trio.move_on_after(1):
            await starts(limiter, 3)
        assert_idle(limiter)

    run(main)


@EVERY_DRIVER
def test_on_every_host(driver: Driver) -> None:
    async def program(world: World) -> list[float]:
        opened = world.now()
        times = []

        async def note() -> None:
            times.append(round(world.now() - opened, 6))

        limiter = BranchLimiter(9, rate=Rate(4, burst=2))
        await run_branches(dict.fromkeys(range(4), note), limiter)
        async with limiter:
            await note()
        return times

    assert driver(program) == [0.0, 0.0, 0.25, 0.5, 0.75]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("field", ["amount", "per"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (10**400, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
    ],
)
def test_amount_and_per_are_finite_numbers(field: str, value: Any, error: type[Exception]) -> None:
    options = {"amount": 1, field: value}
    message = f"`{field}` {FINITE}{value!r}"
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Rate(**options)


def test_an_interval_past_all_floats_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`per` / `amount` must be a finite number > 0, got inf"):
        Rate(1e-300, per=1e300)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (math.inf, TypeError),
        (None, TypeError),
    ],
)
def test_burst_is_a_whole_number(value: Any, error: type[Exception]) -> None:
    message = f"`burst` must be an int >= 1, got {value!r}"
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Rate(1, burst=value)


@pytest.mark.parametrize("value", [1, 1.0, "1/s", Rate, False])
def test_a_limiters_rate_is_a_rate(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^`rate` must be a Rate or None, got "):
        BranchLimiter(1, rate=value)


def test_a_rate_is_a_value() -> None:
    assert Rate(3) == Rate(3, 1.0, 1)
    assert hash(Rate(3)) == hash(Rate(3))
    with pytest.raises(AttributeError):
        Rate(3).amount = 4  # type: ignore[misc]
