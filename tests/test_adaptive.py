"""Limits that move: what a `Limit` is told of the branches, and what its answer does."""

from __future__ import annotations

import contextvars
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio

from drivers import EVERY_DRIVER, Driver, World
from helpers import assert_idle, run
from trio_parallel_steps import (
    COLLECT,
    Backpressure,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    Retry,
    abc,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.limits import Limit, Outcome, Sample

OK, DROPPED, IGNORED = Outcome.OK, Outcome.DROPPED, Outcome.IGNORED


class Told:
    """Keeps what it is told, and answers from a list, then the last of it for ever."""

    def __init__(self, initial: int, *answers: Any) -> None:
        self.value = initial
        self.samples: list[Sample] = []
        self._answers = list(answers)

    def on_sample(self, sample: Sample) -> int:
        self.samples.append(sample)
        if self._answers:
            self.value = self._answers.pop(0)
            if isinstance(self.value, Exception):
                raise self.value
        return self.value

    def __repr__(self) -> str:
        return "<Told>"

    def rows(self) -> list[tuple[float, float, int, Outcome]]:
        return [(s.started_at, s.latency, s.in_flight, s.outcome) for s in self.samples]


class Changes(abc.Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float, str]] = []

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        self.seen.append((old, new, reason))


def test_a_limit_is_one_by_what_it_has() -> None:
    assert isinstance(Told(1), Limit)


# ---------------------------------------------------------------- samples


@EVERY_DRIVER
def test_latency_leaves_queueing_out(driver: Driver) -> None:
    limit = Told(2)

    async def main(world: World) -> None:
        begin = world.now()
        await run_branches({key: lambda: world.sleep(1) for key in "abc"}, limit)
        first, second, third = [(*row[:2], row[3]) for row in limit.rows()]
        assert first == second == (begin, 1, OK)
        assert third == (begin + 1, 1, OK)

    driver(main)


@EVERY_DRIVER
def test_outcomes(driver: Driver) -> None:
    """Who was turned away, or was too slow, says that it is too much; who failed, or was told to
    stop, says nothing."""
    limit = Told(1)

    async def main(world: World) -> None:
        async def turned_away() -> None:
            raise Backpressure

        async def turned_away_in_a_group() -> None:
            raise ExceptionGroup("two", [ValueError(), ExceptionGroup("one", [Backpressure()])])

        async def cancels_itself() -> None:
            nursery.cancel("cancelled")
            await world.forever()

        async def fails() -> None:
            raise ValueError

        async with open_branch_nursery(limit, policy=COLLECT) as nursery:
            nursery.start_soon("fine", world.sleep, 0)
            nursery.start_soon("turned away", turned_away)
            nursery.start_soon("in a group", turned_away_in_a_group)
            nursery.start_soon("timed out", world.forever, timeout=1)
            nursery.start_soon("fails", fails)
            nursery.start_soon("cancelled", cancels_itself)
            nursery.start_soon("last", world.sleep, 0)
        assert [sample.outcome for sample in limit.samples] == [
            *(OK, DROPPED, DROPPED, DROPPED, IGNORED, IGNORED, OK)
        ]

    driver(main)


@EVERY_DRIVER
def test_what_stops_a_step_says_nothing(driver: Driver) -> None:
    limit = Told(1)

    async def main(world: World) -> None:
        branches: Any = dict.fromkeys("ab", world.forever)
        await run_branches(branches, limit, move_on_after=1)
        assert [sample.outcome for sample in limit.samples] == [IGNORED]

    driver(main)


@EVERY_DRIVER
def test_each_try_is_a_sample(driver: Driver) -> None:
    limit = Told(1)

    async def main(world: World) -> None:
        begin = world.now()
        tries = iter([Backpressure(), ValueError(), None])

        async def flaky() -> None:
            await world.sleep(1)
            error = next(tries)
            if error is not None:
                raise error

        retry = Retry((Backpressure, ValueError), wait_initial=2, wait_max=2, wait_jitter=0)
        await run_branches({"a": flaky}, limit, retry=retry)
        assert limit.rows() == [
            (begin, 1, 1, DROPPED),
            (begin + 3, 1, 1, IGNORED),
            (begin + 6, 1, 1, OK),
        ]

    driver(main)


@EVERY_DRIVER
def test_a_try_that_timed_out_was_dropped(driver: Driver) -> None:
    limit = Told(1)

    async def main(world: World) -> None:
        async def slow() -> None:
            await world.sleep(2 if not limit.samples else 0)

        retry = Retry(trio.TooSlowError, wait_initial=0, wait_jitter=0)
        await run_branches({"a": slow}, limit, retry=retry, branch_timeout=1)
        assert [sample.outcome for sample in limit.samples] == [DROPPED, OK]

    driver(main)


