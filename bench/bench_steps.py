"""What does a branch of a parallel step cost beside one of `run_branches`?

CPU time of a whole step of 10,000 branches, one checkpoint each, inside a running loop; the step is
built before the clock starts.  Then what a whole small step costs, and a step of a pipeline.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from _harness import Report, compared, open_report, rotated, run_in
from trio_parallel_steps import (
    COLLECT,
    ConcurrencyConfig,
    MergeStrategy,
    ParallelStep,
    Pipeline,
    Step,
    run_branches,
)

LIMIT = 100
BRANCHES = 10_000
FEW = 3
STEPS = 1_000
REPEATS = 100


async def on_trio(data: object = None) -> None:
    await trio.lowlevel.checkpoint()


async def on_asyncio(data: object = None) -> None:
    await asyncio.sleep(0)


async def with_context(data: object, context: dict[str, int]) -> None:
    context["x"] = 1


@attrs.frozen
class Contestant:
    name: str
    host: str
    number: int
    run: Callable[[], Awaitable[object]]
    repeats: int = 1

    def measure(self) -> float:
        async def main() -> float:
            await self.run()
            began = time.process_time()
            for _ in range(self.repeats):
                await self.run()
            return (time.process_time() - began) / self.repeats / self.number * 1e6

        return run_in(self.host, main)


def contestants(host: str) -> list[Contestant]:
    body: Any = on_trio if host == "trio" else on_asyncio
    branches = {f"branch-{i}": body for i in range(BRANCHES)}
    fixed = ConcurrencyConfig(LIMIT, adaptive_limits=False)
    unwatched = attrs.evolve(fixed, memory_based_limits=False)
    with_contexts = ParallelStep(
        dict.fromkeys(branches, with_context), MergeStrategy.OVERWRITE, unwatched
    )
    return [
        Contestant(
            "run_branches", host, BRANCHES, lambda: run_branches(branches, LIMIT, policy=COLLECT)
        ),
        Contestant(
            "ParallelStep, nothing watched",
            host,
            BRANCHES,
            ParallelStep(branches, concurrency_config=unwatched).run,
        ),
        Contestant(
            "ParallelStep, memory watched",
            host,
            BRANCHES,
            ParallelStep(branches, concurrency_config=fixed).run,
        ),
        Contestant(
            "ParallelStep, adaptive",
            host,
            BRANCHES,
            ParallelStep(branches, concurrency_config=ConcurrencyConfig(LIMIT)).run,
        ),
        Contestant(
            "ParallelStep, contexts merged",
            host,
            BRANCHES,
            lambda: with_contexts.run(context={"x": 0}),
        ),
    ]


def small_steps(host: str) -> list[Contestant]:
    body: Any = on_trio if host == "trio" else on_asyncio
    branches = {f"branch-{i}": body for i in range(FEW)}
    unwatched = ConcurrencyConfig(LIMIT, adaptive_limits=False, memory_based_limits=False)
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "run_branches": lambda: run_branches(branches, LIMIT, policy=COLLECT),
        "ParallelStep, nothing watched": ParallelStep(branches, concurrency_config=unwatched).run,
        "ParallelStep, as by default": ParallelStep(branches).run,
    }
    return [Contestant(name, host, 1, run, REPEATS) for name, run in steps.items()]


def main(report: Report) -> None:
    rounds = 3 if report.quick else 9
    for host in ("trio", "asyncio"):
        samples = rotated(contestants(host), rounds, Contestant.measure)
        title = f"{BRANCHES:,} branches on {host}, limit {LIMIT}, {rounds} rounds"
        report.add(compared(title, "us a branch", samples, ("run_branches",)))
        samples = rotated(small_steps(host), rounds, Contestant.measure)
        title = f"{FEW} branches on {host}, {rounds} rounds"
        report.add(compared(title, "us a step", samples, ("run_branches",)))
        body: Any = on_trio if host == "trio" else on_asyncio
        pipeline = Pipeline([Step(f"{i}", body) for i in range(STEPS)])
        one = Contestant("a step of a pipeline", host, STEPS, pipeline.run)
        samples = rotated([one], rounds, Contestant.measure)
        report.add(compared(f"{STEPS:,} steps on {host}", "us a step", samples, (one.name,)))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
