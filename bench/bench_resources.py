"""Do steps under `ResourceLimits` stay near them, and how much runs?

Memory: 100 branches that each hold 50 MB for a while, under 1024 MB, in a process of their own.
CPU: branches of at most 20 ms in threads, under 50 % of the CPUs.  The figures want an idle
machine: the load that it had is beside them.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from _harness import Report, Table, open_report, run_in
from trio_parallel_steps import ResourceLimits, in_thread, map_branches

HOGS = Path(__file__).parent.parent / "tests" / "memory_hogs.py"
PERCENT = 50
BUFFER = bytes(2**20)


def memory(report: Report) -> None:
    rows = []
    for how in ("reserved", "unreserved", "shed"):
        for host in ("trio",) if report.quick else ("trio", "asyncio"):
            load = os.getloadavg()[0]
            run = subprocess.run(
                [sys.executable, str(HOGS), host, how], check=True, capture_output=True, text=True
            )
            said = json.loads(run.stdout)
            figures = (said[name] for name in ("peak_mb", "seconds", "mean_in_flight", "attempts"))
            rows.append((how, host, *figures, load))
    columns = (
        "branches",
        "host",
        "peak MB",
        "seconds",
        "mean in flight",
        "attempts",
        "load before",
    )
    report.add(Table("100 branches of 50 MB, max_memory_mb=1024", columns, rows))


def digest(item: int) -> str:
    """10 to 20 ms, without the GIL."""
    digest = hashlib.sha256()
    for _ in range(10):
        digest.update(BUFFER)
    return digest.hexdigest()


async def mean_cpu(branches: int, seconds: float) -> float:
    """Percent of all CPUs that this process takes."""
    ends = time.monotonic() + seconds

    def items() -> Iterator[int]:
        item = 0
        while time.monotonic() < ends:
            yield item
            item += 1

    limits = ResourceLimits(max_cpu_percent=PERCENT)
    began, used = time.monotonic(), time.process_time()
    async with map_branches(in_thread(digest), items(), branches, resources=limits) as results:
        async for _ in results:
            pass
    took = time.monotonic() - began
    return 100 * (time.process_time() - used) / took / len(psutil.Process().cpu_affinity())


def cpu(report: Report) -> None:
    seconds = 3.0 if report.quick else 10.0
    rows = []
    for branches in (4, 16):
        load = os.getloadavg()[0]
        percent = run_in("trio", lambda branches=branches: mean_cpu(branches, seconds))  # type: ignore[misc]
        rows.append((float(branches), percent, load))
    title = f"Of the CPUs, over {seconds:g} s, max_cpu_percent={PERCENT}"
    report.add(Table(title, ("limit", "percent", "load"), rows))


if __name__ == "__main__":
    report = open_report(__doc__)
    memory(report)
    cpu(report)
    report.save()
