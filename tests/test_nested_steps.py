"""Units within units: what becomes of the one inside is told by the one around it."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any

import attrs
import pytest

from drivers import EVERY_DRIVER, Driver, World, on_asyncio, on_trio
from test_guarding import Machine
from test_parallel import FIXED, statuses
from trio_parallel_steps import (
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    BudgetExceeded,
    ConcurrencyConfig,
    ExecutionConfig,
    MergeStrategy,
    OnBranchFailure,
    ParallelResult,
    ParallelStep,
    Pipeline,
    PipelineResult,
    PressureAction,
    ResourceLimits,
    Step,
    StepTimeout,
    abc,
)
from trio_parallel_steps._readings import Scope
from trio_parallel_steps.cache import Cache
from trio_parallel_steps.pressure import measured_by

SUCCEEDED, FAILED = BranchStatus.SUCCEEDED, BranchStatus.FAILED
TIMED_OUT, BREACHED = BranchStatus.TIMED_OUT, BranchStatus.BREACHED

DRAINS = attrs.evolve(FIXED, breach_watcher=False)


async def double(data: int) -> int:
    return 2 * data


# ---------------------------------------------------------------- timeouts


@EVERY_DRIVER
def test_a_timeout_of_a_unit_inside_is_told_as_one(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: object) -> None:
            await world.forever()

        async def another_ones(data: object) -> None:
            raise StepTimeout("not mine")

        timed = Pipeline([Step("slow", slow)], ExecutionConfig(timeout=1), name="timed")
        parallel = ParallelStep({"slow": slow}, name="parallel", timeout=1)
        around = Pipeline([parallel], name="around")
        for inner in (timed, parallel):
            result = await Pipeline([inner]).run()
            assert result.steps[0].status is TIMED_OUT
            assert result.feedback is not None
            assert result.feedback.startswith(f"{inner.name!r} timed out")
        branches: dict[str, Any] = {"a": timed, "b": parallel, "c": around, "d": another_ones}
        step = await ParallelStep(branches, concurrency_config=FIXED).run()
        assert statuses(step) == {"a": TIMED_OUT, "b": TIMED_OUT, "c": FAILED, "d": FAILED}
        assert step.branches is not None
        assert step.branches.completion_order[0] == "d"
        assert set(step.branches.completion_order) == set("abcd")
        assert step.branches["c"].steps[0].status is TIMED_OUT
        assert step.status is FAILED

    driver(main)


@EVERY_DRIVER
def test_without_completion_tracking_a_timeout_is_one_all_the_same(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: object) -> None:
            await world.forever()

        config = ConcurrencyConfig(completion_tracking=False, timeout=1)
        result = await ParallelStep({"slow": slow}, concurrency_config=config).run()
        assert result.status is TIMED_OUT
        assert isinstance(result.exception, StepTimeout)
        assert result.exception.result is result.branches

    driver(main)


# ---------------------------------------------------------------- breaches


@EVERY_DRIVER
@pytest.mark.parametrize("on_branch_failure", OnBranchFailure)
def test_a_breach_inside_goes_through(driver: Driver, on_branch_failure: Any) -> None:
    async def main(world: World) -> None:
        async def spend(data: object, budget: Any) -> None:
            budget.spend(usd=2)

        async def slow(data: int) -> int:
            await world.sleep(1)
            return data

        config = ExecutionConfig(usage_limits={"usd": 1})
        branches: dict[str, Any] = {"inner": Pipeline([Step("spend", spend)], config), "slow": slow}
        parallel = ParallelStep(branches, on_branch_failure=on_branch_failure, name="p")
        with pytest.raises(BudgetExceeded) as caught:
            await parallel.run(3)
        assert (caught.value.limit, caught.value.requested) == (1, 2)
        assert isinstance(caught.value.result, ParallelResult)
        assert [b.status for b in caught.value.result.values()] == [BREACHED, SUCCEEDED]
        with pytest.raises(BudgetExceeded) as caught:
            await Pipeline([parallel]).run(3)
        assert isinstance(caught.value.result, PipelineResult)
        assert caught.value.result.steps[0].status is BREACHED

    driver(main)


@EVERY_DRIVER
def test_what_lets_its_branches_end_may_be_inside_a_pipeline(driver: Driver) -> None:
    async def main(world: World) -> None:
        for step_config, ended_itself in ((DRAINS, True), (FIXED, False)):
            breach = Breach()
            ended: list[str] = []

            async def trip(data: object, breach: Breach = breach, ended: list[str] = ended) -> None:
                breach.trip("enough")
                await world.sleep(1)
                ended.append("trip")

            parallel = ParallelStep({"trip": trip}, concurrency_config=step_config, name="p")
            inner = Pipeline([Step("a", double), parallel, Step("b", double)], name="inner")
            with pytest.raises(Breached, match="enough") as caught:
                await Pipeline([inner, Step("c", double)]).run(1, breach=breach)
            assert bool(ended) == ended_itself
            assert isinstance(caught.value.result, PipelineResult)
            assert [step.status for step in caught.value.result.steps] == [BREACHED]
            if ended_itself:
                assert [step.status for step in caught.value.result.steps[0].steps] == [
                    SUCCEEDED,
                    BREACHED,
                ]

    driver(main)


@EVERY_DRIVER
def test_what_lets_its_branches_end_lets_those_within_them_end(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def press(data: object) -> None:
            machine.working_set_mb = 2000
            await world.sleep(2)
            machine.working_set_mb = 100

        machine.working_set_mb = 100
        limits = ResourceLimits(max_memory_mb=1000, action=PressureAction.BREACH)
        inner = ParallelStep({"press": press}, concurrency_config=FIXED)
        outer = ParallelStep({"inner": inner}, concurrency_config=DRAINS)
        with pytest.raises(Breached, match="memory") as caught:
            await Pipeline([outer], ExecutionConfig(resource_limits=limits)).run()
        assert isinstance(caught.value.result, PipelineResult)
        assert statuses(caught.value.result.steps[0]) == {"inner": SUCCEEDED}

    machine = Machine(100)
    with measured_by(machine):
        driver(main)


@EVERY_DRIVER
def test_a_pipeline_beside_others_does_not_speak_for_those_around(driver: Driver) -> None:
    """The one that is in a branch lets its own end; the parallel step around it does not."""

    async def main(world: World) -> None:
        breach = Breach()

        async def slow(data: object) -> None:
            await world.forever()

        async def trip(data: object) -> None:
            await world.sleep(1)
            breach.trip("enough")

        inner = Pipeline([ParallelStep({"slow": slow}, concurrency_config=DRAINS)])
        parallel = ParallelStep({"inner": inner, "trip": trip}, concurrency_config=FIXED)
        with pytest.raises(Breached, match="enough"):
            await Pipeline([parallel]).run(breach=breach)

    driver(main)


# ---------------------------------------------------------------- resources


@EVERY_DRIVER
def test_one_branch_runs_while_admissions_are_held_however_deep(driver: Driver) -> None:
    async def main(world: World) -> None:
        running: list[int] = []
        most: list[int] = []

        async def work(data: object) -> None:
            running.append(1)
            most.append(len(running))
            await world.sleep(1)
            running.pop()

        async def waits(data: object) -> None:  # for one that is held: it lends its place
            await nurseries[0]["b"].wait()

        class Nurseries(abc.Observer):
            def step_opened(self, step: BranchNursery) -> None:
                if step.name == "outer":
                    nurseries.append(step)

        def outer(branches: dict[str, Any]) -> Pipeline:
            limits = ResourceLimits(max_memory_mb=1000)
            step = ParallelStep(branches, concurrency_config=FIXED, name="outer")
            return Pipeline([step], ExecutionConfig(resource_limits=limits))

        nurseries: list[BranchNursery] = []
        parallel = ParallelStep({"x": work, "y": work}, concurrency_config=FIXED)
        for unit in (work, Pipeline([Step("a", work)]), parallel, Pipeline([parallel])):
            assert (await outer(dict.fromkeys("abcde", unit)).run()).success
        assert set(most) == {1}
        waiting = Pipeline([ParallelStep({"waits": waits}, concurrency_config=FIXED)])
        pipeline = outer({"a": waiting, "b": work})
        assert (await pipeline.run(observers=[Nurseries()])).success

        cache = Cache.memory()  # so does who waits for an equal call
        async with world.tasks() as start:
            start(cache.fetch, "key", lambda: world.give(3))
            await world.turns(2)
            equal = Step("equal", lambda data: cache.fetch("key", lambda: world.give(3)))
            begin = world.now()
            assert (await outer({"a": equal, "b": work}).run()).success
            assert world.now() - begin == pytest.approx(3)

    with measured_by(Machine(900)):
        driver(main)


@EVERY_DRIVER
def test_what_holds_a_parallel_step_holds_pipelines_in_its_branches(driver: Driver) -> None:
    async def main(world: World) -> None:
        running: list[int] = []
        most: list[int] = []

        async def work(data: object) -> None:
            running.append(1)
            most.append(len(running))
            await world.sleep(1)
            running.pop()

        deep = Pipeline([Pipeline([Step("a", work)])])
        for config in (
            ConcurrencyConfig(5, adaptive_limits=False),  # by memory
            ConcurrencyConfig(5, memory_based_limits=False),  # by lag
        ):
            step = ParallelStep(dict.fromkeys("abc", deep), concurrency_config=config)
            assert (await step.run()).success
        assert set(most) == {1}

    short = Machine(80, cgroups=(Scope("cgroup", 80, 100),), loop_lag=0.03)
    with measured_by(short):
        driver(main)


# ---------------------------------------------------------------- without the collector


class Oops(ValueError):
    """One that a weak reference can be had of."""


@pytest.mark.parametrize("driver", [on_trio, on_asyncio])
def test_what_was_raised_goes_with_the_result(driver: Driver) -> None:
    async def main(world: World) -> None:
        raised: list[weakref.ref[Exception]] = []

        def fail(error: Exception) -> None:
            raised.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

        async def bad(data: object) -> None:
            fail(Oops())

        async def bad_with_context(data: object, context: object) -> None:
            fail(Oops())

        async def breached(data: object) -> None:
            fail(Breached("enough"))

        units: list[Any] = []
        for fn in (bad, bad_with_context, breached):
            parallel = ParallelStep({"a": fn}, concurrency_config=FIXED)
            units += [
                Step("a", fn),
                Pipeline([Step("a", fn)]),
                Pipeline([Pipeline([Step("a", fn)])]),
                parallel,
                Pipeline([parallel]),
                ParallelStep({"a": Pipeline([parallel])}, concurrency_config=FIXED),
            ]
        units.append(
            ParallelStep({"a": double}, concurrency_config=FIXED, reduce=lambda _: fail(Oops()))
        )
        for unit in units:
            with suppress(Breached):
                await unit.run(1)
            await world.sleep(1)
        assert len(raised) == len(units)
        assert [ref() for ref in raised] == [None] * len(units)

    gc.collect()
    gc.disable()
    try:
        driver(main)
    finally:
        gc.enable()


# ---------------------------------------------------------------- shed, and run again


@EVERY_DRIVER
def test_what_was_shed_begins_again_with_the_context_it_was_given(driver: Driver) -> None:
    async def main(world: World) -> None:
        tries: list[str] = []

        async def add(data: object, context: dict[str, int]) -> None:
            tries.append("add")
            context["n"] = context.get("n", 0) + 1

        async def press(data: object) -> None:
            await world.sleep(20)  # till both are let in
            machine.working_set_mb = 2000
            await world.sleep(1)
            machine.working_set_mb = 100

        async def slow(data: object) -> None:
            await world.sleep(30)

        pipeline = Pipeline([Step("add", add), Step("slow", slow)])
        inner = ParallelStep({"add": add, "slow": slow}, MergeStrategy.OVERWRITE, FIXED)
        limits = ResourceLimits(max_memory_mb=1000, action=PressureAction.SHED)
        config = ExecutionConfig(resource_limits=limits)
        for unit in (pipeline, inner):
            tries.clear()
            machine.working_set_mb = 100
            branches: dict[str, Any] = {"press": press, "shed": unit}
            parallel = ParallelStep(
                branches, MergeStrategy.OVERWRITE, FIXED, priorities={"press": 1}
            )
            result = await Pipeline([parallel], config).run(context={})
            assert result.success
            assert tries == ["add", "add"]
            assert result.context == {"n": 1}

    machine = Machine(100)
    with measured_by(machine):
        driver(main)
