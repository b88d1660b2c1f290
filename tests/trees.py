"""Random programs whose branches nest, and what must hold of each, on any host.

A program is plain data: steps, and nodes that become branches.  `Run` interprets it in a `World`,
and is its oracle too: beside what `check_invariants` checks on its recorder's log, it looks on at
each thing that the code of the branches does:

1. Branches that are not parked weigh no more than the cap, in their own pool and all around it;
   but for one that is heavier than the cap, alone, those that unwind after a stop, and those that
   ran when the cap was lowered.
2. What runs holds tokens; once nothing can go on, nobody else does.
3. Virtual time does not jump while somebody waits whose pools all have room for the heaviest.
4. Nobody is admitted before who has waited longer and comes first: who goes on, then by priority,
   depth first.
5. The result is in the order of submission.  A branch is skipped, cancelled or breached only if it,
   or what is around it, was stopped.
6. Nothing starts after a stop of its step, or of anything around it.  (Where a cancellation is told
   once, one from outside counts when the outermost step has met it.)
7. The block raises what its policy says.
8. At the end no token is borrowed and nobody waits.  No program stalls.

Times are small whole numbers of virtual seconds, so that events fall on the same instant often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
from hypothesis import strategies as st

from drivers import World
from oracle import BREACHED, CANCELLED, ENDED, FAILED, QUEUED, SUCCEEDED, broken, leaves
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breached,
    ParallelResult,
    StepResult,
    open_branch_nursery,
)
from trio_parallel_steps.testing import recorder

STALLED: Final = 1e6  # virtual seconds; no program has that much to do


class Oops(Exception):
    """A branch's own error."""


# ---------------------------------------------------------------- what programs are made of


@attrs.frozen(repr=False)
class Brief:
    """Its repr leaves out what is as ever, and can be pasted into a test."""

    def __repr__(self) -> str:
        values = [(field, getattr(self, field.name)) for field in attrs.fields(type(self))]
        told = [f"{field.name}={value!r}" for field, value in values if value != field.default]
        return f"{type(self).__name__}({', '.join(told)})"


@attrs.frozen(repr=False)
class Node(Brief):
    """A branch: it works, waits for a sibling, runs its step, works again, and then the rest."""

    seconds: int = 1
    waits_for: int | None = None  # the number of a sibling that was submitted earlier
    step: Step | None = None
    seconds_after: int = 0
    cancels: int | None = None  # the number of a sibling
    fails: bool = False
    priority: int = 0
    weight: int = 1
    turns: int = 1  # it works so often so many seconds, before all else
    signalled: bool = False  # then it waits for an event, that somebody else sets


@attrs.frozen(repr=False)
class Step(Brief):
    nodes: tuple[Node, ...]
    limit: int | None = None  # None: nothing but the limits around it
    owns_limiter: bool = False
    fail_fast: bool = False
    iterates: bool = False  # over `completed()`, in the body


@attrs.frozen(repr=False)
class Program(Brief):
    root: Step
    cap: int
    cancelled_at: float = math.inf  # from outside, all of it
    visitors: int = 0  # tasks that are no branches, and come for a token each

    def nodes(self) -> Iterator[Node]:
        return _nodes(self.root)

    def work(self) -> int:
        return sum(node.seconds + node.seconds_after for node in self.nodes())

    def longest_chain(self) -> int:
        """When it would end without any limit."""
        return _end(self.root, 0)

    def longest_makespan(self) -> float:
        """Graham's bound: while a token is free, all that could run does, so each longest chain of
        what is left becomes shorter; and while none is free, `cap` seconds of work are done in one.
        It holds for every order of admission, if each branch weighs 1, there is no other limit than
        the cap, nothing is stopped and a parked branch holds nothing."""
        chain = self.longest_chain()
        return (self.work() - chain) / self.cap + chain


def _nodes(step: Step) -> Iterator[Node]:
    for node in step.nodes:
        yield node
        if node.step is not None:
            yield from _nodes(node.step)


def _end(step: Step, start: int) -> int:
    ends: list[int] = []
    for node in step.nodes:
        at = start + node.seconds
        if node.waits_for is not None:
            at = max(at, ends[node.waits_for])
        if node.step is not None:
            at = _end(node.step, at)
        ends.append(at + node.seconds_after)
    return max(ends)


# ---------------------------------------------------------------- how hypothesis draws them

