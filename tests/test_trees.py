"""Random programs of nested steps, on both hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, note, settings, strategies as st

from drivers import DRIVERS, World
from trees import STALLED, Node, Program, Run, Step, programs

PROGRAMS = 300  # of any kind, and a third as many plain ones: each on both hosts

HOSTS = ["trio", "asyncio"]
BOTH_HOSTS = pytest.mark.parametrize("host", HOSTS)

tree_settings = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def run_on(host: str, program: Program, meanwhile: Callable[[Run], None] | None = None) -> Run:
    async def main(world: World) -> Run:
        run = Run(world, program)
        if meanwhile is not None:
            meanwhile(run)
        return await run()

    return DRIVERS[host](main)


def run_all(number: int, drawn: st.SearchStrategy[Program], look: Callable[[Run], None]) -> int:
    """Returns how many programs were run, on each host."""
    ran = 0

    @settings(tree_settings, max_examples=number)
    @given(drawn)
    def run_one(program: Program) -> None:
        nonlocal ran
        for host in HOSTS:  # drawing takes as long as a run
            note(host)
            run = run_on(host, program)
            run.verdict()
            look(run)
        ran += 1

    run_one()
    return ran


def test_any_tree_keeps_the_invariants() -> None:
    assert run_all(PROGRAMS, programs(), lambda run: None) >= PROGRAMS


def test_no_token_is_idle_while_work_waits() -> None:
    """So a run takes at most what is Graham's bound for any order of admission."""

    def look(run: Run) -> None:
        program = run.program
        assert max(program.longest_chain(), program.work() / program.cap) <= run.makespan
        assert run.makespan <= program.longest_makespan()

    assert run_all(PROGRAMS // 3, programs(plain=True), look) >= PROGRAMS // 3


# ---------------------------------------------------------------- is the oracle awake?

TWO = Program(Step((Node(), Node())), cap=1)


@BOTH_HOSTS
def test_the_oracle_sees_a_cap_that_is_passed(host: str) -> None:
    def widen(run: Run) -> None:
        run.limiter.total_tokens = 2

    with pytest.raises(AssertionError, match=r"active <= cap: .*'root.0', 'root.1'"):
        run_on(host, TWO, widen).verdict()


@BOTH_HOSTS
def test_the_oracle_sees_a_stall(host: str) -> None:
    def hold(run: Run) -> None:
        run.limiter.pause("for ever")

    run = run_on(host, TWO, hold)
    assert run.makespan == STALLED
    with pytest.raises(AssertionError, match="no program stalls"):
        run.verdict()


@BOTH_HOSTS
def test_the_oracle_sees_a_token_that_is_idle(host: str) -> None:
    def narrow(run: Run) -> None:
        run.limiter.total_tokens = 1

    with pytest.raises(AssertionError, match="time does not jump while something is admissible"):
        run_on(host, Program(TWO.root, cap=2), narrow).verdict()
