"""Guards: limits and their words, levels with hysteresis, and what memory lets in."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from allocators import Plan, at_once, in_steps, late, simulate
from trio_parallel_steps import Pressure, PressureAction, PressureLevel, ResourceLimits
from trio_parallel_steps._allowance import Allowance
from trio_parallel_steps._guards import ACTING, CPU, LAG, MEMORY, STALLS, Guard, Guards, Thresholds
from trio_parallel_steps._readings import Reading, Scope
from trio_parallel_steps._resources import check_resources

OK, HOLD, SHRINK, STOP, SHED = PressureLevel
GB = 1024.0


def host(used: float, limit: float = 16 * GB) -> Scope:
    return Scope("host", used, limit, is_host=True)


# ---------------------------------------------------------------- limits

AMOUNTS = ["max_memory_mb", "max_memory_percent", "max_cpu_percent", "max_loop_lag"]


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("value", [True, "1", [1]])
def test_an_amount_of_the_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"`{name}` must be a .*, or None, got "):
        ResourceLimits(**{name: value})


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_an_amount_of_the_wrong_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be a .*, or None, got "):
        ResourceLimits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_memory_percent", "max_cpu_percent"])
def test_no_more_than_all_of_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number > 0 and <= 100, or None, got 100.5"):
        ResourceLimits(**{name: 100.5})  # type: ignore[arg-type]
    assert getattr(ResourceLimits(**{name: 100}), name) == 100  # type: ignore[arg-type]


def test_an_action_is_one_of_three() -> None:
    with pytest.raises(TypeError, match="`action` must be a PressureAction, got 'shed'"):
        ResourceLimits(action="shed")  # type: ignore[arg-type]
    assert [action.value for action in PressureAction] == ["hold", "shed", "breach"]
    assert ResourceLimits().action is PressureAction.HOLD


def test_limits_are_values_by_keyword() -> None:
    assert ResourceLimits(max_memory_mb=1) == ResourceLimits(max_memory_mb=1)
    with pytest.raises(TypeError):
        ResourceLimits(1)  # type: ignore[call-arg]


def test_resources_are_limits_or_none() -> None:
    limits = ResourceLimits()
    assert check_resources(limits) is limits
    assert check_resources(None) is None
    with pytest.raises(TypeError, match="`resources` must be a ResourceLimits or None, got 1024"):
        check_resources(1024)  # type: ignore[arg-type]


# ---------------------------------------------------------------- levels


def levels(thresholds: Thresholds, *loads: float) -> list[PressureLevel]:
    guard = Guard(thresholds)
    return [guard.judge(load) for load in loads]


def test_memory_rises_through_all_levels() -> None:
    loads = [0.69, 0.70, 0.79, 0.80, 0.84, 0.85, 0.94, 0.95, 1.2]
    assert levels(MEMORY, *loads) == [OK, HOLD, HOLD, SHRINK, SHRINK, STOP, STOP, SHED, SHED]


def test_memory_falls_with_hysteresis() -> None:
    loads = [1.0, 0.94, 0.85, 0.84, 0.75, 0.74, 0.66, 0.65, 0.64]
    assert levels(MEMORY, *loads) == [SHED, SHED, SHED, STOP, STOP, HOLD, HOLD, HOLD, OK]


def test_from_any_level_straight_down() -> None:
    for high in (0.7, 0.8, 0.85, 0.95):
        assert levels(MEMORY, high, 0.1)[1] is OK


def test_shrink_ends_at_three_quarters_too() -> None:
    assert levels(MEMORY, 0.81, 0.76, 0.74) == [SHRINK, SHRINK, HOLD]


def test_lag_holds_at_its_limit_shrinks_at_twice_and_a_half_and_stops_at_twelve_times() -> None:
    lags = [19, 20, 49, 50, 249, 250, 51, 49, 39, 16, 14]
    expected = [OK, HOLD, HOLD, SHRINK, SHRINK, STOP, STOP, SHRINK, HOLD, HOLD, OK]
    assert levels(LAG, *(lag / 20 for lag in lags)) == expected


def test_cpu_holds_at_its_limit_alone() -> None:
    assert levels(CPU, 0.99, 1.0, 0.96, 0.94, 5.0) == [OK, HOLD, HOLD, OK, HOLD]


def test_an_action_comes_at_the_limit_itself() -> None:
    assert levels(ACTING, 0.89, 0.9, 1.0, 0.91, 0.85, 0.7) == [OK, HOLD, SHED, SHED, HOLD, OK]


def test_stalls() -> None:
    shares = [0.04, 0.05, 0.1, 0.25, 0.11, 0.09, 0.03, 0.01]
    assert levels(STALLS, *shares) == [OK, HOLD, SHRINK, STOP, STOP, SHRINK, HOLD, OK]


@given(
    st.sampled_from([MEMORY, STALLS, CPU, LAG, ACTING]),
    st.lists(st.floats(0, 20), min_size=1, max_size=30),
)
def test_a_level_is_between_what_is_entered_and_what_is_left(
    thresholds: Thresholds, loads: list[float]
) -> None:
    guard = Guard(thresholds)
    before = OK
    for load in loads:
        entered = max([n for n in range(1, 5) if load >= thresholds.enter[n - 1]], default=0)
        level = guard.judge(load)
        assert level >= entered
        if level > entered:  # kept, from a level that was reached before
            assert level <= before
            assert load >= thresholds.release[level - 1]
        before = level


# ---------------------------------------------------------------- what a reading means


def judged(limits: ResourceLimits, watches_memory: bool = False, **reading: Any) -> Pressure:
    return Guards(limits, watches_memory=watches_memory).judge(Reading(**reading))


def test_memory_against_the_users_limit() -> None:
    pressure = judged(ResourceLimits(max_memory_mb=1000), working_set_mb=812, host=host(2000))
    assert pressure.levels == {"memory": SHRINK, "memory stalls": OK}
    assert pressure.level is SHRINK
    assert pressure.reason == "memory: 812 of 1000 MB (max_memory_mb)"
    assert pressure.working_set_mb == 812
    assert pressure.memory_percent == pytest.approx(81.2)


def test_memory_against_a_cgroup_that_is_tighter() -> None:
    groups = (Scope("cgroup /a/b", 100, 1000), Scope("cgroup /a", 960, 1000))
    pressure = judged(ResourceLimits(max_memory_mb=1e5), working_set_mb=90, cgroups=groups)
    assert pressure.reason == "memory: 960 of 1000 MB (cgroup /a)"
    assert pressure.level is SHED
    assert pressure.memory_percent == 96


def test_what_others_hold_of_the_host_is_no_allowance_of_ours() -> None:
    limits = ResourceLimits(max_memory_mb=1e5)
    crowded = judged(limits, working_set_mb=100, host=host(900, 1000))
    assert crowded.level is OK  # 100 are ours, and 100 are available
    assert crowded.reason == "memory: 100 of 200 MB (host)"
    assert crowded.memory_percent == 90
    assert judged(limits, working_set_mb=800, host=host(900, 1000)).level is STOP


def test_the_host_counts_for_nothing_while_we_do_not_know_our_own() -> None:
    assert judged(ResourceLimits(max_memory_mb=1), host=host(999, 1000)).level is OK


def test_percent_is_of_the_tightest_and_counts_all_that_is_used() -> None:
    limits = ResourceLimits(max_memory_percent=50)
    pressure = judged(limits, working_set_mb=10, host=host(400, 1000))
    assert pressure.reason == "memory: 400 of 500 MB (50 % of host)"
    assert pressure.level is SHRINK
    group = Scope("cgroup /", 90, 200)
    pressure = judged(limits, working_set_mb=10, host=host(400, 1000), cgroups=(group,))
    assert pressure.reason == "memory: 90 of 100 MB (50 % of cgroup /)"


def test_memory_can_be_watched_without_a_limit() -> None:
    group = Scope("cgroup /", 75, 100)
    pressure = judged(ResourceLimits(), True, working_set_mb=10, cgroups=(group,))
    assert pressure.level is HOLD
    assert judged(ResourceLimits(), working_set_mb=10, cgroups=(group,)).levels == {}


def test_cpu() -> None:
    limits = ResourceLimits(max_cpu_percent=80)
    pressure = judged(limits, cpu_percent=92.4)
    assert pressure.levels == {"cpu": HOLD}
    assert pressure.reason == "cpu: 92 % of usable CPUs, limit 80 %"
    assert pressure.cpu_percent == 92.4
    assert judged(limits, cpu_percent=79).level is OK
    assert judged(ResourceLimits(max_cpu_percent=95), cpu_percent=92).level is OK


def test_loop_lag() -> None:
    pressure = judged(ResourceLimits(max_loop_lag=0.02), loop_lag=0.055)
    assert pressure.levels == {"loop lag": SHRINK}
    assert pressure.reason == "loop lag: 55 ms, limit 20 ms"
    assert pressure.loop_lag == 0.055
    assert judged(ResourceLimits(max_loop_lag=0.06), loop_lag=0.055).level is OK


def test_psi_beside_a_memory_limit_only() -> None:
    psi = {"memory full": 0.12, "cpu some": 0.99, "io full": 0.9}
    pressure = judged(ResourceLimits(max_memory_mb=1000), working_set_mb=1, psi=psi)
    assert pressure.levels == {"memory": OK, "memory stalls": SHRINK}
    assert pressure.reason == "memory stalls: 12% of the time"
    assert pressure.psi == psi
    assert judged(ResourceLimits(max_cpu_percent=50), psi=psi).level is OK
    assert judged(ResourceLimits(max_memory_mb=1000), psi={"cpu some": 1.0}).level is OK


def test_the_hardest_gives_the_reason_and_else_the_fullest() -> None:
    limits = ResourceLimits(max_memory_mb=100, max_loop_lag=0.02)
    pressure = judged(limits, working_set_mb=96, loop_lag=0.06)
    assert (pressure.level, pressure.reason[:6]) == (SHED, "memory")
    pressure = judged(limits, working_set_mb=10, loop_lag=0.01)
    assert (pressure.level, pressure.reason[:8]) == (OK, "loop lag")


def test_what_was_not_measured_holds_nothing() -> None:
    limits = ResourceLimits(
        max_memory_mb=1, max_memory_percent=1, max_cpu_percent=1, max_loop_lag=1
    )
    guards = Guards(limits)
    pressure = guards.judge(Reading())
    assert set(pressure.levels.values()) == {OK}
    assert pressure.reason == "nothing was measured"
    assert pressure.memory_percent is None
    assert guards.held_by() is None
    assert guards.held_by(5000) is None


def test_io_is_passed_on() -> None:
    assert judged(ResourceLimits(), io={"read": 1.0, "write": 2.0}).io == {
        "read": 1.0,
        "write": 2.0,
    }


# ---------------------------------------------------------------- what follows from it


@pytest.mark.parametrize("action", PressureAction)
def test_the_action_comes_at_the_end(action: PressureAction) -> None:
    guards = Guards(ResourceLimits(max_memory_mb=100, action=action))
    assert not guards.acts
    guards.judge(Reading(working_set_mb=94))
    assert not guards.acts
    guards.judge(Reading(working_set_mb=95))
    assert guards.acts is (action is not PressureAction.HOLD)


@pytest.mark.parametrize("action", [PressureAction.SHED, PressureAction.BREACH])
def test_with_an_action_cpu_and_lag_act_at_their_limits(action: PressureAction) -> None:
    guards = Guards(ResourceLimits(max_cpu_percent=50, max_loop_lag=0.1, action=action))
    assert guards.judge(Reading(cpu_percent=46, loop_lag=0.01)).levels["cpu"] is HOLD
    assert not guards.acts
    assert guards.judge(Reading(cpu_percent=1, loop_lag=0.1)).levels["loop lag"] is SHED
    assert guards.acts


def test_memory_is_back_below_three_quarters() -> None:
    guards = Guards(ResourceLimits(max_memory_mb=100, action=PressureAction.SHED))
    assert guards.is_memory_back
    for working_set, is_back in [(96, False), (84, False), (76, False), (74, True)]:
        guards.judge(Reading(working_set_mb=working_set))
        assert guards.is_memory_back is is_back
    assert Guards(ResourceLimits(max_cpu_percent=5)).is_memory_back


@pytest.mark.parametrize(
    ("limits", "reading", "seconds"),
    [
        ({"max_memory_mb": 100}, {"working_set_mb": 49}, 1.0),
        ({"max_memory_mb": 100}, {"working_set_mb": 50}, 0.1),
        ({"max_memory_mb": 100}, {"working_set_mb": 99}, 0.1),
        ({"max_cpu_percent": 50}, {"cpu_percent": 1}, 0.1),
        ({"max_loop_lag": 0.02}, {"loop_lag": 0}, 0.1),
    ],
)
def test_readings_are_wanted_often_near_a_limit(
    limits: dict[str, float], reading: dict[str, float], seconds: float
) -> None:
    guards = Guards(ResourceLimits(**limits))  # type: ignore[arg-type]
    assert guards.interval() == 0.1
    guards.judge(Reading(**reading))  # type: ignore[arg-type]
    assert guards.interval() == seconds


def test_readings_are_wanted_often_while_unreserved_branches_run() -> None:
    guards = Guards(ResourceLimits(max_memory_mb=1000))
    ticket = guards.admitted()
    guards.judge(Reading(working_set_mb=10))
    assert guards.interval() == 0.1
    guards.ended(ticket)
    guards.judge(Reading(working_set_mb=10))
    assert guards.interval() == 1.0


def test_hold_lets_in_what_has_reserved_and_stop_does_not() -> None:
    guards = Guards(ResourceLimits(max_memory_mb=1000))
    assert guards.held_by() is None
    guards.judge(Reading(working_set_mb=720))
    assert guards.held_by() == "memory"
    assert guards.held_by(100) is None
    assert guards.held_by(200) == "memory"  # does not fit
    guards.judge(Reading(working_set_mb=860))
    assert guards.held_by(1) == "memory"
    guards.judge(Reading(working_set_mb=800))
    assert guards.held_by(1) == "memory"  # still STOP
    guards.judge(Reading(working_set_mb=740))
    assert guards.held_by(1) is None


def test_another_guard_holds_what_has_reserved_too() -> None:
    guards = Guards(ResourceLimits(max_memory_mb=1000, max_cpu_percent=50))
    guards.judge(Reading(working_set_mb=10, cpu_percent=60))
    assert guards.held_by() == "cpu"
    assert guards.held_by(1) == "cpu"
    guards.judge(Reading(working_set_mb=10, cpu_percent=10))
    assert guards.held_by() is None


def test_without_a_memory_guard_only_reservations_count() -> None:
    guards = Guards(ResourceLimits(max_cpu_percent=50))
    guards.judge(Reading(working_set_mb=100, host=Scope("host", 100, 1000, is_host=True)))
    assert guards.held_by(700) is None
    ticket = guards.admitted(700)
    assert guards.held_by(100) == "memory"
    assert guards.held_by() is None
    guards.ended(ticket)
    assert guards.held_by(100) is None


def test_reservations_count_without_a_limit_of_the_users() -> None:
    guards = Guards(ResourceLimits(), watches_memory=True)
    guards.judge(Reading(working_set_mb=100, host=host(500, 1000)))
    assert guards.held_by(409) is None  # .85 of 600, less 100
    assert guards.held_by(411) == "memory"
    for _ in range(100):  # and nothing ramps up
        assert guards.held_by() is None
        guards.admitted()


# ---------------------------------------------------------------- the allowance


def measured(allowance: Allowance, seen: float, limit: float = 1000, at: float = 0.0) -> None:
    allowance.measured(at, seen, seen, 0.7 * limit - seen, 0.85 * limit - seen)


def test_a_reservation_counts_before_its_memory_is_seen_and_once_after() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    tickets = []
    while allowance.may_admit(100):
        tickets.append(allowance.admitted(100))
    assert len(tickets) == 8  # 50 + 8 * 100 <= 850
    measured(allowance, 450)  # half of it is taken
    assert not allowance.may_admit(1)
    measured(allowance, 850)
    assert not allowance.may_admit(1)
    allowance.ended(tickets.pop())
    assert not allowance.may_admit(1)  # its memory is not seen to be back
    measured(allowance, 750)
    assert allowance.may_admit(100)
    assert not allowance.may_admit(101)


def test_memory_that_no_one_has_promised_leaves_less() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    allowance.admitted(100)
    measured(allowance, 500)  # something else takes 350
    assert allowance.may_admit(350)
    allowance.admitted(300)
    assert allowance.may_admit(50)
    assert not allowance.may_admit(51)


def test_one_that_ended_at_once_leaves_its_place() -> None:
    allowance = Allowance()
    measured(allowance, 45)
    allowance.admitted(5)
    for _ in range(20):
        assert allowance.may_admit(800)
        ticket = allowance.admitted(800)
        assert not allowance.may_admit(1)
        allowance.ended(ticket)


def test_unreserved_ones_begin_with_one_for_each_gigabyte() -> None:
    for limit, first in [(1000, 1), (3 * GB, 2), (16 * GB, 11)]:
        allowance = Allowance()
        measured(allowance, 0, limit)
        admitted = 0
        while allowance.may_admit():
            allowance.admitted()
            admitted += 1
        assert admitted == first


def test_before_anything_is_measured_all_may_come() -> None:
    allowance = Allowance()
    for _ in range(50):
        assert allowance.may_admit()
        assert allowance.may_admit(1e9)
        allowance.admitted()


def test_the_window_doubles_as_whole_lives_are_known() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    for n in range(5):
        tickets = []
        while allowance.may_admit():
            tickets.append(allowance.admitted())
        assert len(tickets) == 2**n
        for ticket in tickets:
            allowance.ended(ticket)
        measured(allowance, 50)


def test_a_life_that_no_reading_saw_is_known_by_the_peak_alone() -> None:
    allowance = Allowance()
    allowance.measured(0, 50, None, 650, 800)
    allowance.ended(allowance.admitted())
    allowance.measured(0, 50, None, 650, 800)
    seen = allowance.admitted()
    assert not allowance.may_admit()
    allowance.measured(0, 50, None, 650, 800)
    allowance.ended(seen)
    allowance.measured(0, 50, None, 650, 800)
    allowance.admitted()
    assert allowance.may_admit()


def test_the_peak_between_two_readings_is_seen() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    allowance.ended(allowance.admitted())
    allowance.measured(0, 50, 450, 650, 800)
    allowance.admitted()
    assert not allowance.may_admit()  # two of 400 do not fit into 650


def test_while_memory_stands_still_the_window_grows_one_by_one() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    running = 0
    for n in range(31):
        measured(allowance, 50, at=n / 8)
        while allowance.may_admit():
            allowance.admitted()
            running += 1
    assert running == 11  # one reading sees them come, and two that they stand still


def test_while_memory_grows_it_does_not() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    allowance.admitted()
    for n in range(30):
        measured(allowance, 50 + 5 * n, at=n / 10)
        assert not allowance.may_admit()


def test_at_hold_the_window_shrinks_to_what_runs() -> None:
    allowance = Allowance()
    measured(allowance, 50, 100 * GB)
    tickets = [allowance.admitted() for _ in range(3)]
    measured(allowance, 50, 60)
    for ticket in tickets[1:]:
        allowance.ended(ticket)
    measured(allowance, 50, 100 * GB)
    allowance.admitted()
    allowance.admitted()
    assert not allowance.may_admit()


def test_what_has_been_needed_is_forgotten_in_the_end() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    first = allowance.admitted()
    measured(allowance, 500)
    allowance.ended(first)
    measured(allowance, 50)
    allowance.admitted()
    assert not allowance.may_admit()
    ended = 0
    while not allowance.may_admit():
        allowance.ended(allowance.admitted())
        ended += 1
        measured(allowance, 50)
    assert 20 < ended < 1000


def test_an_allowance_says_how_it_stands() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    allowance.admitted(20)
    assert repr(allowance) == "<Allowance: 1 run, 20 MB reserved, window 1, 0 MB each>"


# ---------------------------------------------------------------- whole steps

LIMITS = ResourceLimits(max_memory_mb=1024)
PLANTS = {
    "at once": at_once(50),
    "at once, for 0.3 s": at_once(50, 0.3),
    "at once, for 50 ms": at_once(50, 0.05),
    "at once, for 20 ms": at_once(50, 0.02),
    "after 50 ms": late(50, 0.05),
    "after 0.3 s": late(50, 0.3),
    "after 0.8 s": late(50, 0.8),
    "after 3 s": late(50, 3, 4),
    "in steps of 0.1 s": in_steps(50, 5, 0.1, 1),
    "200 MB each": at_once(200),
}


def reserving(plan: Plan, memory_mb: float) -> Plan:
    return Plan(plan.holds, plan.lasts, memory_mb)


@pytest.mark.parametrize("name", PLANTS)
def test_a_step_stays_within_its_memory(name: str) -> None:
    """A hundred branches, five times too many for the limit at once; all of them end."""
    plan = PLANTS[name]
    ran = simulate([plan] * 100, LIMITS)
    assert ran.peak_mb <= 1024
    assert ran.in_flight >= 3  # and it is no queue
    needs = plan.holds(plan.lasts)
    reserved = simulate([reserving(plan, needs)] * 100, LIMITS)
    assert reserved.peak_mb <= 0.85 * 1024
    assert reserved.mean_in_flight >= 0.7 * (0.85 * 1024 - 40) // needs


def test_slow_growth_that_no_one_has_announced_may_pass_the_limit_but_not_by_far() -> None:
    """Over two seconds: what looks as if it stood still goes on, and the next were let in."""
    plan = in_steps(50, 5, 0.5, 4)
    assert 1024 < simulate([plan] * 100, LIMITS).peak_mb <= 1.25 * 1024
    assert simulate([reserving(plan, 50)] * 100, LIMITS).peak_mb <= 0.85 * 1024


def test_a_need_that_was_taken_for_too_large_is_doubted_as_memory_stands_still() -> None:
    allowance = Allowance()
    measured(allowance, 50)
    allowance.admitted()
    measured(allowance, 450)  # 400 for one
    measured(allowance, 50, at=1)
    admitted = 1
    for n in range(9, 200):
        measured(allowance, 50, at=n / 8)
        while allowance.may_admit():
            allowance.admitted()
            admitted += 1
    assert admitted >= 20


def test_the_limit_is_what_matters() -> None:
    roomy = simulate([at_once(50)] * 100, ResourceLimits(max_memory_mb=4096))
    assert 1024 < roomy.peak_mb <= 4096


def test_small_branches_are_hardly_delayed() -> None:
    ran = simulate([at_once(0.1, 0.01)] * 300, LIMITS)
    assert ran.in_flight >= 50
    assert ran.took < 0.5


def test_what_stays_behind_is_no_need() -> None:
    ran = simulate([at_once(5, 0.1)] * 300, LIMITS, leak_mb=1)
    assert ran.peak_mb <= 1024
    assert ran.took < 3


def test_one_that_fits_nowhere_runs_alone() -> None:
    ran = simulate([at_once(2000, 0.1, 2000)] * 3, LIMITS)
    assert ran.in_flight == 1


@given(
    st.lists(
        st.builds(
            lambda mb, after, lasts, is_known: late(
                mb, after, lasts + after, 150.0 if is_known else 0.0
            ),
            st.floats(0, 150),
            st.floats(0, 0.5),
            st.floats(0.05, 1),
            st.just(True),
        ),
        max_size=40,
    )
)
def test_those_that_keep_to_what_they_reserve_never_pass_the_threshold(plans: list[Plan]) -> None:
    if plans:
        assert simulate(plans, LIMITS).peak_mb <= 0.85 * 1024 + 1e-6