DEPTH: Final = 6
WIDTH: Final = 8
BRANCHES: Final = 60

seldom = st.sampled_from([False, False, False, False, True])
often = st.sampled_from([False, True, True])
times = st.sampled_from([0, 1, 1, 2, 3])
caps = st.integers(1, 6)
sub_caps: st.SearchStrategy[int | None] = st.sampled_from([None, None, 1, 2, 3])
numbers = st.integers(0, WIDTH - 1)
widths = [st.integers(1, width) for width in range(1, WIDTH + 1)]
ranks = st.sampled_from([(p, w) for w in (1, 1, 2, 3) for p in (0, -1, 1)])  # priority and weight
# Four things that a branch does seldom, each by itself: drawn at once, as most of the time is
# spent in drawing.
quirks = st.integers(0, 5**4 - 1).map(lambda drawn: [drawn // 5**n % 5 == 4 for n in range(4)])
cancellations = st.sampled_from([math.inf, math.inf, math.inf, 0.5, 2.5, 5.5])


@st.composite
def programs(draw: st.DrawFn, plain: bool = False) -> Program:
    """A plain program has one limit, equal weights, and no stops."""
    room = draw(st.integers(1, BRANCHES))

    def a_step(depth: int) -> Step:
        nonlocal room
        width = draw(widths[min(WIDTH, room) - 1])
        room -= width
        nodes = tuple(a_node(number, width, depth) for number in range(width))
        nested = depth > 1
        owns_limiter = nested and not plain and draw(seldom)
        return Step(
            nodes,
            draw(caps) if owns_limiter else draw(sub_caps) if nested and not plain else None,
            owns_limiter,
            fail_fast=draw(seldom),
            iterates=draw(seldom),
        )

    def a_node(number: int, width: int, depth: int) -> Node:
        has_step = room > 0 and depth < DEPTH and draw(often)
        waits, works_after, cancels, fails = draw(quirks)
        priority, weight = draw(ranks)
        return Node(
            draw(times),
            draw(numbers) % number if number and waits else None,
            a_step(depth + 1) if has_step else None,
            draw(times) if works_after else 0,
            draw(numbers) % width if not plain and cancels else None,
            fails=not plain and fails,
            priority=priority,
            weight=1 if plain else weight,
        )

    return Program(a_step(1), draw(caps), math.inf if plain else draw(cancellations))


# ---------------------------------------------------------------- how they are run


@attrs.define(eq=False)
class Traced:
    """A branch: what its code did."""

    key: str
    node: Node
    step: TracedStep
    branch: Branch[str] = attrs.field(init=False)
    told_to_stop: bool = False
    reprioritised: bool = False  # perhaps when it had been granted a token, and had not begun
    entered: bool = False
    entered_at: float = math.nan
    waiting_since: float = math.nan  # it was waiting when time went on from then
    active: bool = False  # in its own code, and not parked
    is_over: Callable[[], bool] | None = None  # has what it is parked for ended?
    error: BaseException | None = None
    left: bool = False

    def turn(self) -> tuple[int, ...]:
        """Smaller comes first; without arrival."""
        return (-self.branch.priority, -self.key.count("."))


@attrs.define(eq=False)
class TracedStep:
    name: str
    plan: Step
    parent: Traced | None
    nursery: BranchNursery
    chain: tuple[BranchLimiter, ...]  # from its own limiter outward
    traced: list[Traced] = attrs.field(factory=list)
    breached_for: str | None = None  # the breach that was its first stop

    def stop_reason(self) -> str | None:
        return self.nursery.statistics().stop_reason

    def has_ended(self) -> bool:
        how = self.nursery.statistics()
        return how.queued == how.running == 0


class Run:
    """One run of one program."""

    def __init__(self, world: World, program: Program) -> None:
        self.world = world
        self.program = program
        self.limiter = BranchLimiter(program.cap, name="root")
        self.caps: dict[BranchLimiter, int] = {}
        self.heaviest = max(node.weight for node in program.nodes())
        self.recorded = recorder(heaviest=self.heaviest)
        self.traced: list[Traced] = []
        self.steps: list[TracedStep] = []
        self.violations: list[str] = []
        self.log: list[tuple[object, ...]] = []
        self.makespan = math.nan
        self._outside: Any = None
        self._interrupted = False
        self._cancelled_at = math.inf  # on the clock
        self._looked_at = -math.inf
        self._breaches = 0
        self._shrunk: set[BranchLimiter] = set()
        self._signal = world.event()

    async def __call__(self) -> Run:
        began = self.world.now()
        self._looked_at = began
        self._cancelled_at = began + self.program.cancelled_at
        try:
            async with (
                self.world.scope(STALLED),
                self.world.scope(self.program.cancelled_at) as self._outside,
            ):
                try:
                    await self._run_visited()
                finally:
                    self._outside = None
        except (Exception, BaseExceptionGroup) as exc:
            # A scope of asyncio's takes no cancellation that is in a group, beside errors.
            allowed = (
                (Oops, Breached, self.world.cancelled) if self.world.edge else (Oops, Breached)
            )
            if not all(isinstance(leaf, allowed) for leaf in leaves(exc)):
                raise
        self.makespan = self.world.now() - began
        live = [traced for traced in self.traced if not traced.left and traced.entered]
        self.check(self.makespan < STALLED, "no program stalls", live)
        self.check(not live, "no code of a branch runs on", live)
        for limiter in self.caps:
            how = limiter.statistics()
            self.check(how.borrowed_tokens == 0, "no token is left borrowed", how)
            self.check(how.tasks_waiting == 0, "nobody is left waiting", how)
        return self

    # ------------------------------------------------------------ what the branches do

    async def _run_visited(self) -> None:
        signalled = any(node.signalled for node in self.program.nodes())
        if not self.program.visitors and not signalled:
            await self._run_step(self.program.root, None, "root")
            return
        async with self.world.tasks() as start_soon:
            for _ in range(self.program.visitors):
                start_soon(self._visit)
            if signalled:
                start_soon(self._send)
            await self._run_step(self.program.root, None, "root")

    async def _visit(self) -> None:
        async with self.limiter:
            await self.world.sleep(0)

    async def _send(self) -> None:
        await self.world.turns(2)
        self._signal.set()

    async def _run_step(self, plan: Step, parent: Traced | None, name: str) -> None:
        limit = self.limiter if parent is None else plan.limit
        if plan.owns_limiter:
            assert plan.limit is not None
            limit = BranchLimiter(plan.limit, name=name)
        policy = FAIL_FAST if plan.fail_fast else COLLECT
        step = None
        try:
            opened = open_branch_nursery(limit, name=name, policy=policy, observers=[self.recorded])
            async with self.recorded.watch_step(opened) as nursery:
                step = self._opened(plan, parent, name, nursery)
                try:
                    for number, node in enumerate(plan.nodes):
                        self._submit(step, f"{name}.{number}", node)
                    if plan.iterates:
                        await self._iterate(step)
                finally:
                    self._parks(parent, step.has_ended)
        except BaseException as exc:
            if step is not None:
                self._closed(step, exc)
            raise
        else:
            assert step is not None
            self._closed(step, None)

    def _opened(
        self, plan: Step, parent: Traced | None, name: str, nursery: BranchNursery
    ) -> TracedStep:
        limiter = nursery.limiter
        outer = () if parent is None or plan.owns_limiter else parent.step.chain
        if outer and plan.limit is None:
            self.check(limiter is outer[0], "without a limit, the enclosing limiter", limiter)
            chain = outer
        else:
            chain = (limiter, *outer)
            self.caps[limiter] = self.program.cap if parent is None else plan.limit or 0
        self.check(limiter.total_tokens == self.caps[limiter], "the limit is as given", limiter)
        step = TracedStep(name, plan, parent, nursery, chain)
        self.steps.append(step)
        self.tell("opened", name)
        return step

    def _submit(self, step: TracedStep, key: str, node: Node) -> None:
        traced = Traced(key, node, step)
        traced.branch = step.nursery.start_soon(
            key,
            self.recorded.watch(self._run_branch),
            traced,
            priority=node.priority,
            weight=node.weight,
        )
        step.traced.append(traced)
        self.traced.append(traced)

    async def _iterate(self, step: TracedStep) -> None:
        results: list[StepResult[Any]] = []
        iterator = step.nursery.completed()
        while True:
            self._parks(
                step.parent,
                lambda: step.nursery.statistics().ended > len(results) or step.has_ended(),
            )
            try:
                results.append(await anext(iterator))
            except StopAsyncIteration:
                break
            finally:
                self._resumes(step.parent)
        keys = {result.key for result in results}
        self.check(keys == {t.key for t in step.traced}, "completed() tells of all", keys)

    async def _run_branch(self, traced: Traced) -> str:
        self.check(not traced.entered, "called once", traced.key)
        told = (traced.told_to_stop, traced.step.stop_reason())
        self.check(told == (False, None), "nothing starts after a stop", traced.key)
        self.check(
            not self.is_told(traced),
            "nothing starts after a stop of what is around it",
            traced.key,
        )
        traced.entered = traced.active = True
        traced.entered_at = self.world.now()
        traced.waiting_since = math.nan
        self.tell("enters", traced.key)
        try:
            await self._do(traced)
        except BaseException as exc:
            traced.error = exc
            raise
        finally:
            traced.left = True
            traced.active = False
            self.tell("leaves", traced.key, type(traced.error).__name__)
        return traced.key

    async def _do(self, traced: Traced) -> None:
        node, siblings = traced.node, traced.step.traced
        for _ in range(node.turns):
            await self._work(node.seconds)
        if node.signalled:
            await self._signal.wait()
        if node.waits_for is not None:
            sibling = siblings[node.waits_for].branch
            self._parks(traced, lambda: sibling.status in ENDED)
            try:
                await sibling.wait()
            finally:
                self._resumes(traced)
        if node.step is not None:
            await self._run_step(node.step, traced, traced.key)
        if node.seconds_after:
            await self._work(node.seconds_after)
        if node.cancels is not None:
            self.cancel(siblings[node.cancels])
        if node.fails:
            raise Oops(traced.key)

    async def _work(self, seconds: int) -> None:
        try:
            await self.world.sleep(seconds)
        finally:
            self.look()

    def _parks(self, traced: Traced | None, is_over: Callable[[], bool]) -> None:
        if traced is not None:
            traced.active = False
            traced.is_over = is_over
            self.tell("parks", traced.key)

    def _resumes(self, traced: Traced | None) -> None:
        if traced is not None:
            traced.active = True
            traced.is_over = None
            traced.waiting_since = math.nan
            self.tell("resumes", traced.key)

    # ------------------------------------------------------------ what may be done to it

    def cancel(self, traced: Traced) -> None:
        self.tell("is cancelled", traced.key)
        traced.told_to_stop |= traced.branch.cancel()

    def reprioritise(self, traced: Traced, priority: int) -> None:
        if traced.branch.status is QUEUED:
            self.tell("gets priority", traced.key, priority)
            traced.branch.priority = priority
            traced.reprioritised = True
            traced.waiting_since = math.nan

    def breach(self, step: TracedStep) -> None:
        self._breaches += 1
        reason = f"breach {self._breaches}"
        self.tell("is breached", step.name)
        step.nursery.breach(reason)
        if step.stop_reason() == reason:
            step.breached_for = reason

    def set_cap(self, cap: int) -> None:
        """Of the limiter around all."""
        self.tell("gets a limit of", cap)
        if cap < self.limiter.total_tokens:
            self._shrunk.add(self.limiter)
        self.caps[self.limiter] = cap
        self.limiter.total_tokens = cap

    def interrupt(self) -> None:
        if self._outside is not None:
            self.tell("interrupted from outside")
            self._interrupted = True
            self._outside.cancel()

    # ------------------------------------------------------------ the oracle

    def check(self, right: bool, promise: str, *seen: object) -> None:
        if not right:
            self.violations.append(f"{promise}: {', '.join(map(str, seen))}")

    def tell(self, *event: object) -> None:
        self.log.append((self.world.now(), *event))
        self.look()

    def verdict(self) -> None:
        if violations := dict.fromkeys([*self.violations, *broken(self.recorded)]):
            log = "\n".join("  ".join(map(str, event)) for event in self.log)
            said = "\n".join(violations)
            raise AssertionError(f"{said}\n\n{self.program}\n\nWhat happened:\n{log}")

    def is_stopped(self, traced: Traced | None) -> bool:
        """Was it told to stop, or what is around it?"""
        from_outside = self._interrupted or self.world.now() >= self._cancelled_at
        return from_outside or self._is_told(traced)

    def is_told(self, traced: Traced | None) -> bool:
        """Does the engine know?  Where a cancellation is told once, it is when the task has met it
        that waits for the outermost step."""
        return self._is_told(traced) if self.world.edge else self.is_stopped(traced)

    def _is_told(self, traced: Traced | None) -> bool:
        while traced is not None:
            if traced.told_to_stop or traced.step.stop_reason() is not None:
                return True
            traced = traced.step.parent
        return False

    def look(self) -> None:
        """At any time."""
        now, then = self.world.now(), self._looked_at
        self._looked_at = now
        live = [t for t in self.traced if t.entered and t.branch.status not in ENDED]
        stopped = {traced for traced in live if self.is_stopped(traced)}
        for limiter, cap in self.caps.items():
            inside = [traced for traced in live if limiter in traced.step.chain]
            active = [traced for traced in inside if traced.active]
            going_on = [traced for traced in active if traced not in stopped]
            unwinding = weight(traced for traced in inside if traced in stopped)
            borrowed = limiter.borrowed_tokens
            if borrowed <= cap:
                self._shrunk.discard(limiter)
            in_cap = limiter in self._shrunk or borrowed - unwinding <= max(cap, self.heaviest)
            self.check(
                limiter in self._shrunk or weight(going_on) <= cap or len(going_on) == 1,
                "active <= cap",
                limiter,
                [traced.key for traced in going_on],
            )
            self.check(in_cap, "borrowed <= cap", limiter)
            self.check(weight(active) <= borrowed, "what runs holds tokens", limiter, active)
            if then < now < self._cancelled_at:
                self.check(weight(active) == borrowed, "nobody else does", limiter, active)
        if then < now < self._cancelled_at:
            for traced in self.traced:
                self._check_waiting(traced, then)

    def _check_waiting(self, traced: Traced, then: float) -> None:
        """Time has jumped from then on."""
        goes_on = traced.is_over is not None and traced.is_over()
        if not goes_on and traced.branch.status is not QUEUED:
            return
        self.check(not self.is_stopped(traced), "who is stopped waits for no token", traced.key)
        self.check(
            any(
                0 < limiter.borrowed_tokens > self.caps[limiter] - self.heaviest
                for limiter in traced.step.chain
            ),
            "time does not jump while something is admissible",
            traced.key,
            *traced.step.chain,
        )

        if math.isnan(traced.waiting_since):
            traced.waiting_since = then
        elif len(traced.step.chain) == 1:  # else it may be passed while it waits further in
            pool = traced.step.chain[0]
            passed_by = [
                other.key
                for other in self.traced
                if other.entered_at > traced.waiting_since
                and other.step.chain[-1] is pool
                and (goes_on or (other.turn() > traced.turn() and not other.reprioritised))
            ]
            self.check(not passed_by, "nobody comes before their turn", traced.key, passed_by)

    def _closed(self, step: TracedStep, raised: BaseException | None) -> None:
        self._resumes(step.parent)
        self.tell("closed", step.name, type(raised).__name__, step.stop_reason())
        result = step.nursery.result
        keys = [traced.key for traced in step.traced]
        self.check(list(result) == keys, "in the order of submission", list(result), keys)
        for traced in step.traced:
            self._check_outcome(traced, result[traced.key])
        if not self.is_stopped(step.parent):
            self._check_raised(step, result, raised)

    def _check_outcome(self, traced: Traced, result: StepResult[str]) -> None:
        if not traced.entered:
            self.check(self.is_stopped(traced), "skipped only if stopped", result)
        elif result.status is not SUCCEEDED and result.status is not FAILED:
            self.check(result.status in (CANCELLED, BREACHED), "no deadline is set", result)
            self.check(self.is_stopped(traced), "cancelled only if stopped", result)
            if result.status is BREACHED:
                self.check(result.reason == traced.step.breached_for, "why", result)

    def _check_raised(
        self, step: TracedStep, result: ParallelResult[Any, Any], raised: BaseException | None
    ) -> None:
        """Nothing around it was stopped."""
        if step.breached_for is not None:
            self.check(isinstance(raised, Breached), "a breach is raised", repr(raised))
        elif step.plan.fail_fast and result.errors:
            self.check(isinstance(raised, BranchErrors), "failures are raised", repr(raised))
            own = {id(leaf) for error in result.errors.values() for leaf in leaves(error)}
            self.check({id(leaf) for leaf in leaves(raised)} == own, "all of them", repr(raised))
        else:
            self.check(raised is None, "nothing is raised", repr(raised))


def weight(traced: Any) -> int:
    return sum(each.node.weight for each in traced)
