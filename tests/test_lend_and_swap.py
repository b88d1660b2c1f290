"""The fifteen rules of lending and swapping, each by the shortest program that shows it."""

from __future__ import annotations

import math

import pytest

from fakes import Fake, FakeWait
from trio_parallel_steps import BranchStatus
from trio_parallel_steps._records import Cause

RUNNING = BranchStatus.RUNNING

# ---------------------------------------------------------------- 1. pools and chains


def test_a_branch_takes_a_token_of_its_pool_and_of_all_around_it() -> None:
    fake = Fake()
    outer = fake.step(9)
    outer.start("a")
    middle = outer.nest("a", 5)
    middle.start("b")
    inner = middle.nest("b", 2)
    inner.start("x", "y", "z")
    assert list(inner.running) == ["x", "y"]
    assert [step.pool.used for step in (inner, middle, outer)] == [2, 3, 4]
    assert [step.pool.waiting for step in (inner, middle, outer)] == [1, 1, 1]
    for key in "xyz":
        inner.end(key)
    assert [step.pool.used for step in (inner, middle, outer)] == [0, 1, 2]


def test_a_sub_cap_and_the_cap_around_it_hold_both() -> None:
    fake = Fake()
    outer = fake.step(3)
    outer.start("a", "b")
    inner = outer.nest("a", 2)
    inner.start("x", "y", "z")
    assert list(inner.running) == ["x"]  # the cap around it
    outer.end("b")
    assert list(inner.running) == ["x", "y"]
    outer.core.pool.set_cap(9)
    fake.checkpoint()
    assert list(inner.running) == ["x", "y"]  # its own


def test_none_is_the_pool_that_the_branch_runs_on() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    inner = outer.nest("a")
    inner.start("x", "y")
    assert not inner.running
    inner.leave()
    assert list(inner.running) == ["x"]
    inner.end("x")
    inner.end("y")
    assert outer.holds("a")
    outer.end("a")
    assert fake.is_idle()


def test_another_pool_opts_out() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    inner = outer.nest("a", fake.pool(2))
    inner.start("x", "y")
    assert list(inner.running) == ["x", "y"]
    assert outer.pool.used == 1


# ---------------------------------------------------------------- 2. what fits


def test_a_weight_takes_as_many_tokens() -> None:
    step = Fake().step(5)
    step.start("a", weight=3)
    step.start("b", weight=3)
    step.start("c", weight=2)
    assert list(step.running) == ["a"]
    step.end("a")
    assert list(step.running) == ["b", "c"]
    assert step.pool.used == 5


def test_a_weight_above_the_cap_runs_alone() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a")
    step.start("heavy", weight=5)
    step.start("b")
    assert list(step.running) == ["a"]
    step.end("a")
    assert list(step.running) == ["heavy"]
    assert step.pool.used == 5
    step.end("heavy")
    assert list(step.running) == ["b"]
    step.end("b")
    assert fake.is_idle()


def test_who_resumes_must_fit_the_cap_as_it_is_now() -> None:
    step = Fake().step(3)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    step.pool.set_cap(1)
    step.end("b")
    assert not wait.goes_on  # c has the only token
    step.end("c")
    assert wait.goes_on


def test_a_cap_shrunk_and_grown_while_parked_is_the_new_one() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", "b")
    wait = step.wait("a", step["b"])
    step.pool.set_cap(1)
    step.start("c")
    assert list(step.running) == ["a", "b"]
    step.pool.set_cap(3)
    fake.checkpoint()
    assert list(step.running) == ["a", "b", "c"]
    step.end("b")
    assert wait.goes_on
    assert step.pool.used == 2


# ---------------------------------------------------------------- 3. all at once, or nothing


def test_nobody_waits_with_a_part_of_it() -> None:
    fake = Fake()
    outer = fake.step(2)
    outer.start("a", "b")
    inner = outer.nest("a", 1)
    inner.start("x")
    assert (inner.pool.used, inner.pool.waiting) == (0, 1)
    assert outer.pool.used == 2
    outer.end("b")
    assert (inner.pool.used, inner.pool.waiting) == (1, 0)


def test_a_weight_is_granted_whole() -> None:
    step = Fake().step(3)
    step.start("a", "b")
    step.start("heavy", weight=2)
    assert step.pool.used == 2
    step.end("a")
    assert list(step.running) == ["b", "heavy"]
    assert step.pool.used == 3


