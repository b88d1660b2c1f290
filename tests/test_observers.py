"""Observers: what they are told, in what order, and that they disturb nothing."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    Budget,
    CancelRule,
    ParallelResult,
    ResourceLimits,
    StepResult,
    current_branch,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps._readings import Figures
from trio_parallel_steps.abc import Observer
from trio_parallel_steps.pressure import measured_by

Event = tuple[object, ...]
SKIPPED = BranchStatus.SKIPPED

HOOKS = [name for name in vars(Observer) if not name.startswith("_")]


class Diary(Observer):
    """Notes everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def step_opened(self, step: BranchNursery) -> None:
        self.events.append(("opened", step.name))

    def branch_queued(self, branch: Branch[Any]) -> None:
        self.events.append(("queued", branch.key, branch.status.value))

    def branch_started(self, branch: Branch[Any]) -> None:
        self.events.append(("started", branch.key, branch.status.value))

    def branch_progressed(self, branch: Branch[Any], done: float, total: float | None) -> None:
        self.events.append(("progressed", branch.key, done, total))

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        assert branch.status is result.status
        self.events.append(("ended", branch.key, result.status.value))

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self.events.append(("cancel", branch.key, reason))

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        assert limiter.total_tokens == new
        self.events.append(("limit", old, new, reason))

    def usage_changed(self, budget: Budget) -> None:
        self.events.append(("usage", budget.used()))

    def breached(self, step: BranchNursery, reason: str) -> None:
        self.events.append(("breached", step.name, reason))

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        assert step.result is result
        self.events.append(("closed", step.name, result.success))

    def told(self, *hooks: str) -> list[Event]:
        return [event for event in self.events if event[0] in hooks]


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def fail() -> None:
    await trio.sleep(1)
    raise ValueError("no")


# ---------------------------------------------------------------- what they are told


async def test_the_life_of_a_step(diary: Diary, autojump_clock: MockClock) -> None:
    await run_branches(
        {"a": lambda: trio.sleep(1), "b": fail}, 1, policy=COLLECT, observers=[diary], name="s"
    )
    assert diary.events == [
        ("opened", "s"),
        ("queued", "a", "queued"),
        ("queued", "b", "queued"),
        ("started", "a", "running"),
        ("ended", "a", "succeeded"),
        ("started", "b", "running"),
        ("ended", "b", "failed"),
        ("closed", "s", False),
    ]


