"""asyncio's own rules: edges, counts of requests, timeouts, factories, signals, and no litter."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

import trio_parallel_steps
from drivers import EAGER, needs_eager, run_asyncio
from jumps import garbage
from loops import Stalled, VirtualLoop, VirtualUvloop
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breached,
    Retry,
    StepTimeout,
    abc,
    current_branch,
    in_thread,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.hosts._asyncio_host import AsyncioHost

Main = Callable[[], Awaitable[Any]]
Run = Callable[[Main], Any]


def on_virtual(program: Main) -> Any:
    return run_asyncio(program)


def on_uvloop(program: Main) -> Any:
    return run_asyncio(program, loop_factory=VirtualUvloop)


def on_eager(program: Main) -> Any:
    return run_asyncio(program, eager=True)


EVERY_LOOP = pytest.mark.parametrize(
    "run",
    [
        pytest.param(on_virtual, id="asyncio"),
        pytest.param(on_uvloop, id="uvloop"),
        pytest.param(on_eager, id="eager", marks=needs_eager),
    ],
)

forever = asyncio.Event  # `await forever().wait()`


async def sleep_forever() -> None:
    await asyncio.Event().wait()


async def fails(seconds: float = 0, text: str = "x") -> None:
    await asyncio.sleep(seconds)
    raise ValueError(text)


def me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def endings(nursery: BranchNursery) -> dict[Any, str]:
    return {key: ended.status.value for key, ended in nursery.result.items()}


def virtual() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


# ---------------------------------------------------------------- edges


async def cleans_up(log: list[str]) -> None:
    try:
        await sleep_forever()
    finally:
        for _ in range(3):
            await asyncio.sleep(1)
        log.append("clean")


@EVERY_LOOP
@pytest.mark.parametrize("how", ["cancel", "breach", "timeout", "deadline", "body", "outside"])
def test_cleanup_that_awaits_is_not_interrupted(run: Run, how: str) -> None:
    log: list[str] = []

    async def main() -> None:
        options: dict[str, Any] = {"fail_after": 1.0} if how == "deadline" else {}
        async with asyncio.timeout(1 if how == "outside" else None):
            async with open_branch_nursery(policy=COLLECT, **options) as nursery:
                timeout = 1.0 if how == "timeout" else math.inf
                nursery.start_soon("a", cleans_up, log, timeout=timeout)
                if how in ("cancel", "breach", "body"):
                    await asyncio.sleep(1)
                if how == "cancel":
                    nursery.cancel("a")
                if how == "breach":
                    nursery.breach("stop")
                if how == "body":
                    raise LookupError

    raised = {
        "breach": Breached,
        "deadline": StepTimeout,
        "body": BranchErrors,
        "outside": TimeoutError,
    }
    if how in raised:
        with pytest.raises(raised[how]):
            run(main)
    else:
        run(main)
    assert log == ["clean"]


@EVERY_LOOP
def test_cleanup_of_a_cancelled_branch_is_not_interrupted_by_a_stop_of_the_step(run: Run) -> None:
    log: list[str] = []

    async def main() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", cleans_up, log)
            await asyncio.sleep(1)
            nursery.cancel("a")
            await asyncio.sleep(1)
            nursery.breach("stop")

    with pytest.raises(Breached):
        run(main)
    assert log == ["clean"]


@EVERY_LOOP
def test_a_deadline_that_comes_once_its_step_was_left_reaches_nobody(run: Run) -> None:
    reported: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        async with open_branch_nursery(fail_after=3) as nursery:
            nursery.start_soon("a", asyncio.sleep, 1)
        await asyncio.sleep(9)
        assert endings(nursery) == {"a": "succeeded"}

    run(main)
    assert not reported


@EVERY_LOOP
def test_a_limit_that_has_grown_admits_as_many(run: Run) -> None:
    async def main() -> None:
        async with open_branch_nursery(1) as nursery:
            for key in "abc":
                nursery.start_soon(key, asyncio.sleep, 3)
            await asyncio.sleep(1)
            nursery.limiter.total_tokens = 2
            await asyncio.sleep(1)
            assert nursery.statistics().running == 2

    run(main)


@EVERY_LOOP
def test_requests_are_counted_from_those_there_were_on_entry(run: Run) -> None:
    """A step in the cleanup of a task that has been cancelled already."""
    seen: list[Any] = []

    async def victim() -> None:
        try:
            await sleep_forever()
        finally:
            result = await run_branches({"a": lambda: asyncio.sleep(1, "cleaned")})
            seen.append(result["a"].output)
            with pytest.raises(Breached):
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("b", sleep_forever)
                    await asyncio.sleep(1)
                    nursery.breach("stop")
                    await sleep_forever()
            with pytest.raises(BranchErrors):
                await run_branches({"c": fails})
            with pytest.raises(StepTimeout):
                await run_branches({"c": sleep_forever}, fail_after=1.0)
            seen.append(me().cancelling())

    async def main() -> None:
        task = asyncio.ensure_future(victim())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(main)
    assert seen == ["cleaned", 1]


@EVERY_LOOP
def test_a_second_cancellation_in_such_a_cleanup_goes_through(run: Run) -> None:
    async def victim() -> None:
        try:
            await sleep_forever()
        finally:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", sleep_forever)

    async def main() -> None:
        task = asyncio.ensure_future(victim())
        for _ in range(2):
            await asyncio.sleep(1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 2

    run(main)


# ---------------------------------------------------------------- asyncio.timeout, TaskGroup


@EVERY_LOOP
def test_a_timeout_around(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("a", sleep_forever)
        assert me().cancelling() == 0
        assert nursery.result["a"].reason == "cancelled from outside"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_branches({"a": sleep_forever}), 1)

    run(main)


@EVERY_LOOP
def test_a_timeout_in_a_branch_and_one_in_the_body(run: Run) -> None:
    async def main() -> None:
        async def impatient() -> str:
            try:
                async with asyncio.timeout(1):
                    await sleep_forever()
            except TimeoutError:
                return "in time"
            return "never"

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", impatient)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await sleep_forever()
            nursery.start_soon("b", asyncio.sleep, 1, "after")
        assert nursery.result.outputs == {"a": "in time", "b": "after"}
        assert me().cancelling() == 0

    run(main)


@EVERY_LOOP
@pytest.mark.parametrize(("inner", "outer"), [(1, 2), (2, 1), (1, 1)])
def test_timeouts_nested_around_and_inside(run: Run, inner: float, outer: float) -> None:
    async def main() -> tuple[str, dict[Any, str]]:
        told = "none"
        try:
            async with asyncio.timeout(outer):
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("a", asyncio.sleep, 5)
                    try:
                        async with asyncio.timeout(inner):
                            await sleep_forever()
                    except TimeoutError:
                        told = "inner"
        except TimeoutError:
            told += " outer"
        assert me().cancelling() == 0
        return told, endings(nursery)

    told, ended = run(main)
    assert ended == {"a": "cancelled"}
    assert told in {(1, 2): {"inner outer"}, (2, 1): {"none outer"}}.get(
        (int(inner), int(outer)), {"inner outer", "none outer"}
    )


@EVERY_LOOP
@pytest.mark.parametrize("turns", range(6))
def test_a_timeout_around_and_a_breach_at_once(run: Run, turns: int) -> None:
    """Whoever is first: the timeout is not lost, and nothing is left of the breach."""

    async def main() -> None:
        async with asyncio.timeout(10) as timeout:
            try:
                async with asyncio.timeout(None) as around:
                    async with open_branch_nursery() as nursery:
                        nursery.start_soon("a", cleans_up, [])
                        await asyncio.sleep(1)
                        nursery.breach("stop")
                        for _ in range(turns):
                            try:
                                await asyncio.sleep(0)
                            except asyncio.CancelledError:
                                break
                        around.reschedule(asyncio.get_running_loop().time())
            except (TimeoutError, Breached) as exc:
                told = type(exc)
        assert told is TimeoutError
        assert not timeout.expired()
        assert me().cancelling() == 0

    run(main)


@EVERY_LOOP
def test_a_timeout_around_fires_while_a_breached_step_is_drained(run: Run) -> None:
    """cpython #155433: what is from outside is not taken for one's own."""

    async def main() -> None:
        log: list[str] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("a", cleans_up, log)
                    await asyncio.sleep(1)
                    nursery.breach("stop")
                    await sleep_forever()
        assert me().cancelling() == 0
        assert log == ["clean"]
        assert endings(nursery) == {"a": "breached"}
        await asyncio.sleep(1)

    run(main)