# ---------------------------------------------------------------- 4. lending and asking back


def test_a_wait_lends_the_weight_in_the_whole_chain() -> None:
    fake = Fake()
    outer = fake.step(4)
    outer.start("a")
    inner = outer.nest("a", 3)
    inner.start("x", weight=2)
    inner.start("y")
    assert (inner.pool.used, outer.pool.used) == (3, 4)
    wait = inner.wait("x", inner["y"])
    assert (inner.pool.used, outer.pool.used) == (1, 2)
    inner.end("y")
    assert wait.goes_on
    assert (inner.pool.used, outer.pool.used) == (2, 3)


def test_the_first_of_two_waits_lends_and_the_last_asks_back() -> None:
    step = Fake().step(3)
    step.start("a", "b", "c")
    one, other = step.wait("a", step["b"]), step.wait("a", step["c"])
    assert step.pool.used == 2
    step.end("b")
    assert one.goes_on  # at once, and uncounted
    assert not step.holds("a")
    assert step.pool.used == 1
    step.end("c")
    assert other.goes_on
    assert step.holds("a")
    assert step.pool.used == 1


def test_what_is_parked_is_not_in_flight() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    inner = outer.nest("a")
    inner.submit("x")
    inner.leave()
    outer.start("b")
    inner.end("x")
    assert (outer.core.running, outer.core.peak) == (1, 1)
    assert inner.core.peak == 1


def test_two_that_are_parked_at_once_are_not_in_flight() -> None:
    step = Fake().step(1)
    step.start("a", "b", "c")
    first, second = step.wait("a", step["c"]), step.wait("b", step["c"])
    assert list(step.running) == ["a", "b", "c"]
    assert (step.core.running, step.core.parked, step.core.peak) == (3, 2, 1)
    step.end("c")
    assert first.goes_on
    assert (step.core.running, step.core.parked) == (2, 1)
    step.end("a")
    assert second.goes_on
    assert (step.core.running, step.core.parked, step.core.peak) == (1, 0, 1)


def test_the_peak_is_of_those_in_flight_and_never_falls() -> None:
    step = Fake().step(2)
    assert step.core.peak == 0
    step.start("a")
    step.submit("b")
    step.wait("a", step["b"])
    step.start("c")
    assert (step.core.running, step.core.parked, step.core.peak) == (3, 1, 2)
    step.submit("d")
    step.wait("b", step["d"])
    step.wait("c", step["d"])
    assert list(step.running) == ["a", "b", "c", "d"]
    assert (step.core.running, step.core.parked, step.core.peak) == (4, 3, 2)


def test_what_goes_on_again_counts_in_the_peak() -> None:
    step = Fake().step(2)
    step.start("a", "b")
    wait = step.wait("a", step["b"])
    step.start("c")
    assert step.core.peak == 2
    step.pool.set_cap(3)
    wait.set()
    assert step.core.peak == 3


# ---------------------------------------------------------------- 5. a wait begun while resuming


def test_a_wait_begun_while_resuming_withdraws_the_request() -> None:
    step = Fake().step(1)
    step.start("a", "b", "c", "d")
    first = step.wait("a", step["b"])
    rival = step.wait("b", step["c"])
    rival.set()  # c runs: b resumes
    second = step.wait("a", step["d"])
    first.set()
    assert first.goes_on
    assert step.is_resuming("b")
    assert step.pool.waiting == 2  # b and d
    third = step.wait("b", step["d"])
    assert rival.goes_on
    assert not step.is_resuming("b")
    assert step.pool.waiting == 1
    step.end("c")
    step.end("d")
    assert third.goes_on + second.goes_on == 1


# ---------------------------------------------------------------- 6. who outlives its branch


def test_a_wait_of_a_task_that_has_outlived_its_branch_asks_for_nothing() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", "b")
    wait = step.wait("a", step["b"])
    assert step.pool.used == 1
    step.end("a")
    assert step.pool.used == 1  # it had lent it
    step.end("b")
    assert wait.goes_on
    assert fake.is_idle()


