"""Random programs on asyncio, in virtual time: what must hold whatever happens when.

A program is drawn from its seed alone, so a failure is told by its number.  What is promised of
every program is checked by `check_invariants`; beside that, each branch keeps its own record of
what its code did.
"""

from __future__ import annotations

import asyncio
import math
from random import Random
from typing import Any, Final

import attrs
import pytest

from drivers import EAGER, run_asyncio
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    CancelRule,
    ParallelResult,
    Policy,
    StepTimeout,
    open_branch_nursery,
    quorum,
    tolerate,
)
from trio_parallel_steps.testing import check_invariants, recorder

PROGRAMS: Final = 3200
CHUNKS: Final = 16

# Instants collide on purpose.
INSTANTS: Final = (0, 0, 0.5, 1, 1, 1, 2, 2, 3)
POLICIES: Final[tuple[Policy, ...]] = (
    FAIL_FAST,
    FAIL_FAST,
    COLLECT,
    COLLECT,
    FIRST_SUCCESS,
    quorum(2),
    tolerate(1),
)


class Failed(Exception):
    """A branch's own."""


@attrs.define
class Did:
    """What a branch's own code did."""

    started: bool = False
    cancelled: bool = False


@attrs.define
class Pool:
    """A limiter, and an independent count of who runs on it."""

    limiter: BranchLimiter
    running: int = 0
    allowed: float = 0  # at this instant
    changed_at: float = -1.0

    def set_total(self, total: int) -> None:
        now = asyncio.get_running_loop().time()
        old = self.limiter.total_tokens
        highest = max(self.allowed, old) if now == self.changed_at else old
        self.allowed = max(highest, total)
        self.changed_at = now
        self.limiter.total_tokens = total

    def check(self) -> None:
        now = asyncio.get_running_loop().time()
        cap = self.limiter.total_tokens
        if now == self.changed_at:
            cap = max(cap, self.allowed)
        assert self.running <= cap, f"{self.running} run, {cap} may"


