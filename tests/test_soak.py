"""A small soak, with all checks but that of memory; ``nox -s soak`` runs the whole one."""

from __future__ import annotations

import pytest
import trio

import rounds
from rounds import Round, Traced
from soak import HOSTS, KNOWS_ALL_CYCLES, MOST_OBJECTS_GROWTH, soak

BRANCHES = 3000

BOTH_HOSTS = pytest.mark.parametrize("host", HOSTS)


@BOTH_HOSTS
def test_nothing_is_left_of_many_rounds(host: str) -> None:
    report = soak(host, BRANCHES, seed=1)
    assert not report.violations
    assert report.objects_growth <= MOST_OBJECTS_GROWTH
    assert report.samples[-1].branches >= BRANCHES
    assert report.sampled >= 2


# ---------------------------------------------------------------- is it awake?


async def refer_to_itself(round_: Round, traced: Traced) -> None:
    circle: list[object] = []
    circle.append(circle)


async def widen_a_limiter(round_: Round, traced: Traced) -> None:
    round_.shared.plain.total_tokens = 30
    await round_.world.sleep(1)


async def keep_a_token(round_: Round, traced: Traced) -> None:
    if traced.step.cap is not None and traced.step.cap.limiter is not round_.shared.other:
        try:
            await round_.shared.other.__aenter__()
        except RuntimeError:
            return  # it runs on it, or has it


kept: list[object] = []


async def keep_something(round_: Round, traced: Traced) -> None:
    kept.extend([] for _ in range(9))


def soak_with(act: object, monkeypatch: pytest.MonkeyPatch, host: str) -> str:
    monkeypatch.setattr(rounds, "ACTS", (*rounds.ACTS, *(act,) * 10))
    report = soak(host, 300, seed=1)
    if report.objects_growth > MOST_OBJECTS_GROWTH:
        report.violations.append("objects")
    return "\n".join(report.violations)


@BOTH_HOSTS
@pytest.mark.skipif(not KNOWS_ALL_CYCLES, reason="contextlib's own are found too")
def test_it_sees_a_cycle(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert "the collector found {'list': " in soak_with(refer_to_itself, monkeypatch, host)


@BOTH_HOSTS
def test_it_sees_a_cap_that_is_passed(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert ": cap: " in soak_with(widen_a_limiter, monkeypatch, host)


@BOTH_HOSTS
def test_it_sees_a_token_that_is_kept(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert "limiters are idle" in soak_with(keep_a_token, monkeypatch, host)


@BOTH_HOSTS
def test_it_sees_objects_pile_up(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert "objects" in soak_with(keep_something, monkeypatch, host)


def test_it_sees_a_task_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave_a_task(round_: Round, traced: Traced) -> None:
        if not kept:
            kept.append(trio.lowlevel.spawn_system_task(trio.sleep, 1e5))

    kept.clear()
    seen = soak_with(leave_a_task, monkeypatch, "trio")
    kept.clear()
    assert "1 tasks are left" in seen
