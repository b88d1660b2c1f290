"""`hedged`: a slow call is asked again."""

from __future__ import annotations

import contextvars
import math
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from drivers import EVERY_DRIVER, Driver, World
from helpers import assert_complete, assert_idle
from trio_parallel_steps import (
    BranchErrors,
    BranchLimiter,
    Retry,
    current_branch,
    hedged,
    open_branch_nursery,
    run_branches,
)


class Oops(Exception):
    pass


class Server:
    """Answers the first call after so long, the second after so long, and so on."""

    def __init__(self, *takes: float, fails: tuple[int, ...] = ()) -> None:
        self.takes = takes
        self.fails = fails
        self.opened = trio.current_time()
        self.asked: list[float] = []
        self.cancelled: list[int] = []

    async def ask(self) -> int:
        number = len(self.asked)
        self.asked.append(trio.current_time() - self.opened)
        try:
            await trio.sleep(self.takes[number])
        except trio.Cancelled:
            self.cancelled.append(number)
            raise
        if number in self.fails:
            raise Oops(number)
        return number

    def passed(self) -> float:
        return trio.current_time() - self.opened


def no_timer_is_left() -> bool:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def test_a_fast_call_is_asked_once(autojump_clock: MockClock) -> None:
    server = Server(0.5)
    assert await hedged(server.ask, after=1)() == 0
    assert server.asked == [0]
    assert server.passed() == 0.5
    assert not server.cancelled
    await wait_all_tasks_blocked()
    assert no_timer_is_left()


async def test_a_slow_call_is_asked_again_and_the_first_success_wins(
    autojump_clock: MockClock,
) -> None:
    server = Server(9, 2)
    assert await hedged(server.ask, after=1)() == 1
    assert server.asked == [0, 1]
    assert server.passed() == 3
    assert server.cancelled == [0]
    await wait_all_tasks_blocked()
    assert no_timer_is_left()


async def test_the_first_call_may_still_win(autojump_clock: MockClock) -> None:
    server = Server(2, 9)
    assert await hedged(server.ask, after=1)() == 0
    assert server.passed() == 2
    assert server.cancelled == [1]


async def test_one_attempt_is_the_call_itself(autojump_clock: MockClock) -> None:
    server = Server(9)
    assert await hedged(server.ask, after=1, attempts=1)() == 0
    assert server.asked == [0]


async def test_three_attempts(autojump_clock: MockClock) -> None:
    server = Server(9, 9, 1)
    assert await hedged(server.ask, after=1, attempts=3)() == 2
    assert server.asked == [0, 1, 2]
    assert sorted(server.cancelled) == [0, 1]


async def test_no_more_than_so_many(autojump_clock: MockClock) -> None:
    server = Server(9, 20)
    assert await hedged(server.ask, after=1)() == 0
    assert server.asked == [0, 1]


