"""`map_branches`: inputs of any length, results as they come, bounded by who consumes them."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import assert_checkpoints, assert_no_checkpoints

from drivers import EVERY_DRIVER, Driver, World, on_asyncio, run_asyncio
from helpers import (
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    assert_idle,
    fail_when_stopped,
    run,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNotDone,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    Decision,
    ParallelResult,
    StepResult,
    StepTimeout,
    abc,
    current_branch,
    map_branches,
    open_branch_nursery,
    run_branches,
    tolerate,
)
from trio_parallel_steps.hosts import _trio


async def give(x: Any) -> Any:
    await trio.sleep(1)
    return x


async def fail(x: Any) -> Any:
    await trio.lowlevel.checkpoint()
    raise ValueError(x)


async def forever(x: Any) -> None:
    await trio.sleep_forever()


def left_result(caught: Any) -> ParallelResult[Any, Any]:
    result: ParallelResult[Any, Any] = caught.value.result
    return result


class Pulls:
    """An endless input that counts what was pulled of it, and whether it was closed."""

    def __init__(self, length: float = math.inf) -> None:
        self.pulled = 0
        self.closed = False
        self.length = length

    def sync(self) -> Iterator[int]:
        try:
            while self.pulled < self.length:
                self.pulled += 1
                yield self.pulled - 1
        finally:
            self.closed = True

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            while self.pulled < self.length:
                self.pulled += 1
                yield self.pulled - 1
        finally:
            await trio.sleep(1)
            self.closed = True

    def as_(self, kind: str) -> Any:
        return self.sync() if kind == "sync" else self.asynchronous()


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])
IN_ANY_ORDER = pytest.mark.parametrize("in_order", [False, True])


class Seen(abc.Observer):
    """What the step's nursery and result were."""

    nursery: Any = None
    result: Any = None

    def step_opened(self, step: Any) -> None:
        self.nursery = step

    def step_closed(self, step: Any, result: Any) -> None:
        self.result = result


# ---------------------------------------------------------------- what it gives


@BOTH
@IN_ANY_ORDER
def test_each_item_has_one_result(kind: str, in_order: bool) -> None:
    async def program() -> None:
        items = Pulls(20)
        async with map_branches(give, items.as_(kind), 3, in_order=in_order) as results:
            seen = [(result.key, result.output) async for result in results]
        assert sorted(seen) == [(n, n) for n in range(20)]
        assert not in_order or seen == sorted(seen)
        assert trio.current_time() == pytest.approx(7 + (kind == "async"), abs=1.001)

    run(program)


@pytest.mark.parametrize("empty", [[], Pulls(0).sync(), Pulls(0).asynchronous()])
def test_an_empty_input(empty: Any) -> None:
    async def program() -> None:
        async with map_branches(give, empty) as results:
            assert [result async for result in results] == []

    run(program)


def test_results_come_in_the_order_of_ending_or_of_the_input() -> None:
    async def nap(seconds: int) -> None:
        await trio.sleep(seconds)

    async def program() -> None:
        async with map_branches(nap, [3, 1, 2], 3, key=str) as results:
            assert [result.key async for result in results] == ["1", "2", "3"]
        async with map_branches(nap, [3, 1, 2], 3, key=str, in_order=True) as results:
            assert [result.key async for result in results] == ["3", "1", "2"]

    run(program)


@given(
    naps=st.lists(st.integers(0, 4), max_size=25),
    limit=st.one_of(st.integers(1, 6), st.just(math.inf)),
    pauses=st.lists(st.integers(0, 3), max_size=25),
    in_order=st.booleans(),
    is_async=st.booleans(),
    failing=st.sets(st.integers(0, 25)),
)
@settings(max_examples=150, deadline=None)
def test_against_a_simple_model(
    naps: list[int],
    limit: float,
    pauses: list[int],
    in_order: bool,
    is_async: bool,
    failing: set[int],
) -> None:
    async def program() -> None:
        running = ended = consumed = pulled = 0
        order: list[int] = []

        async def body(n: int) -> int:
            nonlocal running, ended
            running += 1
            assert running <= limit
            assert running + ended - consumed <= limit
            await trio.sleep(naps[n])
            running -= 1
            ended += 1
            order.append(n)
            if n in failing:
                raise ValueError(n)
            return n

        async def asynchronous() -> AsyncIterator[int]:
            nonlocal pulled
            for n in range(len(naps)):
                pulled += 1
                assert pulled <= running + ended + limit
                yield n

        items: Any = asynchronous() if is_async else iter(range(len(naps)))
        results: list[int] = []
        options: Any = {"policy": COLLECT, "in_order": in_order}
        async with map_branches(body, items, limit, **options) as stream:
            async for result in stream:
                consumed += 1
                assert isinstance(result.key, int)
                results.append(result.key)
                assert result.status is (FAILED if result.key in failing else SUCCEEDED)
                await trio.sleep(pauses[len(results) - 1] if len(results) <= len(pauses) else 0)
                assert ended - consumed <= limit
        assert sorted(results) == list(range(len(naps)))
        assert results == (sorted(results) if in_order else order)

    run(program)


