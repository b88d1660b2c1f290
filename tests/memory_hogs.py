"""A process whose branches take memory, for `test_real_memory`: ``memory_hogs.py host how``.

`how` is "reserved" (by `memory_mb`), "unreserved", or "shed" (unreserved, and what is too much is
shed).  Prints figures as JSON at its end.  Address space is bounded first, so that what a defect
takes is refused, and not the machine's.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import trio

from trio_parallel_steps import (
    BranchNursery,
    PressureAction,
    ResourceLimits,
    open_branch_nursery,
)

BRANCHES: Final = 100
MB: Final = 2**20
PAGE: Final = 4096
NEEDS_MB: Final = 50
HOLDS_S: Final = 0.3
LIMIT_MB: Final = 1024.0
BOUND_MB: Final = 3072  # of address space


def take() -> bytearray:
    taken = bytearray(NEEDS_MB * MB)
    taken[::PAGE] = bytes([1]) * (len(taken) // PAGE)  # or the kernel gives none
    return taken


async def run(how: str, host: str) -> dict[str, Any]:
    shed = how == "shed"
    action = PressureAction.SHED if shed else PressureAction.HOLD
    limits = ResourceLimits(max_memory_mb=LIMIT_MB, action=action)
    sleep = trio.sleep if host == "trio" else asyncio.sleep
    held = 0.0

    async def hog() -> None:
        nonlocal held
        began = time.monotonic()
        taken = take()
        await sleep(HOLDS_S)
        del taken
        held += time.monotonic() - began

    began = time.monotonic()
    async with open_branch_nursery(BRANCHES, resources=limits) as nursery:
        _submit(nursery, hog, NEEDS_MB if how == "reserved" else 0)
    took = time.monotonic() - began
    result = nursery.result
    return {
        "succeeded": len(result.outputs),
        "attempts": sum(ended.attempts for ended in result.values()),
        "peak_mb": peak_mb(),
        "peak_in_flight": result.peak_in_flight,
        "mean_in_flight": held / took,
        "seconds": took,
    }


def _submit(nursery: BranchNursery, hog: Any, memory_mb: float) -> None:
    for key in range(BRANCHES):
        nursery.start_soon(key, hog, memory_mb=memory_mb)


def peak_mb() -> float:
    """Of all this process has ever had, by the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell")


def main(host: str, how: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BOUND_MB * MB, BOUND_MB * MB))
    figures = trio.run(run, how, host) if host == "trio" else asyncio.run(run(how, host))
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
