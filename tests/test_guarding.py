"""Steps under `ResourceLimits`: what is held, shed and stopped.  The readings are fakes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from drivers import EVERY_DRIVER, Driver, World
from helpers import assert_idle
from trio_parallel_steps import (
    COLLECT,
    Backpressure,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breached,
    Pressure,
    PressureAction,
    PressureLevel,
    ResourceLimits,
    Retry,
    abc,
    map_branches,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps._guarding import Guarding
from trio_parallel_steps._guards import Guards
from trio_parallel_steps._readings import Figures, Scope
from trio_parallel_steps._records import RUNNING, Cause
from trio_parallel_steps.limits import AIMDLimit, Sample
from trio_parallel_steps.pressure import measured_by

LIMIT = 1000.0
MEMORY = ResourceLimits(max_memory_mb=LIMIT)
SHED = ResourceLimits(max_memory_mb=LIMIT, action=PressureAction.SHED)
BREACH = ResourceLimits(max_memory_mb=LIMIT, action=PressureAction.BREACH)


class Machine:
    """What it says is in use."""

    name = "machine"
    every = 0.0

    def __init__(self, working_set_mb: float = 0.0, **others: Any) -> None:
        self.working_set_mb = working_set_mb
        self.others: Any = others

    def read(self) -> Figures:
        figures: Figures = {"working_set_mb": self.working_set_mb}
        figures.update(self.others)
        return figures


class Seen(abc.Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.levels: list[PressureLevel] = []

    def branch_queued(self, branch: Branch[Any]) -> None:
        self.lines.append(f"{branch.key} queued")

    def branch_started(self, branch: Branch[Any]) -> None:
        self.lines.append(f"{branch.key} started")

    def branch_ended(self, branch: Branch[Any], result: Any) -> None:
        self.lines.append(f"{branch.key} {result.status.value}")

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self.lines.append(f"{branch.key} told: {reason}")

    def pressure_changed(self, step: BranchNursery, pressure: Pressure) -> None:
        assert step.name == "step"
        self.levels.append(pressure.level)


def started(nursery: BranchNursery, *keys: Any) -> list[Any]:
    return [key for key in keys if nursery[key].attempts]


# ---------------------------------------------------------------- HOLD


@EVERY_DRIVER
def test_one_branch_runs_all_the_same(driver: Driver) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(900)):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                for key in "abc":
                    nursery.start_soon(key, world.sleep, 1)
                await world.sleep(0.5)
                assert started(nursery, *"abc") == ["a"]
                assert nursery.explain() == {"b": "paused: memory", "c": "paused: memory"}
                await world.sleep(1)
                assert started(nursery, *"abc") == ["a", "b"]
        assert nursery.result.outputs == dict.fromkeys("abc")
        assert_idle(nursery.limiter)

    driver(main)


@EVERY_DRIVER
def test_who_waits_for_the_window_goes_on_as_a_branch_ends_not_with_the_next_reading(
    driver: Driver,
) -> None:
    async def main(world: World) -> None:
        began: list[float] = []
        begin = world.now()

        async def work() -> None:
            began.append(round(world.now() - begin, 3))
            await world.sleep(0.03)

        with measured_by(Machine(10)):
            await run_branches(dict.fromkeys("abc", work), 10, resources=MEMORY)
        assert began == [0, 0.03, 0.06]

    driver(main)


@EVERY_DRIVER
def test_a_parked_branch_is_none_that_runs(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def nest() -> None:
            await run_branches({"inner": lambda: world.sleep(1)})

        with measured_by(Machine(900)):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                nursery.start_soon("a", nest)
                nursery.start_soon("b", world.sleep, 5)
                await world.sleep(0.5)
                assert started(nursery, *"ab") == ["a", "b"]

    driver(main)


@EVERY_DRIVER
def test_what_is_held_is_admitted_once_memory_is_back_the_best_first(driver: Driver) -> None:
    machine = Machine(900)
    seen = Seen()

    async def main(world: World) -> None:
        with measured_by(machine):
            async with open_branch_nursery(2, resources=MEMORY, observers=[seen]) as nursery:
                for key, priority in (("a", 9), ("b", 0), ("c", 5)):
                    nursery.start_soon(key, world.sleep, 10, priority=priority)
                await world.sleep(1)
                assert started(nursery, *"abc") == ["a"]
                machine.working_set_mb = 10
                await world.sleep(2)
                assert started(nursery, *"abc") == ["a", "c"]
        assert [line for line in seen.lines if "started" in line] == [
            *("a started", "c started", "b started")
        ]

    driver(main)
    assert seen.levels == [PressureLevel.STOP, PressureLevel.OK]


@EVERY_DRIVER
def test_a_step_without_limits_is_not_in_the_way(driver: Driver) -> None:
    """On the same limiter, behind one whose branches are held."""

    async def main(world: World) -> None:
        limiter = BranchLimiter(2)
        with measured_by(Machine(900)):
            async with open_branch_nursery(limiter, resources=MEMORY) as held:
                held.start_soon("a", world.sleep, 10, priority=1)
                held.start_soon("b", world.sleep, 10, priority=1)
                async with open_branch_nursery(limiter) as free:
                    free.start_soon("c", world.sleep, 1)
                    await world.sleep(0.5)
                    assert started(held, *"ab") == ["a"]
                    assert started(free, "c")

    driver(main)


@EVERY_DRIVER
def test_branches_that_reserve_nothing_are_let_in_little_by_little(driver: Driver) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(100)):
            async with open_branch_nursery(100, resources=MEMORY) as nursery:
                for key in range(50):
                    nursery.start_soon(key, world.sleep, 1)
                await world.sleep(0)
                assert nursery.statistics().running <= 1
        assert nursery.result.peak_in_flight < 50

    driver(main)


@pytest.mark.parametrize(
    ("limits", "figures", "why"),
    [
        (ResourceLimits(max_cpu_percent=50), {"cpu_percent": 60.0}, "cpu"),
        (
            ResourceLimits(max_memory_percent=50),
            {"host": Scope("host", 600, LIMIT, is_host=True)},
            "memory",
        ),
        (MEMORY, {"psi": {"memory full": 0.1}}, "memory stalls"),
    ],
)
@EVERY_DRIVER
def test_every_limit_holds(
    driver: Driver, limits: ResourceLimits, figures: dict[str, Any], why: str
) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(10, **figures)):
            async with open_branch_nursery(10, resources=limits) as nursery:
                nursery.start_soon("a", world.sleep, 1)
                nursery.start_soon("b", world.sleep, 1)
                await world.sleep(0.5)
                assert nursery.explain() == {"b": f"paused: {why}"}

    driver(main)


# ---------------------------------------------------------------- memory that is reserved


@EVERY_DRIVER
def test_reservations_are_admitted_as_they_fit(driver: Driver) -> None:
    """850 MB may be promised of 1000, and 100 are in use."""

    async def main(world: World) -> None:
        with measured_by(Machine(100)):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                for key in range(5):
                    nursery.start_soon(key, world.sleep, 10, memory_mb=300)
                await world.sleep(1)
                assert started(nursery, *range(5)) == [0, 1]
                await world.sleep(10)
                assert started(nursery, *range(5)) == [0, 1, 2, 3]

    driver(main)


@EVERY_DRIVER
def test_one_that_never_fits_runs_alone(driver: Driver) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(100)):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                nursery.start_soon("big", world.sleep, 1, memory_mb=5000)
                nursery.start_soon("small", world.sleep, 1, memory_mb=10)
                await world.sleep(0.5)
                assert started(nursery, "big", "small") == ["big"]

    driver(main)


@EVERY_DRIVER
def test_without_limits_a_reservation_is_held_to_what_the_machine_has(driver: Driver) -> None:
    host = Scope("host", 0, LIMIT, is_host=True)

    async def main(world: World) -> None:
        with measured_by(Machine(100, host=host)):
            async with open_branch_nursery(10) as nursery:
                for key in range(3):
                    nursery.start_soon(key, world.sleep, 1, memory_mb=400)
                await world.sleep(0.5)
                assert started(nursery, *range(3)) == [0, 1]

    driver(main)


@EVERY_DRIVER
def test_beside_limits_of_other_things_a_reservation_counts_too(driver: Driver) -> None:
    host = Scope("host", 0, LIMIT, is_host=True)

    async def main(world: World) -> None:
        with measured_by(Machine(100, host=host, cpu_percent=1)):
            limits = ResourceLimits(max_cpu_percent=90)
            async with open_branch_nursery(10, resources=limits) as nursery:
                for key in range(3):
                    nursery.start_soon(key, world.sleep, 1, memory_mb=400)
                nursery.start_soon("free", world.sleep, 1)
                await world.sleep(0.5)
                assert started(nursery, *range(3), "free") == [0, 1, "free"]

    driver(main)


@EVERY_DRIVER
def test_who_waits_for_a_token_needs_leave_anew(driver: Driver) -> None:
    """A heavy one, at the head of the queue when the guards begin to hold."""
    machine = Machine(10, cpu_percent=1.0)

    async def main(world: World) -> None:
        limits = ResourceLimits(max_cpu_percent=50)
        with measured_by(machine):
            async with open_branch_nursery(3, resources=limits) as nursery:
                nursery.start_soon("first", world.sleep, 3)
                nursery.start_soon("second", world.sleep, 5)
                nursery.start_soon("heavy", world.sleep, 1, weight=2)
                await world.sleep(1)
                machine.others["cpu_percent"] = 60.0
                await world.sleep(3)
                assert started(nursery, "first", "second", "heavy") == ["first", "second"]
                assert nursery.explain() == {"heavy": "paused: cpu"}
                await world.sleep(2)
                assert started(nursery, "heavy")

    driver(main)


@EVERY_DRIVER
def test_what_ends_before_it_began_gives_its_reservation_back(driver: Driver) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(0)):
            async with open_branch_nursery(1, resources=MEMORY) as nursery:
                for key in "abc":
                    nursery.start_soon(key, world.sleep, 1, memory_mb=400)
                await world.sleep(0.5)
                nursery.cancel("b")
                await world.sleep(1)
                assert started(nursery, *"abc") == ["a", "c"]

    driver(main)


@EVERY_DRIVER
def test_between_tries_nothing_is_reserved(driver: Driver) -> None:
    async def main(world: World) -> None:
        async def flaky() -> None:
            await world.sleep(1)
            if nursery["flaky"].attempts == 1:
                raise ValueError

        retry = Retry(ValueError, wait_initial=10, wait_max=10, wait_jitter=0)
        with measured_by(Machine(0)):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                nursery.start_soon("flaky", flaky, memory_mb=800, retry=retry)
                nursery.start_soon("other", world.sleep, 1, memory_mb=800)
                await world.sleep(1.5)
                assert started(nursery, "other")
        assert nursery.result["flaky"].attempts == 2

    driver(main)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
@EVERY_DRIVER
def test_a_wrong_reservation_is_refused(driver: Driver, value: Any, error: type[Exception]) -> None:
    async def main(world: World) -> None:
        async with open_branch_nursery() as nursery:
            with pytest.raises(
                error, match="`memory_mb` must be a finite number of megabytes >= 0"
            ):
                nursery.start_soon("a", world.sleep, 0, memory_mb=value)
        assert len(nursery.result) == 0

    driver(main)


def test_wrong_resources_are_refused() -> None:
    wrong: Any = {"max_memory_mb": 5}
    with pytest.raises(TypeError, match="`resources` must be a ResourceLimits or None"):
        open_branch_nursery(resources=wrong)


# ---------------------------------------------------------------- SHRINK


@EVERY_DRIVER
def test_an_adaptive_limit_is_cut_once(driver: Driver) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        limit = AIMDLimit(initial_limit=20, min_limit=1, backoff_ratio=0.5)
        with measured_by(machine):
            async with open_branch_nursery(limit, resources=MEMORY) as nursery:
                nursery.start_soon("a", world.sleep, 5)
                await world.sleep(1)
                machine.working_set_mb = 820
                await world.sleep(3)
                assert nursery.limiter.total_tokens == 10

    driver(main)


@EVERY_DRIVER
def test_a_limit_that_raises_as_it_is_cut_stops_the_step(driver: Driver) -> None:
    machine = Machine(10)

    class Fragile:
        value = 5

        def on_sample(self, sample: Sample) -> int:
            raise ZeroDivisionError

    async def main(world: World) -> None:
        with measured_by(machine), pytest.raises(BranchErrors) as caught:
            async with open_branch_nursery(Fragile(), resources=MEMORY) as nursery:
                nursery.start_soon("a", world.forever)
                await world.sleep(1)
                machine.working_set_mb = 820
                await world.sleep(3)
        (raised,) = caught.value.exceptions
        assert isinstance(raised, ZeroDivisionError)
        assert nursery.result.stop_reason == "the limit raised ZeroDivisionError"

    driver(main)


@EVERY_DRIVER
def test_what_waits_for_a_token_only_says_so(driver: Driver) -> None:
    async def main(world: World) -> None:
        with measured_by(Machine(10)):
            async with open_branch_nursery(1, resources=MEMORY) as nursery:
                nursery.start_soon("a", world.sleep, 1, memory_mb=1)
                nursery.start_soon("b", world.sleep, 1, memory_mb=1)
                await world.sleep(0.5)
                assert nursery.explain() == {"b": "limit: 1 of 1 in use"}

    driver(main)


# ---------------------------------------------------------------- SHED


@EVERY_DRIVER
def test_the_lowest_priority_and_of_these_the_newest_is_shed(driver: Driver) -> None:
    machine = Machine(10)
    seen = Seen()

    async def main(world: World) -> None:
        async def work() -> None:
            await world.sleep(60)

        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED, observers=[seen]) as nursery:
                for key, priority in (("a", 5), ("b", 0), ("c", 0), ("d", 5)):
                    nursery.start_soon(key, work, priority=priority)
                    await world.sleep(3)
                assert started(nursery, *"abcd") == [*"abcd"]
                seen.lines.clear()
                machine.working_set_mb = 960
                await world.sleep(0.2)
                machine.working_set_mb = 800
                await world.sleep(0.5)
                assert nursery["c"].status.value == "queued"
                assert nursery.explain() == {"c": "shed: until memory is back"}
                machine.working_set_mb = 10
                await world.sleep(30)  # till it is doubted that each of them takes so much
                assert nursery["c"].attempts == 2
        assert seen.lines[:3] == [
            "c told: shed: memory: 960 of 1000 MB (max_memory_mb)",
            "c queued",
            "c started",
        ]
        assert nursery.result["c"].attempts == 2
        assert nursery.result.outputs == dict.fromkeys("abcd")

    driver(main)


@EVERY_DRIVER
def test_they_are_shed_one_at_a_time_but_the_last(driver: Driver) -> None:
    """The next is told once the one before is out."""
    machine = Machine(10)
    seen = Seen()

    async def main(world: World) -> None:
        async def unwinds_slowly() -> None:
            try:
                await world.sleep(100)
            finally:
                async with world.shield():
                    await world.sleep(1)

        with measured_by(machine):
            async with open_branch_nursery(
                10, resources=SHED, observers=[seen], move_on_after=40
            ) as nursery:
                for key in "abc":
                    nursery.start_soon(key, unwinds_slowly)
                    await world.sleep(3)
                machine.working_set_mb = 990
                await world.sleep(1.1)
                assert sum("told" in line for line in seen.lines) == 1
                await world.sleep(1.5)
                assert sum("told" in line for line in seen.lines) == 2
                await world.sleep(5)
                assert sum("told" in line for line in seen.lines) == 2
                assert nursery["a"].status.value == "running"

    driver(main)


@EVERY_DRIVER
def test_shed_three_times_it_runs_alone(driver: Driver) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED) as nursery:
                nursery.start_soon("a", world.sleep, 300, priority=1)
                nursery.start_soon("b", world.sleep, 60)
                for shed in (1, 2, 3):
                    await world.sleep(30)
                    assert nursery["b"].attempts == shed
                    machine.working_set_mb = 990
                    await world.sleep(1.1)
                    machine.working_set_mb = 10
                await world.sleep(30)
                assert nursery.explain() == {"b": "shed 3 times: to run alone"}
                nursery.start_soon("late", world.sleep, 1)
                await world.sleep(1)
                assert not nursery["late"].attempts
                nursery.cancel("a")
                await world.sleep(1)
                assert nursery["b"].attempts == 4
                assert nursery.explain() == {"late": "'b', which was shed 3 times, runs alone"}
        assert nursery.result["b"].success
        assert nursery.result["late"].success

    driver(main)


@EVERY_DRIVER
def test_what_it_returns_while_it_is_shed_counts(driver: Driver) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        async def stubborn() -> str:
            try:
                await world.sleep(10)
            except world.cancelled:
                return "done"
            raise AssertionError

        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED) as nursery:
                nursery.start_soon("a", world.sleep, 10, priority=1)
                nursery.start_soon("b", stubborn)
                await world.sleep(3)
                machine.working_set_mb = 990
        assert nursery.result["b"].output == "done"
        assert nursery.result["b"].attempts == 1

    driver(main)


@pytest.mark.parametrize("how", ["cancelled", "breached", "all cancelled"])
@pytest.mark.parametrize("when", ["unwinds", "waits"])
@EVERY_DRIVER
def test_one_that_was_shed_can_be_stopped(driver: Driver, how: str, when: str) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        async def unwinds_slowly() -> None:
            try:
                await world.sleep(100)
            finally:
                async with world.shield():
                    await world.sleep(1)

        async def steps(nursery: BranchNursery) -> None:
            nursery.start_soon("a", world.sleep, 50, priority=1)
            nursery.start_soon("b", unwinds_slowly)
            await world.sleep(3)
            machine.working_set_mb = 990
            await world.sleep(0.5 if when == "unwinds" else 2.5)
            assert nursery["b"].status.value == ("running" if when == "unwinds" else "queued")
            if how == "cancelled":
                assert nursery["b"].cancel("enough")
                assert not nursery["b"].cancel("enough")
                nursery.cancel("a")
            elif how == "breached":
                nursery.breach("enough")
            else:
                nursery.cancel_where(lambda key: True, "enough")

        with measured_by(machine):
            try:
                async with open_branch_nursery(10, resources=SHED, policy=COLLECT) as nursery:
                    await steps(nursery)
            except Breached:
                assert how == "breached"
        result = nursery.result["b"]
        assert result.status.value == ("breached" if how == "breached" else "cancelled")
        assert result.reason == "enough"
        assert_idle(nursery.limiter)

    driver(main)


@EVERY_DRIVER
def test_a_try_that_was_shed_is_none_of_the_retrys(driver: Driver) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        async def fails_at_first() -> None:
            await world.sleep(8)
            if nursery["b"].attempts < 3:
                raise Backpressure

        retry = Retry(Backpressure, attempts=2, wait_initial=0, wait_jitter=0)
        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED) as nursery:
                nursery.start_soon("a", world.sleep, 50, priority=1)
                nursery.start_soon("b", fails_at_first, retry=retry)
                await world.sleep(5)
                machine.working_set_mb = 990
                await world.sleep(1.1)
                machine.working_set_mb = 10
        assert nursery.result["b"].attempts == 3
        assert nursery.result["b"].success

    driver(main)


@EVERY_DRIVER
def test_a_maps_branches_are_shed_too(driver: Driver) -> None:
    machine = Machine(10)
    tries: list[int] = []

    async def main(world: World) -> None:
        async def work(item: int) -> int:
            tries.append(item)
            await world.sleep(20)
            return item

        with measured_by(machine):
            async with map_branches(work, range(2), 2, resources=SHED) as results:
                await world.sleep(3)
                machine.working_set_mb = 990
                await world.sleep(1.1)
                machine.working_set_mb = 10
                assert {result.output async for result in results} == {0, 1}
        assert tries == [0, 1, 1]

    driver(main)


@EVERY_DRIVER
def test_one_that_was_shed_may_run_once_none_does(driver: Driver) -> None:
    """Though memory never comes back."""
    machine = Machine(10)

    async def main(world: World) -> None:
        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED) as nursery:
                nursery.start_soon("a", world.sleep, 10, priority=1)
                nursery.start_soon("b", world.sleep, 10)
                await world.sleep(3)
                machine.working_set_mb = 990
        assert nursery.result.outputs == dict.fromkeys("ab")
        assert nursery.result["b"].attempts == 2

    driver(main)


@pytest.mark.parametrize("memory", ["back", "not back"])
@EVERY_DRIVER
def test_one_that_was_shed_is_given_up_after_its_retrys_timeout(
    driver: Driver, memory: str
) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        began = world.now()
        retry = Retry(ValueError, timeout=10)
        with measured_by(machine):
            async with open_branch_nursery(2, resources=SHED, policy=COLLECT) as nursery:
                nursery.start_soon("a", world.sleep, 50, priority=1)
                nursery.start_soon("b", world.sleep, 50, retry=retry)
                await world.sleep(3)
                nursery.start_soon("c", world.sleep, 50, priority=1)
                machine.working_set_mb = 990
                await world.sleep(1.1)
                if memory == "back":
                    machine.working_set_mb = 10
        ended = nursery.result["b"]
        assert ended.status.value == "timed_out"
        assert ended.reason == "shed, and not tried again within 10 s"
        assert str(ended.exception) == "'b' was shed, and not tried again within 10 s"
        assert 10 <= ended.ended_at - began < 12
        assert ended.attempts == 1

    driver(main)


@EVERY_DRIVER
def test_a_timeout_that_has_passed_comes_before_a_shed(driver: Driver) -> None:
    """In the same instant: the reading is told before the timeout is."""
    machine = Machine(10)

    async def main(world: World) -> None:
        async def busy() -> None:
            while world.now() < began + 4:
                await world.sleep(0.1)
            await world.forever()

        with measured_by(machine):
            async with open_branch_nursery(10, resources=SHED, policy=COLLECT) as nursery:
                began = world.now()
                nursery.start_soon("a", world.sleep, 20, priority=1)
                await world.sleep(3)
                nursery.start_soon("b", busy, timeout=1)
                await world.sleep(0.95)
                machine.working_set_mb = 990
        assert nursery.result["b"].status.value == "timed_out"
        assert nursery.result["b"].attempts == 1

    driver(main)


def test_one_whose_time_is_over_is_not_shed() -> None:
    """Though nobody has told yet."""

    class Branch:
        status = RUNNING
        _cause: Cause | None = None

        def __init__(self, priority: int) -> None:
            self._priority = priority

    branches: list[Any] = [Branch(0), Branch(1)]
    told: list[Any] = []

    def notice_late(record: Any) -> None:
        record._cause = Cause.TIMEOUT

    step: Any = SimpleNamespace(
        cause=None, notice_late=notice_late, tell_to_stop=lambda *args: told.append(args)
    )
    guarding = Guarding(step, Guards(SHED))
    guarding._leaves = dict.fromkeys(branches)  # type: ignore[assignment]
    guarding._shed_one("why")
    assert told == []
    assert branches[0]._cause is Cause.TIMEOUT


# ---------------------------------------------------------------- BREACH


@EVERY_DRIVER
def test_a_breach_says_the_figures(driver: Driver) -> None:
    machine = Machine(10)

    async def main(world: World) -> None:
        with measured_by(machine), pytest.raises(Breached) as caught:
            async with open_branch_nursery(10, resources=BREACH) as nursery:
                nursery.start_soon("a", world.forever)
                await world.sleep(1)
                machine.working_set_mb = 955.4
                await world.sleep(1)
        assert caught.value.reason == "memory: 955 of 1000 MB (max_memory_mb)"
        assert nursery.result["a"].status.value == "breached"

    driver(main)


@EVERY_DRIVER
def test_its_readings_end_with_the_step(driver: Driver) -> None:
    machine = Machine(10)
    asked: list[float] = []

    class Asked(Machine):
        def read(self) -> Figures:
            asked.append(1)
            return machine.read()

    async def main(world: World) -> None:
        with measured_by(Asked()):
            async with open_branch_nursery(10, resources=MEMORY) as nursery:
                nursery.start_soon("a", world.sleep, 1)
            read = len(asked)
            assert read
            await world.sleep(10)
            assert len(asked) == read

    driver(main)
