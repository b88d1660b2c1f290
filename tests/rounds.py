"""Random rounds of work, and what a user must find true of each, on any host.

A round is one step, what is nested in it, and those that visit its limiter meanwhile; it is drawn
from its number alone.  The code of the branches counts for itself:

1. Those in their own code weigh no more than the cap, in every limiter around them; but for one
   that is heavier, alone, and those that unwind after a stop.  After a shrink they only become
   fewer.  No window of a rate holds too many starts.
2. Every branch is in its result once, in order, and ended as its code saw it.
3. Nothing starts after a stop of its step.
4. No budget is used beyond its limit, or refuses what is within.
5. What a block raises is what was raised in it, and a breach is told.
6. Each round ends.  After it no token is borrowed, and nobody waits.

Nothing of a round refers to itself when it is over, so that the collector has nothing to find.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from random import Random
from typing import Any, Final

import attrs
import trio

from drivers import World
from oracle import BREACHED, CANCELLED, ENDED, FAILED, QUEUED, SKIPPED, SUCCEEDED, TIMED_OUT, leaves
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    Backpressure,
    Branch,
    BranchLimiter,
    BranchNotDone,
    BranchNursery,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    Policy,
    Rate,
    Retry,
    StepResult,
    abc,
    hedged,
    map_branches,
    open_branch_nursery,
    quorum,
    tolerate,
    until,
)

STALLED: Final = 1e4  # virtual seconds; no round has that much to do
HEAVIEST: Final = 6
DEPTH: Final = 3


class Oops(Exception):
    """A branch's own error."""


class Flaky(Oops):
    """One that may be gone the next time."""


EXPECTED: Final = (Oops, Backpressure, BranchNotDone, Breached, trio.TooSlowError)
RATE: Final = Rate(20, per=1.0, burst=4)
RETRY: Final = Retry(on=Flaky, attempts=3, wait_initial=0.5, wait_max=2.0)
RULES: Final = (CancelRule("*0", "*7"), CancelRule("*5", "*6", on="end"))
POLICIES: Final[tuple[Policy, ...]] = (
    *(COLLECT,) * 6,
    *(FAIL_FAST,) * 2,
    FIRST_SUCCESS,
    quorum(3),
    tolerate(2),
    until(lambda key, result: result.output == 3),
)


# ---------------------------------------------------------------- what is counted


class Cap:
    """A limiter, and how much of it is in use as the branches' code sees it."""

    def __init__(
        self, round_: Round, limiter: BranchLimiter, outer: Cap | None, rate: Rate | None = None
    ) -> None:
        self.round = round_
        self.limiter = limiter
        self.outer = outer
        self.total = self.ceiling = limiter.total_tokens  # the ceiling comes down after a shrink
        self.inside = 0
        self.weight = 0
        self.rate = rate
        self.starts: deque[float] = deque()

    def chain(self) -> Iterator[Cap]:
        cap: Cap | None = self
        while cap is not None:
            yield cap
            cap = cap.outer

    def outermost(self) -> Cap:
        return self if self.outer is None else self.outer.outermost()

    def enter(self, weight: int) -> None:
        for cap in self.chain():
            cap.inside += 1
            cap.weight += weight
            self.round.check(
                cap.weight <= cap.ceiling or cap.inside == 1, "cap", cap.weight, cap.limiter
            )

    def park(self, weight: int) -> None:
        """Perhaps: a wait for what has ended already lends nothing."""
        for cap in self.chain():
            cap.inside -= 1
            cap.weight -= weight

    def leave(self, weight: int) -> None:
        self.park(weight)
        for cap in self.chain():
            cap.ceiling = max(cap.total, cap.ceiling - weight)

    def started(self) -> None:
        outermost = self.outermost()
        rate = outermost.rate
        if rate is not None:
            starts, now = outermost.starts, self.round.world.now()
            starts.append(now)
            if len(starts) > math.ceil(rate.amount) + rate.burst - 1:
                since = now - starts.popleft()
                self.round.check(since > rate.per - 1e-6, "rate", since, rate)

    def set_total(self, total: int) -> None:
        self.ceiling = max(total, min(self.ceiling, self.limiter.borrowed_tokens))
        self.limiter.total_tokens = self.total = total


