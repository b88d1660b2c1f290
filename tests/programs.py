"""Programs for `explore`, each with its recorder, and what must hold of every run of them.

1. A program makes all it needs anew and waits for nothing outside of trio.
2. It gives names to what faults act on: ``nursery``, ``limiter``, ``scope`` (in the first branch)
   and each branch.
3. `Fan` is small, for all schedules.  `KINDS` are larger and use one more part of the package each,
   for seeded schedules.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    ParallelResult,
    Policy,
    Rate,
    Retry,
    StepTimeout,
    hedged,
    map_branches,
    open_branch_nursery,
    quorum,
    tolerate,
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
    StallWatch,
    TripBreach,
    assert_no_stall,
    check_invariants,
    explore,
    expose,
    recorder,
)

Result: TypeAlias = ParallelResult[Any, Any]
checkpoint = trio.lowlevel.checkpoint


class Oops(Exception):
    """A branch's own error."""


# ---------------------------------------------------------------- small ones


@attrs.frozen
class Fan:
    """Branches of some checkpoints each, under a limit; the first has a step of its own, if it
    nests; the last fails, if one fails; and tasks that are no branches come for tokens too.  Or
    they end with a wait for an event: a cancellation may come too late for that."""

    branches: int
    limit: int
    nested: int = 0
    """how many branches the first one's step has"""
    checkpoints: int = 1
    nested_checkpoints: int = 1
    fails: bool = False
    visitors: int = 0
    signalled: bool = False
    policy: Policy = COLLECT
    sleeps: bool = False

    async def __call__(self) -> Result:
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
                return await self.run_step(limiter, [recorded, watch], recorded, signal)

    async def send(self, signal: trio.Event) -> None:
        await checkpoint()
        await checkpoint()
        signal.set()

    async def run_step(
        self,
        limiter: BranchLimiter,
        observers: list[Any],
        recorded: Recorder,
        signal: trio.Event,
    ) -> Result:
        step = open_branch_nursery(limiter, name="step", policy=self.policy, observers=observers)
        async with recorded.watch_step(step) as nursery:
            for key in range(self.branches):
                body: Callable[[], Awaitable[str]] = self.work
                if self.signalled:
                    body = partial(self.wait, signal)
                if self.nested and key == 0:
                    body = self.parent(observers, recorded)
                elif self.fails and key == self.branches - 1:
                    body = self.fail
                if key == 0:
                    body = partial(self.in_scope, body)
                branch = nursery.start_soon(key, recorded.watch(body))
                expose(**{f"branch {key}": branch})
            expose(nursery=nursery)
        return nursery.result

    async def visit(self, limiter: BranchLimiter) -> None:
        async with limiter:
            await checkpoint()

    async def in_scope(self, body: Callable[[], Awaitable[str]]) -> str:
        with trio.CancelScope() as scope:
            expose(scope=scope)
            await body()
        return "done"

    async def work(self) -> str:
        return await self._work(self.checkpoints)

    async def _work(self, checkpoints: int) -> str:
        for _ in range(checkpoints):
            await (trio.sleep(1) if self.sleeps else checkpoint())
        return "done"

    async def wait(self, signal: trio.Event) -> str:
        await signal.wait()
        return "done"

    async def fail(self) -> str:
        await self.work()
        raise Oops

    def parent(self, observers: list[Any], recorded: Recorder) -> Callable[[], Awaitable[str]]:
        async def body() -> str:
            step = open_branch_nursery(name="inner", observers=observers)
            async with recorded.watch_step(step) as inner:
                for key in range(self.nested):
                    inner.start_soon(
                        key, recorded.watch(partial(self._work, self.nested_checkpoints))
                    )
            assert len(inner.result.outputs) == self.nested
            return "done"

        return body


# ---------------------------------------------------------------- larger ones


@attrs.frozen
class Stage:
    """What a program of `KINDS` is given."""

    limiter: BranchLimiter
    recorded: Recorder
    watch: StallWatch

    @asynccontextmanager
    async def open(self, limit: Any = None, **options: Any) -> AsyncIterator[BranchNursery]:
        """A step; the outermost is the one that faults act on."""
        observers = [self.recorded, self.watch]
        step = open_branch_nursery(limit, observers=observers, **options)
        async with self.recorded.watch_step(step) as nursery:
            yield nursery

    def start(self, nursery: BranchNursery, key: Any, fn: Any, *args: Any, **options: Any) -> None:
        body = self.recorded.watch(partial(fn, *args))
        branch = nursery.start_soon(key, body, **options)
        if nursery.name == "step":
            expose(**{f"branch {key}": branch})

    @asynccontextmanager
    async def step(self, limit: Any = None, **options: Any) -> AsyncIterator[BranchNursery]:
        limit = self.limiter if limit is None else limit
        async with self.open(limit, name="step", **options) as nursery:
            expose(nursery=nursery)
            yield nursery


async def work(turns: int, error: type[Exception] | None = None) -> int:
    for _ in range(turns):
        await checkpoint()
    if error is not None:
        raise error
    return turns


