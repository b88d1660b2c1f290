"""The sampler: one for a run, its timing, its probes, and the event loop's lag.  Virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from drivers import EVERY_DRIVER, Driver, World, run_asyncio, run_trio
from trio_parallel_steps import ResourceLimits, open_branch_nursery
from trio_parallel_steps._guards import Guards
from trio_parallel_steps._readings import Figures, Reading
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.hosts._abc import BaseRun
from trio_parallel_steps.pressure import Probe, current_sampler, measured_by
from trio_parallel_steps.pressure._sampler import _probes


class FakeProbe:
    """Says what it is told to say, and counts how often it was asked."""

    def __init__(self, name: str = "fake", every: float = 0.0, **figures: Any) -> None:
        self.name = name
        self.every = every
        self.figures: Any = figures
        self.error: Exception | None = None
        self.asked = 0

    def read(self) -> Figures:
        self.asked += 1
        if self.error is not None:
            raise self.error
        figures: Figures = self.figures.copy()
        return figures


class Listener:
    """Wants a reading every so many seconds."""

    def __init__(self, world: World, wants: float = 1.0) -> None:
        self.now = current_run().now
        self.wants = wants
        self.began = world.now()
        self.told: list[Reading] = []
        self.at: list[float] = []

    def __call__(self, reading: Reading) -> float:
        self.told.append(reading)
        self.at.append(round(self.now() - self.began, 6))
        return self.wants


@EVERY_DRIVER
def test_it_reads_at_once_and_then_as_often_as_is_wanted(driver: Driver) -> None:
    async def program(world: World) -> None:
        probe: Probe = FakeProbe(working_set_mb=12.0)
        with measured_by(probe):
            listener = Listener(world)
            stop = current_sampler(current_run()).subscribe(listener)
        assert listener.at == [0]
        assert listener.told[0].working_set_mb == 12
        await world.sleep(3.5)
        assert listener.at == [0, 1, 2, 3]
        listener.wants = 0.25
        await world.sleep(1.1)
        assert listener.at == [0, 1, 2, 3, 4, 4.25, 4.5]
        assert listener.told[-1].at == pytest.approx(listener.began + 4.5)
        stop()

    driver(program)


@EVERY_DRIVER
def test_it_is_gone_with_the_last_subscriber(driver: Driver) -> None:
    async def program(world: World) -> None:
        run: Any = current_run()
        probe = FakeProbe()
        with measured_by(probe):
            sampler = current_sampler(run)
            stops = [sampler.subscribe(Listener(world)) for _ in range(3)]
            assert current_sampler(run) is sampler is run.sampler
            for stop in stops:
                await world.sleep(1.1)
                stop()
                stop()
            assert not sampler.is_running
            asked = probe.asked
            await world.sleep(10)
            assert probe.asked == asked == 4
            sampler.hasten()  # of none
            await world.sleep(1)
            assert probe.asked == asked
            # The next is another.
            current_sampler(run).subscribe(Listener(world))()
            assert probe.asked == asked + 1

    driver(program)


@EVERY_DRIVER
def test_one_reads_for_all_as_often_as_any_wants(driver: Driver) -> None:
    async def program(world: World) -> None:
        probe = FakeProbe()
        with measured_by(probe):
            sampler = current_sampler(current_run())
            listeners = [Listener(world, wants) for wants in (1, 0.25, 10)]
            stops = [sampler.subscribe(listener) for listener in listeners]
        assert probe.asked == 1  # the reading was fresh
        await world.sleep(2.1)
        assert probe.asked == 9
        assert [len(listener.told) for listener in listeners] == [9, 9, 9]
        stops[1]()
        await world.sleep(2)
        assert probe.asked == 11  # one that it had asked for, and then each second
        for stop in stops:
            stop()

    driver(program)


@EVERY_DRIVER
def test_a_late_subscriber_is_told_what_is_new(driver: Driver) -> None:
    async def program(world: World) -> None:
        probe = FakeProbe(working_set_mb=1.0)
        with measured_by(probe):
            sampler = current_sampler(current_run())
            stops = [sampler.subscribe(Listener(world, 10))]
        probe.figures["working_set_mb"] = 2.0
        await world.sleep(0.05)
        stops.append(sampler.subscribe(soon := Listener(world, 10)))
        assert soon.told[0].working_set_mb == 1
        await world.sleep(1)
        stops.append(sampler.subscribe(late := Listener(world, 10)))
        assert late.told[0].working_set_mb == 2
        for stop in stops:
            stop()

    driver(program)


@EVERY_DRIVER
def test_hasten_reads_as_soon_as_one_may(driver: Driver) -> None:
    async def program(world: World) -> None:
        with measured_by(FakeProbe()):
            sampler = current_sampler(current_run())
            listener = Listener(world)
            stop = sampler.subscribe(listener)
        for _ in range(5):
            sampler.hasten()
        await world.sleep(0.5)
        assert listener.at == [0, 0.02]
        sampler.hasten()
        await world.sleep(0.01)
        assert listener.at == [0, 0.02, 0.5]
        await world.sleep(1.1)
        assert listener.at == [0, 0.02, 0.5, 1.5]
        stop()

    driver(program)


@EVERY_DRIVER
def test_what_is_told_may_end_subscriptions_begin_them_and_hasten(driver: Driver) -> None:
    async def program(world: World) -> None:
        stops: list[Callable[[], None]] = []
        with measured_by(FakeProbe()):
            sampler = current_sampler(current_run())

            def restless(reading: Reading) -> float:
                if len(stops) > 1:
                    stops[1]()
                    if len(stops) == 2:
                        stops.append(sampler.subscribe(third))
                sampler.hasten()
                return 1.0

            second, third = Listener(world), Listener(world)
            stops.append(sampler.subscribe(restless))
            stops.append(sampler.subscribe(second))
        await world.sleep(2.5)
        assert second.at == [0]
        assert third.at[0] == 1  # it was not hastened as it told
        for stop in stops:
            stop()

    driver(program)


@EVERY_DRIVER
def test_the_last_may_end_itself_as_it_is_told(driver: Driver) -> None:
    async def program(world: World) -> None:
        run: Any = current_run()
        stops: list[Callable[[], None]] = []
        told = []

        def once(reading: Reading) -> float:
            told.append(reading)
            for stop in stops:
                stop()
            return 0.1

        with measured_by(FakeProbe()):
            stops.append(current_sampler(run).subscribe(once))
        await world.sleep(5)
        assert len(told) == 2
        assert not run.sampler.is_running

    driver(program)


@EVERY_DRIVER
def test_each_probe_is_read_as_often_as_it_is_worth(driver: Driver) -> None:
    async def program(world: World) -> None:
        quick = FakeProbe(working_set_mb=1.0)
        dear = FakeProbe(every=0.99, cpu_percent=5.0)
        with measured_by(quick, dear):
            listener = Listener(world, 0.1)
            stop = current_sampler(current_run()).subscribe(listener)
        await world.sleep(3.05)
        assert (quick.asked, dear.asked) == (31, 4)
        assert all(reading.cpu_percent == 5 for reading in listener.told)  # it stands meanwhile
        stop()

    driver(program)


@EVERY_DRIVER
def test_a_probe_that_raises_is_reported_once_and_left_out(driver: Driver) -> None:
    async def program(world: World) -> None:
        good = FakeProbe("good", working_set_mb=1.0)
        bad = FakeProbe("bad", cpu_percent=99.0)
        with measured_by(good, bad):
            listener = Listener(world)
            stop = current_sampler(current_run()).subscribe(listener)
        assert listener.told[0].cpu_percent == 99
        bad.error = OSError("gone")
        message = r"the probe 'bad' raised OSError: gone: what it measures is left out from now on"
        with pytest.warns(RuntimeWarning, match=message) as caught:
            await world.sleep(5.5)
        assert len(caught) == 1
        assert bad.asked == 2
        assert listener.told[-1].cpu_percent is None
        assert listener.told[-1].working_set_mb == 1
        stop()

    driver(program)


@EVERY_DRIVER
def test_who_comes_soon_after_the_last_finds_the_probes_as_they_were(driver: Driver) -> None:
    async def program(world: World) -> None:
        made: list[FakeProbe] = []

        def make() -> list[FakeProbe]:
            made.append(FakeProbe(working_set_mb=1.0))
            return made[-1:]

        token = _probes.set(make)
        run = current_run()
        for pause in (0.05, 0.2, 0.9):
            told = Listener(world)
            current_sampler(run).subscribe(told)()
            assert told.told[0].working_set_mb == 1
            await world.sleep(pause)
        assert [probe.asked for probe in made] == [2]  # the second found a fresh reading
        await world.sleep(0.2)
        current_sampler(run).subscribe(Listener(world))()
        assert [probe.asked for probe in made] == [2, 1]
        _probes.reset(token)

    driver(program)


@EVERY_DRIVER
def test_a_probe_of_what_no_reading_has_is_reported_and_left_out(driver: Driver) -> None:
    async def program(world: World) -> None:
        limits = ResourceLimits(max_memory_mb=1000)
        odd = FakeProbe("odd", moon=1.0)
        message = "the probe 'odd' raised TypeError"
        with measured_by(odd), pytest.warns(RuntimeWarning, match=message):
            async with open_branch_nursery(resources=limits) as nursery:
                nursery.start_soon("a", world.sleep, 1)
        assert nursery.result.success

    driver(program)


def test_where_warnings_are_errors_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def program() -> None:
        bad = FakeProbe("bad")
        bad.error = ValueError("no")
        with measured_by(bad):
            current_sampler(current_run()).subscribe(lambda reading: 1.0)()

    run_trio(program)
    assert [record.getMessage() for record in caplog.records] == [
        "the probe 'bad' raised ValueError: no: what it measures is left out from now on"
    ]


@EVERY_DRIVER
def test_it_keeps_no_run_open_and_is_no_other_runs(driver: Driver) -> None:
    samplers = []

    async def program(world: World) -> None:
        with measured_by(FakeProbe()):
            sampler = current_sampler(current_run())
            stop = sampler.subscribe(Listener(world))
        samplers.append(sampler)
        await world.sleep(2)
        if world.edge:  # a timer that is left is the loop's business
            stop()

    driver(program)
    driver(program)
    assert samplers[0] is not samplers[1]


def test_what_replaces_the_probes_does_so_in_its_block_alone() -> None:
    async def program() -> None:
        run = current_run()
        with measured_by(FakeProbe()):
            pass
        assert repr(current_sampler(run)) == "<Sampler: 0 guards, 0 probes>"
        with measured_by(FakeProbe(), FakeProbe()):
            stop = current_sampler(run).subscribe(lambda reading: 1.0)
        assert repr(current_sampler(run)) == "<Sampler: 1 guards, 2 probes>"
        stop()

    run_trio(program)


def test_a_run_has_none_to_begin_with() -> None:
    assert BaseRun().sampler is None


# ---------------------------------------------------------------- the loop's lag


class Timer:
    def __init__(self, run: LateRun, when: float, call: Callable[[], object]) -> None:
        self.when = when
        self.call = call
        self.is_cancelled = False
        run.timers.append(self)

    def cancel(self) -> None:
        self.is_cancelled = True


class LateRun(BaseRun):
    """A run whose timers are called by hand, as late as one likes."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.timers: list[Timer] = []

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        return Timer(self, when, call)

    def tick(self, late: float) -> None:
        (timer,) = (timer for timer in self.timers if not timer.is_cancelled)
        self.timers.clear()
        self.time = timer.when + late
        timer.call()