class Purse:
    """A budget, and what the branches' code has asked of it."""

    def __init__(self, limit: int, outer: Purse | None) -> None:
        self.budget: Budget = Budget(None if outer is None else outer.budget, usd=limit)
        self.limit = limit
        self.used = 0
        self.outer = outer

    def chain(self) -> Iterator[Purse]:
        purse: Purse | None = self
        while purse is not None:
            yield purse
            purse = purse.outer

    def would_pass(self, amount: int) -> bool:
        return any(purse.used + amount > purse.limit for purse in self.chain())

    def add(self, amount: int) -> None:
        for purse in self.chain():
            purse.used += amount


@attrs.define(eq=False)
class Traced:
    """A branch, and what its code did."""

    number: int
    act: Callable[[Round, Traced], Awaitable[None]]
    weight: int
    step: TracedStep
    timeout: float
    told_to_stop: bool = False
    stops_at: float = math.inf  # by its timeout
    starts: int = 0
    is_counted: bool = False
    is_running: bool = False
    ending: str | None = None  # 'returned', 'raised' or 'was cancelled'
    errors: list[int] = attrs.Factory(list)  # by id, as trio splits groups
    is_refused: bool = False


@attrs.define(eq=False)
class TracedStep:
    parent: Traced | None
    depth: int
    switch: Breach | None
    purse: Purse | None
    cap: Cap | None = None
    nursery: BranchNursery | None = None
    branches: dict[str, Traced] = attrs.Factory(dict)
    breached_for: str | None = None

    def is_stopped(self) -> bool:
        if self.breached_for is not None or (self.switch is not None and self.switch.reason):
            return True
        return self.nursery is None or self.nursery.statistics().stop_reason is not None


class Told(abc.Observer):
    """Notes who is told to stop by a rule, or a policy."""

    def __init__(self, step: TracedStep) -> None:
        self.step = step

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self.step.branches[str(branch.key)].told_to_stop = True


# ---------------------------------------------------------------- a round


@attrs.define(eq=False)
class Shared:
    """What lives as long as the loop does: the limiters that rounds come back to."""

    plain: BranchLimiter = attrs.Factory(lambda: BranchLimiter(8, name="plain"))
    other: BranchLimiter = attrs.Factory(lambda: BranchLimiter(3, name="other"))
    rated: BranchLimiter = attrs.Factory(lambda: BranchLimiter(6, name="rated", rate=RATE))
    foreign: trio.CapacityLimiter | None = None  # on trio

    @property
    def weighing(self) -> tuple[BranchLimiter, ...]:
        return self.plain, self.other, self.rated


