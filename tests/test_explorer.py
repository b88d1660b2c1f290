"""Trees of steps under seeded schedules, with a stop or a change injected before each step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
import trio

import figures
from drivers import TrioWorld
from programs import untraced_explore
from trees import Node, Program, Run, Step
from trio_parallel_steps.testing import Call, Run as Explored, explore, expose, replay

ROUNDS = 2  # of each fault before each step: 2,000 schedules of all programs together

LEAF = Node()
LONG = Node(seconds=2)
PAIR = Node(step=Step((LEAF, LONG)))
OWN_PAIR = Node(step=Step((LEAF, LONG), limit=1, owns_limiter=True))

FLAT = {
    "three under two": Program(Step((LONG, LEAF, LEAF)), cap=2),
    "priorities": Program(Step((LEAF, Node(priority=-1), Node(priority=1), LEAF)), cap=1),
    "zero seconds": Program(Step((Node(seconds=0),) * 4), cap=2),
    "a failure": Program(Step((LONG, Node(fails=True), LONG), fail_fast=True), cap=2),
    "collected failures": Program(Step((Node(fails=True), LEAF, Node(fails=True))), cap=2),
    "siblings that cancel": Program(Step((LONG, Node(cancels=0), Node(cancels=3), LEAF)), cap=2),
    "iterated": Program(Step((LEAF, LONG, LEAF), iterates=True), cap=2),
    "a limiter of its own": Program(Step((OWN_PAIR, LEAF, OWN_PAIR)), cap=1),
    "limiters of their own, deep": Program(
        Step((Node(step=Step((OWN_PAIR, LEAF), limit=2, owns_limiter=True)), LEAF)), cap=2
    ),
}

TREES = {
    "parents under one": Program(Step((PAIR, PAIR)), cap=1),
    "parents under two": Program(Step((PAIR, LEAF, PAIR)), cap=2),
    "three levels": Program(Step((Node(step=Step((PAIR, LEAF))), LEAF)), cap=1),
    "work after": Program(
        Step((Node(step=Step((LEAF, LEAF)), seconds_after=1), PAIR, LEAF)), cap=2
    ),
    "a sub-cap": Program(Step((Node(step=Step((LEAF,) * 3, limit=1)), LEAF, LEAF)), cap=2),
    "a sub-cap in a sub-cap": Program(
        Step((Node(step=Step((PAIR, Node(step=Step((LEAF, LEAF), limit=1))), limit=2)),)), cap=3
    ),
    "weights": Program(
        Step((Node(weight=2, step=Step((LEAF, Node(weight=2)))), LEAF, Node(weight=2))), cap=2
    ),
    "heavier than the cap": Program(
        Step((Node(weight=3, step=Step((Node(weight=3), LEAF))), LEAF)), cap=2
    ),
    "waits for a sibling": Program(Step((LONG, Node(waits_for=0), Node(waits_for=1))), cap=1),
    "waits for a parent": Program(Step((PAIR, Node(waits_for=0, seconds_after=1), LEAF)), cap=1),
    "iterates": Program(Step((Node(step=Step((LEAF, LONG), iterates=True)), LEAF)), cap=1),
    "a nested failure": Program(
        Step((Node(step=Step((LONG, Node(fails=True)), fail_fast=True)), PAIR)), cap=2
    ),
    "a parent that is cancelled": Program(Step((PAIR, Node(cancels=0), LEAF)), cap=1),
    "a limiter of its own, lent": Program(Step((OWN_PAIR, PAIR, LEAF)), cap=1),
}

PROGRAMS = FLAT | TREES


class Looking(trio.abc.Instrument):
    """Lets the oracle look before every step."""

    def __init__(self, run: Run) -> None:
        self.steps = 0
        self._run = run

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        try:
            self._run.look()
        except Exception as exc:  # an instrument that raises is dropped in silence
            self._run.violations.append(repr(exc))


def running(program: Program) -> Callable[[], Awaitable[int]]:
    """Returns how many steps it took."""

    async def main() -> int:
        run = Run(TrioWorld(), program)
        expose(run=run)
        looking = Looking(run)
        trio.lowlevel.add_instrument(looking)
        await run()
        trio.lowlevel.remove_instrument(looking)
        return looking.steps

    main.__name__ = repr(program)
    return main


def check(explored: Explored) -> None:
    run: Run = explored.exposed["run"]
    run.verdict()


# ---------------------------------------------------------------- what is injected


def any_of(run: Run, what: list[Any]) -> Any:
    """Another at another time, the same if it is run again."""
    return Random(f"{len(run.log)} {len(what)}").choice(what)


def cancel_any(run: Run) -> None:
    if run.traced:
        run.cancel(any_of(run, run.traced))


def breach_any(run: Run) -> None:
    if run.steps:
        run.breach(any_of(run, run.steps))


def reprioritise_any(run: Run) -> None:
    if run.traced:
        run.reprioritise(any_of(run, run.traced), any_of(run, [-2, 2]))


ACTS = (Run.interrupt, cancel_any, breach_any, reprioritise_any)
FAULTS = [Call(act, "run") for act in ACTS]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stop_or_a_change_at_any_step_keeps_the_invariants(name: str) -> None:
    program = running(PROGRAMS[name])
    seen: set[tuple[Any, int | None]] = set()

    def note(explored: Explored) -> None:
        check(explored)
        seen.add((explored.fault, explored.fault_step))

    steps = replay(program, "-", check=check).value
    explored = untraced_explore(
        program, check=note, schedules=ROUNDS * steps * len(FAULTS), seed=1, faults=FAULTS
    )
    assert len(seen) > steps * len(FAULTS) * 0.8  # some schedules are shorter
    figures.add("explored, seeded", schedules=explored.schedules, faults=explored.with_faults)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_schedule_gives_the_same_log(name: str) -> None:
    program = running(PROGRAMS[name])
    logs: dict[str, list[Any]] = {}

    def note(explored: Explored) -> None:
        logs[explored.schedule] = explored.exposed["run"].log

    explore(program, check=note, schedules=5, seed=1, faults=FAULTS)
    for schedule, log in logs.items():
        assert replay(program, schedule, faults=FAULTS).exposed["run"].log == log


def test_schedules_differ() -> None:
    logs: set[str] = set()

    def note(explored: Explored) -> None:
        logs.add(str(explored.exposed["run"].log))

    explore(running(FLAT["three under two"]), check=note, schedules=20)
    assert len(logs) > 1