def test_it_can_end_while_it_waits_for_its_token() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    other = step.wait("b", step["c"])
    other.set()
    assert step.is_resuming("b")
    step.end("b")
    assert other.goes_on
    assert step.is_resuming("a")
    assert not wait.goes_on
    step.end("a")
    assert wait.goes_on
    step.end("c")
    assert (step.core.parked, step.core.running) == (0, 0)
    assert fake.is_idle()


def test_a_step_that_outlives_its_branch_takes_what_comes_late() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("a")
    nested = step.nest("a")
    nested.start("x")
    nested.leave()
    step.end("a")
    nested.report("x", "value")
    nested.submit("y")  # before the block has gone on
    fake.checkpoint()
    assert list(nested.running) == ["y"]
    nested.end("y")
    assert (step.core.parked, step.core.running) == (0, 0)
    assert fake.is_idle()


def test_who_waits_in_a_step_that_outlives_its_branch_closes_no_circle() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", "b")
    nested = step.nest("a", fake.pool(1))
    nested.start("x")
    step.end("a")
    wait = nested.wait("x", step["b"])
    assert not nested.holds("x")
    step.end("b")
    assert wait.goes_on
    nested.end("x")
    assert fake.is_idle()


# ---------------------------------------------------------------- 7. order


def test_resumers_come_first_first_come_first_served() -> None:
    step = Fake().step(1)
    step.start("a", "b", "c")
    one = step.wait("a", step["c"])
    other = step.wait("b", step["c"])
    step.start("urgent", priority=9)
    other.set()
    one.set()
    step.end("c")
    assert (other.goes_on, one.goes_on) == (True, False)
    step.end("b")
    assert one.goes_on
    step.end("a")
    assert list(step.running) == ["urgent"]


def test_then_priority_then_depth_then_arrival() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    outer.submit("first", "second")
    outer.submit("urgent", priority=1)
    inner = outer.nest("a")
    inner.submit("deep")
    inner.leave()
    order = []
    while running := [*outer.running, *inner.running]:
        key = next(key for key in running if key != "a" or outer.holds("a"))
        order.append(key)
        (inner if key == "deep" else outer).end(key)
    assert order == ["urgent", "deep", "a", "first", "second"]


# ---------------------------------------------------------------- 8. heads


def test_nothing_behind_a_head_is_granted() -> None:
    step = Fake().step(3)
    step.start("a", "b")
    step.start("heavy", weight=2)
    step.start("light")  # it would fit
    assert list(step.running) == ["a", "b"]
    step.end("a")
    assert list(step.running) == ["b", "heavy"]
    step.end("b")
    assert list(step.running) == ["heavy", "light"]


def test_one_that_does_not_fit_below_is_no_head_above() -> None:
    fake = Fake()
    outer = fake.step(4)
    outer.start("a")
    inner = outer.nest("a", 2)
    inner.start("x")
    inner.start("heavy", priority=9, weight=2)
    outer.start("b")
    assert list(outer.running) == ["a", "b"]
    inner.end("x")
    assert list(inner.running) == ["heavy"]


def test_a_head_of_a_sub_cap_holds_up_nobody_outside_of_it() -> None:
    fake = Fake()
    outer = fake.step(9)
    outer.start("a")
    inner = outer.nest("a", 2)
    inner.start("x")
    inner.start("heavy", weight=2)
    inner.start("light")
    outer.start("b")
    assert list(inner.running) == ["x"]
    assert list(outer.running) == ["a", "b"]


# ---------------------------------------------------------------- 9. gates


def test_a_pause_of_the_pool_does_not_hold_who_resumes() -> None:
    step = Fake().step(1)
    step.start("a", "b")
    wait = step.wait("a", step["b"])
    step.submit("c")
    step.pool.set_paused("memory")
    step.end("b")
    assert wait.goes_on
    step.end("a")
    assert not step.running
    step.pool.set_paused(None)
    step.fake.checkpoint()
    assert list(step.running) == ["c"]


def test_nor_one_that_waits_its_turn_in_a_paused_pool() -> None:
    step = Fake().step(1)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    other = step.wait("b", step["c"])
    step.pool.set_paused("memory")
    wait.set()
    other.set()
    step.end("c")
    assert (wait.goes_on, other.goes_on) == (True, False)
    step.end("a")
    assert other.goes_on


