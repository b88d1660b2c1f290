"""`Step`: one named unit of work."""

from __future__ import annotations

import math
from functools import partial
from threading import Lock
from typing import Any

import pytest
import trio

from drivers import EVERY_DRIVER, Driver, World
from trio_parallel_steps import BranchStatus, Budget, Retry, Step, in_thread, step


async def double(data: int) -> int:
    return 2 * data


def one_more(data: int) -> int:
    return data + 1


@EVERY_DRIVER
def test_a_step_gives_its_function_the_data(driver: Driver) -> None:
    async def main(world: World) -> None:
        result = await Step("double", double).run(21)
        assert result.unwrap() == 42
        assert (result.name, result.key, result.attempts) == ("double", "double", 1)
        assert result.branches is None
        assert result.steps == ()
        assert not result.from_cache

    driver(main)


@EVERY_DRIVER
def test_what_it_raises_is_in_the_result(driver: Driver) -> None:
    async def main(world: World) -> None:
        result = await Step("bad", world.fail).run(0)
        assert result.status is BranchStatus.FAILED
        assert isinstance(result.exception, ValueError)
        assert result.feedback == "'bad' failed: ValueError"

    driver(main)


@EVERY_DRIVER
def test_its_timeout_is_for_each_try(driver: Driver) -> None:
    async def main(world: World) -> None:
        tries: list[float] = []
        begin = world.now()

        async def slow(data: object) -> None:
            tries.append(world.now() - begin)
            await world.forever()

        retry = Retry(trio.TooSlowError, 2, wait_initial=1, wait_jitter=0)
        result = await Step("slow", slow, timeout=3, retry=retry).run()
        assert tries == [0, 4]
        assert result.status is BranchStatus.TIMED_OUT
        assert result.attempts == 2

    driver(main)


