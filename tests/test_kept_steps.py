"""Steps with a cache, and pipelines with a journal: what has been done is not done again."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

import journal_kills
from drivers import EVERY_DRIVER, Driver, World
from test_parallel import FIXED
from trio_parallel_steps import (
    Budget,
    BudgetExceeded,
    ExecutionConfig,
    JournalError,
    MergeStrategy,
    ParallelStep,
    Pipeline,
    PipelineResult,
    Retry,
    Step,
)
from trio_parallel_steps.cache import Cache

pytestmark = pytest.mark.usefixtures("threads_work")

# Functions that a cache can know again stand at a module's top level, and so do their calls.
calls: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    calls.clear()


async def square(data: int) -> int:
    calls.append(data)
    return data * data


async def total(data: int, context: dict[str, int], budget: Budget) -> int:
    calls.append(data)
    budget.spend(calls=1)
    context["total"] = context.get("total", 0) + data
    return context["total"]


async def bad(data: int) -> None:
    calls.append("bad")
    raise ValueError


async def first(data: Any, context: dict[str, Any]) -> None:
    context["who"] = "first"


class Called:
    async def __call__(self, data: Any) -> Any:
        return data


class Described(Called):
    described = ("what it says", 1)


@attrs.frozen
class Times:
    factor: int

    async def of(self, data: int) -> int:
        return self.factor * data

    async def __call__(self, data: int) -> int:
        return self.factor * data


def merged(context: Any, branches: Any) -> Any:
    return context


def merged_otherwise(context: Any, branches: Any) -> Any:
    return context


class Trouble:
    """Fails until it is mended."""

    is_mended = False


async def fragile(data: Any) -> str:
    calls.append("fragile")
    if not Trouble.is_mended:
        raise ValueError("broken")
    return "fine"


# ---------------------------------------------------------------- caches


@EVERY_DRIVER
def test_a_step_with_a_cache_is_called_once(driver: Driver) -> None:
    async def main(world: World) -> None:
        step = Step("square", square, cache=Cache.memory())
        results = [await step.run(3), await step.run(3), await step.run(4)]
        assert [result.output for result in results] == [9, 9, 16]
        assert [result.from_cache for result in results] == [False, True, False]
        assert calls == [3, 4]

    driver(main)


@EVERY_DRIVER
def test_versions_are_kept_apart(driver: Driver) -> None:
    async def main(world: World) -> None:
        cache = Cache.memory()
        for version in ("1", "2"):
            assert not (
                await Step("square", square, cache=cache, version=version).run(3)
            ).from_cache

    driver(main)


@EVERY_DRIVER
def test_what_was_done_to_the_context_is_kept_too(driver: Driver) -> None:
    async def main(world: World) -> None:
        pipeline = Pipeline([Step("total", total, cache=Cache.memory())])
        for times in range(2):
            result = await pipeline.run(5, context={"total": 1})
            assert result.output == 6
            assert result.context == {"total": 6}
            assert result.steps[0].from_cache == bool(times)
            result.context["total"] = 99  # and is nobody else's
        other = await pipeline.run(5, context={"total": 2})
        assert (other.output, other.context) == (7, {"total": 7})
        assert calls == [5, 5]

    driver(main)


@EVERY_DRIVER
def test_only_successes_are_kept(driver: Driver) -> None:
    async def main(world: World) -> None:
        step = Step("bad", bad, cache=Cache.memory())
        for _ in range(2):
            assert not (await step.run(1)).success
        assert calls == ["bad", "bad"]

    driver(main)


@EVERY_DRIVER
def test_a_parallel_steps_cache_is_for_all_in_it(driver: Driver) -> None:
    async def main(world: World) -> None:
        own = Cache.memory()
        parallel = ParallelStep(
            {
                "plain": square,
                "own": Step("own", square, cache=own, version="own"),
                "deep": Pipeline([Step("deep", square, version="deep")]),
            },
            cache=Cache.memory(),
        )
        for times in range(2):
            result = await parallel.run(3)
            assert result.output == {"plain": 9, "own": 9, "deep": 9}
            assert result.branches is not None
            for name in ("plain", "own"):
                assert result.branches[name].from_cache == bool(times)
            assert result.branches["deep"].steps[0].from_cache == bool(times)
        assert len(calls) == 3
        again = await Step("own", square, cache=own, version="own").run(3)
        assert again.from_cache

    driver(main)


@EVERY_DRIVER
def test_equal_branches_in_flight_run_once(driver: Driver) -> None:
    async def main(world: World) -> None:
        parallel = ParallelStep(
            dict.fromkeys("abc", square), concurrency_config=FIXED, cache=Cache.memory()
        )
        result = await parallel.run(3)
        assert result.output == {"a": 9, "b": 9, "c": 9}
        assert calls == [3]
        assert result.branches is not None
        assert sorted(branch.from_cache for branch in result.branches.values()) == [
            False,
            True,
            True,
        ]

    driver(main)


def test_what_cannot_be_known_again_is_refused_as_the_step_is_built() -> None:
    async def local(data: object) -> None: ...

    with pytest.raises(TypeError, match="the function of step 'x' must be"):
        Step("x", local, cache=Cache.memory())
    with pytest.raises(TypeError, match="the function of step 'x' must be"):
        ParallelStep({"deep": Pipeline([Step("x", local)])}, cache=Cache.memory())


@EVERY_DRIVER
def test_data_that_cannot_be_keyed_fails_the_step(driver: Driver) -> None:
    async def main(world: World) -> None:
        result = await Step("square", square, cache=Cache.memory()).run(object())
        assert isinstance(result.exception, TypeError)
        assert not calls

    driver(main)


# ---------------------------------------------------------------- journals


@EVERY_DRIVER
def test_the_same_run_again_skips_what_has_succeeded(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        journal = tmp_path / f"{world.backend}.journal"
        parallel = ParallelStep({"good": total, "fragile": fragile}, MergeStrategy.OVERWRITE)
        pipeline = Step("square", square) >> parallel
        Trouble.is_mended = False
        one = await pipeline.run(2, context={}, journal=journal)
        assert not one.success
        assert one.context == {"total": 4}
        assert sorted(map(str, calls)) == ["2", "4", "fragile"]
        Trouble.is_mended = True
        calls.clear()
        two = await pipeline.run(2, context={}, journal=journal)
        assert two.success
        assert two.output == {"good": 4, "fragile": "fine"}
        assert two.context == {"total": 4}
        assert calls == ["fragile"]
        assert two.steps[0].from_cache
        assert two.steps[1].branches is not None
        assert [branch.from_cache for branch in two.steps[1].branches.values()] == [True, False]
        calls.clear()
        assert (await pipeline.run(2, context={}, journal=journal)).output == two.output
        assert not calls

    driver(main)


@EVERY_DRIVER
def test_the_order_of_completion_outlives_a_run(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async def late(data: Any, context: dict[str, Any]) -> None:
            await world.sleep(1)
            context["who"] = "late"

        branches = {"late": late, "quick": first}
        parallel = ParallelStep(branches, MergeStrategy.OVERWRITE, FIXED)
        for _ in range(2):
            result = await Pipeline([parallel]).run(context={}, journal=tmp_path / world.backend)
            assert result.context == {"who": "late"}

    driver(main)


@EVERY_DRIVER
def test_the_order_of_completion_is_that_of_what_ran_last(driver: Driver, tmp_path: Path) -> None:
    """Of a branch that was recorded as a whole, as it was; of one of which a part was, as it is."""

    async def main(world: World) -> None:
        async def late(data: Any, context: dict[str, Any]) -> None:
            await world.sleep(1)
            context["who"] = "late"

        async def fragile_too(data: Any, context: dict[str, Any]) -> None:
            await fragile(data)
            context["who"] = "mended"

        early = ParallelStep({"first": first}, MergeStrategy.OVERWRITE, FIXED)
        whole = ParallelStep({"early": early, "late": late}, MergeStrategy.OVERWRITE, FIXED)
        for _ in range(2):
            journal = tmp_path / f"{world.backend}-whole"
            assert (await Pipeline([whole]).run(context={}, journal=journal)).context == {
                "who": "late"
            }
        part = Pipeline([Step("first", first), Step("fragile", fragile_too)])
        branches: dict[str, Any] = {"part": part, "late": late}
        parallel = ParallelStep(branches, MergeStrategy.OVERWRITE, FIXED)
        for is_mended, who in ((False, "late"), (True, "mended")):
            Trouble.is_mended = is_mended
            journal = tmp_path / f"{world.backend}-part"
            result = await Pipeline([parallel]).run(context={}, journal=journal)
            assert result.context == {"who": who}

    driver(main)


@EVERY_DRIVER
def test_a_journal_of_another_run_is_refused(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        journal = tmp_path / world.backend
        await Pipeline([Step("a", square)]).run(2, journal=journal)
        others = [
            (Pipeline([Step("b", square)]), 2, None),
            (Pipeline([Step("a", bad)]), 2, None),
            (Pipeline([Step("a", square, version="2")]), 2, None),
            (Pipeline([Step("a", square)], version="2"), 2, None),
            (Pipeline([Step("a", square)], name="other"), 2, None),
            (Pipeline([ParallelStep({"a": square}, name="a")]), 2, None),
            (Pipeline([Step("a", partial(square, 3))]), 2, None),
            (Pipeline([Step("a", Called())]), 2, None),
            (Pipeline([Step("a", Described())]), 2, None),
            (Pipeline([Step("a", square)]), 3, None),
            (Pipeline([Step("a", square)]), 2, {"a": 1}),
        ]
        for pipeline, data, context in others:
            with pytest.raises(JournalError, match=r"another pipeline|version"):
                await pipeline.run(data, context=context, journal=journal)
        assert calls == [2]

    driver(main)


@EVERY_DRIVER
def test_whatever_changes_what_a_step_is_given_makes_another_run(
    driver: Driver, tmp_path: Path
) -> None:
    async def main(world: World) -> None:
        def pipeline(fn: Any = square, **options: Any) -> Pipeline:
            return Pipeline([ParallelStep({"a": fn}, **options), Step("b", ask)])

        async def ask(data: Any) -> Any:
            return data

        options: list[dict[str, Any]] = [
            {},
            {"reduce": len},
            {"reduce": sum},
            {"context_include_keys": ["a"]},
            {"merge_strategy": merged},
            {"merge_strategy": merged_otherwise},
            {"fn": Times(2).of},
            {"fn": Times(3).of},
            {"fn": Times(3)},
            {"fn": Called().__call__},
        ]
        for number, (one, other) in enumerate(pairwise(options)):
            journal = tmp_path / f"{world.backend}{number}"
            for _ in range(2):
                await pipeline(**one).run(2, context={}, journal=journal)
            with pytest.raises(JournalError, match="another pipeline"):
                await pipeline(**other).run(2, context={}, journal=journal)

    driver(main)


@EVERY_DRIVER
def test_what_a_journal_cannot_know_again_is_refused(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        pipeline = Pipeline([Step("a", square)])
        with pytest.raises(TypeError, match="`data` can't be known again by a journal"):
            await pipeline.run(object(), journal=tmp_path / "a")
        with pytest.raises(TypeError, match="`context` can't be known again by a journal"):
            await pipeline.run(1, context={"x": object()}, journal=tmp_path / "a")
        with pytest.raises(TypeError, match="a step can't be known again by a journal"):
            await Pipeline([Step("a", partial(square, cast("int", object())))]).run(
                journal=tmp_path / "a"
            )
        assert not calls
        assert not (tmp_path / "a").exists()

    driver(main)


@EVERY_DRIVER
def test_an_output_that_does_not_pickle_fails_its_step(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async def unpicklable(data: object) -> object:
            return lambda: None

        result = await Pipeline([Step("a", unpicklable)]).run(journal=tmp_path / world.backend)
        assert isinstance(result.steps[0].exception, TypeError)

    driver(main)


@EVERY_DRIVER
def test_what_was_spent_counts_after_a_resume(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async def spend(data: object, budget: Budget) -> None:
            tries.append(1)
            budget.spend(usd=1)
            if len(tries) == 1:
                raise ValueError

        async def last(data: object, budget: Budget) -> None:
            budget.spend(usd=9 if is_dear else 1)

        tries: list[int] = []
        is_dear = True
        journal = tmp_path / world.backend
        twice = Step("spend", spend, retry=Retry(ValueError, 2, wait_initial=0))
        config = ExecutionConfig(usage_limits={"usd": 3})
        pipeline = Pipeline([ParallelStep({"spend": twice}), Step("last", last)], config)
        for _ in range(2):
            with pytest.raises(BudgetExceeded) as caught:
                await pipeline.run(journal=journal)
            assert caught.value.used == 2
            assert isinstance(caught.value.result, PipelineResult)
            assert caught.value.result.usage == {"usd": 2}
        is_dear = False
        for _ in range(2):
            assert (await pipeline.run(journal=journal)).usage == {"usd": 3}
        assert len(tries) == 2

    driver(main)


@EVERY_DRIVER
def test_a_context_counts_once_its_step_is_recorded(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async def unpicklable(data: object, context: dict[str, int]) -> object:
            context["n"] = context.get("n", 0) + 1
            seen.append(context["n"])
            return lambda: None

        seen: list[int] = []
        step = Step("a", unpicklable, retry=Retry(TypeError, 2, wait_initial=0))
        result = await Pipeline([step]).run(context={}, journal=tmp_path / world.backend)
        assert not result.success
        assert seen == [1, 1]
        assert result.context == {}

    driver(main)


@EVERY_DRIVER
def test_a_cache_and_a_journal_go_together(driver: Driver, tmp_path: Path) -> None:
    async def main(world: World) -> None:
        cache = Cache.memory()
        pipeline = Pipeline([Step("a", square, cache=cache), Step("b", square)])
        for number in range(2):
            result = await pipeline.run(2, journal=tmp_path / f"{world.backend}{number}")
            assert result.output == 16
        assert calls == [2, 4, 4]

    driver(main)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_a_pipeline_that_is_killed_goes_on_where_it_was(tmp_path: Path, host: str) -> None:
    """By SIGKILL, 50 times on each host; what was recorded is not done again."""
    kills = 50
    journal_kills.run(tmp_path, host, kills, 5, "pipeline")
    recorded = journal_kills.lines(tmp_path / "recorded")
    assert len({child for _, child in recorded}) > kills // 4
    effects = journal_kills.lines(tmp_path / "effects")
    done = [key for key, _ in effects]
    assert len(set(done)) == journal_kills.STEPS * journal_kills.BRANCHES  # each at least once
    last = dict(effects)
    for key, child in recorded:
        assert last[key] == child  # and not again