def test_nor_does_a_pause_of_its_own_step() -> None:
    step = Fake().step(1)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    step.core.pause("wait")
    wait.set()
    step.end("b")
    assert wait.goes_on
    assert list(step.running) == ["a"]


def test_a_pause_of_a_step_does_not_hold_steps_nested_in_it() -> None:
    outer = Fake().step(2)
    outer.start("a")
    outer.core.pause("wait")
    outer.start("b")
    inner = outer.nest("a")
    inner.start("x")
    assert list(inner.running) == ["x"]
    assert list(outer.running) == ["a"]
    sub = outer.nest("a", 1)
    sub.submit("y")
    inner.end("x")
    assert list(sub.running) == ["y"]


def test_what_is_gated_is_no_head() -> None:
    fake = Fake()
    paused = fake.step(3)
    other = fake.step(paused.pool)
    other.start("a", "b")
    paused.core.pause("wait")
    paused.start("heavy", weight=2)
    other.start("c")
    assert list(other.running) == ["a", "b", "c"]
    other.end("a")
    paused.core.resume()
    fake.checkpoint()
    other.start("d")
    assert list(other.running) == ["b", "c"]


def test_a_head_that_is_paused_lets_those_behind_it_pass() -> None:
    fake = Fake()
    step = fake.step(3)
    other = fake.step(step.pool)
    other.start("a", "b")
    step.start("heavy", weight=2)
    other.start("c")
    assert list(other.running) == ["a", "b"]
    step.core.pause("wait")
    fake.checkpoint()
    assert list(other.running) == ["a", "b", "c"]


def test_a_head_in_a_sub_cap_that_is_paused_lets_those_behind_it_pass() -> None:
    fake = Fake()
    outer = fake.step(3)
    outer.start("a", "b")
    inner = outer.nest("a", 9)
    inner.start("heavy", weight=2)
    outer.start("c")
    assert list(outer.running) == ["a", "b"]
    inner.pool.set_paused("wait")
    fake.checkpoint()
    assert list(outer.running) == ["a", "b", "c"]


def test_a_paused_sub_cap_holds_its_own_only() -> None:
    fake = Fake()
    outer = fake.step(3)
    outer.start("a")
    inner = outer.nest("a", 2)
    inner.pool.set_paused("wait")
    inner.start("x")
    outer.start("b")
    assert not inner.running
    assert list(outer.running) == ["a", "b"]
    inner.pool.set_paused(None)
    fake.checkpoint()
    assert list(inner.running) == ["x"]


# ---------------------------------------------------------------- 10. hand-over


def test_the_last_nested_branch_hands_over_to_its_parent_before_other_resumers() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a", "b")
    inner = outer.nest("a")
    inner.submit("x")
    inner.leave()
    inner.end("x")
    assert outer.holds("a")
    inner = outer.nest("a")
    inner.submit("y")
    inner.leave()  # y is deeper than b
    assert list(inner.running) == ["y"]
    rival = fake.step(outer.pool)
    rival.submit("r", priority=1)
    early = FakeWait(outer["a"], inner.core)  # a second wait of a task of a's own
    early.set()
    assert early.goes_on
    inner.end("y")
    assert outer.holds("a")
    assert not rival.running


def test_hand_over_goes_before_one_that_has_asked_earlier() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("early", "a")
    earlier = step.wait("early", step["a"])
    inner = step.nest("a")
    inner.submit("x")
    inner.leave()
    earlier.set()  # it is queued while x runs
    inner.end("x")
    assert step.holds("a")
    assert not earlier.goes_on
    step.end("a")
    assert earlier.goes_on


def test_hand_over_from_a_sub_cap_too() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("early", "a")
    earlier = step.wait("early", step["a"])
    inner = step.nest("a", 1)
    inner.submit("x")
    inner.leave()
    earlier.set()
    inner.end("x")
    assert step.holds("a")
    assert not earlier.goes_on
    step.end("a")
    step.end("early")
    assert fake.is_idle()
    assert not step.pool._queue  # nor is anyone kept there


def test_no_hand_over_by_one_of_another_pool() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("big", weight=2)
    step.submit("a")
    earlier = step.wait("big", step["a"])
    step.start("c")
    inner = step.nest("a", fake.pool(1))
    inner.submit("x")
    inner.leave()
    earlier.set()
    inner.end("x")
    assert step.is_resuming("a")  # behind the big one, though it would fit
    step.end("c")
    assert earlier.goes_on


