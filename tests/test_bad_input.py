"""A clear error at the call that is wrong, before anything has started; it names the argument, what
was expected and what was given."""

import contextvars
import functools
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from helpers import FAILED, assert_complete, assert_idle, give, until_nothing_is_ready
from trio_parallel_steps import (
    COLLECT,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breach,
    Breached,
    CancelRule,
    current_branch,
    in_process,
    in_thread,
    open_branch_nursery,
    quorum,
    run_branches,
    tolerate,
    until,
)
from trio_parallel_steps.abc import Observer

NAN = math.nan
LIMIT = "`limit` must be an int >= 1, math.inf, a Limit or a limiter, got "
TOKENS = "`total_tokens` must be an int >= 1 or math.inf, got "
TOTAL = "`total_tokens` must be an int >= 1, math.inf or a Limit, got "
OPEN = "<BranchNursery 'step': 1 queued, 0 running, 0 ended>"
SYNC = "`sync_fn` must be a sync function: an async one needs no thread"
SECONDS = "must be a number of seconds >= 0, or math.inf, got "

Row = tuple[Any, type[Exception], str]


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def rows(*listed: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("given", "error", "message"), listed, ids=lambda given: "")


# ---------------------------------------------------------------- open_branch_nursery, run_branches


class Quiet(Observer):
    def step_opened(self, step: BranchNursery) -> None:
        pytest.fail("opened")


OPTIONS: list[Row] = [
    # limit
    ({"limit": 0}, ValueError, LIMIT + "0"),
    ({"limit": -1}, ValueError, LIMIT + "-1"),
    ({"limit": NAN}, ValueError, LIMIT + "nan"),
    ({"limit": -math.inf}, ValueError, LIMIT + "-inf"),
    ({"limit": 2.5}, ValueError, LIMIT + "2.5"),
    ({"limit": True}, TypeError, LIMIT + "True"),
    ({"limit": False}, TypeError, LIMIT + "False"),
    ({"limit": "3"}, TypeError, LIMIT + "'3'"),
    ({"limit": [3]}, TypeError, LIMIT + "[3]"),
    ({"limit": BranchLimiter}, TypeError, LIMIT + repr(BranchLimiter)),
    # fail_after, move_on_after
    ({"fail_after": -1}, ValueError, f"`fail_after` {SECONDS}-1"),
    ({"fail_after": NAN}, ValueError, f"`fail_after` {SECONDS}nan"),
    ({"fail_after": True}, TypeError, f"`fail_after` {SECONDS}True"),
    ({"fail_after": None}, TypeError, f"`fail_after` {SECONDS}None"),
    ({"fail_after": "1"}, TypeError, f"`fail_after` {SECONDS}'1'"),
    ({"move_on_after": -0.5}, ValueError, f"`move_on_after` {SECONDS}-0.5"),
    ({"move_on_after": NAN}, ValueError, f"`move_on_after` {SECONDS}nan"),
    ({"move_on_after": False}, TypeError, f"`move_on_after` {SECONDS}False"),
    ({"move_on_after": 1j}, TypeError, f"`move_on_after` {SECONDS}1j"),
    (
        {"fail_after": 1, "move_on_after": 1},
        ValueError,
        "only one of `fail_after` and `move_on_after` can be given",
    ),
    # breach, name
    ({"breach": "now"}, TypeError, "`breach` must be a Breach or None, got 'now'"),
    ({"breach": Breach}, TypeError, f"`breach` must be a Breach or None, got {Breach!r}"),
    ({"name": 3}, TypeError, "`name` must be a str, got 3"),
    ({"name": b"step"}, TypeError, "`name` must be a str, got b'step'"),
    # policy
    (
        {"policy": None},
        TypeError,
        "`policy` must be a Policy: an object with on_end(), got None",
    ),
    (
        {"policy": "COLLECT"},
        TypeError,
        "`policy` must be a Policy: an object with on_end(), got 'COLLECT'",
    ),
    (
        {"policy": quorum},
        TypeError,
        f"`policy` must be a Policy: an object with on_end(), got {quorum!r}",
    ),
    (
        {"policy": type(COLLECT)},
        TypeError,
        f"`policy` must be a Policy: an object with on_end(), got {type(COLLECT)!r}",
    ),
    # cancel_rules
    (
        {"cancel_rules": CancelRule("a", "b")},
        TypeError,
        f"`cancel_rules` must be an iterable of CancelRule, got {CancelRule('a', 'b')!r}",
    ),
    (
        {"cancel_rules": [("a", "b")]},
        TypeError,
        "`cancel_rules` must be an iterable of CancelRule, got ('a', 'b')",
    ),
    (
        {"cancel_rules": "ab"},
        TypeError,
        "`cancel_rules` must be an iterable of CancelRule, got 'a'",
    ),
    (
        {"cancel_rules": None},
        TypeError,
        "`cancel_rules` must be an iterable of CancelRule, got None",
    ),
    # observers
    ({"observers": 3}, TypeError, "`observers` must be an iterable of Observer, got 3"),
    (
        {"observers": [Observer]},
        TypeError,
        f"`observers` must be an iterable of Observer, got {Observer!r}",
    ),
    (
        {"observers": [print]},
        TypeError,
        "`observers` must be an iterable of Observer, got <built-in function print>",
    ),
]


