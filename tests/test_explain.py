"""`BranchNursery.explain()` and `BranchLimiter.stall_report()`: why nothing moves."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from drivers import EVERY_DRIVER, Driver, World
from helpers import assert_complete
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchNursery,
    Rate,
    Retry,
    in_thread,
    open_branch_nursery,
)


class Oops(Exception):
    pass


async def settle() -> None:
    await wait_all_tasks_blocked()


# ---------------------------------------------------------------- explain


async def test_the_limit(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(4) as nursery:
        for n in range(6):
            nursery.start_soon(n, trio.sleep, 1)
        await settle()
        four = "limit: 4 of 4 in use"
        assert nursery.explain() == {4: four, 5: four}


async def test_nothing_of_one_that_runs_is_about_to_or_has_ended(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(2) as nursery:
        assert nursery.explain() == {}
        nursery.start_soon("ends", trio.sleep, 1)
        nursery.start_soon("runs", trio.sleep, 9)
        nursery.start_soon("skipped", trio.sleep, 9)
        nursery.cancel("skipped")
        await trio.sleep(2)
        assert nursery.explain() == {}
        branch: Any = nursery.start_soon("granted", trio.sleep, 9)
        nursery._core.pool.dispatch()
        assert branch._token is not None
        assert nursery.explain() == {}
    assert nursery.explain() == {}


async def test_the_next_checkpoint(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("a", trio.sleep, 1)
        assert nursery.explain() == {"a": "the next checkpoint"}


async def test_a_paused_step(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2) as nursery:
        nursery.pause("memory")
        nursery.start_soon("a", trio.sleep, 1)
        assert nursery.explain() == {"a": "paused: memory"}
        await settle()
        assert nursery.explain() == {"a": "paused: memory"}
        nursery.resume()


async def test_a_paused_limiter(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        limiter.pause("memory")
        nursery.start_soon("a", trio.sleep, 1)
        await settle()
        assert nursery.explain() == {"a": "paused: memory"}
        limiter.resume()


async def test_a_rate(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(BranchLimiter(9, rate=Rate(2))) as nursery:
        for n in range(3):
            nursery.start_soon(n, trio.sleep, 1)
        await trio.sleep(0.2)
        assert nursery.explain() == {1: "rate: 0.3 s", 2: "rate: 0.3 s"}


async def test_a_retry(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        raise Oops

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        retry = Retry(Oops, 2, wait_initial=2, wait_jitter=0)
        nursery.start_soon("a", fail, retry=retry)
        await trio.sleep(0.5)
        assert nursery.explain() == {"a": "retry: 1.5 s"}
        await trio.sleep(1.25)
        assert nursery.explain() == {"a": "retry: 0.25 s"}
        nursery.start_soon("b", trio.sleep, 9)
        await trio.sleep(0.75)
        assert nursery.explain() == {"a": "limit: 1 of 1 in use"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.123456, "0.123 s"), (12.34, "12.3 s"), (99.96, "100 s"), (3600, "3600 s")],
)
async def test_seconds_are_told_in_three_digits_or_in_full(
    seconds: float, said: str, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(BranchLimiter(9, rate=Rate(1, per=seconds))) as nursery:
        for n in range(2):
            nursery.start_soon(n, trio.lowlevel.checkpoint)
        await settle()
        assert nursery.explain() == {1: f"rate: {said}"}


async def test_a_sub_cap_and_what_is_around_it(autojump_clock: MockClock) -> None:
    """The first that would not admit it, outward."""
    seen = {}

    async def outer() -> None:
        async with open_branch_nursery(2) as inner:
            for n in range(3):
                inner.start_soon(n, trio.sleep, 1)
            await trio.sleep(0.5)
            seen["sub-cap"] = inner.explain()
        async with open_branch_nursery(9) as inner:
            for n in range(3):
                inner.start_soon(n, trio.sleep, 1)
            await trio.sleep(0.5)
            seen["parent"] = inner.explain()
            limiter.pause("lunch")
            seen["paused"] = inner.explain()
            limiter.resume()

    limiter = BranchLimiter(3)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
    assert seen == {
        "sub-cap": {2: "limit: 2 of 2 in use"},
        "parent": {2: "limit: 3 of 3 in use"},
        "paused": {2: "paused: lunch"},
    }


async def test_one_that_waits_for_others(autojump_clock: MockClock) -> None:
    async def waits_for(*keys: str) -> None:
        async with trio.open_nursery() as own:
            for key in keys:
                own.start_soon(nursery[key].wait)

    async def nested() -> None:
        async with open_branch_nursery(9, name="inner") as inner:
            inner.start_soon("x", trio.sleep, 5)
            inner.start_soon("y", trio.sleep, 5)

    async def iterates() -> None:
        async for _ in other.completed():
            pass

    async with open_branch_nursery(9, name="other") as other, open_branch_nursery(9) as nursery:
        other.start_soon("z", trio.sleep, 5)
        nursery.start_soon("runs", trio.sleep, 5)
        nursery.start_soon("runs too", trio.sleep, 5)
        nursery.start_soon("one", waits_for, "runs")
        nursery.start_soon("two", waits_for, "runs", "runs too")
        nursery.start_soon("same", waits_for, "runs", "runs")
        nursery.start_soon("nested", nested)
        nursery.start_soon("iterates", iterates)
        await trio.sleep(1)
        told = nursery.explain()
    assert set(told.pop("two").removeprefix("waits for ").split(", ")) == {"'runs'", "'runs too'"}
    assert told == {
        "one": "waits for 'runs'",
        "same": "waits for 'runs'",
        "nested": "waits for step 'inner', 2 to end",
        "iterates": "waits for step 'other', 1 to end",
    }


async def test_one_that_is_about_to_go_on(autojump_clock: MockClock) -> None:
    """A pause or a rate is nothing to it."""

    async def waits() -> None:
        await other["b"].wait()

    limiter = BranchLimiter(1, rate=Rate(1, per=0.01))
    async with open_branch_nursery(9) as other, open_branch_nursery(limiter) as nursery:
        other.start_soon("b", trio.sleep, 1)
        nursery.start_soon("a", waits)
        nursery.start_soon("c", trio.sleep, 5)
        await trio.sleep(2)
        assert nursery.explain() == {"a": "to go on: limit: 1 of 1 in use"}
        limiter.pause("lunch")
        assert nursery.explain() == {"a": "to go on: limit: 1 of 1 in use"}
    assert nursery.result["a"].duration == pytest.approx(5.01)


async def test_one_that_would_fit_but_is_not_at_the_head(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(4) as nursery:
        nursery.start_soon("runs", trio.sleep, 1, weight=3)
        nursery.start_soon("heavy", trio.sleep, 1, weight=2, priority=1)
        nursery.start_soon("light", trio.sleep, 1)
        nursery["heavy"].priority = -1
        await settle()
        assert nursery.explain() == {"heavy": "limit: 4 of 4 in use"}
    async with open_branch_nursery(4) as nursery:
        nursery.start_soon("runs", trio.sleep, 1, weight=3)
        nursery.start_soon("heavy", trio.sleep, 1, weight=2)
        nursery.start_soon("light", trio.sleep, 1)
        await settle()
        assert nursery.explain() == {
            "heavy": "limit: 3 of 4 in use",
            "light": "its turn: limit: 3 of 4 in use",
        }


async def test_an_explanation_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(BranchLimiter(1, rate=Rate(1))) as nursery:
        for n in range(5):
            nursery.start_soon(n, trio.sleep, 0.5)
        for _ in range(40):
            nursery.explain()
            nursery.limiter.stall_report()
            await trio.sleep(0.1)
    assert [result.completion_index for result in nursery.result.values()] == [0, 1, 2, 3, 4]
    assert_complete(nursery, *range(5))


async def test_only_in_its_own_thread(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        for call in (nursery.explain, limiter.stall_report):
            with pytest.raises(RuntimeError, match="called outside the trio thread"):
                await trio.to_thread.run_sync(call)


# ---------------------------------------------------------------- the stall report


def line_of(fn: Callable[..., object], text: str) -> int:
    lines, first = inspect.getsourcelines(fn)
    return first + next(n for n, line in enumerate(lines) if text in line)


def place(fn: Callable[..., object], text: str) -> str:
    return f'    File "{__file__}", line {line_of(fn, text)}, in {fn.__qualname__}'


async def asks(event: Any) -> None:
    await event.wait()  # for ever, if nobody sets it


async def through_another(event: Any) -> None:
    await asks(event)  # the outer line


async def enters(limiter: BranchLimiter, event: Any) -> None:
    async with limiter:
        await asks(event)  # under a token


@EVERY_DRIVER
def test_a_branch_waits_for_one_that_is_queued(driver: Driver) -> None:
    """Through an event of the user's own: who holds the token, where its code stands, who waits."""

    async def program(world: World) -> str:
        event = world.event()
        limiter = BranchLimiter(1, name="db")

        async def sets() -> None:
            event.set()

        async with open_branch_nursery(limiter, name="load") as nursery:
            nursery.start_soon("waits", through_another, event)
            nursery.start_soon("sets", sets)
            await world.sleep(1.5)
            report = limiter.stall_report()
            event.set()
        return report

    assert driver(program).split("\n") == [
        "<BranchLimiter 'db': 1 of 1 in use, 1 waiting>",
        "in use:",
        "  'waits' of step 'load', since 1.5 s",
        place(through_another, "the outer line"),
        place(asks, "for ever"),
        "waiting:",
        "  'sets' of step 'load': limit: 1 of 1 in use",
        "",
    ]


