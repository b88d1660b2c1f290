"""The programs of ``test_explored.py`` and ``test_explorer.py`` on asyncio, in orders that its loop
would not have chosen, with a stop or a change before a random step.

This is no proof, as it is on trio, where all orders are tried.  asyncio runs what is ready first
first, so most of an order is decided by code, ours and its own, that relies on it.  `ShuffledLoop`
changes what may come in another order.  Tried are

- steps of tasks that are ready in the same turn of the loop, each made so by another callback;
- timers that are due at the same instant, among each other and among those steps;
- a callback of somebody else, as of a socket, before any step: the stop or the change.

Not tried are a wakeup that comes one turn or more later than asyncio has it, another order of what
one callback makes ready (branches that are admitted at once, all who wait for one event), threads,
and uvloop.  What must hold is told by the oracle of ``trees.py``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from random import Random

import pytest

import figures
import test_explored
from drivers import AsyncioWorld, run_asyncio
from loops import ShuffledLoop
from programs import Fan
from test_explorer import FLAT, TREES
from trees import Node, Program, Run, Step
from trio_parallel_steps import FAIL_FAST

SCHEDULES = 4_000  # of all programs together
MANY = 40_000
PER_SEED = 8  # with a fault each, beside one without


def twin(program: Fan) -> Program:
    """What it does on trio."""
    seconds = int(program.sleeps)
    work = Node(seconds, turns=program.checkpoints)
    if program.signalled:
        work = Node(0, turns=0, signalled=True)
    nodes = [work] * program.branches
    if program.fails:
        nodes[-1] = Node(seconds, turns=program.checkpoints, fails=True)
    if program.nested:
        inner = Node(seconds, turns=program.nested_checkpoints)
        nodes[0] = Node(0, turns=0, step=Step((inner,) * program.nested))
    root = Step(tuple(nodes), fail_fast=program.policy is FAIL_FAST)
    return Program(root, program.limit, visitors=program.visitors)


EXPLORED = test_explored.SMALL | test_explored.LARGER
PROGRAMS = {name: twin(program) for name, program in EXPLORED.items()} | FLAT | TREES
WIDE = {name: twin(program) for name, program in test_explored.WIDE.items()}


class Schedule:
    """One order of one program, and what happens to it before a step."""

    def __init__(self, program: Program, seed: int, at: int | None = None) -> None:
        self.program = program
        self.seed = seed
        self.at = at
        self.random = Random(f"{seed}, {at}")
        self.steps = 0
        self.happened: str | None = None
        self._loop: ShuffledLoop
        self._run: Run | None = None

    def __repr__(self) -> str:
        return f"Schedule({self.program}, {self.seed}, {self.at})"

    def run(self) -> Run:
        run = run_asyncio(self._main, loop_factory=self._make_loop)
        run.verdict()
        return run

    async def _main(self) -> Run:
        self._run = run = Run(AsyncioWorld(), self.program)
        await run()
        self._run = None
        return run

    def _make_loop(self) -> ShuffledLoop:
        self._loop = ShuffledLoop(self.seed, self._before_step)
        return self._loop

    def _before_step(self) -> None:
        run = self._run
        if run is None:
            return
        if self.steps == self.at:
            self._act(run)
        run.look()
        self.steps += 1

    def _act(self, run: Run) -> None:
        random = self.random
        acts: dict[str, Callable[[], object]] = {
            "cancelled": run.interrupt,
            "deadline": partial(self._loop.call_later, random.choice((0, 1, 2)), run.interrupt),
        }
        if run.traced:
            traced = random.choice(run.traced)
            acts |= {
                "limit changed": partial(run.set_cap, random.randint(1, 3)),
                "branch cancelled": partial(run.cancel, traced),
                "breached": partial(run.breach, random.choice(run.steps)),
                "reprioritised": partial(run.reprioritise, traced, random.choice((-2, 2))),
            }
        self.happened = random.choice(list(acts))
        acts[self.happened]()


@pytest.fixture(scope="module")
def totals() -> Iterator[Counter[str]]:
    counted = Counter(schedules=0, faults=0, violations=0)
    yield counted
    figures.add("explored on asyncio", **counted)


def run_schedule(schedule: Schedule, totals: Counter[str]) -> None:
    try:
        schedule.run()
    except BaseException as exc:
        totals["violations"] += 1
        exc.add_note(f"{schedule!r}: {schedule.happened}")
        raise
    totals["schedules"] += 1
    totals["faults"] += schedule.happened is not None


def explore(program: Program, schedules: int, totals: Counter[str]) -> None:
    enough = totals["schedules"] + schedules
    for seed in count():
        calm = Schedule(program, seed)
        run_schedule(calm, totals)
        for at in Random(seed).sample(range(calm.steps), min(PER_SEED, calm.steps)):
            run_schedule(Schedule(program, seed, at), totals)
        if totals["schedules"] >= enough:
            return


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stop_in_another_order_keeps_the_invariants(name: str, totals: Counter[str]) -> None:
    explore(PROGRAMS[name], SCHEDULES // len(PROGRAMS), totals)


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS | WIDE)
def test_many_orders_keep_the_invariants(name: str, totals: Counter[str]) -> None:
    programs = PROGRAMS | WIDE
    explore(programs[name], MANY // len(programs), totals)


# ---------------------------------------------------------------- the loop itself


def test_the_same_seed_gives_the_same_log() -> None:
    program = FLAT["three under two"]
    one, other = (Schedule(program, 3, 10).run() for _ in range(2))
    assert one.log == other.log
    assert len({str(Schedule(program, seed).run().log) for seed in range(20)}) > 1


def orders(program: Callable[[list[str]], Awaitable[None]]) -> set[str]:
    """All that it was seen to write, in many orders."""
    seen = set()
    for seed in range(100):
        log: list[str] = []
        run_asyncio(program, log, loop_factory=partial(ShuffledLoop, seed))
        seen.add("".join(log))
    return seen


def test_what_goes_on_by_itself_comes_in_any_order() -> None:
    async def ticks(log: list[str], name: str) -> None:
        for _ in range(2):
            await asyncio.sleep(0)
        log.append(name)

    async def program(log: list[str]) -> None:
        await asyncio.gather(*(ticks(log, name) for name in "abc"))

    assert len(orders(program)) == 6


def test_timers_that_are_due_at_once_come_in_any_order() -> None:
    async def program(log: list[str]) -> None:
        for name in "abc":
            asyncio.get_running_loop().call_later(1, log.append, name)
        await asyncio.sleep(2)

    assert len(orders(program)) == 6


def test_what_one_callback_makes_ready_comes_in_its_order() -> None:
    async def waits(log: list[str], event: asyncio.Event, name: str) -> None:
        log.append(name)
        await event.wait()
        log.append(name)

    async def program(log: list[str]) -> None:
        event = asyncio.Event()
        tasks = [asyncio.ensure_future(waits(log, event, name)) for name in "abc"]
        await asyncio.sleep(0)
        event.set()
        asyncio.get_running_loop().call_soon(log.append, "d")
        await asyncio.gather(*tasks)

    assert orders(program) == {"abcabcd"}
