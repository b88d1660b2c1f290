"""Small programs of this package under all their schedules, with a fault at every step; larger ones
under many.

Each run is checked against the promises of the package, by `check_invariants`, and time does not
pass in it while something is admissible.  What is marked `long` is for ``nox -s explore``.
"""

from __future__ import annotations

import sys

import pytest

import figures
from programs import (
    FAULTS,
    KINDS,
    MORE_FAULTS,
    RAISED,
    Fan,
    check,
    check_fan,
    kind,
    untraced_explore,
)
from trio_parallel_steps import FAIL_FAST
from trio_parallel_steps.testing import Explored, Fault, Run, explore, replay


def run_all(program: Fan, *faults: Fault) -> Explored:
    explored = untraced_explore(program, check=check_fan, faults=faults, raises=RAISED)
    figures.add(
        "explored, all schedules", schedules=explored.schedules, faults=explored.with_faults
    )
    return explored


# By branches and limit: flat, and with a nested step.  What has more than some thousand schedules
# with a fault has smaller bodies.
TABLE = {
    "two under one": (Fan(2, 1), Fan(2, 1, nested=2)),
    "two under two": (Fan(2, 2), Fan(2, 2, nested=1)),
    "two under three": (Fan(2, 3), Fan(2, 3, nested=1, nested_checkpoints=0)),
    "three under one": (Fan(3, 1), Fan(3, 1, nested=2)),
    "three under two": (Fan(3, 2), Fan(3, 2, nested=1)),
    "three under three": (Fan(3, 3), Fan(3, 3, nested=1, checkpoints=0)),
}

MORE = {
    "one fails": Fan(3, 2, fails=True, policy=FAIL_FAST),
    "one fails, collected": Fan(3, 2, fails=True),
    "they sleep": Fan(3, 2, sleeps=True),
    "a visitor": Fan(2, 1, visitors=1),
    "signalled": Fan(2, 1, signalled=True),
    "three signalled": Fan(3, 2, signalled=True),
    "nested that sleep": Fan(2, 1, nested=2, sleeps=True),
}

SMALL = {
    **{name: flat for name, (flat, _) in TABLE.items()},
    **{f"{name}, nested": nesting for name, (_, nesting) in TABLE.items()},
    **MORE,
}

# As a limit is lowered to one and raised to three.
UNCHANGED = {(1, "limit lowered"), (3, "limit raised")}
CELLS = [
    (name, fault)
    for name in SMALL
    for fault in FAULTS
    if (SMALL[name].limit, fault) not in UNCHANGED
]


@pytest.mark.parametrize(("name", "fault"), CELLS)
def test_a_fault_at_every_step_of_all_schedules(name: str, fault: str) -> None:
    explored = run_all(SMALL[name], FAULTS[fault])
    assert explored.complete
    assert explored.with_faults


LARGER = {
    "nested under two": Fan(2, 2, nested=2),
    "nested and visited": Fan(2, 1, nested=2, visitors=1),
    "three, nested, under two": Fan(3, 2, nested=2, checkpoints=2, nested_checkpoints=2),
    "two visitors": Fan(3, 2, visitors=2),
}


@pytest.mark.parametrize("name", LARGER)
def test_all_schedules_without_faults(name: str) -> None:
    assert run_all(LARGER[name]).complete


def test_the_same_schedule_gives_the_same_events() -> None:
    program = LARGER["three, nested, under two"]
    lines: dict[str, list[str]] = {}

    def note(run: Run) -> None:
        lines[run.schedule] = run.exposed["recorded"].lines()

    explore(program, check=note, schedules=20)
    for schedule, seen in lines.items():
        assert replay(program, schedule).exposed["recorded"].lines() == seen


# ---------------------------------------------------------------- some of many

WIDE = {
    "four, nested, visited, under two": Fan(
        4, 2, nested=2, checkpoints=2, nested_checkpoints=2, visitors=2
    ),
    "five under three": Fan(5, 3, checkpoints=2),
    "six that sleep, nested": Fan(6, 3, nested=2, sleeps=True, visitors=1),
    "one of four fails": Fan(4, 2, nested=2, fails=True, policy=FAIL_FAST),
    **LARGER,
}

SEEDED = 10_000  # schedules of all programs together, others on each Python
SEED = sys.version_info[1]
EACH = -(-SEEDED // (len(WIDE) + len(KINDS)))


def count(explored: Explored) -> None:
    figures.add("explored, seeded", schedules=explored.schedules, faults=explored.with_faults)


@pytest.mark.parametrize("name", WIDE)
def test_some_schedules_with_faults(name: str) -> None:
    run_some(WIDE[name], EACH, SEED)


@pytest.mark.parametrize("name", KINDS)
def test_some_schedules_of_every_part_with_faults(name: str) -> None:
    run_some_of_kind(name, EACH, SEED)


def run_some(program: Fan, schedules: int, seed: int) -> None:
    explored = untraced_explore(
        program,
        check=check_fan,
        schedules=schedules,
        seed=seed,
        faults=FAULTS.values(),
        raises=RAISED,
    )
    assert explored.schedules == schedules
    count(explored)


def run_some_of_kind(name: str, schedules: int, seed: int) -> None:
    explored = untraced_explore(
        kind(name),
        check=check,
        schedules=schedules,
        seed=seed,
        faults=MORE_FAULTS,
        raises=RAISED,
    )
    assert explored.schedules == schedules
    assert explored.with_faults
    count(explored)


# ---------------------------------------------------------------- for minutes


@pytest.mark.long
@pytest.mark.parametrize("name", WIDE)
def test_many_schedules_with_faults(name: str) -> None:
    run_some(WIDE[name], 2_500, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_many_schedules_of_every_part_with_faults(name: str) -> None:
    run_some_of_kind(name, 1_000, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("branches", [2, 3])
def test_a_fault_in_all_schedules_of_full_bodies(branches: int, fault: str) -> None:
    assert run_all(Fan(branches, 3, nested=1), FAULTS[fault]).complete


@pytest.mark.long
def test_all_schedules_of_four_under_two() -> None:
    program = Fan(4, 2, nested=2, checkpoints=4, nested_checkpoints=4, visitors=2)
    assert run_all(program).schedules > 250_000
