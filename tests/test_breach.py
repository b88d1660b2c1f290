"""One switch for any number of steps."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from helpers import (
    BREACHED,
    SKIPPED,
    SUCCEEDED,
    assert_complete,
    clean_up_for,
    give,
    run_in_many_orders,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    BranchLimiter,
    BranchNursery,
    Breach,
    Breached,
    ParallelResult,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.abc import Observer


async def breached_step(breach: Breach, seen: list[Breached], **options: Any) -> None:
    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(1, breach=breach, **options) as nursery:
            nursery.start_soon("runs", trio.sleep_forever)
            nursery.start_soon("waits", trio.sleep_forever)
            await trio.sleep_forever()
    assert caught.value.result is nursery.result
    seen.append(caught.value)


def test_tripping_it_stops_all_steps_in_the_same_instant() -> None:
    async def program() -> None:
        breach = Breach()
        seen: list[Breached] = []
        async with trio.open_nursery() as beside:
            beside.start_soon(breached_step, breach, seen)
            beside.start_soon(breached_step, breach, seen)
            await trio.sleep(1)
            assert repr(breach) == "<Breach of 2 open steps>"
            breach.trip("both")
        for error in seen:
            assert error.reason == "both"
            assert isinstance(error.result, ParallelResult)
            assert statuses(error.result) == {"runs": BREACHED, "waits": SKIPPED}
            assert {ended.reason for ended in error.result.values()} == {"both"}
            assert {ended.ended_at for ended in error.result.values()} == {trio.current_time()}
        assert len(seen) == 2
        assert repr(breach) == "<Breach of 0 open steps tripped: both>"

    run_in_many_orders(program)


def test_two_steps_on_one_limiter_are_both_stopped_and_neither_is_given_the_others_token() -> None:
    async def program() -> None:
        breach, limiter = Breach(), BranchLimiter(1)
        nurseries: list[BranchNursery] = []

        async def step() -> None:
            with pytest.raises(Breached):
                async with open_branch_nursery(limiter, breach=breach) as nursery:
                    nurseries.append(nursery)
                    for n in range(3):
                        nursery.start_soon(n, trio.sleep_forever)

        async with trio.open_nursery() as beside:
            beside.start_soon(step)
            beside.start_soon(step)
            await until_nothing_is_ready()
            breach.trip("now")
        ran = [key for nursery in nurseries for key in nursery.result.completion_order]
        assert len(ran) == 1
        for nursery in nurseries:
            assert_complete(nursery, 0, 1, 2)

    run_in_many_orders(program)


async def test_the_first_reason_stands() -> None:
    breach = Breach()
    seen: list[Breached] = []
    async with trio.open_nursery() as beside:
        beside.start_soon(breached_step, breach, seen)
        await until_nothing_is_ready()
        breach.trip("first")
        breach.trip("second")
    assert breach.reason == "first"
    assert seen[0].reason == "first"
    breach.trip("third")
    assert breach.reason == "first"


async def test_a_step_nested_in_another_one_of_its_breach_is_breached_too() -> None:
    breach = Breach()
    seen: list[BranchNursery] = []

    async def nested() -> None:
        async with open_branch_nursery(1, breach=breach) as inner:
            seen.append(inner)
            inner.start_soon("runs", trio.sleep_forever)
            inner.start_soon("waits", trio.sleep_forever)

    with pytest.raises(Breached, match="both"):
        async with open_branch_nursery(breach=breach) as outer:
            outer.start_soon("a", nested)
            await until_nothing_is_ready()
            breach.trip("both")
    assert statuses(outer.result) == {"a": BREACHED}
    assert statuses(seen[0].result) == {"runs": BREACHED, "waits": SKIPPED}
    assert seen[0].result.stop_reason == "both"


async def test_a_step_opened_on_a_tripped_breach_raises_at_once() -> None:
    breach = Breach()
    assert breach.reason is None
    breach.trip("before")
    with pytest.raises(Breached, match="before") as caught:
        async with open_branch_nursery(breach=breach):
            pytest.fail("opened")
    assert caught.value.result is None
    with pytest.raises(Breached, match="before"):
        await run_branches({"a": lambda: give(1)}, breach=breach)


def test_it_can_be_tripped_before_there_is_an_event_loop() -> None:
    breach = Breach()
    breach.trip("early")

    async def main() -> None:
        with pytest.raises(Breached, match="early"):
            await run_branches({}, breach=breach)

    trio.run(main)


async def test_a_step_that_has_been_left_is_not_touched_any_more() -> None:
    breach = Breach()
    result = await run_branches({"a": lambda: give(1)}, breach=breach)
    breach.trip("later")
    assert result.success
    assert result.stop_reason is None
    assert repr(breach) == "<Breach of 0 open steps tripped: later>"


async def test_a_branch_may_trip_it() -> None:
    breach = Breach()

    async def trips() -> str:
        breach.trip("from within")
        return "and returns"

    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(2, breach=breach) as nursery:
            nursery.start_soon("sleeps", trio.sleep_forever)
            nursery.start_soon("waits", trio.sleep_forever, priority=-1)
            await until_nothing_is_ready()
            nursery.cancel("waits")
            nursery.start_soon("trips", trips)
            nursery.start_soon("waits too", trio.sleep_forever, priority=-1)
            nursery.cancel("sleeps")
    assert caught.value.reason == "from within"
    assert nursery.result["trips"].status is SUCCEEDED
    assert nursery.result["trips"].output == "and returns"


async def test_breach_of_one_step_leaves_its_breach_and_other_steps_alone() -> None:
    breach = Breach()
    async with open_branch_nursery(breach=breach) as other:
        with pytest.raises(Breached, match="only me"):
            async with open_branch_nursery(breach=breach) as nursery:
                nursery.breach("only me")
        other.start_soon("a", give, 1)
    assert breach.reason is None
    assert other.result.outputs == {"a": 1}


async def test_from_another_thread_it_is_tripped_by_trio_from_thread() -> None:
    breach = Breach()

    def in_a_thread() -> None:
        with pytest.raises(RuntimeError, match=r"use trio\.from_thread\.run_sync"):
            breach.trip("wrong way")
        trio.from_thread.run_sync(breach.trip, "right way")

    with pytest.raises(Breached, match="right way"):
        async with open_branch_nursery(breach=breach) as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            await trio.to_thread.run_sync(in_a_thread)
    assert breach.reason == "right way"


async def test_observers_hear_of_it_once_for_each_step() -> None:
    log: list[tuple[str, str]] = []

    class Log(Observer):
        def breached(self, step: BranchNursery, reason: str) -> None:
            log.append((step.name, reason))

    breach = Breach()
    with pytest.raises(Breached):
        async with open_branch_nursery(breach=breach, observers=[Log()], name="mine") as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            breach.trip("heard")
            nursery.breach("not heard")
    assert log == [("mine", "heard")]


async def test_a_breach_is_synchronous() -> None:
    with pytest.raises(Breached):
        async with open_branch_nursery(1) as nursery:
            runs = nursery.start_soon("runs", clean_up_for, 0)
            waits = nursery.start_soon("waits", give, 1)
            await until_nothing_is_ready()
            nursery.breach("now")
            assert waits.status is SKIPPED
            assert not runs.cancel()
            assert nursery.statistics().stop_reason == "now"
            assert nursery.statistics().queued == 0
    assert runs.status is BREACHED


async def test_a_nested_step_on_the_same_breach_ends_too() -> None:
    breach = Breach()
    inner: list[BranchNursery] = []

    async def nests() -> None:
        async with open_branch_nursery(BranchLimiter(1), breach=breach) as nursery:
            inner.append(nursery)
            nursery.start_soon("deep", trio.sleep_forever)

    with pytest.raises(Breached):
        async with open_branch_nursery(breach=breach) as nursery:
            nursery.start_soon("nests", nests)
            await until_nothing_is_ready()
            breach.trip("all")
    assert nursery.result["nests"].status is BREACHED
    assert_complete(inner[0], "deep")


async def test_a_timeout_that_has_not_passed_is_not_why_a_branch_was_stopped(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(Breached):
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", trio.sleep_forever, timeout=9)
            await trio.sleep(1)
            nursery.breach("enough")
    assert nursery.result["a"].status is BREACHED
    assert nursery.result["a"].reason == "enough"
