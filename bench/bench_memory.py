"""How many bytes does a queued branch take, beside a task that waits for its turn?

By tracemalloc, with all branches queued and none started.  What the user brings (keys and
functions) is made before and not counted.
"""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import PurePath

import attrs
import trio
import trio.testing

from _harness import Report, Table, open_report, run_in
from trio_parallel_steps import open_branch_nursery

LINES = 8  # of source, shown as holding most

Keys = Sequence[str]
Watch = Callable[[], AbstractContextManager[None]]


class Held:
    """Bytes allocated inside `watch()` and still there at its end, by source line."""

    def __init__(self) -> None:
        self.by_line: dict[str, int] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        gc.collect()
        tracemalloc.start()
        yield
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
        tracemalloc.stop()
        for statistic in snapshot.statistics("lineno"):
            frame = statistic.traceback[0]
            where = "/".join(PurePath(frame.filename).parts[-2:])
            self.by_line[f"{where}:{frame.lineno}"] = statistic.size


async def ours(keys: Keys, watch: Watch) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.pause("bench")
        with watch():
            for key in keys:
                nursery.start_soon(key, trio.lowlevel.checkpoint)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_where(lambda key: True)


async def nursery_limiter(keys: Keys, watch: Watch) -> None:
    limiter = trio.CapacityLimiter(1)

    async def limited() -> None:
        async with limiter:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await limiter.acquire_on_behalf_of("bench")
        with watch():
            for _ in keys:
                nursery.start_soon(limited)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def gather_semaphore(keys: Keys, watch: Watch) -> None:
    semaphore = asyncio.Semaphore(1)

    async def limited() -> None:
        async with semaphore:
            await asyncio.sleep(0)

    await semaphore.acquire()
    with watch():
        tasks = asyncio.gather(*[limited() for _ in keys], return_exceptions=True)
        for _ in range(3):  # by then all of them wait
            await asyncio.sleep(0)
    tasks.cancel()
    with suppress(asyncio.CancelledError):
        await tasks


@attrs.frozen
class Contestant:
    name: str
    host: str
    queue: Callable[[Keys, Watch], Awaitable[None]]

    def measure(self, number: int) -> dict[str, float]:
        """Bytes a branch, by source line."""
        keys = [f"branch-{i}" for i in range(number)]
        held = Held()

        async def main() -> None:
            await self.queue(keys[:10], Held().watch)  # what is made once only is made now
            await self.queue(keys, held.watch)

        run_in(self.host, main)
        return {where: size / number for where, size in held.by_line.items()}


OURS = Contestant("trio_parallel_steps (trio)", "trio", ours)
CONTESTANTS = (
    OURS,
    Contestant("gather+Semaphore", "asyncio", gather_semaphore),
    Contestant("nursery+CapacityLimiter", "trio", nursery_limiter),
)


def totals(number: int) -> Table:
    sizes = {peer.name: sum(peer.measure(number).values()) for peer in CONTESTANTS}
    rows = [(name, size, size / sizes[OURS.name]) for name, size in sizes.items()]
    return Table(f"{number:,} queued", ("", "bytes a branch", "x ours"), rows)


def where_ours_are(number: int) -> Table:
    by_line = OURS.measure(number)
    total = sum(by_line.values())
    most = sorted(by_line.items(), key=lambda line: -line[1])[:LINES]
    rows = [(where, size, f"{size / total:.0%}") for where, size in most]
    return Table("The lines that hold most of ours", ("", "bytes a branch", "share"), rows)


def main(report: Report) -> None:
    for number in (10_000,) if report.quick else (10_000, 100_000):
        report.add(totals(number))
    report.add(where_ours_are(10_000))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