async def nap(seconds: float, error: type[Exception] | None = None) -> float:
    await trio.sleep(seconds)
    if error is not None:
        raise error
    return seconds


async def retries(stage: Stage) -> None:
    left = {key: key for key in range(4)}
    again = Retry(on=Oops, attempts=3, wait_initial=1.0, wait_jitter=0.0)

    async def flaky(key: int) -> int:
        await checkpoint()
        if left[key]:
            left[key] -= 1
            raise Oops
        return key

    async with stage.step(policy=COLLECT) as nursery:
        for key in left:
            stage.start(nursery, key, flaky, key, retry=again)


async def a_rate(stage: Stage) -> None:
    limiter = BranchLimiter(2, rate=Rate(1, 1.0, 2))
    async with stage.step(limiter) as nursery:
        for key in range(5):
            stage.start(nursery, key, nap, 0.5 if key % 2 else 0)


async def weights(stage: Stage) -> None:
    async with stage.step() as nursery:
        for key, weight in enumerate((1, 2, 3, 1, 2)):
            stage.start(nursery, key, work, 2, weight=weight, priority=key % 2)


async def sub_caps(stage: Stage) -> None:
    async def parent(limit: int) -> None:
        async with stage.open(limit, name="inner") as inner:
            for key in range(3):
                stage.start(inner, key, work, 1)
            await checkpoint()
        await checkpoint()

    async with stage.step() as nursery:
        stage.start(nursery, 0, parent, 1)
        stage.start(nursery, 1, parent, 2)
        stage.start(nursery, 2, work, 2)


async def a_map(stage: Stage) -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(5):
            await checkpoint()
            yield number

    observers = [stage.recorded, stage.watch]
    async with map_branches(
        stage.recorded.watch(work), items(), stage.limiter, name="step", observers=observers
    ) as results:
        async for result in results:
            result.unwrap()
            await checkpoint()


async def a_budget(stage: Stage) -> None:
    budget = Budget(usd=5)
    expose(budget=budget)

    async def spend(amount: float) -> None:
        with budget.reserve(usd=amount) as reservation:
            await work(2)
            reservation.settle(usd=amount / 2)

    async with stage.step(budget=budget) as nursery:
        for key in range(4):
            stage.start(nursery, key, spend, 1 + key % 3)


async def hedges(stage: Stage) -> None:
    async def parent(key: int) -> int:
        return int(await hedged(nap, after=0.5, attempts=2)(key))

    async with stage.step() as nursery:
        for key in range(3):
            stage.start(nursery, key, parent, key)


async def iterates(stage: Stage) -> None:
    async def parent() -> None:
        async with stage.open(name="inner") as inner:
            for key in range(2):
                stage.start(inner, key, work, 1 + key)
            async for result in inner.completed():
                assert result.unwrap()
                await checkpoint()

    async with stage.step() as nursery:
        stage.start(nursery, 0, parent)
        for key in (1, 2):
            stage.start(nursery, key, work, key)
        seen = [result.key async for result in nursery.completed()]
        assert set(seen) == {0, 1, 2}


async def waits(stage: Stage) -> None:
    async def waiter(nursery: BranchNursery) -> None:
        await nursery[0].wait()
        await checkpoint()

    async with stage.step() as nursery:
        stage.start(nursery, 0, work, 3, priority=-1)
        stage.start(nursery, 1, waiter, nursery)
        stage.start(nursery, 2, waiter, nursery, priority=1)
        stage.start(nursery, 3, work, 1)


async def a_foreign_limiter(stage: Stage) -> None:
    foreign = trio.CapacityLimiter(2)
    expose(limiter=foreign)

    async def visit() -> None:
        async with foreign:
            await checkpoint()

    async def parent() -> None:
        async with stage.open(name="inner") as inner:
            for key in range(2):
                stage.start(inner, key, work, 1)

    async with trio.open_nursery() as visitors:
        visitors.start_soon(visit)
        async with stage.step(foreign) as nursery:
            stage.start(nursery, 0, parent)
            for key in (1, 2, 3):
                stage.start(nursery, key, work, 2)


async def rules(stage: Stage) -> None:
    async with stage.step(cancel_rules=[CancelRule("b1", "b[23]", on="end")]) as nursery:
        for key in range(4):
            stage.start(nursery, f"b{key}", work, 1 + key)


async def timeouts(stage: Stage) -> None:
    async with stage.step(policy=COLLECT, fail_after=4) as nursery:
        for key in range(5):
            stage.start(nursery, key, nap, 1 + key % 3, timeout=2 if key % 2 else math.inf)


async def moves_on(stage: Stage) -> None:
    async with stage.step(policy=COLLECT, move_on_after=3) as nursery:
        for key in range(5):
            stage.start(nursery, key, nap, 1 + key % 2)