@EVERY_LOOP
def test_in_a_task_group_that_fails(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []

        async def step() -> None:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", cleans_up, log)

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(step())
                group.create_task(fails(1, "sibling"))
        assert [str(exc) for exc in caught.value.exceptions] == ["sibling"]
        assert task.cancelled()
        assert log == ["clean"]

    run(main)


@EVERY_LOOP
def test_a_task_group_around_in_the_same_task(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails(1, "sibling"))
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("a", sleep_forever)
        assert [str(exc) for exc in caught.value.exceptions] == ["sibling"]
        assert endings(nursery) == {"a": "cancelled"}
        assert me().cancelling() == 0

    run(main)


@EVERY_LOOP
def test_a_task_group_in_the_body_that_fails(run: Run) -> None:
    """Its cancellation of its own parent is none from outside of the step."""

    async def main() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", asyncio.sleep, 3, "a")
            nursery.start_soon("b", sleep_forever)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails(1, "sibling"))
                    try:
                        await sleep_forever()
                    finally:
                        assert nursery.cancel("b", "why")
            except* ValueError:
                pass
        assert nursery.result["a"].output == "a"
        assert nursery.result["b"].reason == "why"

    run(main)


# ---------------------------------------------------------------- the body and its requests


@EVERY_LOOP
def test_a_cancellation_that_the_body_swallows_is_gone(run: Run) -> None:
    """As asyncio has it.  What fails afterwards is not lost for it."""

    async def step() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", fails, 3)
            with suppress(asyncio.CancelledError):
                await sleep_forever()

    async def main() -> None:
        task = asyncio.ensure_future(step())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(BranchErrors):
            await task

    run(main)


@EVERY_LOOP
def test_a_cancellation_that_the_block_was_entered_with_is_met_in_it(run: Run) -> None:
    """As Ctrl-C is, which asyncio makes a cancellation whatever code is running."""
    nurseries: list[BranchNursery] = []

    async def interrupted() -> None:
        me().cancel()
        async with open_branch_nursery() as nursery:
            nurseries.append(nursery)
            nursery.start_soon("a", sleep_forever)

    async def main() -> None:
        task = asyncio.create_task(interrupted())
        await asyncio.wait([task])
        assert task.cancelled()
        assert endings(nurseries[0])["a"] in ("cancelled", "skipped")

    run(main)


@EVERY_LOOP
def test_a_cancellation_by_a_signal_as_the_block_is_left_is_met_in_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes between two of the engine's own statements."""
    looks = AsyncioHost._is_busy
    signals = [me]

    def is_busy(host: AsyncioHost) -> bool:
        if signals:
            signals.pop()().cancel("by a signal")
        return looks(host)

    async def interrupted() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", sleep_forever)
            monkeypatch.setattr(AsyncioHost, "_is_busy", is_busy)

    async def main() -> None:
        task = asyncio.create_task(interrupted())
        await asyncio.wait([task])
        assert task.cancelled()
        assert not signals

    run(main)


@EVERY_LOOP
def test_a_cancellation_before_the_blocks_end_is_not_taken_for_swallowed(run: Run) -> None:
    async def step() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", sleep_forever)
            await asyncio.sleep(1)
            me().cancel()  # met at the next await, which is the block's own

    async def main() -> None:
        task = asyncio.ensure_future(step())
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