def test_no_hand_over_by_one_that_is_lighter() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("big", weight=3)
    step.submit("a", weight=2)
    earlier = step.wait("big", step["a"])
    inner = step.nest("a")
    inner.submit("x")
    inner.leave()
    earlier.set()
    inner.end("x")
    assert earlier.goes_on
    assert step.is_resuming("a")


def test_no_hand_over_by_one_that_has_closed_no_wait() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("early", "a")
    earlier = step.wait("early", step["a"])
    inner = step.nest("a")
    inner.submit("x")
    wait = step.wait("a", inner["x"])
    earlier.set()
    wait.set()  # cut short
    inner.end("x")
    assert earlier.goes_on
    assert step.is_resuming("a")


@pytest.mark.parametrize("sub_cap", [None, 2])
def test_no_hand_over_of_what_does_not_fit_any_more(sub_cap: int | None) -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", "b")
    inner = step.nest("a", sub_cap)
    inner.submit("x")
    inner.leave()
    step.pool.set_cap(1)
    inner.end("x")
    assert step.is_resuming("a")
    step.end("b")
    assert step.holds("a")


def test_no_hand_over_from_a_sub_cap_of_what_does_not_fit_around_it_any_more() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", "b")
    inner = step.nest("a", 1)
    inner.submit("x")
    inner.leave()
    step.pool.set_cap(1)
    inner.end("x")
    assert step.is_resuming("a")
    assert step.pool.used == 1
    step.end("b")
    assert step.holds("a")


def test_a_heavy_one_hands_on_what_its_parent_does_not_need() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("a")
    inner = step.nest("a")
    inner.submit("x", weight=3)
    inner.leave()
    step.start("b", "c", "d")
    inner.end("x")
    assert step.holds("a")
    assert list(step.running) == ["a", "b", "c"]


# ---------------------------------------------------------------- 11. stops


@pytest.mark.parametrize("how", ["cancelled", "breached", "timed out"])
def test_a_stopped_branch_waits_for_no_token_and_counts_until_it_has_ended(how: str) -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    other = step.wait("b", step["c"])
    wait.set()
    other.set()  # both resume, behind c
    if how == "cancelled":
        step.core.cancel(step["a"], "why")
    elif how == "breached":
        step.core.stop(Cause.BREACH, "why")
    else:
        step.core.timed_out(step["a"])
    assert wait.goes_on
    assert other.goes_on is (how == "breached")
    assert step.pool.used == 2 + other.goes_on
    for key in list(step.running):
        step.end(key, None if key == "a" or how == "breached" else "value")
    assert fake.is_idle()


def test_a_step_knows_of_a_stop_of_any_branch_around_it() -> None:
    step = Fake().step(3)
    step.start("a")
    inner = step.nest("a")
    inner.start("b")
    innermost = inner.nest("b")
    assert not innermost.core.is_stopped_further_out()
    step.core.cancel(step["a"], "why")
    assert inner.core.is_stopped_further_out()
    assert innermost.core.is_stopped_further_out()
    inner.end("b")
    assert not innermost.core.is_stopped_further_out()  # it has outlived its branch
    cleanup = step.nest("a")  # who opens one now, means it
    assert not cleanup.core.is_stopped_further_out()


def test_a_stopped_branch_that_goes_on_counts_with_its_weight() -> None:
    fake = Fake()
    step = fake.step(2)
    step.start("a", weight=2)
    step.start("b", "c")
    wait = step.wait("a", step["b"])
    assert list(step.running) == ["a", "b", "c"]
    wait.set()
    step.core.cancel(step["a"], "why")
    assert wait.goes_on
    assert step.pool.used == 4
    step.end("a", None)
    assert step.pool.used == 2


@pytest.mark.parametrize("how", ["cancelled", "breached"])
def test_one_that_is_told_to_stop_while_parked_goes_on_at_once_as_its_wait_ends(how: str) -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("a", "b", "c")
    wait = step.wait("a", step["b"])
    if how == "cancelled":
        step.core.cancel(step["a"], "why")
    else:
        step.core.stop(Cause.BREACH, "why")
    assert not wait.goes_on
    wait.set()  # cut short by the cancellation
    assert wait.goes_on
    assert step.pool.used == 2
    step.end("a", None)
    assert list(step.running) == ["b"]
    step.end("b")
    if how == "cancelled":
        step.end("c")
    assert fake.is_idle()


