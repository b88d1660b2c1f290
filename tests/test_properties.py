"""Random programs under random schedules, against the oracle and a model."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import trio
from hypothesis import HealthCheck, given, settings, strategies as st
from trio.testing import MockClock

from clocks import schedule
from oracle import Oracle
from strategies import Interpreter, Oops, Program, limits, priorities, programs
from trio_parallel_steps import (
    COLLECT,
    Branch,
    BranchLimiter,
    BranchStatus,
    open_branch_nursery,
)
from trio_parallel_steps.testing import assert_no_stall

STALLED = 10_000.0  # virtual seconds; no program has that much to do

property_settings = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# ---------------------------------------------------------------- programs on trio


@attrs.define
class TrioKit:
    timers: trio.Nursery
    cancelled: type[BaseException] = trio.Cancelled

    def now(self) -> float:
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def sleep_shielded(self, seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        async def wait_and_call() -> None:
            await trio.sleep(seconds)
            call()

        self.timers.start_soon(wait_and_call)

    def move_on_after(self, seconds: float) -> AbstractContextManager[Any]:
        return trio.move_on_after(seconds)


class Watch(trio.abc.Instrument):
    """Asks the oracle at every step of the scheduler, and counts tasks."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._look()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._look()

    def _look(self) -> None:
        try:
            self._oracle.step_of_scheduler()
        except Exception as exc:  # an instrument that raises is dropped in silence
            self._oracle.violations.append(repr(exc))


def is_cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf


async def run_on_trio(program: Program) -> Oracle:
    oracle = Oracle(trio.current_time, trio.Cancelled, is_cancelled)
    status = trio.lowlevel.current_task()._cancel_status
    async with trio.open_nursery() as timers:
        interpreter = Interpreter(program, TrioKit(timers), oracle)
        watch = Watch(oracle)
        trio.lowlevel.add_instrument(watch)
        with (
            assert_no_stall() as no_stall,
            trio.move_on_after(STALLED) as stall,
            trio.CancelScope() as outside,
        ):
            oracle.observers.append(no_stall)

            def interrupt() -> None:
                oracle.interrupt()
                outside.cancel()

            async with trio.open_nursery() as nursery:
                for task in interpreter.tasks():
                    nursery.start_soon(_as_task(task))
                if program.cancelled_at < math.inf:
                    interpreter.kit.later(program.cancelled_at, interrupt)
        oracle.check(not stall.cancelled_caught, "nothing stalls", program)
        timers.cancel_scope.cancel()
    oracle.check(not watch.tasks, "no task is left", watch.tasks)
    oracle.check(trio.lowlevel.current_task()._cancel_status is status, "no scope is left", program)
    trio.lowlevel.remove_instrument(watch)
    oracle.at_the_end()
    return oracle


