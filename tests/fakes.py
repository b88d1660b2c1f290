"""The core without an event loop: hosts that only note what they are asked, and blocks and waits
that are entered, left and cut short by hand.

1. A `Fake` is one run: its clock, what is to be called at the next checkpoint, and its pools.
2. `FakeStep` is a step whose branches run as soon as they are granted, and end when the test says
   so.  `nest` opens one inside a branch, as `open_branch_nursery` does there.
3. `leave` is the exit of its block, and `FakeWait` a wait: what `__aexit__`, `Branch.wait()` and
   `completed()` do with the core, less the waiting.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

from trio_parallel_steps import COLLECT, Branch, BranchStatus, Policy
from trio_parallel_steps._admission import Pool
from trio_parallel_steps._announce import Announcer
from trio_parallel_steps._branch import new_branch
from trio_parallel_steps._core import StepCore
from trio_parallel_steps._parking import Wait, check_no_circle, is_resuming
from trio_parallel_steps._policies import engine_policy
from trio_parallel_steps._records import Cause
from trio_parallel_steps._rules import Rules

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING


class StrictLedger:
    """Refuses what it does not have, as trio's does."""

    def __init__(self, total: int | float) -> None:
        self.total = total
        self.out: list[Any] = []

    def take(self, borrower: object) -> None:
        assert len(self.out) < self.total, "a token that is not there was taken"
        assert borrower not in self.out, "a borrower took two"
        self.out.append(borrower)

    def give(self, borrower: object) -> None:
        self.out.remove(borrower)

    def available(self) -> int | float:
        return self.total - len(self.out)

    def set_total(self, total_tokens: int | float) -> None:
        self.total = total_tokens


class Fake:
    """A run."""

    def __init__(self) -> None:
        self.announcer = Announcer()
        self.time = 0.0
        self.calls: list[Callable[[], None]] = []
        self.steps: list[FakeStep] = []
        self.ledgers: dict[Pool, StrictLedger] = {}

    def check_thread(self) -> None:
        pass

    def now(self) -> float:
        return self.time

    def pool(self, cap: int | float) -> Pool:
        ledger = StrictLedger(cap)
        pool = Pool(ledger, cap)
        self.ledgers[pool] = ledger
        return pool

    def step(self, limit: Pool | int | float, **options: Any) -> FakeStep:
        pool = limit if isinstance(limit, Pool) else self.pool(limit)
        return FakeStep(self, pool, **options)

    def checkpoint(self) -> None:
        """What was asked for is called, and what was granted begins."""
        while self.calls or any(step.places for step in self.steps):
            calls, self.calls = self.calls, []
            for call in calls:
                call()
            for step in self.steps:
                step.begin_all()

    def is_idle(self) -> bool:
        return not any(
            ledger.out or pool.used or pool.waiting for pool, ledger in self.ledgers.items()
        )


