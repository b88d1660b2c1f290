"""`Cache`: successes are kept, equal calls run once, and who waits for one is parked."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import Any

import attrs
import pytest
import trio
from trio import TooSlowError
from trio.testing import MockClock

from drivers import EVERY_DRIVER, Driver, World, on_asyncio, on_trio
from helpers import run, statuses
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    BranchLimiter,
    BranchStatus,
    Retry,
    in_thread,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.cache import Cache, CacheWarning
from trio_parallel_steps.cache._flights import _calls as calls_around
from trio_parallel_steps.cache._keys import Keyer

SUCCEEDED = BranchStatus.SUCCEEDED
CANCELLED = BranchStatus.CANCELLED
FAILED = BranchStatus.FAILED


class Calls:
    """Counts its calls; each takes so many seconds, and those in `fails` raise."""

    def __init__(self, world: World, *takes: float, fails: tuple[int, ...] = ()) -> None:
        self._world = world
        self._takes = takes
        self._fails = fails
        self.made: list[float] = []

    async def __call__(self) -> int:
        number = len(self.made)
        self.made.append(round(self._world.now() - self.since, 6))
        await self._world.sleep(self._takes[number])
        if number in self._fails:
            raise ValueError(number)
        return number

    @property
    def since(self) -> float:
        if not hasattr(self, "_since"):
            self._since = self._world.now()
        return self._since


# ---------------------------------------------------------------- what is kept


@EVERY_DRIVER
def test_a_success_is_kept(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 1)
        return [await cache.fetch("key", calls) for _ in range(3)]

    assert driver(program) == [(0, False), (0, True), (0, True)]


@EVERY_DRIVER
def test_an_error_is_not(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 0, 0, fails=(0,))
        with pytest.raises(ValueError, match="0"):
            await cache.fetch("key", calls)
        return await cache.fetch("key", calls), repr(cache)

    assert driver(program) == ((1, False), "<Cache memory(1024, inf), 0 in flight>")


@EVERY_DRIVER
def test_nor_is_a_cancellation(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 9, 0)
        async with world.scope(1):
            await cache.fetch("key", calls)
        return await cache.fetch("key", calls), calls.made

    assert driver(program) == ((1, False), [0, 1])


@EVERY_DRIVER
def test_none_is_a_value_like_any_other(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()
        return [await cache.fetch("key", partial(world.give, 0)) for _ in range(2)]

    assert driver(program) == [(None, False), (None, True)]


@EVERY_DRIVER
def test_it_is_kept_for_so_long(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(ttl=10), Calls(world, 1, 1)
        found = [await cache.fetch("key", calls)]
        for seconds in (9.5, 1.0):
            await world.sleep(seconds)
            found.append(await cache.fetch("key", calls))
        return found

    assert driver(program) == [(0, False), (0, True), (1, False)]


@EVERY_DRIVER
def test_the_least_recently_used_is_dropped_first(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(2), Calls(world, 0, 0, 0, 0)
        return [(await cache.fetch(key, calls))[0] for key in "abacab"]

    assert driver(program) == [0, 1, 0, 2, 0, 3]


def test_the_value_itself_is_kept_in_memory() -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()
        first, _ = await cache.fetch("key", lambda: world.give(0, []))
        return first is (await cache.fetch("key", lambda: world.give(0, [])))[0]

    assert on_trio(program)


def test_it_lasts_from_one_event_loop_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real time passes between two of them, whatever their clocks begin with."""
    real = 1000.0
    monkeypatch.setattr("trio_parallel_steps.cache._memory.monotonic", lambda: real)
    cache = Cache.memory(ttl=10)

    async def program(world: World) -> Any:
        await world.sleep(4)  # not before the first use
        calls = Calls(world, 0)
        found = await cache.fetch("key", calls)
        await world.sleep(3)
        await cache.fetch("other", calls.__class__(world, 0))
        return found

    assert on_trio(program) == (0, False)
    real += 6  # 9 s old
    assert on_asyncio(program) == (0, True)
    real += 1
    assert on_asyncio(program) == (0, False)


# ---------------------------------------------------------------- equal calls in flight