def _as_task(run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def task() -> None:
        await run()

    return task


def oracle_of(program: Program) -> Oracle:
    with schedule(program.seed):
        oracle: Oracle = trio.run(run_on_trio, program, clock=MockClock(autojump_threshold=0))
    return oracle


# ---------------------------------------------------------------- the properties


@property_settings
@given(programs())
def test_any_program_keeps_the_invariants(program: Program) -> None:
    oracle_of(program).verdict()


@property_settings
@given(programs(reactive=True))
def test_observers_that_act_change_no_invariant(program: Program) -> None:
    oracle_of(program).verdict()


@settings(property_settings, max_examples=100)
@given(programs())
def test_the_same_seed_gives_the_same_log(program: Program) -> None:
    assert oracle_of(program).log == oracle_of(program).log


# ---------------------------------------------------------------- against a model


@attrs.frozen
class Job:
    duration: float
    priority: int
    fails: bool
    cancelled_at: float  # by the body, if it is not too late
    priority_later: int  # set by the body at the time below, if it is still queued
    changed_at: float


def fraction(number: int) -> float:
    """No two sums of different ones are equal: a time tells which events led to it."""
    return 2.0 ** -(number + 1)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Job], float, list[tuple[float, float]]]:
    count = draw(st.integers(1, 9))
    numbers = iter(range(40))
    never = st.just(math.inf)
    instants = st.one_of(never, st.integers(0, 6))
    jobs = [
        Job(
            duration=draw(st.integers(0, 4)) + fraction(next(numbers)),
            priority=draw(priorities),
            fails=draw(st.booleans()),
            cancelled_at=draw(instants) + fraction(next(numbers)),
            priority_later=draw(priorities),
            changed_at=draw(instants) + fraction(next(numbers)),
        )
        for _ in range(count)
    ]
    limit = draw(limits)
    changes = [
        (draw(st.integers(0, 6)) + fraction(next(numbers)), float(draw(limits)))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return jobs, limit, changes


Account = dict[int, tuple[BranchStatus, float | None, float]]  # how, from when, until when


def predict(
    jobs: list[Job], limit: float, changes: list[tuple[float, float]]
) -> tuple[Account, int]:
    """List scheduling, event by event."""
    account: Account = {}
    priority = {number: job.priority for number, job in enumerate(jobs)}
    queued = set(priority)
    running: dict[int, tuple[float, float]] = {}  # from when, until when
    peak = 0
    events: list[tuple[float, str, int]] = []
    for number, job in enumerate(jobs):
        events += [(job.cancelled_at, "cancel", number), (job.changed_at, "change", number)]
    events += [(at, "limit", number) for number, (at, _) in enumerate(changes)]
    events = sorted(event for event in events if event[0] < math.inf)
    now = 0.0
    while True:
        while queued and len(running) < limit:
            best = min(queued, key=lambda number: (-priority[number], number))
            queued.remove(best)
            running[best] = (now, now + jobs[best].duration)
            peak = max(peak, len(running))
        ends = [(until, "end", number) for number, (_, until) in running.items()]
        if not ends and not queued:
            return account, peak
        now, what, number = min([*ends, *events[:1]])
        if what != "end":
            events.pop(0)
        if what == "end":
            how = BranchStatus.FAILED if jobs[number].fails else BranchStatus.SUCCEEDED
            account[number] = (how, running.pop(number)[0], now)
        elif what == "limit":
            limit = changes[number][1]
        elif what == "change" and number in queued:
            priority[number] = jobs[number].priority_later
        elif what == "cancel" and number in queued:
            queued.remove(number)
            account[number] = (BranchStatus.SKIPPED, None, now)
        elif what == "cancel" and number in running:
            account[number] = (BranchStatus.CANCELLED, running.pop(number)[0], now)


async def observe(
    jobs: list[Job], limit: int | float, changes: list[tuple[float, float]]
) -> tuple[Account, int]:
    shared = BranchLimiter(limit)

    async def work(job: Job) -> None:
        await trio.sleep(job.duration)
        if job.fails:
            raise Oops

    async def at(instant: float, call: Callable[[], object]) -> None:
        await trio.sleep(instant)
        call()

    def change(branch: Branch[None], priority: int) -> None:
        if branch.status is BranchStatus.QUEUED:
            branch.priority = priority

    def set_limit(total_tokens: float) -> None:
        shared.total_tokens = int(total_tokens) if total_tokens < math.inf else math.inf

    async with trio.open_nursery() as timers:
        async with open_branch_nursery(shared, policy=COLLECT) as nursery:
            for instant, total_tokens in changes:
                timers.start_soon(at, instant, partial(set_limit, total_tokens))
            for number, job in enumerate(jobs):
                branch = nursery.start_soon(number, work, job, priority=job.priority)
                if job.cancelled_at < math.inf:
                    timers.start_soon(at, job.cancelled_at, branch.cancel)
                if job.changed_at < math.inf:
                    timers.start_soon(
                        at, job.changed_at, partial(change, branch, job.priority_later)
                    )
        timers.cancel_scope.cancel()
    result = nursery.result
    account = {
        number: (ended.status, ended.started_at, ended.ended_at) for number, ended in result.items()
    }
    return account, result.peak_in_flight


@property_settings
@given(workloads(), st.integers(0, 2**16))
def test_a_step_is_list_scheduling(
    workload: tuple[list[Job], float, list[tuple[float, float]]], seed: int
) -> None:
    jobs, limit, changes = workload
    with schedule(seed):
        observed = trio.run(observe, jobs, limit, changes, clock=MockClock(autojump_threshold=0))
    expected, peak = predict(jobs, limit, changes)
    assert observed == (dict(sorted(expected.items())), peak)
