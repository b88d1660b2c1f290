"""KeyboardInterrupt and SystemExit are never collected: they stop the step and go through, and
everything that was begun is cleaned up first."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import trio_parallel_steps
from helpers import (
    BREACHED,
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    assert_complete,
    assert_idle,
    clean_up_for,
    fail,
    fail_when_stopped,
    give,
    give_when_stopped,
    run,
    run_in_many_orders,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Decision,
    Policy,
    StepResult,
    Tally,
    in_thread,
    open_branch_nursery,
    run_branches,
    until,
)
from trio_parallel_steps.abc import Observer

INTERRUPTS = [KeyboardInterrupt, SystemExit]
interrupts = pytest.mark.parametrize("interrupt", INTERRUPTS)
policies = pytest.mark.parametrize("policy", [FAIL_FAST, COLLECT, FIRST_SUCCESS], ids=repr)


def leaves(exc: BaseException) -> list[BaseException]:
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for inner in exc.exceptions for leaf in leaves(inner)]


@attrs.define
class Caught:
    value: BaseExceptionGroup[BaseException]


@contextmanager
def stopped_by_interrupt(alone: bool = False) -> Iterator[Caught]:
    """The block raises a group; a failing test must not interrupt pytest.  `alone`: where it is
    raised outside of a branch and the body, it may be raised as it is."""
    caught = Caught(BaseExceptionGroup("nothing was raised", [KeyboardInterrupt()]))
    try:
        yield caught
    except BaseExceptionGroup as group:
        caught.value = group
    except (KeyboardInterrupt, SystemExit) as exc:
        if not alone:
            pytest.fail(f"{exc!r} left the block bare, without a group and a result")
        caught.value = BaseExceptionGroup("alone", [exc])
    else:
        pytest.fail("nothing was raised")


# ---------------------------------------------------------------- raised by a branch


@policies
@interrupts
def test_raised_by_a_branch_it_stops_the_step_and_leaves_in_a_group(
    interrupt: type[BaseException], policy: Policy
) -> None:
    async def program() -> None:
        raised = interrupt("now")
        log: list[str] = []
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery(3, policy=policy) as nursery:
                nursery.start_soon("sleeps", clean_up_for, 5, log)
                nursery.start_soon("keeps", give_when_stopped, "kept")
                await until_nothing_is_ready()
                nursery.start_soon("raises", fail, raised)
                nursery.start_soon("waits", trio.sleep_forever)
        assert caught.value.exceptions == (raised,)
        assert log == ["cleaned up"]
        result = nursery.result
        expected = {"sleeps": CANCELLED, "keeps": SUCCEEDED, "raises": CANCELLED, "waits": SKIPPED}
        assert statuses(result) == expected
        assert result.stop_reason == f"'raises' raised {interrupt.__name__}: now"
        assert result["sleeps"].reason == result.stop_reason
        assert not result.success
        assert_complete(nursery, *expected)

    run_in_many_orders(program)


@interrupts
def test_it_is_never_an_exception_of_the_result(interrupt: type[BaseException]) -> None:
    async def program() -> None:
        with stopped_by_interrupt():
            async with open_branch_nursery() as nursery:
                nursery.start_soon("raises", fail, interrupt())
        assert nursery.result["raises"].exception is None
        assert nursery.result.errors == {}

    run(program)


@interrupts
def test_errors_of_cleanup_leave_beside_it(interrupt: type[BaseException]) -> None:
    async def program() -> None:
        raised, error = interrupt(), ValueError("cleanup")
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("raises too", fail_when_stopped, error)
                await until_nothing_is_ready()
                nursery.start_soon("raises", fail, raised)
        assert set(leaves(caught.value)) == {raised, error}
        assert nursery.result["raises too"].status is FAILED
        rest = caught.value.split(interrupt)[1]
        assert isinstance(rest, BranchErrors)
        assert rest.exceptions == (error,)
        assert rest.result is nursery.result

    run_in_many_orders(program)


@interrupts
def test_out_of_a_nursery_of_the_branchs_own_it_is_found_in_the_group(
    interrupt: type[BaseException],
) -> None:
    async def program() -> None:
        raised, error = interrupt(), ValueError("cleanup")

        async def own_nursery() -> None:
            async with trio.open_nursery() as own:
                own.start_soon(fail_when_stopped, error)
                own.start_soon(fail, raised)

        with stopped_by_interrupt() as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("raises", own_nursery)
                nursery.start_soon("sleeps", trio.sleep_forever)
        assert raised in leaves(caught.value)
        assert nursery.result["sleeps"].status in (CANCELLED, SKIPPED)
        assert_complete(nursery, "raises", "sleeps")

    run_in_many_orders(program)


@interrupts
def test_out_of_a_nested_step_it_stops_both(interrupt: type[BaseException]) -> None:
    async def program() -> None:
        raised = interrupt()
        inner: list[BranchNursery] = []

        async def nests() -> None:
            async with open_branch_nursery(BranchLimiter(2), name="inner") as nursery:
                inner.append(nursery)
                nursery.start_soon("sleeps", trio.sleep_forever)
                nursery.start_soon("raises", fail, raised)

        with stopped_by_interrupt() as caught:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("nests", nests)
                nursery.start_soon("sleeps", trio.sleep_forever)
        assert leaves(caught.value) == [raised]
        assert nursery.result["nests"].status is CANCELLED
        assert_complete(inner[0], "sleeps", "raises")

    run_in_many_orders(program)


@interrupts
def test_raised_in_a_thread_it_goes_through_like_any(interrupt: type[BaseException]) -> None:
    async def program() -> None:
        def raises() -> None:
            raise interrupt("thread")

        with stopped_by_interrupt() as caught:
            await run_branches({"a": in_thread(raises)})
        assert [str(leaf) for leaf in leaves(caught.value)] == ["thread"]

    trio.run(program)


# ---------------------------------------------------------------- while the step is stopped already


@pytest.mark.parametrize("stop", ["breach", "body", "deadline", "move on", "policy", "satisfied"])
@interrupts
def test_raised_while_being_stopped_it_leaves_in_a_group_all_the_same(
    interrupt: type[BaseException], stop: str
) -> None:
    async def program() -> None:
        raised = interrupt("cleanup")
        error = LookupError("body")
        options: Any = {
            "deadline": {"fail_after": 1},
            "move on": {"move_on_after": 1},
            "satisfied": {"policy": FIRST_SUCCESS},
        }.get(stop, {})
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery(**options) as nursery:
                nursery.start_soon("raises", fail_when_stopped, raised)
                await until_nothing_is_ready()
                if stop == "breach":
                    nursery.breach("first")
                if stop == "body":
                    raise error
                if stop == "policy":
                    nursery.start_soon("fails", fail, error)
                if stop == "satisfied":
                    nursery.start_soon("gives", give, 1)
        shown = [error] if stop in ("body", "policy") else []
        assert set(leaves(caught.value)) == {raised, *shown}
        if stop == "breach":
            assert nursery.result["raises"].status is BREACHED
            assert nursery.result.stop_reason == "first"
        assert_idle(nursery.limiter)

    run_in_many_orders(program)


@interrupts
def test_raised_under_an_outer_cancellation_it_stands_beside_cancelled(
    interrupt: type[BaseException],
) -> None:
    async def program() -> None:
        raised = interrupt("cleanup")
        with stopped_by_interrupt() as caught, trio.CancelScope() as outer:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("raises", fail_when_stopped, raised)
                nursery.start_soon("sleeps", trio.sleep_forever)
                await until_nothing_is_ready()
                outer.cancel()
        assert leaves(caught.value) == [raised]
        assert outer.cancelled_caught
        assert statuses(nursery.result) == {"raises": CANCELLED, "sleeps": CANCELLED}

    run_in_many_orders(program)


# ---------------------------------------------------------------- raised by the body


@interrupts
def test_raised_by_the_body_it_stops_the_step_and_leaves_in_a_group(
    interrupt: type[BaseException],
) -> None:
    async def program() -> None:
        raised = interrupt("body")
        log: list[str] = []
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery(1) as nursery:
                nursery.start_soon("sleeps", clean_up_for, 5, log)
                nursery.start_soon("waits", trio.sleep_forever)
                await until_nothing_is_ready()
                raise raised
        assert caught.value.exceptions == (raised,)
        assert log == ["cleaned up"]
        assert statuses(nursery.result) == {"sleeps": CANCELLED, "waits": SKIPPED}
        assert nursery.result.stop_reason == f"the body raised {interrupt.__name__}: body"
        assert_complete(nursery, "sleeps", "waits")

    run_in_many_orders(program)


@interrupts
def test_raised_by_the_body_in_a_group_the_group_stays_nested(
    interrupt: type[BaseException],
) -> None:
    async def program() -> None:
        group = BaseExceptionGroup("mine", [interrupt(), ValueError()])
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery():
                raise group
        assert caught.value.exceptions == (group,)

    run(program)


# ---------------------------------------------------------------- raised by what the engine calls


class PolicyThatRaises:
    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        raise self.raised


class ObserverThatRaises(Observer):
    def __init__(self, hook: str, raised: BaseException) -> None:
        self.raised = raised
        setattr(self, hook, self.raises)

    def raises(self, *args: Any) -> None:
        raise self.raised


def options_that_raise(where: str, raised: BaseException) -> dict[str, Any]:
    def done(key: Any, result: StepResult[Any]) -> bool:
        raise raised

    if where == "policy":
        return {"policy": PolicyThatRaises(raised)}
    if where == "predicate":
        return {"policy": until(done)}
    return {"observers": [ObserverThatRaises(where, raised)]}


@pytest.mark.parametrize(
    "where", ["policy", "predicate", "branch_started", "branch_ended", "step_closed"]
)
@interrupts
def test_raised_by_a_callback_it_goes_through_and_takes_no_token_along(
    interrupt: type[BaseException], where: str
) -> None:
    async def program() -> None:
        raised = interrupt("callback")
        limiter = BranchLimiter(2)
        with stopped_by_interrupt(alone=True) as caught:
            async with open_branch_nursery(limiter, **options_that_raise(where, raised)) as nursery:
                nursery.start_soon("a", give, 1)
                nursery.start_soon("b", give, 2)
                nursery.start_soon("c", give, 3)
        assert set(leaves(caught.value)) == {raised}
        assert_idle(limiter)
        assert (await run_branches({"next": lambda: give(1)}, limiter)).outputs == {"next": 1}
        assert list(nursery.result) == ["a", "b", "c"]
        for ended in nursery.result.values():
            assert ended.status in (SUCCEEDED, CANCELLED, SKIPPED)

    run(program)


# ---------------------------------------------------------------- signals, in this process


def interrupt_this_process() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_signal_in_a_branchs_own_code_is_raised_there() -> None:
    async def program() -> None:
        seen = []

        async def is_interrupted() -> None:
            try:
                interrupt_this_process()
            except KeyboardInterrupt:
                seen.append("there")
                raise

        with stopped_by_interrupt() as caught:
            async with open_branch_nursery(2) as nursery:
                nursery.start_soon("sleeps", trio.sleep_forever)
                nursery.start_soon("is interrupted", is_interrupted)
        assert seen == ["there"]
        assert [type(leaf) for leaf in leaves(caught.value)] == [KeyboardInterrupt]
        assert_complete(nursery, "sleeps", "is interrupted")

    run_in_many_orders(program)


def test_a_signal_in_a_branch_that_runs_on_after_a_checkpoint_is_raised_there() -> None:
    async def program() -> None:
        async def is_interrupted() -> None:
            await trio.lowlevel.checkpoint()
            interrupt_this_process()
            pytest.fail("not interrupted")

        with stopped_by_interrupt() as caught:
            await run_branches({"a": is_interrupted})
        assert [type(leaf) for leaf in leaves(caught.value)] == [KeyboardInterrupt]

    run(program)


def test_a_branch_may_handle_its_keyboard_interrupt() -> None:
    async def program() -> None:
        async def handles_it() -> str:
            try:
                interrupt_this_process()
            except KeyboardInterrupt:
                return "handled"
            return "missed"

        assert (await run_branches({"a": handles_it})).outputs == {"a": "handled"}

    run(program)


class Interrupts(Observer):
    """A signal comes while the engine's own code runs."""

    def __init__(self, hook: str) -> None:
        self.come = False
        setattr(self, hook, self.now)

    def now(self, *args: Any) -> None:
        if not self.come:
            self.come = True
            interrupt_this_process()


