"""Random programs: what they are made of, how hypothesis draws them, and how they are run.

1. A program is plain data: steps and the branches that they submit, each a list of operations.
2. The interpreter knows no event loop: it is given a `Kit`, and tells the oracle what the code of
   each branch saw, so the engine's account can be held against it.
3. Times are small whole numbers of virtual seconds, so that events fall on the same instant often.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, TypeAlias

import attrs
from hypothesis import strategies as st

from oracle import ENDED, Oracle, WatchedStep
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    Branch,
    BranchLimiter,
    BranchNursery,
    Breach,
    Breached,
    CancelRule,
    Policy,
    StepResult,
    abc,
    open_branch_nursery,
    quorum,
    tolerate,
    until,
)

# ---------------------------------------------------------------- what programs are made of


@attrs.frozen
class Sleep:
    seconds: float


@attrs.frozen
class Fail:
    """Raise an exception of one's own."""


@attrs.frozen
class Cancel:
    target: int  # the key of that number, modulo those submitted so far


@attrs.frozen
class CancelWhere:
    divisor: int  # the keys whose number it divides


@attrs.frozen
class Reprioritise:
    target: int
    priority: int


@attrs.frozen
class SetLimit:
    total_tokens: int | float


@attrs.frozen
class PauseStep:
    seconds: float


@attrs.frozen
class PauseLimiter:
    seconds: float


@attrs.frozen
class BreachStep:
    pass


@attrs.frozen
class TripSwitch:
    pass


@attrs.frozen
class Spawn:
    branch: BranchPlan


@attrs.frozen
class Nest:
    """Open a step in here: on the limiter around it, under a sub-cap, or on the other limiter."""

    step: StepPlan
    limit: int | float | str | None = None


@attrs.frozen
class WaitFor:
    target: int


@attrs.frozen
class Consume:
    """Iterate over all results."""


Op: TypeAlias = (
    Sleep
    | Fail
    | Cancel
    | CancelWhere
    | Reprioritise
    | SetLimit
    | PauseStep
    | PauseLimiter
    | BreachStep
    | TripSwitch
    | Spawn
    | Nest
    | WaitFor
    | Consume
)

WHEN_CANCELLED = ("pass", "return", "raise", "linger", "linger and return", "spawn")


@attrs.frozen
class BranchPlan:
    ops: tuple[Op, ...]
    priority: int = 0
    timeout: float = math.inf
    when_cancelled: str = "pass"
    weight: int = 1


POLICIES: dict[str, Policy] = {
    "FAIL_FAST": FAIL_FAST,
    "COLLECT": COLLECT,
    "FIRST_SUCCESS": FIRST_SUCCESS,
    "quorum": quorum(2),
    "tolerate": tolerate(1),
    "until": until(lambda key, result: result.success and result.unwrap() % 3 == 2),
}


@attrs.frozen
class StepPlan:
    body: tuple[Op, ...]
    policy: str = "COLLECT"
    fail_after: float = math.inf
    move_on_after: float = math.inf
    rules: tuple[CancelRule, ...] = ()
    on_switch: bool = False
    reactions: tuple[Reaction, ...] = ()


@attrs.frozen
class Reaction:
    """What an observer does when it is told of the event of that number."""

    hook: str
    number: int
    op: Op


@attrs.frozen
class Entrant:
    """A task beside the steps that enters the limiter."""

    at: float
    holds: float
    gives_up_after: float = math.inf


@attrs.frozen
class Program:
    steps: tuple[StepPlan, ...]
    total_tokens: int | float
    nested_total_tokens: int | float = 2
    shared: bool = True  # one limiter for all steps
    entrants: tuple[Entrant, ...] = ()
    cancelled_at: float = math.inf  # from outside, all of it
    seed: int = 0  # of the scheduler


# ---------------------------------------------------------------- how hypothesis draws them

times = st.sampled_from([0, 1, 1, 2, 3])
far_times = st.sampled_from([math.inf, math.inf, math.inf, math.inf, 0, 1, 2, 4, 7])
limits: st.SearchStrategy[int | float] = st.sampled_from([1, 1, 2, 2, 3, 4, math.inf])
targets = st.integers(0, 7)
priorities = st.integers(-2, 2)
weights = st.sampled_from([1, 1, 1, 1, 1, 2, 3])
OTHER = "the other limiter"
nested_limits: st.SearchStrategy[int | float | str | None] = st.sampled_from(
    [None, None, None, 1, 1, 2, 3, math.inf, OTHER, OTHER]
)
rules = st.lists(
    st.builds(
        CancelRule,
        when=st.sampled_from(["*0", "*1", "*[02468]", "*"]),
        cancel=st.sampled_from(["*3", "*[13579]", "*"]),
        on=st.sampled_from(["success", "end"]),
    ),
    max_size=1,
).map(tuple)

