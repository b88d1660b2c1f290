"""`BranchLimiter` against a plain model of what its users are promised, rule by rule.

1. The model counts nothing: who holds tokens is a set, and who is next is found by asking each
   waiter in turn.  It shares no code with the package.
2. After each rule the event loop runs until nothing can, and then the statistics of every limiter
   and of every step are the model's, and those the model admits are inside, and no others.
3. Each rule is one event: who is told to stop unwinds for as long as the machine likes.  (So two
   ends never come in an order that is the loop's own choice.)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar

import attrs
import pytest
import trio
import trio.testing
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from drivers import AsyncioWorld, TrioWorld, World
from loops import VirtualLoop
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    Breached,
    LimiterStatistics,
    open_branch_nursery,
)

# ---------------------------------------------------------------- the model


@attrs.define(eq=False)
class Pool:
    cap: float
    outer: Pool | None = None
    paused: str | None = None
    admitted: int = 0

    def chain(self) -> Iterator[Pool]:
        pool: Pool | None = self
        while pool is not None:
            yield pool
            pool = pool.outer


@attrs.define(eq=False)
class Step:
    pool: Pool
    around: Waiter | None = None
    depth: int = 0
    paused: bool = False
    stopped: bool = False
    body_ended: bool = False
    branches: list[Waiter] = attrs.Factory(list)  # that have not ended


@attrs.define(eq=False)
class Waiter:
    """A branch; or a task that visits a limiter, of no step."""

    pool: Pool
    step: Step | None
    since: int
    weight: int = 1
    priority: int = 0
    state: str = "queued"  # then 'inside', 'parked' and 'resuming', and 'gone'
    told: bool = False
    nested: Step | None = None

    def turn(self) -> tuple[float, ...]:
        if self.state == "resuming":
            return (0, self.since)
        depth = 0 if self.step is None else self.step.depth
        return (1, -self.priority, -depth, self.since)

    def is_gated(self) -> bool:
        if self.state == "resuming":
            return False
        is_paused = self.step is not None and self.step.paused
        return is_paused or any(pool.paused is not None for pool in self.pool.chain())


class Model:
    def __init__(self) -> None:
        self.waiters: list[Waiter] = []  # all that are not gone
        self.steps: list[Step] = []  # the open ones
        self._now = 0

    def used(self, pool: Pool) -> int:
        holders = (waiter for waiter in self.waiters if waiter.state == "inside")
        return sum(waiter.weight for waiter in holders if pool in waiter.pool.chain())

    def waiting(self, pool: Pool) -> int:
        states = ("queued", "resuming")
        return sum(w.state in states and pool in w.pool.chain() for w in self.waiters)

    def fits(self, pool: Pool, waiter: Waiter) -> bool:
        used = self.used(pool)
        return not used or used + waiter.weight <= pool.cap

    def tick(self) -> int:
        self._now += 1
        return self._now

    # ------------------------------------------------------------ who is next

    def grant(self) -> None:
        """Until nothing fits."""
        while (waiter := self._next()) is not None:
            if waiter.state == "queued":
                for pool in waiter.pool.chain():
                    pool.admitted += 1
            waiter.state = "inside"

    def _next(self) -> Waiter | None:
        heads: set[Pool] = set()
        for waiter in sorted(
            (w for w in self.waiters if w.state in ("queued", "resuming")), key=Waiter.turn
        ):
            if waiter.is_gated():
                continue
            for pool in waiter.pool.chain():
                if pool in heads:
                    break
                if not self.fits(pool, waiter):
                    heads.add(pool)  # nothing behind it is granted here
                    break
            else:
                return waiter
        return None

    # ------------------------------------------------------------ what happens

    def enter(self, pool: Pool) -> Waiter:
        waiter = Waiter(pool, None, self.tick())
        self.waiters.append(waiter)
        return waiter

    def submit(self, step: Step, weight: int, priority: int) -> Waiter:
        waiter = Waiter(step.pool, step, self.tick(), weight, priority)
        self.waiters.append(waiter)
        step.branches.append(waiter)
        return waiter

    def open(self, pool: Pool, around: Waiter | None) -> Step:
        depth = 0 if around is None or around.step is None else around.step.depth + 1
        step = Step(pool, around, depth)
        self.steps.append(step)
        if around is not None:
            around.nested = step
        return step

    def end_body(self, step: Step) -> None:
        step.body_ended = True
        if step.branches and step.around is not None:
            step.around.state = "parked"
        self._close_if_over(step, None)

    def leave(self, waiter: Waiter) -> None:
        """It ends, and lets go of what it holds."""
        held = waiter.state == "inside"
        waiter.state = "gone"
        self.waiters.remove(waiter)
        if waiter.step is not None:
            waiter.step.branches.remove(waiter)
            self._close_if_over(waiter.step, waiter if held else None)

    def _close_if_over(self, step: Step, last: Waiter | None) -> None:
        if step.branches or not step.body_ended:
            return
        self.steps.remove(step)
        around = step.around
        if around is None:
            return
        around.nested = None
        if around.state != "parked":
            return
        if self.is_told(around):
            around.state = "inside"  # over the cap, if need be
            return
        around.state, around.since = "resuming", self.tick()
        if (
            last is not None
            and around.pool in last.pool.chain()
            and last.weight >= around.weight
            and all(self.fits(pool, around) for pool in around.pool.chain())
        ):
            around.state = "inside"  # handed over, before anyone

    def is_told(self, waiter: Waiter) -> bool:
        return waiter.told or (waiter.step is not None and waiter.step.stopped)

    def tell(self, waiter: Waiter) -> None:
        if waiter.state == "queued":
            self.leave(waiter)
            return
        waiter.told = True
        if waiter.state == "resuming":
            waiter.state = "inside"
        elif waiter.state == "parked":
            assert waiter.nested is not None
            self.stop(waiter.nested)

    def stop(self, step: Step) -> None:
        step.stopped = step.body_ended = True
        for branch in [*step.branches]:
            self.tell(branch)
        if step in self.steps:
            self._close_if_over(step, None)

    def has_queued_below(self, waiter: Waiter) -> bool:
        """In what is nested in it."""
        if waiter.nested is None:
            return False
        branches = waiter.nested.branches
        return any(b.state == "queued" or self.has_queued_below(b) for b in branches)


# ---------------------------------------------------------------- loops that are run by hand


class Asyncio:
    world: World = AsyncioWorld()

    def __init__(self) -> None:
        self._loop: Any = VirtualLoop()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, async_fn: Callable[..., Any], *args: Any) -> Callable[[], object]:
        task: asyncio.Task[None] = asyncio.ensure_future(async_fn(*args))
        self._tasks.add(task)
        return task.cancel

    def do(self, call: Callable[[], object]) -> None:
        """And run until nothing can."""

        async def do() -> None:
            call()
            await asyncio.sleep(0)
            while self._loop._ready:  # noqa: ASYNC110
                await asyncio.sleep(0)

        self._loop.run_until_complete(do())
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            if not task.cancelled():
                task.result()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class Trio:
    """As a guest of our own loop, which is a queue of calls."""

    world: World = TrioWorld()

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._has_settled = False
        self._outcome: Any = None
        self._call: Callable[[], object] | None = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._calls.put,
            done_callback=lambda outcome: setattr(self, "_outcome", outcome),
        )
        self._run_until(lambda: self._has_settled)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            while True:
                self._called = trio.Event()
                await trio.testing.wait_all_tasks_blocked()
                self._has_settled = True
                await self._called.wait()
                if self._call is None:
                    self._nursery.cancel_scope.cancel()
                    return
                self._call()

    def _run_until(self, done: Callable[[], bool]) -> None:
        while not done() and self._outcome is None:
            self._calls.get()()
        if self._outcome is not None:
            self._outcome.unwrap()

    def spawn(self, async_fn: Callable[..., Any], *args: Any) -> Callable[[], object]:
        scope = trio.CancelScope()

        async def task() -> None:
            with scope:
                await async_fn(*args)

        self._nursery.start_soon(task)
        return scope.cancel

    def do(self, call: Callable[[], object]) -> None:
        self._call = call
        self._has_settled = False
        self._token.run_sync_soon(self._called.set)
        self._run_until(lambda: self._has_settled)

    def close(self) -> None:
        if self._outcome is not None:
            return
        self._call = None
        self._token.run_sync_soon(self._called.set)
        self._run_until(lambda: self._outcome is not None)


# ---------------------------------------------------------------- what is run


@attrs.define(eq=False)
class Nest:
    """What a branch is to do next."""

    step: Step
    limit: Any
    branches: list[Actor]


@attrs.define(eq=False)
class Actor:
    """The code of a waiter."""

    waiter: Waiter
    told: Any  # an event
    may_unwind: Any
    next: Nest | None = None
    where: str = "outside"
    cancel: Callable[[], object] | None = None


weights = st.sampled_from([1, 1, 1, 2, 3, 6])
priorities = st.sampled_from([0, 0, 0, 1, -1])
branches = st.tuples(weights, priorities)
picks = st.integers(0, 40)
limits = st.sampled_from([None, None, 1, 2, "other"])
totals = st.sampled_from([1, 2, 3, 4, 6, math.inf])


class Machine(RuleBasedStateMachine):
    make_loop: ClassVar[type[Asyncio | Trio]]

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.make_loop()
        self.world = self.loop.world
        self.model = Model()
        self.actors: dict[Waiter, Actor] = {}
        self.limiters: dict[Pool, BranchLimiter] = {}
        self.nurseries: dict[Step, BranchNursery] = {}
        self.ends: dict[Step, Any] = {}

    @initialize(
        total=st.integers(1, 4),
        other=totals,
        heaviest=st.sampled_from([1, 6]),  # equal weights have ways of their own
        drawn=st.lists(branches, min_size=3, max_size=6),
    )
    def begin(self, total: int, other: float, heaviest: int, drawn: list[tuple[int, int]]) -> None:
        self.heaviest = heaviest
        for cap in (total, other):
            self.limiters[Pool(cap)] = BranchLimiter(cap)
        self.open_step(0, drawn)

    def teardown(self) -> None:
        def let_all_go() -> None:
            for limiter in self.limiters.values():
                limiter.resume()
            for nursery in self.nurseries.values():
                nursery.resume()
            for end in self.ends.values():
                end.set()
            for actor in self.actors.values():
                actor.may_unwind.set()
                actor.told.set()
                actor.next = None

        try:
            for _ in range(1 + len(self.actors)):
                self.loop.do(let_all_go)
        finally:
            self.loop.close()
        assert {actor.where for actor in self.actors.values()} <= {"gone", "outside"}
        for limiter in self.limiters.values():
            how = limiter.statistics()
            assert (how.borrowed_tokens, how.tasks_waiting) == (0, 0)

    # ------------------------------------------------------------ code

    def actor(self, waiter: Waiter) -> Actor:
        actor = self.actors[waiter] = Actor(waiter, self.world.event(), self.world.event())
        return actor

    async def visit(self, actor: Actor) -> None:
        try:
            async with self.limiters[actor.waiter.pool]:
                actor.where = "inside"
                await actor.told.wait()
        finally:
            actor.where = "gone"

    async def top(self, step: Step, limit: BranchLimiter, inside: list[Actor]) -> None:
        try:
            async with open_branch_nursery(limit, policy=COLLECT) as nursery:
                self.opened(step, nursery, inside)
                await self.ends[step].wait()
        except Breached:
            pass

    def opened(self, step: Step, nursery: BranchNursery, inside: list[Actor]) -> None:
        self.nurseries[step] = nursery
        self.limiters[step.pool] = nursery.limiter
        self.start_all(step, inside)

    def start_all(self, step: Step, inside: list[Actor]) -> None:
        for actor in inside:
            waiter = actor.waiter
            branch = self.nurseries[step].start_soon(
                waiter.since, self.branch, actor, priority=waiter.priority, weight=waiter.weight
            )
            actor.cancel = branch.cancel

    async def branch(self, actor: Actor) -> None:
        actor.where = "inside"
        try:
            while True:
                await actor.told.wait()
                actor.told, nest, actor.next = self.world.event(), actor.next, None
                if nest is None:
                    return
                async with open_branch_nursery(nest.limit, policy=COLLECT) as nursery:
                    self.opened(nest.step, nursery, nest.branches)
                    actor.where = "parked or resuming"
                actor.where = "inside"
        except self.world.cancelled:
            actor.where = "inside"
            async with self.world.shield():
                await actor.may_unwind.wait()
            raise
        finally:
            actor.where = "gone"

    # ------------------------------------------------------------ rules

    def in_state(self, *states: str) -> list[Waiter]:
        return [waiter for waiter in self.model.waiters if waiter.state in states]

    def open_steps(self) -> list[Step]:
        return [s for s in self.model.steps if not s.stopped]

    def submitted(self, step: Step, drawn: list[tuple[int, int]]) -> list[Actor]:
        return [
            self.actor(self.model.submit(step, min(weight, self.heaviest), priority))
            for weight, priority in drawn
        ]

    @rule(pick=picks)
    def enter(self, pick: int) -> None:
        pool = pick_from([*self.limiters], pick)
        actor = self.actor(self.model.enter(pool))
        self.model.grant()
        self.loop.do(lambda: setattr(actor, "cancel", self.loop.spawn(self.visit, actor)))

    @rule(pick=picks, drawn=st.lists(branches, max_size=4))
    def open_step(self, pick: int, drawn: list[tuple[int, int]]) -> None:
        pool = pick_from([pool for pool in self.limiters if pool.outer is None], pick)
        step = self.model.open(pool, None)
        inside = self.submitted(step, drawn)
        self.model.grant()
        self.ends[step] = self.world.event()
        self.loop.do(lambda: self.loop.spawn(self.top, step, self.limiters[pool], inside))

    @precondition(lambda self: self.open_steps())
    @rule(pick=picks, drawn=st.lists(branches, min_size=1, max_size=3))
    def submit(self, pick: int, drawn: list[tuple[int, int]]) -> None:
        step = pick_from(self.open_steps(), pick)
        inside = self.submitted(step, drawn)
        self.model.grant()
        self.loop.do(lambda: self.start_all(step, inside))

    @precondition(lambda self: self.may_nest())
    @rule(pick=picks, limit=limits, drawn=st.lists(branches, min_size=1, max_size=3))
    def nest_more(self, pick: int, limit: Any, drawn: list[tuple[int, int]]) -> None:
        """Most of what is special is there."""
        self.nest(pick, limit, drawn)

    @precondition(lambda self: self.may_nest())
    @rule(pick=picks, limit=limits, drawn=st.lists(branches, max_size=3))
    def nest(self, pick: int, limit: Any, drawn: list[tuple[int, int]]) -> None:
        waiter = pick_from(self.may_nest(), pick)
        if limit == "other":
            pool = pick_from([pool for pool in self.limiters if pool.outer is None], pick)
            limit = self.limiters[pool]
        else:
            pool = waiter.pool if limit is None else Pool(limit, waiter.pool)
        step = self.model.open(pool, waiter)
        inside = self.submitted(step, drawn)
        self.model.end_body(step)
        self.model.grant()
        actor = self.actors[waiter]
        actor.next = Nest(step, limit, inside)
        self.loop.do(actor.told.set)

    def may_nest(self) -> list[Waiter]:
        return [
            waiter
            for waiter in self.in_state("inside")
            if waiter.step is not None and waiter.step.depth < 3 and not self.model.is_told(waiter)
        ]

    @precondition(lambda self: self.nested_and_inside())
    @rule(pick=picks)
    def leave_a_nested_step(self, pick: int) -> None:
        waiter = pick_from(self.nested_and_inside(), pick)
        self.leave(self.in_state("inside").index(waiter))

    def nested_and_inside(self) -> list[Waiter]:
        return [w for w in self.in_state("inside") if w.step is not None and w.step.depth]

    @precondition(lambda self: self.in_state("inside"))
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        waiter = pick_from(self.in_state("inside"), pick)
        self.model.leave(waiter)
        self.model.grant()
        actor = self.actors[waiter]
        self.loop.do(lambda: (actor.may_unwind.set(), actor.told.set()))

    @precondition(lambda self: self.may_be_cancelled())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        waiter = pick_from(self.may_be_cancelled(), pick)
        self.model.tell(waiter)
        self.model.grant()
        cancel = self.actors[waiter].cancel
        assert cancel is not None
        self.loop.do(cancel)

    @precondition(lambda self: self.nested_and_queued())
    @rule(pick=picks)
    def cancel_a_nested_one(self, pick: int) -> None:
        """Which may be the last, and has no token to hand over."""
        waiter = pick_from(self.nested_and_queued(), pick)
        self.cancel(self.may_be_cancelled().index(waiter))

    def nested_and_queued(self) -> list[Waiter]:
        return [w for w in self.in_state("queued") if w.step is not None and w.step.depth]

    def may_be_cancelled(self) -> list[Waiter]:
        """Not with a branch queued further in, which may be granted before it hears of it."""
        return [
            waiter
            for waiter in self.model.waiters
            if not self.model.has_queued_below(waiter)
            and not (waiter.step is None and waiter.state == "inside")
        ]

    @precondition(lambda self: self.may_be_breached())
    @rule(pick=picks)
    def breach(self, pick: int) -> None:
        step = pick_from(self.may_be_breached(), pick)
        self.model.stop(step)
        self.model.grant()
        self.loop.do(lambda: self.nurseries[step].breach("enough"))

    def may_be_breached(self) -> list[Step]:
        return [
            step
            for step in self.open_steps()
            if step.around is None and not any(map(self.model.has_queued_below, step.branches))
        ][1:]  # one goes on

    @precondition(lambda self: self.running_bodies())
    @rule(pick=picks)
    def end_step(self, pick: int) -> None:
        step = pick_from(self.running_bodies(), pick)
        self.model.end_body(step)
        self.loop.do(self.ends[step].set)

    def running_bodies(self) -> list[Step]:
        return [step for step in self.model.steps if not step.body_ended]

    @rule(pick=picks, total=totals)
    def set_total(self, pick: int, total: float) -> None:
        pool, limiter = pick_from([*self.limiters.items()], pick)
        pool.cap = total
        self.model.grant()
        self.loop.do(lambda: setattr(limiter, "total_tokens", total))

    @rule(pick=picks, reason=st.sampled_from([None] * 3 + ["for a while"]))
    def pause(self, pick: int, reason: str | None) -> None:
        pool, limiter = pick_from([*self.limiters.items()], pick)
        pool.paused = reason
        self.model.grant()
        self.loop.do(limiter.resume if reason is None else lambda: limiter.pause(reason))

    @precondition(lambda self: self.open_steps())
    @rule(pick=picks, pauses=st.sampled_from([False, False, True]))
    def pause_step(self, pick: int, pauses: bool) -> None:
        step = pick_from(self.open_steps(), pick)
        step.paused = pauses
        self.model.grant()
        nursery = self.nurseries[step]
        self.loop.do((lambda: nursery.pause("for a while")) if pauses else nursery.resume)

    @precondition(lambda self: self.queued_branches())
    @rule(pick=picks, priority=st.integers(-2, 2))
    def reprioritise(self, pick: int, priority: int) -> None:
        waiter = pick_from(self.queued_branches(), pick)
        waiter.priority = priority
        self.model.grant()
        assert waiter.step is not None
        branch = self.nurseries[waiter.step][waiter.since]
        self.loop.do(lambda: setattr(branch, "priority", priority))

    def queued_branches(self) -> list[Waiter]:
        return [waiter for waiter in self.in_state("queued") if waiter.step is not None]

    # ------------------------------------------------------------ what must hold

    @invariant()
    def the_limiters_are_as_the_model_says(self) -> None:
        for pool, limiter in self.limiters.items():
            used = self.model.used(pool)
            assert limiter.statistics() == LimiterStatistics(
                pool.cap, used, self.model.waiting(pool), pool.paused, pool.admitted
            )
            assert limiter.available_tokens == pool.cap - used

    @invariant()
    def those_the_model_admits_are_inside(self) -> None:
        where = {
            "queued": "outside",
            "parked": "parked or resuming",
            "resuming": "parked or resuming",
            "inside": "inside",
        }
        for waiter in self.model.waiters:
            assert self.actors[waiter].where == where[waiter.state], waiter

    @invariant()
    def the_steps_are_as_the_model_says(self) -> None:
        for step in self.model.steps:
            how = self.nurseries[step].statistics()
            queued = sum(branch.state == "queued" for branch in step.branches)
            assert (how.queued, how.running) == (queued, len(step.branches) - queued)


def pick_from(choices: list[Any], pick: int) -> Any:
    return choices[pick % len(choices)]


class OnAsyncio(Machine):
    make_loop = Asyncio


class OnTrio(Machine):
    make_loop = Trio


@pytest.mark.parametrize("machine", [OnAsyncio, OnTrio])
def test_a_limiter_does_what_the_model_says(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None)
    )