@EVERY_LOOP
@pytest.mark.parametrize("swallows", [False, True])
def test_a_body_that_a_breach_cancels(run: Run, swallows: bool) -> None:
    async def main() -> None:
        told = []
        with pytest.raises(Breached):
            async with open_branch_nursery() as nursery:

                async def a() -> None:
                    nursery.breach("by a")

                nursery.start_soon("a", a)
                try:
                    await sleep_forever()
                except asyncio.CancelledError as exc:
                    told.append(str(exc))
                    if not swallows:
                        raise
        assert told == ["by a"]
        assert me().cancelling() == 0
        await asyncio.sleep(1)

    run(main)


@EVERY_LOOP
@pytest.mark.parametrize("first", ["cancel", "fail"])
def test_a_cancellation_from_outside_and_a_failure_in_one_turn(run: Run, first: str) -> None:
    """The cancellation is not lost.  The failure is not lost either."""

    async def main() -> None:
        gate = asyncio.Event()

        async def a() -> None:
            await gate.wait()
            raise ValueError("a")

        async def step() -> None:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", a)
                nursery.start_soon("b", sleep_forever)

        task = asyncio.ensure_future(step())
        await asyncio.sleep(1)
        for what in ("cancel", "fail") if first == "cancel" else ("fail", "cancel"):
            if what == "cancel":
                task.cancel()
            else:
                gate.set()
        try:
            await task
        except asyncio.CancelledError:
            left = ["CancelledError"]
        except BaseExceptionGroup as group:
            left = [type(exc).__name__ for exc in group.exceptions]
        assert "CancelledError" in left
        assert left in (["CancelledError"], ["CancelledError", "ValueError"])

    run(main)