class Round:
    def __init__(
        self, world: World, shared: Shared, seed: str, observers: tuple[abc.Observer, ...] = ()
    ) -> None:
        self.world = world
        self.shared = shared
        self.random = Random(seed)
        self.observers = observers
        self.branches = 0
        self.violations: list[str] = []
        self._interrupted = False
        self._breaches = 0
        self._body: Any = self._run_branch
        for observer in observers:
            self._body = getattr(observer, "watch", lambda body: body)(self._body)

    async def __call__(self) -> None:
        began = self.world.now()
        at = self.random.choice((math.inf,) * 7 + (2.5,))
        self.other = Cap(self, self.shared.other, None)
        try:
            async with self.world.scope(STALLED), self.world.scope(at):
                try:
                    await self.random.choice((self._map, *(self._step,) * 5))()
                finally:
                    self._interrupted = self.world.now() >= began + at
        except (Exception, BaseExceptionGroup) as exc:
            self._check_raised(exc)
        self.check(self.world.now() - began < STALLED, "a round ends")
        for limiter in self.shared.weighing:
            how = limiter.statistics()
            self.check(how.borrowed_tokens == how.tasks_waiting == 0, "limiters are idle", how)
            self.check(how.paused is None, "none is paused", how)
        self.shared.plain.total_tokens = 8
        del self.other, self._body

    def check(self, right: bool, promise: str, *seen: object) -> None:
        if not right:
            self.violations.append(f"{promise}: {', '.join(map(str, seen))}")

    def one_in(self, number: int) -> bool:
        return self.random.random() * number < 1

    def _check_raised(self, exc: BaseException) -> None:
        expected = (*EXPECTED, self.world.cancelled)
        strange = [leaf for leaf in leaves(exc) if not isinstance(leaf, expected)]
        self.check(not strange, "only what was raised", *map(repr, strange))

    # ------------------------------------------------------------ steps

    async def _step(self) -> None:
        """With visitors of its limiter."""
        limit, cap = self._outermost()
        if cap is None:
            await self._run_step(None, 1, limit, cap)
            return
        async with open_branch_nursery(math.inf, policy=COLLECT) as visitors:
            for number in range(self.random.choice((0, 0, 2, 5))):
                visitors.start_soon(number, self._visit, cap)
                self.branches += 1
            await self._run_step(None, 1, limit, cap)

    def _outermost(self) -> tuple[Any, Cap | None]:
        random, shared = self.random, self.shared
        limiter: Any = random.choice((*(shared.plain,) * 6, shared.rated, None))
        if limiter is None:
            return random.choice((1, 4, math.inf, shared.foreign)), None
        return limiter, Cap(self, limiter, None, RATE if limiter is shared.rated else None)

    async def _visit(self, cap: Cap) -> None:
        await self.world.sleep(self.random.randrange(4))
        async with cap.limiter:
            cap.enter(1)
            try:
                await self.world.sleep(self.random.randrange(3))
            finally:
                cap.leave(1)

    def _limit(self, outer: Cap) -> tuple[Any, Cap | None]:
        """Of a nested step."""
        draw = self.random.random()
        if draw < 0.5:
            return None, outer
        if draw < 0.8:
            return self.random.randint(1, 4), None
        return self.other.limiter, self.other

    def _options(self, step: TracedStep) -> dict[str, Any]:
        options: dict[str, Any] = {"policy": self.random.choice(POLICIES)}
        if step.switch is not None:
            options["breach"] = step.switch
        if step.purse is not None:
            options["budget"] = step.purse.budget
        if self.one_in(3):
            options["on_breach"] = "drain"
        if self.one_in(12):
            which = self.random.choice(("fail_after", "move_on_after"))
            options[which] = float(self.random.randrange(6))
        if self.one_in(4):
            options["cancel_rules"] = RULES
        if "cancel_rules" in options or options["policy"] not in (COLLECT, FAIL_FAST):
            options["observers"] = (*self.observers, Told(step))
        elif self.observers:
            options["observers"] = self.observers
        return options

    async def _run_step(
        self, parent: Traced | None, depth: int, limit: Any, cap: Cap | None
    ) -> None:
        outer = None if parent is None else parent.step
        switch = purse = None
        if self.one_in(3):
            switch = Breach() if outer is None or outer.switch is None else outer.switch
        if self.one_in(4):
            purse = Purse(self.random.randint(2, 60), None if outer is None else outer.purse)
        step = TracedStep(parent, depth, switch, purse)
        raised: BaseException | None = None
        try:
            async with open_branch_nursery(limit, **self._options(step)) as nursery:
                around = None if outer is None else outer.cap
                step.cap = Cap(self, nursery.limiter, around) if cap is None else cap
                step.nursery = nursery
                try:
                    await self._block(step)
                finally:
                    if parent is not None:
                        self._parks(parent)
        except BaseException as exc:
            raised = exc
            if not isinstance(exc, Exception) or self.one_in(2):
                raise
        finally:
            if step.nursery is None:
                self.check(isinstance(raised, Breached), "a step opens", repr(raised))
            else:
                self._closed(step, raised)
                if parent is not None:
                    self._goes_on(parent, raised)
            raised = None

    async def _block(self, step: TracedStep) -> None:
        nursery, random = step.nursery, self.random
        assert nursery is not None
        for _ in range(random.choice((5, 20, 40)) if step.depth == 1 else random.randrange(7)):
            self._submit(step)
            if self.one_in(20):
                await self.world.sleep(random.randrange(2))
        if step.depth == 1:
            for _ in range(random.randrange(3)):
                await self.world.sleep(random.choice((0, 1, 1.5)))
                await self._meddle(step)
            if self.one_in(3):
                await self._iterate(step)

    async def _iterate(self, step: TracedStep) -> None:
        nursery = step.nursery
        assert nursery is not None
        keys = [result.key async for result in nursery.completed()]
        how = nursery.statistics()
        ended = {branch.key for branch in map(nursery.__getitem__, step.branches)}
        self.check(how.queued == how.running == 0, "completed() ends when all have ended", how)
        self.check(len(keys) == len(ended) and set(keys) == ended, "each ending is told once", keys)

    def _submit(self, step: TracedStep) -> None:
        random, nursery, cap = self.random, step.nursery, step.cap
        assert nursery is not None
        assert cap is not None
        number = len(step.branches)
        act = random.choice(ACTS)
        weight = 1
        if cap.outermost().limiter in self.shared.weighing and self.one_in(5):
            weight = random.choice((2, 3, HEAVIEST))
        traced = Traced(number, act, weight, step, 1.5 if self.one_in(15) else math.inf)
        key = f"{step.depth}.{number}"
        step.branches[key] = traced
        branch = nursery.start_soon(
            key,
            self._body,
            traced,
            priority=random.choice((0, 0, 0, 1, -1)),
            weight=weight,
            timeout=traced.timeout,
            retry=RETRY if act is Round._flake else None,
        )
        self.branches += 1
        if branch.status is SKIPPED:
            self.check(step.is_stopped(), "skipped at once after a stop only", key)

    def _is_stopped(self, traced: Traced) -> bool:
        """Was it told to stop, or what is around it?"""
        above: Traced | None = traced
        while above is not None:
            is_late = self.world.now() >= above.stops_at
            if is_late or above.told_to_stop or above.step.is_stopped():
                return True
            above = above.step.parent
        return self._interrupted

    def _counts(self, traced: Traced) -> None:
        assert traced.step.cap is not None
        traced.is_counted = True
        traced.step.cap.enter(traced.weight)

    def _parks(self, traced: Traced) -> None:
        if traced.is_counted:
            assert traced.step.cap is not None
            traced.is_counted = False
            traced.step.cap.park(traced.weight)

    def _goes_on(self, traced: Traced, raised: BaseException | None) -> None:
        """If it unwinds, it may have no token."""
        if isinstance(raised, Exception | None) and not self._is_stopped(traced):
            self._counts(traced)

    # ------------------------------------------------------------ branches

    async def _run_branch(self, traced: Traced) -> int:
        step = traced.step
        assert step.cap is not None
        self.check(not traced.is_running, "it runs once at a time", traced.number)
        self.check(
            not (traced.told_to_stop or step.is_stopped()),
            "none starts after a stop",
            traced.number,
        )
        traced.starts += 1
        traced.stops_at = self.world.now() + traced.timeout
        traced.is_running = True
        traced.ending, traced.errors = None, []
        traced.is_refused = False
        self._counts(traced)
        step.cap.started()
        try:
            await traced.act(self, traced)
        except BaseException as exc:
            traced.errors = ids(exc, but_for=self.world.cancelled)
            traced.ending = "raised" if traced.errors else "was cancelled"
            traced.is_refused = isinstance(exc, BudgetExceeded)
            raise
        else:
            traced.ending = "returned"
        finally:
            traced.is_running = False
            if traced.is_counted:
                traced.is_counted = False
                step.cap.leave(traced.weight)
        return traced.number

    async def _work(self, traced: Traced) -> None:
        await self.world.sleep(self.random.choice((0, 0.5, 1, 1, 2)))

    async def _return(self, traced: Traced) -> None:
        pass

    async def _fail(self, traced: Traced) -> None:
        await self._work(traced)
        raise Oops

    async def _flake(self, traced: Traced) -> None:
        await self._work(traced)
        if traced.starts < 3:
            raise Flaky if self.one_in(2) else Backpressure(retry_after=1.0)

    async def _swallow(self, traced: Traced) -> None:
        try:
            await self.world.sleep(3)
        except self.world.cancelled:
            return

    async def _clean_up(self, traced: Traced) -> None:
        try:
            await self.world.sleep(2)
        finally:
            async with self.world.shield():
                await self.world.sleep(1)

    async def _fail_when_stopped(self, traced: Traced) -> None:
        """Not in the handler: trio's Cancelled, as the error's context, keeps the frames of those
        who cancelled, and they the branch that keeps the error."""
        try:
            await self.world.sleep(3)
        except self.world.cancelled:
            pass
        else:
            return
        raise Oops

    async def _nest(self, traced: Traced) -> None:
        step = traced.step
        if step.depth == DEPTH:
            return await self._work(traced)
        assert step.cap is not None
        await self._run_step(traced, step.depth + 1, *self._limit(step.cap))
        if self.one_in(3):
            await self._work(traced)
        return None

    async def _wait(self, traced: Traced) -> None:
        """For a sibling that was submitted earlier: no circle."""
        step = traced.step
        assert step.nursery is not None
        if not traced.number:
            return
        target = step.nursery[f"{step.depth}.{self.random.randrange(traced.number)}"]
        raised: BaseException | None = None
        self._parks(traced)
        try:
            if self.one_in(2):
                async with self.world.scope(1):
                    await target.wait()
            else:
                result = await target.wait()
                self.check(target.status is result.status in ENDED, "it waits for the end", result)
        except BaseException as exc:
            raised = exc
            raise
        finally:
            self._goes_on(traced, raised)
            raised = None

    async def _hedge(self, traced: Traced) -> None:
        cap, raised = traced.step.cap, None
        assert cap is not None
        self._parks(traced)
        try:
            await hedged(self._attempt, after=1.0)(cap)
        except BaseException as exc:
            raised = exc
            raise
        finally:
            self._goes_on(traced, raised)
            raised = None

    async def _attempt(self, cap: Cap) -> None:
        self.branches += 1
        cap.enter(1)
        cap.started()
        try:
            await self.world.sleep(self.random.choice((0.5, 2)))
            if self.one_in(8):
                raise Oops
        finally:
            cap.leave(1)

    async def _spend(self, traced: Traced) -> None:
        purse = traced.step.purse
        if purse is None:
            return await self._work(traced)
        asked, kept = self.random.randint(1, 4), 0
        try:
            reserved = purse.budget.reserve(usd=asked)
        except BudgetExceeded:
            self.check(purse.would_pass(asked), "only what would pass is refused", purse.budget)
            raise
        self.check(not purse.would_pass(asked), "never beyond the limit", purse.budget)
        purse.add(asked)
        try:
            with reserved as reservation:
                await self._work(traced)
                reservation.settle(usd=asked - 1)
                kept = asked - 1
        finally:
            purse.add(kept - asked)
        return None

    async def _submit_another(self, traced: Traced) -> None:
        self._submit(traced.step)
        await self._work(traced)

    async def _meddle_as_branch(self, traced: Traced) -> None:
        await self._work(traced)
        await self._meddle(traced.step)

    async def _meddle(self, step: TracedStep) -> None:
        await self.random.choice(MEDDLING)(self, step)

    # ------------------------------------------------------------ what may be done to a step

    async def _cancel_one(self, step: TracedStep) -> None:
        assert step.nursery is not None
        if step.branches:
            key, traced = self.random.choice(list(step.branches.items()))
            was_live = step.nursery[key].status not in ENDED
            was_told = step.nursery.cancel(key)
            self.check(was_live or not was_told, "what has ended is not told to stop", key)
            traced.told_to_stop |= was_told

    async def _cancel_below(self, step: TracedStep) -> None:
        """The less important half."""
        assert step.nursery is not None
        nursery = step.nursery
        for key in nursery.cancel_where(lambda key: nursery[key].priority < 0, "unimportant"):
            step.branches[key].told_to_stop = True

    async def _reprioritise(self, step: TracedStep) -> None:
        assert step.nursery is not None
        for branch in map(step.nursery.__getitem__, step.branches):
            if branch.status is QUEUED and self.one_in(2):
                branch.priority = self.random.randint(-2, 2)

    async def _resize(self, step: TracedStep) -> None:
        """A shared limiter, and back to what it was at the end of the round."""
        assert step.cap is not None
        outermost = step.cap.outermost()
        if outermost.limiter is self.shared.plain:
            outermost.set_total(self.random.randint(1, 12))

    async def _pause(self, step: TracedStep) -> None:
        assert step.nursery is not None
        paused = step.nursery if self.one_in(2) else step.nursery.limiter
        paused.pause("for a while")
        try:
            await self.world.sleep(2)
        finally:
            paused.resume()

    async def _breach(self, step: TracedStep) -> None:
        assert step.nursery is not None
        if self.one_in(3):
            self._breaches += 1
            reason = f"breach {self._breaches}"
            if step.switch is not None and self.one_in(2):
                step.switch.trip(reason)
            else:
                step.nursery.breach(reason)
                step.breached_for = reason

    # ------------------------------------------------------------ what came of it

    def _closed(self, step: TracedStep, raised: BaseException | None) -> None:
        nursery, step.nursery = step.nursery, None
        assert nursery is not None
        result = nursery.result
        self.check(list(result) == list(step.branches), "all are in the result", list(result))
        ran = 0
        for traced, ended in zip(step.branches.values(), result.values(), strict=False):
            ran += traced.starts > 0
            if not is_right(traced, ended):
                self.check(False, "it ended as its code saw it", traced.ending, ended)
        self.check(len(result.completion_order) == ran, "in the order of ending", ran)
        step.branches.clear()
        if raised is not None:
            self._check_raised(raised)
        elif step.breached_for is not None and result.stop_reason == step.breached_for:
            self.check(False, "a breach is raised", step.breached_for)

    # ------------------------------------------------------------ maps

    async def _map(self) -> None:
        random = self.random
        number = random.choice((3, 30, 60))
        cap, limit = Cap(self, self.shared.plain, None), self.shared.plain
        in_order, leaves_early = self.one_in(2), self.one_in(4)
        started = consumed = 0
        keys: list[Any] = []

        async def body(item: int) -> int:
            nonlocal started
            started += 1
            self.check(started - consumed <= cap.total, "no more than the limit ahead", started)
            cap.enter(1)
            try:
                await self.world.sleep(random.choice((0, 0, 1, 2)))
                if self.one_in(10):
                    raise Oops
            finally:
                cap.leave(1)
            return item

        source: Any = range(number) if self.one_in(2) else items(number)
        self.branches += number
        async with map_branches(body, source, limit, in_order=in_order, policy=COLLECT) as results:
            async for result in results:
                consumed += 1
                keys.append(result.key)
                self.check(result.status in (SUCCEEDED, FAILED), "each item has its end", result)
                if self.one_in(6):
                    await self.world.sleep(random.randrange(3))
                if leaves_early and self.one_in(number):
                    break
            else:
                self.check(sorted(keys) == list(range(number)), "each item once", keys)
        self.check(not in_order or keys == sorted(keys), "in the order of the input", keys)
        self.check(len(set(keys)) == len(keys), "no item twice", keys)