async def nested(stage: Stage) -> None:
    async def parent(depth: int) -> None:
        async with stage.open(name=f"inner {depth}") as inner:
            stage.start(inner, "leaf", work, 1)
            stage.start(inner, "deep", parent if depth else work, depth - 1 if depth else 2)

    async with stage.step() as nursery:
        stage.start(nursery, 0, parent, 1)
        stage.start(nursery, 1, parent, 0)
        stage.start(nursery, 2, nap, 1)


def fails(policy: Policy) -> Callable[[Stage], Awaitable[None]]:
    async def program(stage: Stage) -> None:
        async with stage.step(policy=policy) as nursery:
            for key in range(5):
                stage.start(nursery, key, work, 1 + key % 2, Oops if key in (1, 3) else None)

    return program


async def body_fails(stage: Stage) -> None:
    async with stage.step() as nursery:
        for key in range(4):
            stage.start(nursery, key, nap, 1 + key)
        await nap(1, Oops)


KINDS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "retries": retries,
    "a rate": a_rate,
    "weights": weights,
    "sub-caps": sub_caps,
    "a map": a_map,
    "a budget": a_budget,
    "hedged": hedges,
    "completed": iterates,
    "waits for a sibling": waits,
    "a foreign limiter": a_foreign_limiter,
    "rules": rules,
    "timeouts": timeouts,
    "moves on": moves_on,
    "three levels": nested,
    "the body fails": body_fails,
    "failures, fail fast": fails(FAIL_FAST),
    "failures, collected": fails(COLLECT),
    "failures, tolerated": fails(tolerate(1)),
    "failures, a quorum": fails(quorum(2)),
    "failures, the first success": fails(FIRST_SUCCESS),
}


def kind(name: str) -> Callable[[], Awaitable[None]]:
    """The program of that name, under a limit of two."""

    async def program() -> None:
        recorded = recorder(heaviest=3 if name == "weights" else 1)
        limiter = BranchLimiter(2)
        expose(recorded=recorded, limiter=limiter)
        with assert_no_stall() as watch:
            await KINDS[name](Stage(limiter, recorded, watch))

    program.__name__ = name
    return program


# ---------------------------------------------------------------- faults, and the check

FAULTS: dict[str, Fault] = {
    "cancelled": Cancel(),
    "a scope in a branch cancelled": Cancel("scope"),
    "interrupted": Interrupt(),
    "deadline": Deadline(),
    "breached": TripBreach("nursery", "enough"),
    "limit lowered": SetLimit("limiter", 1),
    "limit raised": SetLimit("limiter", 3),
    "the first cancelled": Call(lambda branch: branch.cancel("not that one"), "branch 0"),
    "the second cancelled": Call(lambda branch: branch.cancel("not that one"), "branch 1"),
}


def _first(branch: Any) -> None:
    if branch.status is BranchStatus.QUEUED:
        branch.priority = 5


MORE_FAULTS: tuple[Fault, ...] = (
    *FAULTS.values(),
    Call(_first, "branch 2"),
    Call(lambda branch: branch.cancel("not that one"), "branch 2"),
    Call(lambda nursery: nursery.cancel_where(lambda key: key != 1, "only that one"), "nursery"),
)

# A branch's own error is beside a KeyboardInterrupt only; `check` sees to that.
RAISED = (Breached, BranchErrors, StepTimeout, Oops)


def check(run: Run) -> None:
    """What must hold of every run."""
    recorded: Recorder = run.exposed["recorded"]
    budget = run.exposed.get("budget")
    check_invariants(recorded, budgets={} if budget is None else {budget: {"usd": 5}})
    if isinstance(run.exception, Breached) and not isinstance(run.exception, BudgetExceeded):
        assert isinstance(run.fault, TripBreach)
        assert run.exception.reason == run.fault.reason
    if isinstance(run.exception, Oops):
        raise AssertionError("a branch's error came out by itself") from run.exception
    if run.cancelled:
        assert run.fault in (Cancel(), Deadline())


def check_fan(run: Run) -> None:
    """What must hold of every run of a `Fan`."""
    check(run)
    nursery: BranchNursery = run.exposed["nursery"]
    result = nursery.result
    if isinstance(run.exception, Breached):
        assert not result.with_status(BranchStatus.CANCELLED)
    elif run.exception is None and not run.cancelled:
        assert run.value is result
        if run.fault is None or isinstance(run.fault, SetLimit | Cancel):
            ended = (BranchStatus.SUCCEEDED, BranchStatus.FAILED)
            assert len(result.with_status(*ended)) == len(result)
            assert result.stop_reason is None
    if isinstance(run.fault, Call) and isinstance(run.exception, BranchErrors | None):
        # Nobody else was told to stop.
        stopped = result.with_status(BranchStatus.CANCELLED, BranchStatus.SKIPPED)
        (name,) = run.fault.names
        assert set(stopped) <= {run.exposed[name].key} or isinstance(run.exception, BranchErrors)


def untraced_explore(program: Callable[[], Awaitable[Any]], **options: Any) -> Explored:
    """Coverage learns nothing from the thousandth schedule, and makes each take three times as
    long."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        return explore(program, **options)
    finally:
        sys.settrace(trace)