@EVERY_LOOP
def test_two_cancellations_from_outside(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []

        async def step() -> None:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", cleans_up, log)

        task = asyncio.ensure_future(step())
        await asyncio.sleep(1)
        task.cancel("first")
        await asyncio.sleep(1)
        task.cancel("second")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["clean"]
        assert task.cancelling() == 2

    run(main)


@EVERY_LOOP
def test_a_group_of_cancellations_leaves_as_one(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                async with open_branch_nursery():
                    try:
                        await sleep_forever()
                    except asyncio.CancelledError as exc:
                        raise BaseExceptionGroup("group", [exc]) from None

    run(main)


@EVERY_LOOP
def test_awaiting_what_was_cancelled_is_a_cancellation_of_the_body(run: Run) -> None:
    async def main() -> None:
        other = asyncio.ensure_future(sleep_forever())
        with pytest.raises(asyncio.CancelledError):
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", sleep_forever)
                await asyncio.sleep(1)
                other.cancel()
                await other
        assert endings(nursery) == {"a": "cancelled"}

    run(main)


@EVERY_LOOP
def test_what_comes_in_the_turn_in_which_a_nested_block_is_left_stalls_nothing(run: Run) -> None:
    async def nest() -> Any:
        async with open_branch_nursery() as nursery:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: nursery.start_soon("late", asyncio.sleep, 1, "late"))
        return nursery.result.outputs

    async def main() -> None:
        result = await run_branches({"a": nest}, 1)
        assert result.outputs == {"a": {"late": "late"}}

    run(main)


# ---------------------------------------------------------------- a branch and its task


@EVERY_LOOP
def test_a_task_cancelled_before_its_first_step_frees_its_place(run: Run) -> None:
    async def main() -> None:
        limiter = BranchLimiter(1)
        ran: list[str] = []

        async def note(key: str) -> None:
            ran.append(key)
            await asyncio.sleep(1)

        before = asyncio.all_tasks()
        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("a", note, "a")
            nursery.start_soon("b", note, "b")
            while not (mine := asyncio.all_tasks() - before):  # noqa: ASYNC110
                await asyncio.sleep(0)
            for task in mine:
                task.cancel()
        statuses = endings(nursery)
        assert statuses["b"] == "succeeded"
        if ran == ["b"]:
            assert nursery.result["a"].status is BranchStatus.SKIPPED
            assert nursery.result["a"].reason == "its task was cancelled"
        else:  # it had had its first step: an eager one
            assert statuses["a"] == "cancelled"
        assert limiter.borrowed_tokens == 0

    run(main)


@EVERY_LOOP
def test_a_branch_that_cancels_its_own_task_ends_alone(run: Run) -> None:
    async def main() -> None:
        async def a() -> None:
            await asyncio.sleep(1)
            me().cancel()
            await asyncio.sleep(1)

        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", a)
            nursery.start_soon("b", asyncio.sleep, 1, "b")
        assert nursery.result["a"].status is BranchStatus.CANCELLED
        assert nursery.result["a"].reason == "its task was cancelled"
        assert nursery.result["b"].output == "b"
        assert nursery.result.success

    run(main)


@EVERY_LOOP
def test_all_tasks_cancelled_by_someone_else(run: Run) -> None:
    """As the end of `asyncio.run` does."""

    async def main() -> None:
        async def step() -> None:
            await run_branches(dict.fromkeys("abc", sleep_forever), 2)

        task = asyncio.ensure_future(step())
        await asyncio.sleep(1)
        for each in asyncio.all_tasks() - {me()}:
            each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


@EVERY_LOOP
@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("how", ["cancel", "breach", "outside", "timeout"])
def test_a_stop_races_the_end_at_each_turn(run: Run, how: str, offset: int) -> None:
    """What the branch's own code saw is what it is said to have done."""

    async def main() -> None:
        limiter = BranchLimiter(1)
        saw: dict[str, str] = {}

        async def work(key: str) -> str:
            saw[key] = "started"
            try:
                for _ in range(4):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                saw[key] = "cancelled"
                raise
            saw[key] = "returned"
            return key

        nursery: BranchNursery | None = None

        async def step() -> None:
            nonlocal nursery
            async with open_branch_nursery(limiter) as nursery:
                nursery.start_soon("a", work, "a")
                nursery.start_soon("b", work, "b")
                if how in ("cancel", "breach"):
                    for _ in range(offset):
                        await asyncio.sleep(0)
                    if how == "cancel":
                        nursery.cancel("a", "why")
                    else:
                        nursery.breach("why")

        task = asyncio.ensure_future(step())
        if how == "outside":
            for _ in range(offset):
                await asyncio.sleep(0)
            task.cancel()
        if how == "timeout":
            async with asyncio.timeout(None) as timeout:
                for _ in range(offset):
                    await asyncio.sleep(0)
                timeout.reschedule(asyncio.get_running_loop().time() - 1)
                with pytest.raises((TimeoutError, asyncio.CancelledError)):
                    await task
                raise TimeoutError if timeout.expired() else asyncio.CancelledError
        await asyncio.gather(task, return_exceptions=True)
        if nursery is None:
            assert how == "outside"
            assert offset == 0
            return
        said = {
            None: "skipped",
            "returned": "succeeded",
            "cancelled": "breached" if how == "breach" else "cancelled",
        }
        assert endings(nursery) == {key: said[saw.get(key)] for key in "ab"}
        if how == "cancel":
            assert saw["b"] == "returned"
        assert limiter.borrowed_tokens == 0

    if how == "timeout":
        with pytest.raises(TimeoutError):
            run(main)
    else:
        run(main)


@EVERY_LOOP
def test_a_cancel_at_the_instant_of_a_timeout(run: Run) -> None:
    """Whichever is first, the branch is told."""

    async def main() -> None:
        async with open_branch_nursery(20, policy=COLLECT) as nursery:
            for key in range(20):
                nursery.start_soon(key, sleep_forever, timeout=1.0)
            await asyncio.sleep(1)
            for key in range(20):
                nursery.cancel(key)
        assert set(endings(nursery).values()) <= {"cancelled", "timed_out"}

    run(main)


@EVERY_LOOP
def test_a_breach_at_the_instant_of_a_timeout(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(Breached):
            async with open_branch_nursery(20, policy=COLLECT) as nursery:
                loop = asyncio.get_running_loop()
                loop.call_later(1, nursery.breach, "stop")
                for key in range(20):
                    nursery.start_soon(key, sleep_forever, timeout=1.0)
                await asyncio.sleep(0)
                loop.call_later(1, nursery.breach, "stop")
        assert set(endings(nursery).values()) <= {"breached", "timed_out"}

    run(main)


@EVERY_LOOP
def test_a_timeout_while_the_loop_was_held(run: Run) -> None:
    """The loop comes to both too late: the first instant counts, and all are told."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(StepTimeout):
            async with open_branch_nursery(policy=COLLECT, fail_after=2.0) as nursery:
                nursery.start_soon("early", sleep_forever, timeout=1.0)
                nursery.start_soon("late", sleep_forever, timeout=3.0)
                await asyncio.sleep(0.5)
                loop.now += 9
                await asyncio.sleep(0)
                nursery.breach("much later")
        assert endings(nursery) == {"early": "timed_out", "late": "timed_out"}
        assert nursery.result["early"].exception is not None
        assert nursery.result["late"].exception is None

    run(main)


def test_a_block_in_a_generator_that_its_task_abandoned_is_closed_by_the_loop() -> None:
    """The loop closes such a generator, in a task of its own, once nobody holds it."""

    async def main() -> list[str]:
        log: list[str] = []

        async def lines() -> AsyncIterator[int]:
            async with open_branch_nursery(1) as nursery:
                nursery.start_soon("a", cleans_up, log)
                await asyncio.sleep(1)
                yield 1

        async def consume() -> None:
            async for _ in lines():
                raise OSError("gone")

        task = asyncio.ensure_future(consume())
        await asyncio.wait([task])
        assert isinstance(task.exception(), OSError)
        del task
        gc.collect()
        await asyncio.sleep(9)
        return log

    assert on_virtual(main) == ["clean"]


@EVERY_LOOP
def test_nothing_starts_after_a_deadline_that_passed_in_this_turn(run: Run) -> None:
    """The loop has not come to its timers yet: the branch that would start next sees it first."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        async def holds_the_loop() -> None:
            loop.now += 9

        with pytest.raises(StepTimeout):
            async with open_branch_nursery(2, fail_after=2.0) as nursery:
                nursery.start_soon("holds", holds_the_loop)
                nursery.start_soon("late", sleep_forever)
        assert endings(nursery) == {"holds": "succeeded", "late": "skipped"}

    run(main)


@EVERY_LOOP
def test_a_swallowed_cancellation_is_told_again(run: Run) -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        told: list[float] = []

        async def stubborn() -> None:
            while len(told) < 3:
                try:
                    await sleep_forever()
                except asyncio.CancelledError:
                    told.append(loop.time() - start)
            await sleep_forever()

        start = loop.time()
        async with open_branch_nursery(redeliver=2.0) as nursery:
            nursery.start_soon("stubborn", stubborn)
            nursery.start_soon("good", sleep_forever)
            await asyncio.sleep(1)
            nursery.cancel("stubborn", "enough")
            nursery.cancel("good")
        assert endings(nursery) == {"stubborn": "cancelled", "good": "cancelled"}
        return told

    with pytest.warns(RuntimeWarning) as caught:
        assert run(main) == [1, 3, 5]
    assert len(caught) == 3
    for warning in caught:
        assert "'stubborn'" in str(warning.message)
        assert "enough" in str(warning.message)


def test_a_cancellation_is_told_again_even_where_warnings_are_errors() -> None:
    complaints: list[str] = []

    async def main() -> None:
        told = 0
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: complaints.append(str(context.get("exception")))
        )

        async def stubborn() -> None:
            nonlocal told
            try:
                await sleep_forever()
            except asyncio.CancelledError:
                told += 1
            await sleep_forever()

        async with open_branch_nursery(redeliver=2.0) as nursery:
            nursery.start_soon("stubborn", stubborn)
            await asyncio.sleep(1)
            nursery.cancel("stubborn")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
    assert len(complaints) <= 1


@EVERY_LOOP
def test_a_branch_that_ends_in_time_is_not_told_again(run: Run) -> None:
    async def main() -> None:
        async with open_branch_nursery(redeliver=5.0) as nursery:
            nursery.start_soon("a", cleans_up, [])
            await asyncio.sleep(1)
            nursery.cancel("a")
        await asyncio.sleep(20)

    run(main)


@EVERY_LOOP
def test_a_breached_step_tells_again_too(run: Run) -> None:
    async def main() -> None:
        async def stubborn() -> None:
            with suppress(asyncio.CancelledError):
                await sleep_forever()
            await sleep_forever()

        with pytest.raises(Breached):
            async with open_branch_nursery(redeliver=2.0) as nursery:
                nursery.start_soon("a", stubborn)
                await asyncio.sleep(1)
                nursery.breach("stop")

    with pytest.warns(RuntimeWarning, match="'a'"):
        run(main)


def test_a_breach_reaches_all_branches_within_a_turn() -> None:
    async def main() -> None:
        turns: list[int] = []

        async def branch() -> None:
            try:
                await sleep_forever()
            finally:
                turns.append(virtual().turns)

        with pytest.raises(Breached):
            async with open_branch_nursery(50) as nursery:
                for key in range(50):
                    nursery.start_soon(key, branch)
                await asyncio.sleep(1)
                start = virtual().turns
                nursery.breach("stop")
        assert len(turns) == 50
        assert max(turns) - start <= 1

    run_asyncio(main)


def test_the_exits_of_a_step_take_few_turns() -> None:
    """A step that has ended is left in a bounded number of turns, however many branches it had."""

    async def main() -> None:
        counts = []
        for number in (1, 100):
            start = virtual().turns
            await run_branches(dict.fromkeys(range(number), sleep_zero), math.inf)
            counts.append(virtual().turns - start)
        assert counts[0] == counts[1] <= 8

    async def sleep_zero() -> None:
        await asyncio.sleep(0)

    run_asyncio(main)


# ---------------------------------------------------------------- factories, names, debug mode


def test_a_task_factory_that_takes_no_more_than_it_must() -> None:
    """(uvloop gives it a `context` in any case.)"""
    made: list[asyncio.Task[Any]] = []

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any]
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop)
        made.append(task)
        return task

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)  # type: ignore[arg-type,unused-ignore]
        async with open_branch_nursery(name="step") as nursery:
            nursery.start_soon("a", asyncio.sleep, 1)
            nursery.start_soon("b", sleep_forever)
            await asyncio.sleep(2)
            nursery.cancel("b")
        assert endings(nursery) == {"a": "succeeded", "b": "cancelled"}

    run_asyncio(main)
    assert [task.get_name() for task in made[:2]] == ["step/a", "step/b"]