class OneStep:
    """One step of a program."""

    def __init__(self, program: Program, name: str, pool: Pool) -> None:
        self.program = program
        self.name = name
        self.pool = pool
        self.did: dict[str, Did] = {}
        self.nursery: BranchNursery | None = None
        self.left: BaseException | None = None
        self.breached = False
        self.numbers = 0

    async def run(self) -> None:
        random = self.program.random
        options: dict[str, Any] = {"policy": random.choice(POLICIES)}
        if random.random() < 0.2:
            options["fail_after"] = float(random.choice((0, 1, 2, 3)))
        elif random.random() < 0.2:
            options["move_on_after"] = float(random.choice((0, 1, 2, 3)))
        if random.random() < 0.3:
            options["breach"] = self.program.switch
        if random.random() < 0.2:
            on = random.choice(("success", "end"))
            options["cancel_rules"] = [CancelRule("*[02]", "*[135]", on=on)]
        self.options = options
        try:
            recorded = self.program.recorded
            step = open_branch_nursery(
                self.pool.limiter, name=self.name, observers=[recorded], **options
            )
            async with recorded.watch_step(step) as nursery:
                self.nursery = nursery
                for _ in range(random.randrange(7)):
                    self.submit()
                for _ in range(random.randrange(4)):
                    await self.act()
        except BaseException as exc:
            self.left = exc
            if not isinstance(exc, Exception):
                raise

    def submit(self) -> None:
        random = self.program.random
        key = f"{self.name}{self.numbers}"
        self.numbers += 1
        timeout = float(random.choice((0, 1, 2))) if random.random() < 0.2 else math.inf
        self.did[key] = Did()
        assert self.nursery is not None
        branch = self.nursery.start_soon(
            key,
            self.program.recorded.watch(self.branch),
            self.did[key],
            priority=random.randrange(3),
            timeout=timeout,
        )
        if random.random() < 0.1 and branch.status is BranchStatus.QUEUED:
            branch.priority = random.randrange(5)

    async def act(self) -> None:
        """What a body or a branch may do on its way."""
        random = self.program.random
        nursery = self.nursery
        assert nursery is not None
        what = random.randrange(14)
        if what < 4:
            await asyncio.sleep(random.choice(INSTANTS))
        elif what == 4:
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
        elif what == 5:
            self.submit()
        elif what == 6 and self.did:
            nursery.cancel(random.choice(list(self.did)), "cancelled by the program")
        elif what == 7:
            nursery.cancel_where(lambda key: key[-1] in "024", "some are cancelled")
        elif what == 8 and random.random() < 0.4:
            nursery.breach("breached by the program")
            self.breached = True
        elif what == 9:
            self.pool.set_total(random.randint(1, 3))
        elif what == 10 and random.random() < 0.3:
            self.program.switch.trip("the switch")
        elif what == 11:
            nursery.pause("paused by the program")
            try:
                await asyncio.sleep(random.choice(INSTANTS))
            finally:
                nursery.resume()
        elif what == 12:
            try:
                async with asyncio.timeout(random.choice((0, 1, 2))):
                    await self.act()
            except TimeoutError:
                pass
        elif what == 13:
            try:
                await asyncio.sleep(random.choice(INSTANTS))
            finally:
                if random.random() < 0.3:
                    self.submit()

    async def branch(self, did: Did) -> int:
        random = self.program.random
        assert not did.started, "started twice"
        assert not self.breached, "started after a breach"
        did.started = True
        self.pool.running += 1
        self.pool.check()
        try:
            return await self.code(random)
        except asyncio.CancelledError:
            did.cancelled = True
            raise
        finally:
            self.pool.running -= 1

    async def code(self, random: Random) -> int:
        way = random.randrange(10)
        try:
            for _ in range(random.randrange(3)):
                await self.act()
            if way == 0:
                await asyncio.sleep(50)
        except asyncio.CancelledError:
            if way == 1:
                return -1  # in spite of it
            if way == 2:
                raise Failed("cleanup") from None
            raise
        finally:
            if way == 3:
                await asyncio.sleep(random.choice(INSTANTS))
        if way in (4, 5):
            raise Failed("on its own")
        if way == 6:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(random.randrange(2))
        return random.randrange(99)

    # ------------------------------------------------------------ afterwards

    def check(self) -> None:
        if self.nursery is None:
            return
        result = self.nursery.result
        assert list(result) == list(self.did), "each key once, in the order of submission"
        for key, did in self.did.items():
            self.check_branch(key, did, result)
        self.check_left(result)

    def check_branch(self, key: str, did: Did, result: ParallelResult[Any, Any]) -> None:
        ended = result[key]
        assert ended.attempts == (1 if did.started else 0)
        if ended.status not in (BranchStatus.SUCCEEDED, BranchStatus.FAILED):
            assert ended.reason
            assert did.cancelled is did.started
        assert ended.submitted_at <= (ended.started_at or ended.ended_at) <= ended.ended_at

    def check_left(self, result: ParallelResult[Any, Any]) -> None:
        """Nothing that stopped the step, and no failure, goes unsaid."""
        left, options = self.left, self.options
        reason = result.stop_reason
        failures = len(result.errors)
        tolerated = {FAIL_FAST: 0, tolerate(1): 1}.get(options["policy"])
        if left is None:
            satisfied = reason is not None and reason.startswith("policy satisfied")
            moved_on = "move_on_after" in options and str(reason).startswith("step timed out")
            assert reason is None or satisfied or moved_on, f"silent: {reason}"
            assert tolerated is None or failures <= tolerated, "failures are lost"
        elif isinstance(left, Breached):
            assert reason == left.reason
        elif isinstance(left, StepTimeout):
            assert "fail_after" in options
        elif not isinstance(left, BranchErrors):
            assert isinstance(left, asyncio.CancelledError | BaseExceptionGroup), left
            assert self.program.cancels, "cancelled, and by nobody"


class Program:
    """One or two steps, on one limiter or two, and perhaps somebody who cancels them."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.switch = Breach()
        self.recorded = recorder()
        self.cancels = random.random() < 0.3
        self.twice = random.random() < 0.3
        pools = [Pool(BranchLimiter(random.randint(1, 3)))]
        if random.random() < 0.3:
            pools.append(Pool(BranchLimiter(random.randint(1, 3))))
        self.pools = pools
        self.steps = [
            OneStep(self, name, random.choice(pools)) for name in "xy"[: random.randint(1, 2)]
        ]

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(step.run()) for step in self.steps]
        if self.cancels:
            for _ in range(2 if self.twice else 1):
                await asyncio.sleep(self.random.choice(INSTANTS))
                for _ in range(self.random.randrange(4)):
                    await asyncio.sleep(0)
                self.random.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        check_invariants(self.recorded)
        for step in self.steps:
            step.check()
        for pool in self.pools:
            assert pool.running == 0
            assert pool.limiter.borrowed_tokens == 0
            assert pool.limiter.statistics().tasks_waiting == 0


def run_programs(chunk: int, eager: bool) -> None:
    seed = -1

    async def main() -> None:
        nonlocal seed
        for seed in range(chunk, PROGRAMS, CHUNKS):
            await Program(seed).run()

    try:
        run_asyncio(main, eager=eager)
    except Exception as exc:
        exc.add_note(f"program {seed}")
        raise


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int) -> None:
    """With eager tasks in every other chunk, where there are any."""
    run_programs(chunk, EAGER and chunk % 2 == 1)
