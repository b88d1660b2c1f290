"""`Pipeline`: units one after another."""

from __future__ import annotations

import math
import pickle
from threading import Lock
from typing import Any

import pytest

from drivers import EVERY_DRIVER, Driver, World
from test_guarding import Machine
from test_parallel import FIXED, Peak, double, negate, statuses
from trio_parallel_steps import (
    Branch,
    BranchNotDone,
    BranchStatus,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    ConcurrencyConfig,
    ExecutionConfig,
    MergeStrategy,
    ParallelStep,
    Pipeline,
    PipelineResult,
    PressureAction,
    ResourceLimits,
    Step,
    StepTimeout,
    abc,
    run_branches,
)
from trio_parallel_steps.pressure import measured_by

SUCCEEDED, FAILED = BranchStatus.SUCCEEDED, BranchStatus.FAILED
CANCELLED, SKIPPED = BranchStatus.CANCELLED, BranchStatus.SKIPPED
TIMED_OUT, BREACHED = BranchStatus.TIMED_OUT, BranchStatus.BREACHED


async def fail(data: object) -> None:
    raise ValueError("boom")


def by_step(result: PipelineResult) -> dict[str, BranchStatus]:
    return {step.name: step.status for step in result.steps}


# ---------------------------------------------------------------- one after another


@EVERY_DRIVER
def test_each_step_is_given_the_last_ones_output(driver: Driver) -> None:
    async def main(world: World) -> None:
        pipeline = Step("a", double) >> ParallelStep({"x": double, "y": negate}, name="b")
        result = await pipeline.run(1)
        assert result.success
        assert result.output == {"x": 4, "y": -2}
        assert by_step(result) == {"a": SUCCEEDED, "b": SUCCEEDED}
        assert result.steps[1].branches is not None
        assert result.steps[1].branches.outputs == {"x": 4, "y": -2}
        assert result.feedback is None
        assert result.usage == {}
        assert (await Pipeline([]).run(7)).output == 7

    driver(main)


@EVERY_DRIVER
def test_a_failed_step_ends_it_with_what_was_done(driver: Driver) -> None:
    async def main(world: World) -> None:
        result = await Pipeline([Step("a", double), Step("b", fail), Step("c", double)]).run(1)
        assert not result.success
        assert result.output is None
        assert by_step(result) == {"a": SUCCEEDED, "b": FAILED}
        assert result.steps[0].output == 2
        assert result.feedback == "'b' failed: ValueError: boom"

    driver(main)


@EVERY_DRIVER
def test_a_step_that_is_cancelled_ends_it(driver: Driver) -> None:
    async def main(world: World) -> None:
        class Cancels(abc.Observer):
            def branch_started(self, branch: Branch[Any]) -> None:
                branch.cancel("not today")

        async def slow(data: object) -> None:
            await world.forever()

        inner = Pipeline([Step("slow", slow), Step("c", double)])
        result = await inner.run(1, observers=[Cancels()])
        assert result.feedback == "'slow' was cancelled: not today"
        assert by_step(result) == {"slow": CANCELLED}

    driver(main)


@EVERY_DRIVER
def test_a_pipeline_in_a_pipeline(driver: Driver) -> None:
    async def main(world: World) -> None:
        inner = Pipeline([Step("b", double), Step("c", fail)], name="inner")
        result = await Pipeline([Step("a", double), inner]).run(1)
        assert by_step(result) == {"a": SUCCEEDED, "inner": FAILED}
        assert [step.name for step in result.steps[1].steps] == ["b", "c"]
        assert result.feedback == "'inner' failed: ValueError: boom"
        stopped = Pipeline([Step("x", double)], ExecutionConfig(timeout=0), name="late")
        result = await Pipeline([stopped]).run(1)
        assert result.feedback is not None

    driver(main)


def test_what_the_arrow_makes() -> None:
    a, b, c = (Step(name, double) for name in "abc")
    assert (a >> b >> c).steps == (a, b, c)
    assert (a >> (b >> c)).steps == (a, b, c)
    config = ExecutionConfig(timeout=9)
    left = Pipeline([a, b], config, name="left", version="2") >> c
    assert (left.steps, left.execution_config, left.name, left.version) == (
        (a, b, c),
        config,
        "left",
        "2",
    )
    own = Pipeline([b, c], config)
    named = Pipeline([b, c], name="named")
    versioned = Pipeline([b, c], version="2")
    for right in (own, named, versioned):
        assert (a >> right).steps == (a, right)
    assert repr(a >> b) == "<Pipeline 'pipeline': a >> b>"
    with pytest.raises(TypeError):
        a >> double  # type: ignore[operator]