async def test_cancellations_are_told_before_the_endings(
    diary: Diary, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(1, observers=[diary]) as nursery:
        nursery.start_soon("a", trio.sleep_forever)
        nursery.start_soon("b", trio.sleep_forever)
        await wait_all_tasks_blocked()
        nursery.cancel("b", "why b")
        nursery.cancel("a", "why a")
        nursery.cancel("a", "not told again")
    assert diary.told("cancel", "ended") == [
        ("cancel", "b", "why b"),
        ("ended", "b", "skipped"),
        ("cancel", "a", "why a"),
        ("ended", "a", "cancelled"),
    ]


async def test_cancellations_by_a_rule_are_told(diary: Diary, autojump_clock: MockClock) -> None:
    rule = CancelRule("high", "low")
    async with open_branch_nursery(1, cancel_rules=[rule], observers=[diary]) as nursery:
        nursery.start_soon("high", trio.sleep, 1)
        nursery.start_soon("low", trio.sleep, 1)
    assert diary.told("cancel") == [("cancel", "low", "'high' succeeded: 'high' cancels 'low'")]


async def test_cancellations_by_a_satisfied_policy_are_told(
    diary: Diary, autojump_clock: MockClock
) -> None:
    async with open_branch_nursery(2, policy=FIRST_SUCCESS, observers=[diary]) as nursery:
        nursery.start_soon("quick", trio.sleep, 1)
        nursery.start_soon("slow", trio.sleep, 9)
    assert diary.told("cancel") == [("cancel", "slow", "policy satisfied by 'quick'")]


async def test_no_other_stop_is_told_as_a_breach(diary: Diary, autojump_clock: MockClock) -> None:
    async def fail() -> None:
        raise OSError

    with pytest.raises(BranchErrors):
        await run_branches({"a": fail, "b": trio.sleep_forever}, observers=[diary])
    await run_branches({"a": trio.sleep_forever}, observers=[diary], move_on_after=1)
    await run_branches({"a": lambda: trio.sleep(1)}, policy=FIRST_SUCCESS, observers=[diary])
    assert diary.told("breached") == []


async def test_a_breach_is_told_once_before_the_endings_it_causes(
    diary: Diary, autojump_clock: MockClock
) -> None:
    with pytest.raises(Breached):
        async with open_branch_nursery(1, observers=[diary], name="s") as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            nursery.start_soon("b", trio.sleep_forever)
            await wait_all_tasks_blocked()
            nursery.breach("enough")
            nursery.breach("again")
    assert diary.told("breached", "ended", "closed") == [
        ("breached", "s", "enough"),
        ("ended", "b", "skipped"),
        ("ended", "a", "breached"),
        ("closed", "s", False),
    ]


async def test_a_switch_tells_the_observers_of_each_step(
    diary: Diary, autojump_clock: MockClock
) -> None:
    switch = Breach()

    async def step(name: str) -> None:
        with pytest.raises(Breached):
            await run_branches(
                {"a": trio.sleep_forever}, breach=switch, observers=[diary], name=name
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(step, "one")
        nursery.start_soon(step, "two")
        await wait_all_tasks_blocked()
        switch.trip("enough")
    told = diary.told("breached")
    assert sorted(map(str, told)) == [
        "('breached', 'one', 'enough')",
        "('breached', 'two', 'enough')",
    ]


async def test_progress_is_told(diary: Diary, autojump_clock: MockClock) -> None:
    async def work() -> None:
        current_branch().report(1, 3)
        await trio.sleep(1)
        current_branch().report(2)

    async with open_branch_nursery(observers=[diary]) as nursery:
        branch = nursery.start_soon("a", work)
    branch.report(3)  # it has ended: nobody hears of it
    assert diary.told("progressed") == [("progressed", "a", 1, 3), ("progressed", "a", 2, None)]


async def test_a_changed_limit_is_told_to_every_open_step_that_uses_it(
    diary: Diary, autojump_clock: MockClock
) -> None:
    limiter = BranchLimiter(2)
    other, closed, unrelated = Diary(), Diary(), Diary()
    await run_branches({}, limiter, observers=[closed])
    async with (
        open_branch_nursery(limiter, observers=[diary]),
        open_branch_nursery(limiter, observers=[other]),
        open_branch_nursery(2, observers=[unrelated]),
    ):
        limiter.total_tokens = 5
        limiter.total_tokens = 5  # no change
        limiter.total_tokens = 1
    expected = [("limit", 2, 5, "total_tokens was set"), ("limit", 5, 1, "total_tokens was set")]
    assert diary.told("limit") == other.told("limit") == expected
    assert closed.told("limit") == unrelated.told("limit") == []


async def test_what_is_submitted_after_a_stop_is_queued_and_ended(
    diary: Diary, autojump_clock: MockClock
) -> None:
    with pytest.raises(Breached):
        async with open_branch_nursery(observers=[diary]) as nursery:
            nursery.breach("enough")
            nursery.start_soon("late", trio.sleep_forever)
    assert [event[:2] for event in diary.told("queued", "started", "ended")] == [
        ("queued", "late"),
        ("ended", "late"),
    ]


async def test_all_observers_are_told_in_their_order() -> None:
    told: list[str] = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def branch_queued(self, branch: Branch[Any]) -> None:
            told.append(self.name)

    await run_branches({"a": trio.lowlevel.checkpoint}, observers=[Named("one"), Named("two")])
    assert told == ["one", "two"]


async def test_an_observer_need_not_override_anything() -> None:
    async with open_branch_nursery(1, observers=[Observer()]) as nursery:
        nursery.start_soon("a", trio.lowlevel.checkpoint)
        nursery.start_soon("b", trio.lowlevel.checkpoint)
        nursery.cancel("b")
        nursery.limiter.total_tokens = 2
        await nursery["a"].wait()
        nursery["a"].report(1)
    assert nursery.result["a"].success
    with pytest.raises(Breached):
        async with open_branch_nursery(observers=[Observer()]) as nursery:
            nursery.breach("enough")


# ---------------------------------------------------------------- observers that act


class Acting(Diary):
    """Does something at one of the hooks, and keeps a diary."""

    def __init__(self, hook: str, act: Callable[[Branch[Any]], object]) -> None:
        super().__init__()
        setattr(self, hook, self._acting(getattr(self, hook), act))

    def _acting(
        self, note: Callable[..., None], act: Callable[[Branch[Any]], object]
    ) -> Callable[..., None]:
        def hook(branch: Branch[Any], *args: Any) -> None:
            note(branch, *args)
            act(branch)

        return hook


async def test_what_an_observer_causes_is_told_after_the_current_event(
    autojump_clock: MockClock,
) -> None:
    first = Acting("branch_queued", lambda branch: branch.cancel("unwanted"))
    second = Diary()
    async with open_branch_nursery(observers=[first, second]) as nursery:
        nursery.start_soon("a", trio.sleep_forever)
    expected: list[Event] = [
        ("queued", "a", "queued"),
        ("cancel", "a", "unwanted"),
        ("ended", "a", "skipped"),
    ]
    assert first.told("queued", "cancel", "ended") == expected
    # The second is told of the same events in the same order; the state has moved on.
    assert [event[:2] for event in second.told("queued", "cancel", "ended")] == [
        event[:2] for event in expected
    ]


async def test_an_observer_may_breach_as_a_branch_is_queued(autojump_clock: MockClock) -> None:
    limiter = BranchLimiter(1)
    nursery: BranchNursery
    observer = Acting("branch_queued", lambda branch: nursery.breach("enough"))
    with pytest.raises(Breached):
        async with open_branch_nursery(limiter, observers=[observer]) as nursery:
            nursery.start_soon("a", trio.sleep_forever)
            nursery.start_soon("b", trio.sleep_forever)
    assert nursery.result.with_status(SKIPPED) == ["a", "b"]
    assert [event[1] for event in observer.told("ended")] == ["a", "b"]
    assert limiter.statistics().tasks_waiting == 0
    assert nursery.statistics().ended == 2


async def test_an_observer_may_submit_as_a_branch_ends(autojump_clock: MockClock) -> None:
    nursery: BranchNursery

    def again(branch: Branch[Any]) -> None:
        ended = nursery.statistics().ended
        if ended < 4:
            nursery.start_soon(ended, trio.lowlevel.checkpoint)

    observer = Acting("branch_ended", again)
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        nursery.start_soon(0, trio.lowlevel.checkpoint)
    assert list(nursery.result) == [0, 1, 2, 3]
    assert nursery.result.success


async def test_an_observer_may_set_priorities_as_branches_are_queued(
    autojump_clock: MockClock,
) -> None:
    def prioritise(branch: Branch[Any]) -> None:
        branch.priority = 5 if branch.key in ("c", "d") else 1

    observer = Acting("branch_queued", prioritise)
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        for key in "abcd":
            nursery.start_soon(key, trio.sleep, 1)
    assert list(nursery.result.completion_order) == ["c", "d", "a", "b"]


async def test_an_observer_may_cancel_as_a_branch_starts(autojump_clock: MockClock) -> None:
    observer = Acting("branch_started", lambda branch: branch.cancel("unwanted"))
    async with open_branch_nursery(1, observers=[observer]) as nursery:
        nursery.start_soon("a", trio.sleep_forever)
        nursery.start_soon("b", trio.sleep_forever)
    assert nursery.result.with_status(BranchStatus.CANCELLED) == ["a", "b"]


async def test_a_breach_by_one_that_hears_of_a_cancel_does_not_change_its_cause(
    autojump_clock: MockClock,
) -> None:
    nursery: BranchNursery
    observer = Acting("cancel_requested", lambda branch: nursery.breach("enough"))
    with pytest.raises(Breached):
        async with open_branch_nursery(1, observers=[observer]) as nursery:
            for key in "abc":
                nursery.start_soon(key, trio.sleep_forever)
            await wait_all_tasks_blocked()
            nursery.cancel("b", "not needed")
    reasons = {key: ended.reason for key, ended in nursery.result.items()}
    assert reasons == {"a": "enough", "b": "not needed", "c": "enough"}


async def test_a_hook_is_called_from_within_the_call_that_causes_it(
    autojump_clock: MockClock,
) -> None:
    diary = Diary()
    async with open_branch_nursery(1, observers=[diary]) as nursery:
        nursery.start_soon("a", trio.sleep_forever)
        assert diary.told("queued")
        nursery.cancel("a")
        assert diary.told("cancel")
        assert diary.told("ended")


# ---------------------------------------------------------------- observers that raise


class Broken(Observer):
    def __init__(self, hook: str) -> None:
        self.calls = 0
        setattr(self, hook, self._raise)

    def _raise(self, *args: object) -> None:
        self.calls += 1
        raise ZeroDivisionError("the observer's own")

    def __repr__(self) -> str:
        return "<Broken>"


class Processors:
    """Are busy from the third second on."""

    name = "processors"
    every = 0.0

    def __init__(self) -> None:
        self._busy_at = trio.current_time() + 3

    def read(self) -> Figures:
        return {"cpu_percent": 100.0 if trio.current_time() >= self._busy_at else 1.0}


async def every_event(*observers: Observer) -> BranchNursery:
    """A program in which each hook is called at least twice, but those of the step."""
    limiter, budget = BranchLimiter(1), Budget()
    limits = ResourceLimits(max_cpu_percent=50)
    with measured_by(Processors()), pytest.raises(Breached, match="enough"):
        async with open_branch_nursery(
            limiter, budget=budget, observers=observers, resources=limits
        ) as nursery:

            async def work() -> str:
                current_branch().report(1)
                current_branch().report(2)
                await trio.sleep(1)
                return "done"

            nursery.start_soon("a", work)
            nursery.start_soon("b", trio.sleep, 1)
            nursery.start_soon("c", trio.sleep_forever)
            nursery.start_soon("d", trio.sleep_forever)
            await trio.sleep(1.5)
            limiter.total_tokens = 2
            limiter.total_tokens = 3
            budget.spend(usd=1)
            budget.spend(usd=1)
            nursery.cancel("c")
            nursery.cancel("d")
            await trio.sleep(3)
            nursery.breach("enough")
    return nursery


@pytest.mark.parametrize("hook", HOOKS)
async def test_one_that_raises_is_reported_once_and_dropped(
    hook: str, autojump_clock: MockClock
) -> None:
    broken, diary = Broken(hook), Diary()
    with pytest.warns(RuntimeWarning, match="is told no more") as caught:
        nursery = await every_event(broken, diary)
    assert broken.calls == 1
    (warning,) = caught
    why = "raised ZeroDivisionError: the observer's own: it is told no more"
    assert str(warning.message) == f"{hook}() of <Broken> {why}"
    assert isinstance(warning.source, ZeroDivisionError)
    assert nursery.result["a"].output == "done"
    assert nursery.result["b"].success
    alone = Diary()
    await every_event(alone)
    assert diary.events == alone.events


@pytest.mark.parametrize("hook", HOOKS)
async def test_where_warnings_are_errors_it_is_logged_and_disturbs_nothing(
    hook: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    broken = Broken(hook)
    with warnings.catch_warnings(), caplog.at_level(logging.ERROR, "trio_parallel_steps"):
        warnings.simplefilter("error")
        nursery = await every_event(broken)
    assert broken.calls == 1
    (record,) = caplog.records
    assert record.name.startswith("trio_parallel_steps.")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert "is told no more" in caplog.text
    assert nursery.result["a"].output == "done"


async def test_one_that_was_dropped_from_a_step_is_told_by_the_next(
    autojump_clock: MockClock,
) -> None:
    broken = Broken("branch_queued")
    for calls in (1, 2):
        with pytest.warns(RuntimeWarning, match="is told no more"):
            await run_branches({"a": trio.lowlevel.checkpoint}, observers=[broken])
        assert broken.calls == calls


async def test_an_observer_that_raises_beside_an_error_hides_none(
    autojump_clock: MockClock,
) -> None:
    with (
        pytest.warns(RuntimeWarning, match="is told no more"),
        pytest.raises(BranchErrors) as caught,
    ):
        await run_branches({"a": fail}, observers=[Broken("branch_ended")])
    assert [str(exc) for exc in caught.value.exceptions] == ["no"]


async def test_without_observers_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def tell(*args: object) -> None:
        raise AssertionError("told")

    monkeypatch.setattr("trio_parallel_steps._announce.Announcer.tell", tell)
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("a", trio.sleep, 1)
        nursery.start_soon("b", trio.sleep, 1)
        nursery.cancel("b")
    assert nursery.result["a"].success


async def test_an_observer_is_let_go_with_its_step(autojump_clock: MockClock) -> None:
    diary = Diary()
    await run_branches({"a": trio.lowlevel.checkpoint}, observers=[diary])
    gc.collect()
    holders = [o for o in gc.get_referrers(diary) if type(o).__module__.startswith("trio_parallel")]
    assert holders == []


async def test_one_that_hears_of_a_stop_may_cancel_what_is_still_queued(
    autojump_clock: MockClock,
) -> None:
    """A satisfied policy tells the running ones first: what an observer does then comes before it
    reaches the queued."""
    nursery: BranchNursery
    observer = Acting("cancel_requested", lambda branch: nursery.cancel("queued", "by me"))
    async with open_branch_nursery(2, policy=FIRST_SUCCESS, observers=[observer]) as nursery:
        nursery.start_soon("wins", trio.sleep, 1)
        nursery.start_soon("runs", trio.sleep_forever)
        nursery.start_soon("queued", trio.sleep_forever)
    assert nursery.result["queued"].reason == "by me"
    assert nursery.limiter.statistics().tasks_waiting == 0


async def test_what_is_submitted_after_a_satisfied_policy_was_stopped_by_it(
    autojump_clock: MockClock,
) -> None:
    told = []

    def cancel_late(branch: Branch[Any]) -> None:
        if branch.key == "late":
            told.append(branch.cancel("by me"))

    observer = Acting("branch_queued", cancel_late)
    async with open_branch_nursery(policy=FIRST_SUCCESS, observers=[observer]) as nursery:
        nursery.start_soon("wins", trio.sleep, 0)
        await wait_all_tasks_blocked()
        nursery.start_soon("late", trio.sleep_forever)
    assert told == [False]
    assert nursery.result["late"].reason == "policy satisfied by 'wins'"
    assert nursery.limiter.statistics().tasks_waiting == 0
