"""Random programs under guards, on trio and on asyncio, in virtual time.

The machine's readings go up and down as the seed says, and are at nothing from IDLE on.  Then all
must end: nobody is stuck, and nothing is left.  While they do not: one may always run, nothing but
that is admitted while the guards hold, and what has been reserved fits.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final

import attrs
import pytest
import trio

from drivers import Driver, World, on_asyncio, on_trio
from test_leaks import no_garbage
from trio_parallel_steps import (
    COLLECT,
    FAIL_FAST,
    FIRST_SUCCESS,
    Backpressure,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNotDone,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    PressureAction,
    PressureLevel,
    ResourceLimits,
    Retry,
    StepTimeout,
    abc,
    map_branches,
    open_branch_nursery,
    quorum,
)
from trio_parallel_steps._readings import Figures
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.limits import AIMDLimit
from trio_parallel_steps.pressure import measured_by
from trio_parallel_steps.testing import Run, check_invariants, explore, expose, recorder

PROGRAMS: Final = 400
CHUNKS: Final = 4
LIMIT: Final = 1000.0
IDLE: Final = 40.0
ENDS: Final = 1000.0
INSTANTS: Final = (0, 0, 0.1, 0.5, 1, 1, 2, 5)
READINGS: Final = (0, 100, 300, 640, 660, 720, 760, 820, 860, 960, 1100)


class Failed(Exception):
    """A branch's own."""


EXPECTED: Final = (Failed, Backpressure, trio.TooSlowError, Breached, BranchNotDone, StepTimeout)


class Machine:
    name = "machine"
    every = 0.0

    def __init__(self, random: Random, world: World) -> None:
        self._world = world
        self._began = world.now()
        self._script: list[tuple[float, Figures]] = []
        at = 0.0
        while at < IDLE:
            figures = Figures(working_set_mb=float(random.choice(READINGS)))
            if random.random() < 0.3:
                figures["cpu_percent"] = random.choice((10.0, 48.0, 60.0, 99.0))
            if random.random() < 0.1:
                figures["psi"] = {"memory full": random.choice((0.0, 0.06, 0.3))}
            self._script.append((at, figures))
            at += random.choice((0.05, 0.3, 1, 3, 6))

    def read(self) -> Figures:
        now = self._world.now() - self._began
        if now >= IDLE:
            return Figures(working_set_mb=0.0, cpu_percent=0.0)
        return [figures for at, figures in self._script if at <= now][-1]


