"""Nothing is left: no tasks, scopes, tokens, listeners; and no cycle keeps results or errors alive.

That there are no cycles is shown with the collector off: what nobody holds has to go at once.
"""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breach,
    Breached,
    Budget,
    ParallelResult,
    StepTimeout,
    hedged,
    map_branches,
    open_branch_nursery,
    run_branches,
)

T = TypeVar("T")


class Thing:
    """Something that can be seen to go."""


class Oops(Exception):
    pass


async def give() -> Thing:
    await trio.sleep(1)
    return Thing()


async def fail() -> None:
    await trio.sleep(1)
    raise Oops


# ---------------------------------------------------------------- how a step may end


async def to_its_end(**options: Any) -> BranchNursery:
    async with open_branch_nursery(2, **options) as nursery:
        for n in range(5):
            nursery.start_soon(n, give)
    return nursery


async def collected(**options: Any) -> BranchNursery:
    async with open_branch_nursery(2, policy=COLLECT, **options) as nursery:
        nursery.start_soon("fails", fail)
        nursery.start_soon("times out", trio.sleep_forever, timeout=1)
        nursery.start_soon("is cancelled", trio.sleep_forever)
        nursery.start_soon("is skipped", trio.sleep_forever)
        await trio.sleep(2)
        nursery.cancel_where(lambda key: True)
    return nursery


async def satisfied(**options: Any) -> BranchNursery:
    async with open_branch_nursery(2, policy=FIRST_SUCCESS, **options) as nursery:
        nursery.start_soon("wins", give)
        nursery.start_soon("loses", trio.sleep_forever)
        nursery.start_soon("never runs", trio.sleep_forever)
    return nursery


async def failed(**options: Any) -> BranchNursery:
    with pytest.raises(BranchErrors):
        async with open_branch_nursery(2, **options) as nursery:
            nursery.start_soon("fails", fail)
            nursery.start_soon("slow", trio.sleep_forever)
            nursery.start_soon("never runs", trio.sleep_forever)
    return nursery


async def breached(**options: Any) -> BranchNursery:
    with pytest.raises(Breached):
        async with open_branch_nursery(2, breach=Breach(), **options) as nursery:
            for n in range(4):
                nursery.start_soon(n, trio.sleep_forever)
            await trio.sleep(1)
            nursery.breach("enough")
    return nursery


async def timed_out(**options: Any) -> BranchNursery:
    with pytest.raises(StepTimeout):
        async with open_branch_nursery(2, fail_after=1, **options) as nursery:
            for n in range(4):
                nursery.start_soon(n, trio.sleep_forever)
    return nursery


async def interrupted(**options: Any) -> BranchNursery:
    with trio.move_on_after(1) as scope:
        async with open_branch_nursery(2, **options) as nursery:
            for n in range(4):
                nursery.start_soon(n, trio.sleep_forever)
    assert scope.cancelled_caught
    return nursery


async def body_raised(**options: Any) -> BranchNursery:
    with pytest.raises(BranchErrors):
        async with open_branch_nursery(2, **options) as nursery:
            for n in range(4):
                nursery.start_soon(n, trio.sleep_forever)
            await trio.sleep(1)
            raise Oops
    return nursery


async def paused_and_stopped(**options: Any) -> BranchNursery:
    with pytest.raises(Breached):
        async with open_branch_nursery(2, **options) as nursery:
            nursery.pause("for ever")
            for n in range(4):
                nursery.start_soon(n, trio.sleep_forever)
            await trio.sleep(1)
            nursery.breach("enough")
    return nursery


ENDINGS: list[Callable[..., Awaitable[BranchNursery]]] = [
    to_its_end,
    collected,
    satisfied,
    failed,
    breached,
    timed_out,
    interrupted,
    body_raised,
    paused_and_stopped,
]

all_endings = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)


class Tasks(trio.abc.Instrument):
    def __init__(self) -> None:
        self.alive: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.alive.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.alive.discard(task)


@all_endings
async def test_no_task_scope_or_deadline_is_left(
    ending: Callable[..., Awaitable[BranchNursery]], autojump_clock: MockClock
) -> None:
    task = trio.lowlevel.current_task()
    status, nurseries = task._cancel_status, list(task.child_nurseries)
    deadline = trio.current_effective_deadline()
    tasks = Tasks()
    trio.lowlevel.add_instrument(tasks)
    await ending()
    trio.lowlevel.remove_instrument(tasks)
    assert not tasks.alive
    assert task._cancel_status is status
    assert task.child_nurseries == nurseries
    assert trio.current_effective_deadline() == deadline
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


@all_endings
async def test_nothing_is_left_in_the_limiter(
    ending: Callable[..., Awaitable[BranchNursery]], autojump_clock: MockClock
) -> None:
    nursery = await ending()
    pool: Any = nursery.limiter._pool
    assert nursery.limiter.borrowed_tokens == 0
    assert nursery.limiter.statistics().tasks_waiting == 0
    assert pool.is_idle()
    assert pool._ledger._limiter.borrowed_tokens == 0