@pytest.mark.parametrize(
    "hook",
    ["step_opened", "branch_queued", "branch_started", "branch_ended", "cancel_requested"],
)
def test_a_signal_in_the_engines_code_waits_for_a_checkpoint_of_the_main_task(hook: str) -> None:
    """Nothing is torn in the middle: every branch has an ending, every token is back."""

    async def program() -> None:
        limiter = BranchLimiter(1)
        observer = Interrupts(hook)
        nursery: Any = None
        with stopped_by_interrupt(alone=True) as caught:
            async with open_branch_nursery(limiter, observers=[observer]) as nursery:
                nursery.start_soon("a", give, 1)
                nursery.start_soon("b", give, 2)
                nursery.start_soon("c", trio.sleep_forever)
                nursery.start_soon("d", trio.sleep_forever)
                await until_nothing_is_ready()
                nursery.cancel("d")
                await trio.sleep_forever()
        assert observer.come
        assert [type(leaf) for leaf in leaves(caught.value)] == [KeyboardInterrupt]
        assert_idle(limiter)
        if nursery is not None:
            assert_complete(nursery, *nursery.result)

    trio.run(program)


# ---------------------------------------------------------------- signals, in a process of its own

CHILD = """
import json, sys
import trio
import trio.testing
from trio_parallel_steps import BranchLimiter, in_thread, open_branch_nursery

async def sleeps(log):
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        log.append("cleaned up")

async def is_busy():
    await trio.testing.wait_all_tasks_blocked()
    print("ready", flush=True)
    while True:
        pass

async def says_ready():
    await trio.testing.wait_all_tasks_blocked()
    print("ready", flush=True)

def in_its_thread():
    print("ready", flush=True)
    while True:
        trio.from_thread.check_cancelled()

async def main(where):
    log = []
    limiter = BranchLimiter(3)
    caught = None
    try:
        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("sleeps", sleeps, log)
            nursery.start_soon("sleeps too", sleeps, log)
            body = {
                "a busy branch": is_busy, "a thread": in_thread(in_its_thread),
                "a busy body": trio.lowlevel.checkpoint,
            }.get(where, says_ready)
            nursery.start_soon("it", body)
            nursery.start_soon("waits", sleeps, log, priority=-1)
            nursery.start_soon("waits too", sleeps, log, priority=-1)
            if where == "the body":
                await trio.sleep_forever()
            if where == "a busy body":
                await trio.testing.wait_all_tasks_blocked()
                print("ready", flush=True)
                while True:
                    pass
    except BaseExceptionGroup as group:
        caught = [type(exc).__name__ for exc in group.exceptions]
    print(json.dumps({
        "caught": caught,
        "log": log,
        "statuses": {key: ended.status.value for key, ended in nursery.result.items()},
        "borrowed": limiter.borrowed_tokens,
        "success": nursery.result.success,
    }), flush=True)

trio.run(main, sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
@pytest.mark.parametrize(
    "where", ["the body", "the exit", "a busy branch", "a busy body", "a thread"]
)
def test_ctrl_c_stops_the_step_and_every_cleanup_is_done(where: str) -> None:
    root = str(Path(trio_parallel_steps.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    with child:
        assert child.stdout is not None
        ready = child.stdout.readline()
        if ready:
            child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert (ready, child.returncode, err) == ("ready\n", 0, "")
    seen = json.loads(out.splitlines()[-1])
    assert seen["caught"] == ["KeyboardInterrupt"]
    assert seen["borrowed"] == 0
    assert not seen["success"]
    ended = seen["statuses"]
    assert list(ended) == ["sleeps", "sleeps too", "it", "waits", "waits too"]
    assert (ended["sleeps"], ended["sleeps too"]) == ("cancelled", "cancelled")
    assert set(ended.values()) <= {"cancelled", "skipped", "succeeded"}
    ran = [key for key in ended if key != "it" and ended[key] != "skipped"]
    assert seen["log"] == ["cleaned up"] * len(ran)


def test_a_signal_while_the_block_waits_is_met_there() -> None:
    """The branch's code is protected, so the signal goes to the main task, which waits."""

    @trio.lowlevel.enable_ki_protection
    async def interrupts() -> None:
        await trio.lowlevel.checkpoint()  # the block waits by now
        interrupt_this_process()
        await trio.sleep_forever()

    async def program() -> None:
        with stopped_by_interrupt() as caught:
            async with open_branch_nursery(1) as nursery:
                nursery.start_soon("interrupts", interrupts)
        assert [type(leaf) for leaf in leaves(caught.value)] == [KeyboardInterrupt]
        assert_complete(nursery, "interrupts")
        assert nursery.result.stop_reason == "waiting raised KeyboardInterrupt"

    run(program)
