"""Small programs of this package under all their schedules, with a fault at every step; larger ones
under many.

Each run is checked against the promises of the package: those of `check_invariants`, that time does
not pass while something is admissible, and that the block raises what the endings table says.  What
is marked `long` is for ``nox -s explore``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breached,
    ParallelResult,
    Policy,
    open_branch_nursery,
)
from trio_parallel_steps.testing import (
    Call,
    Cancel,
    Deadline,
    Explored,
    Fault,
    Interrupt,
    Recorder,
    Run,
    SetLimit,
    TripBreach,
    assert_no_stall,
    check_invariants,
    explore,
    expose,
    recorder,
    replay,
)

SEEDED = 20_000  # schedules of all programs together


class Oops(Exception):
    """A branch's own error."""


@attrs.frozen
class Program:
    """Branches of some checkpoints each, under a limit; the first has a step of two, if it nests;
    the last fails, if one fails; and tasks that are no branches come for tokens too.  Or they end
    with a wait for an event: a cancellation may come too late for that."""

    branches: int
    limit: int
    nests: bool = False
    checkpoints: int = 1
    fails: bool = False
    visitors: int = 0
    signalled: bool = False
    policy: Policy = COLLECT
    sleeps: bool = False

    async def __call__(self) -> ParallelResult[Any, Any]:
        recorded = recorder()
        limiter = BranchLimiter(self.limit)
        signal = trio.Event()
        expose(recorded=recorded, limiter=limiter)
        with assert_no_stall(limiter) as watch:
            async with trio.open_nursery() as visitors:
                for _ in range(self.visitors):
                    visitors.start_soon(self.visit, limiter)
                if self.signalled:
                    visitors.start_soon(self.send, signal)
                else:
                    signal.set()
                return await self.run_step(limiter, [recorded, watch], recorded, signal)

    async def send(self, signal: trio.Event) -> None:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        signal.set()

    async def run_step(
        self,
        limiter: BranchLimiter,
        observers: list[Any],
        recorded: Recorder,
        signal: trio.Event,
    ) -> ParallelResult[Any, Any]:
        async with open_branch_nursery(
            limiter, name="step", policy=self.policy, observers=observers
        ) as nursery:
            for key in range(self.branches):
                body: Callable[[], Awaitable[str]] = self.work
                if self.signalled:
                    body = partial(self.wait, signal)
                if self.nests and key == 0:
                    body = self.parent(observers, recorded)
                elif self.fails and key == self.branches - 1:
                    body = self.fail
                branch = nursery.start_soon(key, recorded.watch(body))
                expose(**{f"branch {key}": branch})
            expose(nursery=nursery)
        return nursery.result

    async def visit(self, limiter: BranchLimiter) -> None:
        async with limiter:
            await trio.lowlevel.checkpoint()

    async def work(self) -> str:
        for _ in range(self.checkpoints):
            await (trio.sleep(1) if self.sleeps else trio.lowlevel.checkpoint())
        return "done"

    async def wait(self, signal: trio.Event) -> str:
        await signal.wait()
        return "done"

    async def fail(self) -> str:
        await self.work()
        raise Oops

    def parent(self, observers: list[Any], recorded: Recorder) -> Callable[[], Awaitable[str]]:
        async def body() -> str:
            async with open_branch_nursery(name="inner", observers=observers) as inner:
                for key in "ab":
                    inner.start_soon(key, recorded.watch(self.work))
            assert list(inner.result.outputs) == ["a", "b"]
            return "done"

        return body


# A branch's own error is beside a KeyboardInterrupt only; `check` sees to that.
RAISED = (Breached, BranchErrors, Oops)


def check(run: Run) -> None:
    """What must hold of every run."""
    recorded: Recorder = run.exposed["recorded"]
    check_invariants(recorded)
    nursery: BranchNursery = run.exposed["nursery"]
    result = nursery.result
    if isinstance(run.exception, Breached):
        assert isinstance(run.fault, TripBreach)
        assert run.exception.result is result
        assert result.stop_reason == run.fault.reason
        assert set(result.with_status(BranchStatus.CANCELLED)) == set()
    elif isinstance(run.exception, Oops):
        raise AssertionError("a branch's error came out by itself") from run.exception
    elif isinstance(run.exception, BranchErrors):
        assert run.exception.result is result
        assert result.errors
    elif run.exception is None and not run.cancelled:
        assert run.value is result
        if run.fault is None or isinstance(run.fault, SetLimit):
            ended = (BranchStatus.SUCCEEDED, BranchStatus.FAILED)
            assert len(result.with_status(*ended)) == len(result)
            assert result.stop_reason is None
    if isinstance(run.fault, Call) and isinstance(run.exception, BranchErrors | None):
        # Nobody else was told to stop.
        stopped = result.with_status(BranchStatus.CANCELLED, BranchStatus.SKIPPED)
        (name,) = run.fault.names
        assert set(stopped) <= {run.exposed[name].key} or isinstance(run.exception, BranchErrors)
    if run.cancelled:
        assert isinstance(run.fault, Cancel | Deadline)