# ---------------------------------------------------------------- back-pressure


@BOTH
@IN_ANY_ORDER
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_what_runs_and_what_is_unconsumed_stay_within_the_limit(
    kind: str, in_order: bool, limit: int
) -> None:
    async def program() -> None:
        items = Pulls()
        async with map_branches(give, items.as_(kind), limit, in_order=in_order) as results:
            await trio.sleep(100)
            assert items.pulled == limit
            for consumed in range(1, 10):
                await anext(results)
                await trio.sleep(100)
                assert items.pulled == limit + consumed
            assert repr(results) == f"<results of 'step': 0 running, {limit} unconsumed>"
        assert repr(results) == "<results of 'step': closed>"
        assert items.closed

    run(program)


@BOTH
def test_one_item_is_pulled_ahead_of_the_admissions(kind: str) -> None:
    async def program() -> None:
        shared = BranchLimiter(3)
        items = Pulls()
        async with shared, trio.open_nursery() as nursery:
            nursery.start_soon(run_branches, {"slow": lambda: trio.sleep(5)}, shared)
            await trio.sleep(1)

            async def consume() -> None:
                async with map_branches(forever, items.as_(kind), shared, fail_after=2):
                    await trio.sleep_forever()

            with pytest.raises(ExceptionGroup) as caught:
                async with trio.open_nursery() as inner:
                    inner.start_soon(consume)
                    await trio.sleep(1)
                    # One runs beside two tokens of others', one waits.
                    assert items.pulled == 2
                    assert shared.statistics().tasks_waiting == 1
            assert caught.group_contains(StepTimeout)
        assert_idle(shared)

    run(program)


@EVERY_DRIVER
def test_a_branch_of_another_step_that_came_first_goes_first(driver: Driver) -> None:
    async def program(world: World) -> None:
        shared = BranchLimiter(1)
        order: list[str] = []

        async def work(name: str) -> None:
            order.append(name)
            await world.sleep(1)

        async with open_branch_nursery(shared) as nursery, map_branches(work, "b", shared) as later:
            nursery.start_soon("a", work, "a", priority=1)
            assert [result.success async for result in later] == [True]
        assert order == ["a", "b"]

    driver(program)


def test_in_order_the_first_can_always_end() -> None:
    async def nap(n: int) -> int:
        await trio.sleep(100 if n % 5 == 0 else 1)
        return n

    async def program() -> None:
        shared = BranchLimiter(3)
        async with map_branches(nap, range(20), shared, in_order=True) as results:
            assert [result.output async for result in results] == list(range(20))

    run(program)


@BOTH
def test_a_limit_that_changes_is_followed(kind: str) -> None:
    async def program() -> None:
        shared = BranchLimiter(2)
        items = Pulls()
        async with map_branches(forever, items.as_(kind), shared):
            await trio.sleep(1)
            assert items.pulled == 2
            shared.total_tokens = 5
            await trio.sleep(1)
            assert items.pulled == 5
            shared.total_tokens = 1
            await trio.sleep(1)
            assert items.pulled == 5

    run(program)


@BOTH
def test_a_limiter_of_the_users_own_bounds_it_too(kind: str) -> None:
    async def program() -> None:
        shared = trio.CapacityLimiter(2)
        items = Pulls(9)
        seen = Seen()
        async with map_branches(give, items.as_(kind), shared, observers=[seen]) as results:
            await trio.sleep(9)
            assert items.pulled == 2
            seen.nursery.limiter.total_tokens = 3
            await trio.sleep(9)
            assert items.pulled == 3
            assert len([result async for result in results]) == 9

    run(program)


@BOTH
def test_without_a_limit_all_are_pulled_and_others_get_their_turn(kind: str) -> None:
    async def program() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async def instant(x: int) -> int:
            return x

        async def asynchronous() -> AsyncIterator[int]:
            for n in range(500):
                yield n

        items: Any = range(500) if kind == "sync" else asynchronous()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            async with map_branches(instant, items, math.inf) as results:
                for _ in range(5000):
                    await trio.lowlevel.checkpoint()
                assert "500 unconsumed" in repr(results)
                assert len([result async for result in results]) == 500
            nursery.cancel_scope.cancel()
        assert turns >= 500 / 16

    run(program)


def test_branches_that_never_block_starve_no_one() -> None:
    async def instant(x: int) -> int:
        return x

    async def program() -> None:
        with trio.move_on_after(0.01) as scope:
            async with map_branches(instant, Pulls().sync(), 100) as results:
                async for _ in results:
                    pass
        assert scope.cancelled_caught

    trio.run(program)  # in real time


# ---------------------------------------------------------------- the iterator