@EVERY_DRIVER
def test_a_step_may_come_twice(driver: Driver) -> None:
    async def main(world: World) -> None:
        a = Step("a", double)
        result = await (a >> a >> a).run(1)
        assert result.output == 8
        assert list(by_step(result)) == ["a", "a#2", "a#3"]

    driver(main)


# ---------------------------------------------------------------- ExecutionConfig, each option


@EVERY_DRIVER
def test_no_step_takes_the_name_of_another(driver: Driver) -> None:
    async def main(world: World) -> None:
        pipeline = Pipeline([Step(name, double) for name in ("x", "x#2", "x", "x", "x#2")])
        result = await pipeline.run(1)
        assert list(by_step(result)) == ["x", "x#2", "x#3", "x#4", "x#2#2"]
        assert result.output == 32

    driver(main)


@EVERY_DRIVER
def test_max_parallel_steps_is_one_limit_for_all_that_is_nested(driver: Driver) -> None:
    async def main(world: World) -> None:
        running = peak = 0

        async def leaf(data: object) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await world.sleep(1)
            running -= 1

        wide = ConcurrencyConfig(10, adaptive_limits=False)

        def nested(depth: int) -> Any:
            if not depth:
                return leaf
            branches = {f"{i}": nested(depth - 1) for i in range(3)}
            parallel = ParallelStep(branches, concurrency_config=wide, name="deep")
            return Pipeline([parallel]) if depth == 2 else parallel

        for limit, expected in ((4, 4), (1, 1), (None, 10)):
            running = peak = 0
            config = ExecutionConfig(max_parallel_steps=limit)
            begin = world.now()
            assert (await Pipeline([nested(3)], config).run()).success
            assert peak == expected
            assert world.now() - begin == pytest.approx(math.ceil(27 / expected))

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_the_issues_own_example(driver: Driver) -> None:
    async def main(world: World) -> None:
        pipeline = Pipeline(
            steps=[Step.parallel(branches={"a": double, "b": negate}, max_concurrency=2)],
            execution_config=ExecutionConfig(
                max_parallel_steps=4,
                resource_limits=ResourceLimits(max_memory_mb=1024, max_cpu_percent=80),
            ),
        )
        assert (await pipeline.run(1)).output == {"a": 2, "b": -1}

    driver(main)