@EVERY_DRIVER
def test_a_function_gets_what_it_names(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def nothing() -> str:
            return "called"

        async def only_context(context: dict[str, int]) -> int:
            return context["a"]

        async def only_budget(*, budget: Budget) -> Budget:
            budget.spend(anything=1)
            return budget

        async def any_number(*args: object, **named: object) -> object:
            return args, named

        async def all_of_them(budget: Budget, data: int, context: dict[str, int]) -> int:
            return data + context["a"]

        async def with_default(data: int, more: int = 1) -> int:
            return data + more

        async def by_place_only(context: int, /) -> int:  # that is data
            return context

        async def context_first(context: dict[str, int], *args: object) -> object:
            return context["a"], args

        async def bound(data: int, context: dict[str, int]) -> int:
            return data + context["a"]

        async def output(fn: Any) -> Any:
            return (await Step("x", fn).run(5, context={"a": 1})).unwrap()

        assert await output(nothing) == "called"
        assert await output(only_context) == 1
        assert (await output(only_budget)).used() == {"anything": 1}
        assert await output(any_number) == ((5,), {})
        assert await output(all_of_them) == 6
        assert await output(with_default) == 6
        assert await output(by_place_only) == 5
        assert await output(context_first) == (1, ())
        assert await output(partial(bound, context={"a": 7})) == 12
        assert await output(in_thread(one_more)) == 6

    driver(main)


def test_a_function_that_needs_more_is_refused() -> None:
    async def more(data: int, more: int) -> None: ...
    async def named(data: int, *, more: int) -> None: ...

    for fn in (more, named):
        with pytest.raises(TypeError, match="needs 'more' too"):
            Step("x", fn)


class Unsigned:
    """A callable whose signature can't be told."""

    __signature__ = "none"

    async def __call__(self, data: int) -> int:
        return data


@EVERY_DRIVER
def test_a_function_without_a_signature_gets_the_data(driver: Driver) -> None:
    async def main(world: World) -> None:
        assert (await Step("x", Unsigned()).run(3)).output == 3

    driver(main)


@EVERY_DRIVER
def test_the_callers_context_is_never_written_to(driver: Driver) -> None:
    async def main(world: World) -> None:
        context = {"seen": [1]}

        async def change(data: object, context: dict[str, list[int]]) -> list[int]:
            context["seen"].append(2)
            return context["seen"]

        assert (await Step("x", change).run(context=context)).output == [1, 2]
        assert context == {"seen": [1]}

    driver(main)


@EVERY_DRIVER
def test_each_try_has_a_context_of_its_own(driver: Driver) -> None:
    async def main(world: World) -> None:
        seen: list[dict[str, int]] = []

        async def change(data: object, context: dict[str, int]) -> None:
            seen.append(dict(context))
            context["tries"] = context.get("tries", 0) + 1
            if len(seen) < 3:
                raise ValueError

        retry = Retry(ValueError, 3, wait_initial=0, wait_jitter=0)
        await Step("x", change, retry=retry).run(context={})
        assert seen == [{}, {}, {}]

    driver(main)


@EVERY_DRIVER
def test_a_context_that_cannot_be_copied_is_refused_before_anything_starts(
    driver: Driver,
) -> None:
    async def main(world: World) -> None:
        called = []

        async def call(data: object, context: object) -> None:
            called.append(data)

        with pytest.raises(TypeError, match="must be what can be deep-copied"):
            await Step("x", call).run(context={"a": {"b": Lock()}})
        with pytest.raises(TypeError, match="`context` must be"):
            await Step("x", call).run(context=3)
        assert not called

    driver(main)


@EVERY_DRIVER
def test_a_context_that_nobody_wants_may_be_anything(driver: Driver) -> None:
    async def main(world: World) -> None:
        assert (await Step("x", double).run(1, context=3)).output == 2

    driver(main)


@EVERY_DRIVER
def test_a_step_inside_a_branch_runs_on_its_limiter(driver: Driver) -> None:
    async def main(world: World) -> None:
        from trio_parallel_steps import open_branch_nursery

        async def inner(data: object) -> int:
            return nursery.limiter.borrowed_tokens

        async with open_branch_nursery(1) as nursery:
            branch = nursery.start_soon("outer", Step("inner", inner).run)
        assert branch.result.unwrap().unwrap() == 1
        assert nursery.result.peak_in_flight == 1

    driver(main)


# ---------------------------------------------------------------- the decorator


@EVERY_DRIVER
def test_the_decorator_names_the_step_after_its_function(driver: Driver) -> None:
    @step
    async def fetch(data: int) -> int:
        return data + 1

    retry = Retry(ValueError)

    @step(name="other", timeout=3, retry=retry, version="2")
    async def named(data: int) -> int:
        return data

    async def main(world: World) -> None:
        assert (await fetch.run(1)).output == 2

    driver(main)
    assert repr(fetch) == "<Step 'fetch'>"
    assert (named.name, named.timeout, named.retry, named.version) == ("other", 3, retry, "2")
    assert step(Unsigned()).name == "Unsigned"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "fn", "options", "message"),
    [
        (1, double, {}, "`name` must be a str, got 1"),
        ("x", len, {}, "`fn` must be an async function"),
        ("x", 3, {}, "`fn` must be an async function, got 3"),
        ("x", double, {"timeout": "1"}, "`timeout` must be a number of seconds >= 0"),
        ("x", double, {"retry": 3}, "`retry` must be a Retry or None, got 3"),
        ("x", double, {"cache": {}}, "`cache` must be a Cache or None, got {}"),
        ("x", double, {"version": 1}, "`version` must be a str, got 1"),
    ],
)
def test_a_bad_step_is_refused(name: Any, fn: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Step(name, fn, **options)
    assert message in str(caught.value)


def test_a_negative_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="`timeout` must be a number of seconds >= 0"):
        Step("x", double, timeout=-1)
    assert Step("x", double).timeout == math.inf
