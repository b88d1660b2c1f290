"""Steps inside anyio's task groups and scopes, and branches written with anyio.

What spins is counted in turns of the loop and in cancellations told, never in seconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from drivers import Complaints, run_asyncio
from loops import VirtualLoop
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breached,
    in_thread,
    open_branch_nursery,
    run_branches,
)

Main = Callable[[], Awaitable[Any]]


def on_trio(program: Main) -> Any:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(program, backend="trio", backend_options={"clock": clock})


def on_asyncio(program: Main) -> Any:
    return run_asyncio(program)


EVERY_BACKEND = pytest.mark.parametrize(
    "run", [pytest.param(on_trio, id="trio"), pytest.param(on_asyncio, id="asyncio")]
)


def statuses(nursery: BranchNursery) -> dict[Any, str]:
    return {key: ended.status.value for key, ended in nursery.result.items()}


async def cleans_up(log: list[str], seconds: float = 50) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        log.append("clean")


@EVERY_BACKEND
@pytest.mark.parametrize("waits_in", ["block", "body"])
def test_a_scope_around_cancels_the_step(run: Any, waits_in: str) -> None:
    async def main() -> None:
        log: list[str] = []
        with anyio.move_on_after(1) as scope:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", cleans_up, log)
                if waits_in == "body":
                    await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert log == ["clean"]
        assert statuses(nursery) == {"a": "cancelled"}
        assert nursery.result["a"].reason == "cancelled from outside"
        await anyio.sleep(1)  # nothing is left of it

    run(main)


@EVERY_BACKEND
def test_a_group_around_is_cancelled(run: Any) -> None:
    """As the endpoint of a web framework is, when its client goes away."""

    async def main() -> None:
        log: list[str] = []
        seen: list[dict[Any, str]] = []

        async def endpoint() -> None:
            try:
                async with open_branch_nursery(2) as nursery:
                    for key in "abc":
                        nursery.start_soon(key, cleans_up, log)
            finally:
                seen.append(statuses(nursery))

        async with anyio.create_task_group() as group:
            group.start_soon(endpoint)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        assert log == ["clean", "clean"]
        assert seen == [{"a": "cancelled", "b": "cancelled", "c": "skipped"}]

    run(main)


@EVERY_BACKEND
def test_a_sibling_in_the_group_fails(run: Any) -> None:
    async def main() -> None:
        log: list[str] = []

        async def fails() -> None:
            await anyio.sleep(1)
            raise ValueError("sibling")

        async def step() -> None:
            await run_branches({"a": lambda: cleans_up(log)})

        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(step)
                group.start_soon(fails)
        assert [str(exc) for exc in caught.value.exceptions] == ["sibling"]
        assert log == ["clean"]

    run(main)


@EVERY_BACKEND
def test_a_step_fails_in_a_group(run: Any) -> None:
    async def main() -> None:
        async def fails() -> None:
            await anyio.sleep(1)
            raise ValueError("branch")

        async def step() -> None:
            await run_branches({"a": fails})

        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(step)
                group.start_soon(anyio.sleep_forever)
        assert caught.group_contains(BranchErrors, depth=1)

    run(main)


@EVERY_BACKEND
def test_a_breach_inside_a_scope_is_not_the_scopes(run: Any) -> None:
    async def main() -> None:
        with anyio.move_on_after(9) as scope:
            with pytest.raises(Breached):
                async with open_branch_nursery() as nursery:
                    nursery.start_soon("a", anyio.sleep_forever)
                    await anyio.sleep(1)
                    nursery.breach("stop")
                    await anyio.sleep_forever()
            await anyio.sleep(1)
        assert not scope.cancel_called
        assert not scope.cancelled_caught

    run(main)


@EVERY_BACKEND
def test_a_scope_around_that_ends_while_a_breached_step_is_drained(run: Any) -> None:
    async def main() -> None:
        log: list[str] = []
        with anyio.move_on_after(2) as scope:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", cleans_up, log)
                await anyio.sleep(1)
                nursery.breach("stop")
        assert scope.cancelled_caught
        assert statuses(nursery) == {"a": "breached"}
        assert log == ["clean"]

    run(main)


@EVERY_BACKEND
def test_branches_written_with_anyio(run: Any) -> None:
    async def main() -> None:
        async def impatient() -> str:
            with anyio.move_on_after(1):
                await anyio.sleep_forever()
            return "in time"

        async def failing_deadline() -> None:
            with anyio.fail_after(1):
                await anyio.sleep_forever()

        async def talks() -> list[int]:
            send, receive = anyio.create_memory_object_stream[int]()
            got: list[int] = []

            async def sends() -> None:
                async with send:
                    for i in range(3):
                        await send.send(i)

            async with receive, anyio.create_task_group() as group:
                group.start_soon(sends)
                async for i in receive:
                    got.append(i)
            return got

        async def group_fails() -> None:
            async def fails() -> None:
                raise ValueError("in a group")

            async with anyio.create_task_group() as group:
                group.start_soon(fails)
                group.start_soon(anyio.sleep_forever)

        async def thread() -> int:
            loop = None if run is on_trio else virtual()
            if loop is not None:  # anyio's threads are none that the loop could know of
                loop.threads += 1
            try:
                return await anyio.to_thread.run_sync(lambda: 7)
            finally:
                if loop is not None:
                    loop.threads -= 1

        result = await run_branches(
            {
                "impatient": impatient,
                "failing_deadline": failing_deadline,
                "talks": talks,
                "group_fails": group_fails,
                "thread": thread,
            },
            2,
            policy=COLLECT,
        )
        assert result.outputs == {"impatient": "in time", "talks": [0, 1, 2], "thread": 7}
        assert isinstance(result["failing_deadline"].exception, TimeoutError)
        error = result["group_fails"].exception
        assert isinstance(error, ExceptionGroup)
        assert [str(exc) for exc in error.exceptions] == ["in a group"]

    run(main)


@EVERY_BACKEND
def test_a_branch_with_a_group_of_its_own_is_cancelled_whole(run: Any) -> None:
    async def main() -> None:
        log: list[str] = []

        async def branch() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(cleans_up, log)
                group.start_soon(cleans_up, log)

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", branch)
            await anyio.sleep(1)
            nursery.cancel("a", "why")
        assert log == ["clean", "clean"]
        assert nursery.result["a"].reason == "why"

    run(main)


@EVERY_BACKEND
def test_a_shielded_step_in_a_cancelled_scope(run: Any) -> None:
    """Cleanup that fans out."""

    async def main() -> None:
        outputs: dict[str, str] = {}
        with anyio.move_on_after(1) as scope:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):

                    async def close(key: str) -> str:
                        await anyio.sleep(1)
                        return key

                    result = await run_branches({key: partial(close, key) for key in "ab"}, 1)
                    outputs.update(result.outputs)
                    with pytest.raises(Breached):
                        async with open_branch_nursery() as nursery:
                            nursery.start_soon("c", anyio.sleep_forever)
                            await anyio.sleep(1)
                            nursery.breach("stop")
        assert scope.cancelled_caught
        assert outputs == {"a": "a", "b": "b"}

    run(main)


@EVERY_BACKEND
def test_a_step_opened_in_a_cancelled_scope(run: Any) -> None:
    async def main() -> None:
        ran: list[str] = []

        async def a() -> None:
            ran.append("a")
            await anyio.sleep_forever()

        with anyio.CancelScope() as scope:
            scope.cancel()
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", a)
        assert scope.cancelled_caught
        assert statuses(nursery) in ({"a": "skipped"}, {"a": "cancelled"})

    run(main)


@EVERY_BACKEND
def test_the_bodys_own_scope_does_not_stop_the_step(run: Any) -> None:
    async def main() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", anyio.sleep_forever)
            nursery.start_soon("b", anyio.sleep, 5)
            with anyio.move_on_after(1):
                try:
                    await anyio.sleep_forever()
                finally:
                    assert nursery.cancel("a", "why")
            await anyio.sleep(1)
        assert statuses(nursery) == {"a": "cancelled", "b": "succeeded"}
        assert nursery.result["a"].reason == "why"

    run(main)


# ---------------------------------------------------------------- told once, without spinning


class CountedTask(asyncio.Task[Any]):
    """Counts how often it is told to stop."""

    told = 0

    def cancel(self, msg: Any | None = None) -> bool:
        self.told += 1
        return super().cancel(msg)


def counted(
    loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
) -> CountedTask:  # a task factory
    return CountedTask(coro, loop=loop, **options)


def virtual() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


@pytest.mark.parametrize("seconds", [0, 1, 50])
@pytest.mark.parametrize("way", ["sleep", "turns"])
def test_a_host_that_cancels_each_turn_is_met_once(seconds: int, way: str) -> None:
    """However long the branches clean up, in time or in turns."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(counted)  # type: ignore[arg-type,unused-ignore]
        tasks: list[CountedTask] = []

        async def branch() -> None:
            task = asyncio.current_task()
            assert isinstance(task, CountedTask)
            tasks.append(task)
            try:
                await asyncio.Event().wait()
            finally:
                if way == "sleep":
                    await asyncio.sleep(seconds)
                else:
                    for _ in range(seconds):
                        await asyncio.sleep(0)

        async def host() -> None:
            task = asyncio.current_task()
            assert isinstance(task, CountedTask)
            tasks.append(task)
            await run_branches(dict.fromkeys("abc", branch))

        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await anyio.sleep(1)
            start = virtual().turns
            group.cancel_scope.cancel()
        turns = virtual().turns - start
        assert turns <= 12 + (seconds if way == "turns" else 0)
        assert [task.told for task in tasks[1:]] == [1, 1, 1]
        assert tasks[0].told <= 3

    run_asyncio(main)