def test_a_step_of_the_iterator_that_waits_is_a_checkpoint() -> None:
    async def program() -> None:
        async with map_branches(give, range(2), 1) as results:
            for _ in range(2):
                with assert_checkpoints():
                    await anext(results)
            with assert_checkpoints(), pytest.raises(StopAsyncIteration):
                await anext(results)
        with assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(results)

    run(program)


@pytest.mark.parametrize("is_over", [True, False])
def test_with_a_result_ready_others_have_their_turn_once_the_slice_is_over(
    is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program() -> None:
        async with map_branches(give, range(2), 2) as results:
            await trio.sleep(2)  # both have ended
            monkeypatch.setattr(_trio, "perf_counter", lambda: math.inf if is_over else -math.inf)
            for _ in range(2):
                with assert_checkpoints() if is_over else assert_no_checkpoints():
                    await anext(results)

    run(program)


def test_a_cancelled_step_of_the_iterator_raises_though_a_result_is_ready() -> None:
    async def program() -> None:
        async with map_branches(give, range(2), 2) as results:
            await trio.sleep(2)  # both have ended
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(results)
            assert scope.cancelled_caught
            assert {result.output async for result in results} == {0, 1}

    run(program)


@IN_ANY_ORDER
def test_a_cancelled_step_of_the_iterator_loses_nothing(in_order: bool) -> None:
    async def program() -> None:
        seen: list[Any] = []
        async with map_branches(give, range(5), 2, in_order=in_order) as results:
            while len(seen) < 5:
                with trio.move_on_after(0.3):
                    seen.append((await anext(results)).output)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await anext(results)
        assert sorted(seen) == list(range(5))

    run(program)


@IN_ANY_ORDER
def test_tasks_may_share_the_iterator(in_order: bool) -> None:
    async def program() -> None:
        seen: list[int] = []
        async with (
            map_branches(give, range(30), 4, in_order=in_order) as results,
            trio.open_nursery() as nursery,
        ):

            async def consume(pause: int) -> None:
                async for result in results:
                    assert isinstance(result.output, int)
                    seen.append(result.output)
                    await trio.sleep(pause)

            for pause in (0, 1, 3):
                nursery.start_soon(consume, pause)
        assert sorted(seen) == list(range(30))

    run(program)


def test_after_the_block_what_was_left_in_it_is_gone() -> None:
    async def program() -> None:
        async with map_branches(give, range(5), 2) as results:
            await anext(results)
        with pytest.raises(RuntimeError, match=r"^<results of 'step': closed>: its block has been"):
            await anext(results)

    run(program)


def test_who_waits_in_another_task_as_the_block_is_left_is_told() -> None:
    async def program() -> None:
        async with trio.open_nursery() as nursery:

            async def consume(results: AsyncIterator[Any]) -> None:
                with pytest.raises(RuntimeError, match="its block has been left"):
                    await anext(results)

            async with map_branches(forever, Pulls().sync(), 2) as results:
                nursery.start_soon(consume, results)
                await until_nothing_is_ready()

    run(program)


# ---------------------------------------------------------------- leaving early


@BOTH
@IN_ANY_ORDER
def test_leaving_cancels_what_runs_and_waits_for_it_then_closes_the_input(
    kind: str, in_order: bool
) -> None:
    async def program() -> None:
        items = Pulls()
        log = []

        async def body(n: int) -> int:
            try:
                await trio.sleep(n)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)
                assert not items.closed
                log.append(n)
            return n

        seen = Seen()
        observers = [seen]
        async with map_branches(
            body, items.as_(kind), 3, in_order=in_order, observers=observers
        ) as results:
            async for result in results:
                assert result.key == 0
                break
            await trio.sleep(0.5)
        assert items.closed
        assert len(log) == items.pulled == 4
        left = seen.result
        assert set(left) <= {1, 2, 3}
        assert left[3].status is CANCELLED
        assert left[3].reason == "the block was left"
        assert left.completion_order
        assert left.stop_reason is None
        assert_idle(seen.nursery.limiter)

    run(program)


@BOTH
def test_errors_of_cleanup_are_raised_as_the_policy_says(kind: str) -> None:
    async def body(n: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError(n)

    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(body, Pulls().as_(kind), 2):
                await trio.sleep(1)
        assert sorted(map(str, caught.value.exceptions)) == ["0", "1"]
        async with map_branches(body, Pulls().as_(kind), 2, policy=COLLECT):
            await trio.sleep(1)

    run(program)


def test_an_input_that_is_waited_for_is_cancelled() -> None:
    async def program() -> None:
        log = []

        async def items() -> AsyncIterator[int]:
            try:
                yield 1
                await trio.sleep_forever()
            finally:
                log.append("closed")

        async with map_branches(give, items(), 2) as results:
            assert (await anext(results)).output == 1
            await trio.sleep(1)
        assert log == ["closed"]
        assert trio.current_time() < 5

    run(program)


def test_errors_of_an_input_that_is_cancelled_are_raised() -> None:
    async def program() -> None:
        async def items() -> AsyncIterator[int]:
            yield 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_when_stopped, ValueError("cleanup"))
                await trio.sleep_forever()

        with pytest.raises(BranchErrors) as caught:
            async with map_branches(give, items(), 2) as results:
                await anext(results)
                await trio.sleep(1)
        assert caught.group_contains(ValueError, match="cleanup")

    run(program)