class FakeStep:
    """A step, and the host that it runs on."""

    def __init__(
        self,
        fake: Fake,
        pool: Pool,
        parent: Branch[Any] | None = None,
        name: str = "step",
        policy: Policy = COLLECT,
        rules: Any = (),
    ) -> None:
        self.fake = fake
        self.places: list[Any] = []
        self.running: dict[Any, Branch[Any]] = {}
        self.told: list[Any] = []
        self.is_stopped = False
        self.first: Cause | None = None  # what the core has not been told of
        self.wakes = 0
        run: Any = fake
        host: Any = self
        made = Rules(rules) if rules else None
        self.core = StepCore(name, pool, engine_policy(policy), made, [], run, parent, math.inf)
        self.core.host = host
        self.core.handle = name
        pool.steps[self.core] = None
        fake.steps.append(self)

    # ------------------------------------------------------------ the host

    def now(self) -> float:
        return self.fake.time

    def soon(self, call: Callable[[], None]) -> None:
        self.fake.calls.append(call)

    def run(self, record: Any) -> None:
        self.places.append(record)

    def stop(self, record: Any, reason: str) -> None:
        self.told.append(record)

    def stop_all(self, reason: str) -> None:
        self.is_stopped = True

    def overtaken(self, record: Any) -> Cause | None:
        return self.first

    def is_cancelled(self) -> bool:
        return self.is_stopped or self.first in (Cause.DEADLINE, Cause.OUTSIDE)

    def wake(self) -> None:
        self.wakes += 1

    # ------------------------------------------------------------ its branches

    @property
    def pool(self) -> Pool:
        return self.core.pool

    def __getitem__(self, key: str) -> Any:
        return self.core.records[key]

    async def never(self) -> None:
        raise AssertionError("the core calls no code of a branch")

    def submit(self, *keys: str, priority: int = 0, weight: int = 1) -> None:
        for key in keys:
            context = contextvars.copy_context()
            record = new_branch(
                self.core, key, self.never, (), priority, weight, math.inf, context, self.fake.time
            )
            self.core.submit(record)

    def start(self, *keys: str, priority: int = 0, weight: int = 1) -> None:
        self.submit(*keys, priority=priority, weight=weight)
        self.fake.checkpoint()

    def begin_all(self) -> None:
        places, self.places = self.places, []
        for record in places:
            self.begin(record)

    def begin(self, record: Any) -> None:
        while record is not None:
            if record.status is QUEUED:
                self.core.begin(record, self.fake.time)
                self.running[record.key] = record
                self.begun(record)
                return
            record = self.core.not_begun(record)

    def begun(self, record: Any) -> None:
        pass

    def end(self, key: str, how: Any = "value") -> None:
        """`how`: a value, an Exception, or None: only Cancelled came out."""
        self.report(key, how)
        self.fake.checkpoint()

    def report(self, key: Any, how: Any) -> None:
        record = self.running.pop(key)
        if how is None:
            following = self.core.stopped(record, self.fake.time)
        elif isinstance(how, Exception):
            following = self.core.raised(record, how, self.fake.time)
        else:
            following = self.core.returned(record, how, self.fake.time)
        self.begin(following)

    # ------------------------------------------------------------ blocks and waits in branches

    def nest(self, key: str, limit: Pool | int | float | None = None, **options: Any) -> FakeStep:
        """A step in the branch: on its pool, under a sub-cap, or on another pool."""
        if limit is None:
            pool = self.pool
        elif isinstance(limit, Pool):
            pool = limit
        else:
            pool = Pool(None, limit, None, self.pool)
        return FakeStep(self.fake, pool, self[key], **options)

    def leave(self) -> None:
        """The body has ended: the branch around it waits for what is outstanding."""
        self.core.body_ended()
        parent = self.core.parent
        if parent is not None:
            self.core.join = Wait(parent, self.core)
            if self.core.outstanding:
                self.core.join.begin()
        self.fake.checkpoint()

    def wait(self, key: str, target: Any) -> FakeWait:
        """A task of the branch waits for another branch."""
        check_no_circle(self[key], lambda r: r is target, "wait()", repr(target.key))
        wait = FakeWait(self[key], target)
        target._done = [*(target._done or ()), wait]
        self.fake.checkpoint()
        return wait

    def iterate(self, key: str, step: FakeStep) -> FakeWait:
        """A task of the branch waits for the next ending of a step."""
        core = step.core
        what = f"the branches of {core.name!r}"
        check_no_circle(self[key], lambda r: r._step is core, "completed()", what)
        wait = FakeWait(self[key], core)
        core.listeners.append(wait)
        self.fake.checkpoint()
        return wait

    def holds(self, key: str) -> bool:
        """Does it hold its token?"""
        return self[key]._token is not None

    def is_resuming(self, key: str) -> bool:
        return is_resuming(self[key])


class FakeWait(Wait):
    """A wait, and its task: does that go on?"""

    __slots__ = ("goes_on", "is_asked")

    def __init__(self, record: Any, target: Any) -> None:
        super().__init__(record, target)
        self.is_asked = False
        self.goes_on = False
        self.begin()

    def set(self) -> None:
        """What it waited for has come, or it is cut short."""
        self.end()
        if self.is_asked:
            return
        self.is_asked = True
        if self.is_held_up():
            self.record._resumed = [*(self.record._resumed or ()), _Waker(self)]
        else:
            self.go_on()

    def go_on(self) -> None:
        self.goes_on = True


class _Waker:
    def __init__(self, wait: FakeWait) -> None:
        self._wait = wait

    def set(self) -> None:
        self._wait.go_on()
