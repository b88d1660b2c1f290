"""What does a breach of running branches take, beside cancelling a nursery of as many tasks?

CPU time from the cancel to the end of the block, all branches waiting in `sleep_forever`; the
nursery's tasks have a CancelScope each, as each branch can be cancelled by itself.
"""

import gc
import math
import time
from collections.abc import Awaitable, Callable

import attrs
import trio
import trio.testing

from _harness import Report, compared, open_report, rotated, run_in
from trio_parallel_steps import Breached, open_branch_nursery


async def ours(number: int) -> float:
    began = math.nan
    try:
        async with open_branch_nursery(number) as nursery:
            for key in range(number):
                nursery.start_soon(key, trio.sleep_forever)
            began = await all_wait()
            nursery.breach("bench")
    except Breached:
        pass
    return time.process_time() - began


async def nursery_of_scopes(number: int) -> float:
    async def cancellable() -> None:
        with trio.CancelScope():
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(cancellable)
        began = await all_wait()
        nursery.cancel_scope.cancel("bench")
    return time.process_time() - began


async def all_wait() -> float:
    """The time, once nothing can go on by itself."""
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    return time.process_time()


@attrs.frozen
class Contestant:
    name: str
    stop: Callable[[int], Awaitable[float]]


NURSERY = Contestant("nursery, a scope a task", nursery_of_scopes)
CONTESTANTS = (Contestant("trio_parallel_steps (trio)", ours), NURSERY)


def main(report: Report) -> None:
    number, rounds = (1_000, 5) if report.quick else (10_000, 9)

    def measure(contestant: Contestant) -> float:
        async def main() -> float:
            return await contestant.stop(number)

        return run_in("trio", main) / number * 1e6

    samples = rotated(CONTESTANTS, rounds, measure)
    title = f"{number:,} running branches stopped, {rounds} rounds"
    report.add(compared(title, "us a branch", samples, (NURSERY.name,)))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
