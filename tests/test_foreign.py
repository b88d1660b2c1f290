"""A `trio.CapacityLimiter` of the user's own as a limit: others borrow from it too."""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from helpers import CANCELLED, SKIPPED, SUCCEEDED, run, statuses
from trio_parallel_steps import (
    COLLECT,
    Branch,
    BranchLimiter,
    Breached,
    CancelRule,
    Retry,
    open_branch_nursery,
    run_branches,
)


class Log:
    """Who got a token, in that order."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self.limiter = limiter
        self.names: list[str] = []
        self.most = 0

    async def branch(self, name: str, seconds: float = 1) -> str:
        self.names.append(name)
        self.most = max(self.most, self.limiter.borrowed_tokens)
        await trio.sleep(seconds)
        return name

    async def task(self, name: str, seconds: float = 1) -> None:
        async with self.limiter:
            await self.branch(name, seconds)


def is_idle(limiter: trio.CapacityLimiter) -> bool:
    statistics = limiter.statistics()
    return not statistics.borrowed_tokens and not statistics.tasks_waiting


async def test_branches_run_under_it_and_it_is_idle_afterwards(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(2)
    log = Log(limiter)
    result = await run_branches({n: partial(log.branch, str(n)) for n in range(7)}, limiter)
    assert result.outputs == {n: str(n) for n in range(7)}
    assert result.peak_in_flight == log.most == 2
    assert trio.current_time() == 4
    assert is_idle(limiter)


async def test_it_is_seen_as_borrowed_from(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(3)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(2):
            nursery.start_soon(n, trio.sleep, 1)
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == nursery.limiter.borrowed_tokens == 2
        assert nursery.limiter.available_tokens == 1
        assert nursery.limiter.total_tokens == 3
        assert "a branch of trio_parallel_steps" in repr(limiter.statistics().borrowers)


async def test_the_best_record_is_chosen_once_there_is_a_token(autojump_clock: MockClock) -> None:
    """Late binding: it was submitted while the others stood in line already."""
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        tasks.start_soon(log.task, "mine")
        await wait_all_tasks_blocked()
        nursery.start_soon("low", log.branch, "low")
        nursery.start_soon("middle", log.branch, "middle", priority=1)
        await wait_all_tasks_blocked()
        nursery.start_soon("high", log.branch, "high", priority=2)
        nursery["low"].priority = 9
    assert log.names == ["mine", "low", "high", "middle"]


async def test_it_is_first_come_first_served_with_the_users_own_tasks(
    autojump_clock: MockClock,
) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        for n in range(5):
            nursery.start_soon(n, log.branch, f"branch {n}")
        await wait_all_tasks_blocked()
        for n in range(2):
            tasks.start_soon(log.task, f"task {n}")
            await wait_all_tasks_blocked()
    # One request stands in line at a time, as one could be served: it comes again after each.
    assert log.names == [
        "branch 0",
        "branch 1",
        "task 0",
        "task 1",
        *(f"branch {n}" for n in (2, 3, 4)),
    ]


async def test_no_task_starves_however_many_branches_wait(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(3)
    log = Log(limiter)
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        for n in range(100):
            nursery.start_soon(n, log.branch, str(n))
        await trio.sleep(0.5)
        tasks.start_soon(log.task, "mine")
    assert log.names.index("mine") <= 8  # after three that ran, and three before it in line
    assert trio.current_time() == math.ceil(101 / 3)


async def test_a_branch_does_not_starve_however_many_tasks_wait(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        tasks.start_soon(log.task, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon("branch", log.branch, "branch")
        await wait_all_tasks_blocked()
        for n in range(5):
            tasks.start_soon(log.task, str(n))
    assert log.names[1] == "branch"


async def test_steps_on_the_same_one_have_one_queue(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)
    async with open_branch_nursery(limiter) as one, open_branch_nursery(limiter) as two:
        assert one.limiter is two.limiter
        one.start_soon("runs", log.branch, "runs")
        await wait_all_tasks_blocked()
        for name in "ab":
            one.start_soon(name, log.branch, name)
        two.start_soon("c", log.branch, "c", priority=1)
    assert log.names == ["runs", "c", "a", "b"]


async def test_who_leaves_the_line_leaves_no_request_behind(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    async with limiter, open_branch_nursery(limiter) as nursery:
        for n in range(3):
            nursery.start_soon(n, trio.sleep, 1)
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 1
        assert nursery.explain() == dict.fromkeys(range(3), "limit: 1 of 1 in use")
        for n in range(3):
            nursery.cancel(n)
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 0
    assert set(statuses(nursery.result).values()) == {SKIPPED}
    assert is_idle(limiter)


async def test_a_token_that_finds_no_record_is_given_back(autojump_clock: MockClock) -> None:
    """Its record is cancelled in the instant in which the token comes."""
    limiter = trio.CapacityLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        async with limiter:
            nursery.start_soon("late", trio.sleep, 1)
            await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 1  # served, and on its way
        nursery.cancel("late")
        await wait_all_tasks_blocked()
        assert is_idle(limiter)
        nursery.start_soon("next", trio.sleep, 1)
    assert statuses(nursery.result) == {"late": SKIPPED, "next": SUCCEEDED}


async def test_a_stopped_step_leaves_the_line(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    async with limiter:
        with pytest.raises(Breached):
            async with open_branch_nursery(limiter) as nursery:
                nursery.start_soon("a", trio.sleep, 1)
                await wait_all_tasks_blocked()
                nursery.breach("enough")
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 0


async def test_pausing_holds_branches_and_leaves_the_line(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        nursery.limiter.pause("memory")
        nursery.start_soon("a", trio.sleep, 1)
        await trio.sleep(5)
        assert nursery.explain() == {"a": "paused: memory"}
        assert is_idle(limiter)
        nursery.limiter.resume()
    assert nursery.result["a"].wait_time == 5


def test_a_pause_outlasts_the_run_that_asked_for_it() -> None:
    async def pause() -> BranchLimiter:
        async with open_branch_nursery(trio.CapacityLimiter(1)) as nursery:
            nursery.limiter.pause("later")
        return nursery.limiter

    async def use(limiter: BranchLimiter) -> None:
        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("a", trio.sleep, 0)
            await wait_all_tasks_blocked()
            assert nursery.explain() == {"a": "paused: later"}
            limiter.resume()

    trio.run(use, trio.run(pause))


@pytest.mark.parametrize("through", ["its own name", "the nursery's limiter"])
async def test_the_total_can_change(through: str, autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)
    async with open_branch_nursery(limiter) as nursery:
        for n in range(9):
            nursery.start_soon(n, log.branch, str(n))
        await trio.sleep(0.5)
        if through == "its own name":
            limiter.total_tokens = 4
        else:
            nursery.limiter.total_tokens = 4
        await wait_all_tasks_blocked()
        assert nursery.limiter.total_tokens == limiter.total_tokens == 4
        assert limiter.borrowed_tokens == 4
        limiter.total_tokens = 2
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 2


async def test_one_that_has_no_token_yet(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    limiter.total_tokens = 0
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", trio.sleep, 1)
        await trio.sleep(3)
        assert nursery.explain() == {"a": "limit: 0 of 0 in use"}
        limiter.total_tokens = 1
    assert nursery.result["a"].wait_time == 3
    assert is_idle(limiter)


async def test_a_token_entered_by_hand_through_the_nurserys_limiter(
    autojump_clock: MockClock,
) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_branch_nursery(limiter) as nursery, nursery.limiter:
        assert limiter.borrowed_tokens == 1
        nursery.start_soon("a", trio.sleep, 1)
        await trio.sleep(3)
        assert nursery["a"].status.value == "queued"
    assert nursery.result["a"].wait_time == 3
    assert is_idle(limiter)


# ---------------------------------------------------------------- nesting


@pytest.mark.parametrize("sub_cap", [None, 1, 3])
async def test_nesting_under_it_can_not_stall(
    sub_cap: int | None, autojump_clock: MockClock
) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def tree(depth: int) -> None:
        if not depth:
            await log.branch("leaf")
            return
        await run_branches({n: lambda: tree(depth - 1) for n in range(2)}, sub_cap)

    await run_branches({n: lambda: tree(3) for n in range(2)}, limiter)
    assert log.names == ["leaf"] * 16
    assert trio.current_time() == 16
    assert is_idle(limiter)


async def test_a_branch_that_waits_lends_to_the_users_own_tasks_too(
    autojump_clock: MockClock,
) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def outer() -> float:
        other = BranchLimiter(1)
        await run_branches({"inner": lambda: trio.sleep(3)}, other)
        return trio.current_time()

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        await trio.sleep(1)
        tasks.start_soon(log.task, "mine", 5)
    assert log.names == ["mine"]
    assert nursery.result["outer"].output == 6  # it waited for its token


async def test_the_last_nested_branch_hands_the_borrower_on(autojump_clock: MockClock) -> None:
    """Before any task that stands in line."""
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def outer() -> None:
        await run_branches({"inner": lambda: log.branch("inner")})
        await log.branch("outer goes on")

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        await trio.sleep(0.5)
        tasks.start_soon(log.task, "mine")
    assert log.names == ["inner", "outer goes on", "mine"]


async def test_a_stopped_branch_unwinds_over_the_cap(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def outer() -> None:
        try:
            await run_branches({"inner": lambda: trio.sleep(1)}, BranchLimiter(1))
        finally:
            log.names.append(f"unwinds at {trio.current_time()}")

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        await wait_all_tasks_blocked()
        tasks.start_soon(log.task, "mine", 9)
        await trio.sleep(3)  # it waits for its token by now
        assert nursery.explain() == {"outer": "to go on: limit: 1 of 1 in use"}
        nursery.cancel("outer")
    assert log.names == ["mine", "unwinds at 3.0"]
    assert statuses(nursery.result) == {"outer": SUCCEEDED}
    assert is_idle(limiter)


async def test_one_that_unwinds_over_the_cap_has_nothing_to_hand_on(
    autojump_clock: MockClock,
) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def innermost() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    async def inner() -> None:
        try:
            await run_branches({"innermost": innermost})
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)  # "mine" has the token

    async def outer() -> float:
        async with open_branch_nursery() as nested:
            branches.append(nested.start_soon("inner", inner))
        return trio.current_time()

    branches: list[Branch[None]] = []
    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("outer", outer)
        await wait_all_tasks_blocked()
        tasks.start_soon(log.task, "mine", 9)
        await trio.sleep(1)
        branches[0].cancel()
    assert nursery.result["outer"].output == 12  # it waited for a token, too
    assert is_idle(limiter)


async def test_tries_give_their_token_back(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(1)
    log = Log(limiter)

    async def flaky() -> None:
        log.names.append("try")
        if log.names.count("try") < 3:
            raise OSError

    async with trio.open_nursery() as tasks, open_branch_nursery(limiter) as nursery:
        nursery.start_soon("flaky", flaky, retry=Retry(OSError, wait_initial=2, wait_jitter=0))
        await trio.sleep(1)
        tasks.start_soon(log.task, "mine", 0.5)
    assert log.names == ["try", "mine", "try", "try"]


# ---------------------------------------------------------------- what it can't


async def test_weights_are_refused(autojump_clock: MockClock) -> None:
    limiter = trio.CapacityLimiter(4)
    refused = "must be 1, as a trio.CapacityLimiter lends one token, got 2"
    with pytest.raises(ValueError, match=rf"^`weights\['a'\]` {refused}$"):
        await run_branches({"a": trio.sleep_forever}, limiter, weights={"a": 2})

    async def nested() -> None:
        with pytest.raises(ValueError, match=rf"^`weights\['a'\]` {refused}$"):
            await run_branches({"a": trio.sleep_forever}, weights={"a": 2})
        with pytest.raises(ValueError, match=rf"^`weights\['a'\]` {refused}$"):
            await run_branches({"a": trio.sleep_forever}, 3, weights={"a": 2})

    async with open_branch_nursery(limiter) as nursery:
        with pytest.raises(ValueError, match=rf"^`weight` {refused}$"):
            nursery.start_soon("a", trio.sleep_forever, weight=2)
        nursery.start_soon("b", nested, weight=1)
    assert list(nursery.result) == ["b"]
    result = await run_branches({"a": trio.lowlevel.checkpoint}, limiter, weights={"a": 1})
    assert result.success


def test_on_asyncio_it_is_refused() -> None:
    async def program() -> None:
        with pytest.raises(RuntimeError, match="asyncio runs here, where tasks can't borrow"):
            await run_branches({"a": asyncio.Event().wait}, limiter)

    limiter = trio.CapacityLimiter(1)
    asyncio.run(program())


def test_one_limiter_in_one_run_after_another() -> None:
    limiter = trio.CapacityLimiter(2)

    async def program() -> Any:
        return await run_branches({n: partial(trio.sleep, n) for n in range(4)}, limiter)

    for _ in range(2):
        assert run(program).success
        assert is_idle(limiter)


# ---------------------------------------------------------------- any program


@pytest.mark.parametrize("seed", range(40))
async def test_it_is_never_overdrawn_and_everyone_is_served(
    seed: int, autojump_clock: MockClock
) -> None:
    rng = random.Random(seed)
    limiter = trio.CapacityLimiter(rng.randint(1, 3))
    log = Log(limiter)
    started = 0

    async def branch(depth: int) -> None:
        nonlocal started
        started += 1
        await log.branch("branch", rng.randint(0, 2))
        if depth and rng.random() < 0.5:
            sub_cap = rng.choice([None, 1, 2])
            await run_branches(
                {n: lambda: branch(depth - 1) for n in range(rng.randint(1, 3))},
                sub_cap,
                priorities={0: rng.randint(-1, 1)},
            )
            await log.branch("branch", rng.randint(0, 1))

    async with trio.open_nursery() as tasks:
        rule = CancelRule("a*", "b*")
        async with open_branch_nursery(limiter, policy=COLLECT, cancel_rules=[rule]) as nursery:
            for n in range(6):
                nursery.start_soon(f"{rng.choice('abc')}{n}", branch, 2, priority=rng.randint(0, 2))
                tasks.start_soon(log.task, "task", rng.randint(0, 2))
                await trio.sleep(rng.choice([0, 0, 1]))
    assert log.names.count("task") == 6
    assert set(statuses(nursery.result).values()) <= {SUCCEEDED, CANCELLED, SKIPPED}
    assert log.most <= limiter.total_tokens
    assert is_idle(limiter)