@EVERY_DRIVER
def test_resource_limits_hold_every_parallel_step(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def leaf(data: object) -> None:
            await world.sleep(1)

        inner = ParallelStep({"x": leaf, "y": leaf}, concurrency_config=FIXED, name="inner")
        config = ExecutionConfig(resource_limits=ResourceLimits(max_memory_mb=1000))
        for steps in ([inner], [ParallelStep({"nested": inner})], [Pipeline([inner])]):
            for execution, seconds in ((config, 2), (None, 1)):
                begin = world.now()
                assert (await Pipeline(steps, execution).run()).success
                assert world.now() - begin == pytest.approx(seconds)

    with measured_by(Machine(900)):
        driver(main)


@EVERY_DRIVER
def test_resource_limits_may_breach_it_in_a_plain_step(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: object) -> None:
            machine.working_set_mb = 2000
            await world.forever()

        limits = ResourceLimits(max_memory_mb=1000, action=PressureAction.BREACH)
        config = ExecutionConfig(resource_limits=limits)
        for step in (Step("slow", slow), ParallelStep({"slow": slow}, name="slow")):
            machine.working_set_mb = 100
            await world.sleep(1)  # and is measured anew
            with pytest.raises(Breached, match="memory") as caught:
                await Pipeline([Step("a", double), step], config).run(1)
            result = caught.value.result
            assert isinstance(result, PipelineResult)
            assert by_step(result) == {"a": SUCCEEDED, "slow": BREACHED}
            assert result.feedback == caught.value.reason

    machine = Machine()
    with measured_by(machine):
        driver(main)


def test_who_is_shed_must_be_cancellable() -> None:
    limits = ResourceLimits(max_memory_mb=1000, action=PressureAction.SHED)
    config = ExecutionConfig(resource_limits=limits)
    fixed = ConcurrencyConfig(individual_cancellation=False)
    deep = ParallelStep(
        {"x": Pipeline([ParallelStep({"a": double}, name="p", concurrency_config=fixed)])}
    )
    with pytest.raises(ValueError, match="SHED needs individual_cancellation=True, which 'p'"):
        Pipeline([deep], config)
    Pipeline([deep])
    Pipeline([ParallelStep({"a": Pipeline([ParallelStep({"a": double})])})], config)


@EVERY_DRIVER
def test_usage_limits_are_a_budget_for_the_whole_run(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def spend(data: object, budget: Budget) -> None:
            budget.spend(usd=0.4)

        async def bad(data: object, budget: Budget) -> None:
            budget.spend(usd=0.4)
            raise ValueError

        one, bad_one = Step("one", spend), Step("bad", bad)
        config = ExecutionConfig(usage_limits={"usd": 1.0})
        result = await Pipeline([one, one], config).run()
        assert result.usage == {"usd": 0.8}
        parallel = ParallelStep({"a": spend, "b": spend, "c": spend}, name="three")
        with pytest.raises(BudgetExceeded) as caught:
            await Pipeline([parallel, one], config).run()
        assert (caught.value.limit, caught.value.used) == (1.0, 0.8)
        result = caught.value.result  # type: ignore[assignment]
        assert isinstance(result, PipelineResult)
        assert result.usage == {"usd": 0.8}
        assert by_step(result) == {"three": BREACHED}
        assert result.steps[0].branches is not None
        # What failed branches spent counts.
        result = await Pipeline([bad_one], config).run()
        assert result.usage == {"usd": 0.4}

    driver(main)


@EVERY_DRIVER
def test_a_budget_of_the_callers_is_asked_too(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def spend(data: object, budget: Budget) -> None:
            budget.spend(usd=0.4)

        own = Budget(usd=0.5)
        pipeline = Pipeline([Step("a", spend)], ExecutionConfig(usage_limits={"usd": 9}))
        assert (await pipeline.run(budget=own)).usage == {"usd": 0.4}
        with pytest.raises(BudgetExceeded):
            await pipeline.run(budget=own)
        assert own.used() == {"usd": 0.4}
        counted = await Pipeline([Step("a", spend)]).run()
        assert counted.usage == {"usd": 0.4}

    driver(main)


@EVERY_DRIVER
def test_its_timeout_ends_the_step_that_runs(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: object) -> None:
            await world.forever()

        async def quick(data: object) -> int:
            return 1

        parallel = ParallelStep({"quick": quick, "slow": slow}, name="slow")
        for step in (Step("slow", slow), parallel):
            begin = world.now()
            config = ExecutionConfig(timeout=3)
            result = await Pipeline([Step("a", double), step, Step("c", double)], config).run(1)
            assert world.now() - begin == pytest.approx(3)
            assert by_step(result) == {"a": SUCCEEDED, "slow": TIMED_OUT}
            assert result.feedback == "'slow' timed out: step timed out after 3 s"
        assert statuses(result.steps[1]) == {"quick": SUCCEEDED, "slow": CANCELLED}

    driver(main)


@EVERY_DRIVER
def test_a_parallel_steps_own_timeout_is_no_failure_of_its_code(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: object) -> None:
            await world.forever()

        result = await Pipeline([ParallelStep({"slow": slow}, name="p", timeout=2)]).run()
        assert by_step(result) == {"p": TIMED_OUT}
        assert isinstance(result.steps[0].exception, StepTimeout)
        assert result.feedback is not None
        assert result.feedback.startswith("'p' timed out")

    driver(main)


# ---------------------------------------------------------------- breaches


@EVERY_DRIVER
def test_a_breach_stops_what_runs_and_keeps_what_was_done(driver: Driver) -> None:
    async def main(world: World) -> None:
        breach = Breach()

        async def trip(data: object) -> None:
            breach.trip("enough")
            await world.forever()

        async def slow(data: object) -> None:
            await world.forever()

        parallel = ParallelStep({"slow": slow, "trip": trip}, name="p")
        for step in (Step("p", trip), parallel):
            breach = Breach()
            with pytest.raises(Breached, match="enough") as caught:
                await Pipeline([Step("a", double), step]).run(1, breach=breach)
            result = caught.value.result
            assert isinstance(result, PipelineResult)
            assert by_step(result) == {"a": SUCCEEDED, "p": BREACHED}
            assert result.steps[0].output == 2
            stopped = result.steps[1]
        assert statuses(stopped) == {"slow": BREACHED, "trip": BREACHED}
        with pytest.raises(Breached):  # tripped already
            await Pipeline([Step("a", double)]).run(1, breach=breach)

    driver(main)


@EVERY_DRIVER
def test_a_step_without_a_breach_watcher_ends_by_itself(driver: Driver) -> None:
    async def main(world: World) -> None:
        breach = Breach()
        ended: list[str] = []

        async def trip(data: object) -> None:
            breach.trip("enough")
            await world.sleep(1)
            ended.append("trip")

        async def nested(data: object) -> None:
            await world.sleep(1)
            ended.append("nested")

        inner = ParallelStep({"a": nested, "b": nested}, concurrency_config=ConcurrencyConfig(1))
        config = ConcurrencyConfig(2, adaptive_limits=False, breach_watcher=False)
        parallel = ParallelStep(
            {"inner": inner, "trip": trip, "queued": nested}, concurrency_config=config, name="p"
        )
        begin = world.now()
        with pytest.raises(Breached, match="enough") as caught:
            await Pipeline([parallel, Step("next", nested)]).run(breach=breach)
        assert world.now() - begin == pytest.approx(2)
        assert sorted(ended) == ["nested", "nested", "trip"]
        result = caught.value.result
        assert isinstance(result, PipelineResult)
        assert by_step(result) == {"p": BREACHED}
        assert statuses(result.steps[0]) == {
            "inner": SUCCEEDED,
            "trip": SUCCEEDED,
            "queued": SKIPPED,
        }

    driver(main)


@EVERY_DRIVER
def test_a_pipeline_is_cancelled_with_what_is_around_it(driver: Driver) -> None:
    async def main(world: World) -> None:
        ended: list[str] = []

        async def slow(data: object) -> None:
            try:
                await world.forever()
            finally:
                ended.append("slow")

        async with world.scope(1):
            await Pipeline([ParallelStep({"slow": slow})]).run()
            ended.append("never")
        assert ended == ["slow"]

    driver(main)


@EVERY_DRIVER
def test_a_pipeline_in_a_branch_runs_on_its_limiter(driver: Driver) -> None:
    async def main(world: World) -> None:
        peak = Peak()

        async def work(data: object) -> None:
            await world.sleep(1)

        pipeline = Pipeline([Step("a", work), ParallelStep({"x": work, "y": work})])
        branches = {f"{i}": pipeline.run for i in range(3)}
        result = await run_branches(branches, 2, observers=[peak])
        assert all(branch.unwrap().success for branch in result.values())
        assert result.peak_in_flight == 2

    with measured_by(Machine()):
        driver(main)


# ---------------------------------------------------------------- the context


@EVERY_DRIVER
def test_the_context_goes_from_step_to_step(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def one(data: object, context: dict[str, Any]) -> None:
            context["one"] = 1

        async def two(data: object, context: dict[str, Any]) -> None:
            context["two"] = context["one"] + 1

        async def bad(data: object, context: dict[str, Any]) -> None:
            context["bad"] = True
            raise ValueError

        context: dict[str, Any] = {}
        deep = ParallelStep({"x": Step("one", one) >> Step("two", two)}, MergeStrategy.OVERWRITE)
        for pipeline in (Step("one", one) >> Step("two", two), Pipeline([deep])):
            result = await pipeline.run(context=context)
            assert result.context == {"one": 1, "two": 2}
        result = await (Step("one", one) >> Step("bad", bad)).run(context=context)
        assert result.context == {"one": 1}
        assert context == {}
        with pytest.raises(TypeError, match="must be what can be deep-copied"):
            await Pipeline([Step("one", one)]).run(context={"x": Lock()})

    driver(main)


@EVERY_DRIVER
def test_a_step_that_gave_up_is_named_though_it_raised_nothing(driver: Driver) -> None:
    async def main(world: World) -> None:
        rule = CancelRule("quick", "inner")
        config = ConcurrencyConfig(2, adaptive_limits=False, cancel_rules=(rule,))

        async def quick(data: object) -> None:
            await world.sleep(1)

        async def slow(data: object) -> None:
            await world.forever()

        inner = Pipeline([Step("slow", slow)])
        result = await ParallelStep(
            {"inner": inner, "quick": quick}, concurrency_config=config
        ).run()
        assert result.branches is not None
        assert result.branches["inner"].status is CANCELLED
        (step,) = result.branches["inner"].steps
        assert step.status is CANCELLED

    driver(main)


@EVERY_DRIVER
def test_a_pipelines_result_pickles(driver: Driver) -> None:
    async def main(world: World) -> None:
        result = await Pipeline([ParallelStep({"a": double}, name="p"), Step("bad", fail)]).run(1)
        copy = pickle.loads(pickle.dumps(result))
        assert by_step(copy) == by_step(result)
        assert copy.steps[0].branches.outputs == {"a": 2}
        breach = Breach()
        breach.trip("enough")
        with pytest.raises(Breached) as caught:
            await Pipeline([]).run(breach=breach)
        assert pickle.loads(pickle.dumps(caught.value)).result.feedback == "enough"

    driver(main)


def test_a_branch_that_gave_nothing_fails_its_pipeline() -> None:
    assert issubclass(BranchNotDone, Exception)


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (3, {}, "`steps` must be an iterable of Step, ParallelStep or Pipeline"),
        ([double], {}, "`steps` must be an iterable of Step, ParallelStep or Pipeline"),
        ([], {"execution_config": 3}, "`execution_config` must be an ExecutionConfig or None"),
        ([], {"name": 3}, "`name` must be a str"),
        ([], {"version": 3}, "`version` must be a str"),
    ],
)
def test_a_bad_pipeline_is_refused(steps: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Pipeline(steps, **options)
    assert message in str(caught.value)