@rows(*OPTIONS)
async def test_a_bad_option_is_refused_before_the_block_is_entered(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        open_branch_nursery(**{"observers": [Quiet()], **given})


@rows(*OPTIONS)
async def test_run_branches_refuses_a_bad_option_before_anything_starts(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        await run_branches({"a": never_called}, **{"observers": [Quiet()], **given})


async def never_called(*args: Any) -> None:
    pytest.fail("called")


async def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'limits'"):
        await run_branches({"a": never_called}, limits=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'retries'"):
        open_branch_nursery(retries=3)  # type: ignore[call-arg]


# ---------------------------------------------------------------- what is to be run


async def generates() -> AsyncIterator[int]:
    yield 1


class NotAsync:
    def __repr__(self) -> str:
        return "<not async>"


class NotAsyncWhenCalled(NotAsync):
    def __call__(self) -> int:
        return 1


WRAP = (
    ", which is not: wrap it in in_thread(...) or in_process(...) to run it beside the event loop"
)
NOT_ASYNC: list[Row] = [
    (None, TypeError, "must be an async function, got None"),
    (3, TypeError, "must be an async function, got 3"),
    ("give", TypeError, "must be an async function, got 'give'"),
    (NotAsync(), TypeError, "must be an async function, got <not async>"),
    (time.sleep, TypeError, f"must be an async function, got {time.sleep!r}{WRAP}"),
    (print, TypeError, f"must be an async function, got {print!r}{WRAP}"),
    (dict, TypeError, f"must be an async function, got {dict!r}{WRAP}"),
    (NotAsync, TypeError, f"must be an async function, got {NotAsync!r}{WRAP}"),
    (
        generates,
        TypeError,
        f"must be an async function, got an async generator function, which yields: {generates!r}",
    ),
]


@rows(*NOT_ASYNC)
async def test_what_is_known_not_to_be_async_is_refused_by_start_soon(
    given: Any, error: type[Exception], message: str
) -> None:
    async with open_branch_nursery() as nursery:
        with pytest.raises(error, match=exactly(f"`async_fn` {message}")):
            nursery.start_soon("a", given)
        assert nursery.statistics().queued == 0
    assert_complete(nursery)


@rows(*NOT_ASYNC)
async def test_what_is_known_not_to_be_async_is_refused_by_run_branches(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(f"`branches['b']` {message}")):
        await run_branches({"a": never_called, "b": given})


async def test_a_coroutine_object_is_refused_and_leaves_no_warning_behind() -> None:
    message = (
        "`async_fn` must be an async function, got a coroutine object: "
        "pass never_called itself and its arguments, don't call it"
    )
    async with open_branch_nursery() as nursery:
        with pytest.raises(TypeError, match=exactly(message)):
            nursery.start_soon("a", never_called())  # type: ignore[arg-type]
    assert_complete(nursery)


async def test_coroutine_objects_are_refused_and_leave_no_warnings_behind() -> None:
    branches: Any = {"a": never_called(), "b": never_called()}
    with pytest.raises(TypeError, match=r"^`branches\['a'\]` must be an async function, got a cor"):
        await run_branches(branches)


async def test_another_awaitable_is_refused() -> None:
    class Future:
        def __await__(self) -> Iterator[None]:
            return iter(())

        def __repr__(self) -> str:
            return "<future>"

    message = "`async_fn` must be an async function, got an awaitable: <future>"
    async with open_branch_nursery() as nursery:
        with pytest.raises(TypeError, match=exactly(message)):
            nursery.start_soon("a", Future())  # type: ignore[arg-type]


def sync_function() -> int:
    return 1


@pytest.mark.parametrize(
    "given",
    [
        sync_function,
        lambda: 1,
        lambda: None,
        functools.partial(sync_function),
        NotAsyncWhenCalled(),
        lambda: generates(),
    ],
    ids=["function", "lambda", "returns None", "partial", "callable", "generator"],
)
async def test_what_turns_out_not_to_be_async_fails_its_branch_alone(given: Any) -> None:
    result = await run_branches({"a": given, "b": lambda: give(1)}, 1, policy=COLLECT)
    assert result["a"].status is FAILED
    assert type(result["a"].exception) is TypeError
    assert (
        str(result["a"].exception) == f"`async_fn` must be an async function, got {given!r}{WRAP}"
    )
    assert result["b"].output == 1


class AwaitableWhenCalled:
    async def __call__(self) -> str:
        return await give("ok")

    async def method(self) -> str:
        return await give("ok")


@pytest.mark.parametrize(
    "given",
    [
        lambda: give("ok"),
        functools.partial(give, "ok"),
        AwaitableWhenCalled(),
        AwaitableWhenCalled().method,
        in_thread(lambda: "ok"),
    ],
    ids=["lambda", "partial", "callable", "method", "in_thread"],
)
async def test_whatever_returns_an_awaitable_will_do(given: Callable[[], Awaitable[str]]) -> None:
    assert (await run_branches({"a": given})).outputs == {"a": "ok"}


async def test_wrong_arguments_fail_the_branch() -> None:
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("a", give)
        nursery.start_soon("b", give, 1, 2)
    assert [type(error) for error in nursery.result.errors.values()] == [TypeError, TypeError]


# ---------------------------------------------------------------- start_soon


START_SOON: list[Row] = [
    ({"key": []}, TypeError, "`key` must be hashable, got []"),
    ({"key": {"a": 1}}, TypeError, "`key` must be hashable, got {'a': 1}"),
    ({"key": ("a", [])}, TypeError, "`key` must be hashable, got ('a', [])"),
    ({"key": "taken"}, ValueError, "duplicate key 'taken'"),
    ({"priority": 1.0}, TypeError, "`priority` must be an int, got 1.0"),
    ({"priority": True}, TypeError, "`priority` must be an int, got True"),
    ({"priority": False}, TypeError, "`priority` must be an int, got False"),
    ({"priority": "high"}, TypeError, "`priority` must be an int, got 'high'"),
    ({"priority": None}, TypeError, "`priority` must be an int, got None"),
    ({"timeout": -1}, ValueError, f"`timeout` {SECONDS}-1"),
    ({"timeout": NAN}, ValueError, f"`timeout` {SECONDS}nan"),
    ({"timeout": -math.inf}, ValueError, f"`timeout` {SECONDS}-inf"),
    ({"timeout": True}, TypeError, f"`timeout` {SECONDS}True"),
    ({"timeout": None}, TypeError, f"`timeout` {SECONDS}None"),
    ({"timeout": "1"}, TypeError, f"`timeout` {SECONDS}'1'"),
    ({"weight": True}, TypeError, "`weight` must be an int >= 1, got True"),
    ({"weight": 1.5}, TypeError, "`weight` must be an int >= 1, got 1.5"),
    ({"weight": 1.0}, TypeError, "`weight` must be an int >= 1, got 1.0"),
    ({"weight": None}, TypeError, "`weight` must be an int >= 1, got None"),
    ({"weight": math.inf}, TypeError, "`weight` must be an int >= 1, got inf"),
    ({"weight": 0}, ValueError, "`weight` must be an int >= 1, got 0"),
    ({"weight": -1}, ValueError, "`weight` must be an int >= 1, got -1"),
]


@rows(*START_SOON)
async def test_start_soon_refuses_bad_arguments_and_submits_nothing(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with open_branch_nursery() as nursery:
        nursery.start_soon("taken", give, 1)
        with pytest.raises(error, match=exactly(message)):
            nursery.start_soon(**{"key": "a", "async_fn": never_called, **given})
        assert nursery.statistics().queued == 1
    assert_complete(nursery, "taken")


async def test_a_key_stays_taken_once_its_branch_has_ended() -> None:
    async with open_branch_nursery() as nursery:
        await nursery.start_soon("a", give, 1).wait()
        with pytest.raises(ValueError, match=exactly("duplicate key 'a'")):
            nursery.start_soon("a", never_called)
    assert nursery.result.outputs == {"a": 1}


async def test_an_unknown_option_of_start_soon_is_a_type_error() -> None:
    async with open_branch_nursery() as nursery:
        with pytest.raises(TypeError, match="unexpected keyword argument 'limit'"):
            nursery.start_soon("a", never_called, limit=3)  # type: ignore[call-arg]


# ---------------------------------------------------------------- run_branches

RUN_BRANCHES: list[Row] = [
    (
        {"branches": [never_called]},
        TypeError,
        f"`branches` must be a mapping from key to async function, got {[never_called]!r}",
    ),
    (
        {"branches": None},
        TypeError,
        "`branches` must be a mapping from key to async function, got None",
    ),
    (
        {"priorities": {"x": 1}},
        ValueError,
        "`priorities` names keys that are not in `branches`: ['x']",
    ),
    (
        {"priorities": [("a", 1)]},
        TypeError,
        "`priorities` must be a mapping from key to int, got [('a', 1)]",
    ),
    ({"priorities": {"a": True}}, TypeError, "`priorities['a']` must be an int, got True"),
    ({"priorities": {"a": 0.5}}, TypeError, "`priorities['a']` must be an int, got 0.5"),
    (
        {"weights": {"x": 1}},
        ValueError,
        "`weights` names keys that are not in `branches`: ['x']",
    ),
    (
        {"weights": [("a", 1)]},
        TypeError,
        "`weights` must be a mapping from key to int, got [('a', 1)]",
    ),
    ({"weights": {"a": True}}, TypeError, "`weights['a']` must be an int >= 1, got True"),
    ({"weights": {"a": 1.5}}, TypeError, "`weights['a']` must be an int >= 1, got 1.5"),
    ({"weights": {"a": None}}, TypeError, "`weights['a']` must be an int >= 1, got None"),
    ({"weights": {"a": 0}}, ValueError, "`weights['a']` must be an int >= 1, got 0"),
    ({"weights": {"a": -1}}, ValueError, "`weights['a']` must be an int >= 1, got -1"),
    ({"branch_timeout": -1}, ValueError, f"`branch_timeout` {SECONDS}-1"),
    ({"branch_timeout": NAN}, ValueError, f"`branch_timeout` {SECONDS}nan"),
    ({"branch_timeout": True}, TypeError, f"`branch_timeout` {SECONDS}True"),
    ({"branch_timeout": None}, TypeError, f"`branch_timeout` {SECONDS}None"),
]


@rows(*RUN_BRANCHES)
async def test_run_branches_refuses_bad_arguments_before_anything_starts(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        await run_branches(**{"branches": {"a": never_called}, "observers": [Quiet()], **given})


# ---------------------------------------------------------------- the other public functions


@rows(
    (lambda: quorum(0), ValueError, "`successes` must be an int >= 1, got 0"),
    (lambda: quorum(-1), ValueError, "`successes` must be an int >= 1, got -1"),
    (lambda: quorum(True), TypeError, "`successes` must be an int >= 1, got True"),
    (lambda: quorum(1.0), TypeError, "`successes` must be an int >= 1, got 1.0"),  # type: ignore[arg-type]
    (lambda: tolerate(-1), ValueError, "`failures` must be an int >= 0, got -1"),
    (lambda: tolerate(False), TypeError, "`failures` must be an int >= 0, got False"),
    (lambda: tolerate("2"), TypeError, "`failures` must be an int >= 0, got '2'"),  # type: ignore[arg-type]
    (lambda: until(7), TypeError, "`done` must be a function of key and result, got 7"),  # type: ignore[arg-type]
    (lambda: CancelRule(1, "b"), TypeError, "`when` must be a str, got 1"),  # type: ignore[arg-type]
    (lambda: CancelRule("a", None), TypeError, "`cancel` must be a str, got None"),  # type: ignore[arg-type]
    (
        lambda: CancelRule("a", "b", on="failure"),
        ValueError,
        "`on` must be 'success' or 'end', got 'failure'",
    ),
    (lambda: CancelRule("a", "b", on=1), TypeError, "`on` must be a str, got 1"),  # type: ignore[arg-type]
    (lambda: BranchLimiter(0), ValueError, TOTAL + "0"),
    (lambda: BranchLimiter(-3), ValueError, TOTAL + "-3"),
    (lambda: BranchLimiter(NAN), ValueError, TOTAL + "nan"),
    (lambda: BranchLimiter(1.5), ValueError, TOTAL + "1.5"),
    (lambda: BranchLimiter(True), TypeError, TOTAL + "True"),
    (lambda: BranchLimiter(None), TypeError, TOTAL + "None"),  # type: ignore[arg-type]
    (lambda: BranchLimiter(1, name=1), TypeError, "`name` must be a str, got 1"),  # type: ignore[arg-type]
    (lambda: Breach().trip(None), TypeError, "`reason` must be a str, got None"),  # type: ignore[arg-type]
    (lambda: BranchLimiter(1).pause(0), TypeError, "`reason` must be a str, got 0"),  # type: ignore[arg-type]
    (lambda: in_thread(3), TypeError, "`sync_fn` must be a function, got 3"),  # type: ignore[arg-type]
    (
        lambda: in_thread(never_called),
        TypeError,
        f"`sync_fn` must be a sync function: an async one needs no thread, got {never_called!r}",
    ),
    (lambda: in_process(3), TypeError, "`sync_fn` must be a function, got 3"),  # type: ignore[arg-type]
    (
        lambda: in_process(never_called),
        TypeError,
        f"`sync_fn` must be a sync function: an async one needs no process, got {never_called!r}",
    ),
    (lambda: current_branch(), RuntimeError, "not inside a branch"),
    (
        lambda: Branch(),  # type: ignore[call-arg]
        TypeError,
        "trio_parallel_steps._branch.Branch has no public constructor",
    ),
    (
        lambda: BranchNursery(None, None),  # type: ignore[arg-type]
        TypeError,
        "trio_parallel_steps._nursery.BranchNursery has no public constructor",
    ),
)
def test_a_bad_argument_is_refused_at_once(
    given: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        given()


@rows(
    (0, ValueError, TOKENS + "0"),
    (-1, ValueError, TOKENS + "-1"),
    (NAN, ValueError, TOKENS + "nan"),
    (True, TypeError, TOKENS + "True"),
    (None, TypeError, TOKENS + "None"),
)
def test_a_bad_number_of_tokens_leaves_the_limiter_as_it_was(
    given: Any, error: type[Exception], message: str
) -> None:
    limiter = BranchLimiter(4)
    with pytest.raises(error, match=exactly(message)):
        limiter.total_tokens = given
    assert limiter.total_tokens == 4


@rows(
    (lambda n, b: n.breach(None), TypeError, "`reason` must be a str, got None"),
    (lambda n, b: n.breach(b"x"), TypeError, "`reason` must be a str, got b'x'"),
    (lambda n, b: n.pause(1), TypeError, "`reason` must be a str, got 1"),
    (lambda n, b: n.cancel("a", 1), TypeError, "`reason` must be a str, got 1"),
    (lambda n, b: n.cancel("x"), KeyError, "'x'"),
    (lambda n, b: n["x"], KeyError, "'x'"),
    (
        lambda n, b: n.cancel_where("a"),
        TypeError,
        "`predicate` must be a function of a key, got 'a'",
    ),
    (
        lambda n, b: n.cancel_where(lambda key: True, 1),
        TypeError,
        "`reason` must be a str, got 1",
    ),
    (
        lambda n, b: n.cancel_where(lambda key: False, 1),
        TypeError,
        "`reason` must be a str, got 1",
    ),
    (lambda n, b: b.cancel(False), TypeError, "`reason` must be a str, got False"),
    (lambda n, b: setattr(b, "priority", 1.5), TypeError, "`priority` must be an int, got 1.5"),
    (lambda n, b: setattr(b, "priority", True), TypeError, "`priority` must be an int, got True"),
    (lambda n, b: b.report("half"), TypeError, "`done` must be a number, got 'half'"),
    (lambda n, b: b.report(True), TypeError, "`done` must be a number, got True"),
    (lambda n, b: b.report(1, "all"), TypeError, "`total` must be a number or None, got 'all'"),
    (
        lambda n, b: n.result,
        RuntimeError,
        f"{OPEN} is open: there is no result before its block is left",
    ),
)
async def test_a_bad_call_on_an_open_step_changes_nothing(
    given: Callable[[BranchNursery, Branch[Any]], object], error: type[Exception], message: str
) -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon("a", give, 1)
        with pytest.raises(error, match=exactly(message)):
            given(nursery, branch)
    assert nursery.result.outputs == {"a": 1}
    assert nursery.result.success


# ---------------------------------------------------------------- at the wrong time


async def test_a_block_is_opened_once() -> None:
    message = "a branch nursery can be opened once: call open_branch_nursery again"
    manager = open_branch_nursery()
    async with manager:
        with pytest.raises(RuntimeError, match=exactly(message)):
            async with manager:
                pytest.fail("opened")
    with pytest.raises(RuntimeError, match=exactly(message)):
        async with manager:
            pytest.fail("opened")


async def test_after_the_block_start_soon_is_a_runtime_error() -> None:
    async with open_branch_nursery(name="gone") as nursery:
        pass
    message = (
        "<BranchNursery 'gone': 0 queued, 0 running, 0 ended> is closed: its block has been left"
    )
    with pytest.raises(RuntimeError, match=exactly(message)):
        nursery.start_soon("a", never_called)


async def test_after_the_block_the_other_calls_are_harmless() -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon("a", give, 1)
    assert not nursery.cancel("a")
    assert nursery.cancel_where(lambda key: True) == []
    nursery.breach("too late")
    nursery.pause("too late")
    nursery.resume()
    branch.report(1)
    assert (await branch.wait()).output == 1
    assert [result.key async for result in nursery.completed()] == ["a"]
    assert nursery.result.stop_reason is None


async def test_the_priority_of_a_branch_that_runs_or_has_ended_is_fixed() -> None:
    async with open_branch_nursery() as nursery:
        branch = nursery.start_soon("a", trio.sleep_forever)
        await until_nothing_is_ready()
        message = "<Branch 'a' running> is not queued: its priority can't change any more"
        with pytest.raises(RuntimeError, match=exactly(message)):
            branch.priority = 3
        branch.cancel()
    message = "<Branch 'a' cancelled> is not queued: its priority can't change any more"
    with pytest.raises(RuntimeError, match=exactly(message)):
        branch.priority = 3
    assert branch.priority == 0


async def test_a_step_on_a_tripped_breach_is_not_opened() -> None:
    breach = Breach()
    breach.trip("before")
    with pytest.raises(Breached, match=exactly("before")) as caught:
        await run_branches({"a": never_called}, breach=breach)
    assert caught.value.result is None


def test_outside_an_event_loop_no_step_can_be_opened() -> None:
    manager = open_branch_nursery()
    with pytest.raises(RuntimeError, match="async context"):
        manager.__aenter__().send(None)


# ---------------------------------------------------------------- inside a branch


async def in_a_branch(
    act: Callable[[BranchNursery], Awaitable[object]], limiter: BranchLimiter | None = None
) -> BaseException | None:
    """What the call raises there.  The step itself is none the worse."""
    limiter = limiter or BranchLimiter(1, name="outer")
    async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
        nursery.start_soon("it", act, nursery)
        nursery.start_soon("next", give, 1)
    assert nursery.result["next"].output == 1
    assert_idle(limiter)
    return nursery.result["it"].exception


@rows(
    (True, TypeError, "`limit` must be an int >= 1, math.inf, a Limit or a limiter, got True"),
    (0, ValueError, "`limit` must be an int >= 1, math.inf, a Limit or a limiter, got 0"),
)
async def test_a_step_in_a_branch_refuses_a_bad_limit_like_any_other(
    given: Any, error: type[Exception], message: str
) -> None:
    async def nests(nursery: BranchNursery) -> None:
        await run_branches({"a": never_called}, given)

    raised = await in_a_branch(nests)
    assert type(raised) is error
    assert str(raised) == message


async def test_a_branch_cant_enter_the_limiter_that_it_runs_on() -> None:
    limiter = BranchLimiter(2, name="own")

    async def enters(nursery: BranchNursery) -> None:
        async with limiter:
            pytest.fail("entered")

    error = await in_a_branch(enters, limiter)
    assert type(error) is RuntimeError
    assert "is the one that branch 'it' runs on" in str(error)


async def test_a_task_cant_enter_a_limiter_twice() -> None:
    limiter = BranchLimiter(2, name="once")
    async with limiter:
        message = (
            "this task holds a token of <BranchLimiter 'once': 1 of 2 in use, 0 waiting> already"
        )
        with pytest.raises(RuntimeError, match=exactly(message)):
            await limiter.__aenter__()
    assert_idle(limiter)


async def test_a_step_cant_be_opened_under_a_token_that_the_task_holds() -> None:
    limiter = BranchLimiter(2, name="held")
    async with limiter:
        with pytest.raises(RuntimeError, match=r"^this task holds a token of <Br"):
            await run_branches({"a": never_called}, limiter)
    assert (await run_branches({"a": lambda: give(1)}, limiter)).success
    assert_idle(limiter)


async def test_a_limiter_cant_be_left_by_a_task_that_is_not_in_it() -> None:
    limiter = BranchLimiter(2, name="out")
    message = "this task holds no token of <BranchLimiter 'out': 0 of 2 in use, 0 waiting>"
    with pytest.raises(RuntimeError, match=exactly(message)):
        await limiter.__aexit__(None, None, None)


async def test_a_branch_cant_wait_for_itself() -> None:
    async def waits(nursery: BranchNursery) -> None:
        await current_branch().wait()

    error = await in_a_branch(waits)
    assert type(error) is RuntimeError
    assert str(error) == "Branch.wait() would wait for ever: 'it' waits for 'it'"


async def test_a_branch_cant_wait_for_one_that_it_is_in() -> None:
    async def waits(nursery: BranchNursery) -> None:
        result = await run_branches({"inner": nursery["it"].wait}, policy=COLLECT)
        result["inner"].unwrap()

    error = await in_a_branch(waits)
    assert type(error) is RuntimeError
    assert str(error) == (
        "Branch.wait() would wait for ever: 'it' waits for 'inner' waits for 'it'"
    )


async def test_a_branch_cant_iterate_over_its_own_step() -> None:
    async def iterates(nursery: BranchNursery) -> None:
        nursery.completed()

    error = await in_a_branch(iterates)
    assert type(error) is RuntimeError
    assert str(error) == (
        "completed() would wait for ever: 'it' waits for the branches of step 'step'"
    )


async def test_a_task_that_a_branch_started_is_inside_it() -> None:
    async def waits(nursery: BranchNursery) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(waits_too, nursery)

    async def waits_too(nursery: BranchNursery) -> None:
        with pytest.raises(RuntimeError, match=r"^Branch\.wait\(\) would wait for ever: 'it'"):
            await nursery["it"].wait()

    assert await in_a_branch(waits) is None


async def test_a_task_that_outlives_its_branch_is_outside() -> None:
    outcome = []

    async def outlives(go: trio.Event) -> None:
        await go.wait()
        with pytest.raises(RuntimeError, match=r"^not inside a branch$"):
            current_branch()
        outcome.append((await run_branches({"a": lambda: give(1)})).success)

    async def starts_it(beside: trio.Nursery, go: trio.Event) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(trio.lowlevel.checkpoint)
        trio.lowlevel.spawn_system_task(outlives, go, context=contextvars.copy_context())

    go = trio.Event()
    async with trio.open_nursery() as beside:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("it", starts_it, beside, go)
        go.set()
        await until_nothing_is_ready()
    assert outcome == [True]


# ---------------------------------------------------------------- in another thread, another run

WRONG_THREAD = "called outside the trio thread: use trio.from_thread.run_sync to call it there"

FROM_A_THREAD: dict[str, Callable[[BranchNursery, Branch[Any], Breach, BranchLimiter], object]] = {
    "start_soon": lambda n, b, br, lim: n.start_soon("x", never_called),
    "cancel": lambda n, b, br, lim: n.cancel("a"),
    "cancel_where": lambda n, b, br, lim: n.cancel_where(lambda key: True),
    "breach": lambda n, b, br, lim: n.breach("thread"),
    "pause": lambda n, b, br, lim: n.pause("thread"),
    "resume": lambda n, b, br, lim: n.resume(),
    "completed": lambda n, b, br, lim: n.completed(),
    "Branch.cancel": lambda n, b, br, lim: b.cancel(),
    "Branch.priority": lambda n, b, br, lim: setattr(b, "priority", 3),
    "Branch.report": lambda n, b, br, lim: b.report(1),
    "Breach.trip": lambda n, b, br, lim: br.trip("thread"),
    "BranchLimiter.pause": lambda n, b, br, lim: lim.pause("thread"),
    "BranchLimiter.resume": lambda n, b, br, lim: lim.resume(),
    "BranchLimiter.total_tokens": lambda n, b, br, lim: setattr(lim, "total_tokens", 3),
}


@pytest.mark.parametrize("call", list(FROM_A_THREAD))
async def test_outside_the_trio_thread_it_is_a_runtime_error_that_says_what_to_do(
    call: str,
) -> None:
    breach, limiter = Breach(), BranchLimiter(1)
    async with open_branch_nursery(limiter, breach=breach) as nursery:
        nursery.start_soon("runs", give, 1)
        branch = nursery.start_soon("a", give, 2)
        nursery.pause("so that both are queued")
        with raises_in_a_thread():
            await trio.to_thread.run_sync(FROM_A_THREAD[call], nursery, branch, breach, limiter)
        nursery.resume()
    assert nursery.result.outputs == {"runs": 1, "a": 2}
    assert (breach.reason, limiter.total_tokens, limiter.statistics().paused) == (None, 1, None)


@contextmanager
def raises_in_a_thread() -> Iterator[None]:
    with pytest.raises(RuntimeError, match=exactly(WRONG_THREAD)):
        yield


@pytest.mark.parametrize("call", list(FROM_A_THREAD))
async def test_by_trio_from_thread_it_works(call: str) -> None:
    breach, limiter = Breach(), BranchLimiter(1)

    def in_its_thread(*args: Any) -> None:
        trio.from_thread.run_sync(FROM_A_THREAD[call], *args)

    try:
        async with open_branch_nursery(limiter, breach=breach) as nursery:
            branch = nursery.start_soon("a", give, 2)
            if call == "start_soon":
                nursery.start_soon("x", give, 1)
                with pytest.raises(ValueError, match="duplicate key 'x'"):
                    await trio.to_thread.run_sync(in_its_thread, nursery, branch, breach, limiter)
            else:
                nursery.pause("until it is told")
                await trio.to_thread.run_sync(in_its_thread, nursery, branch, breach, limiter)
                nursery.resume()
                limiter.resume()
    except Breached:
        assert call in ("breach", "Breach.trip")
    assert_idle(limiter)


async def test_a_limiter_in_use_cant_be_used_by_another_run() -> None:
    limiter = BranchLimiter(2, name="busy")

    def another_run() -> None:
        async def main() -> None:
            await run_branches({"a": never_called}, limiter)

        trio.run(main)

    message = (
        "<BranchLimiter 'busy': 1 of 2 in use, 0 waiting> is in use by another run of an event"
    )
    async with limiter:
        with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
            await trio.to_thread.run_sync(another_run)
    assert_idle(limiter)


def test_an_idle_limiter_goes_from_run_to_run() -> None:
    limiter = BranchLimiter(1)

    async def main() -> Any:
        return (await run_branches({"a": lambda: give(1)}, limiter)).outputs

    assert [trio.run(main), trio.run(main)] == [{"a": 1}, {"a": 1}]


# ---------------------------------------------------------------- zero is legal


async def test_a_timeout_of_zero_lets_what_never_waits_finish() -> None:
    async def at_once() -> int:
        return 1

    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("at once", at_once, timeout=0)
        nursery.start_soon("waits", trio.sleep_forever, timeout=0)
    assert nursery.result["at once"].output == 1
    assert nursery.result["waits"].reason == "timed out after 0 s"


async def test_errors_are_raised_at_the_call_and_leave_by_the_body() -> None:
    with pytest.raises(BranchErrors) as caught:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", None)  # type: ignore[arg-type]
    assert [str(error) for error in caught.value.exceptions] == [
        "`async_fn` must be an async function, got None"
    ]