sleeps = st.builds(Sleep, times)
changes: st.SearchStrategy[Op] = st.one_of(
    st.builds(Cancel, targets),
    st.builds(Cancel, targets),
    st.builds(Cancel, targets),
    st.builds(CancelWhere, st.integers(2, 4)),
    st.builds(Reprioritise, targets, priorities),
    st.builds(Reprioritise, targets, priorities),
    st.builds(SetLimit, limits),
    st.builds(SetLimit, limits),
    st.builds(PauseStep, times),
    st.builds(PauseLimiter, times),
    st.builds(BreachStep),
    st.builds(TripSwitch),
)


def branch_plans(spawns: int, nests: int) -> st.SearchStrategy[BranchPlan]:
    ops: list[st.SearchStrategy[Op]] = [sleeps, sleeps, sleeps, st.builds(Fail), changes]
    if spawns:
        ops.append(st.builds(Spawn, branch_plans(spawns - 1, 0)))
        ops.append(st.one_of(st.builds(WaitFor, targets), st.builds(Consume)))
    if nests:
        ops.append(st.builds(Nest, step_plans(nests - 1, nested=True), nested_limits))
    return st.builds(
        BranchPlan,
        ops=st.lists(st.one_of(ops), max_size=3).map(tuple),
        priority=st.one_of(st.just(0), priorities),
        timeout=far_times,
        when_cancelled=st.sampled_from(["pass", "pass", *WHEN_CANCELLED]),
        weight=weights,
    )


def step_plans(
    nests: int = 2, nested: bool = False, reactive: bool = False
) -> st.SearchStrategy[StepPlan]:
    plans = branch_plans(0 if nested else 1, nests)
    spawns: st.SearchStrategy[Op] = st.builds(Spawn, plans)
    several = st.lists(spawns, min_size=1, max_size=3 if nested else 6)
    waits: st.SearchStrategy[Op] = st.one_of(st.builds(WaitFor, targets), st.builds(Consume))
    rest = st.lists(st.one_of(spawns, sleeps, changes, waits, st.builds(Fail)), max_size=4)
    reactions: st.SearchStrategy[list[Reaction]] = st.just([])
    if reactive:
        reactions = st.lists(
            st.builds(
                Reaction,
                st.sampled_from(
                    ["queued", "queued", "started", "ended", "ended", "cancel_requested", "limit"]
                ),
                st.integers(0, 5),
                st.one_of(changes, st.builds(Spawn, branch_plans(0, 0))),
            ),
            min_size=1,
            max_size=3,
        )
    return st.builds(
        _step_plan,
        several,
        rest,
        st.sampled_from([*POLICIES, "COLLECT", "COLLECT", "FAIL_FAST"]),
        far_times,
        st.booleans(),
        rules,
        st.booleans(),
        reactions,
    )


def _step_plan(
    first: list[Op],
    rest: list[Op],
    policy: str,
    timeout: float,
    move_on: bool,
    rules: tuple[CancelRule, ...],
    on_switch: bool,
    reactions: list[Reaction],
) -> StepPlan:
    return StepPlan(
        (*first, *rest),
        policy,
        math.inf if move_on else timeout,
        timeout if move_on else math.inf,
        rules,
        on_switch,
        tuple(reactions),
    )


def programs(reactive: bool = False) -> st.SearchStrategy[Program]:
    return st.builds(
        Program,
        steps=st.lists(step_plans(reactive=reactive), min_size=1, max_size=2).map(tuple),
        total_tokens=limits,
        nested_total_tokens=limits,
        shared=st.booleans(),
        entrants=st.lists(st.builds(Entrant, times, times, far_times), max_size=2).map(tuple),
        cancelled_at=far_times,
        seed=st.integers(0, 2**16),
    )


# ---------------------------------------------------------------- how they are run


class Kit(Protocol):
    """What an event loop must offer for a program to be run on it."""

    cancelled: type[BaseException]

    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
    async def sleep_shielded(self, seconds: float) -> None: ...
    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call it then, in a task beside the program's."""

    def move_on_after(self, seconds: float) -> AbstractContextManager[Any]: ...


class Oops(Exception):
    """A program's own error."""