def test_lag_is_the_median_of_how_late_the_timer_was() -> None:
    run: Any = LateRun()
    told: list[Reading] = []

    def listener(reading: Reading) -> float:
        told.append(reading)
        return 0.1

    with measured_by():
        stop = current_sampler(run).subscribe(listener)
    assert told[-1].loop_lag is None
    for late, median in [(0.01, 0.01), (0.5, 0.255), (0.02, 0.02), (0.03, 0.025)]:
        run.tick(late)
        assert told[-1].loop_lag == pytest.approx(median)
    for _ in range(10):  # the oldest are forgotten
        run.tick(0.3)
    assert told[-1].loop_lag == pytest.approx(0.3)
    for _ in range(6):
        run.tick(0.001)
    assert told[-1].loop_lag == pytest.approx(0.001)
    stop()
    assert all(timer.is_cancelled for timer in run.timers)


def test_a_loop_that_is_held_up_is_seen_on_trio() -> None:
    clock = MockClock()

    async def program() -> None:
        guards = Guards(ResourceLimits(max_loop_lag=0.02))

        def judge(reading: Reading) -> float:
            guards.judge(reading)
            return guards.interval()

        with measured_by():
            stop = current_sampler(current_run()).subscribe(judge)
        for _ in range(10):
            clock.jump(0.3)  # someone computes
            await trio.testing.wait_all_tasks_blocked()
        assert guards.pressure is not None
        assert guards.pressure.loop_lag == pytest.approx(0.2)
        assert guards.pressure.reason == "loop lag: 200 ms, limit 20 ms"
        assert guards.held_by() == "loop lag"
        stop()

    trio.run(program, clock=clock)


def test_a_loop_that_is_held_up_is_seen_on_asyncio() -> None:
    async def program() -> None:
        loop: Any = asyncio.get_running_loop()
        guards = Guards(ResourceLimits(max_loop_lag=0.02))

        def judge(reading: Reading) -> float:
            guards.judge(reading)
            return guards.interval()

        with measured_by():
            stop = current_sampler(current_run()).subscribe(judge)
        for _ in range(10):
            loop.now += 0.3
            for _ in range(3):
                await asyncio.sleep(0)
        assert guards.pressure is not None
        assert guards.pressure.loop_lag == pytest.approx(0.2)
        stop()

    run_asyncio(program)


@EVERY_DRIVER
def test_an_idle_loop_has_none(driver: Driver) -> None:
    async def program(world: World) -> None:
        with measured_by():
            listener = Listener(world, 0.1)
            stop = current_sampler(current_run()).subscribe(listener)
        await world.sleep(2)
        assert listener.told[-1].loop_lag == pytest.approx(0)
        stop()

    driver(program)
