"""Calls at a time on trio: what rates, retries and hedged calls wait by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from helpers import run
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.hosts._trio_timers import Timers


def timers() -> Timers:
    return Timers(trio.current_time)


def next_deadline() -> float:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


class SystemTasks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.spawned = 0
        self.alive: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name == "timers of trio_parallel_steps":
            self.spawned += 1
            self.alive.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.alive.discard(task)


@pytest.fixture
def log() -> list[Any]:
    return []


async def test_a_call_comes_at_its_time(autojump_clock: MockClock, log: list[Any]) -> None:
    opened = trio.current_time()
    timers().call_at(opened + 2, lambda: log.append(trio.current_time() - opened))
    await trio.sleep(1.9)
    assert not log
    await trio.sleep(1)
    assert log == [2]


async def test_one_that_is_due_already_comes_soon(
    autojump_clock: MockClock, log: list[Any]
) -> None:
    calls = timers()
    calls.call_at(trio.current_time(), lambda: log.append("now"))
    calls.call_at(-math.inf, lambda: log.append("long ago"))
    assert not log  # but not at once
    await wait_all_tasks_blocked()
    assert log == ["long ago", "now"]


async def test_they_come_in_the_order_of_their_times_and_then_of_asking(
    autojump_clock: MockClock, log: list[Any]
) -> None:
    calls, now = timers(), trio.current_time()
    for name, after in [("c", 3), ("a1", 1), ("b", 2), ("a2", 1), ("a3", 1)]:
        calls.call_at(now + after, lambda name=name: log.append(name))  # type: ignore[misc]
    await trio.sleep(9)
    assert log == ["a1", "a2", "a3", "b", "c"]


async def test_an_earlier_one_may_be_asked_for_later(
    autojump_clock: MockClock, log: list[Any]
) -> None:
    calls, now = timers(), trio.current_time()
    calls.call_at(now + 5, lambda: log.append("late"))
    await trio.sleep(1)
    calls.call_at(now + 2, lambda: log.append("early"))
    await trio.sleep(2)
    assert log == ["early"]
    await trio.sleep(9)
    assert log == ["early", "late"]


async def test_a_cancelled_one_does_not_come(autojump_clock: MockClock, log: list[Any]) -> None:
    calls, now = timers(), trio.current_time()
    timer = calls.call_at(now + 1, lambda: log.append("cancelled"))
    calls.call_at(now + 2, lambda: log.append("comes"))
    timer.cancel()
    timer.cancel()
    await trio.sleep(9)
    assert log == ["comes"]
    timer.cancel()


async def test_cancelled_by_one_of_its_own_time(autojump_clock: MockClock, log: list[Any]) -> None:
    calls, now = timers(), trio.current_time()
    calls.call_at(now + 1, lambda: second.cancel())
    second = calls.call_at(now + 1, lambda: log.append("cancelled"))
    await trio.sleep(9)
    assert log == []
    assert next_deadline() == math.inf


async def test_a_call_may_ask_for_others(autojump_clock: MockClock, log: list[Any]) -> None:
    """Due later, at once, and as the only one there is."""
    calls, opened = timers(), trio.current_time()

    def again() -> None:
        passed = trio.current_time() - opened
        log.append(passed)
        if len(log) < 4:
            calls.call_at(opened + len(log) // 2 * 2, again)

    calls.call_at(opened, again)
    await trio.sleep(9)
    assert log == [0, 0, 2, 2]


async def test_with_none_there_is_no_task_and_no_deadline(mock_clock: MockClock) -> None:
    tasks = SystemTasks()
    trio.lowlevel.add_instrument(tasks)
    calls, now = timers(), trio.current_time()
    for n in range(3):
        pair = [calls.call_at(now + 100 + after, lambda: None) for after in (0, 1)]
        await wait_all_tasks_blocked()
        assert len(tasks.alive) == 1
        assert next_deadline() == 100
        for timer in pair:
            timer.cancel()
        if n == 1:  # asked again before the task has gone
            timer = calls.call_at(now + 50, lambda: None)
            await wait_all_tasks_blocked()
            assert len(tasks.alive) == 1
            assert next_deadline() == 50
            timer.cancel()
        await wait_all_tasks_blocked()
        assert not tasks.alive
        assert next_deadline() == math.inf
    assert tasks.spawned == 3
    trio.lowlevel.remove_instrument(tasks)


async def test_a_cancelled_one_keeps_no_task_when_the_last_has_come(mock_clock: MockClock) -> None:
    calls = timers()
    dropped = calls.call_at(trio.current_time() + 9, lambda: None)
    calls.call_at(trio.current_time() + 1, lambda: None)
    dropped.cancel()
    await wait_all_tasks_blocked()
    mock_clock.jump(1)
    await wait_all_tasks_blocked()
    assert next_deadline() == math.inf


async def test_cancelled_before_its_task_has_run(mock_clock: MockClock) -> None:
    tasks = SystemTasks()
    trio.lowlevel.add_instrument(tasks)
    timers().call_at(100, lambda: None).cancel()
    await wait_all_tasks_blocked()
    assert not tasks.alive
    assert next_deadline() == math.inf
    trio.lowlevel.remove_instrument(tasks)


async def test_cancelled_ones_do_not_pile_up(mock_clock: MockClock) -> None:
    """Though another is there for long."""
    calls: Any = timers()
    calls.call_at(1e6, lambda: None)
    for n in range(10_000):
        calls.call_at(1000 + n, lambda: None).cancel()
        assert len(calls._due) < 200
    last = calls.call_at(500, lambda: None)
    await wait_all_tasks_blocked()
    assert next_deadline() == 500
    last.cancel()


async def test_they_do_not_keep_a_run_open() -> None:
    """And a new run has timers of its own."""

    async def main() -> Any:
        current_run().call_at(trio.current_time() + 100, lambda: pytest.fail("called"))
        await wait_all_tasks_blocked()
        return current_run().call_at

    first = await trio.to_thread.run_sync(run, main)
    second = await trio.to_thread.run_sync(run, main)
    assert first is not second


times = st.integers(0, 20).map(float)


@given(st.lists(st.tuples(times, times, st.none() | times)))
def test_against_a_model(program: list[tuple[float, float, float | None]]) -> None:
    """Each is asked for at an instant, due at one, and maybe cancelled at one."""
    rung: list[tuple[float, int]] = []

    async def main() -> None:
        calls = timers()
        live: dict[int, Any] = {}
        events: list[tuple[float, Callable[[], object]]] = []
        for n, (asked, due, cancelled) in enumerate(program):
            due = max(asked + 0.5, due + 0.5)  # no ties with what the test does

            def ask(n: int = n, due: float = due) -> None:
                live[n] = calls.call_at(due, lambda: rung.append((trio.current_time(), n)))

            events.append((asked, ask))
            if cancelled is not None:
                events.append((max(asked, cancelled) + 0.25, lambda n=n: live[n].cancel()))  # type: ignore[misc]
        for at, event in sorted(events, key=lambda event: event[0]):
            await trio.sleep_until(at)
            event()
        await trio.sleep(100)
        assert next_deadline() == math.inf

    run(main)
    expected = []
    for n, (asked, due, cancelled) in enumerate(program):
        due = max(asked + 0.5, due + 0.5)
        if cancelled is None or max(asked, cancelled) + 0.25 > due:
            expected.append((due, asked, n))
    assert rung == [(due, n) for due, _, n in sorted(expected)]