@EVERY_DRIVER
def test_under_a_token_taken_by_async_with(driver: Driver) -> None:
    async def program(world: World) -> str:
        event = world.event()
        limiter = BranchLimiter(1)
        async with world.tasks() as start:
            start(enters, limiter, event)
            await world.turns(5)
            start(enters, limiter, event)
            start(enters, limiter, event)
            await world.turns(5)
            async with open_branch_nursery(limiter, name="load") as nursery:
                nursery.start_soon("a", world.sleep, 0)
                await world.turns(5)
                report = limiter.stall_report()
                event.set()
        return report

    lines = driver(program).split("\n")
    holder = lines.pop(2)
    assert holder.startswith("  a task that entered it: <")
    assert lines == [
        "<BranchLimiter: 1 of 1 in use, 3 waiting>",
        "in use:",
        place(enters, "under a token"),
        place(asks, "for ever"),
        "waiting:",
        "  'a' of step 'load': limit: 1 of 1 in use",
        "  tasks that would enter it: 2",
        "",
    ]


async def test_parked_and_backing_off_branches_hold_nothing(autojump_clock: MockClock) -> None:
    async def outer() -> None:
        async with open_branch_nursery(2, name="inner") as inner:
            inner.start_soon("in", asks, event)

    async def fail() -> None:
        raise Oops

    event = trio.Event()
    limiter = BranchLimiter(4)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        nursery.start_soon("fails", fail, retry=Retry(Oops, 99, wait_initial=5, wait_jitter=0))
        await trio.sleep(1)
        assert limiter.stall_report().split("\n") == [
            "<BranchLimiter: 1 of 4 in use, 0 waiting>",
            "in use:",
            "  'in' of step 'inner', since 1 s",
            place(asks, "for ever"),
            "waiting:",
            "  'outer' of step 'step': waits for step 'inner', 1 to end",
            "  'fails' of step 'step': retry: 4 s",
            "",
        ]
        event.set()
        nursery.cancel("fails")