def test_only_generators_are_closed() -> None:
    async def program() -> None:
        send, receive = trio.open_memory_channel[int](10)
        for n in range(5):
            send.send_nowait(n)
        async with map_branches(give, receive, 1) as results:
            assert (await anext(results)).output == 0
        assert receive.receive_nowait() in (1, 2)
        numbers = iter(range(5))
        async with map_branches(give, numbers, 1) as results:
            await anext(results)
        assert next(numbers) in (1, 2)

    run(program)


class Sequence:
    """Iterable by the old protocol."""

    def __getitem__(self, place: int) -> int:
        if place == 3:
            raise IndexError
        return place


class AsyncClass:
    closed = False

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for n in range(3):
                yield n
        finally:
            self.closed = True


@pytest.mark.parametrize("items", [Sequence(), AsyncClass(), {0: "a", 1: "b", 2: "c"}])
def test_kinds_of_inputs(items: Any) -> None:
    async def program() -> None:
        async with map_branches(give, items, 2, in_order=True) as results:
            assert [result.output async for result in results] == [0, 1, 2]

    run(program)


@BOTH
def test_under_a_cancellation_the_input_is_closed_too(kind: str) -> None:
    async def program() -> None:
        closed = []

        def sync() -> Iterator[int]:
            try:
                yield from range(100)
            finally:
                closed.append("sync")

        async def asynchronous() -> AsyncIterator[int]:
            try:
                for n in range(100):
                    yield n
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
                closed.append("async")

        items: Any = sync() if kind == "sync" else asynchronous()
        with trio.move_on_after(1) as scope:
            async with map_branches(forever, items, 2) as results:
                await anext(results)
        assert scope.cancelled_caught
        assert closed == [kind]

    run(program)


# ---------------------------------------------------------------- errors of the input


async def raising_async(error: BaseException, after: int) -> AsyncIterator[int]:
    for n in range(after):
        yield n
    raise error


def raising_sync(error: BaseException, after: int) -> Iterator[int]:
    yield from range(after)
    raise error


def raising(kind: str, error: BaseException, after: int) -> Any:
    return raising_sync(error, after) if kind == "sync" else raising_async(error, after)


@BOTH
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_of_the_input_counts_as_one_of_the_body(kind: str, after: int) -> None:
    async def program() -> None:
        error = KeyError("input")
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(forever, raising(kind, error, after), 5) as results:
                async for _ in results:
                    pass
        assert caught.value.exceptions == (error,)
        assert left_result(caught).stop_reason == "the input raised KeyError: 'input'"
        assert not left_result(caught).success
        assert left_result(caught).with_status(CANCELLED, SKIPPED) == list(range(after))

    run(program)


@BOTH
def test_an_error_as_the_input_is_closed_counts_too(kind: str) -> None:
    error = ValueError("cleanup")

    def sync() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            raise error

    async def asynchronous() -> AsyncIterator[int]:
        try:
            for n in range(100):
                yield n
        finally:
            raise error

    async def program(at_once: bool) -> None:
        items: Any = sync() if kind == "sync" else asynchronous()
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(give, items, 2) as results:
                await anext(results)
                if not at_once:
                    await trio.sleep(5)
        assert caught.value.exceptions == (error,)
        assert left_result(caught).stop_reason == "the input raised ValueError: cleanup"
        assert not left_result(caught).success

    run(program, True)
    run(program, False)


@pytest.mark.parametrize("method", ["__iter__", "__aiter__"])
def test_an_input_that_cannot_be_iterated_over_after_all(method: str) -> None:
    def oops(self: object) -> Any:
        raise ValueError("oops")

    items = type("Items", (), {method: oops})()

    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(give, items) as results:
                await anext(results)
        assert str(caught.value.exceptions[0]) == "oops"

    run(program)