def run_all(program: Program, *faults: Fault) -> Explored:
    return explore(program, check=check, faults=faults, raises=RAISED)


FAULTS: dict[str, Fault] = {
    "cancelled": Cancel(),
    "interrupted": Interrupt(),
    "deadline": Deadline(),
    "breached": TripBreach("nursery", "enough"),
    "limit lowered": SetLimit("limiter", 1),
    "limit raised": SetLimit("limiter", 3),
    "the first cancelled": Call(lambda branch: branch.cancel("not that one"), "branch 0"),
    "the second cancelled": Call(lambda branch: branch.cancel("not that one"), "branch 1"),
}

SMALL = {
    "two under one": Program(2, 1),
    "two under two": Program(2, 2),
    "three under one": Program(3, 1),
    "three under two": Program(3, 2),
    "three under three": Program(3, 3),
    "one fails": Program(3, 2, fails=True, policy=FAIL_FAST),
    "one fails, collected": Program(3, 2, fails=True),
    "they sleep": Program(3, 2, sleeps=True),
    "a visitor": Program(2, 1, visitors=1),
    "signalled": Program(2, 1, signalled=True),
    "three signalled": Program(3, 2, signalled=True),
    "nested under one": Program(2, 1, nests=True),
    "nested that sleep": Program(2, 1, nests=True, sleeps=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SMALL)
def test_a_fault_at_every_step_of_all_schedules(name: str, fault: str) -> None:
    explored = run_all(SMALL[name], FAULTS[fault])
    assert explored.complete
    assert explored.with_faults


LARGER = {
    "nested under two": Program(2, 2, nests=True),
    "nested and visited": Program(2, 1, nests=True, visitors=1),
    "three, nested, under two": Program(3, 2, nests=True, checkpoints=2),
    "two visitors": Program(3, 2, visitors=2),
}


@pytest.mark.parametrize("name", LARGER)
def test_all_schedules_without_faults(name: str) -> None:
    assert run_all(LARGER[name]).complete


@pytest.mark.parametrize("name", LARGER)
def test_some_schedules_with_faults(name: str) -> None:
    run_some(LARGER[name], 100, seed=0)


def run_some(program: Program, schedules: int, seed: int) -> None:
    explored = explore(
        program,
        check=check,
        schedules=schedules,
        seed=seed,
        faults=FAULTS.values(),
        raises=RAISED,
    )
    assert explored.schedules == schedules


def test_the_same_schedule_gives_the_same_events() -> None:
    program = LARGER["three, nested, under two"]
    lines: dict[str, list[str]] = {}

    def note(run: Run) -> None:
        lines[run.schedule] = run.exposed["recorded"].lines()

    explore(program, check=note, schedules=20)
    for schedule, seen in lines.items():
        assert replay(program, schedule).exposed["recorded"].lines() == seen


# ---------------------------------------------------------------- for minutes

WIDE = {
    "four, nested, visited, under two": Program(4, 2, nests=True, checkpoints=2, visitors=2),
    "five under three": Program(5, 3, checkpoints=2),
    "six that sleep, nested": Program(6, 3, nests=True, sleeps=True, visitors=1),
    "one of four fails": Program(4, 2, nests=True, fails=True, policy=FAIL_FAST),
}


@pytest.mark.long
@pytest.mark.parametrize("name", WIDE)
def test_many_schedules_with_faults(name: str) -> None:
    run_some(WIDE[name], SEEDED // len(WIDE), seed=1)


@pytest.mark.long
def test_all_schedules_of_four_under_two() -> None:
    program = Program(4, 2, nests=True, checkpoints=4, visitors=2)
    assert run_all(program).schedules > 250_000
