"""in_thread: a sync function as a branch.  Threads are real, so events say when, never sleeps."""

import functools
import threading
from typing import Any

import pytest
import trio

from helpers import BREACHED, CANCELLED, FAILED, SKIPPED, SUCCEEDED, give, statuses
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    Breached,
    ParallelResult,
    check_cancelled,
    current_branch,
    in_thread,
    open_branch_nursery,
    run_branches,
)


def whoami() -> int:
    return threading.get_ident()


async def test_it_runs_in_a_thread_and_returns_what_the_function_returns() -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("thread", in_thread(whoami))
        nursery.start_soon("sum", in_thread(sum), [1, 2, 3])
    assert nursery.result.outputs["sum"] == 6
    assert nursery.result.outputs["thread"] != threading.get_ident()


async def test_arguments_of_both_kinds_are_passed_on() -> None:
    def all_of(*args: int, **kwargs: int) -> Any:
        return args, kwargs

    assert await in_thread(all_of)(1, 2, three=3) == ((1, 2), {"three": 3})


async def test_an_exception_is_the_branchs_own() -> None:
    error = ValueError("in the thread")

    def raises() -> None:
        raise error

    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": in_thread(raises)})
    assert caught.value.exceptions == (error,)


async def test_no_token_of_trios_own_limiter_is_taken() -> None:
    trios = trio.to_thread.current_default_thread_limiter()

    def borrowed() -> int:
        return trio.from_thread.run_sync(lambda: trios.borrowed_tokens)

    assert (await run_branches({"a": in_thread(borrowed)})).outputs == {"a": 0}


async def test_the_steps_limiter_is_the_only_cap() -> None:
    """More at once than trio's own limiter would allow, each waiting for all the others."""
    number = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 5
    barrier = threading.Barrier(number)
    result = await run_branches({n: in_thread(barrier.wait) for n in range(number)}, number)
    assert len(result.outputs) == number
    assert result.peak_in_flight == number


async def test_never_more_threads_than_the_limit() -> None:
    lock = threading.Lock()
    running = peak = 0

    def counts() -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        with lock:
            running -= 1

    result = await run_branches({n: in_thread(counts) for n in range(50)}, 3)
    assert result.success
    assert peak <= 3


class Held:
    """A function that says when it runs, and returns when it is let go."""

    def __init__(self) -> None:
        self.runs = trio.Event()
        self.go = threading.Event()

    def __call__(self) -> str:
        trio.from_thread.run_sync(self.runs.set)
        self.go.wait()
        return "finished"


async def test_a_stopped_step_waits_for_its_thread_and_keeps_what_it_returns() -> None:
    held = Held()
    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("thread", in_thread(held))
            nursery.start_soon("waits", give, 1)
            await held.runs.wait()
            nursery.breach("now")
            held.go.set()
    assert isinstance(caught.value.result, ParallelResult)
    assert statuses(caught.value.result) == {"thread": SUCCEEDED, "waits": SKIPPED}
    assert caught.value.result["thread"].output == "finished"


async def test_a_cancelled_thread_that_returns_has_succeeded() -> None:
    held = Held()
    async with open_branch_nursery(1) as nursery:
        branch = nursery.start_soon("thread", in_thread(held))
        await held.runs.wait()
        assert branch.cancel("please")
        held.go.set()
    assert nursery.result.outputs == {"thread": "finished"}


@pytest.mark.parametrize("how", ["cancel", "breach"])
async def test_a_thread_that_polls_ends_as_it_was_told(how: str) -> None:
    runs = trio.Event()

    def polls() -> None:
        trio.from_thread.run_sync(runs.set)
        while True:
            trio.from_thread.check_cancelled()

    try:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("thread", in_thread(polls))
            await runs.wait()
            if how == "breach":
                nursery.breach("now")
            else:
                nursery.cancel("thread", "now")
    except Breached:
        assert how == "breach"
    assert nursery.result["thread"].status is (BREACHED if how == "breach" else CANCELLED)
    assert nursery.result["thread"].reason == "now"


async def test_a_thread_that_raises_when_told_to_stop_has_failed() -> None:
    runs = trio.Event()

    def raises() -> None:
        trio.from_thread.run_sync(runs.set)
        try:
            while True:
                trio.from_thread.check_cancelled()
        finally:
            raise ValueError("cleanup")

    async with open_branch_nursery(1, policy=COLLECT) as nursery:
        nursery.start_soon("thread", in_thread(raises))
        await runs.wait()
        nursery.cancel("thread")
    assert nursery.result["thread"].status is FAILED


async def test_the_thread_is_inside_its_branch() -> None:
    result = await run_branches({"me": in_thread(lambda: current_branch().key)})
    assert result.outputs == {"me": "me"}


async def test_a_thread_may_submit_and_report_by_way_of_trio() -> None:
    async with open_branch_nursery(1) as nursery:

        def submits() -> None:
            trio.from_thread.run_sync(nursery.start_soon, "child", give, 1)
            trio.from_thread.run_sync(current_branch().report, 1, 2)

        nursery.start_soon("parent", in_thread(submits))
    assert nursery.result.outputs == {"parent": None, "child": 1}


async def test_a_function_that_returns_a_coroutine_fails_its_branch() -> None:
    async def forgotten() -> None:
        pytest.fail("run")

    result = await run_branches({"a": in_thread(lambda: forgotten())}, policy=COLLECT)
    assert type(result["a"].exception) is TypeError


def test_it_is_named_as_the_function() -> None:
    assert in_thread(whoami).__name__ == "whoami"
    assert in_thread(functools.partial(whoami)).__wrapped__.func is whoami  # type: ignore[attr-defined]


def test_outside_an_event_loop_it_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="async context"):
        in_thread(whoami)().send(None)  # type: ignore[attr-defined]


async def test_bad_functions_are_refused_before_anything_starts() -> None:
    async def is_async() -> None:
        pytest.fail("run")

    with pytest.raises(TypeError, match=r"^`sync_fn` must be a function, got None$"):
        in_thread(None)  # type: ignore[arg-type]
    for given in (is_async, functools.partial(is_async)):
        with pytest.raises(TypeError, match="must be a sync function: an async one needs no"):
            in_thread(given)


def test_check_cancelled_outside_such_a_thread_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"^not inside a thread of in_thread\(\)$"):
        check_cancelled()


async def test_a_trio_run_in_a_thread_of_a_branch_is_outside_the_branch() -> None:
    """The context comes along, but its branch belongs to another run."""

    async def answer() -> int:
        return 42

    def run_a_step() -> dict[str, int]:
        return trio.run(run_branches, {"inner": answer}).outputs

    result = await run_branches({"outer": in_thread(run_a_step)})
    assert result.outputs == {"outer": {"inner": 42}}
