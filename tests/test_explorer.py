"""Every step of many schedules of a few programs, with a stop or a change injected there."""

from __future__ import annotations

import pytest

from explorer import explore, run_once
from trees import Node, Program, Step

SCHEDULES = 2_000  # at least, of all programs together

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


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stop_at_any_step_keeps_the_invariants(name: str) -> None:
    explored = seed = 0
    while explored < SCHEDULES / len(PROGRAMS):
        explored += explore(PROGRAMS[name], seed)
        seed += 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_seed_gives_the_same_log(name: str) -> None:
    (one, steps), (other, _) = run_once(PROGRAMS[name], 1), run_once(PROGRAMS[name], 1)
    assert one.log == other.log
    (one, _), (other, _) = (run_once(PROGRAMS[name], 1, steps // 2) for _ in range(2))
    assert one.log == other.log


def test_seeds_differ() -> None:
    logs = {str(run_once(FLAT["three under two"], seed)[0].log) for seed in range(20)}
    assert len(logs) > 1
