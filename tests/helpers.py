"""Small things that tests share: how a program is run, and bodies of branches.

Programs are plain async functions, so that tables of them can be run on another host too.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from trio_parallel_steps import BranchLimiter, BranchNursery, BranchStatus, ParallelResult

T = TypeVar("T")

SUCCEEDED = BranchStatus.SUCCEEDED
FAILED = BranchStatus.FAILED
TIMED_OUT = BranchStatus.TIMED_OUT
CANCELLED = BranchStatus.CANCELLED
BREACHED = BranchStatus.BREACHED
SKIPPED = BranchStatus.SKIPPED

# ---------------------------------------------------------------- running programs


def run(program: Callable[..., Awaitable[T]], *args: Any) -> T:
    """One run with virtual time."""
    return trio.run(program, *args, clock=MockClock(autojump_threshold=0))


def run_in_many_orders(
    program: Callable[..., Awaitable[T]], *args: Any, orders: int = 10
) -> list[T]:
    """Under schedules that differ in who goes first among tasks that are ready at once.

    (pytest-trio has made the scheduler a function of this seed.)
    """
    results = []
    state = trio._core._run._r.getstate()
    try:
        for seed in range(orders):
            trio._core._run._r.seed(seed)
            results.append(run(program, *args))
    finally:
        trio._core._run._r.setstate(state)
    return results


async def until_nothing_is_ready() -> None:
    await trio.testing.wait_all_tasks_blocked()


# ---------------------------------------------------------------- bodies of branches


async def give(value: T) -> T:
    await trio.lowlevel.checkpoint()
    return value


async def give_after(seconds: float, value: T) -> T:
    await trio.sleep(seconds)
    return value


async def give_when_stopped(value: T) -> T:
    """Swallows its cancellation."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return value
    raise AssertionError("unreachable")


async def give_in_spite_of_all(seconds: float, value: T) -> T:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return value


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def fail_after(seconds: float, error: BaseException) -> None:
    await trio.sleep(seconds)
    raise error


async def fail_when_stopped(error: BaseException) -> None:
    """Its cleanup raises."""
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def clean_up_for(seconds: float, log: list[str] | None = None) -> None:
    """Its cleanup takes a while, whatever happens."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        if log is not None:
            log.append("cleaned up")


# ---------------------------------------------------------------- looking at what came of it


def statuses(result: ParallelResult[Any, Any]) -> dict[Any, BranchStatus]:
    return {key: ended.status for key, ended in result.items()}


def assert_complete(nursery: BranchNursery, *keys: Any) -> None:
    """Each key that was submitted is in the result once, in that order, ended; no token is left."""
    result = nursery.result
    assert list(result) == list(keys)
    for key, ended in result.items():
        assert ended.key == key
        assert ended.status not in (BranchStatus.QUEUED, BranchStatus.RUNNING)
        assert (ended.completion_index is None) == (ended.status is SKIPPED)
    ran = [key for key in keys if result[key].status is not SKIPPED]
    assert sorted(result.completion_order, key=keys.index) == ran
    assert_idle(nursery.limiter)


def assert_idle(limiter: BranchLimiter) -> None:
    assert limiter.borrowed_tokens == 0
    assert limiter.statistics().tasks_waiting == 0
