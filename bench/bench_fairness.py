"""How late is a task that sleeps 10 ms beside 100,000 branches that never block?

Wall time; each branch computes for a few microseconds and returns without a checkpoint.  The
longest delay of ours is usually the hand-over of all branches at the start, which is one call.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import chain
from statistics import median, quantiles

import attrs
import trio

from _harness import Report, Table, open_report, rotated, run_in
from trio_parallel_steps import run_branches

NAP = 0.010  # seconds
LIMITS = (1, 10, 100)


async def busy() -> None:
    sum(range(300))


async def ours(number: int, limit: int) -> None:
    await run_branches(dict.fromkeys(range(number), busy), limit)


async def nursery_limiter(number: int, limit: int) -> None:
    limiter = trio.CapacityLimiter(limit)

    async def limited() -> None:
        async with limiter:
            await busy()

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(limited)


async def delays(beside: Callable[[], Awaitable[None]]) -> list[float]:
    """How late each nap ended that began while `beside` ran, in milliseconds."""
    late: list[float] = []
    done = False

    async def sleeper() -> None:
        while not done:
            due = trio.current_time() + NAP
            await trio.sleep_until(due)
            late.append((trio.current_time() - due) * 1e3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.lowlevel.checkpoint()
        await beside()
        done = True
    return late


@attrs.frozen
class Contestant:
    label: str
    run: Callable[[int, int], Awaitable[None]]
    limit: int

    @property
    def name(self) -> str:
        return f"{self.label}, limit {self.limit}"

    def measure(self, number: int) -> list[float]:
        return run_in("trio", partial(delays, partial(self.run, number, self.limit)))


OURS = [Contestant("trio_parallel_steps (trio)", ours, limit) for limit in LIMITS]
PEERS = [Contestant("nursery+CapacityLimiter", nursery_limiter, limit) for limit in LIMITS]


def summed_up(late: Iterable[float]) -> tuple[float, float, float]:
    figures = sorted(late)
    return median(figures), quantiles(figures, n=100, method="inclusive")[-1], figures[-1]


def busy_microseconds() -> float:
    async def main() -> float:
        began = time.perf_counter()
        for _ in range(10_000):
            await busy()
        return (time.perf_counter() - began) / 10_000 * 1e6

    return run_in("trio", main)


def main(report: Report) -> None:
    number, rounds = (20_000, 1) if report.quick else (100_000, 3)
    contestants = [*OURS, *PEERS]
    samples = rotated(contestants, rounds, lambda contestant: contestant.measure(number))
    late = {name: list(chain(*figures)) for name, figures in samples.items()}
    rows = []
    for mine, peer in zip(OURS * 2, contestants, strict=False):
        middle, most, longest = summed_up(late[peer.name])
        ratio = middle / summed_up(late[mine.name])[0]
        rows.append((peer.name, len(late[peer.name]), middle, most, longest, ratio))
    columns = ("", "naps", "ms late, median", "p99", "max", "median x ours")
    title = f"{number:,} branches of {busy_microseconds():.1f} us, {rounds} rounds"
    report.add(Table(title, columns, rows, late))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
