"""Context variables: each branch has its own copy of the context of its submission."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_parallel_steps import (
    COLLECT,
    Branch,
    BranchLimiter,
    BranchNursery,
    current_branch,
    in_thread,
    open_branch_nursery,
    run_branches,
)

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


async def no_checkpoint() -> None:
    pass


PAUSES: dict[str, Callable[[], Any]] = {
    "never blocks": no_checkpoint,
    "checkpoint": trio.lowlevel.checkpoint,
    "sleep": lambda: trio.sleep(1),
}


pauses = pytest.mark.parametrize("pause", PAUSES.values(), ids=PAUSES)


@pytest.mark.parametrize("limit", [1, 3])
@pauses
async def test_what_a_branch_sets_no_other_sees(
    limit: int, pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def work(n: int) -> list[str]:
        found = [seen.get()]
        await pause()
        seen.set(f"{n}")
        found.append(seen.get())
        await pause()
        found.append(seen.get())
        return found

    result = await run_branches({n: partial(work, n) for n in range(20)}, limit)
    assert result.outputs == {n: ["nothing", f"{n}", f"{n}"] for n in range(20)}
    assert seen.get() == "nothing"


@pytest.mark.parametrize("ends", ["raises", "is cancelled", "times out"])
async def test_nor_does_the_next_of_the_same_runner(ends: str, autojump_clock: MockClock) -> None:
    async def leave_a_trace() -> None:
        seen.set("a trace")
        if ends == "raises":
            raise ValueError
        if ends == "is cancelled":
            current_branch().cancel()
        await trio.sleep_forever()

    async def look() -> str:
        return seen.get()

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("a", leave_a_trace, timeout=1)
        nursery.start_soon("b", look)
        nursery.start_soon("c", look)
    assert nursery.result.outputs == {"b": "nothing", "c": "nothing"}


@pauses
async def test_a_branch_sees_what_was_set_as_it_was_submitted(
    pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def look() -> str:
        await pause()
        return seen.get()

    async with open_branch_nursery(1) as nursery:
        for value in ("one", "two", "three"):
            token = seen.set(value)
            nursery.start_soon(value, look)
            seen.reset(token)
    assert nursery.result.outputs == {"one": "one", "two": "two", "three": "three"}


@pauses
async def test_a_branch_submitted_by_a_branch_inherits_from_it(
    pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def look() -> tuple[str, object]:
        await pause()
        return seen.get(), current_branch().key

    async def spawn(nursery: BranchNursery) -> None:
        seen.set("the parent's")
        nursery.start_soon("child", look)
        seen.set("changed later")
        await pause()

    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("parent", spawn, nursery)
        nursery.start_soon("other", look)
    assert nursery.result["child"].output == ("the parent's", "child")
    assert nursery.result["other"].output == ("nothing", "other")


@pauses
async def test_the_body_sees_nothing_of_its_branches(
    pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def work() -> None:
        seen.set("the branch's")
        await pause()

    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("a", work)
        await branch.wait()
        assert seen.get() == "nothing"


@pauses
async def test_a_token_made_in_a_branch_can_be_reset_in_it(
    pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def work() -> str:
        token = seen.set("for a while")
        await pause()
        seen.reset(token)
        return seen.get()

    result = await run_branches(dict.fromkeys(range(3), work), 1)
    assert set(result.outputs.values()) == {"nothing"}


# ---------------------------------------------------------------- the current branch


@pauses
async def test_each_branch_is_its_own_current_branch(
    pause: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async def work() -> tuple[Branch[Any], Branch[Any]]:
        before = current_branch()
        await pause()
        return before, current_branch()

    async with open_branch_nursery(2) as nursery:
        branches = {n: nursery.start_soon(n, work) for n in range(9)}
    for n, branch in branches.items():
        assert nursery.result[n].output == (branch, branch)


async def test_there_is_none_outside() -> None:
    with pytest.raises(RuntimeError, match="not inside a branch"):
        current_branch()
    async with open_branch_nursery(1):
        with pytest.raises(RuntimeError, match="not inside a branch"):
            current_branch()


async def test_tasks_and_threads_of_a_branch_are_inside_it(autojump_clock: MockClock) -> None:
    found: list[object] = []

    async def look() -> None:
        found.append(current_branch().key)

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
        found.append(await trio.to_thread.run_sync(lambda: current_branch().key))

    await run_branches({"a": work, "b": in_thread(lambda: found.append(current_branch().key))}, 1)
    assert found == ["a", "a", "b"]


async def test_a_task_that_outlives_its_branch_is_outside(autojump_clock: MockClock) -> None:
    found: list[str] = []

    async def outlive() -> None:
        current_branch()
        await trio.sleep(5)
        with pytest.raises(RuntimeError, match="not inside a branch") as caught:
            current_branch()
        found.append(str(caught.value))

    async with trio.open_nursery() as outside:

        async def work() -> None:
            outside.start_soon(outlive)
            await trio.sleep(1)

        await run_branches({"a": work})
    assert found == ["not inside a branch"]


async def test_a_nested_step_hides_the_branch_around_it(autojump_clock: MockClock) -> None:
    inner = BranchLimiter(1)

    async def look() -> object:
        return current_branch().key

    async def work() -> list[object]:
        result = await run_branches({"inner": look}, inner)
        return [*result.outputs.values(), current_branch().key]

    result = await run_branches({"outer": work}, 1)
    assert result["outer"].output == ["inner", "outer"]