def test_a_task_factory_of_tasks_written_in_python() -> None:
    python_task: Any = asyncio.tasks._PyTask  # type: ignore[attr-defined]

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(
            lambda loop, coro, **_: python_task(coro, loop=loop)
        )
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", sleep_forever)
            nursery.start_soon("b", asyncio.sleep, 1)
            await asyncio.sleep(2)
            assert nursery.cancel("a")
        assert endings(nursery) == {"a": "cancelled", "b": "succeeded"}

    run_asyncio(main)


def test_a_task_factory_that_fails_is_not_a_hang() -> None:
    """It breaks the loop's promise; the block must end all the same, and say so."""
    broken = False

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **_: Any
    ) -> asyncio.Task[Any]:
        if broken:
            coro.close()
            raise LookupError("factory")
        return asyncio.Task(coro, loop=loop)

    async def main() -> None:
        nonlocal broken
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        asyncio.get_running_loop().set_task_factory(factory)  # type: ignore[arg-type,unused-ignore]
        with pytest.raises(BaseException, match="errors in 'step'") as caught:
            async with open_branch_nursery(name="step") as nursery:
                broken = True
                nursery.start_soon("a", asyncio.sleep, 1)
        broken = False
        assert isinstance(caught.value, BranchErrors)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


@EVERY_LOOP
def test_in_debug_mode(run: Run) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        result = await run_branches({key: lambda: asyncio.sleep(1, 7) for key in "abc"}, 2)
        assert result.outputs == {"a": 7, "b": 7, "c": 7}

    run(main)


@needs_eager
def test_an_eager_branch_that_never_waits_starts_in_the_turn_of_its_admission() -> None:
    async def main() -> None:
        async def at_once(value: int) -> int:
            return value

        before = asyncio.all_tasks()
        async with open_branch_nursery(2) as nursery:
            for key in range(5):
                nursery.start_soon(key, at_once, key)
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
        assert nursery.result.outputs == {key: key for key in range(5)}
        assert nursery.result.completion_order == tuple(range(5))

    run_asyncio(main, eager=True)


@needs_eager
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_an_eager_first_step_is_not_a_hang(kind: type[BaseException]) -> None:
    log: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(
            asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        )

        async def exits() -> None:
            raise kind

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", cleans_up, log)
            nursery.start_soon("b", exits)
            await sleep_forever()

    with pytest.raises(kind), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert log == ["clean"]