# ---------------------------------------------------------------- 12. a wait that is cut short


def test_a_wait_cut_short_takes_the_token_back_first() -> None:
    fake = Fake()
    step = fake.step(1)
    step.start("a", "b")
    wait = step.wait("a", step["b"])
    wait.set()  # though b has not ended
    assert not wait.goes_on
    step.end("b")
    assert wait.goes_on
    step.end("a")
    assert fake.is_idle()


# ---------------------------------------------------------------- 13. every wait of ours


def test_a_wait_for_the_next_ending_parks() -> None:
    fake = Fake()
    step = fake.step(1)
    other = fake.step(step.pool, name="other")
    step.start("a")
    other.submit("x", "y")
    wait = step.iterate("a", other)
    assert list(other.running) == ["x"]
    other.end("x")
    assert wait.goes_on
    assert step.holds("a")
    assert not other.running


# ---------------------------------------------------------------- 14. circles


def names(*keys: str) -> str:
    return "would wait for ever: " + " waits for ".join(map(repr, keys))


def test_a_branch_can_not_wait_for_itself() -> None:
    step = Fake().step(1)
    step.start("a")
    with pytest.raises(RuntimeError, match=names("a", "a") + "$"):
        step.wait("a", step["a"])
    assert step.holds("a")


def test_nor_for_an_ancestor() -> None:
    outer = Fake().step(9)
    outer.start("a")
    middle = outer.nest("a")
    middle.start("b")
    inner = middle.nest("b")
    inner.start("c")
    with pytest.raises(RuntimeError, match=names("a", "b", "c", "a") + "$"):
        inner.wait("c", outer["a"])


def test_nor_two_for_each_other() -> None:
    step = Fake().step(9)
    step.start("a", "b")
    step.wait("a", step["b"])
    with pytest.raises(RuntimeError, match=names("a", "b", "a") + "$"):
        step.wait("b", step["a"])


def test_nor_three_in_a_ring() -> None:
    step = Fake().step(9)
    step.start("a", "b", "c")
    step.wait("a", step["b"])
    step.wait("b", step["c"])
    with pytest.raises(RuntimeError, match=names("a", "b", "c", "a") + "$"):
        step.wait("c", step["a"])


def test_nor_for_one_that_iterates_over_its_own_step() -> None:
    fake = Fake()
    step, other = fake.step(9), fake.step(9, name="other")
    step.start("a")
    other.start("x")
    step.iterate("a", other)
    other.start("y")  # submitted later
    with pytest.raises(RuntimeError, match=names("a", "y", "a") + "$"):
        other.wait("y", step["a"])


def test_nor_iterate_over_a_step_that_waits_for_it() -> None:
    fake = Fake()
    step, other = fake.step(9), fake.step(9, name="other")
    step.start("a")
    other.start("x")
    other.wait("x", step["a"])
    with pytest.raises(RuntimeError, match=r"'x' waits for 'a' waits for the branches of 'other'$"):
        step.iterate("a", other)


def test_a_wait_for_one_that_waits_for_others_is_no_circle() -> None:
    step = Fake().step(9)
    step.start("a", "b", "c", "d")
    step.wait("a", step["b"])
    step.wait("a", step["c"])
    step.wait("b", step["d"])
    step.wait("c", step["d"])  # two ways to d
    step.end("d")
    assert step.holds("b")
    assert step.holds("c")


def test_a_wait_that_is_over_closes_no_circle() -> None:
    step = Fake().step(9)
    step.start("a", "b")
    step.wait("a", step["b"]).set()
    step.wait("b", step["a"])


# ---------------------------------------------------------------- 15. every event


def test_a_head_that_goes_lets_those_behind_it_pass() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("a", "b")
    step.start("heavy", weight=2)
    step.start("light")
    step.core.cancel(step["heavy"], "not needed")
    fake.checkpoint()
    assert list(step.running) == ["a", "b", "light"]