async def test_outside_a_branch_nothing_limits_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the number of CPUs, say: a slow call would never be asked again."""
    monkeypatch.setattr("trio_parallel_steps.hosts._abc.usable_cpus", lambda: 1)
    server = Server(99, 99, 99, 1)
    assert await hedged(server.ask, after=1, attempts=4)() == 3
    assert server.passed() == 4


async def test_asked_again_at_once(autojump_clock: MockClock) -> None:
    server = Server(9, 2)
    assert await hedged(server.ask, after=0)() == 1
    assert server.asked == [0, 0]


async def test_never_asked_again(autojump_clock: MockClock) -> None:
    server = Server(1e6)
    assert await hedged(server.ask, after=math.inf)() == 0
    assert server.asked == [0]


# ---------------------------------------------------------------- failures


async def test_if_all_fail_all_are_shown(autojump_clock: MockClock) -> None:
    server = Server(3, 1, fails=(0, 1))
    with pytest.raises(BranchErrors) as caught:
        await hedged(server.ask, after=1)()
    assert list(map(repr, caught.value.exceptions)) == ["Oops(0)", "Oops(1)"]
    assert server.passed() == 3


async def test_a_failure_starts_no_other(autojump_clock: MockClock) -> None:
    server = Server(0.5, fails=(0,))
    with pytest.raises(BranchErrors) as caught:
        await hedged(server.ask, after=1)()
    assert list(map(repr, caught.value.exceptions)) == ["Oops(0)"]
    assert server.asked == [0]
    await wait_all_tasks_blocked()
    assert no_timer_is_left()


async def test_one_failure_leaves_the_other_alone(autojump_clock: MockClock) -> None:
    server = Server(2, 3, fails=(0,))
    assert await hedged(server.ask, after=1)() == 1
    assert server.passed() == 4


async def test_a_loser_that_returns_all_the_same_does_not_win(
    autojump_clock: MockClock,
) -> None:
    started = []

    async def ask() -> str:
        started.append(1)
        if len(started) == 2:
            await trio.sleep(1)
            return "winner"
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "loser"
        raise AssertionError("unreachable")

    assert await hedged(ask, after=1)() == "winner"


async def test_nothing_is_asked_while_the_losers_unwind(autojump_clock: MockClock) -> None:
    asked = []

    async def ask() -> int:
        asked.append(1)
        if len(asked) == 2:
            return 2
        with trio.CancelScope(shield=True):
            await trio.sleep(9)
        raise Oops

    assert await hedged(ask, after=1, attempts=5)() == 2
    assert len(asked) == 2


async def test_a_failed_step_is_not_asked_again_while_its_branch_waits_for_a_token(
    autojump_clock: MockClock,
) -> None:
    """The next attempt comes due when all have ended, and the caller has yet to go on."""
    server = Server(1, 1, fails=(0,))
    errors = []

    async def caller() -> None:
        try:
            await hedged(server.ask, after=2)()
        except BranchErrors as exc:
            errors.append(exc)

    async def greedy() -> None:
        limiter.total_tokens = 1
        await trio.sleep(5)

    limiter = BranchLimiter(2)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("caller", caller)
        await trio.sleep(0.5)
        nursery.start_soon("greedy", greedy)
    assert len(errors) == 1
    assert server.asked == [0]
    assert server.passed() == 5.5
    assert_complete(nursery, "caller", "greedy")


async def test_it_may_be_retried(autojump_clock: MockClock) -> None:
    server = Server(1, 1, 1, fails=(0, 1))
    retry = Retry(BranchErrors, wait_initial=1, wait_jitter=0)
    result = await run_branches({"a": hedged(server.ask, after=9)}, retry=retry)
    assert result["a"].output == 2
    assert server.asked == [0, 2, 5]


async def test_a_cancellation_from_outside_goes_through(autojump_clock: MockClock) -> None:
    server = Server(99, 99)
    with trio.move_on_after(2) as scope:
        await hedged(server.ask, after=1)()
    assert scope.cancelled_caught
    assert sorted(server.cancelled) == [0, 1]
    await wait_all_tasks_blocked()
    assert no_timer_is_left()


# ---------------------------------------------------------------- in a branch


async def test_a_branch_lends_its_token_to_the_call(autojump_clock: MockClock) -> None:
    """Under a limit of one, a second attempt has to wait for the first."""
    server = Server(3, 1)
    limiter = BranchLimiter(1)
    async with open_branch_nursery(limiter) as nursery:
        nursery.start_soon("a", hedged(server.ask, after=1))
        await trio.sleep(2)
        assert limiter.borrowed_tokens == 1
        assert limiter.statistics().tasks_waiting == 1
        assert nursery.explain() == {"a": "waits for step 'ask', 2 to end"}
    assert nursery.result["a"].output == 0
    assert server.asked == [0]
    assert_complete(nursery, "a")


async def test_attempts_are_under_the_branchs_own_limiter(autojump_clock: MockClock) -> None:
    servers = [Server(9, 1) for _ in range(3)]
    limiter = BranchLimiter(4)
    result = await run_branches(
        {n: hedged(server.ask, after=1) for n, server in enumerate(servers)}, limiter
    )
    assert list(result.outputs.values()) == [1, 1, 1]
    assert [server.asked for server in servers] == [[0, 1], [0, 2], [0, 2]]
    assert_idle(limiter)


async def test_an_attempt_is_a_branch_named_by_its_number(autojump_clock: MockClock) -> None:
    keys = []

    async def ask() -> None:
        keys.append(current_branch().key)
        await trio.sleep(9)

    await hedged(ask, after=1)()
    assert keys == [0, 1]


# ---------------------------------------------------------------- what it is given

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def test_arguments_and_context_are_the_callers(autojump_clock: MockClock) -> None:
    """Each time, whatever an attempt has done to its own."""
    seen = []

    async def ask(*args: Any, **kwargs: Any) -> None:
        seen.append((variable.get(), args, kwargs))
        variable.set("changed")
        await trio.sleep(9)

    variable.set("mine")
    await hedged(ask, after=1, attempts=3)(1, "x", key="y")
    assert seen == [("mine", (1, "x"), {"key": "y"})] * 3
    assert variable.get() == "mine"


async def test_it_can_be_called_again_and_at_the_same_time(autojump_clock: MockClock) -> None:
    async def ask(x: int) -> int:
        await trio.sleep(x)
        return x

    both = hedged(ask, after=1)
    result = await run_branches({n: lambda n=n: both(n) for n in (1, 3)}, 9)  # type: ignore[misc]
    assert result.outputs == {1: 1, 3: 3}


def test_it_is_named_as_its_function() -> None:
    async def ask() -> None:
        """Asks."""

    twice = hedged(ask, after=1)
    assert twice.__name__ == "ask"
    assert twice.__doc__ == "Asks."


class Asks:
    async def __call__(self, x: int) -> int:
        return x


async def test_a_callable_object_will_do(autojump_clock: MockClock) -> None:
    assert await hedged(Asks(), after=1)(3) == 3


@EVERY_DRIVER
@pytest.mark.parametrize("takes", [(9, 1), (0.5, 1)])
def test_on_every_host(takes: tuple[float, float], driver: Driver) -> None:
    async def program(world: World) -> Any:
        asked: list[float] = []
        opened = world.now()

        async def ask() -> int:
            number = len(asked)
            asked.append(round(world.now() - opened, 6))
            await world.sleep(takes[number])
            return number

        answer = await hedged(ask, after=1)()
        return answer, asked, round(world.now() - opened, 6)

    assert driver(program) == ((1, [0, 1], 2) if takes[0] == 9 else (0, [0], 0.5))


# ---------------------------------------------------------------- bad input


async def fine() -> None:
    pass


async def yields() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (3, "`async_fn` must be an async function, got 3"),
        (print, "`async_fn` must be an async function, got .*, which is not: wrap it in in_thread"),
        (yields, "`async_fn` must be an async function, got an async generator function"),
    ],
)
def test_what_is_known_not_to_be_an_async_function(fn: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        hedged(fn, after=1)


def test_a_coroutine_object_is_refused() -> None:
    with pytest.raises(TypeError, match="got a coroutine object: pass fine itself"):
        hedged(fine(), after=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kwargs", [{}, {"x": 1}])
async def test_a_sync_function_shows_when_it_is_called(kwargs: dict[str, int]) -> None:
    def sync(x: int = 0) -> int:
        return x

    call: Callable[..., Any] = hedged(sync, after=1)  # type: ignore[arg-type]
    with pytest.raises(BranchErrors) as caught:
        await call(**kwargs)
    (error,) = caught.value.exceptions
    assert isinstance(error, TypeError)
    assert str(error).startswith("`async_fn` must be an async function, got ")
    assert "in_thread(...)" in str(error)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *(
            ({"after": after}, error, "`after` must be a number of seconds >= 0, or math.inf, got ")
            for after, error in [
                (-1, ValueError),
                (math.nan, ValueError),
                (True, TypeError),
                ("1", TypeError),
                (None, TypeError),
            ]
        ),
        *(
            ({"after": 1, "attempts": n}, error, "`attempts` must be an int >= 1, got ")
            for n, error in [(0, ValueError), (1.5, TypeError), (True, TypeError)]
        ),
    ],
)
def test_options_that_are_wrong(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        hedged(fine, **options)
