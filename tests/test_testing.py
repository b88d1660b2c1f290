"""`trio_parallel_steps.testing`: it finds what is wrong, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from helpers import FAILED, SUCCEEDED, run
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Breached,
    Budget,
    BudgetExceeded,
    Retry,
    map_branches,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.testing import (
    Call,
    Cancel,
    Deadline,
    Explored,
    Fault,
    Hang,
    Interrupt,
    InvariantBroken,
    NotDeterministic,
    Recorder,
    Run,
    ScheduleFailed,
    SetLimit,
    Stalled,
    TripBreach,
    _run,
    _scheduler,
    assert_no_stall,
    check_invariants,
    explore,
    expose,
    recorder,
    replay,
)
from trio_parallel_steps.testing._choices import Schedule, parse

pytest_plugins = ["pytester"]

checkpoint = trio.lowlevel.checkpoint

# ---------------------------------------------------------------- programs with a bug


async def lost_wakeup() -> None:
    """Looks, lets others run, and then waits for what may have come meanwhile."""
    is_ready, waiting = False, None

    async def waiter() -> None:
        nonlocal waiting
        if not is_ready:
            await checkpoint()
            waiting = trio.Event()
            await waiting.wait()

    async def setter() -> None:
        nonlocal is_ready
        await checkpoint()
        is_ready = True
        if waiting is not None:
            waiting.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        nursery.start_soon(setter)


async def check_then_act() -> int:
    """Sells the last one twice, if who pays slowly looks before the other has bought."""
    left, sold = 1, 0

    async def buy(pays_slowly: bool) -> None:
        nonlocal left, sold
        if left:
            if pays_slowly:
                await checkpoint()
            left -= 1
            sold += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(buy, False)
        nursery.start_soon(buy, True)
    return sold


async def parents_hold_tokens() -> None:
    """A limiter that parents hold while their children wait for it."""
    limiter = trio.CapacityLimiter(2)

    async def child() -> None:
        async with limiter:
            await checkpoint()

    async def parent(seconds: float) -> None:
        await trio.sleep(seconds)
        async with limiter, trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent, 0)
        nursery.start_soon(parent, 0)


def failed(program: Callable[[], Awaitable[Any]], **options: Any) -> ScheduleFailed:
    with pytest.raises(ScheduleFailed) as caught:
        explore(program, **options)
    return caught.value


def sold_one(run: Run) -> None:
    assert run.value == 1


def test_a_lost_wakeup_is_found() -> None:
    failure = failed(lost_wakeup)
    assert isinstance(failure.__cause__, Hang)
    assert "nothing can run, and no deadline is ahead" in str(failure)
    assert "#1 waiter at test_testing.py" in str(failure)


def test_a_race_is_found_by_the_shortest_schedule() -> None:
    failure = failed(check_then_act, check=sold_one)
    assert isinstance(failure.__cause__, AssertionError)
    assert failure.run.value == 2
    assert failure.schedule == "1"  # the second goes first, and one departure is enough
    assert failure.trace.splitlines()[0].split() == "step 0 0 s #2 buy begins".split()


def test_a_program_that_is_right_is_found_to_be() -> None:
    def sold_one_or_two(run: Run) -> None:
        assert run.value in (1, 2)

    assert explore(check_then_act, check=sold_one_or_two) == Explored(2, True, 0)


def test_a_deadlock_of_parents_that_hold_tokens_is_found() -> None:
    failure = failed(parents_hold_tokens)
    assert isinstance(failure.__cause__, Hang)
    assert str(failure).count("in child") >= 2
    assert failure.run.seconds == 0


def test_what_is_found_by_chance_is_found_again_and_short() -> None:
    failure = failed(lost_wakeup, schedules=1_000, seed=3)
    assert failure.schedule == failed(lost_wakeup).schedule
    with pytest.raises(ScheduleFailed) as again:
        replay(lost_wakeup, failure.schedule)
    assert again.value.trace == failure.trace
    assert again.value.schedule == failure.schedule


def test_the_schedule_reproduces_the_failure_and_others_do_not() -> None:
    failure = failed(check_then_act, check=sold_one)
    with pytest.raises(ScheduleFailed, match="assert 2 == 1"):
        replay(check_then_act, failure.schedule, check=sold_one)
    assert replay(check_then_act, failure.schedule).value == 2
    assert replay(check_then_act, "-", check=sold_one).value == 1


def test_the_message_says_how_to_run_it_again() -> None:
    failure = failed(check_then_act, check=sold_one)
    assert f"replay(check_then_act, {failure.schedule!r}, ...)" in str(failure)
    assert failure.trace in str(failure)
    assert f"after {failure.explored} schedules" in str(failure)


def test_what_the_program_raises_is_a_failure() -> None:
    async def program() -> None:
        await checkpoint()
        raise OSError("down")

    assert isinstance(failed(program).__cause__, OSError)
    assert explore(program, raises=OSError).schedules == 1
    assert explore(program, raises=(KeyError, OSError)).schedules == 1

    async def in_a_group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program)

    assert isinstance(failed(in_a_group).__cause__, ExceptionGroup)
    assert explore(in_a_group, raises=OSError).schedules == 1
    failed(in_a_group, raises=KeyError)


def test_a_check_may_fail_as_pytest_does() -> None:
    def check(run: Run) -> None:
        if run.schedule == "1":
            pytest.fail("not in that order")

    assert failed(interleavings(1, 1), check=check).schedule == "1"

    def stop(_: Run) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(interleavings(1), check=stop)


def test_a_value_raises_what_the_program_raised() -> None:
    async def program() -> None:
        raise OSError("down")

    ended = replay(program, "-", raises=OSError)
    assert isinstance(ended.exception, OSError)
    with pytest.raises(OSError, match="down"):
        ended.value  # noqa: B018


# ---------------------------------------------------------------- all of them, and each once


def interleavings(*steps: int) -> Callable[[], Awaitable[tuple[str, ...]]]:
    async def program() -> tuple[str, ...]:
        seen: list[str] = []

        async def task(name: int, count: int) -> None:
            for number in range(count):
                if number:
                    await checkpoint()
                seen.append(f"{name}{number}")

        async with trio.open_nursery() as nursery:
            for name, count in enumerate(steps):
                nursery.start_soon(task, name, count)
        return tuple(seen)

    return program


@pytest.mark.parametrize(
    ("steps", "count"), [((1,), 1), ((1, 1, 1), 6), ((2, 2), 4), ((2, 2, 2), 36), ((1, 2, 3), 12)]
)
def test_every_order_is_tried_once(steps: tuple[int, ...], count: int) -> None:
    seen: list[tuple[str, ...]] = []
    schedules: list[str] = []

    def note(run: Run) -> None:
        seen.append(run.value)
        schedules.append(run.schedule)

    assert explore(interleavings(*steps), check=note) == Explored(count, True, 0)
    assert len(set(schedules)) == count
    assert len(set(seen)) == count


def test_fewer_departures_come_first() -> None:
    departures: list[int] = []

    def note(run: Run) -> None:
        departures.append(sum(choice > 0 for choice in parse(run.schedule).order))

    explore(interleavings(2, 2, 2), check=note)
    assert departures == sorted(departures)


@pytest.mark.parametrize("schedule", ["-", "1", "0.0.1", "2.1 !0@3"])
def test_any_schedule_can_be_replayed(schedule: str) -> None:
    program = interleavings(2, 2, 2)
    assert replay(program, schedule, faults=[Cancel()]).schedule == schedule


def test_the_same_seed_gives_the_same_schedules() -> None:
    def schedules_of(seed: int) -> list[str]:
        found: list[str] = []
        explore(
            interleavings(3, 3, 3),
            check=lambda run: found.append(run.schedule),
            schedules=20,
            seed=seed,
            faults=[Cancel(), Interrupt()],
        )
        return found

    assert schedules_of(1) == schedules_of(1)
    assert schedules_of(1) != schedules_of(2)


def test_a_schedule_is_written_short() -> None:
    assert str(Schedule((0, 0, 0))) == "-"
    assert str(Schedule((0, 1, 0, 0))) == "0.1"
    assert str(Schedule((0, 0, 0, 0, 2, 2, 2))) == "0*4.2.2.2"
    assert str(Schedule((1,), (0, 12))) == "1 !0@12"
    for schedule in (Schedule(), Schedule((0, 0, 0, 0, 2, 2), (1, 3)), Schedule((0, 1))):
        assert parse(str(schedule)) == schedule


# ---------------------------------------------------------------- each run is fresh


def test_a_run_starts_with_the_clock_at_zero_and_random_alike() -> None:
    def note(run: Run) -> None:
        found.append(run.value)

    async def program() -> tuple[float, float]:
        now = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3)
            nursery.start_soon(trio.sleep, 5)
        return now, random.random()

    found: list[Any] = []
    before = random.getstate()
    assert explore(program, check=note).schedules == 2
    assert found[0] == found[1]
    assert found[0][0] == 0
    assert random.getstate() == before
    assert replay(program, "-").seconds == 5


def test_a_run_has_contexts_and_run_variables_of_its_own() -> None:
    local = trio.lowlevel.RunVar[int]("local", 0)

    async def program() -> tuple[int, int]:
        seen = local.get(), random.randrange(1000)
        local.set(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpoint)
            nursery.start_soon(checkpoint)
        return seen

    def is_new(run: Run) -> None:
        assert run.value[0] == 0

    assert explore(program, check=is_new).schedules == 4


def test_what_a_program_leaves_behind_is_not_in_the_next_run() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("system task")

    async def numbers() -> Any:
        try:
            while True:
                yield 1
        finally:
            ended.append("generator")

    kept: list[Any] = []

    async def program() -> int:
        trio.lowlevel.spawn_system_task(forever)
        generator = numbers()
        kept.append(generator)
        await anext(generator)
        trio.CancelScope().__enter__()
        await checkpoint()
        return trio.lowlevel.current_statistics().tasks_living

    living: list[int] = []
    with pytest.raises(ScheduleFailed, match="stack corrupted"):
        explore(program, check=lambda run: living.append(run.value))

    async def without_a_scope() -> int:
        trio.lowlevel.spawn_system_task(forever)
        generator = numbers()
        kept.append(generator)
        await anext(generator)
        await checkpoint()
        return trio.lowlevel.current_statistics().tasks_living

    ended.clear()
    explore(without_a_scope, check=lambda run: living.append(run.value), schedules=3)
    assert len(set(living)) == 1
    assert ended.count("system task") == ended.count("generator") == 5


def test_between_runs_no_trio_run_is_to_be_seen() -> None:
    async def other() -> int:
        await checkpoint()
        return 1

    def check(_: Run) -> None:
        assert not trio.lowlevel.in_trio_run()
        assert trio.run(other) == 1

    assert explore(interleavings(2, 2), check=check).schedules == 4


def test_trio_is_as_it_was_afterwards() -> None:
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    failed(lost_wakeup)
    assert (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r) == before
    assert trio.run(trio.sleep, 0) is None


# ---------------------------------------------------------------- what hangs ends


async def shielded() -> None:
    with trio.CancelScope(shield=True):
        await trio.Event().wait()


async def ever_on() -> None:
    for second in itertools.count():
        await trio.sleep_until(second)


async def swallows() -> None:
    for _ in range(3):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            continue


async def cant_be_cancelled() -> None:
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


@pytest.mark.parametrize("program", [trio.sleep_forever, shielded, swallows, cant_be_cancelled])
def test_a_hang_is_a_failure(program: Callable[[], Awaitable[None]]) -> None:
    failure = failed(program)
    assert isinstance(failure.__cause__, Hang)
    assert failure.schedule == "-"


def test_a_program_without_an_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "PASSES", 100)
    assert "goes on for ever" in str(failed(ever_on))

    async def shielded() -> None:
        with trio.CancelScope(shield=True):
            await ever_on()

    monkeypatch.setattr(_run, "PASSES", 2_000)
    failure = failed(shielded)
    assert "goes on for ever: 2000 passes" in str(failure)
    assert "and 1800 more steps" in failure.trace


def test_who_waits_until_nothing_runs_goes_first() -> None:
    async def program() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            await trio.testing.wait_all_tasks_blocked()
            return trio.current_time()

    assert replay(program, "-").value == 0


def test_a_program_that_is_not_the_same_again_is_told() -> None:
    number = itertools.count()

    async def other_steps() -> None:
        for _ in range(next(number)):
            await checkpoint()

    with pytest.raises(NotDeterministic, match=r"under the same schedule, '-'"):
        explore(other_steps)

    count = itertools.count()

    async def later() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2 if next(count) < 2 else 3):
                nursery.start_soon(checkpoint)

    with pytest.raises(NotDeterministic):
        explore(later)

    fails = iter([False, False, True, False])

    async def once() -> None:
        if next(fails):
            raise OSError("once")

    with pytest.raises(
        NotDeterministic, match=r"failed with OSError\('once'\), and then with None"
    ):
        explore(once)


def test_ctrl_c_ends_the_exploration() -> None:
    async def program() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(program)


# ---------------------------------------------------------------- faults


async def holds_a_resource() -> list[str]:
    log: list[str] = []
    expose(log=log)
    log.append("taken")
    await checkpoint()  # here it is lost
    try:
        await checkpoint()
    finally:
        log.append("given back")
    return log


def gives_back(run: Run) -> None:
    assert run.exposed["log"] == ["taken", "given back"]


@pytest.mark.parametrize("fault", [Cancel(), Interrupt()])
def test_a_fault_at_every_step_finds_a_leak(fault: Fault) -> None:
    assert explore(holds_a_resource, check=gives_back).with_faults == 0
    failure = failed(holds_a_resource, check=gives_back, faults=[fault])
    assert failure.run.fault == fault
    assert failure.run.fault_step == 0
    assert failure.schedule == "- !0@0"
    assert f"injected before step 0: {type(fault).__name__}()" in str(failure)
    with pytest.raises(ScheduleFailed):
        replay(holds_a_resource, failure.schedule, check=gives_back, faults=[fault])


def test_random_schedules_have_each_fault_before_each_step() -> None:
    seen: list[tuple[Fault | None, int | None]] = []

    def note(run: Run) -> None:
        seen.append((run.fault, run.fault_step))

    faults = [Call(lambda: None), Call(lambda: None, at=[2])]
    explored = explore(interleavings(2, 2), check=note, faults=faults, schedules=7)
    assert explored.schedules == len(set(seen)) == 7
    assert sorted(step for fault, step in seen if fault is faults[0] and step is not None) == [
        *range(5)
    ]
    assert (faults[1], 2) in seen
    assert (None, None) in seen


@pytest.mark.parametrize("schedules", ["all", 50])
def test_a_fault_is_tried_at_the_steps_that_it_names(schedules: Any) -> None:
    found = []
    faults = [Cancel(at=[1, 2]), Interrupt(at={3})]

    def note(run: Run) -> None:
        found.append((type(run.fault).__name__, run.fault_step))

    explore(interleavings(5), check=note, faults=faults, schedules=schedules)
    expected = {("NoneType", None), ("Cancel", 1), ("Cancel", 2), ("Interrupt", 3)}
    assert set(found) == expected
    if schedules == "all":
        assert len(found) == len(expected)


def test_with_faults_each_schedule_is_tried_once() -> None:
    schedules: list[str] = []
    explored = explore(
        interleavings(2, 2),
        check=lambda run: schedules.append(run.schedule),
        faults=[Cancel(), Call(lambda: None)],
    )
    assert len(set(schedules)) == len(schedules) == explored.schedules
    assert explored.with_faults == sum("!" in schedule for schedule in schedules)
    # The call changes nothing: one at each of the steps of all schedules, of which some are shared.
    for schedule in schedules:
        faults = [Cancel(), Call(lambda: None)]
        assert replay(interleavings(2, 2), schedule, faults=faults).schedule == schedule


def test_a_scope_is_cancelled_by_its_name() -> None:
    async def program() -> str:
        with trio.CancelScope() as scope:
            await checkpoint()
            expose(scope=scope)
            await checkpoint()
            await checkpoint()
            return "done"
        return "cancelled"

    found = []
    for fault in (Cancel("scope"), Deadline("scope"), Deadline("scope", seconds=1)):
        explore(
            program, check=lambda run: found.append((run.fault_step, run.value)), faults=[fault]
        )
    # Not before it was exposed, in step 0; and a deadline is looked at before the next pass.
    assert found[:3] == [(None, "done"), (1, "cancelled"), (2, "cancelled")]
    assert found[3:6] == [(None, "done"), (1, "cancelled"), (2, "done")]
    assert found[6:] == [(None, "done"), (1, "done"), (2, "done")]


def test_a_program_that_is_cancelled_says_so() -> None:
    def note(run: Run) -> None:
        found.append((run.cancelled, run.value))

    found: list[tuple[bool, Any]] = []
    explore(interleavings(2), check=note, faults=[Cancel(at=[0])])
    assert found == [(False, ("00", "01")), (True, None)]


def test_an_interrupt_comes_at_a_checkpoint_of_the_main_task_or_at_the_end() -> None:
    async def program() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpoint)
        return "done"

    def note(run: Run) -> None:
        found.append(run.fault_step is None or type(run.exception) is KeyboardInterrupt)

    found: list[bool] = []
    explore(program, check=note, faults=[Interrupt()])
    assert len(found) >= 3


def test_limits_are_set_and_steps_breached() -> None:
    async def program() -> None:
        async with open_branch_nursery(BranchLimiter(1)) as nursery:
            expose(nursery=nursery, limiter=nursery.limiter)
            for key in range(2):
                nursery.start_soon(key, checkpoint)

    found: set[Any] = set()

    def note(run: Run) -> None:
        if isinstance(run.fault, SetLimit):
            found.add(run.exposed["limiter"].total_tokens)
        elif isinstance(run.fault, TripBreach):
            found.add(type(run.exception))
            if isinstance(run.exception, Breached):
                assert run.exception.reason == "too much"

    faults = [SetLimit("limiter", 2), TripBreach("nursery", "too much")]
    explore(program, check=note, faults=faults, raises=Breached)
    assert found == {2, Breached, type(None)}


def test_a_function_is_called_with_what_was_exposed() -> None:
    async def program() -> None:
        event = trio.Event()
        expose(event=event)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait)
            nursery.start_soon(checkpoint)

    failed(program)
    assert replay(program, "- !0@0", faults=[Call(trio.Event.set, "event")]).exception is None


def test_a_fault_that_raises_is_a_failure() -> None:
    def broken() -> None:
        raise OSError("broken")

    assert isinstance(failed(interleavings(2), faults=[Call(broken)]).__cause__, OSError)


def test_to_expose_does_nothing_elsewhere() -> None:
    expose(nothing=None)
    assert run(holds_a_resource) == ["taken", "given back"]


def test_a_fault_of_ones_own() -> None:
    @attrs.frozen
    class Jump(Fault):
        def inject(self, program: trio.CancelScope, exposed: Any) -> None:
            program.cancel()

    assert explore(interleavings(2), faults=[Jump()]).with_faults == 3


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("version", ["0.30.0", "0.36.0", "1.0", "0.36.0+dev", "nonsense"])
def test_a_trio_that_is_not_known_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "__version__", version)
    with pytest.raises(RuntimeError) as caught:
        explore(interleavings(1))
    assert str(caught.value) == (
        "trio_parallel_steps.testing chooses schedules through the insides of trio 0.31 to 0.35, "
        f"and this is trio {version}"
    )


@pytest.mark.parametrize("version", ["0.31.0", "0.35.1", "0.35.0+dev"])
def test_a_trio_that_is_known_is_not(version: str) -> None:
    _scheduler.check_version(version)


def test_explore_is_for_synchronous_code() -> None:
    async def main() -> None:
        explore(interleavings(1))

    with pytest.raises(RuntimeError, match="call it outside trio"):
        run(main)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"async_fn": None}, TypeError, "`async_fn` must be an async function, got None"),
        ({"async_fn": lambda: None}, TypeError, "`async_fn` must be an async function, got <func"),
        ({"check": 1}, TypeError, "`check` must be a function of a Run, or None, got 1"),
        ({"schedules": 0}, ValueError, "`schedules` must be 'all' or an int >= 1, got 0"),
        ({"schedules": True}, ValueError, "`schedules` must be 'all' or an int >= 1, got True"),
        ({"schedules": "some"}, ValueError, "`schedules` must be 'all' or an int >= 1, got 'some'"),
        ({"seed": "x"}, TypeError, "`seed` must be an int, got 'x'"),
        ({"faults": ["x"]}, TypeError, r"`faults` must be faults, such as Cancel\(\), got 'x'"),
        ({"faults": Cancel()}, TypeError, r"`faults` must be several, such as \[Cancel\(\)\], got"),
        ({"raises": "x"}, TypeError, "`raises` must be exception classes, got 'x'"),
        ({"raises": (int,)}, TypeError, "`raises` must be exception classes, got <class 'int'>"),
    ],
)
def test_bad_input_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explore(**({"async_fn": interleavings(1)} | options))


@pytest.mark.parametrize(
    ("kind", "given", "options", "error", "message"),
    [
        (Cancel, [1], {}, TypeError, "`scope` must be a name that was exposed, got 1"),
        (Deadline, [1], {}, TypeError, "`scope` must be a name that was exposed, got 1"),
        (Deadline, [], {"seconds": -1}, ValueError, "'seconds' must be >= 0: -1"),
        (SetLimit, [1], {}, TypeError, "`limiter` must be a name that was exposed, got 1"),
        (SetLimit, ["x", 0], {}, ValueError, "'total_tokens' must be >= 1: 0"),
        (TripBreach, [1], {}, TypeError, "`nursery` must be a name that was exposed, got 1"),
        (Call, [1], {}, TypeError, "`fn` must be a function, got 1"),
        (Call, [print, 1], {}, TypeError, "`names` must be names that were exposed, got 1"),
        (Cancel, [], {"at": "x"}, TypeError, "`at` must be 'every' or numbers of steps, got 'x'"),
        (Cancel, [], {"at": 1}, TypeError, "`at` must be 'every' or numbers of steps, got 1"),
        (Cancel, [], {"at": [-1]}, ValueError, "`at` must be 'every' or numbers of steps >= 0"),
        (Cancel, [], {"at": [True]}, ValueError, "`at` must be 'every' or numbers of steps >= 0"),
    ],
)
def test_a_bad_fault_is_refused(
    kind: Any,
    given: list[Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        kind(*given, **options)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("nonsense", "`schedule` must be a string that explore"),
        ("1.", "`schedule` must be a string that explore"),
        ("7", "'7' is no schedule of this program: choice 0 is 7, of 2"),
        ("- !1@0", "`faults` must be those that '- !1@0' was found with"),
        ("- !0@99", "is no schedule of this program: there is no step 99"),
    ],
)
def test_a_bad_schedule_is_refused(schedule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(interleavings(2, 2), schedule, faults=[Cancel()])


def test_a_schedule_is_a_string() -> None:
    bad: Any = 1
    with pytest.raises(TypeError, match="`schedule` must be a string"):
        replay(interleavings(1), bad)


# ---------------------------------------------------------------- the recorder and the invariants


def test_a_recorder_writes_down_what_steps_say() -> None:
    async def main() -> None:
        limiter = BranchLimiter(2, name="shared")
        async with open_branch_nursery(limiter, name="step", observers=[recorded]) as nursery:
            branch = nursery.start_soon("a", trio.sleep, 3)
            nursery.start_soon("b", trio.sleep, 2)
            await trio.sleep(1)
            branch.cancel("no more")
            limiter.total_tokens = 1

    recorded = recorder()
    run(main)
    assert recorded.lines() == [
        "0 s  step step_opened",
        "0 s  step/a branch_queued",
        "0 s  step/b branch_queued",
        "0 s  step/a branch_started",
        "0 s  step/b branch_started",
        "1 s  step/a cancel_requested: no more",
        "1 s   limit_changed: shared: 2 to 1, total_tokens was set",
        "1 s  step/a branch_ended: cancelled, no more",
        "2 s  step/b branch_ended: succeeded",
        "2 s  step step_closed",
    ]
    check_invariants(recorded)


def test_the_same_schedule_gives_the_same_lines() -> None:
    async def program() -> list[str]:
        recorded = recorder()

        async def child() -> None:
            await run_branches({"x": checkpoint, "y": checkpoint}, observers=[recorded])

        await run_branches({"a": child, "b": child}, 2, observers=[recorded])
        check_invariants(recorded)
        return recorded.lines()

    lines: dict[str, list[str]] = {}
    explore(program, check=lambda run: lines.update({run.schedule: run.value}), schedules=30)
    for schedule, found in lines.items():
        assert replay(program, schedule).value == found


def test_a_recorder_watches_what_branches_see() -> None:
    async def fail() -> None:
        raise OSError("down")

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await run_branches(
                {"a": recorded.watch(checkpoint), "b": recorded.watch(fail)}, observers=[recorded]
            )

    recorded = recorder()
    run(main)
    check_invariants(recorded)
    branch, _, _ = recorded._outcomes[0]
    recorded._outcomes[0] = (branch, "other", None)
    with pytest.raises(InvariantBroken, match=f"5: '{branch.key}' returned 'other', and is"):
        check_invariants(recorded)


def recorded_step(**options: Any) -> Recorder:
    async def main() -> None:
        await run_branches({"a": checkpoint, "b": checkpoint}, 1, observers=[recorded], **options)

    recorded = recorder()
    run(main)
    return recorded


def test_a_broken_invariant_is_told_by_its_number() -> None:
    recorded = recorded_step()
    check_invariants(recorded)
    seen_of(recorded).endings["a"] *= 2
    del seen_of(recorded).queued["b"]
    with pytest.raises(InvariantBroken) as caught:
        check_invariants(recorded)
    assert [line[:2] for line in caught.value.violations] == ["4:", "4:"]
    assert "'a' of" in str(caught.value)

    recorded = recorded_step()
    seen_of(recorded).result = None
    with pytest.raises(InvariantBroken, match=r"3: .* was not closed"):
        check_invariants(recorded)


def seen_of(recorded: Recorder) -> Any:
    (seen,) = recorded._steps.values()
    return seen


def again(hook: str) -> Callable[[Recorder], None]:
    """Told of the first branch, or of the step, once more."""

    def forge(recorded: Recorder) -> None:
        step = seen_of(recorded).nursery
        about = {
            "step_opened": (step,),
            "step_closed": (step, step.result),
            "breached": (step, "enough"),
            "branch_ended": (step["a"], step.result["a"]),
            "cancel_requested": (step["a"], "no more"),
        }.get(hook, (step["a"],))
        run(acall, getattr(recorded, hook), *about)

    return forge


async def acall(fn: Callable[..., object], *args: object) -> None:
    fn(*args)


def left_with(exc: BaseException | None, body: BaseException | None = None) -> Any:
    """The block was left by another exception."""

    def forge(recorded: Recorder) -> None:
        (left,) = recorded._left
        if isinstance(exc, Breached | BranchErrors):
            exc.result = left.nursery.result
        recorded._left[:] = [attrs.evolve(left, raised=exc, body=body)]

    return forge


def seen_with(**values: Any) -> Callable[[Recorder], None]:
    def forge(recorded: Recorder) -> None:
        for name, value in values.items():
            setattr(seen_of(recorded), name, value)

    return forge


def group(*excs: Exception) -> BranchErrors:
    return BranchErrors("errors", excs)


FORGED: dict[str, tuple[Callable[[Recorder], None], str]] = {
    "another order": (seen_with(order=["b", "a"]), r"4: .* and completion_order is \['a', 'b'\]"),
    "another result": (
        lambda recorded: seen_of(recorded).endings.update(
            a=[attrs.evolve(seen_of(recorded).result["a"])]
        ),
        "4: 'a' of 'step' has another result than the one that was told",
    ),
    "another status": (
        lambda recorded: seen_of(recorded).endings.update(
            a=[attrs.evolve(seen_of(recorded).result["a"], status=FAILED)]
        ),
        "4: 'a' of 'step' ended as BranchStatus.FAILED, then as BranchStatus.SUCCEEDED",
    ),
    "not started": (seen_with(started={"b": 1}), "4: 'a' of 'step' is .* and was started, or was"),
    "opened twice": (again("step_opened"), "10: 'step' was opened twice"),
    "closed twice": (again("step_closed"), "10: 'step' was closed twice"),
    "told after the end": (again("branch_queued"), "10: 'step' was closed, and then told of 'a'"),
    "ended twice": (
        again("branch_ended"),
        r"10: 'a' of 'step' was told of out of order, .*'started', 'ended', 'ended'\]",
    ),
    "started first": (
        seen_with(told={"a": "sqe", "b": "qse"}),
        r"10: 'a' of 'step' was told of out of order, .* \['started', 'queued', 'ended'\]",
    ),
    "told to stop twice": (
        seen_with(told={"a": "qscce", "b": "qse"}),
        "10: 'a' of 'step' was told of out of order, or more than once",
    ),
    "breached twice": (seen_with(breached_for=["a", "b"]), "10: 'step' was breached more than"),
    "nothing of the body": (
        left_with(None, OSError("down")),
        r"12: the body of 'step' raised \[OSError\('down'\)\], and its block nothing",
    ),
    "something else": (left_with(OSError("down")), r"12: 'step' raised OSError\('down'\)"),
    "a success": (left_with(group(OSError())), "12: 'step' raised .*, and is a success"),
    "nobody's": (left_with(group(OSError())), r"12: 'step' raised OSError\(\), which no branch of"),
    "lost": (
        left_with(group(KeyError()), OSError("down")),
        r"12: 'step' raised .*, and OSError\('down'\) of its body is lost",
    ),
    "no breach": (left_with(Breached("enough")), r"12: .* and was breached for \[\]"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_forged_is_told(name: str) -> None:
    async def main() -> None:
        step = open_branch_nursery(1, name="step", observers=[recorded])
        async with recorded.watch_step(step) as nursery:
            for key in "ab":
                nursery.start_soon(key, recorded.watch(checkpoint))

    recorded = recorder()
    run(main)
    check_invariants(recorded)
    forge, message = FORGED[name]
    forge(recorded)
    with pytest.raises(InvariantBroken, match=message):
        check_invariants(recorded)


def stopped(stop: Callable[[BranchNursery], object]) -> Recorder:
    async def main() -> None:
        step = open_branch_nursery(1, name="step", observers=[recorded])
        async with recorded.watch_step(step) as nursery:
            nursery.start_soon("a", recorded.watch(trio.sleep), 2)
            nursery.start_soon("b", recorded.watch(trio.sleep), 2)
            await trio.sleep(1)
            stop(nursery)

    recorded = recorder()
    with suppress(Breached):
        run(main)
    check_invariants(recorded)
    return recorded


def test_another_cause_is_told() -> None:
    recorded = stopped(lambda nursery: nursery.cancel_where(lambda _: True, "no more"))
    seen_of(recorded).told_to_stop["a"] = "before"
    seen_of(recorded).told_to_stop["b"] = "before"
    with pytest.raises(InvariantBroken) as caught:
        check_invariants(recorded)
    assert caught.value.violations == [
        "11: 'a' of 'step' was told to stop: before, and is BranchStatus.CANCELLED: no more",
        "11: 'b' of 'step' was told to stop: before, and is BranchStatus.SKIPPED: no more",
    ]
    recorded = stopped(lambda nursery: nursery.breach("enough"))
    seen_of(recorded).breached_for = ["too late"]
    with pytest.raises(InvariantBroken) as caught:
        check_invariants(recorded)
    assert [said[:3] for said in caught.value.violations] == ["11:", "12:"]
    assert "'a' of 'step' is BranchStatus.BREACHED: enough, and its step was not" in str(
        caught.value
    )


def test_a_breach_that_is_not_raised_is_told() -> None:
    recorded = stopped(lambda nursery: nursery.breach("enough"))
    left_with(None)(recorded)
    with pytest.raises(InvariantBroken, match="12: 'step' was breached: enough, and raised noth"):
        check_invariants(recorded)
    (left,) = recorded._left
    recorded._left[:] = [attrs.evolve(left, raised=Breached("enough"))]
    with pytest.raises(InvariantBroken, match=r"12: 'step' raised .* with another result"):
        check_invariants(recorded)


def test_a_refusal_and_retries_are_no_violation() -> None:
    async def main() -> None:
        budget, tries = Budget(usd=1), iter([OSError, OSError, None])

        async def flaky() -> None:
            await checkpoint()
            if error := next(tries):
                raise error

        async def spend() -> None:
            await trio.sleep(10)
            budget.spend(usd=2)

        step = open_branch_nursery(2, observers=[recorded], budget=budget)
        with pytest.raises(BudgetExceeded):
            async with recorded.watch_step(step) as nursery:
                retry = Retry(on=OSError, attempts=3, wait_initial=0.1)
                nursery.start_soon("flaky", recorded.watch(flaky), retry=retry)
                nursery.start_soon("spends", recorded.watch(spend))

    recorded = recorder()
    run(main)
    check_invariants(recorded)


def test_a_map_forgets_what_was_consumed() -> None:
    async def main() -> None:
        async with map_branches(
            recorded.watch(trio.sleep), [1, 1, 1], 1, key=lambda _: "same", observers=[recorded]
        ) as results:
            async for result in results:
                result.unwrap()

    recorded = recorder()
    run(main)
    check_invariants(recorded)
    seen_of(recorded).told["same"] += "e"
    with pytest.raises(InvariantBroken, match=r"10: 'same' of .* was told of out of order"):
        check_invariants(recorded)


def test_a_recorder_works_on_asyncio() -> None:
    async def main() -> None:
        async with recorded.watch_step(open_branch_nursery(1, observers=[recorded])) as nursery:
            nursery.start_soon("a", recorded.watch(asyncio.sleep), 0)
            nursery.start_soon("b", recorded.watch(asyncio.sleep), 60)
            await nursery["a"].wait()
            nursery.cancel("b")

    recorded = recorder()
    asyncio.run(main())
    check_invariants(recorded)
    assert [event.what for event in recorded.events][-1] == "step_closed"


def test_a_token_that_is_kept_is_told() -> None:
    async def main() -> None:
        limiter = BranchLimiter(2)
        await run_branches({"a": checkpoint}, limiter, observers=[recorded])
        async with limiter:
            with pytest.raises(InvariantBroken, match="3: at the end tokens are in use"):
                check_invariants(recorded)
        check_invariants(recorded)

    recorded = recorder()
    run(main)


def test_a_start_after_a_stop_is_told() -> None:
    async def main() -> None:
        with pytest.raises(Breached):
            async with open_branch_nursery(1, observers=[recorded]) as nursery:
                branch = nursery.start_soon("a", trio.sleep, 1)
                await trio.sleep(0.5)
                nursery.breach("enough")
                recorded.branch_started(branch)

    recorded = recorder()
    run(main)
    with pytest.raises(InvariantBroken, match=r"6: 'a' of .* started after a stop: enough"):
        check_invariants(recorded)


def test_a_heavy_branch_alone_is_allowed_for() -> None:
    async def main(recorded: Recorder) -> None:
        async with open_branch_nursery(1, observers=[recorded]) as nursery:
            nursery.start_soon("heavy", checkpoint, weight=3)

    recorded = recorder(heaviest=3)
    run(main, recorded)
    check_invariants(recorded)
    recorded = recorder()
    run(main, recorded)
    with pytest.raises(InvariantBroken, match="1: 3 of 1 in use"):
        check_invariants(recorded)


def test_what_unwinds_over_the_limit_is_allowed_for_until_it_has_ended() -> None:
    async def nest(nursery: BranchNursery) -> None:
        nursery.start_soon("other", trio.sleep, 2, priority=1)
        await run_branches({"inner": checkpoint})

    async def main() -> None:
        async with open_branch_nursery(1, observers=[recorded], policy=COLLECT) as nursery:
            nursery.start_soon("outer", nest, nursery)
            await trio.sleep(1)
            nursery.cancel("outer")

    recorded = recorder()
    run(main)
    check_invariants(recorded)


def test_who_asked_too_much_of_a_budget_is_breached() -> None:
    async def ask() -> None:
        budget.spend(usd=2)

    async def main() -> None:
        with pytest.raises(Breached):
            await run_branches({"a": recorded.watch(ask)}, budget=budget, observers=[recorded])

    budget, recorded = Budget(usd=1), recorder()
    run(main)
    check_invariants(recorded)


def test_a_budget_is_checked_against_its_limits() -> None:
    async def main(budget: Budget, amount: float) -> None:
        async def spend() -> None:
            await checkpoint()
            budget.spend(usd=amount)

        await run_branches({"a": spend}, budget=budget, observers=[recorded])

    recorded = recorder()
    budget = Budget(usd=5)
    run(main, budget, 3)
    check_invariants(recorded, budgets={budget: {"usd": 5}})
    with pytest.raises(InvariantBroken, match="7: 3 usd used, of 2: <Budget: 3 of 5 usd>"):
        check_invariants(recorded, budgets={budget: {"usd": 2}})
    with pytest.raises(BudgetExceeded):
        run(main, budget, 3)
    check_invariants(recorded, budgets={budget: {"usd": 5}})


@pytest.mark.parametrize("heaviest", [0, True, 1.5])
def test_the_heaviest_weight_is_an_int(heaviest: Any) -> None:
    with pytest.raises(ValueError, match="`heaviest` must be an int >= 1, got"):
        recorder(heaviest=heaviest)


def test_only_a_recorder_is_checked() -> None:
    bad: Any = []
    with pytest.raises(TypeError, match=r"`recorder` must be a Recorder, got \[\]"):
        check_invariants(bad)


# ---------------------------------------------------------------- stalls


def test_time_that_passes_while_a_token_is_free_is_a_stall() -> None:
    async def main() -> None:
        limiter = trio.CapacityLimiter(1)

        async def waiter() -> None:
            async with limiter:
                pass

        with assert_no_stall(limiter):
            async with trio.open_nursery() as nursery:
                limiter.acquire_on_behalf_of_nowait("somebody")
                nursery.start_soon(waiter)
                await trio.sleep(1)
                # As a limiter would that forgot to wake who waits.
                limiter._borrowers.discard("somebody")
                await trio.sleep(1)
                nursery.cancel_scope.cancel()

    with pytest.raises(Stalled, match="from 1 to 2 s: 1 wait, and 1 tokens are free"):
        run(main)


def test_who_waits_for_what_is_taken_does_not_stall() -> None:
    async def main() -> None:
        limiter = BranchLimiter(1)
        with assert_no_stall(limiter) as watch:
            branches = {key: lambda: trio.sleep(1) for key in "abc"}
            await run_branches(branches, limiter, observers=[watch])
            limiter.pause("for a while")
            async with open_branch_nursery(limiter, observers=[watch]) as nursery:
                nursery.start_soon("d", trio.sleep, 1)
                await trio.sleep(5)
                assert watch.admissible() == []
                limiter.resume()
        assert trio.current_time() == 9 - 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_step_whose_branch_waits_for_nothing_is_a_stall() -> None:
    class Explained:
        name = "step"
        limiter = "its limiter"

        def explain(self) -> dict[str, str]:
            return {"a": "the next checkpoint", "b": "limit: 1 of 1 in use"}

    async def main() -> None:
        step: Any = Explained()
        with assert_no_stall() as watch:
            watch.step_opened(step)
            await trio.sleep(1)

    with pytest.raises(Stalled, match="'a' of 'step' waits for nothing: 'its limiter'"):
        run(main)


def test_the_error_of_the_block_is_the_one_raised() -> None:
    async def main() -> None:
        with assert_no_stall():
            raise OSError("down")

    with pytest.raises(OSError, match="down"):
        run(main)


def test_only_limiters_are_watched() -> None:
    async def main() -> None:
        bad: Any = 1
        with assert_no_stall(bad):
            pass

    with pytest.raises(TypeError, match=r"`limiters` must be BranchLimiters or trio.Capac.*got 1"):
        run(main)


# ---------------------------------------------------------------- the fixture, and the package


CONFTEST = 'pytest_plugins = ["trio_parallel_steps.testing.fixtures"]'
TESTS = """
import trio
from trio_parallel_steps import run_branches

def test_good(step_recorder):
    async def main():
        await run_branches({"a": trio.lowlevel.checkpoint}, observers=[step_recorder])
    trio.run(main)

def test_bad(step_recorder):
    step_recorder._violations.append("6: started")
"""


def test_the_fixture_checks_what_it_was_told(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*InvariantBroken: 6: started*"])


def test_pytest_is_needed_for_the_fixture_only() -> None:
    code = "import sys, trio_parallel_steps.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_branch_is_found_where_its_own_code_stands() -> None:
    async def stands_still() -> None:
        await trio.sleep_forever()

    async def program() -> None:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", stands_still)

    assert "in stands_still" in str(failed(program))


def test_statuses_are_those_of_any_run() -> None:
    async def program() -> Any:
        nursery: BranchNursery
        async with open_branch_nursery(2) as nursery:
            for key in "abc":
                nursery.start_soon(key, checkpoint)
        return nursery.result

    def check(run: Run) -> None:
        assert run.value.with_status(SUCCEEDED) == ["a", "b", "c"]

    assert explore(program, check=check).complete