@attrs.define(eq=False)
class Interpreter:
    """One run of one program."""

    program: Program
    kit: Kit
    oracle: Oracle
    switch: Breach = attrs.field(factory=Breach, init=False)
    limiters: list[BranchLimiter] = attrs.field(init=False)
    nested: BranchLimiter = attrs.field(init=False)
    _numbers: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        shared = BranchLimiter(self.program.total_tokens, name="shared")
        self.limiters = [
            shared
            if self.program.shared
            else BranchLimiter(self.program.total_tokens, name=f"limiter {number}")
            for number, _ in enumerate(self.program.steps)
        ]
        self.nested = BranchLimiter(self.program.nested_total_tokens, name="nested")
        for limiter in dict.fromkeys([*self.limiters, self.nested]):
            self.oracle.watch(limiter)
        self.oracle.has_weights = "weight=2" in (text := repr(self.program)) or "weight=3" in text

    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """What is to be run side by side."""

        def step(number: int) -> Callable[[], Awaitable[None]]:
            plan = self.program.steps[number]

            async def run() -> None:
                try:
                    await self.run_step(plan, self.limiters[number], f"step{number}")
                except self.kit.cancelled:
                    raise
                except BaseException as exc:  # errors: the oracle has seen them
                    if isinstance(exc, BaseExceptionGroup):
                        cancelled, _ = exc.split(self.kit.cancelled)
                        if cancelled is not None:
                            raise cancelled from None

            return run

        def entrant(plan: Entrant) -> Callable[[], Awaitable[None]]:
            return lambda: self.enter(plan)

        return [
            *(step(number) for number, _ in enumerate(self.program.steps)),
            *(entrant(plan) for plan in self.program.entrants),
        ]

    async def enter(self, plan: Entrant) -> None:
        limiter = self.limiters[0]
        await self.kit.sleep(plan.at)
        with self.kit.move_on_after(plan.gives_up_after):
            with self.oracle.entering(limiter):
                await limiter.__aenter__()
            try:
                with self.oracle.inside(limiter):
                    await self.kit.sleep(plan.holds)
            finally:
                await limiter.__aexit__(None, None, None)

    async def run_step(
        self,
        plan: StepPlan,
        limiter: BranchLimiter,
        name: str,
        limit: int | float | str | None = OTHER,
        around: tuple[WatchedStep, str] | None = None,
    ) -> None:
        """`limiter`: the step's own, or the one around it if `limit` says so."""
        key = None if around is None else around[1]
        watched = self.oracle.step(plan, limiter, name, key)
        already_tripped = self.switch.reason
        leaving = ExitStack()
        try:
            reactor = Reactor(self, watched, plan.reactions)
            step = open_branch_nursery(
                limiter if isinstance(limit, str) else limit,
                name=name,
                policy=POLICIES[plan.policy],
                fail_after=plan.fail_after,
                move_on_after=plan.move_on_after,
                cancel_rules=plan.rules,
                breach=self.switch if plan.on_switch else None,
                observers=[*self.oracle.observers, watched.listener, reactor],
            )
            async with self.oracle.recorded.watch_step(step) as nursery:
                watched.opened(nursery)
                try:
                    for op in plan.body:
                        await self.do(op, watched, around)
                finally:
                    if around is not None:
                        leaving.enter_context(
                            self.oracle.lending(
                                *around, watched.outstanding, lambda: not watched.outstanding()
                            )
                        )
        except BaseException as exc:
            leaving.close()
            if watched.nursery is None:
                assert plan.on_switch
                assert isinstance(exc, Breached)
                assert exc.reason == already_tripped
            else:
                watched.closed(exc)
            raise
        else:
            leaving.close()
            watched.closed(None)

    async def run_branch(self, watched: WatchedStep, key: str, plan: BranchPlan) -> int:
        number = watched.entered(key)
        try:
            try:
                for op in plan.ops:
                    await self.do(op, watched, (watched, key))
            except self.kit.cancelled:
                match plan.when_cancelled:
                    case "return":
                        pass
                    case "raise":
                        raise Oops(f"{key} was cancelled") from None
                    case "linger":
                        await self.kit.sleep_shielded(1)
                        raise
                    case "linger and return":
                        await self.kit.sleep_shielded(1)
                    case "spawn":
                        self.spawn(watched, BranchPlan((Sleep(1),)))
                        raise
                    case _:
                        raise
        except BaseException as exc:
            watched.left(key, exc)
            raise
        watched.returned(key)
        return number

    def spawn(self, watched: WatchedStep, plan: BranchPlan) -> Branch[int]:
        assert watched.nursery is not None
        number, self._numbers = self._numbers, self._numbers + 1
        key = f"{watched.name}.{number}"
        with watched.submitting(key, plan.timeout, plan.weight):
            branch = watched.nursery.start_soon(
                key,
                self.oracle.recorded.watch(self.run_branch),
                watched,
                key,
                plan,
                priority=plan.priority,
                weight=plan.weight,
                timeout=plan.timeout,
            )
        watched.submitted(branch)
        return branch

    async def do(
        self, op: Op, watched: WatchedStep, around: tuple[WatchedStep, str] | None = None
    ) -> None:
        """`around`: the branch whose code it is, and its step; for the body of a nested step, that
        of the branch around it."""
        nursery = watched.nursery
        assert nursery is not None
        match op:
            case Sleep(seconds):
                await self.kit.sleep(seconds)
            case Fail():
                raise Oops("on purpose")
            case Nest(step, limit):
                number, self._numbers = self._numbers, self._numbers + 1
                limiter = self.nested if limit == OTHER else watched.limiter
                await self.run_step(step, limiter, f"{watched.name}/{number}", limit, around)
            case WaitFor(target):
                if (branch := watched.target(target)) is not None:
                    await self.wait_for(branch, watched, around)
            case Consume():
                await self.consume(watched, around)
            case _:
                self.do_now(op, watched)

    async def wait_for(
        self, branch: Branch[Any], watched: WatchedStep, around: tuple[WatchedStep, str] | None
    ) -> None:
        targets: list[Hashable] = [branch.key]
        step, waiter = around or (watched, None)
        if waiter is not None and branch.status not in ENDED:
            is_circle = self.oracle.is_circle(waiter, targets)
        else:
            is_circle = False
        with self.oracle.lending(step, waiter, lambda: targets, lambda: branch.status in ENDED):
            try:
                result = await branch.wait()
            except RuntimeError as error:
                self.oracle.check(is_circle, "only a circle is refused", error)
                return
        self.oracle.check(not is_circle, "a circle is refused", waiter, targets)
        watched.waited(branch, result)

    async def consume(self, watched: WatchedStep, around: tuple[WatchedStep, str] | None) -> None:
        nursery = watched.nursery
        assert nursery is not None
        results: list[StepResult[Any]] = []
        step, waiter = around or (watched, None)

        def is_over() -> bool:
            return len(results) < watched.statistics().ended or not watched.outstanding()

        try:
            with self.oracle.lending(step, waiter, watched.outstanding, is_over):
                async for result in nursery.completed():
                    results.append(result)
        except RuntimeError as error:
            self.oracle.check(
                self.oracle.is_circle(waiter, watched.outstanding()), "only a circle", error
            )
            return
        watched.consumed(results)

    def do_now(self, op: Op, watched: WatchedStep) -> None:
        """Operations that are no checkpoints."""
        nursery = watched.nursery
        assert nursery is not None
        match op:
            case Spawn(plan):
                self.spawn(watched, plan)
            case Cancel(target):
                if (branch := watched.target(target)) is not None:
                    watched.cancel(branch)
            case CancelWhere(divisor):
                watched.cancel_where(lambda key: int(key.rpartition(".")[2]) % divisor == 0)
            case Reprioritise(target, priority):
                if (branch := watched.target(target)) is not None:
                    watched.reprioritise(branch, priority)
            case SetLimit(total_tokens):
                self.oracle.set_limit(watched.limiter, total_tokens)
            case PauseStep(seconds):
                watched.pause()
                self.kit.later(seconds, watched.resume)
            case PauseLimiter(seconds):
                watched.limiter.pause("for a while")
                self.kit.later(seconds, watched.limiter.resume)
            case BreachStep():
                watched.breach()
            case TripSwitch():
                self.oracle.trip(self.switch)
            case _:
                raise AssertionError(op)


class Reactor(abc.Observer):
    """An observer that acts on what it is told."""

    def __init__(
        self, interpreter: Interpreter, watched: WatchedStep, reactions: tuple[Reaction, ...]
    ) -> None:
        self._interpreter = interpreter
        self._watched = watched
        self._reactions = reactions
        self._counts: dict[str, int] = {}

    def _react(self, hook: str) -> None:
        number = self._counts[hook] = self._counts.get(hook, -1) + 1
        for reaction in self._reactions:
            if (reaction.hook, reaction.number) == (hook, number):
                self._interpreter.do_now(reaction.op, self._watched)

    def branch_queued(self, branch: Branch[Any]) -> None:
        self._react("queued")

    def branch_started(self, branch: Branch[Any]) -> None:
        self._react("started")

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self._react("ended")

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self._react("cancel_requested")

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        self._react("limit")

    def breached(self, step: BranchNursery, reason: str) -> None:
        self._react("breached")