async def test_each_line_of_a_branch_is_its_own(autojump_clock: MockClock) -> None:
    """Keys that read the same, on a runner that has run another before."""

    async def one() -> None:
        await asks(event)

    async def two() -> None:
        await asks(event)

    event = trio.Event()
    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("before", trio.sleep, 1)
        nursery.start_soon(1, one)
        nursery.start_soon("1", two)
        await trio.sleep(2)
        report = nursery.limiter.stall_report()
        event.set()
    names = re.findall(r"of step|in (?:\w+\.<locals>\.)?(one|two|asks)$", report, re.MULTILINE)
    assert names == ["", "one", "asks", "", "two", "asks"]


async def test_a_branch_that_asks_stands_nowhere(autojump_clock: MockClock) -> None:
    """It knows where it is; a report is of those that wait."""
    reports = []

    async def ask(nursery: BranchNursery) -> None:
        reports.append(nursery.limiter.stall_report())  # from its first step
        await trio.sleep(1)
        reports.append(nursery.limiter.stall_report())

    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("a", ask, nursery)
    assert [report.count("'a' of step") for report in reports] == [1, 1]
    assert [report.count("File") for report in reports] == [0, 0]


async def test_no_line_is_of_the_engines_or_the_event_loops_own(
    autojump_clock: MockClock,
) -> None:
    """A thread's, say: its function is no coroutine's."""
    gate = threading.Event()
    async with open_branch_nursery(2) as nursery:
        nursery.start_soon("a", in_thread(gate.wait))
        while nursery["a"].status.value != "running":
            await trio.lowlevel.checkpoint()
        report = nursery.limiter.stall_report()
        gate.set()
    assert "'a' of step 'step', since 0 s\nwaiting:" in report


def test_before_anything_uses_it_and_after() -> None:
    limiter = BranchLimiter(3, name="db")
    idle = "<BranchLimiter 'db': 0 of 3 in use, 0 waiting>"
    assert limiter.stall_report() == f"{idle}\n"

    async def main() -> None:
        async with open_branch_nursery(limiter):
            assert limiter.stall_report() == f"{idle}\nin use:\nwaiting:\n"

    trio.run(main)
    assert limiter.stall_report() == f"{idle}\nin use:\nwaiting:\n"


async def test_a_sub_caps_branches_are_in_the_report_of_the_limiter_around_it(
    autojump_clock: MockClock,
) -> None:
    async def outer() -> None:
        async with open_branch_nursery(1, name="inner") as inner:
            for n in range(2):
                inner.start_soon(n, trio.sleep, 2)
            await trio.sleep(1)
            reports.append(nursery.limiter.stall_report())

    reports: list[str] = []
    call: Callable[..., Awaitable[None]] = outer
    async with open_branch_nursery(9) as nursery:
        nursery.start_soon("outer", call)
    (report,) = reports
    assert "  0 of step 'inner', since 1 s" in report
    assert "  'outer' of step 'step', since 1 s" in report
    assert "  1 of step 'inner': limit: 1 of 1 in use" in report