@EVERY_LOOP
def test_a_step_in_a_loop_callback_is_refused_and_sync_calls_are_not(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", asyncio.sleep, 2)
            nursery.start_soon("b", asyncio.sleep, 1)
            nursery.start_soon("c", asyncio.sleep, 1)

            def act() -> None:
                nursery["c"].priority = 5
                nursery.start_soon("d", asyncio.sleep, 1)
                nursery.cancel("b")

            loop.call_later(1, act)
            await asyncio.sleep(1.5)
        assert endings(nursery)["b"] == "skipped"
        assert nursery.result.completion_order == ("a", "c", "d")

    run(main)


@needs_eager
def test_an_eager_branch_may_stop_one_that_was_granted_just_before_it() -> None:
    async def main() -> None:
        async def stop() -> None:
            nursery.breach("enough")

        with pytest.raises(Breached) as caught:
            async with open_branch_nursery(2) as nursery:
                nursery.start_soon("heavy", asyncio.sleep, 0, weight=2)
                nursery.start_soon("next", sleep_forever)
                nursery.start_soon("stop", stop)
        result: Any = caught.value.result
        assert {key: ended.status.value for key, ended in result.items()} == {
            "heavy": "succeeded",
            "next": "skipped",
            "stop": "succeeded",
        }
        assert nursery.limiter.borrowed_tokens == 0

    on_eager(main)


@EVERY_LOOP
def test_branches_that_would_wait_for_each_other_at_once(run: Run) -> None:
    """An eager one begins in the midst of the other's wait, which has lent it the token."""
    refused: list[str] = []

    async def wait_for(key: str) -> None:
        try:
            await nurseries[0][key].wait()
        except RuntimeError as error:
            refused.append(str(error))

    async def main() -> None:
        async with open_branch_nursery(1) as nursery:
            nurseries.append(nursery)
            nursery.start_soon("a", wait_for, "b")
            nursery.start_soon("b", wait_for, "a")

    nurseries: list[BranchNursery] = []
    run(main)
    assert refused == ["Branch.wait() would wait for ever: 'a' waits for 'b' waits for 'a'"]


# ---------------------------------------------------------------- exits


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("loop_factory", [VirtualLoop, VirtualUvloop])
def test_an_exit_goes_through_the_loop(
    kind: type[BaseException], loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    log: list[str] = []
    left: list[str] = []

    async def main() -> None:
        async def exits() -> None:
            await asyncio.sleep(1)
            raise kind

        try:
            async with open_branch_nursery(policy=COLLECT) as nursery:
                nursery.start_soon("a", cleans_up, log)
                nursery.start_soon("b", exits)
        except BaseException as exc:
            left.append(type(exc).__name__)
            raise
        finally:
            left.append(endings(nursery)["a"])

    with pytest.raises(kind), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert log == ["clean"]
    assert left in (["CancelledError", "cancelled"], [kind.__name__, "cancelled"])


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_block_never_ends_as_if_nothing_was_after_an_exit(kind: type[BaseException]) -> None:
    """Where someone catches it outside and lets the loop go on: as TaskGroup does."""

    async def main() -> str:
        async def exits() -> None:
            raise kind

        try:
            await run_branches({"a": exits, "b": sleep_forever})
        except kind:
            return "exit"
        return "as if nothing was"

    loop = VirtualLoop()
    try:
        task = loop.create_task(main())
        with pytest.raises(kind):
            loop.run_until_complete(task)
        # Or main's own raise passes through the loop again.
        with suppress(kind):
            assert loop.run_until_complete(task) == "exit"
    finally:
        loop.close()


@EVERY_LOOP
def test_an_exit_in_the_body_waits_for_the_branches(run: Run) -> None:
    log: list[str] = []

    async def main() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", cleans_up, log)
            await asyncio.sleep(1)
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 3
    assert log == ["clean"]


class Quit(BaseException):
    pass


@EVERY_LOOP
@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_no_exception_is_not_lost(run: Run, grouped: bool) -> None:
    async def main() -> None:
        async def quits() -> None:
            await asyncio.sleep(1)
            raise BaseExceptionGroup("group", [Quit(), ValueError()]) if grouped else Quit

        await run_branches({"a": quits, "b": sleep_forever}, policy=COLLECT)

    with pytest.raises((Quit, BaseExceptionGroup)) as caught:
        run(main)
    exc: BaseException = caught.value
    if isinstance(exc, BaseExceptionGroup):
        assert exc.subgroup(Quit) is not None


SCRIPT = """
    import asyncio, sys, uvloop
    from trio_parallel_steps import open_branch_nursery

    async def branch(key):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            print(key, "clean", flush=True)

    async def main():
        {factory}
        try:
            async with open_branch_nursery({limit}) as nursery:
                for key in "abc":
                    nursery.start_soon(key, branch, key)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                print("ready", flush=True)
                {body}
        finally:
            print(*[r.status.value for r in nursery.result.values()], flush=True)

    with asyncio.Runner({runner}) as runner:
        try:
            runner.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.mark.parametrize("body", ["pass", "await asyncio.Event().wait()"])
@pytest.mark.parametrize(
    ("runner", "factory"),
    [
        ("", ""),
        ("loop_factory=uvloop.new_event_loop", ""),
        pytest.param(
            "",
            "asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)",
            marks=needs_eager,
        ),
    ],
    ids=["asyncio", "uvloop", "eager"],
)
def test_ctrl_c(runner: str, factory: str, body: str) -> None:
    script = textwrap.dedent(SCRIPT).format(runner=runner, factory=factory, body=body, limit=2)
    root = Path(trio_parallel_steps.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(root)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate()
    lines = said.splitlines()
    assert sorted(lines[:2]) == ["a clean", "b clean"]
    assert lines[2:] == ["cancelled cancelled skipped", "interrupted"]
    assert child.returncode == 0


# ---------------------------------------------------------------- no litter


async def _all_well() -> None:
    await run_branches({key: lambda: asyncio.sleep(1) for key in "abc"}, 2)


async def _a_failure() -> None:
    with suppress(BranchErrors):
        await run_branches({"a": fails, "b": sleep_forever}, 2)


async def _collected_failures() -> None:
    await run_branches({"a": fails, "b": fails}, 2, policy=COLLECT)


async def _a_breach() -> None:
    try:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", sleep_forever)
            await asyncio.sleep(1)
            nursery.breach("stop")
    except Breached:
        pass


async def _a_deadline() -> None:
    with suppress(StepTimeout):
        await run_branches({"a": sleep_forever}, fail_after=1.0)


async def _own_timeouts() -> None:
    await run_branches({"a": sleep_forever}, policy=COLLECT, branch_timeout=1.0)


async def _outside() -> None:
    try:
        async with asyncio.timeout(1):
            await run_branches({"a": sleep_forever})
    except TimeoutError:
        pass


async def _a_satisfied_policy() -> None:
    await run_branches({"a": lambda: asyncio.sleep(1), "b": sleep_forever}, policy=FIRST_SUCCESS)


async def _told_again() -> None:
    async with open_branch_nursery(redeliver=9.0) as nursery:
        nursery.start_soon("a", cleans_up, [])
        await asyncio.sleep(1)
        nursery.cancel("a")


async def _threads() -> None:
    await run_branches({key: in_thread(lambda: None) for key in "ab"})


async def _the_body_raises() -> None:
    try:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", sleep_forever)
            await asyncio.sleep(1)
            raise LookupError
    except BranchErrors:
        pass


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(on_virtual, id="asyncio"),  # not uvloop's: our own frames would be in it
        pytest.param(on_eager, id="eager", marks=needs_eager),
    ],
)
@pytest.mark.parametrize(
    "program",
    [
        _all_well,
        _a_failure,
        _collected_failures,
        _a_breach,
        _a_deadline,
        _own_timeouts,
        _outside,
        _a_satisfied_policy,
        _told_again,
        _threads,
        _the_body_raises,
    ],
)
def test_no_cycles_and_no_complaints(run: Run, program: Main) -> None:
    async def main() -> list[Any]:
        await program()  # what is made once, for the loop, has been made
        with garbage() as found:
            await program()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return found

    assert run(main) == []


def test_errors_that_nobody_looks_at_are_not_reported_as_lost() -> None:
    async def main() -> None:
        await run_branches(dict.fromkeys(range(9), fails), 3, policy=COLLECT)
        with suppress(BranchErrors):
            await run_branches(dict.fromkeys(range(9), fails), 3)
        try:
            async with asyncio.timeout(1):
                async with open_branch_nursery(policy=COLLECT) as nursery:
                    for key in range(9):
                        nursery.start_soon(key, raises_when_cancelled)
        except TimeoutError:
            pass
        del nursery

    async def raises_when_cancelled() -> None:
        try:
            await sleep_forever()
        finally:
            raise ValueError

    run_asyncio(main, collect=True)


def test_a_traceback_begins_in_the_users_code() -> None:
    async def main() -> None:
        result = await run_branches({"a": fails}, policy=COLLECT)
        exc = result["a"].exception
        assert exc is not None
        assert exc.__traceback__ is not None
        assert exc.__traceback__.tb_frame.f_code is fails.__code__

    run_asyncio(main)


def test_nothing_of_a_loop_outlives_it() -> None:
    """The threads of a loop end once it is gone."""
    before = set(threading.enumerate())

    async def main() -> None:
        await run_branches({key: in_thread(lambda: None) for key in "abc"})

    run_asyncio(main)
    gc.collect()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join()  # hangs, if it is kept


# ---------------------------------------------------------------- steps that outlive their branch


@EVERY_LOOP
@pytest.mark.parametrize("tries", [1, 2])
def test_a_step_that_outlives_its_branch_or_its_try_goes_on(run: Run, tries: int) -> None:
    limiter = BranchLimiter(3)

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        left: list[BranchNursery] = []
        borrowed = []

        async def submit_late(inner: BranchNursery) -> None:
            await asyncio.sleep(2)
            inner.start_soon("late", asyncio.sleep, 0)
            await inner["x"].wait()
            inner.start_soon("at the last moment", asyncio.sleep, 1)
            await asyncio.sleep(0.5)
            borrowed.append(limiter.borrowed_tokens)

        async def leave_behind() -> None:
            async with open_branch_nursery(limiter) as inner:
                left.append(inner)
                inner.start_soon("x", asyncio.sleep, 3)
                tasks.append(asyncio.create_task(submit_late(inner)))

        async def work() -> None:
            if left:
                await asyncio.sleep(4)
                return
            tasks.append(asyncio.create_task(leave_behind()))
            await asyncio.sleep(1)
            if tries == 2:
                raise OSError

        async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
            retry = Retry(on=OSError, wait_initial=0.5, wait_jitter=0)
            nursery.start_soon("a", work, retry=retry)
        await asyncio.gather(*tasks)
        assert endings(nursery) == {"a": "succeeded"}
        assert nursery.result["a"].attempts == tries
        assert endings(left[0]) == dict.fromkeys(["x", "late", "at the last moment"], "succeeded")
        assert borrowed == [tries]  # the next try has lent nothing to it
        assert limiter.borrowed_tokens == 0

    run(main)


@EVERY_LOOP
def test_a_timeout_in_a_branch_that_waits_for_its_token_goes_through_with_it(run: Run) -> None:
    limiter = BranchLimiter(1)

    async def main() -> None:
        async def nest() -> float:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2), open_branch_nursery(BranchLimiter(1)) as inner:
                    inner.start_soon("x", asyncio.sleep, 1)
            assert endings(inner) == {"x": "succeeded"}
            assert limiter.borrowed_tokens == 1
            return asyncio.get_running_loop().time()

        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("a", nest)
            nursery.start_soon("b", asyncio.sleep, 5)
        assert nursery.result.outputs["a"] == 5

    run(main)


# ---------------------------------------------------------------- threads and loops


def test_calls_from_another_thread_are_refused() -> None:
    async def main() -> None:
        limiter = BranchLimiter(2)
        told: list[str] = []

        async with open_branch_nursery(limiter) as nursery:
            branch = nursery.start_soon("a", asyncio.sleep, 1)

            def calls() -> None:
                for call in (
                    lambda: nursery.start_soon("b", sleep_forever),
                    lambda: nursery.cancel("a"),
                    lambda: branch.cancel(),
                    lambda: nursery.cancel_where(lambda key: True),
                    lambda: nursery.breach("x"),
                    lambda: nursery.pause("x"),
                    lambda: nursery.resume(),
                    lambda: nursery.completed(),
                    lambda: limiter.pause("x"),
                    lambda: setattr(limiter, "total_tokens", 5),
                ):
                    with pytest.raises(RuntimeError, match="call_soon_threadsafe") as caught:
                        call()
                    told.append(str(caught.value))

            thread = threading.Thread(target=calls)
            thread.start()
            thread.join()
        assert len(told) == 10
        assert endings(nursery) == {"a": "succeeded"}

    run_asyncio(main)


def test_calls_from_another_loop_in_the_same_thread_are_refused() -> None:
    """It would be told to a loop that does not run."""
    found: list[Any] = []

    async def main() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", asyncio.sleep, 1)
            found.append(nursery)
            await asyncio.sleep(5)

    async def other() -> None:
        with pytest.raises(RuntimeError):
            found[0].start_soon("b", sleep_forever)
        with pytest.raises(RuntimeError):
            found[0].breach("x")

    one = VirtualLoop()
    try:
        task = one.create_task(main())
        one.run_until_complete(_started(found))
        run_asyncio(other)
        one.run_until_complete(task)
    finally:
        one.close()


async def _started(found: list[Any]) -> None:
    while not found:  # noqa: ASYNC110
        await asyncio.sleep(0)


def test_a_loop_may_move_to_another_thread() -> None:
    """It runs in one thread at a time, not in one for ever."""
    loop = VirtualLoop()

    async def main() -> Any:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", asyncio.sleep, 1, 7)
        return nursery.result.outputs

    results: list[Any] = []

    def elsewhere() -> None:
        try:
            results.append(loop.run_until_complete(main()))
        except BaseException as exc:
            results.append(exc)

    try:
        assert loop.run_until_complete(main()) == {"a": 7}
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    finally:
        loop.close()
    assert results == [{"a": 7}]


def test_a_limiter_is_of_one_loop_while_in_use() -> None:
    limiter = BranchLimiter(1)
    other_loop = VirtualLoop()

    async def other() -> None:
        with pytest.raises(RuntimeError, match="in use by another run"):
            async with open_branch_nursery(limiter):
                pass

    async def main() -> None:
        async with limiter:
            await in_thread(lambda: other_loop.run_until_complete(other()))()

    async def later() -> None:
        result = await run_branches({"a": lambda: asyncio.sleep(1, 7)}, limiter)
        assert result.outputs == {"a": 7}

    try:
        run_asyncio(main)
    finally:
        other_loop.close()
    run_asyncio(later)
    assert limiter.borrowed_tokens == 0


# ---------------------------------------------------------------- loops that round


class RoundingLoop(VirtualLoop):
    """Calls up to half a millisecond early, as uvloop does."""

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return super().call_at(round(when, 3), callback, *args, context=context)


def test_a_deadline_is_one_even_if_the_loop_calls_early() -> None:
    async def main() -> None:
        with pytest.raises(StepTimeout):
            await run_branches({"a": sleep_forever}, fail_after=1.0004)
        result = await run_branches({"a": sleep_forever}, move_on_after=1.0004)
        assert result.stop_reason == "step timed out after 1.0004 s"
        assert result["a"].status is BranchStatus.TIMED_OUT
        result = await run_branches({"a": sleep_forever}, branch_timeout=1.0004, policy=COLLECT)
        assert result["a"].status is BranchStatus.TIMED_OUT

    run_asyncio(main, loop_factory=RoundingLoop)


# ---------------------------------------------------------------- real loops


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_deadline_is_one_however_the_loop_rounds(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop rounds to milliseconds, and may call early."""

    async def main() -> None:
        for i in range(40):
            timeout = 0.001 + i * 0.00013
            with pytest.raises(StepTimeout):
                await run_branches({"a": sleep_forever}, fail_after=timeout)
            result = await run_branches({"a": sleep_forever}, move_on_after=timeout)
            assert result.stop_reason == f"step timed out after {timeout} s"
            result = await run_branches(
                {"a": sleep_forever}, branch_timeout=timeout, policy=COLLECT
            )
            assert result["a"].status is BranchStatus.TIMED_OUT

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_threads_on_a_real_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        gate = threading.Barrier(3)  # all three at once, or a hang

        def meet(value: int) -> int:
            gate.wait()
            return value

        async with open_branch_nursery(3) as nursery:
            for key in range(3):
                nursery.start_soon(key, in_thread(meet), key)
        assert nursery.result.outputs == {0: 0, 1: 1, 2: 2}

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_thread_goes_on_when_its_caller_is_cancelled_and_the_slot_waits_for_it() -> None:
    async def main() -> None:
        limiter = BranchLimiter(1)
        gate, started = threading.Event(), threading.Event()

        def work() -> str:
            started.set()
            gate.wait()
            return "through"

        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("a", in_thread(work))
            nursery.start_soon("b", asyncio.sleep, 0)
            while not started.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            nursery.cancel("a", "why")
            for _ in range(5):
                await asyncio.sleep(0)
            assert limiter.borrowed_tokens == 1
            assert nursery["b"].status is BranchStatus.QUEUED
            gate.set()
        assert nursery.result["a"].output == "through"

    with asyncio.Runner() as runner:
        runner.run(main())


def test_a_timeout_of_ones_own_around_a_thread_goes_before_its_value() -> None:
    async def main() -> None:
        gate, started = threading.Event(), threading.Event()
        scope = asyncio.timeout(None)

        def work() -> None:
            started.set()
            gate.wait()

        async def gives_up() -> str:
            with pytest.raises(TimeoutError):
                async with scope:
                    await in_thread(work)()
            await asyncio.sleep(0)
            return "went on"

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", gives_up)
            while not started.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            scope.reschedule(asyncio.get_running_loop().time())
            while not scope.expired():  # noqa: ASYNC110
                await asyncio.sleep(0)
            gate.set()
        assert nursery.result["a"].output == "went on"

    with asyncio.Runner() as runner:
        runner.run(main())


def test_an_observer_on_asyncio_sees_no_branch_of_another() -> None:
    """What it is told, it is told outside any branch or in the branch that it is told of."""
    inside: list[tuple[Any, Any]] = []

    class Looks(abc.Observer):
        def branch_ended(self, branch: Any, result: Any) -> None:
            with suppress(RuntimeError):
                inside.append((branch.key, current_branch().key))

    async def main() -> None:
        async with open_branch_nursery(1, observers=[Looks()]) as nursery:

            async def a() -> None:
                nursery.start_soon("b", asyncio.sleep, 1)
                await asyncio.sleep(0)

            nursery.start_soon("a", a)

    run_asyncio(main)
    assert all(told == current for told, current in inside)


def test_a_stall_of_the_users_own_making_is_seen_by_the_tests() -> None:
    """The loop of these tests: nothing scheduled and nothing ready is an error, not a hang."""
    for factory in (VirtualLoop, VirtualUvloop):
        with pytest.raises(Stalled):
            run_asyncio(sleep_forever, loop_factory=factory)


assert hasattr(asyncio, "eager_task_factory") == EAGER