@EVERY_DRIVER
def test_equal_calls_in_flight_run_once(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 5)
        found = []

        async def fetch(delay: float) -> None:
            await world.sleep(delay)
            found.append(await cache.fetch("key", calls))

        async with world.tasks() as start:
            for delay in range(4):
                start(fetch, delay)
            await world.sleep(4)
            assert repr(cache).endswith("1 in flight>")
        return sorted(found), calls.made

    assert driver(program) == ([(0, False), (0, True), (0, True), (0, True)], [0])


@EVERY_DRIVER
def test_a_value_that_is_kept_for_no_time_is_shared_all_the_same(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(ttl=0), Calls(world, 1, 1)
        result = await run_branches({n: lambda: cache.fetch("key", calls) for n in range(2)})
        return result.outputs, await cache.fetch("key", calls)

    assert driver(program) == ({0: (0, False), 1: (0, True)}, (1, False))


@EVERY_DRIVER
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_if_it_fails_or_is_stopped_the_first_that_waits_takes_over(
    how: str, driver: Driver
) -> None:
    """And the others wait for that one; the error is its own caller's."""

    async def program(world: World) -> Any:
        takes = (3, 5) if how == "fails" else (99, 5)
        cache, calls = Cache.memory(), Calls(world, *takes, fails=(0,))
        async with open_branch_nursery(9, policy=COLLECT) as nursery:
            for key in ("first", "second", "third", "fourth"):
                nursery.start_soon(key, cache.fetch, "key", calls)
                await world.turns(4)
            if how != "fails":
                await world.sleep(3)
                nursery.cancel("first")
        return statuses(nursery.result), nursery.result.outputs, calls.made

    ended, outputs, made = driver(program)
    assert ended.pop("first") is (FAILED if how == "fails" else CANCELLED)
    assert set(ended.values()) == {SUCCEEDED}
    assert outputs == {"second": (1, False), "third": (1, True), "fourth": (1, True)}
    assert made == [0, 3]


@EVERY_DRIVER
def test_plain_tasks_take_over_as_well(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 9, 2)
        found: list[Any] = []

        async def first() -> None:
            async with world.scope(1):
                found.append(await cache.fetch("key", calls))

        async def second() -> None:
            found.append(await cache.fetch("key", calls))

        async with world.tasks() as start:
            start(first)
            await world.turns(4)
            start(second)
            await world.turns(4)
            start(second)
        return found, calls.made

    assert driver(program) == ([(1, False), (1, True)], [0, 1])


@EVERY_DRIVER
def test_one_that_waits_may_be_cancelled(driver: Driver) -> None:
    """The call goes on, and it takes over nothing."""

    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 5, 5, fails=(0,))
        async with open_branch_nursery(9, policy=COLLECT) as nursery:
            for key in ("first", "second", "third"):
                nursery.start_soon(key, cache.fetch, "key", calls)
                await world.turns(4)
            await world.sleep(1)
            nursery.cancel("second")
        return statuses(nursery.result), calls.made, repr(cache)

    ended, made, shown = driver(program)
    assert ended == {"first": FAILED, "second": CANCELLED, "third": SUCCEEDED}
    assert made == [0, 5]
    assert shown == "<Cache memory(1024, inf), 0 in flight>"


@EVERY_DRIVER
def test_one_that_is_told_to_take_over_and_is_stopped_at_once_hands_on(driver: Driver) -> None:
    """In the same instant as the one that ran, or while it waits for its token."""

    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 99, 2)
        limiter = BranchLimiter(2)
        async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
            for key in ("first", "second", "third"):
                nursery.start_soon(key, cache.fetch, "key", calls)
                await world.sleep(0.25)
            nursery.start_soon("busy", world.give, 3)  # in the place of one that waits
            await world.sleep(0.25)
            nursery.cancel("first")
            nursery.cancel("second")
        limiter_is_idle = limiter.borrowed_tokens == 0
        return statuses(nursery.result), nursery.result.outputs["third"], limiter_is_idle

    ended, third, idle = driver(program)
    assert ended == {
        "first": CANCELLED,
        "second": CANCELLED,
        "third": SUCCEEDED,
        "busy": SUCCEEDED,
    }
    assert third == (1, False)
    assert idle


@EVERY_DRIVER
def test_if_all_are_stopped_nothing_is_left(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 99, 0)
        async with open_branch_nursery(9, move_on_after=5) as nursery:
            for key in range(3):
                nursery.start_soon(key, cache.fetch, "key", calls)
        return repr(cache), await cache.fetch("key", calls), calls.made

    shown, found, made = driver(program)
    assert shown == "<Cache memory(1024, inf), 0 in flight>"
    assert found == (1, False)
    assert made == [0, 5]