@EVERY_DRIVER
def test_time_in_which_the_token_was_lent_is_no_latency(driver: Driver) -> None:
    """Of a branch that waits for another: neither the wait, nor that for its token after it."""
    limit = Told(1)

    async def main(world: World) -> None:
        begin = world.now()

        async def parent() -> None:
            await world.sleep(1)
            await run_branches({"inner": lambda: world.sleep(5)})
            await world.sleep(2)

        await run_branches({"outer": parent}, limit)
        assert limit.rows() == [(begin + 1, 5, 1, OK), (begin, 3, 1, OK)]

    driver(main)


@EVERY_DRIVER
def test_one_that_ends_while_parked_ran_until_it_was(driver: Driver) -> None:
    limit = Told(1, 2)

    async def main(world: World) -> None:
        async def waits(nursery: BranchNursery) -> None:
            async with world.tasks() as start:
                start(nursery["long"].wait)
                await world.sleep(1)
                raise ValueError

        limiter = BranchLimiter(limit)
        await run_branches({"first": lambda: world.sleep(0)}, limiter)
        async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
            nursery.start_soon("waits", waits, nursery)
            nursery.start_soon("long", world.sleep, 5)
        assert [sample.latency for sample in limit.samples] == [0, 0, 5]
        assert_idle(limiter)

    driver(main)


def test_one_whose_task_waits_on_when_it_has_ended_ran_until_it_was_parked() -> None:
    limit = Told(1, 2)

    async def main() -> None:
        async def leaves_a_task() -> None:
            await trio.sleep(1)
            trio.lowlevel.spawn_system_task(
                nursery["long"].wait, context=contextvars.copy_context()
            )
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1)

        limiter = BranchLimiter(limit)
        await run_branches({"first": trio.lowlevel.checkpoint}, limiter)
        async with open_branch_nursery(limiter) as nursery:
            nursery.start_soon("leaves", leaves_a_task)
            nursery.start_soon("long", trio.sleep, 5)
        assert [sample.latency for sample in limit.samples] == [0, 1, 5]
        assert_idle(limiter)

    run(main)


@EVERY_DRIVER
def test_in_flight_are_tokens(driver: Driver) -> None:
    limit = Told(1, 4)

    async def main(world: World) -> None:
        limiter = BranchLimiter(limit)
        await run_branches({"first": lambda: world.sleep(0)}, limiter)
        async with open_branch_nursery(limiter) as nursery:
            for key, weight in (("a", 1), ("b", 3)):
                nursery.start_soon(key, world.sleep, weight, weight=weight)
        assert sorted(sample.in_flight for sample in limit.samples) in ([1, 1, 4], [1, 3, 4])

    driver(main)


def test_a_limiter_in_plain_code_is_measured_too() -> None:
    limit = Told(8, 7, 6, 5)

    async def main() -> None:
        limiter = BranchLimiter(limit)
        async with limiter:
            await trio.sleep(2)
        for error in (Backpressure(), ValueError()):
            with pytest.raises(type(error)):
                async with limiter:
                    await trio.sleep(1)
                    raise error
        with trio.move_on_after(1):
            async with limiter:
                await trio.sleep_forever()
        assert limit.rows() == [
            (0, 2, 1, OK),
            (2, 1, 1, DROPPED),
            (3, 1, 1, IGNORED),
            (4, 1, 1, IGNORED),
        ]
        assert limiter.total_tokens == 5
        assert_idle(limiter)

    run(main)


def test_a_sub_cap_and_the_limiter_around_it_are_both_told() -> None:
    outer, inner = Told(2), Told(1)

    async def main() -> None:
        async def parent() -> None:
            await run_branches({key: lambda: trio.sleep(1) for key in "ab"}, inner)

        await run_branches({"parent": parent, "other": lambda: trio.sleep(5)}, outer)
        assert [s.latency for s in inner.samples] == [1, 1]
        assert sorted(s.latency for s in outer.samples) == [0, 1, 1, 5]

    run(main)


# ---------------------------------------------------------------- what is not measured


@pytest.mark.parametrize(("branches", "samples"), [(3, 0), (4, 4), (5, 5)])
def test_steps_with_fewer_branches_than_the_initial_limit_bypass_it(
    branches: int, samples: int
) -> None:
    limit = Told(4)
    run(run_branches, dict.fromkeys(range(branches), trio.lowlevel.checkpoint), limit)
    assert len(limit.samples) == samples


def test_many_small_steps_that_share_a_limiter_do_not() -> None:
    limit = Told(4)

    async def main() -> None:
        limiter = BranchLimiter(limit)

        async def step() -> None:
            await run_branches({key: lambda: trio.sleep(1) for key in "ab"}, limiter)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(step)
        assert len(limit.samples) >= 4

    run(main)


# ---------------------------------------------------------------- what its answer does


@EVERY_DRIVER
def test_the_new_limit_holds_and_is_told(driver: Driver) -> None:
    limit = Told(1, 3)
    changes = Changes()

    async def main(world: World) -> None:
        running: list[str] = []
        peaks = []

        async def work(key: str) -> None:
            running.append(key)
            peaks.append(len(running))
            await world.sleep(1)
            running.remove(key)

        branches = {key: lambda key=key: work(key) for key in "abcde"}
        await run_branches(branches, limit, observers=[changes])
        assert peaks[0] == 1
        assert max(peaks) == 3

    driver(main)
    assert changes.seen == [(1, 3, "Told: one ended after 1 s, 1 in flight")]