@all_endings
async def test_records_that_have_ended_refer_to_nothing_of_the_step(
    ending: Callable[..., Awaitable[BranchNursery]], autojump_clock: MockClock
) -> None:
    nursery = await ending()
    for key in nursery.result:
        record: Any = nursery[key]
        for slot in ("_fn", "_context", "_step", "_token", "_place"):
            assert getattr(record, slot) is None, slot
        assert record._args == ()


# ---------------------------------------------------------------- without the collector


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def no_garbage() -> Iterator[list[str]]:
    """Yields what will hold the types of what only the collector could free."""
    garbage: list[str] = []
    gc.collect()
    gc.disable()
    try:
        yield garbage
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage += [type(thing).__qualname__ for thing in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def in_a_run(program: Callable[[], Awaitable[T]]) -> T:
    """In a run of its own, so that nothing of pytest's holds a frame.  (trio keeps what the main
    task returns: so programs return weak references.)"""

    async def main() -> T:
        return await program()

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.usefixtures("no_collector")
def test_outputs_go_with_the_result() -> None:
    async def program() -> list[weakref.ref[Thing]]:
        result = await run_branches(dict.fromkeys(range(3), give), 2)
        outputs = list(result.outputs.values())
        refs = [weakref.ref(outputs.pop()) for _ in range(3)]
        assert all(ref() is not None for ref in refs)
        return refs

    assert [ref() for ref in in_a_run(program)] == [None] * 3


@pytest.mark.usefixtures("no_collector")
def test_a_nursery_and_its_branches_go_with_the_last_reference() -> None:
    async def program() -> list[weakref.ref[Any]]:
        async with open_branch_nursery(1) as nursery:
            branch = nursery.start_soon("a", give)
            skipped = nursery.start_soon("b", give)
            skipped.cancel()
        output = nursery.result["a"].output
        assert output is not None
        return [weakref.ref(thing) for thing in (nursery, branch, skipped, output)]

    assert [ref() for ref in in_a_run(program)] == [None] * 4


@pytest.mark.usefixtures("no_collector")
def test_errors_go_with_the_exception_that_holds_them() -> None:
    async def program() -> weakref.ref[Any]:
        try:
            await run_branches({"a": fail, "b": trio.sleep_forever}, 2)
        except BranchErrors as errors:
            return weakref.ref(errors.exceptions[0])
        raise AssertionError("unreachable")

    assert in_a_run(program)() is None


@pytest.mark.usefixtures("no_collector")
def test_collected_errors_go_with_the_result() -> None:
    async def program() -> weakref.ref[Any]:
        result = await run_branches({"a": fail}, 2, policy=COLLECT)
        error = result["a"].exception
        assert error is not None
        return weakref.ref(error)

    assert in_a_run(program)() is None


@pytest.mark.usefixtures("no_collector")
def test_a_timeouts_error_goes_with_the_result() -> None:
    async def program() -> list[weakref.ref[Any]]:
        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("a", trio.sleep_forever, timeout=1)
        return [weakref.ref(nursery.result["a"]), weakref.ref(nursery)]

    assert [ref() for ref in in_a_run(program)] == [None, None]


@pytest.mark.usefixtures("no_collector")
def test_an_error_of_the_body_goes_too() -> None:
    async def program() -> weakref.ref[Any]:
        try:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", trio.sleep_forever)
                await trio.sleep(1)
                raise Oops
        except BranchErrors as errors:
            return weakref.ref(errors.exceptions[0])
        raise AssertionError("unreachable")

    assert in_a_run(program)() is None


@pytest.mark.usefixtures("no_collector")
def test_a_breach_goes_with_its_result() -> None:
    async def program() -> list[weakref.ref[Any]]:
        switch = Breach()
        try:
            async with open_branch_nursery(breach=switch) as nursery:
                nursery.start_soon("a", give)
                nursery.start_soon("b", trio.sleep_forever)
                await trio.sleep(2)
                switch.trip("enough")
                await trio.sleep_forever()
        except Breached as breached:
            assert isinstance(breached.result, ParallelResult)
            output: Any = breached.result["a"].output
            return [weakref.ref(output), weakref.ref(nursery)]
        raise AssertionError("unreachable")

    assert [ref() for ref in in_a_run(program)] == [None, None]


@pytest.mark.usefixtures("no_collector")
def test_a_shared_limiter_keeps_nothing_of_the_steps_that_used_it() -> None:
    limiter = BranchLimiter(1)

    async def program() -> list[weakref.ref[Any]]:
        async with open_branch_nursery(limiter) as nursery:
            branches = [nursery.start_soon(n, give, priority=n % 2) for n in range(6)]
            branches[3].priority = 5
            branches[4].cancel()
        refs: list[weakref.ref[Any]] = [weakref.ref(branch) for branch in branches]
        return [*refs, weakref.ref(nursery)]

    assert {ref() for ref in in_a_run(program)} == {None}


def test_nothing_refers_to_itself_when_it_is_over() -> None:
    async def enter(limiter: BranchLimiter) -> None:
        async with limiter:
            await trio.sleep(1)

    async def entering() -> None:
        limiter = BranchLimiter(1)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(enter, limiter)
            await trio.sleep(1.5)
            limiter.total_tokens = 2  # the third is granted a token, and cancelled before it knows
            nursery.cancel_scope.cancel()

    async def spending() -> None:
        Budget(Budget(usd=2), usd=1).spend(usd=1)

    async def items() -> AsyncIterator[int]:
        yield 1
        await trio.sleep_forever()

    async def cutting_an_input_short() -> None:
        with trio.move_on_after(1):
            async with map_branches(trio.sleep, items()) as results:
                async for _ in results:
                    pass

    async def fail_when_stopped() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Oops

    async def nest() -> None:
        await run_branches({"inner": fail_when_stopped})

    async def cancelling_from_outside() -> None:
        """An error of cleanup, beside Cancelled."""
        with trio.move_on_after(1):
            await run_branches({"outer": nest}, policy=COLLECT)

    async def raise_as_the_other_does() -> None:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("inner", fail)
            await trio.sleep_forever()

    async def cancelling_a_body() -> None:
        """By the branch whose error keeps the block that the body is of."""
        with pytest.raises(BranchErrors):
            await run_branches({"a": raise_as_the_other_does, "b": raise_as_the_other_does})

    uses = (
        entering,
        spending,
        cutting_an_input_short,
        cancelling_from_outside,
        cancelling_a_body,
    )

    async def program() -> dict[str, list[str]]:
        found = {}
        for use in uses:
            with no_garbage() as garbage:
                await use()
                await trio.testing.wait_all_tasks_blocked()
            found[use.__name__] = garbage
        return found

    assert in_a_run(program) == {use.__name__: [] for use in uses}


variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")


@pytest.mark.usefixtures("no_collector")
def test_what_a_branch_was_given_goes_as_it_ends() -> None:
    """Not when the step does: its arguments, and its context."""

    async def take(thing: Thing) -> None:
        variable.set(Thing())
        refs.append(weakref.ref(variable.get()))
        await trio.sleep(1)

    refs: list[weakref.ref[Thing]] = []

    async def program() -> None:
        async with open_branch_nursery(1) as nursery:
            thing = Thing()
            refs.append(weakref.ref(thing))
            nursery.start_soon("a", take, thing)
            nursery.start_soon("b", trio.sleep, 5)
            del thing
            await trio.sleep(2)
            assert nursery.statistics().running == 1
            assert [ref() for ref in refs] == [None, None]

    in_a_run(program)


async def test_listeners_do_not_pile_up(autojump_clock: MockClock) -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon("a", trio.sleep, 100)
        results = nursery.completed()
        for _ in range(50):
            with trio.move_on_after(1):
                await branch.wait()
            with trio.move_on_after(1):
                await anext(results)
        record: Any = branch
        core: Any = nursery._core
        assert not record._done
        assert not core.listeners
        await wait_all_tasks_blocked()


# ---------------------------------------------------------------- errors of what is nested


async def of_a_block() -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", fail)


async def of_a_body_that_is_cancelled() -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", fail)
        await trio.sleep_forever()


async def of_a_breach_tripped_before() -> None:
    breach = Breach()
    breach.trip("enough")
    async with open_branch_nursery(breach=breach):
        pass


async def of_hedged() -> None:
    await hedged(fail, after=9)()


async def of_a_map() -> None:
    async def fails(item: int) -> None:
        await fail()

    async with map_branches(fails, range(2)) as results:
        async for _ in results:
            pass


@pytest.mark.parametrize(
    "nested",
    [of_a_block, of_a_body_that_is_cancelled, of_a_breach_tripped_before, of_hedged, of_a_map],
)
@pytest.mark.usefixtures("no_collector")
def test_errors_of_what_is_nested_go_with_the_result(
    nested: Callable[[], Awaitable[None]],
) -> None:
    """What is raised there becomes the value of a branch: its frames must not hold that branch."""

    async def main() -> list[weakref.ref[Any]]:
        things: list[weakref.ref[Any]] = []

        async def outer() -> None:
            thing = Thing()  # in a frame of the error
            things.append(weakref.ref(thing))
            await nested()

        result = await run_branches({"outer": outer}, policy=COLLECT)
        assert not result.success
        return things

    assert [thing() for thing in in_a_run(main)] == [None]
