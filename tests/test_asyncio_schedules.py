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

from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random

import pytest

import figures
import test_explored
from drivers import AsyncioWorld, run_asyncio
from loops import ShuffledLoop
from test_explorer import FLAT, TREES
from trees import Node, Program, Run, Step
from trio_parallel_steps import FAIL_FAST

SCHEDULES = 4_000  # of all programs together
MANY = 40_000
PER_SEED = 8  # with a fault each, beside one without


def twin(program: test_explored.Program) -> Program:
    """What it does on trio."""
    seconds = int(program.sleeps)
    work = Node(seconds, turns=program.checkpoints)
    if program.signalled:
        work = Node(0, turns=0, signalled=True)
    nodes = [work] * program.branches
    if program.fails:
        nodes[-1] = Node(seconds, turns=program.checkpoints, fails=True)
    if program.nests:
        pair = Step((Node(seconds, turns=program.checkpoints),) * 2)
        nodes[0] = Node(0, turns=0, step=pair)
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


def run_schedule(schedule: Schedule) -> Run:
    try:
        return schedule.run()
    except BaseException as exc:
        exc.add_note(f"{schedule!r}: {schedule.happened}")
        raise


def explore(programs: dict[str, Program], name: str, schedules: int) -> None:
    faults: dict[str, int] = {}
    done = 0
    for seed in count():
        calm = Schedule(programs[name], seed)
        run_schedule(calm)
        steps = Random(seed).sample(range(calm.steps), min(PER_SEED, calm.steps))
        for at in steps:
            schedule = Schedule(programs[name], seed, at)
            run_schedule(schedule)
            assert schedule.happened is not None
            faults[schedule.happened] = faults.get(schedule.happened, 0) + 1
        done += 1 + len(steps)
        if done >= schedules:
            break
    figures.add(
        "explored on asyncio",
        program=name,
        schedules=done,
        faults=sum(faults.values()),
        violations=0,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stop_in_another_order_keeps_the_invariants(name: str) -> None:
    explore(PROGRAMS, name, SCHEDULES // len(PROGRAMS))


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS | WIDE)
def test_many_orders_keep_the_invariants(name: str) -> None:
    programs = PROGRAMS | WIDE
    explore(programs, name, MANY // len(programs))