@EVERY_DRIVER
def test_a_lower_limit_cancels_nobody_and_admits_fewer(driver: Driver) -> None:
    limit = Told(3, 1)

    async def main(world: World) -> None:
        peaks: list[int] = []

        async def work(seconds: float) -> None:
            peaks.append(nursery.statistics().running)
            await world.sleep(seconds)

        async with open_branch_nursery(limit) as nursery:
            for key, seconds in enumerate([1, 2, 3, 1, 1]):
                nursery.start_soon(key, work, seconds)
        assert len(nursery.result.outputs) == 5
        starts = [result.started_at for result in nursery.result.values()]
        begin = starts[0]
        assert begin is not None
        assert [start - begin for start in starts if start is not None] == [0, 0, 0, 3, 4]

    driver(main)


def test_its_own_words_are_the_reason() -> None:
    class Speaks(Told):
        reason = "past the knee"

    changes = Changes()
    branches = dict.fromkeys("ab", trio.lowlevel.checkpoint)
    run(lambda: run_branches(branches, Speaks(1, 2), observers=[changes]))
    assert changes.seen == [(1, 2, "Speaks: past the knee")]


def test_who_was_turned_away_is_said() -> None:
    async def refused() -> None:
        raise Backpressure

    changes = Changes()
    run(lambda: run_branches({"a": refused}, Told(1, 2), policy=COLLECT, observers=[changes]))
    assert changes.seen == [(1, 2, "Told: one was turned away after 0 s, 1 in flight")]


def test_only_the_limit_sets_the_tokens() -> None:
    limiter = BranchLimiter(Told(3))
    assert limiter.total_tokens == 3
    with pytest.raises(RuntimeError, match=re.escape("`total_tokens` is set by <Told>")):
        limiter.total_tokens = 5


def test_it_is_measured_afresh_in_another_run() -> None:
    limit = Told(2, 5)
    limiter = BranchLimiter(limit)

    async def main() -> None:
        async with limiter:
            pass

    run(main)
    run(main)
    assert [sample.in_flight for sample in limit.samples] == [1, 1]
    assert limiter.total_tokens == 5


# ---------------------------------------------------------------- limits that are wrong


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (ZeroDivisionError("why"), ZeroDivisionError, "why"),
        (0, ValueError, "`on_sample(...)` must be an int >= 1, got 0"),
        (2.5, TypeError, "`on_sample(...)` must be an int >= 1, got 2.5"),
        (True, TypeError, "`on_sample(...)` must be an int >= 1, got True"),
    ],
)
@EVERY_DRIVER
def test_a_limit_that_raises_stops_the_step_as_its_body_would(
    driver: Driver, answer: object, error: type[Exception], says: str
) -> None:
    limit = Told(2, answer)

    async def main(world: World) -> None:
        branches: dict[str, Callable[[], Any]] = {"a": lambda: world.sleep(1), "b": world.forever}
        with pytest.raises(BranchErrors) as caught:
            await run_branches(branches, limit)
        (raised,) = caught.value.exceptions
        assert type(raised) is error
        assert str(raised) == says
        assert len(limit.samples) == 1  # it is not asked again
        result = caught.value.result
        assert result is not None
        assert result["a"].output is None
        assert result["a"].status.value == "succeeded"
        assert result["b"].status.value == "cancelled"
        assert result.stop_reason == f"the limit raised {error.__name__}: {says}"

    driver(main)


def test_a_limit_that_raises_in_plain_code_raises_there() -> None:
    async def main() -> None:
        limiter = BranchLimiter(Told(1, ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            async with limiter:
                pass
        assert_idle(limiter)
        async with limiter:
            pass

    run(main)


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (math.inf, TypeError), (None, TypeError)]
)
def test_a_limit_that_begins_with_no_number_is_refused(value: Any, error: type[Exception]) -> None:
    says = re.escape(f".value` must be an int >= 1, got {value!r}")
    with pytest.raises(error, match=f"`limit{says}"):
        open_branch_nursery(Told(value))
    with pytest.raises(error, match=f"`total_tokens{says}"):
        BranchLimiter(Told(value))


def test_a_class_is_no_limit() -> None:
    wrong: Any = Told
    with pytest.raises(TypeError, match="a Limit or a limiter, got <class"):
        open_branch_nursery(wrong)


@EVERY_DRIVER
def test_what_is_stopped_between_two_tries_is_not_in_flight(driver: Driver) -> None:
    async def main(world: World) -> None:
        limiter = BranchLimiter(Told(2))
        retry = Retry(ValueError, wait_initial=10, wait_max=10)
        async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
            nursery.start_soon("a", world.fail, 1, retry=retry)
            nursery.start_soon("b", world.sleep, 5)
            await world.sleep(2)
            nursery.cancel("a")
            pool: Any = limiter._pool
            assert pool.meter.in_flight == 1
        assert pool.meter.in_flight == 0

    driver(main)
