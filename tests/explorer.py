"""Seeded schedules on trio, and a stop or a change injected at each of their steps.

The same seed gives the same schedule up to the step at which something is injected, so what fails
is told, and run again, by a seed and the number of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import trio

from drivers import TrioWorld, run_trio
from trees import Program, Run
from trio_parallel_steps.hosts import _trio_runner


@contextmanager
def schedule(seed: int) -> Iterator[None]:
    """The same seed, the same schedule."""
    scheduler: Any = trio._core._run
    kept = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r = Random(seed)
    try:
        # How long a branch holds the thread in real time is no part of a schedule.
        with mock.patch.object(_trio_runner, "perf_counter", return_value=0.0):
            yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = kept


class Injector(trio.abc.Instrument):
    """Looks at every step of the scheduler, and acts before one of them."""

    def __init__(self, run: Run, at: int | None, act: Callable[[], None]) -> None:
        self.steps = 0
        self.tasks: set[trio.lowlevel.Task] = set()
        self._run = run
        self._at = at
        self._act = act

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        try:
            if self.steps == self._at:
                self._act()
            self._run.look()
        except Exception as exc:  # an instrument that raises is dropped in silence
            self._run.violations.append(repr(exc))
        self.steps += 1


def act(run: Run, random: Random) -> None:
    """Stop something, or change it, as chance has it."""
    acts: list[Callable[[], None]] = [run.interrupt]
    if run.traced:
        traced = random.choice(run.traced)
        acts += [
            partial(run.cancel, traced),
            partial(run.breach, random.choice(run.steps)),
            partial(run.reprioritise, traced, random.choice([-2, 2])),
        ]
    random.choice(acts)()


def run_once(program: Program, seed: int, at: int | None = None) -> tuple[Run, int]:
    """Returns it and how many steps it took."""

    async def main() -> tuple[Run, int]:
        run = Run(TrioWorld(), program)
        injector = Injector(run, at, partial(act, run, Random(f"{seed}, {at}")))
        status = trio.lowlevel.current_task()._cancel_status
        trio.lowlevel.add_instrument(injector)
        await run()
        trio.lowlevel.remove_instrument(injector)
        run.check(not injector.tasks, "no task is left", injector.tasks)
        left = trio.lowlevel.current_task()._cancel_status
        run.check(left is status, "no scope is left", left)
        return run, injector.steps

    with schedule(seed):
        return run_trio(main)


def explore(program: Program, seed: int) -> int:
    """The schedule of that seed, without and with something injected at each of its steps.  Returns
    how many schedules that were."""
    at: int | None = None
    try:
        run, steps = run_once(program, seed)
        run.verdict()
        for at in range(steps):
            run, _ = run_once(program, seed, at)
            run.verdict()
    except Exception as exc:
        exc.add_note(f"run_once({program}, seed={seed}, at={at})")
        raise
    return steps + 1
