"""What does a branch cost beside what people write today, and how does that grow with their number?

CPU time of a whole step whose branches are one checkpoint each, inside a running loop, start-up
left out.  What a contestant is given (keys and functions) is made before the clock starts.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from statistics import median
from typing import Any

import aiometer
import anyio
import attrs
import trio

from _harness import Report, Table, compared, open_report, rotated, run_in
from trio_parallel_steps import run_branches

LIMIT = 100
WARM_UP = 8  # branches run in a new loop before the clock starts

Body = Callable[[], Coroutine[Any, Any, None]]
Branches = Mapping[str, Body]


async def trio_body() -> None:
    await trio.lowlevel.checkpoint()


async def asyncio_body() -> None:
    await asyncio.sleep(0)


BODIES: dict[str, Body] = {"trio": trio_body, "asyncio": asyncio_body}


@attrs.frozen
class Contestant:
    name: str
    host: str
    run: Callable[[Branches, int], Awaitable[object]]


# ------------------------------------------------------------------ asyncio


async def gather(branches: Branches, limit: int) -> object:
    return await asyncio.gather(*[body() for body in branches.values()])


async def gather_semaphore(branches: Branches, limit: int) -> object:
    semaphore = asyncio.Semaphore(limit)

    async def limited(body: Body) -> None:
        async with semaphore:
            await body()

    return await asyncio.gather(*[limited(body) for body in branches.values()])


async def task_group_semaphore(branches: Branches, limit: int) -> None:
    semaphore = asyncio.Semaphore(limit)

    async def limited(body: Body) -> None:
        async with semaphore:
            await body()

    async with asyncio.TaskGroup() as group:
        for body in branches.values():
            group.create_task(limited(body))


# ------------------------------------------------------------------ either


async def anyio_limiter(branches: Branches, limit: int) -> None:
    limiter = anyio.CapacityLimiter(limit)

    async def limited(body: Body) -> None:
        async with limiter:
            await body()

    async with anyio.create_task_group() as group:
        for body in branches.values():
            group.start_soon(limited, body)


async def aiometer_run_all(branches: Branches, limit: int) -> object:
    return await aiometer.run_all(list(branches.values()), max_at_once=limit)


async def sequential(branches: Branches, limit: int) -> None:
    for body in branches.values():
        await body()


async def ours(branches: Branches, limit: int) -> object:
    return await run_branches(branches, limit)


# ------------------------------------------------------------------ trio


async def nursery_bare(branches: Branches, limit: int) -> None:
    async with trio.open_nursery() as nursery:
        for body in branches.values():
            nursery.start_soon(body)


async def nursery_limiter(branches: Branches, limit: int) -> None:
    limiter = trio.CapacityLimiter(limit)

    async def limited(body: Body) -> None:
        async with limiter:
            await body()

    async with trio.open_nursery() as nursery:
        for body in branches.values():
            nursery.start_soon(limited, body)


OURS = Contestant("trio_parallel_steps (trio)", "trio", ours)
OURS_ASYNCIO = Contestant("trio_parallel_steps (asyncio)", "asyncio", ours)
GATHER = Contestant("gather+Semaphore", "asyncio", gather_semaphore)
NURSERY = Contestant("bare nursery", "trio", nursery_bare)
LIMITER = Contestant("nursery+CapacityLimiter", "trio", nursery_limiter)

CONTESTANTS = (
    OURS,
    OURS_ASYNCIO,
    Contestant("sequential loop (trio)", "trio", sequential),
    Contestant("gather, no limit", "asyncio", gather),
    GATHER,
    Contestant("TaskGroup+Semaphore", "asyncio", task_group_semaphore),
    NURSERY,
    LIMITER,
    Contestant("aiometer.run_all (asyncio)", "asyncio", aiometer_run_all),
    Contestant("aiometer.run_all (trio)", "trio", aiometer_run_all),
    Contestant("anyio group+limiter (asyncio)", "asyncio", anyio_limiter),
    Contestant("anyio group+limiter (trio)", "trio", anyio_limiter),
)


# ------------------------------------------------------------------ measuring


def some_branches(contestant: Contestant, number: int) -> Branches:
    return dict.fromkeys((f"branch-{i}" for i in range(number)), BODIES[contestant.host])


def cpu_microseconds(
    contestant: Contestant, branches: Branches, repeats: int, limit: int = LIMIT
) -> float:
    """CPU time of one whole step, in a loop that is up."""
    few = some_branches(contestant, WARM_UP)

    async def main() -> float:
        await contestant.run(few, limit)
        began = time.process_time()
        for _ in range(repeats):
            await contestant.run(branches, limit)
        return (time.process_time() - began) / repeats * 1e6

    return run_in(contestant.host, main)


def side_by_side(
    number: int,
    rounds: int,
    repeats: int,
    limit: int = LIMIT,
    contestants: Sequence[Contestant] = CONTESTANTS,
) -> dict[str, list[float]]:
    def measure(contestant: Contestant) -> float:
        return cpu_microseconds(contestant, some_branches(contestant, number), repeats, limit)

    return rotated(contestants, rounds, measure)


def per_branch(samples: Mapping[str, list[float]], number: int) -> dict[str, list[float]]:
    return {name: [figure / number for figure in figures] for name, figures in samples.items()}


@attrs.frozen
class Growth:
    contestant: Contestant
    number: int
    collector: bool

    @property
    def name(self) -> str:
        return f"{self.contestant.name}, {self.number}, gc {'on' if self.collector else 'off'}"

    def measure(self) -> float:
        branches = some_branches(self.contestant, self.number)
        repeats = max(1, 100_000 // self.number)  # as long for each, against noise
        if not self.collector:
            gc.disable()
        try:
            return cpu_microseconds(self.contestant, branches, repeats) / self.number
        finally:
            gc.enable()


def growth(contestant: Contestant, sizes: list[int], rounds: int) -> Table:
    cases = [Growth(contestant, number, on) for number in sizes for on in (True, False)]
    samples = rotated(cases, rounds, Growth.measure)
    least_on, least_off = (median(samples[case.name]) for case in cases[:2])
    rows = []
    for with_gc, without_gc in zip(cases[::2], cases[1::2], strict=True):
        on, off = median(samples[with_gc.name]), median(samples[without_gc.name])
        share = f"{(on - off) / on:.0%}"
        rows.append((f"{with_gc.number:,}", on, on / least_on, off, off / least_off, share))
    columns = ("branches", "us, gc on", "x least", "us, gc off", "x least", "collector")
    title = f"{contestant.name}: us a branch as their number grows ({rounds} rounds)"
    return Table(title, columns, rows, samples)


def main(report: Report) -> None:
    rounds = 3 if report.quick else 9
    limited = f"limit {LIMIT}, {rounds} rounds"
    peers = (GATHER.name, LIMITER.name)

    samples = per_branch(side_by_side(10_000, rounds, 1), 10_000)
    report.add(compared(f"10,000 branches, {limited}", "us a branch", samples, peers))
    samples = per_branch(side_by_side(1_000, rounds, 5), 1_000)
    report.add(compared(f"1,000 branches, {limited}", "us a branch", samples, peers))
    samples = side_by_side(4, rounds, 200)
    report.add(compared(f"4 branches, {limited}", "us a step", samples, (NURSERY.name,)))

    on_asyncio = [each for each in CONTESTANTS if each.host == "asyncio"]
    for limit in (16, 1_000):
        samples = per_branch(side_by_side(10_000, rounds, 1, limit, on_asyncio), 10_000)
        title = f"10,000 branches on asyncio, limit {limit:,}, {rounds} rounds"
        report.add(compared(title, "us a branch", samples, (GATHER.name,)))

    sizes = [1_000, 10_000, 100_000]
    report.add(growth(GATHER, sizes, 1 if report.quick else 3))
    if not report.quick:
        sizes.append(1_000_000)
    report.add(growth(OURS, sizes, 1 if report.quick else 3))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
