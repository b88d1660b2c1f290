"""`ParallelStep`: named branches side by side, and their contexts merged."""

from __future__ import annotations

import math
from typing import Any

import pytest

from drivers import EVERY_DRIVER, Driver, World
from test_guarding import Machine
from trio_parallel_steps import (
    Branch,
    BranchErrors,
    BranchNotDone,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    CancelRule,
    ConcurrencyConfig,
    MergeConflict,
    MergeStrategy,
    OnBranchFailure,
    ParallelResult,
    ParallelStep,
    Pipeline,
    Step,
    StepTimeout,
    abc,
    usable_cpus,
)
from trio_parallel_steps.pressure import measured_by

SUCCEEDED, FAILED = BranchStatus.SUCCEEDED, BranchStatus.FAILED
CANCELLED, SKIPPED = BranchStatus.CANCELLED, BranchStatus.SKIPPED
TIMED_OUT, BREACHED = BranchStatus.TIMED_OUT, BranchStatus.BREACHED

FIXED = ConcurrencyConfig(math.inf, adaptive_limits=False)


async def double(data: int) -> int:
    return 2 * data


async def negate(data: int) -> int:
    return -data


def statuses(result: Any) -> dict[str, BranchStatus]:
    return {name: branch.status for name, branch in result.branches.items()}


class Peak(abc.Observer):
    """What ran, and how many at once."""

    def __init__(self) -> None:
        self.running = self.peak = 0
        self.limits: list[float] = []
        self.steps: list[BranchNursery] = []

    def step_opened(self, step: BranchNursery) -> None:
        self.steps.append(step)

    def branch_started(self, branch: Branch[Any]) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)

    def branch_ended(self, branch: Branch[Any], result: Any) -> None:
        self.running -= result.started_at is not None

    def limit_changed(self, limiter: Any, old: float, new: float, reason: str) -> None:
        self.limits.append(new)


# ---------------------------------------------------------------- the issue's own words


