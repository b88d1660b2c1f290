"""What does a result of map_branches cost beside run_branches and aiometer.amap, and does memory
grow with the input?

CPU time of a whole step whose branches are one checkpoint each, inside a running loop.  Then the
peak of the process, each length of input in a process of its own.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import aiometer
import attrs
import trio

from _harness import Report, Table, compared, open_report, rotated, run_in
from trio_parallel_steps import map_branches, run_branches

LIMIT = 100
WARM_UP = 8

Body = Callable[[int], Awaitable[None]]


async def trio_body(x: int) -> None:
    await trio.lowlevel.checkpoint()


async def asyncio_body(x: int) -> None:
    await asyncio.sleep(0)


BODIES: dict[str, Body] = {"trio": trio_body, "asyncio": asyncio_body}


async def all_known(body: Body, number: int) -> None:
    await run_branches({x: partial(body, x) for x in range(number)}, LIMIT)


async def ours(body: Body, number: int, in_order: bool = False) -> None:
    async with map_branches(body, range(number), LIMIT, in_order=in_order) as results:
        async for _ in results:
            pass


async def amap(body: Body, number: int) -> None:
    async with aiometer.amap(body, list(range(number)), max_at_once=LIMIT) as results:
        async for _ in results:
            pass


async def as_completed(body: Body, number: int) -> None:
    semaphore = asyncio.Semaphore(LIMIT)

    async def limited(x: int) -> None:
        async with semaphore:
            await body(x)

    for result in asyncio.as_completed([limited(x) for x in range(number)]):
        await result


@attrs.frozen
class Contestant:
    name: str
    host: str
    run: Callable[[Body, int], Awaitable[None]]

    def microseconds(self, number: int) -> float:
        """CPU time a branch."""
        body = BODIES[self.host]

        async def main() -> float:
            await self.run(body, WARM_UP)
            began = time.process_time()
            await self.run(body, number)
            return (time.process_time() - began) / number * 1e6

        return run_in(self.host, main)


ALL_KNOWN = {host: Contestant(f"run_branches ({host})", host, all_known) for host in BODIES}
CONTESTANTS = [
    contestant
    for host in BODIES
    for contestant in (
        ALL_KNOWN[host],
        Contestant(f"map_branches ({host})", host, ours),
        Contestant(f"map_branches in order ({host})", host, partial(ours, in_order=True)),
        Contestant(f"aiometer.amap ({host})", host, amap),
    )
]
CONTESTANTS.append(Contestant("as_completed+Semaphore (asyncio)", "asyncio", as_completed))


def peak_megabytes(host: str, number: int) -> float:
    """Of a process that does nothing else."""
    command = [sys.executable, __file__, "--peak", host, str(number)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def print_peak(host: str, number: int) -> None:
    run_in(host, lambda: ours(BODIES[host], number))
    # Not ru_maxrss, which is never below what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main(report: Report) -> None:
    number, rounds = (2_000, 3) if report.quick else (10_000, 7)
    samples = rotated(CONTESTANTS, rounds, lambda contestant: contestant.microseconds(number))
    baselines = [contestant.name for contestant in ALL_KNOWN.values()]
    title = f"{number:,} branches, limit {LIMIT}, {rounds} rounds"
    report.add(compared(title, "us a branch", samples, baselines))

    rows = []
    for host in BODIES:
        few, many = 1_000, 100_000 if report.quick else 1_000_000
        peaks = peak_megabytes(host, few), peak_megabytes(host, many)
        rows.append((f"map_branches ({host})", *peaks, peaks[1] - peaks[0]))
    columns = ("MB at the peak", f"{few:,} items", f"{many:,} items", "more")
    report.add(Table("Memory of the process", columns, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], int(sys.argv[3]))
    else:
        report = open_report(__doc__)
        main(report)
        report.save()