async def items(number: int) -> AsyncIterator[int]:
    for item in range(number):
        yield item


def ids(exc: BaseException | None, but_for: type[BaseException] | tuple[()] = ()) -> list[int]:
    return [id(leaf) for leaf in leaves(exc) if not isinstance(leaf, but_for)]


def is_right(traced: Traced, ended: StepResult[Any]) -> bool:
    status = ended.status
    if traced.is_running or traced.is_counted or ended.attempts != traced.starts:
        return False
    if not traced.starts:
        return status is SKIPPED
    if traced.ending == "returned":
        return status is SUCCEEDED and ended.output == traced.number
    if traced.ending == "was cancelled":
        return status in (CANCELLED, BREACHED, TIMED_OUT)
    if status is FAILED:
        return traced.errors == ids(ended.exception)
    if traced.is_refused:
        return status is BREACHED
    # It was stopped while it was queued to be tried again.
    return traced.act is Round._flake and status in (CANCELLED, BREACHED, TIMED_OUT)


def _table(*weights: tuple[int, Any]) -> tuple[Any, ...]:
    return tuple(what for number, what in weights for _ in range(number))


ACTS: Final = _table(
    (50, Round._work),
    (20, Round._return),
    (4, Round._fail),
    (3, Round._flake),
    (2, Round._swallow),
    (2, Round._clean_up),
    (1, Round._fail_when_stopped),
    (4, Round._nest),
    (3, Round._wait),
    (2, Round._hedge),
    (4, Round._spend),
    (2, Round._submit_another),
    (3, Round._meddle_as_branch),
)
MEDDLING: Final = (
    Round._cancel_one,
    Round._cancel_below,
    Round._reprioritise,
    Round._resize,
    Round._pause,
    Round._breach,
)
