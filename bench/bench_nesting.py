"""What do schemes of nesting cost in use of the limit, open parents and CPU time?

Random trees of branches run under one limit on those that compute, in virtual time.  A parent works
a little, waits for its children, and works a little more.  The schemes differ in what becomes of
its token while it waits:

- hold: it keeps it, which can hang;
- release and queue again: it releases it, and queues at the back once its children have ended;
- the same, deeper first: but those who wait are served by depth;
- lend only: its own children may use it, one at a time, and nobody else; deeper first too;
- lend and swap: ours.

Use is work done / (limit x makespan), open parents are those that have begun and not ended, at
their most.  The bound of a makespan is the work / limit, or the longest chain if that is longer.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import mean, median

import attrs
import trio
from trio.testing import MockClock

from _harness import Cell, Report, Table, compared, open_report, rotated, run_in
from trio_parallel_steps import run_branches

LIMIT = 16
ROOTS = 32
DEPTH = 5  # levels of branches
WIDTH = (1, 6)  # children of a parent
PARENTS = 0.5  # of the branches above the lowest level
LEAF = 1.0  # seconds of work, on average; exponential, as is what a parent does
PARENT = 0.2
STALLED = 1e6  # virtual seconds


@attrs.frozen
class Tree:
    seconds: float  # of its own work; a parent does half of it before its children, half after
    children: tuple["Tree", ...] = ()

    def branches(self) -> "Iterator[Tree]":
        yield self
        for child in self.children:
            yield from child.branches()

    def longest_chain(self) -> float:
        return self.seconds + max((child.longest_chain() for child in self.children), default=0)


Forest = tuple[Tree, ...]


def random_tree(random: Random, depth: int) -> Tree:
    if depth == 1 or random.random() >= PARENTS:
        return Tree(random.expovariate(1 / LEAF))
    width = random.randint(*WIDTH)
    children = tuple(random_tree(random, depth - 1) for _ in range(width))
    return Tree(random.expovariate(1 / PARENT), children)


def random_forest(seed: int) -> Forest:
    random = Random(seed)
    return tuple(random_tree(random, DEPTH) for _ in range(ROOTS))


class Seen:
    """What the code of the branches saw."""

    def __init__(self) -> None:
        self.open_parents = 0
        self.peak = 0

    async def run(self, tree: Tree, wait_for: Callable[[Forest], Awaitable[object]]) -> None:
        """The code of a branch that has a token."""
        if not tree.children:
            await trio.sleep(tree.seconds)
            return
        self.open_parents += 1
        self.peak = max(self.peak, self.open_parents)
        await trio.sleep(tree.seconds / 2)
        await wait_for(tree.children)
        await trio.sleep(tree.seconds / 2)
        self.open_parents -= 1


async def all_of(run: Callable[[Tree], Awaitable[None]], trees: Iterable[Tree]) -> None:
    async with trio.open_nursery() as nursery:
        for tree in trees:
            nursery.start_soon(run, tree)


# ------------------------------------------------------------------ schemes


async def hold(forest: Forest, limit: int, seen: Seen) -> None:
    limiter = trio.CapacityLimiter(limit)

    async def run(tree: Tree) -> None:
        async with limiter:
            await seen.run(tree, partial(all_of, run))

    await all_of(run, forest)


async def release(forest: Forest, limit: int, seen: Seen) -> None:
    limiter = trio.CapacityLimiter(limit)

    async def run(tree: Tree) -> None:
        async with limiter:
            await seen.run(tree, wait_for)

    async def wait_for(children: Forest) -> None:
        limiter.release()
        await all_of(run, children)
        await limiter.acquire()

    await all_of(run, forest)


class Waiter:
    def __init__(self) -> None:
        self.granted = trio.Event()
        self.place: Places | None = None


class Places:
    """Places to run in, and who waits for one: the deepest first, then first come."""

    _arrivals = count()

    def __init__(self, free: int) -> None:
        self._free = free
        self._queue: list[tuple[int, int, Waiter]] = []

    def take(self) -> bool:
        if self._free == 0:
            return False
        self._free -= 1
        return True

    def wait(self, waiter: Waiter, depth: int) -> None:
        heappush(self._queue, (-depth, next(self._arrivals), waiter))

    def give_back(self) -> None:
        while self._queue:
            _, _, waiter = heappop(self._queue)
            if waiter.place is None:  # else it has found one elsewhere
                waiter.place = self
                waiter.granted.set()
                return
        self._free += 1


async def one_of(sources: Iterable[Places], depth: int) -> Places:
    """A place from the first source that has one, or else from the first that gets one back."""
    for places in sources:
        if places.take():
            return places
    waiter = Waiter()
    for places in sources:
        places.wait(waiter, depth)
    await waiter.granted.wait()
    assert waiter.place is not None
    return waiter.place


async def release_deeper_first(forest: Forest, limit: int, seen: Seen) -> None:
    pool = Places(limit)

    async def run(tree: Tree, depth: int) -> None:
        async def wait_for(children: Forest) -> None:
            pool.give_back()
            await all_of(partial(run, depth=depth + 1), children)
            await one_of([pool], depth)

        await one_of([pool], depth)
        await seen.run(tree, wait_for)
        pool.give_back()

    await all_of(partial(run, depth=0), forest)


async def lend_only(forest: Forest, limit: int, seen: Seen) -> None:
    """A child takes its parent's place if that is free, else one of the pool's, and gives it back
    to where it was."""
    pool = Places(limit)

    async def run(tree: Tree, depth: int, sources: list[Places]) -> None:
        async def wait_for(children: Forest) -> None:
            lent = [Places(1), pool]
            await all_of(partial(run, depth=depth + 1, sources=lent), children)

        place = await one_of(sources, depth)
        await seen.run(tree, wait_for)
        place.give_back()

    await all_of(partial(run, depth=0, sources=[pool]), forest)


async def ours(forest: Forest, limit: int, seen: Seen) -> None:
    async def run(tree: Tree) -> None:
        await seen.run(tree, step)

    async def step(trees: Forest, limit: int | None = None) -> None:
        await run_branches({key: partial(run, tree) for key, tree in enumerate(trees)}, limit)

    await step(forest, limit)


@attrs.frozen
class Scheme:
    name: str
    run: Callable[[Forest, int, Seen], Awaitable[None]]


OURS = Scheme("lend and swap (ours)", ours)
RELEASE = Scheme("release and queue again", release)
SCHEMES = (
    OURS,
    Scheme("hold", hold),
    RELEASE,
    Scheme("the same, deeper first", release_deeper_first),
    Scheme("lend only", lend_only),
)


# ------------------------------------------------------------------ measuring


@attrs.frozen
class Figures:
    use: float
    open_parents: float
    makespan: float  # beside the bound
    cpu: float  # microseconds a branch


def figures_of(scheme: Scheme, forest: Forest) -> Figures | None:
    """None if it hangs."""
    branches = [branch for tree in forest for branch in tree.branches()]
    work = sum(branch.seconds for branch in branches)
    seen = Seen()

    async def main() -> Figures | None:
        began, cpu_began = trio.current_time(), time.process_time()
        with trio.move_on_after(STALLED) as stall:
            await scheme.run(forest, LIMIT, seen)
        if stall.cancelled_caught:
            return None
        makespan, cpu = trio.current_time() - began, time.process_time() - cpu_began
        bound = max(work / LIMIT, *(tree.longest_chain() for tree in forest))
        use = work / (LIMIT * makespan)
        return Figures(use, seen.peak, makespan / bound, cpu / len(branches) * 1e6)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def table_of_schemes(seeds: int, rounds: int) -> Table:
    forests = [random_forest(seed) for seed in range(seeds)]
    samples = rotated(SCHEMES, rounds, lambda scheme: [figures_of(scheme, f) for f in forests])
    rows: list[list[Cell]] = []
    cpu: dict[str, list[float]] = {}
    longest = 0.0  # ours, which comes first
    for name, runs in samples.items():
        done = [figures for run in runs for figures in run if figures is not None]
        hung = rounds * seeds - len(done)
        if hung:
            rows.append([name, f"hangs ({hung / (rounds * seeds):.0%})", "", "", "", ""])
            continue
        makespan = mean(each.makespan for each in done)
        longest = longest or makespan
        cpu[name] = [mean(each.cpu for each in run if each is not None) for run in runs]
        rows.append(
            [
                name,
                mean(each.use for each in done),
                mean(each.open_parents for each in done),
                makespan,
                makespan / longest,
                median(cpu[name]),
            ]
        )
    size = mean(len(list(tree.branches())) for forest in forests for tree in forest) * ROOTS
    title = (
        f"{seeds} forests (seeds 0-{seeds - 1}) of {ROOTS} trees, {size:,.0f} branches on average, "
        f"limit {LIMIT}, {rounds} rounds;\nup to {DEPTH} levels, {WIDTH[0]}-{WIDTH[1]} children, "
        f"{PARENTS:.0%} parents above the lowest, {LEAF} s a leaf, {PARENT} s a parent"
    )
    columns = ("", "use", "open parents", "makespan x bound", "x ours", "us a branch")
    return Table(title, columns, rows, cpu)


# ------------------------------------------------------------------ beside a flat step

FANOUT = 10
LEVELS = 3
LEAVES: int = FANOUT**LEVELS


async def leaf() -> None:
    await trio.lowlevel.checkpoint()


async def flat() -> None:
    await run_branches(dict.fromkeys(range(LEAVES), leaf), LIMIT)


async def nested(levels: int = LEVELS, limit: int | None = LIMIT) -> None:
    branch = leaf if levels == 1 else partial(nested, levels - 1, None)
    await run_branches(dict.fromkeys(range(FANOUT), branch), limit)


async def flat_limiter() -> None:
    limiter = trio.CapacityLimiter(LIMIT)

    async def limited() -> None:
        async with limiter:
            await leaf()

    async with trio.open_nursery() as nursery:
        for _ in range(LEAVES):
            nursery.start_soon(limited)


async def nested_limiter() -> None:
    limiter = trio.CapacityLimiter(LIMIT)

    async def run(levels: int) -> None:
        async with limiter:
            if levels == 0:
                await leaf()
                return
            limiter.release()
            await fan_out(levels)
            await limiter.acquire()

    async def fan_out(levels: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(FANOUT):
                nursery.start_soon(run, levels - 1)

    await fan_out(LEVELS)


@attrs.frozen
class Shape:
    name: str
    run: Callable[[], Awaitable[None]]

    def measure(self) -> float:
        async def main() -> float:
            await self.run()
            began = time.process_time()
            await self.run()
            return (time.process_time() - began) / LEAVES * 1e6

        return run_in("trio", main)


FLAT = Shape("flat", flat)
FLAT_LIMITER = Shape("nursery+CapacityLimiter, flat", flat_limiter)
SHAPES = (
    FLAT,
    Shape(f"nested, {LEVELS} levels", nested),
    FLAT_LIMITER,
    Shape(f"nurseries+CapacityLimiter, {LEVELS} levels, released", nested_limiter),
)


def main(report: Report) -> None:
    report.add(table_of_schemes(*((5, 1) if report.quick else (40, 3))))
    rounds = 5 if report.quick else 15
    samples = rotated(SHAPES, rounds, Shape.measure)
    title = (
        f"{LEAVES:,} leaves of one checkpoint, {FANOUT} a parent, limit {LIMIT}, {rounds} rounds"
    )
    baselines = (FLAT.name, FLAT_LIMITER.name)
    report.add(compared(title, "us a leaf", samples, baselines))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