@EVERY_DRIVER
def test_a_hundred_branches_stay_under_the_default_limit(driver: Driver) -> None:
    async def main(world: World) -> None:
        peak = Peak()

        async def work(data: object) -> None:
            await world.sleep(0.1)

        branches = {f"processor_{i}": work for i in range(100)}
        result = await Step.parallel(branches=branches).run(observers=[peak])
        assert result.success
        assert result.output == dict.fromkeys(branches)
        default = min(10, 2 * usable_cpus())
        assert 1 < peak.peak <= default
        assert result.branches is not None
        assert result.branches.peak_in_flight == peak.peak

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_high_priority_done_cancels_low_priority(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def soon(data: object) -> str:
            await world.sleep(1)
            return "done"

        async def never(data: object) -> None:
            await world.forever()

        branches = {"low_priority_a": never, "high_priority_a": soon, "low_priority_b": never}
        config = ConcurrencyConfig(
            2, cancel_rules=(CancelRule("high_priority_*", "low_priority_*"),)
        )
        parallel = Step.parallel(branches, concurrency=config, priorities={"high_priority_a": 1})
        result = await parallel.run()
        assert result.success
        assert result.output == {"high_priority_a": "done"}
        assert statuses(result) == {
            "low_priority_a": CANCELLED,
            "high_priority_a": SUCCEEDED,
            "low_priority_b": SKIPPED,
        }

    driver(main)


@EVERY_DRIVER
def test_the_short_forms(driver: Driver) -> None:
    branches = {"a": double, "b": negate}

    async def main(world: World) -> None:
        for parallel in (
            Step.parallel(branches=branches, max_concurrency=4, track_completion=True),
            Step.parallel(
                branches=branches,
                concurrency=ConcurrencyConfig(
                    max_concurrent_branches=4, adaptive_limits=True, completion_tracking=True
                ),
            ),
            ParallelStep(branches, MergeStrategy.OVERWRITE, ConcurrencyConfig()),
        ):
            result = await parallel.run(3)
            assert result.output == {"a": 6, "b": -3}
            assert result.branches is not None
            assert sorted(result.branches.completion_order) == ["a", "b"]

    driver(main)
    short = Step.parallel(branches, max_concurrency=4)
    assert short.concurrency == ConcurrencyConfig(4)
    untracked = Step.parallel(branches, track_completion=False)
    assert untracked.concurrency == ConcurrencyConfig(completion_tracking=False)
    assert Step.parallel(branches).concurrency == ConcurrencyConfig()


@pytest.mark.parametrize("option", [{"max_concurrency": 4}, {"track_completion": False}])
def test_both_forms_at_once_are_refused(option: Any) -> None:
    with pytest.raises(TypeError, match="`concurrency` says it all"):
        Step.parallel({"a": double}, concurrency=ConcurrencyConfig(), **option)


# ---------------------------------------------------------------- ConcurrencyConfig, each option


async def peak_of(world: World, config: ConcurrencyConfig, number: int = 20) -> Peak:
    peak = Peak()

    async def work(data: object) -> None:
        await world.sleep(1)

    branches = {f"{i}": work for i in range(number)}
    await ParallelStep(branches, concurrency_config=config).run(observers=[peak])
    return peak


@EVERY_DRIVER
def test_max_concurrent_branches_is_the_ceiling(driver: Driver) -> None:
    async def main(world: World) -> None:
        for adaptive in (True, False):
            config = ConcurrencyConfig(3, adaptive_limits=adaptive)
            assert (await peak_of(world, config)).peak == 3
        unlimited = ConcurrencyConfig(math.inf, adaptive_limits=False)
        assert (await peak_of(world, unlimited)).peak == 20
        assert (await peak_of(world, ConcurrencyConfig.simple())).peak == 20

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_adaptive_limits_move_the_limit(driver: Driver) -> None:
    async def main(world: World) -> None:
        for adaptive in (True, False):
            peak = Peak()
            running = 0

            async def saturated(data: object) -> None:
                nonlocal running
                running += 1
                await world.sleep(0.1 * running)
                running -= 1

            branches = {f"{i}": saturated for i in range(200)}
            config = ConcurrencyConfig(8, adaptive_limits=adaptive)
            parallel = ParallelStep(branches, concurrency_config=config)
            await parallel.run(observers=[peak])
            assert bool(peak.limits) == adaptive
            assert not adaptive or min(peak.limits) < 8

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_an_adaptive_limit_without_a_ceiling_starts_low(driver: Driver) -> None:
    async def main(world: World) -> None:
        peak = await peak_of(world, ConcurrencyConfig(math.inf), number=40)
        assert peak.steps[0].result.peak_in_flight < 40

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_cpu_based_limits_choose_the_ceiling(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_parallel_steps.hosts._abc.usable_cpus", lambda: 2)

    async def main(world: World) -> None:
        by_cpus = ConcurrencyConfig(adaptive_limits=False)
        assert (await peak_of(world, by_cpus)).peak == 4
        not_by_cpus = ConcurrencyConfig(adaptive_limits=False, cpu_based_limits=False)
        assert (await peak_of(world, not_by_cpus)).peak == 10

    with measured_by(Machine()):
        driver(main)


@EVERY_DRIVER
def test_a_loop_that_lags_admits_nothing_new(driver: Driver) -> None:
    async def main(world: World) -> None:
        lags = ConcurrencyConfig(4)
        assert (await peak_of(world, lags)).peak == 1
        for config in (
            ConcurrencyConfig(4, cpu_based_limits=False),
            ConcurrencyConfig(4, adaptive_limits=False),
        ):
            assert (await peak_of(world, config)).peak == 4

    with measured_by(Machine(loop_lag=0.03)):
        driver(main)


@EVERY_DRIVER
def test_memory_based_limits_hold_as_memory_runs_short(driver: Driver) -> None:
    from trio_parallel_steps._readings import Scope

    async def main(world: World) -> None:
        short = ConcurrencyConfig(4, adaptive_limits=False)
        assert (await peak_of(world, short)).peak == 1
        unheld = ConcurrencyConfig(4, adaptive_limits=False, memory_based_limits=False)
        assert (await peak_of(world, unheld)).peak == 4

    with measured_by(Machine(80, cgroups=(Scope("cgroup", 80, 100),))):
        driver(main)


@EVERY_DRIVER
def test_completion_tracking_keeps_the_order(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def work(data: object, seconds: float = 0.0) -> None:
            await world.sleep(seconds)

        async def slow(data: object) -> None:
            await work(data, 2)

        branches = {"slow": slow, "quick": work}
        tracked = await ParallelStep(branches).run()
        assert tracked.branches is not None
        assert tracked.branches.completion_order == ("quick", "slow")
        config = ConcurrencyConfig(completion_tracking=False)
        untracked = await ParallelStep(branches, concurrency_config=config).run()
        assert untracked.branches is not None
        assert untracked.branches.completion_order == ()
        assert [b.completion_index for b in untracked.branches.values()] == [None, None]
        assert untracked.output == {"slow": None, "quick": None}

    driver(main)


@pytest.mark.parametrize("strategy", [MergeStrategy.OVERWRITE, MergeStrategy.KEEP_FIRST])
def test_what_goes_by_the_order_of_completion_needs_it(strategy: MergeStrategy) -> None:
    config = ConcurrencyConfig(completion_tracking=False)
    with pytest.raises(ValueError, match="needs completion_tracking=True"):
        ParallelStep({"a": double}, strategy, config)
    ParallelStep({"a": double}, MergeStrategy.CONTEXT_UPDATE, config)


@EVERY_DRIVER
def test_an_option_of_one_run_is_checked_too(driver: Driver) -> None:
    async def main(world: World) -> None:
        parallel = ParallelStep({"a": double}, MergeStrategy.OVERWRITE)
        with pytest.raises(ValueError, match="needs completion_tracking=True"):
            await parallel.run(1, concurrency=ConcurrencyConfig(completion_tracking=False))
        one = await parallel.run(1, concurrency=ConcurrencyConfig(1))
        assert one.success

    driver(main)


@EVERY_DRIVER
def test_individual_cancellation(driver: Driver) -> None:
    async def main(world: World) -> None:
        class Cancels(abc.Observer):
            error: Exception | None = None

            def branch_started(self, branch: Branch[Any]) -> None:
                if branch.key == "slow":
                    try:
                        branch.cancel("not wanted")
                    except RuntimeError as exc:
                        self.error = exc

        async def slow(data: object) -> None:
            await world.sleep(1)

        allowed, refused = Cancels(), Cancels()
        parallel = ParallelStep({"slow": slow})
        assert statuses(await parallel.run(observers=[allowed])) == {"slow": CANCELLED}
        config = ConcurrencyConfig(individual_cancellation=False)
        result = await parallel.run(concurrency=config, observers=[refused])
        assert statuses(result) == {"slow": SUCCEEDED}
        assert "can't be cancelled by itself" in str(refused.error)

    driver(main)


def test_without_individual_cancellation_a_branch_has_no_timeout() -> None:
    config = ConcurrencyConfig(individual_cancellation=False)
    branches = {"a": Step("a", double, timeout=1)}
    with pytest.raises(ValueError, match="the timeout of branch 'a' needs"):
        ParallelStep(branches, concurrency_config=config)


@EVERY_DRIVER
def test_the_breach_watcher_stops_what_runs(driver: Driver) -> None:
    async def main(world: World) -> None:
        for watches in (True, False):
            breach = Breach()

            async def work(data: object) -> str:
                await world.sleep(1)
                return "done"

            async def trip(data: object, breach: Breach = breach) -> str:
                breach.trip("enough")
                return await work(data)

            branches = {"slow": work, "trip": trip, "queued": work}
            config = ConcurrencyConfig(2, adaptive_limits=False, breach_watcher=watches)
            with pytest.raises(Breached, match="enough") as caught:
                await ParallelStep(branches, concurrency_config=config).run(breach=breach)
            result = caught.value.result
            with pytest.raises(Breached):  # tripped already
                await ParallelStep(branches).run(breach=breach)
            ran = BREACHED if watches else SUCCEEDED
            assert isinstance(result, ParallelResult)
            assert [b.status for b in result.values()] == [ran, ran, SKIPPED]

    driver(main)


@EVERY_DRIVER
def test_the_steps_timeout(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def quick(data: object) -> int:
            return 1

        async def slow(data: object) -> None:
            await world.forever()

        branches = {"quick": quick, "slow": slow}
        for parallel in (
            ParallelStep(branches, concurrency_config=ConcurrencyConfig(timeout=2)),
            ParallelStep(branches, timeout=2),
            ParallelStep(branches, concurrency_config=ConcurrencyConfig(timeout=9), timeout=2),
            ParallelStep(branches, timeout=2, on_branch_failure=OnBranchFailure.IGNORE),
        ):
            begin = world.now()
            result = await parallel.run()
            assert world.now() - begin == pytest.approx(2)
            assert result.status is TIMED_OUT
            assert isinstance(result.exception, StepTimeout)
            assert result.reason == str(result.exception)
            assert statuses(result) == {"quick": SUCCEEDED, "slow": TIMED_OUT}
            assert result.branches is result.exception.result

    driver(main)


# ---------------------------------------------------------------- how it ends


@EVERY_DRIVER
def test_siblings_run_to_their_end_then_the_step_fails(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def slow(data: int) -> int:
            await world.sleep(1)
            return data

        async def bad(data: int) -> None:
            raise ValueError("boom")

        result = await ParallelStep({"bad": bad, "slow": slow}, name="both").run(3)
        assert result.status is FAILED
        assert result.output is None
        assert statuses(result) == {"bad": FAILED, "slow": SUCCEEDED}
        assert isinstance(result.exception, BranchErrors)
        assert result.exception.result is result.branches
        assert result.feedback is not None
        assert "'bad' failed: ValueError: boom" in result.feedback
        assert result.duration == pytest.approx(1)

    driver(main)


@EVERY_DRIVER
def test_failures_are_ignored_while_one_succeeds(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: int) -> None:
            raise ValueError("boom")

        ignore = OnBranchFailure.IGNORE
        result = await ParallelStep({"bad": bad, "good": double}, on_branch_failure=ignore).run(3)
        assert result.success
        assert result.output == {"good": 6}
        assert statuses(result) == {"bad": FAILED, "good": SUCCEEDED}
        result = await ParallelStep({"bad": bad}, on_branch_failure=ignore).run(3)
        assert result.status is FAILED
        assert isinstance(result.exception, BranchErrors)
        result = await ParallelStep({}, on_branch_failure=ignore).run(3)
        assert isinstance(result.exception, BranchErrors)
        assert isinstance(result.exception.exceptions[0], BranchNotDone)
        assert (await ParallelStep({}).run(3)).output == {}

    driver(main)


@EVERY_DRIVER
def test_a_breach_beats_ignore(driver: Driver) -> None:
    async def main(world: World) -> None:
        budget = Budget(usd=1)

        async def spend(data: object, budget: Budget) -> None:
            budget.spend(usd=0.6)
            await world.sleep(1)

        branches: dict[str, Any] = {"a": spend, "b": spend, "c": double}
        parallel = ParallelStep(branches, on_branch_failure=OnBranchFailure.IGNORE)
        with pytest.raises(BudgetExceeded) as caught:
            await parallel.run(1, budget=budget)
        assert isinstance(caught.value.result, ParallelResult)
        assert caught.value.result.stop_reason == caught.value.reason
        assert budget.used() == {"usd": 0.6}

    driver(main)


@EVERY_DRIVER
def test_the_output_is_reduced(driver: Driver) -> None:
    async def main(world: World) -> None:
        parallel = ParallelStep(
            {"a": double, "b": negate}, reduce=lambda outputs: sum(outputs.values())
        )
        assert (await parallel.run(3)).output == 3

        def fails(outputs: object) -> None:
            raise KeyError("reduce")

        result = await ParallelStep({"a": double}, reduce=fails).run(3)
        assert isinstance(result.exception, KeyError)
        assert result.status is FAILED

    driver(main)


@EVERY_DRIVER
def test_the_other_options_of_the_short_form(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: int) -> None:
            raise ValueError

        parallel = Step.parallel(
            {"bad": bad, "a": changes(world, 0, x=1)},
            name="both",
            merge_strategy=MergeStrategy.KEEP_FIRST,
            on_branch_failure=OnBranchFailure.IGNORE,
            reduce=list,
            timeout=9,
        )
        result = await Pipeline([parallel]).run(context={})
        assert (result.output, result.context) == (["a"], {"x": 1})
        assert result.steps[0].name == "both"

    driver(main)


@EVERY_DRIVER
def test_priorities_and_weights(driver: Driver) -> None:
    async def main(world: World) -> None:
        began: list[str] = []

        def work(name: str) -> Any:
            async def work(data: object) -> None:
                began.append(f"{name} {world.now() - begin:g}")
                await world.sleep(1)

            return work

        begin = world.now()
        parallel = ParallelStep(
            {name: work(name) for name in "abc"},
            concurrency_config=ConcurrencyConfig(2, adaptive_limits=False),
            priorities={"c": 1},
            weights={"a": 2},
        )
        await parallel.run()
        assert began == ["c 0", "a 1", "b 2"]

    with measured_by(Machine()):
        driver(main)


# ---------------------------------------------------------------- contexts


def changes(world: World, seconds: float, **values: Any) -> Any:
    async def change(data: object, context: dict[str, Any]) -> None:
        await world.sleep(seconds)
        context.update(values)

    return change


@EVERY_DRIVER
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (MergeStrategy.NO_MERGE, {"x": 0}),
        (MergeStrategy.OVERWRITE, {"x": "slow", "slow": 1, "quick": 1}),
        (MergeStrategy.KEEP_FIRST, {"x": "quick", "slow": 1, "quick": 1}),
        (
            lambda context, branches: {**context, "got": sorted(branches)},
            {"x": 0, "got": ["quick", "slow"]},
        ),
    ],
)
def test_contexts_are_merged(driver: Driver, strategy: Any, expected: Any) -> None:
    async def main(world: World) -> None:
        branches = {
            "slow": changes(world, 2, x="slow", slow=1),
            "quick": changes(world, 1, x="quick", quick=1),
        }
        context = {"x": 0}
        pipeline = Pipeline([ParallelStep(branches, strategy, FIXED)])
        result = await pipeline.run(context=context)
        assert result.success
        assert result.context == expected
        assert context == {"x": 0}

    driver(main)


@EVERY_DRIVER
def test_a_conflict_fails_the_step(driver: Driver) -> None:
    async def main(world: World) -> None:
        branches = {"a": changes(world, 0, x=1), "b": changes(world, 0, x=2)}
        for strategy in (MergeStrategy.CONTEXT_UPDATE, MergeStrategy.ERROR_ON_CONFLICT):
            result = await ParallelStep(branches, strategy).run(context={"x": 0})
            assert isinstance(result.exception, MergeConflict)
            assert statuses(result) == {"a": SUCCEEDED, "b": SUCCEEDED}

    driver(main)


@EVERY_DRIVER
def test_a_failed_branchs_changes_are_never_merged(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: object, context: dict[str, int]) -> None:
            context["bad"] = 1
            raise ValueError

        branches = {"bad": bad, "good": changes(world, 1, good=1)}
        for ignores in OnBranchFailure:
            parallel = ParallelStep(branches, MergeStrategy.OVERWRITE, on_branch_failure=ignores)
            result = await Pipeline([parallel]).run(context={})
            assert result.success == (ignores is OnBranchFailure.IGNORE)
            assert result.context == {"good": 1}  # also when the step fails

    driver(main)


@EVERY_DRIVER
def test_what_a_failed_pipeline_did_before_it_failed_is_not_merged(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: object) -> None:
            raise ValueError

        failing = Step("change", changes(world, 0, bad=1)) >> Step("bad", bad)
        branches = {"failing": failing, "good": changes(world, 1, good=1)}
        parallel = ParallelStep(branches, MergeStrategy.OVERWRITE)
        result = await Pipeline([parallel]).run(context={})
        assert result.context == {"good": 1}

    driver(main)


@EVERY_DRIVER
def test_what_was_not_merged_is_noted_beside_a_failure(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: object) -> None:
            raise ValueError

        branches = {"a": changes(world, 0, x=1), "b": changes(world, 0, x=2), "bad": bad}
        parallel = ParallelStep(branches, MergeStrategy.ERROR_ON_CONFLICT)
        result = await parallel.run(context={})
        assert isinstance(result.exception, BranchErrors)
        (note,) = result.exception.__notes__
        assert note.startswith("The contexts of its branches were not merged: MergeConflict")

    driver(main)


@EVERY_DRIVER
def test_only_what_is_included_is_given_and_merged(driver: Driver) -> None:
    async def main(world: World) -> None:
        seen: list[Any] = []

        async def change(data: object, context: dict[str, int]) -> None:
            seen.append(dict(context))
            context.update(a=2, b=2)

        parallel = ParallelStep({"x": change}, MergeStrategy.OVERWRITE, context_include_keys=["a"])
        result = await Pipeline([parallel]).run(context={"a": 1, "b": 1})
        assert seen == [{"a": 1}]
        assert result.context == {"a": 2, "b": 1}

    driver(main)


@EVERY_DRIVER
def test_branches_may_be_pipelines_and_parallel_steps(driver: Driver) -> None:
    async def main(world: World) -> None:
        inner = ParallelStep({"double": double, "negate": negate}, name="inner")
        parallel = ParallelStep(
            {
                "both": inner,
                "twice": Step("first", double) >> Step("second", double),
                "after": Pipeline([Step("one", double), inner]),
            },
            concurrency_config=ConcurrencyConfig(1),
        )
        result = await parallel.run(1)
        assert result.output == {
            "both": {"double": 2, "negate": -1},
            "twice": 4,
            "after": {"double": 4, "negate": -2},
        }
        assert result.branches is not None
        both, twice = result.branches["both"], result.branches["twice"]
        assert both.branches is not None
        assert both.branches.outputs == {"double": 2, "negate": -1}
        assert [step.name for step in twice.steps] == ["first", "second"]
        assert result.branches.peak_in_flight == 1

    driver(main)


@EVERY_DRIVER
def test_a_parallel_step_that_fails_in_a_branch_fails_it(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def bad(data: object) -> None:
            raise ValueError("deep")

        inner = ParallelStep({"bad": bad}, name="inner")
        result = await ParallelStep({"nested": inner, "good": double}).run(1)
        assert statuses(result) == {"nested": FAILED, "good": SUCCEEDED}
        assert result.feedback is not None
        assert "'bad' failed: ValueError: deep" in result.feedback

    driver(main)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("branches", "options", "error", "message"),
    [
        ([double], {}, TypeError, "`branches` must be a mapping from name to branch"),
        ({1: double}, {}, TypeError, "`branches` must be a mapping whose keys are str, got 1"),
        ({"a": 3}, {}, TypeError, "`branches['a']` must be an async function, got 3"),
        ({"a": len}, {}, TypeError, "`branches['a']` must be an async function"),
        ({"a": double}, {"priorities": {"b": 1}}, ValueError, "`priorities` names keys that"),
        ({"a": double}, {"weights": {"a": 0}}, ValueError, "`weights['a']` must be an int >= 1"),
        ({"a": double}, {"merge_strategy": 3}, TypeError, "`merge_strategy` must be"),
        ({"a": double}, {"on_branch_failure": 3}, TypeError, "must be an OnBranchFailure, got 3"),
        ({"a": double}, {"context_include_keys": "ab"}, TypeError, "must be an iterable of str"),
        ({"a": double}, {"context_include_keys": [1]}, TypeError, "must be an iterable of str"),
        ({"a": double}, {"reduce": 3}, TypeError, "`reduce` must be a function"),
        ({"a": double}, {"timeout": -1}, ValueError, "`timeout` must be a number of seconds"),
        ({"a": double}, {"cache": 1}, TypeError, "`cache` must be a Cache or None"),
        ({"a": double}, {"concurrency_config": 1}, TypeError, "must be a ConcurrencyConfig"),
        ({"a": double}, {"name": 1}, TypeError, "`name` must be a str"),
    ],
)
def test_a_bad_option_is_refused(
    branches: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        ParallelStep(branches, **options)
    assert message in str(caught.value)


def test_it_says_what_it_is() -> None:
    assert repr(ParallelStep({"a": double}, name="x")) == "<ParallelStep 'x': 1 branches>"