@BOTH
def test_a_key_function_that_raises(kind: str) -> None:
    async def program() -> None:
        items = Pulls()
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(forever, items.as_(kind), key=lambda n: 1 // n) as results:
                await anext(results)
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
        assert items.closed or kind == "async"  # its cleanup awaits, under a cancellation

    run(program)


def test_a_key_that_is_not_hashable() -> None:
    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(give, [1], key=lambda n: [n]) as results:  # type: ignore[arg-type,return-value]
                await anext(results)
        assert str(caught.value.exceptions[0]) == "`key` must be hashable, got [1]"

    run(program)


@BOTH
def test_keys_are_unique_among_what_is_running_or_unconsumed(kind: str) -> None:
    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(give, Pulls().as_(kind), 4, key=lambda n: n % 3) as results:
                await anext(results)
        (error,) = caught.value.exceptions
        assert isinstance(error, ValueError)
        assert str(error) == "duplicate key 0 among what is running or unconsumed"
        seen = []
        items, options = Pulls(10).as_(kind), {"in_order": True}
        async with map_branches(give, items, 3, key=lambda n: n % 3, **options) as results:  # type: ignore[arg-type]
            seen = [result.key async for result in results]  # each is consumed before it is reused
        assert len(seen) == 10

    run(program)


@BOTH
def test_an_interrupt_in_the_input_leaves_with_the_block(kind: str) -> None:
    async def program() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with map_branches(forever, raising(kind, KeyboardInterrupt(), 1)) as results:
                await anext(results)
        assert caught.group_contains(KeyboardInterrupt, depth=1)
        assert len(caught.value.exceptions) == 1

    run(program)


# ---------------------------------------------------------------- how a step ends


@IN_ANY_ORDER
def test_a_failure_ends_the_step_and_cancels_the_body(in_order: bool) -> None:
    async def body(n: int) -> int:
        return await (fail(n) if n == 3 else give(n))  # type: ignore[no-any-return]

    async def program() -> None:
        seen = []
        items = Pulls()
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(body, items.sync(), 2, in_order=in_order) as results:
                async for result in results:
                    seen.append(result.key)
        assert [str(error) for error in caught.value.exceptions] == ["3"]
        assert set(seen) <= {0, 1, 2}
        assert set(left_result(caught)) == set(range(items.pulled)) - set(seen)
        assert items.closed

    run(program)


def test_collected_failures_come_as_results_and_are_not_kept() -> None:
    async def program() -> None:
        gone = []

        class Oops(Exception):
            pass

        async def body(n: int) -> None:
            error = Oops(n)
            gone.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

        seen = Seen()
        options: Any = {"policy": COLLECT, "observers": [seen]}
        async with map_branches(body, range(500), 5, **options) as results:
            async for result in results:
                assert result.status is FAILED
            del result
            gc.collect()
            assert not any(ref() for ref in gone)
        assert len(seen.result) == 0
        assert not seen.result.success
        assert seen.nursery.statistics().ended == 500

    run(program)


def test_a_policy_raises_exceptions_that_were_consumed_but_100_at_most() -> None:
    async def program(failures: int) -> BranchErrors:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(fail, Pulls().sync(), 3, policy=tolerate(failures)) as results:
                async for _ in results:
                    pass
        return caught.value

    few = run(program, 5)
    numbers = sorted(int(str(error)) for error in few.exceptions)
    assert 6 <= len(numbers) <= 8  # two more may be running
    assert set(numbers) <= set(range(9))
    assert not hasattr(few, "__notes__")
    many = run(program, 500)
    assert len(many.exceptions) == 100
    assert int(str(many.exceptions[0])) < 3
    assert max(int(str(error)) for error in many.exceptions) >= 500
    (note,) = many.__notes__
    number, _, words = note.partition(" ")
    assert 401 <= int(number) <= 403
    assert words == "more, of branches whose results were consumed, are not kept"
    assert many.result is not None
    assert len(many.result) <= 3


def test_a_goal_that_was_not_met() -> None:
    async def body(n: int) -> None:
        if n % 2:
            current_branch().cancel("odd")
            await trio.sleep(1)
        raise ValueError(n)

    async def program() -> None:
        with pytest.raises(BranchErrors) as caught:
            async with map_branches(body, range(150), 3, policy=FIRST_SUCCESS) as results:
                async for _ in results:
                    pass
        errors = caught.value.exceptions
        assert len(errors) == 100
        assert {type(error) for error in errors} == {ValueError, BranchNotDone}
        assert caught.value.__notes__[0].startswith("50 more")

    run(program)


def test_a_goal_that_is_met_ends_the_iteration_and_leaves_the_body_alone() -> None:
    async def program() -> None:
        seen = Seen()
        options: Any = {"policy": FIRST_SUCCESS, "observers": [seen]}
        async with map_branches(give, Pulls().asynchronous(), 3, **options) as results:
            statuses = [result.status async for result in results]
        assert statuses.count(SUCCEEDED) >= 1
        assert seen.result.success

    run(program)


def test_a_users_own_policy_sees_exact_tallies() -> None:
    tallies = []

    class Watch:
        def on_end(self, key: Any, result: StepResult[Any], tally: Any) -> Decision:
            tallies.append((tally.succeeded, tally.failed, tally.ended))
            return Decision.GO_ON

    async def program() -> None:
        async with map_branches(give, range(20), 4, policy=Watch()) as results:
            async for _ in results:
                pass

    run(program)
    assert tallies == [(n, 0, n) for n in range(1, 21)]


@BOTH
@pytest.mark.parametrize("on_breach", ["cancel", "drain"])
def test_a_breach(kind: str, on_breach: str) -> None:
    async def program() -> None:
        breach = Breach()
        items = Pulls()
        seen = []

        async def body(n: int) -> int:
            if n == 7:
                breach.trip("enough")
            return await give(n)  # type: ignore[no-any-return]

        options: Any = {"breach": breach, "on_breach": on_breach}
        with pytest.raises(Breached, match="enough"):
            async with map_branches(body, items.as_(kind), 3, **options) as results:
                async for result in results:
                    seen.append(result.key)
        assert (7 in seen) == (on_breach == "drain")
        assert items.pulled <= 8 + 3

    run(program)


def test_a_breach_that_drains_ends_an_iteration_that_waits_for_the_input() -> None:
    async def never() -> AsyncIterator[int]:
        await trio.sleep_forever()
        yield 1

    async def program() -> None:
        breach = Breach()
        async with trio.open_nursery() as nursery:

            async def trip() -> None:
                await trio.sleep(1)
                breach.trip("enough")

            nursery.start_soon(trip)
            with pytest.raises(Breached, match="enough"):
                async with map_branches(give, never(), breach=breach, on_breach="drain") as results:
                    assert [result async for result in results] == []

    run(program)


def test_a_budget() -> None:
    budget = Budget(calls=5)

    async def body(n: int) -> int:
        budget.spend(calls=1)
        return await give(n)  # type: ignore[no-any-return]

    async def program() -> None:
        seen = []
        with pytest.raises(BudgetExceeded):
            async with map_branches(body, Pulls().sync(), 1, budget=budget) as results:
                async for result in results:
                    seen.append(result.key)
        assert seen == [0, 1, 2, 3, 4]

    run(program)


@BOTH
def test_deadlines(kind: str) -> None:
    async def program() -> None:
        seen = []
        with pytest.raises(StepTimeout) as caught:
            async with map_branches(give, Pulls().as_(kind), 2, fail_after=3.5) as results:
                async for result in results:
                    seen.append(result.key)
        assert len(seen) == 6
        assert len(left_result(caught)) == 2
        async with map_branches(give, Pulls().as_(kind), 2, move_on_after=3.5) as results:
            async for result in results:
                seen.append(result.key)
        assert len(seen) == 12

    run(program)


def test_a_deadline_as_the_input_is_being_closed() -> None:
    async def program() -> None:
        async def items() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await trio.sleep(100)

        with pytest.raises(StepTimeout):
            async with map_branches(forever, items(), 1, fail_after=3):
                await trio.sleep(1)
        assert trio.current_time() == pytest.approx(3)

    run(program)


def test_cancel_rules_keep_nothing_of_what_has_ended() -> None:
    async def program() -> None:
        async def body(n: int) -> Thing:
            await trio.sleep(n == 3000 and 1)
            return Thing()

        class Thing:
            pass

        rule = CancelRule("last", "n*")
        refs = []

        def name(n: int) -> str:
            return "last" if n == 3000 else f"n{n}"

        async with map_branches(body, range(3001), 10, key=name, cancel_rules=[rule]) as results:
            async for result in results:
                if result.output is not None:
                    refs.append(weakref.ref(result.output))
                del result
        assert sum(ref() is not None for ref in refs[:1000]) == 0

    run(program)


def test_a_queued_one_that_is_cancelled_is_a_result_too() -> None:
    async def program() -> None:
        shared = BranchLimiter(3)
        seen = Seen()
        async with shared:
            pass
        shared.pause("test")
        async with map_branches(give, range(5), shared, observers=[seen]) as results:
            await trio.sleep(1)
            assert seen.nursery.cancel(0, "not this one")
            await trio.sleep(1)
            assert seen.nursery.cancel(1)
            shared.resume()
            statuses = {result.key: result.status async for result in results}
        assert statuses == {0: SKIPPED, 1: SKIPPED, 2: SUCCEEDED, 3: SUCCEEDED, 4: SUCCEEDED}

    run(program)


def test_completed_of_the_nursery_is_refused() -> None:
    async def program() -> None:
        seen = Seen()
        async with map_branches(give, range(5), 2, observers=[seen]) as results:
            await anext(results)
            with pytest.raises(RuntimeError, match="are read from its own iterator"):
                await anext(seen.nursery.completed())

    run(program)


@IN_ANY_ORDER
def test_branches_that_an_observer_submits_are_results_too(in_order: bool) -> None:
    async def program() -> None:
        seen = Seen()

        def items() -> Iterator[int]:
            yield 0
            seen.nursery.start_soon("extra", give, "extra")
            yield 1

        async with map_branches(give, items(), 1, in_order=in_order, observers=[seen]) as results:
            assert [result.output async for result in results] == [0, "extra", 1]

    run(program)


# ---------------------------------------------------------------- nesting


@pytest.mark.parametrize("total", [1, 2, 4])
@IN_ANY_ORDER
def test_inside_a_branch_the_consumer_is_parked(total: int, in_order: bool) -> None:
    async def program() -> None:
        shared = BranchLimiter(total)
        most = 0

        async def inner(n: int) -> int:
            nonlocal most
            most = max(most, shared.borrowed_tokens)
            assert shared.borrowed_tokens <= total
            return await give(n)  # type: ignore[no-any-return]

        async def outer() -> int:
            async with map_branches(inner, range(6), in_order=in_order) as results:
                return sum([result.unwrap() async for result in results])

        branches = dict.fromkeys("abc", outer)
        result = await run_branches(branches, shared)
        assert result.outputs == dict.fromkeys("abc", 15)
        assert most == total
        assert_idle(shared)

    run(program)


def test_a_map_over_the_results_of_a_map() -> None:
    async def double(result: StepResult[int]) -> int:
        await trio.sleep(1)
        return 2 * result.unwrap()

    async def program() -> None:
        async with (
            map_branches(give, range(10), 2) as first,
            map_branches(double, first, 3) as second,
        ):
            doubled = [result.unwrap() async for result in second]
        assert sorted(doubled) == [2 * n for n in range(10)]

    run(program)


@IN_ANY_ORDER
def test_a_branch_of_the_map_cannot_wait_for_it(in_order: bool) -> None:
    async def program() -> None:
        async def body(n: int) -> Any:
            return await anext(results)

        async with map_branches(body, [0], in_order=in_order, policy=COLLECT) as results:
            result = await anext(results)
        assert str(result.exception) == (
            "map_branches() would wait for ever: 0 waits for the branches of step 'step'"
        )

    run(program)


def test_context_variables() -> None:
    var: ContextVar[str] = ContextVar("var", default="-")

    def sync() -> Iterator[int]:
        for n in range(3):
            var.set(f"item {n}")
            yield n

    async def asynchronous() -> AsyncIterator[int]:
        for n in sync():
            yield n

    async def body(n: int) -> str:
        await trio.lowlevel.checkpoint()
        before = var.get()
        var.set("mine")
        return before

    async def program() -> None:
        for items in (sync(), asynchronous()):
            async with map_branches(body, items, 1, in_order=True) as results:
                seen = [result.output async for result in results]
            assert seen == ["item 0", "item 1", "item 2"]
            assert var.get() == "-"

    run(program)


# ---------------------------------------------------------------- bad input


async def fine(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((5, []), {}, TypeError, "`async_fn` must be an async function, got 5"),
        ((print, []), {}, TypeError, "wrap it in in_thread"),
        ((fine, 5), {}, TypeError, "`items` must be an iterable or an async iterable, got 5"),
        ((fine, raising_async), {}, TypeError, "`items` must be an iterable or an async"),
        ((fine, []), {"key": "id"}, TypeError, "`key` must be a function of an item, or None"),
        ((fine, []), {"key": fine}, TypeError, "`key` must be a function of an item, or None"),
        ((fine, []), {"in_order": 1}, TypeError, "`in_order` must be a bool, got 1"),
        ((fine, [], 0), {}, ValueError, "`limit` must be an int >= 1, math.inf, a"),
        ((fine, [], True), {}, TypeError, "`limit` must be an int >= 1, math.inf, a"),
        ((fine, []), {"policy": 1}, TypeError, "`policy` must be a Policy"),
        ((fine, []), {"fail_after": -1}, ValueError, "`fail_after` must be"),
        ((fine, []), {"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    args: Any, kwargs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        map_branches(*args, **kwargs)
    assert message in str(caught.value)


def test_coroutine_objects_are_refused_and_closed() -> None:
    with pytest.raises(TypeError, match="got a coroutine object"):
        map_branches(fine(1), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`items` must be an iterable"):
        map_branches(fine, fine(1))  # type: ignore[arg-type]


def test_a_block_can_be_entered_once() -> None:
    async def program() -> None:
        block = map_branches(give, [])
        async with block:
            pass
        with pytest.raises(RuntimeError, match="can be entered once: call map_branches again"):
            async with block:
                pass

    run(program)


def test_a_function_that_turns_out_not_to_be_async_fails_its_branch() -> None:
    async def program() -> None:
        sync: Any = lambda x: x  # noqa: E731
        async with map_branches(sync, [1], policy=COLLECT) as results:
            result = await anext(results)
        assert "in_thread" in str(result.exception)

    run(program)


def test_an_input_that_stops_the_step_as_it_is_pulled() -> None:
    async def program(kind: str) -> None:
        breach = Breach()

        def sync() -> Iterator[int]:
            breach.trip("by the input")
            yield 1

        async def asynchronous() -> AsyncIterator[int]:
            breach.trip("by the input")
            yield 1

        items: Any = sync() if kind == "sync" else asynchronous()
        with pytest.raises(Breached) as caught:
            async with map_branches(give, items, breach=breach) as results:
                await anext(results)
        assert len(left_result(caught)) == 0

    run(program, "sync")
    run(program, "async")


# ---------------------------------------------------------------- nothing is left


@BOTH
@IN_ANY_ORDER
def test_what_was_consumed_is_gone_at_once(kind: str, in_order: bool) -> None:
    class Thing:
        pass

    of_branch: ContextVar[Thing] = ContextVar("of_branch")

    async def make(n: int) -> Thing:
        await trio.sleep(1)
        thing = Thing()
        of_branch.set(thing)
        return thing

    async def program() -> None:
        gc.disable()
        try:
            refs = []
            items = Pulls(50).as_(kind)
            async with map_branches(make, items, 3, in_order=in_order) as results:
                async for result in results:
                    refs.append(weakref.ref(result.unwrap()))
                    del result
                    assert not any(ref() for ref in refs)
        finally:
            gc.enable()

    run(program)


@BOTH
def test_no_cycles_keep_what_was_left(kind: str) -> None:
    class Thing:
        pass

    refs = []

    async def make(n: int) -> Thing:
        await trio.sleep(1)
        thing = Thing()
        refs.append(weakref.ref(thing))
        return thing

    async def program() -> None:
        gc.collect()
        gc.disable()
        try:
            async with map_branches(make, Pulls().as_(kind), 3) as results:
                await trio.sleep(10)
            assert len(refs) == 3
            assert not any(ref() for ref in refs)
            assert repr(results)
        finally:
            gc.enable()

    run(program)


def test_memory_does_not_grow_with_the_input() -> None:
    async def instant(x: int) -> bytes:
        return bytes(1000)

    async def program(length: int) -> int:
        async with map_branches(instant, range(length), 20, policy=tolerate(10**9)) as results:
            async for _ in results:
                pass
        gc.collect()
        tracemalloc.reset_peak()
        async with map_branches(instant, range(length), 20, policy=tolerate(10**9)) as results:
            async for _ in results:
                pass
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        few, many = run(program, 200), run(program, 3000)
    finally:
        tracemalloc.stop()
    assert many < few + 100_000


# ---------------------------------------------------------------- on every host


@EVERY_DRIVER
@IN_ANY_ORDER
def test_on_every_host(driver: Driver, in_order: bool) -> None:
    async def program(world: World) -> None:
        closed = []

        async def items() -> AsyncIterator[int]:
            try:
                for n in range(1000):
                    await world.sleep(0.1)
                    yield n
            finally:
                closed.append(world.now())

        async def body(n: int) -> int:
            await world.sleep(1)
            return n

        seen: list[Any] = []
        async with map_branches(body, items(), 4, in_order=in_order) as results:
            async for result in results:
                seen.append(result.output)
                if len(seen) == 10:
                    break
        assert sorted(seen) == list(range(10))
        assert closed
        async with (
            world.scope(2.45),
            map_branches(body, items(), 4, in_order=in_order) as results,
        ):
            async for result in results:
                seen.append(result.output)
        assert len(seen) == 17
        assert len(closed) == 2

    driver(program)


@EVERY_DRIVER
@IN_ANY_ORDER
def test_what_runs_goes_on_after_the_end_of_the_input(driver: Driver, in_order: bool) -> None:
    async def program(world: World) -> None:
        async def items() -> AsyncIterator[int]:
            for n in (3, 2, 1):
                await world.sleep(0)
                yield n

        start = world.now()
        async with map_branches(lambda n: world.give(n, n), items(), in_order=in_order) as results:
            seen = [(result.output, world.now() - start) async for result in results]
        assert seen == ([(3, 3), (2, 3), (1, 3)] if in_order else [(1, 1), (2, 2), (3, 3)])

    driver(program)


def test_on_asyncio_an_input_whose_task_someone_cancels() -> None:
    async def program(world: World) -> None:
        async def items() -> AsyncIterator[int]:
            yield 1
            await world.forever()

        with pytest.raises(BranchErrors) as caught:
            async with map_branches(lambda n: world.give(1, n), items(), 4) as results:
                await anext(results)
                (task,) = [t for t in asyncio.all_tasks() if t.get_name() == "step/input"]
                task.cancel()
                await anext(results)
        assert [str(error) for error in caught.value.exceptions] == [
            "the task that pulls the input was cancelled"
        ]

    on_asyncio(program)


def test_aclosing_of_ones_own_does_no_harm() -> None:
    async def program() -> None:
        items = Pulls()
        async with (
            aclosing(items.asynchronous()) as generator,  # type: ignore[type-var]
            map_branches(give, generator, 2) as results,
        ):
            await anext(results)
        assert items.closed

    run(program)


def test_on_asyncio_an_input_cancelled_with_errors_of_cleanup_is_reported_nowhere_else() -> None:
    async def fails_when_stopped() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("cleanup")

    async def items() -> AsyncIterator[int]:
        await run_branches({"a": fails_when_stopped})
        yield 0

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with asyncio.timeout(1), map_branches(give, items()) as results:
                await anext(results)
        assert caught.group_contains(ValueError, match="cleanup")

    run_asyncio(main, collect=True)