class Audit(abc.Observer):
    """Of one step: what no branch may be admitted against."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.step: Any = None
        self.held_since = math.inf
        self.stopped_since = math.inf
        self.reserved: dict[Any, float] = {}
        self.has_parked = False
        self.is_memory_limited = False
        self.violations: list[str] = []

    def step_opened(self, step: BranchNursery) -> None:
        self.step = step

    def pressure_changed(self, step: BranchNursery, pressure: Any) -> None:
        now = self.world.now()
        for name, level in (
            ("held_since", max(pressure.levels.values(), default=0)),
            ("stopped_since", pressure.levels.get("memory", 0) - 2),
        ):
            since = min(getattr(self, name), now) if level >= PressureLevel.HOLD else math.inf
            setattr(self, name, since)

    def branch_started(self, branch: Branch[Any]) -> None:
        core = self.step._core
        if self.has_parked or core.running == 1:
            return
        reserves = self.reserved.get(branch.key, 0.0)
        since = self.stopped_since if reserves and self.held_since != math.inf else self.held_since
        if since < self.world.now() and not reserves:
            self.violations.append(f"{branch.key!r} started while held since {since}")
        running = [key for key in self.reserved if self.step[key].status is BranchStatus.RUNNING]
        total = sum(self.reserved[key] for key in running)
        if reserves and self.is_memory_limited and total > 0.85 * LIMIT:
            self.violations.append(f"{total} MB are reserved, with {branch.key!r}")


class OneStep:
    def __init__(self, program: Program, limit: Any, depth: int = 0) -> None:
        self.program = program
        self.world = program.world
        self.limit = limit
        self.depth = depth
        self.name = f"step{len(program.steps)}"
        self.audit = Audit(program.world)
        self.nursery: Any = None
        self.guarding: Any = None
        self.keys: list[str] = []
        self.heaviest = 1
        program.steps.append(self)

    def options(self) -> dict[str, Any]:
        random = self.program.random
        options: dict[str, Any] = {
            "policy": random.choice(
                (COLLECT, COLLECT, COLLECT, FAIL_FAST, FIRST_SUCCESS, quorum(2))
            ),
            "name": self.name,
            "observers": [self.program.recorded, self.audit],
        }
        action = random.choice((*PressureAction, PressureAction.SHED, PressureAction.SHED))
        if random.random() < 0.8:
            cpu = random.random() < 0.3
            memory = not cpu or random.random() < 0.5
            self.audit.is_memory_limited = memory
            options["resources"] = ResourceLimits(
                max_memory_mb=LIMIT if memory else None,
                max_cpu_percent=50 if cpu else None,
                action=action,
            )
        if random.random() < 0.15:
            options[random.choice(("fail_after", "move_on_after"))] = float(
                random.choice((0, 1, 3, 10))
            )
        if random.random() < 0.2:
            options["breach"] = self.program.switch
            options["on_breach"] = random.choice(("cancel", "drain"))
        return options

    async def run(self) -> None:
        random = self.program.random
        step = open_branch_nursery(self.limit, **self.options())
        try:
            async with self.program.recorded.watch_step(step) as nursery:
                self.opened(nursery)
                for _ in range(random.randrange(8)):
                    self.submit()
                for _ in range(random.randrange(5)):
                    await self.act()
                self.guarding = nursery._core.guarding
        except (BranchErrors, Breached, StepTimeout):
            pass

    def opened(self, nursery: BranchNursery) -> None:
        self.nursery = nursery
        self.guarding = nursery._core.guarding
        self.program.open.append(self)

    async def run_map(self) -> None:
        random = self.program.random
        manager: Any = map_branches(
            self.item, range(random.randrange(8)), self.limit, **self.options()
        )
        try:
            async with manager as results:
                self.opened(self.audit.step)
                async for _ in results:
                    if random.random() < 0.1:
                        break
        except (BranchErrors, Breached, StepTimeout):
            pass

    async def item(self, item: int) -> int:
        await self.world.sleep(self.program.random.choice(INSTANTS))
        if self.program.random.random() < 0.1:
            raise Failed
        return item

    def submit(self) -> None:
        random = self.program.random
        key = f"{self.name}-{len(self.keys)}"
        self.keys.append(key)
        options: dict[str, Any] = {}
        if random.random() < 0.3:
            options["memory_mb"] = random.choice((1, 100, 300, 600, 2000))
            self.audit.reserved[key] = options["memory_mb"]
        if random.random() < 0.2:
            options["timeout"] = random.choice((0, 1, 3))
        if random.random() < 0.3:
            options["retry"] = Retry(
                random.choice((Failed, trio.TooSlowError)),
                wait_initial=random.choice((0, 1)),
                wait_jitter=random.choice((0, 1)),
                timeout=random.choice((math.inf, 5)),
            )
        if random.random() < 0.15 and self.program.weighs:
            options["weight"] = random.choice((2, 3))
        watched = self.program.recorded.watch(self.branch)
        self.nursery.start_soon(key, watched, priority=random.randrange(3), **options)

    async def act(self) -> None:
        random, nursery, sleep = self.program.random, self.nursery, self.world.sleep
        what = random.randrange(15)
        if what < 6:
            await sleep(random.choice(INSTANTS))
        elif what == 6:
            await self.world.turns(random.randrange(4))
        elif what == 7:
            self.submit()
        elif what == 8 and self.keys:
            nursery.cancel(random.choice(self.keys), "cancelled by the program")
        elif what == 9 and random.random() < 0.5:
            nursery.cancel_where(lambda key: str(key)[-1] in "024", "some are cancelled")
        elif what == 10 and random.random() < 0.3:
            nursery.breach("breached by the program")
        elif what == 11 and not self.program.adapts:
            self.program.limiter.total_tokens = random.randint(1, 5)
        elif what == 12 and random.random() < 0.5:
            nursery.pause("paused by the program")
            try:
                await sleep(random.choice(INSTANTS))
            finally:
                nursery.resume()
        elif what == 13 and self.keys:
            branch = nursery[random.choice(self.keys)]
            if branch.status is BranchStatus.QUEUED:
                branch.priority = random.randrange(5)
        elif what == 14 and random.random() < 0.2:
            self.program.switch.trip("the switch")

    async def branch(self) -> int:
        random = self.program.random
        way = random.randrange(14)
        try:
            for _ in range(random.randrange(4)):
                await self.act()
            if way == 0:
                await self.world.sleep(30)
            elif way in (5, 6) and self.depth < 2:
                limit = random.choice((None, None, 1, 2))
                step = OneStep(self.program, limit, self.depth + 1)
                self.audit.has_parked = True
                await (step.run() if way == 5 else step.run_map())
        except self.world.cancelled:
            if way == 1:
                return -1  # in spite of it
            if way == 2:
                raise Failed("cleanup") from None
            raise
        finally:
            if way == 3:
                async with self.world.shield():
                    await self.world.sleep(random.choice(INSTANTS))
        if way in (7, 8):
            raise Failed("on its own")
        if way == 9:
            raise Backpressure(retry_after=random.choice((None, 1)))
        return random.randrange(99)

    # ------------------------------------------------------------ what must hold

    def stands(self) -> tuple[Any, ...] | None:
        """How it stands, if one that waits could run."""
        core = self.nursery._core
        pool = core.pool.root()
        records = [record for record in core.records.values() if record.status.value == "queued"]
        if not records or pool.used or core.paused is not None or core.running > core.parked:
            return None
        now = self.world.now()
        if any(record._tries is not None and record._tries.due > now for record in records):
            return None
        return (len(core.endings), *(record.attempts for record in core.records.values()))

    def check(self) -> None:
        assert not self.audit.violations, self.audit.violations
        if self.nursery is None:
            return
        for ended in self.nursery.result.values():
            failed_or_not = (BranchStatus.SUCCEEDED, BranchStatus.FAILED)
            assert ended.status is not BranchStatus.FAILED or ended.exception is not None
            assert ended.status in failed_or_not or ended.reason or ended.exception, ended
        pool = self.nursery._core.pool
        for meter in pool.meters():
            assert meter.in_flight == 0
        guarding = self.guarding
        if guarding is None:
            return
        left = guarding._leaves, guarding._reserved, guarding._shed
        assert not any(left), left
        assert guarding._shedding is None
        assert guarding._alone is None
        assert not any(entry[3]._entry is entry for aside in guarding._aside for entry in aside)
        allowance = guarding.guards._allowance
        if allowance is not None:
            assert not allowance._live
            assert (allowance._unreserved, allowance._reserved) == (0, 0)
            assert (allowance._new, allowance._new_reserved) == (0, 0)


class Program:
    def __init__(self, seed: int, world: World) -> None:
        self.random = random = Random(seed)
        self.world = world
        self.switch = Breach()
        self.recorded = recorder(heaviest=3)
        self.steps: list[OneStep] = []
        self.open: list[OneStep] = []
        self.adapts = random.random() < 0.2
        self.weighs = random.random() < 0.3
        total: Any = random.randint(1, 5)
        self.limiter = BranchLimiter(
            AIMDLimit(initial_limit=total, min_limit=1) if self.adapts else total
        )
        self.is_over = False

    async def main(self) -> None:
        random = self.random
        steps = [OneStep(self, self.limiter) for _ in range(random.randint(1, 2))]
        with measured_by(Machine(random, self.world)):
            try:
                async with self.world.timeout(ENDS), self.world.tasks() as start_soon:
                    start_soon(self.watch)
                    await self.run_steps(steps)
                    self.is_over = True
            except TimeoutError:
                raise AssertionError("stuck") from None
        sampler = current_run().sampler
        assert sampler is None or not sampler.is_running
        check_invariants(self.recorded)
        for step in self.steps:
            step.check()
        assert self.limiter.borrowed_tokens == 0
        assert self.limiter.statistics().tasks_waiting == 0

    async def run_steps(self, steps: list[OneStep]) -> None:
        random = self.random
        try:
            until = random.choice((math.inf, math.inf, 2, 7))
            async with self.world.scope(until), self.world.tasks() as start_step:
                for step in steps:
                    start_step(step.run_map if random.random() < 0.2 else step.run)
        except BaseExceptionGroup as exc:  # errors that came with a cancellation
            if exc.split((*EXPECTED, self.world.cancelled))[1] is not None:
                raise

    async def watch(self) -> None:
        """One may always run: none that could stands still while time passes."""
        before: dict[OneStep, Any] = {}
        while not self.is_over:
            await self.world.sleep(1.7)
            now = {step: step.stands() for step in self.open}
            for step, stands in now.items():
                stuck = stands is not None and before.get(step) == stands
                assert not stuck, (self.world.now(), step.name, step.nursery.explain())
            before = now


def run_program(seed: int, driver: Driver) -> None:
    async def main(world: World) -> None:
        await Program(seed, world).main()

    trio._core._run._r.seed(seed)
    try:
        driver(main)
    except BaseException as exc:
        exc.add_note(f"program {seed}")
        raise


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("driver", [on_trio, on_asyncio], ids=["trio", "asyncio"])
def test_random_programs_under_guards(driver: Driver, chunk: int) -> None:
    for seed in range(chunk, PROGRAMS, CHUNKS):
        run_program(seed, driver)


def test_no_cycle_is_left_by_a_guarded_step() -> None:
    async def shed_and_breach(world: World) -> None:
        class Full:
            name = "full"
            every = 0.0

            def read(self) -> Figures:
                return Figures(working_set_mb=990.0 if world.now() - began > 2 else 10.0)

        began = world.now()
        limits = ResourceLimits(max_memory_mb=LIMIT, action=PressureAction.SHED)
        with measured_by(Full()):
            async with open_branch_nursery(3, policy=COLLECT, resources=limits) as nursery:
                for key in range(4):
                    nursery.start_soon(key, world.sleep, 3, memory_mb=10)

    on_trio(shed_and_breach)  # what is made once and kept
    with no_garbage() as garbage:
        on_trio(shed_and_breach)
    # The Sampler is its run's, which trio leaves in a cycle.
    ours = [name for name in garbage if name in ("Guarding", "Guards", "StepCore")]
    assert not ours


# ---------------------------------------------------------------- schedules


@attrs.frozen
class Sheds:
    """Two branches, of which the newer is shed as the other ends or the step is stopped."""

    stop: str

    async def __call__(self) -> None:
        recorded = recorder()
        machine = Reads(10.0)
        expose(recorded=recorded)
        limits = ResourceLimits(max_memory_mb=LIMIT, action=PressureAction.SHED)
        with measured_by(machine):
            step = open_branch_nursery(
                2, name="step", policy=COLLECT, observers=[recorded], resources=limits
            )
            try:
                async with recorded.watch_step(step) as nursery:
                    expose(nursery=nursery, guarding=nursery._core.guarding)
                    for key in range(2):
                        nursery.start_soon(key, recorded.watch(trio.sleep), 0.1, memory_mb=1)
                    await trio.sleep(0.05)
                    machine.working_set_mb = 990.0
                    guarding: Any = nursery._core.guarding
                    guarding.hasten()
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                    if self.stop == "breach":
                        nursery.breach("enough")
                    elif self.stop == "cancel":
                        nursery.cancel(1, "enough")
            except Breached:
                pass
            machine.working_set_mb = 10.0


class Reads:
    name = "reads"
    every = 0.0

    def __init__(self, working_set_mb: float) -> None:
        self.working_set_mb = working_set_mb

    def read(self) -> Figures:
        return Figures(working_set_mb=self.working_set_mb)


@pytest.mark.parametrize("stop", ["breach", "cancel", "none"])
def test_a_shed_and_another_stop_in_many_schedules(stop: str) -> None:
    sheds = 0

    def check(run: Run) -> None:
        nonlocal sheds
        assert run.exception is None, run.exception
        check_invariants(run.exposed["recorded"])
        guarding = run.exposed["guarding"]
        assert not guarding._leaves
        assert not guarding._shed
        assert guarding._shedding is None
        assert len(run.exposed["nursery"].result) == 2
        sheds += any("shed: " in line for line in run.exposed["recorded"].lines())

    explored = explore(Sheds(stop), check=check, schedules=150)
    assert explored.schedules > 1
    assert sheds