@EVERY_DRIVER
def test_a_branch_that_is_tried_again_leads_again(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 0, 0, fails=(0,))
        retry = Retry(ValueError, wait_initial=1, wait_jitter=0)
        result = await run_branches({"a": lambda: cache.fetch("key", calls)}, retry=retry)
        return result["a"].output, result["a"].attempts, calls.made

    assert driver(program) == ((1, False), 2, [0, 1])


# ---------------------------------------------------------------- parked


@EVERY_DRIVER
def test_who_waits_lends_its_token(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 5)
        limiter = BranchLimiter(2)
        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("leads", cache.fetch, "key", calls)
            await world.sleep(1)
            for n in range(3):
                nursery.start_soon(n, cache.fetch, "key", calls)
            nursery.start_soon("other", world.give, 1, "done")
            await world.sleep(2)
            other, explained = nursery["other"].status, nursery.explain()
            borrowed = limiter.borrowed_tokens
        return other, explained, borrowed, limiter.borrowed_tokens

    other, explained, borrowed, after = driver(program)
    assert other is SUCCEEDED
    why = "waits for an equal call of fetch, made by 'leads'"
    assert explained == {0: why, 1: why, 2: why}
    assert (borrowed, after) == (1, 0)


@EVERY_DRIVER
def test_who_waits_for_a_plain_task_lends_its_token_too(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache, calls = Cache.memory(), Calls(world, 5)
        async with world.tasks() as start, open_branch_nursery(1) as nursery:
            start(cache.fetch, "key", calls)
            await world.sleep(1)
            nursery.start_soon("waits", cache.fetch, "key", calls)
            nursery.start_soon("other", world.give, 1, "done")
            await world.sleep(2)
            return nursery["other"].status, nursery.explain()

    assert driver(program) == (SUCCEEDED, {"waits": "waits for an equal call of fetch"})


@EVERY_DRIVER
def test_a_step_under_a_limit_of_one_can_not_stall(driver: Driver) -> None:
    """The one that runs has nested branches, which need the token of one that waits for it."""

    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def nested() -> list[int]:
            result = await run_branches({n: partial(world.give, 1, n) for n in range(3)})
            return list(result.outputs.values())

        limiter = BranchLimiter(1)
        result = await run_branches(
            {n: lambda: cache.fetch("k", nested) for n in range(3)}, limiter
        )
        return [output for output, _ in result.outputs.values()], limiter.borrowed_tokens

    assert driver(program) == ([[0, 1, 2]] * 3, 0)


# ---------------------------------------------------------------- circles


@EVERY_DRIVER
def test_a_call_that_waits_for_itself_is_refused(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def again() -> Any:
            return await cache.fetch("key", again, "ask")

        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("a", cache.fetch, "key", again, "ask")
        with pytest.raises(RuntimeError) as caught:
            await cache.fetch("key", again, "ask")
        return str(nursery.result["a"].exception), str(caught.value)

    in_branch, plain = driver(program)
    assert in_branch == ("ask() would wait for ever: 'a' waits for 'a', which makes an equal call")
    assert plain == "ask() would wait for ever: for an equal call around it"


@EVERY_DRIVER
def test_a_nested_branch_can_not_wait_for_the_call_around_it(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def nested() -> Any:
            return await run_branches({"b": lambda: cache.fetch("key", nested)}, policy=COLLECT)

        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", cache.fetch, "key", nested)
        nested_result: Any = nursery.result["a"].output
        return str(nested_result[0]["b"].exception)

    assert driver(program) == (
        "fetch() would wait for ever: 'a' waits for 'b' waits for 'a', which makes an equal call"
    )


@EVERY_DRIVER
def test_a_nested_branch_can_not_wait_for_the_plain_call_around_it(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def nested() -> Any:
            return await run_branches({"b": lambda: cache.fetch("key", nested)}, policy=COLLECT)

        result, _ = await cache.fetch("key", nested)
        return str(result["b"].exception)

    assert driver(program) == "fetch() would wait for ever: for an equal call around it"


@EVERY_DRIVER
@pytest.mark.parametrize("in_branches", [True, False])
def test_a_circle_of_two_calls_is_refused(in_branches: bool, driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()
        errors: list[str] = []

        async def ask(mine: str, other: str) -> None:
            async def call() -> None:
                await world.sleep(1)
                await cache.fetch(other, partial(world.give, 0))

            try:
                await cache.fetch(mine, call)
            except RuntimeError as error:
                errors.append(str(error))

        if in_branches:
            async with open_branch_nursery() as nursery:
                nursery.start_soon("a", ask, "x", "y")
                nursery.start_soon("b", ask, "y", "x")
        else:
            async with world.tasks() as start:
                start(ask, "x", "y")
                start(ask, "y", "x")
        return errors

    (error,) = driver(program)
    assert "would wait for ever" in error
    assert ("which makes an equal call" in error) == in_branches


@EVERY_DRIVER
def test_a_branch_can_not_wait_for_one_that_waits_for_its_call(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def call() -> None:
            await world.sleep(1)
            await nursery["b"].wait()

        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("a", cache.fetch, "key", call)
            nursery.start_soon("b", cache.fetch, "key", partial(world.give, 0))
        return str(nursery.result["a"].exception), statuses(nursery.result)

    error, ended = driver(program)
    assert error == "Branch.wait() would wait for ever: 'b' waits for 'a' waits for 'b'"
    assert ended == {"a": FAILED, "b": SUCCEEDED}


@EVERY_DRIVER
def test_nor_for_one_that_waits_for_what_it_has_taken_over(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()

        async def call() -> None:
            await nursery["c"].wait()

        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("a", cache.fetch, "key", partial(world.fail, 1))
            nursery.start_soon("b", cache.fetch, "key", call)
            await world.turns(4)
            nursery.start_soon("c", cache.fetch, "key", partial(world.give, 0))
            await world.sleep(0.5)
            assert nursery.explain()["c"] == "waits for an equal call of fetch, made by 'a'"
        return {key: str(error) for key, error in nursery.result.errors.items()}

    assert driver(program) == {
        "a": "",
        "b": "Branch.wait() would wait for ever: 'c' waits for 'b' waits for 'c'",
    }


@EVERY_DRIVER
def test_a_call_that_has_ended_is_around_nothing(driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.memory()
        await cache.fetch("key", partial(world.give, 0))
        with pytest.raises(ValueError, match="mine"):
            await cache.fetch("other", partial(world.fail, 0, "mine"))
        return calls_around.get()

    assert driver(program) == ()


# ---------------------------------------------------------------- random programs


@EVERY_DRIVER
@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_and_is_stopped(seed: int, driver: Driver) -> None:
    """Of equal calls one runs at a time; who was not stopped has a value, or an error of its own;
    what was kept is not called for again; nothing is left."""
    random = Random(seed)

    async def program(world: World) -> None:
        cache = Cache.memory()
        running: set[str] = set()
        kept: set[str] = set()
        limiter = BranchLimiter(random.randint(1, 4))

        async def visit(key: str, seconds: float, fails: bool) -> None:
            async def call() -> str:
                assert key not in running
                assert key not in kept
                running.add(key)
                try:
                    await world.sleep(seconds)
                    if fails:
                        raise ValueError(key)
                    kept.add(key)
                    return key
                finally:
                    running.remove(key)

            value, _ = await cache.fetch(key, call)
            assert value == key

        async def plain(delay: float, stay: float, *args: Any) -> None:
            await world.sleep(delay)
            async with world.scope(stay):
                try:
                    await visit(*args)
                except ValueError as error:
                    assert error.args == (args[0],)

        def drawn() -> tuple[str, float, bool]:
            return random.choice("abc"), random.randint(0, 8) / 4, random.random() < 0.5

        async with world.tasks() as start, open_branch_nursery(limiter, policy=COLLECT) as nursery:
            for _ in range(random.randint(0, 4)):
                start(plain, random.randint(0, 8) / 4, random.randint(0, 8) / 4, *drawn())
            for number in range(random.randint(1, 12)):
                timeout = random.choice([math.inf, math.inf, 0, 0.5, 1])
                nursery.start_soon(number, visit, *drawn(), timeout=timeout)
                await world.sleep(random.choice([0, 0, 0.25]))
                if random.random() < 0.3:
                    nursery.cancel(random.randint(0, number))
        for ended in nursery.result.values():
            assert ended.exception is None or isinstance(ended.exception, ValueError | TooSlowError)
        assert repr(cache).endswith(", 0 in flight>")
        assert not running
        assert limiter.borrowed_tokens == 0

    driver(program)


# ---------------------------------------------------------------- wrapped functions

asked: list[Any] = []


async def ask(x: Any, y: Any = 1, *args: Any, z: Any = None, **kwargs: Any) -> Any:
    await trio.lowlevel.checkpoint()
    asked.append((x, y, args, z, kwargs))
    return len(asked)


async def ask_too(x: Any, y: Any = 1) -> Any:
    return await ask(x, y)


@attrs.frozen
class Asker:
    name: str

    async def ask(self, x: int) -> Any:
        return await ask((self.name, x))

    @classmethod
    async def ask_all(cls, x: int) -> Any:
        return await ask((cls.__name__, x))


class Heir(Asker):
    pass


class Unkeyed:
    async def ask(self) -> None: ...


def wrapped_calls(*calls: tuple[Any, tuple[Any, ...], dict[str, Any]], version: str = "") -> int:
    """How many of the calls were made."""
    asked.clear()
    cache = Cache.memory()

    async def main() -> None:
        for fn, args, kwargs in calls:
            await cache.wrap(fn, version=version)(*args, **kwargs)

    run(main)
    return len(asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((1,), {}), ((), {"x": 1})),
        (((1,), {}), ((1, 1), {})),
        (((1, 1), {}), ((), {"y": 1, "x": 1, "z": None})),
        (((1,), {"a": 1, "b": 2}), ((1,), {"b": 2, "a": 1})),
    ],
)
def test_equal_calls_have_one_key(one: Any, other: Any) -> None:
    assert wrapped_calls((ask, *one), (ask, *other)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((1,), {}), ((1.0,), {})),
        (((1,), {}), ((True,), {})),
        (((1,), {}), ((1, 2), {})),
        (((1, 2), {}), ((2, 1), {})),
        (((1, 1, 2), {}), ((1, 1), {"z": 2})),
        (((1,), {"a": 1}), ((1,), {"b": 1})),
        ((([1, 2],), {}), (((1, 2),), {})),
    ],
)
def test_different_calls_do_not(one: Any, other: Any) -> None:
    assert wrapped_calls((ask, *one), (ask, *other)) == 2


def test_functions_differ_and_so_do_versions() -> None:
    assert wrapped_calls((ask, (1,), {}), (ask_too, (1,), {})) == 2
    keys = {Keyer(ask, version)((1,), {}) for version in ("", "1", "2", "1")}
    assert len(keys) == 3


def test_the_object_of_a_method_is_an_argument() -> None:
    ada, bob = Asker("ada"), Asker("bob")
    calls: list[Any] = [(each.ask, (1,), {}) for each in (ada, bob, Asker("ada"))]
    assert wrapped_calls(*calls) == 2
    assert wrapped_calls((Asker.ask_all, (1,), {}), (Heir.ask_all, (1,), {})) == 2


async def test_it_reads_as_its_function() -> None:
    cached = Cache.memory().wrap(ask)
    assert cached.__name__ == "ask"
    assert cached.__doc__ == ask.__doc__


async def test_wrong_arguments_are_the_callers_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        await Cache.memory().wrap(ask)(y=1)  # type: ignore[call-arg]


def a_sum(x: int) -> int:
    return x + 1


@EVERY_DRIVER
def test_a_function_in_a_thread_is_wrapped_as_any_other(driver: Driver) -> None:
    cached = Cache.memory().wrap(in_thread(a_sum))

    async def program(world: World) -> Any:
        return await cached(1), await cached(x=1)

    assert driver(program) == (2, 2)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        ((object(),), {}, "x"),
        ((1, lambda: None), {}, "y"),
        ((1, 2, [object()]), {}, "args"),
        ((1,), {"z": iter([])}, "z"),
        ((1,), {"more": object()}, "kwargs"),
    ],
)
async def test_what_can_not_be_keyed_is_an_error_at_the_call(
    args: Any, kwargs: Any, name: str
) -> None:
    cached = Cache.memory().wrap(ask)
    with pytest.raises(TypeError, match=rf"^`{name}` of ask\(\) can't be part of a key: .* has no"):
        await cached(*args, **kwargs)


@pytest.mark.parametrize(
    "fn",
    [lambda: ask(1), partial(ask, 1), Unkeyed().ask, Calls],
    ids=["lambda", "partial", "method", "class"],
)
def test_a_function_that_can_not_be_known_again_is_refused(fn: Any) -> None:
    with pytest.raises(TypeError, match=r"^`async_fn` must be an? "):
        Cache.memory().wrap(fn)


def test_nor_can_one_that_is_made_in_another() -> None:
    async def inner() -> None: ...

    with pytest.raises(TypeError, match="it must be defined at a module's top level"):
        Cache.memory().wrap(inner)


async def yields() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "what"), [(3, "got 3"), (yields, "got an async generator function")]
)
def test_what_is_no_async_function_is_refused(fn: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        Cache.memory().wrap(fn)


async def test_a_sync_function_shows_when_it_is_called() -> None:
    with pytest.raises(TypeError, match=r"must be an async function, got .*, which is not"):
        await Cache.memory().wrap(a_sum)(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Cache.memory(0), ValueError, "`maxsize` must be an int >= 1, got 0"),
        (lambda: Cache.memory(True), TypeError, "`maxsize` must be an int >= 1, got True"),
        (lambda: Cache.memory(ttl=-1), ValueError, "`ttl` must be a number of seconds >= 0"),
        (lambda: Cache.memory(ttl=math.nan), ValueError, "`ttl` must be a number of seconds >= 0"),
        (lambda: Cache.sqlite("x", ttl=-1), ValueError, "`ttl` must be a number of seconds >= 0"),
        (lambda: Cache.sqlite(3), TypeError, "`path` must be a path, as a str or an os.PathLike"),
        (
            lambda: Cache.sqlite(b"x"),
            TypeError,
            "`path` must be a path, as a str or an os.PathLike",
        ),
        (lambda: Cache.memory().wrap(ask, version=1), TypeError, "`version` must be a str, got 1"),  # type: ignore[arg-type]
        (Cache, TypeError, "Cache has no public constructor"),
    ],
)
def test_bad_options(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        make()


async def test_a_key_is_a_str() -> None:
    with pytest.raises(TypeError, match="`key` must be a str, got 1"):
        await Cache.memory().fetch(1, partial(ask, 1))  # type: ignore[arg-type]


def test_outside_an_event_loop_it_says_so() -> None:
    coroutine = Cache.memory().fetch("key", partial(ask, 1))
    with pytest.raises(RuntimeError, match="must be called from async context"):
        coroutine.send(None)


async def test_two_event_loops_can_not_use_it_at_once() -> None:
    cache = Cache.memory()

    async def in_asyncio() -> None:
        with pytest.raises(RuntimeError, match="is in use by another run of an event loop"):
            await cache.fetch("other", asyncio.Event().wait)

    async def call() -> None:
        await trio.to_thread.run_sync(asyncio.run, in_asyncio())

    await cache.fetch("key", call)


def test_without_cachetools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cachetools", None)
    monkeypatch.setattr("trio_parallel_steps.cache._memory.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'trio-parallel-steps\[cache\]'") as caught:
        Cache.memory()
    assert caught.value.name == "cachetools"


# ---------------------------------------------------------------- checkpoints, interrupts


async def test_a_hit_is_a_checkpoint(autojump_clock: MockClock) -> None:
    cache = Cache.memory()
    await cache.fetch("key", partial(ask, 1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.fetch("key", partial(ask, 1))
    assert scope.cancelled_caught
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            await trio.lowlevel.checkpoint()
            others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(100_000):
            await cache.fetch("key", partial(ask, 1))
            if others > 2:
                break
        nursery.cancel_scope.cancel()
    assert others > 2


async def test_a_users_function_can_be_interrupted_and_the_engine_can_not() -> None:
    seen = []

    async def call() -> None:
        seen.append(trio.lowlevel.currently_ki_protected())

    await trio.lowlevel.checkpoint()
    await Cache.memory().fetch("key", call)
    assert seen == [False]


def test_a_warning_of_ours_is_a_runtime_warning() -> None:
    assert issubclass(CacheWarning, RuntimeWarning)


async def test_errors_of_branches_are_as_ever() -> None:
    cache = Cache.memory()

    async def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(BranchErrors) as caught:
        await run_branches({"a": lambda: cache.fetch("key", fails)})
    assert [str(error) for error in caught.value.exceptions] == ["mine"]