def test_a_head_that_is_put_behind_them_lets_others_pass() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("a", "b")
    step.start("heavy", weight=2)
    step.start("light")
    step.core.reorder(step["heavy"], -1)
    fake.checkpoint()
    assert list(step.running) == ["a", "b", "light"]


def test_a_head_that_one_who_is_stopped_leaves_no_room_for_lets_others_pass() -> None:
    fake = Fake()
    outer = fake.step(4)
    outer.start("a")
    outer.start("b", weight=2)
    inner = outer.nest("a", 3)
    inner.start("x")
    inner.leave()
    wait = inner.wait("x", outer["b"])
    inner.start("heavy", weight=3)
    outer.start("light")
    assert list(outer.running) == ["a", "b"]  # behind one who fits below
    inner.core.cancel(inner["x"], "not needed")
    wait.set()
    fake.checkpoint()
    assert list(outer.running) == ["a", "b", "light"]
    assert outer.pool.used == 4


def test_one_that_is_put_before_the_head_is_granted_if_it_fits() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("a", "b")
    step.start("heavy", weight=2)
    step.start("light")
    step.core.reorder(step["light"], 1)
    fake.checkpoint()
    assert list(step.running) == ["a", "b", "light"]


def test_one_event_may_grant_to_several() -> None:
    fake = Fake()
    step = fake.step(3)
    step.start("heavy", weight=3)
    step.start("a", "b", "c", "d")
    step.end("heavy")
    assert list(step.running) == ["a", "b", "c"]
    step.pool.set_cap(math.inf)
    fake.checkpoint()
    assert list(step.running) == ["a", "b", "c", "d"]


def test_a_sub_cap_that_is_grown_offers_more() -> None:
    fake = Fake()
    outer = fake.step(9)
    outer.start("a")
    inner = outer.nest("a", 1)
    inner.start("x", "y", "z")
    inner.pool.set_cap(3)
    fake.checkpoint()
    assert list(inner.running) == ["x", "y", "z"]


def test_what_was_reordered_in_a_sub_cap_is_offered_anew() -> None:
    fake = Fake()
    outer = fake.step(2)
    outer.start("a", "b")
    inner = outer.nest("a", 1)
    inner.submit("x", "y")
    outer.submit("c", priority=1)
    inner.core.reorder(inner["y"], 2)
    outer.end("b")
    assert list(inner.running) == ["y"]
    inner.end("y")
    assert list(outer.running) == ["a", "c"]
    inner.core.cancel(inner["x"], "gone")
    outer.end("c")
    assert fake.is_idle() is (not outer.running)


def test_a_parked_branch_that_ends_gives_nothing_back_twice() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a", "b")
    inner = outer.nest("a", 1)
    inner.submit("x")
    inner.leave()
    outer.end("a")  # a task of its own is still at the exit
    inner.end("x")
    assert list(outer.running) == ["b"]
    outer.end("b")
    assert fake.is_idle()


def test_a_block_that_has_outlived_its_branch_parks_nobody_again() -> None:
    """All had ended, then the branch around it; and one more comes before the block is left."""
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    inner = outer.nest("a")
    inner.submit("x")
    inner.leave()
    outer.end("a")
    inner.end("x")
    inner.submit("y")
    fake.checkpoint()
    assert list(inner.running) == ["y"]
    inner.end("y")
    assert fake.is_idle()


def test_one_that_comes_as_the_block_is_left_with_nothing_outstanding_parks_too() -> None:
    fake = Fake()
    outer = fake.step(1)
    outer.start("a")
    inner = outer.nest("a")
    inner.leave()
    assert outer.holds("a")  # there was nothing to wait for
    inner.submit("x")
    fake.checkpoint()
    assert list(inner.running) == ["x"]
    inner.end("x")
    assert outer.holds("a")
    outer.end("a")
    assert fake.is_idle()


def test_sub_caps_may_be_nested_deep() -> None:
    """What a grant takes grows with the depth, no faster, and it is no recursion."""
    fake = Fake()
    steps = [fake.step(1)]
    steps[0].start("a")
    for _ in range(400):
        steps.append(steps[-1].nest("a", 1))
        steps[-1].submit("a")
        steps[-1].leave()
    assert [step.holds("a") for step in steps] == [False] * 400 + [True]
    for step in reversed(steps):
        step.end("a")
    assert fake.is_idle()
