"""A soak: a million branches in one run of an event loop, in virtual time, and nothing is left.

    python tests/soak.py [--branches N] [--seed S] [--host trio|asyncio] [--round N]

Rounds of random work (`rounds`), which check what a user would; one round in 50 is a tree under its
own oracle (`trees`), and one in 50, on trio, is told to a public `recorder` and checked by
`check_invariants`.  After each round nothing is left in the loop.  The garbage collector is off but
for a look at each tenth of the way: it has to find nothing, and the objects that live, and the
memory of the process, have to be what they were at the first tenth.

Exits with 1 after a violation.  `--round` runs a single one again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from time import perf_counter
from typing import Any, Final

import attrs
import psutil
import trio

import figures
from clocks import stalls_fail
from drivers import DRIVERS, World
from rounds import HEAVIEST, Round, Shared
from trees import Node, Program, Run, Step
from trio_parallel_steps import Branch, BranchNursery
from trio_parallel_steps.testing import InvariantBroken, check_invariants, recorder

HOSTS: Final = ("trio", "asyncio")
SAMPLED: Final = 50  # one round in so many
WARM_UP: Final = 60  # rounds, after which what lives is what Python and the loop keep
MOST_RSS_GROWTH: Final = 5.0  # percent, since the first tenth
MOST_OBJECTS_GROWTH: Final = 20  # a cache may fill
# Later ones keep, with the frames of an error, more of those that called them: contextlib's own,
# under `World.scope`, refer to the error that they let through.
KNOWS_ALL_CYCLES: Final = sys.version_info < (3, 12)


# ---------------------------------------------------------------- what must be gone


class OnTrio:
    """What lives in the run, outside of the main task."""

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._status: Any = self._task._cancel_status
        self._tasks = self.tasks()

    def tasks(self) -> int:
        return trio.lowlevel.current_statistics().tasks_living

    def left(self) -> Iterator[str]:
        if self.tasks() != self._tasks:
            yield f"{self.tasks() - self._tasks} tasks are left"
        if self._task.child_nurseries or self._task._cancel_status is not self._status:
            yield "a scope is left"
        if trio.lowlevel.current_statistics().seconds_to_next_deadline != math.inf:
            yield "a deadline is left"

    def seed(self, seed: str) -> None:
        scheduler: Any = trio._core._run
        scheduler._r.seed(seed)


class OnAsyncio:
    def __init__(self) -> None:
        self._loop: Any = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._tasks = self.tasks()

    def tasks(self) -> int:
        return len(asyncio.all_tasks())

    def left(self) -> Iterator[str]:
        if self.tasks() != self._tasks:
            yield f"{self.tasks() - self._tasks} tasks are left"
        if self._task is None or self._task.cancelling():
            yield "a cancellation is left"
        if not all(timer.cancelled() for timer in self._loop._scheduled):
            yield "a timer is left"

    def seed(self, seed: str) -> None:
        """The loop has no choices."""


# ---------------------------------------------------------------- what it looks like on the way


@attrs.frozen
class Sample:
    branches: int
    microseconds: float  # a branch, since the last one
    rss_mb: float
    objects: int
    tasks: int
    scopes: int  # and timers, on asyncio
    handles: int  # branches and steps
    garbage: int

    def row(self) -> str:
        return (
            f"{self.branches:>9,}  {self.microseconds:>9.1f}  {self.rss_mb:>7.1f}  "
            f"{self.objects:>7,}  {self.tasks:>5}  {self.scopes:>6}  {self.handles:>7}  "
            f"{self.garbage:>7}"
        )


HEAD: Final = " branches  us/branch   RSS MB  objects  tasks  scopes  handles  garbage"


@attrs.define
class Report:
    host: str
    samples: list[Sample] = attrs.Factory(list)
    violations: list[str] = attrs.Factory(list)
    rounds: int = 0
    sampled: int = 0

    @property
    def rss_growth(self) -> float:
        """In percent, since the first tenth."""
        first, last = self.samples[0].rss_mb, self.samples[-1].rss_mb
        return 100 * (last - first) / first

    @property
    def objects_growth(self) -> int:
        return self.samples[-1].objects - self.samples[0].objects


@contextmanager
def no_collector() -> Iterator[None]:
    """What lives now is not looked at; what comes is collected only when we ask."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def collect() -> Counter[str]:
    """What only the collector could free, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
    finally:
        gc.set_debug(0)
    found = Counter(type(thing).__qualname__ for thing in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    return found


class Soak:
    def __init__(self, world: World, seed: int, report: Report) -> None:
        self.world = world
        self.seed = seed
        self.report = report
        self.on: OnTrio | OnAsyncio = OnTrio() if report.host == "trio" else OnAsyncio()
        self.shared = Shared()
        if report.host == "trio":
            self.shared.foreign = trio.CapacityLimiter(5)
        self.branches = 0
        self.garbage: Counter[str] = Counter()

    async def run(self, branches: int, tell: Callable[[Sample], None]) -> None:
        number = 0
        while number < WARM_UP:
            number += 1
            await self.round(number)
        self.look_for_garbage()
        self.sample(0.0)
        gc.freeze()
        self.branches = 0
        for tenth in range(1, 11):
            began, before = perf_counter(), self.branches
            while self.branches < branches * tenth / 10:
                number += 1
                await self.round(number)
            took = perf_counter() - began
            self.look_for_garbage()
            sample = self.sample(1e6 * took / (self.branches - before))
            self.report.samples.append(sample)
            tell(sample)
        self.report.rounds = number

    async def round(self, number: int) -> None:
        name = f"{self.seed}:{number}"
        self.on.seed(name)
        is_told = number % SAMPLED == 0 and self.report.host == "trio"
        is_tree = number % SAMPLED == SAMPLED // 2
        if is_told or is_tree:
            # What watches it refers to all of it: what is found afterwards is theirs.
            self.look_for_garbage()
            self.report.sampled += 1
        violations = await (self.tree(name) if is_tree else self.work(name, is_told))
        await self.world.turns(2)  # what was withdrawn is gone after a pass of the scheduler
        violations += self.on.left()
        self.report.violations += (f"round {number}: {violation}" for violation in violations)
        if is_told or is_tree:
            collect()

    async def work(self, name: str, is_told: bool) -> list[str]:
        recorded = recorder(heaviest=HEAVIEST)
        round_ = Round(self.world, self.shared, name, (recorded,) if is_told else ())
        await round_()
        self.branches += round_.branches
        if is_told:
            try:
                check_invariants(recorded)
            except InvariantBroken as broken:
                return round_.violations + broken.violations
        return round_.violations

    async def tree(self, name: str) -> list[str]:
        program = tree(Random(name))
        self.branches += len(list(program.nodes()))
        run = await Run(self.world, program)()
        return run.violations

    def look_for_garbage(self) -> None:
        found = collect()
        if found and KNOWS_ALL_CYCLES:
            self.garbage += found
            self.report.violations.append(f"the collector found {dict(found)}")

    def sample(self, microseconds: float) -> Sample:
        objects = gc.get_objects()
        kinds = Counter(map(type, objects))
        return Sample(
            self.branches,
            microseconds,
            psutil.Process().memory_info().rss / 2**20,
            len(objects) - kinds[Sample],
            self.on.tasks(),
            kinds[trio.CancelScope] + kinds[asyncio.TimerHandle],
            kinds[Branch] + kinds[BranchNursery],
            self.garbage.total(),
        )


def tree(random: Random) -> Program:
    """A program for `trees`, drawn without hypothesis."""

    def a_step(depth: int) -> Step:
        nodes = tuple(a_node(number, depth) for number in range(random.randint(1, 5)))
        limit = random.choice((None, None, 1, 2, 3)) if depth else None
        return Step(nodes, limit, limit is not None and random.random() < 0.3)

    def a_node(number: int, depth: int) -> Node:
        return Node(
            random.randrange(3),
            random.randrange(number) if number and random.random() < 0.2 else None,
            a_step(depth + 1) if depth < 3 and random.random() < 0.4 else None,
            cancels=random.randrange(number + 1) if random.random() < 0.1 else None,
            fails=random.random() < 0.1,
            priority=random.choice((0, 0, 1, -1)),
            weight=random.choice((1, 1, 1, 2, 3)),
        )

    return Program(a_step(0), random.randint(1, 6), random.choice((math.inf, math.inf, 2.5)))


# ---------------------------------------------------------------- running it


def soak(
    host: str, branches: int, seed: int, tell: Callable[[Sample], None] = lambda sample: None
) -> Report:
    report = Report(host)

    async def program(world: World) -> None:
        await Soak(world, seed, report).run(branches, tell)

    with no_collector(), stalls_fail():
        DRIVERS[host](program)
    return report


def one_round(host: str, seed: int, number: int) -> list[str]:
    report = Report(host)

    async def program(world: World) -> None:
        await Soak(world, seed, report).round(number)

    with no_collector(), stalls_fail():
        DRIVERS[host](program)
    return report.violations


def verdict(report: Report) -> list[str]:
    """What is wrong."""
    wrong = report.violations[:20]
    if report.rss_growth > MOST_RSS_GROWTH:
        wrong.append(f"memory has grown by {report.rss_growth:.1f} %")
    if report.objects_growth > MOST_OBJECTS_GROWTH:
        wrong.append(f"{report.objects_growth} more objects live than at the first tenth")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--branches", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--host", choices=HOSTS)
    parser.add_argument("--round", type=int)
    options = parser.parse_args()
    scheduler: Any = trio._core._run
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    status = 0
    for host in (options.host,) if options.host else HOSTS:
        if options.round is not None:
            wrong = one_round(host, options.seed, options.round)
        else:
            print(f"\n{host}, seed {options.seed}\n{HEAD}", flush=True)
            report = soak(
                host, options.branches, options.seed, lambda s: print(s.row(), flush=True)
            )
            wrong = verdict(report)
            print(
                f"{report.rounds:,} rounds, {report.sampled:,} of them under an oracle; since the "
                f"first tenth: RSS {report.rss_growth:+.1f} %, objects {report.objects_growth:+}; "
                f"{len(report.violations)} violations"
            )
            figures.add(
                "soak",
                host=host,
                branches=report.samples[-1].branches,
                rounds=report.rounds,
                sampled=report.sampled,
                rss_growth_percent=round(report.rss_growth, 1),
                objects_growth=report.objects_growth,
                garbage=report.samples[-1].garbage,
                violations=len(report.violations),
            )
        print(*wrong, "it has failed" if wrong else "all is well", sep="\n")
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