def test_a_body_that_cleans_up_is_cancelled_as_anyio_has_it_and_then_the_drain_does_not_spin() -> (
    None
):
    async def main() -> None:
        async def branch() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(50)

        with anyio.move_on_after(1) as scope:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", branch)
                try:
                    await anyio.sleep_forever()
                finally:
                    start = virtual().turns
        assert scope.cancelled_caught
        assert virtual().turns - start <= 12
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_asyncio(main)


def test_a_thread_in_a_cancelled_scope_is_waited_for_without_spinning() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(counted)  # type: ignore[arg-type,unused-ignore]
        gate, started = threading.Event(), threading.Event()
        host: list[CountedTask] = []

        def work() -> None:
            started.set()
            gate.wait()

        async def waits() -> None:
            task = asyncio.current_task()
            assert isinstance(task, CountedTask)
            host.append(task)
            await in_thread(work)()

        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            while not started.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(50):
                    await asyncio.sleep(0)
            gate.set()
        assert host[0].told <= 3

    run_asyncio(main)


def test_a_branch_that_cancels_a_thread_by_a_scope_of_its_own_does_not_spin() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(counted)  # type: ignore[arg-type,unused-ignore]
        gate, started = threading.Event(), threading.Event()
        host: list[CountedTask] = []

        def work() -> None:
            started.set()
            gate.wait()

        scope = anyio.CancelScope()

        async def branch() -> str:
            task = asyncio.current_task()
            assert isinstance(task, CountedTask)
            host.append(task)
            with scope:
                await in_thread(work)()
            return "went on"

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", branch)
            while not started.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            scope.cancel()
            for _ in range(50):
                await asyncio.sleep(0)
            gate.set()
        assert nursery.result["a"].output == "went on"
        assert host[0].told <= 3

    run_asyncio(main)


def test_a_limiters_queue_in_a_cancelled_scope_is_left_once() -> None:
    async def main() -> None:
        limiter = BranchLimiter(1)
        async with limiter:
            async with anyio.create_task_group() as group:

                async def enters() -> None:
                    async with limiter:
                        raise AssertionError

                group.start_soon(enters)
                await anyio.sleep(1)
                start = virtual().turns
                group.cancel_scope.cancel()
            assert virtual().turns - start <= 6
        assert limiter.borrowed_tokens == 0

    run_asyncio(main)


def test_the_loop_of_these_tests_reports_what_is_lost() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "lost"})

    with pytest.raises(Complaints):
        run_asyncio(main)
