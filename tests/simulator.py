"""Random trees of branches in the core alone: a small discrete-event simulation, no event loop.

1. The code of a branch is a generator, drawn as it goes from a seeded `random.Random`: it works,
   nests steps (on the same pool, under a sub-cap, on the other pool), waits for other branches or
   iterates over other steps, in its own task or in one beside it, which may outlive it.
2. Beside it, events: cancels, breaches, timeouts, pauses, limits that shrink and grow.
3. Before each event and each jump of the clock all is checked against what the rules say, by
   definitions that are slow and obvious.  `Violation` says what is wrong.
4. Cancellation is told at each wait until the code has ended, as trio does it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import attrs

from fakes import Fake, FakeStep, FakeWait
from trio_parallel_steps import BranchStatus
from trio_parallel_steps._admission import Pool
from trio_parallel_steps._parking import check_no_circle, is_resuming
from trio_parallel_steps._queue import RESUMES
from trio_parallel_steps._records import Cause

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING


class Violation(AssertionError):
    pass


class Cancelled(BaseException):
    pass


@attrs.frozen
class Shape:
    """What programs are drawn from."""

    depth: int = 6
    width: int = 8
    branches: int = 60
    waits: bool = True
    events: bool = True
    weights: bool = True
    sub_caps: bool = True
    pools: int = 2


PLAIN = Shape(waits=False, events=False, weights=False, sub_caps=False, pools=1)

Sleep: TypeAlias = float
Code: TypeAlias = Generator["Sleep | SimWait", None, None]


class SimWait(FakeWait):
    """A wait of a task of a branch."""

    __slots__ = ("is_exit", "task")

    def __init__(self, task: Task, target: Any, is_exit: bool = False) -> None:
        self.task = task
        self.is_exit = is_exit  # of a block: a cancellation does not cut it short
        super().__init__(task.record, target)
        task.sim.waits.setdefault(task.record, []).append(self)

    def begin(self) -> None:
        super().begin()
        if not self.is_over:  # of a block: all had ended, and it has not been left yet
            self.goes_on = self.is_asked = False

    def go_on(self) -> None:
        super().go_on()
        self.task.sim.ready.append((self.task.woken, self))

    def is_shielded(self) -> bool:
        return self.task.is_shielded or (self.is_exit and self.is_over)


class Task:
    """Runs a generator."""

    def __init__(self, sim: Simulation, record: Any, step: SimStep, code: Code) -> None:
        self.sim = sim
        self.record = record
        self.step = step
        self.code = code
        self.is_told = False
        self.is_shielded = False
        self.blocked_on: object = None
        self.is_done = False
        self.after: Callable[[object], None] = lambda how: None

    def go(self, throw: bool = False) -> None:
        self.blocked_on = None
        try:
            blocked_on = self.code.throw(Cancelled()) if throw else self.code.send(None)
        except StopIteration:
            self.is_done = True
            self.after("value")
            return
        except Cancelled:
            self.is_done = True
            self.after(None)
            return
        self.blocked_on = blocked_on
        if isinstance(blocked_on, SimWait):
            if blocked_on.goes_on:
                self.sim.ready.append((self.woken, blocked_on))
        else:
            timer = self.blocked_on = object()
            self.sim.at(self.sim.fake.time + blocked_on, self.woken, timer)
        if self.is_told:
            self.tell()

    def woken(self, by: object) -> None:
        if self.blocked_on is by:
            is_cut = self.is_told and not self.is_shielded
            self.go(throw=is_cut and isinstance(by, SimWait) and not by.is_exit)

    def tell(self) -> None:
        self.is_told = True
        if self.is_shielded or self.blocked_on is None:
            return
        wait = self.blocked_on
        if isinstance(wait, SimWait) and not wait.is_exit:
            wait.set()  # cut short: thrown once it has its token
        else:
            self.sim.ready.append((self.cut, self.blocked_on))

    def cut(self, by: object) -> None:
        if self.blocked_on is by and not (isinstance(by, SimWait) and by.is_shielded()):
            self.go(throw=True)


class SimStep(FakeStep):
    sim: Simulation
    depth = 0
    opener: Task | None = None
    is_open = True

    def begun(self, record: Any) -> None:
        sim = self.sim
        sim.started += 1
        task = Task(sim, record, self, sim.branch(record, self))
        sim.tasks[record] = task
        task.after = lambda how: self.report(record.key, how)
        if record._timeout < math.inf:
            sim.at(sim.fake.time + record._timeout, self.expire, record)
        sim.ready.append((lambda by: task.go(), None))

    def report(self, key: Any, how: Any) -> None:
        record: Any = self.running[key]
        if how is None and record._cause is None and not self.core.is_stopping():
            self.core.interrupted()  # from outside
        self.sim.ended.append(record)
        self.sim.tasks.pop(record)
        super().report(key, how)

    def expire(self, record: Any) -> None:
        if record.status is RUNNING and record._cause is None and not self.core.is_stopping():
            self.core.timed_out(record)
            self.sim.tasks[record].tell()

    def stop(self, record: Any, reason: str) -> None:
        self.sim.tasks[record].tell()

    def stop_all(self, reason: str) -> None:
        super().stop_all(reason)
        for record in list(self.running.values()):
            self.sim.tasks[record].tell()
        if self.opener is not None:
            self.opener.tell()

    def is_cancelled(self) -> bool:
        return self.is_stopped or (self.opener is not None and self.opener.is_told)

    def overtaken(self, record: Any) -> Cause | None:
        return Cause.OUTSIDE if self.is_cancelled() else None

    def wake(self) -> None:
        if isinstance(self.core.join, SimWait):
            self.core.join.set()


class Simulation:
    def __init__(self, seed: int, shape: Shape) -> None:
        self.rng = random.Random(seed)
        self.shape = shape
        self.fake = Fake()
        self.ready: list[tuple[Callable[[Any], None], object]] = []
        self.events: list[tuple[float, int, Callable[[Any], None], object]] = []
        self.number = itertools.count()
        self.tasks: dict[Any, Task] = {}
        self.beside: list[Task] = []
        self.waits: dict[Any, list[SimWait]] = {}
        self.targets: dict[SimWait, Any] = {}  # a record, or a step
        self.submitted: list[Any] = []
        self.ended: list[Any] = []
        self.started = 0
        self.refused = 0
        self.work = 0.0
        self.paths: dict[Any, float] = {}
        rng = self.rng
        caps = [rng.randint(1, 6) for _ in range(shape.pools)]
        self.pools = [self.fake.pool(cap) for cap in caps]
        self.ceilings: dict[Pool, float] = {pool: pool.cap for pool in self.pools}
        self.cap = caps[0]

    # ------------------------------------------------------------ programs

    def at(self, when: float, call: Callable[[Any], None], by: object = None) -> None:
        heapq.heappush(self.events, (when, next(self.number), call, by))

    def open(self, pool: Pool, parent: Any = None, depth: int = 0) -> SimStep:
        number = next(self.number)
        step = SimStep(self.fake, pool, parent, f"step{number}")
        step.sim = self
        step.depth = depth
        return step

    def spawn(self, step: SimStep, times: int) -> None:
        rng = self.rng
        for _ in range(times):
            if len(self.submitted) >= self.shape.branches:
                return
            key = f"b{next(self.number)}"
            weight = rng.choice([1, 1, 1, 2, 3, 8]) if self.shape.weights else 1
            step.submit(key, priority=rng.randint(-1, 1), weight=weight)
            record = step[key]
            if self.shape.events and rng.random() < 0.05:
                record._timeout = float(rng.randint(0, 6))
            self.submitted.append(record)
        if rng.random() < 0.3:
            self.fake.checkpoint()

    def branch(self, record: Any, step: SimStep) -> Code:
        """The code of one branch."""
        rng = self.rng
        task = self.tasks[record]
        try:
            for _ in range(rng.randint(0, 2)):
                yield from self.op(record, step, task)
            yield self.worked(record)
        except Cancelled:
            if rng.random() < 0.4:
                task.is_shielded = True  # cleanup that waits
                if self.shape.waits and rng.random() < 0.5:
                    yield from self.wait_for(task)
                yield float(rng.randint(0, 2))
            if rng.random() < 0.8:
                raise

    def worked(self, record: Any) -> float:
        seconds = float(self.rng.randint(0, 3))
        self.work += seconds
        self.paths[record] = self.paths.get(record, 0.0) + seconds
        return seconds

    def op(self, record: Any, step: SimStep, task: Task) -> Code:
        rng, shape = self.rng, self.shape
        draw = rng.random()
        if draw < 0.45 and step.depth + 1 < shape.depth:
            yield from self.nest(record, step, task)
        elif shape.waits and draw < 0.60:
            yield from self.wait_for(task)
        elif shape.waits and draw < 0.66:
            yield from self.iterate(task)
        elif shape.waits and draw < 0.74:
            self.start_beside(record, step)
            yield float(rng.randint(0, 1))
        elif shape.waits and draw < 0.78:
            steps = [s for s in self.steps() if s.is_open and not s.core.closed]
            self.spawn(rng.choice(steps), 1)
            yield 0.0
        else:
            yield self.worked(record)

    def start_beside(self, record: Any, step: SimStep) -> None:
        """A task of the branch's own, that may outlive it."""

        def code() -> Code:
            yield float(self.rng.randint(0, 2))
            yield from self.wait_for(task)

        task = Task(self, record, step, code())
        self.beside.append(task)
        self.ready.append((lambda by: task.go(), None))

    def nest(self, record: Any, around: SimStep, task: Task) -> Code:
        rng, shape = self.rng, self.shape
        draw = rng.random()
        if shape.sub_caps and draw < 0.35:
            pool = Pool(None, rng.randint(1, 4), None, around.pool)
            self.ceilings[pool] = pool.cap
        elif shape.pools > 1 and draw < 0.5:
            pool = rng.choice(self.pools)
        else:
            pool = around.pool
        step = self.open(pool, record, around.depth + 1)
        step.opener = task
        cancelled: Cancelled | None = None
        try:
            self.spawn(step, rng.randint(0, shape.width))
            if rng.random() < 0.5:
                yield self.worked(record)
            if shape.waits and rng.random() < 0.2:
                yield from self.wait_for(task)
        except Cancelled as exc:
            cancelled = exc
            step.core.interrupted()
        before = self.paths.get(record, 0.0)
        step.core.body_ended()
        shielded = task.is_shielded
        if step.core.outstanding:
            join = step.core.join = SimWait(task, step.core, is_exit=True)
            self.targets[join] = step
            while step.core.outstanding or not join.goes_on:
                join = step.core.join
                try:
                    yield join
                except Cancelled as exc:
                    cancelled = exc
                    task.is_shielded = True
                    step.core.interrupted()
        step.core.leave_pool()
        step.is_open = False
        step.core.closed = True
        step.core.settle()
        task.is_shielded = shielded
        inner = [self.paths.get(r, 0.0) for r in step.core.records.values()]
        self.paths[record] = before + max(inner, default=0.0)
        if cancelled is not None:
            raise cancelled

    def wait_for(self, task: Task) -> Code:
        live = [r for r in self.submitted if r._step is not None]
        if not live:
            return
        target = self.rng.choice(live)
        if task.record.status is not RUNNING:
            return  # it has outlived its branch: it waits as anyone does
        if not self.may_wait(task.record, lambda r: r is target, [target]):
            return
        wait = SimWait(task, target)
        self.targets[wait] = target
        target._done = [*(target._done or ()), wait]
        if self.rng.random() < 0.25:  # a scope of the user's own
            self.at(self.fake.time + self.rng.randint(0, 3), lambda by: cut_short(wait))
        yield wait
        if target._done is not None and wait in target._done:
            target._done.remove(wait)

    def iterate(self, task: Task) -> Code:
        step = self.rng.choice(self.steps())
        core = step.core
        for _ in range(3):
            if not core.outstanding or not step.is_open:
                return
            targets = [r for r in core.records.values() if r._step is not None]
            if not self.may_wait(task.record, lambda r: r._step is core, targets):
                return
            wait = SimWait(task, core)
            self.targets[wait] = step
            core.listeners.append(wait)
            yield wait
            if wait in core.listeners:
                core.listeners.remove(wait)

    def may_wait(self, waiter: Any, is_target: Callable[[Any], bool], targets: list[Any]) -> bool:
        """The engine searches backwards from the waiter; we, forwards from the targets."""
        expected = self.reaches(targets, waiter)
        try:
            check_no_circle(waiter, is_target, "wait()", "it")
        except RuntimeError as error:
            self.refused += 1
            self.check(expected, "only a circle is refused", error)
            return False
        self.check(not expected, "a circle is refused", waiter, targets)
        return True

    def reaches(self, targets: list[Any], waiter: Any) -> bool:
        due, seen = list(targets), set(targets)
        nested: dict[Any, list[Any]] = {}
        for step in self.steps():
            if step.core.parent is not None:
                nested.setdefault(step.core.parent, []).extend(live_of(step))
        while due:
            record = due.pop()
            if record is waiter:
                return True
            following = list(nested.get(record, ()))
            for wait in self.waits.get(record, ()):
                if not wait.is_over:
                    target = self.targets[wait]
                    following += live_of(target) if isinstance(target, SimStep) else [target]
            due += [r for r in following if r not in seen]
            seen.update(following)
        return False

    def steps(self) -> list[SimStep]:
        return [step for step in self.fake.steps if isinstance(step, SimStep)]

    # ------------------------------------------------------------ events

    def draw_events(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(0, 8)):
            what = rng.choice(
                [
                    self.cancel,
                    self.cancel,
                    self.breach,
                    self.pause,
                    self.pause_pool,
                    self.resize,
                    self.reorder,
                ]
            )
            self.at(float(rng.randint(0, 8)), what)

    def cancel(self, by: object) -> None:
        live = [r for r in self.submitted if r._step is not None]
        if live:
            record = self.rng.choice(live)
            record._step.cancel(record, "cancelled")

    def breach(self, by: object) -> None:
        steps = [step for step in self.steps() if step.is_open and step.core.parent is not None]
        if steps:
            self.rng.choice(steps).core.stop(Cause.BREACH, "breached")

    def reorder(self, by: object) -> None:
        queued = [r for r in self.submitted if r.status is QUEUED and r._entry is not None]
        if queued:
            record = self.rng.choice(queued)
            record._step.reorder(record, self.rng.randint(-2, 2))

    def pause(self, by: object) -> None:
        steps = [step for step in self.steps() if step.is_open]
        if steps:
            step = self.rng.choice(steps)
            step.core.pause("paused")
            self.at(self.fake.time + self.rng.randint(1, 4), lambda by: step.core.resume())

    def pause_pool(self, by: object) -> None:
        pool = self.rng.choice(list(self.ceilings))
        pool.set_paused("paused")
        self.at(self.fake.time + self.rng.randint(1, 4), lambda by: pool.set_paused(None))

    def resize(self, by: object) -> None:
        pool = self.rng.choice(list(self.ceilings))
        pool.set_cap(self.rng.randint(1, 6))
        self.ceilings[pool] = max(pool.cap, pool.used)

    # ------------------------------------------------------------ a run

    def run(self) -> None:
        for pool in self.pools:
            self.spawn(self.open(pool), self.rng.randint(1, self.shape.width))
        if self.shape.events:
            self.draw_events()
        while True:
            while self.ready or self.fake.calls or any(step.places for step in self.fake.steps):
                if self.ready:
                    call, by = self.ready.pop(self.rng.randrange(len(self.ready)))
                    call(by)
                    self.check_caps()
                else:
                    self.fake.checkpoint()
                    self.check_caps()
            self.check_all()
            if not self.events:
                break
            when, _, call, by = heapq.heappop(self.events)
            self.fake.time = max(self.fake.time, when)
            call(by)
            self.check_caps()
        self.check_end()

    def check(self, right: bool, promise: str, *seen: object) -> None:
        if not right:
            raise Violation(f"{promise}: {', '.join(map(repr, seen))}")

    def holders(self) -> dict[Any, bool]:
        """Who must hold its weight, by what its code does: and may it be over the cap?"""
        holders = {}
        for record in self.submitted:
            if record.status is RUNNING:
                waits = self.waits.get(record, ())
                if any(not wait.is_over for wait in waits) or is_resuming(record):
                    continue
                is_told = record._cause is not None or record._step.is_stopping()
                holders[record] = bool(waits) and is_told
            elif record.status is QUEUED and record._entry is None and record._token is not None:
                holders[record] = False
        return holders

    def check_caps(self) -> None:
        used: dict[Pool, list[tuple[int, bool]]] = {pool: [] for pool in self.ceilings}
        for record, is_over in self.holders().items():
            for pool in chain(record._step.pool):
                used[pool].append((record._weight, is_over))
        for pool, holders in used.items():
            total = sum(weight for weight, _ in holders)
            late = 0 if pool.used == total else self.skipped_since(pool)
            self.check(pool.used - total == late, "what is used is what runs", pool.used, holders)
            counted = [weight for weight, is_over in holders if not is_over]
            plain = sum(counted) + late
            ceiling = self.ceilings[pool]
            self.check(
                plain <= max(ceiling, pool.cap) or len(counted) <= 1,
                "active <= cap",
                pool.cap,
                ceiling,
                holders,
            )
            self.ceilings[pool] = max(pool.cap, min(ceiling, pool.used))
            self.check(pool.used >= 0 and pool.waiting >= 0, "no less than none", pool.used)
        for root, ledger in self.fake.ledgers.items():
            self.check(len(ledger.out) <= root.used, "the ledger lends no more", ledger.out)

    def skipped_since(self, pool: Pool) -> int:
        """Tokens of those that were granted, and skipped before they began."""
        return sum(
            record._token.weight
            for step in self.steps()
            if pool in chain(step.pool)
            for record in step.places
            if record._token is not None and record.status is not QUEUED
        )

    def waiters(self) -> list[tuple[tuple[float, int, int], Any]]:
        waiters = []
        for record in self.submitted:
            if record._entry is not None:
                waiters.append((record._entry[:3], record))
        return sorted(waiters, key=lambda waiter: waiter[0])

    def check_all(self) -> None:
        """Nothing is ready: whoever fits has been granted, but behind a head."""
        heads: dict[Pool, Any] = {}
        waiting: dict[Pool, int] = dict.fromkeys(self.ceilings, 0)
        for order, record in self.waiters():
            step = record._step
            for pool in chain(step.pool):
                waiting[pool] += 1
            self.check(
                (order[0] == RESUMES) == (record.status is RUNNING), "who resumes is first", record
            )
            if record.status is QUEUED and (
                step.paused is not None or any(p.paused is not None for p in chain(step.pool))
            ):
                continue
            for pool in chain(step.pool):
                if pool in heads:
                    break
                if pool.used and pool.used + record._weight > pool.cap:
                    heads[pool] = record
                    break
            else:
                raise Violation(f"work conserving: {record!r} fits, and waits {heads}")
        for pool, number in waiting.items():
            self.check(pool.waiting == number, "who waits is counted", pool.waiting, number)

    def check_end(self) -> None:
        for record in self.submitted:
            self.check(record._step is None, "nothing stalls", record)
        for step in self.steps():
            core = step.core
            self.check(
                sorted(r.name for r in core.endings) == sorted(map(str, core.records)),
                "each ends once",
                core,
            )
            self.check(core.running == core.parked == core.outstanding == 0, "none runs", core)
        for pool in self.ceilings:
            self.check(pool.used == pool.waiting == 0, "no token is left", pool.used, pool.waiting)
        self.check(self.fake.is_idle(), "the ledger has all of them back")

    def bound(self) -> float:
        """Graham's: what no schedule that conserves work exceeds."""
        longest = max((self.paths.get(r, 0.0) for r in self.submitted), default=0.0)
        return self.work / self.cap + (1 - 1 / self.cap) * longest


def cut_short(wait: SimWait) -> None:
    if not wait.is_over:
        wait.set()


def live_of(step: SimStep) -> list[Any]:
    return [record for record in step.core.records.values() if record._step is not None]


def chain(pool: Pool | None) -> Iterator[Pool]:
    while pool is not None:
        yield pool
        pool = pool.parent


def simulate(seed: int, shape: Shape) -> Simulation:
    sim = Simulation(seed, shape)
    sim.run()
    return sim
