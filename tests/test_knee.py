"""`KneeLimit` in a closed loop: what it promises on small plants, and what no sample may break."""

from __future__ import annotations

import doctest
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, nan
from statistics import fmean, median

import pytest
from hypothesis import given, settings, strategies as st

from trio_parallel_steps import limits
from trio_parallel_steps.limits import KneeLimit, Limit, Outcome, Sample, _knee
from trio_parallel_steps.limits._brink import Brink
from trio_parallel_steps.limits._ceiling import Ceiling
from trio_parallel_steps.limits._dives import Dives
from trio_parallel_steps.limits._drift import Drift
from trio_parallel_steps.limits._fit import Fit
from trio_parallel_steps.limits._growth import Growth
from trio_parallel_steps.limits._level import Level
from trio_parallel_steps.limits._trials import Trials

Plant = Callable[[int, float], float]


def queue(knee: int) -> Plant:
    """That many servers, shared by all in flight: latency is flat, then grows as concurrency."""
    return lambda n, _: max(1.0, n / knee)


def cliff(edge: int, factor: float = 4.0) -> Plant:
    """Past its edge it pages, as a machine does that is out of memory."""
    return lambda n, _: factor * n / edge if n > edge else 1.0


def free(n: int, now: float) -> float:
    """No contention at all."""
    return 1.0


@dataclass
class Run:
    """What came of a run: throughput, mean latency, refusals, and the limit after each sample."""

    seconds: float
    done: int
    refused: int
    latencies: list[float]
    limits: list[tuple[float, int]] = field(repr=False)

    @property
    def throughput(self) -> float:
        return self.done / self.seconds

    def limits_after(self, seconds: float) -> list[int]:
        return [value for at, value in self.limits if at >= seconds]


def run(
    limit: Limit,
    plant: Plant = free,
    *,
    n: int = 4000,
    work: float = 0.2,
    spread: float = 0.2,
    quota: float = inf,
    at_most: float = inf,
    drops: float = 0.0,
    seed: int = 1,
    start: float = 0.0,
) -> Run:
    """`n` branches by processor sharing: all wait at the door, and start as the limit lets them.

    Past `quota` in flight a branch is refused, at once, and comes again.  `at_most` is what there
    is to do at a time.  A share `drops` of what ends is reported as dropped.
    """
    rng = random.Random(seed)
    now, progress = start, 0.0
    running: list[tuple[float, float, int]] = []  # ends at this progress, started at, in flight
    refused = 0
    latencies: list[float] = []
    values: list[tuple[float, int]] = []
    started = 0
    while len(latencies) < n:
        while started < n and len(running) < min(limit.value, at_most):
            if len(running) >= quota:
                refused += 1
                limit.on_sample(Sample(now, 0.01, len(running) + 1, Outcome.DROPPED))
                values.append((now, limit.value))
                if len(running) >= limit.value:
                    break
                now += 0.01
                progress += 0.01 / plant(len(running), now)
                if progress > running[0][0]:
                    break
                continue
            end = progress + rng.lognormvariate(-(spread**2) / 2, spread) * work
            heapq.heappush(running, (end, now, len(running) + 1))
            started += 1
        speed = 1 / plant(len(running), now)
        end, since, in_flight = heapq.heappop(running)
        now += max(0.0, end - progress) / speed
        progress = max(end, progress)
        latencies.append(now - since)
        outcome = Outcome.DROPPED if rng.random() < drops else Outcome.OK
        limit.on_sample(Sample(since, now - since, in_flight, outcome))
        values.append((now, limit.value))
    return Run(now - start, n, refused, latencies, [(at - start, value) for at, value in values])


class Fixed:
    """A limit that stays."""

    def __init__(self, value: int) -> None:
        self.value = value

    def on_sample(self, sample: Sample) -> int:
        return self.value


# ---------------------------------------------------------------- plants


@pytest.mark.parametrize("knee", [9, 16, 25, 60])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_a_knee(knee: int, seed: int) -> None:
    found = run(KneeLimit(), queue(knee), n=400 * knee, seed=seed)
    best = run(Fixed(knee), queue(knee), n=400 * knee, seed=seed)
    assert found.throughput > 0.95 * best.throughput
    assert fmean(found.latencies) < 1.5 * fmean(best.latencies)


def test_latency_that_costs_more_keeps_it_nearer_to_the_knee() -> None:
    found = run(KneeLimit(latency_weight=0.5), queue(40), n=16000)
    assert 0.85 * 40 <= median(found.limits_after(found.seconds / 2)) <= 1.15 * 40


@pytest.mark.parametrize(("before", "after"), [(15, 50), (50, 15)])
def test_it_follows_a_knee_that_moves(before: int, after: int) -> None:
    limit = KneeLimit()
    found = run(limit, lambda n, now: queue(before if now < 20 else after)(n, now), n=12000)
    assert max(0.8 * after, after - 4) <= fmean(found.limits_after(50)) <= 1.4 * after


def test_it_grows_to_the_bound_where_nothing_is_in_the_way() -> None:
    found = run(KneeLimit(max_limit=100), n=5000)
    assert found.limits_after(2.0)[0] == 100
    assert set(found.limits_after(5.0)) <= set(range(90, 101))


def test_it_goes_down_from_a_start_far_past_the_knee() -> None:
    found = run(KneeLimit(100), queue(8), n=3000)
    assert fmean(found.limits_after(found.seconds * 0.6)) < 12


def test_it_comes_down_after_a_cold_start() -> None:
    found = run(KneeLimit(), lambda n, now: queue(10)(n, now) * (6 if now < 2 else 1), n=4000)
    assert fmean(found.limits_after(found.seconds / 2)) < 15


@pytest.mark.parametrize("edge", [12, 24, 40])
def test_it_stays_below_a_cliff_once_it_fell(edge: int) -> None:
    found = run(KneeLimit(), cliff(edge), n=600 * edge)
    assert found.throughput > 0.8 * run(Fixed(edge), cliff(edge), n=600 * edge).throughput
    beyond = [value > edge for value in found.limits_after(found.seconds / 2)]
    assert fmean(beyond) < 0.25
    falls = sum(b and not a for a, b in pairwise(beyond))
    assert falls < found.seconds / 2 / 0.2 / 12  # one in many latencies


def test_after_a_fall_the_next_trial_is_at_a_level_that_was_good() -> None:
    limit = KneeLimit()
    reasons: list[tuple[int, str]] = []

    class Watched:
        value = limit.value

        def on_sample(self, sample: Sample) -> int:
            self.value = limit.on_sample(sample)
            reasons.append((self.value, limit.reason))
            return self.value

    run(Watched(), cliff(24), n=4000)
    fallen = {value for value, reason in reasons if reason.startswith("throughput was lost at")}
    assert fallen
    assert max(fallen) <= 24


def test_a_cliff_is_left_before_those_that_fell_over_it_are_through() -> None:
    edge, factor = 24, 8.0
    found = run(KneeLimit(), cliff(edge, factor), n=20000)
    over_since, visits = inf, []
    for at, value in found.limits:
        if value > edge:
            over_since = min(over_since, at)
        elif over_since < at:
            visits.append(at - over_since)
            over_since = inf
    assert len(visits) > 3
    assert max(visits[1:]) < 0.8 * factor * 0.2  # but for the first, while it grew


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_plant_that_got_faster_is_not_looked_at_below(seed: int) -> None:
    limit = KneeLimit()
    reasons: list[tuple[float, str]] = []

    class Watched:
        value = limit.value

        def on_sample(self, sample: Sample) -> int:
            self.value = limit.on_sample(sample)
            reasons.append((sample.started_at + sample.latency, limit.reason))
            return self.value

    def plant(n: int, now: float) -> float:
        return queue(6 if now < 20 else 25)(n, now)

    found = run(Watched(), plant, n=4000, spread=0.45, seed=seed)
    reached = next(at for at, value in found.limits if at > 20 and value >= 20)
    below = [reason for at, reason in reasons if 20 < at < reached and "is less" in reason]
    assert below == []


def test_a_cliff_that_goes_away_is_not_remembered_for_ever() -> None:
    found = run(KneeLimit(), lambda n, now: cliff(20 if now < 20 else 60)(n, now), n=12000)
    assert fmean(found.limits_after(45)) > 35


@pytest.mark.parametrize("factor", [1.2, 1.25, 1.3, 1.4])
@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_a_small_step_down_is_found_too(factor: float, spread: float) -> None:
    found = run(KneeLimit(), cliff(30, factor), n=6000, spread=spread)
    best = run(Fixed(30), cliff(30, factor), n=6000, spread=spread)
    assert found.throughput > 0.8 * best.throughput


def test_a_plant_that_slows_down_again_and_again_is_learned_anew() -> None:
    def slower(n: int, now: float) -> float:
        return queue(20)(n, now) * float(1.8 ** min(4, max(0, (now - 20) // 1.5)))

    found = run(KneeLimit(), slower, n=6000)
    assert 10 <= median(found.limits_after(found.seconds * 0.7)) <= 32


def test_a_quota_is_obeyed_with_few_refusals() -> None:
    found = run(KneeLimit(), quota=40, n=8000)
    assert set(found.limits_after(5.0)) <= {40, 41}
    assert found.refused <= 0.002 * 8000
    assert found.throughput > 0.97 * run(Fixed(40), n=8000).throughput


def test_one_more_is_tried_soon_and_then_ever_more_seldom() -> None:
    ceiling, latency = Ceiling(), 0.5
    ceiling.succeeded(0.0, latency)
    now = 1.0
    assert ceiling.refuse(now, 5, now, 5)
    waits = []
    for _ in range(6):
        waits.append(next(w for w in range(200) if ceiling.is_due(now + w * latency)))
        now += waits[-1] * latency
        ceiling.try_one(now)
        assert not ceiling.refuse(now, 5, now, 5)
    assert waits == [6, 6, 12, 24, 48, 96]


def test_a_quota_that_was_raised_is_used() -> None:
    found = run(KneeLimit(), quota=20, n=2000)
    assert found.limits[-1][1] in {20, 21}
    limit = KneeLimit()
    run(limit, quota=20, n=2000)
    assert max(run(limit, quota=60, n=30000, start=100).limits_after(30)) >= 50


def test_a_quota_that_was_lowered_is_obeyed() -> None:
    limit = KneeLimit()
    run(limit, quota=40, n=4000)
    again = run(limit, quota=10, n=4000, start=100)
    assert fmean(again.limits_after(again.seconds / 2)) < 14


@pytest.mark.parametrize("refused_first", [1, 2, 7, 13])
def test_a_quota_is_found_though_those_who_start_together_come_in_any_order(
    refused_first: int,
) -> None:
    limit = KneeLimit(16)
    order = [refused_first, *(n for n in range(1, 17) if n != refused_first)]
    for in_flight in order[:4]:
        limit.on_sample(Sample(0.0, 0.01, in_flight, Outcome.DROPPED))
    assert limit.value == max(1, refused_first - 1)
    for in_flight in order[4:]:
        limit.on_sample(Sample(0.0, 0.2, in_flight, Outcome.OK))
    assert limit.value == 12
    assert refused_first == 13 or limit.reason == "more got through than was thought"


def test_only_the_first_refusal_is_corrected_by_those_who_got_through() -> None:
    ceiling = Ceiling()
    assert not ceiling.survived(0.0)  # nothing was refused
    assert ceiling.refuse(0.0, 3, 0.1, 8)
    assert [ceiling.survived(0.0) for _ in range(4)] == [False, False, True, True]
    assert ceiling.value == 4
    assert not ceiling.survived(0.2)  # started after the cut
    for _ in range(8):
        ceiling.succeeded(0.3, 0.1)
    assert [ceiling.refuse(0.2, 1, 0.4, 4) for _ in range(3)] == [False, False, True]
    cut = ceiling.value
    assert not any(ceiling.survived(0.2) for _ in range(9))
    assert ceiling.value == cut


def test_a_few_drops_at_random_do_not_starve_it() -> None:
    found = run(KneeLimit(), queue(20), drops=0.02, n=8000)
    assert fmean(found.limits_after(found.seconds / 2)) > 14


@pytest.mark.parametrize("n", [1, 5, 20, 40])
def test_tiny_steps_are_not_held_up(n: int) -> None:
    found = run(KneeLimit(), queue(30), n=n)
    assert found.throughput > 0.5 * run(Fixed(30), queue(30), n=n).throughput


def test_it_is_not_raised_where_it_is_not_reached() -> None:
    found = run(KneeLimit(), at_most=3, n=2000)
    assert {value for _, value in found.limits} == {16}


def test_it_is_not_raised_for_ever_where_it_is_reached_by_half() -> None:
    found = run(KneeLimit(), at_most=10, n=6000)
    assert len(set(found.limits_after(found.seconds / 2))) == 1
    assert found.limits[-1][1] <= 32


def test_it_is_not_raised_while_there_is_little_to_do() -> None:
    limit = KneeLimit()
    busy = run(limit, queue(20), n=3000)
    before = limit.value
    idle = run(limit, queue(20), at_most=5, n=3000, start=busy.seconds)
    assert max(value for _, value in idle.limits) <= 1.3 * before
    assert len(set(idle.limits_after(idle.seconds / 2))) == 1


def test_more_in_flight_than_its_limit_is_what_others_share() -> None:
    limit = KneeLimit(max_limit=8)
    for i in range(2000):
        limit.on_sample(Sample(i * 0.01, 0.2 * (1 + i % 7 / 10), 100 + i % 30, Outcome.OK))
    assert 1 <= limit.value <= 8


# ---------------------------------------------------------------- knobs


def test_it_starts_from_initial() -> None:
    assert KneeLimit().value == 16
    assert KneeLimit(5).value == 5
    assert KneeLimit(initial=50, max_limit=20).value == 20
    assert KneeLimit(initial=5, min_limit=7).value == 7


def test_it_is_never_below_min_limit() -> None:
    found = run(KneeLimit(min_limit=12), queue(4), n=2000)
    assert min(value for _, value in found.limits) == 12
    refused = run(KneeLimit(min_limit=12), quota=13, n=2000)
    assert min(value for _, value in refused.limits) >= 12


def test_it_is_never_above_max_limit() -> None:
    assert max(value for _, value in run(KneeLimit(max_limit=30), n=3000).limits) == 30


def test_latency_weight_trades_throughput_for_latency() -> None:
    def soft(n: int, now: float) -> float:
        return float((1 + (n / 25) ** 2) ** 0.5)

    cheap, dear = (
        run(KneeLimit(latency_weight=weight), soft, n=6000, spread=0.1) for weight in (0.1, 1.0)
    )
    assert cheap.throughput > dear.throughput
    assert fmean(dear.latencies) < 0.7 * fmean(cheap.latencies)


@pytest.mark.parametrize(
    ("name", "value", "error", "what"),
    [
        ("initial", 0, ValueError, "an int >= 1"),
        ("initial", 1.5, TypeError, "an int >= 1"),
        ("min_limit", 0, ValueError, "an int >= 1"),
        ("max_limit", True, TypeError, "an int >= 1"),
        ("max_limit", 0, ValueError, "an int >= 1"),
        ("max_limit", 10**10, ValueError, "an int <= 1000000000"),
        ("latency_weight", "1", TypeError, "a finite number >= 0"),
        ("latency_weight", -0.1, ValueError, "a finite number >= 0"),
        ("latency_weight", inf, ValueError, "a finite number >= 0"),
        ("latency_weight", nan, ValueError, "a finite number >= 0"),
    ],
)
def test_bad_arguments_are_refused(
    name: str, value: object, error: type[Exception], what: str
) -> None:
    with pytest.raises(error) as caught:
        KneeLimit(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"`{name}` must be {what}, got {value!r}"


# ---------------------------------------------------------------- any sample


samples = st.builds(
    Sample,
    started_at=st.one_of(st.just(0.0), st.floats(0, 100), st.floats(-1e308, 1e308)),
    latency=st.one_of(st.just(0.0), st.floats(0, 2), st.floats(-1e308, 1e308)),
    in_flight=st.one_of(st.integers(1, 60), st.integers(0, 10**30)),
    outcome=st.sampled_from(Outcome),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(samples, st.integers(1, 40)), max_size=40),
    st.integers(1, 50),
    st.integers(1, 5),
    st.sampled_from([5, 60, 10**9]),
)
def test_no_sample_breaks_it(
    given_: list[tuple[Sample, int]], initial: int, low: int, high: int
) -> None:
    first, second = (KneeLimit(initial, min_limit=low, max_limit=high) for _ in range(2))
    for sample, times in given_:
        for _ in range(times):
            assert first.on_sample(sample) == first.value
            assert low <= first.value <= high
    assert first.reason
    for sample, times in given_:
        for _ in range(times):
            second.on_sample(sample)
    assert repr(first) == repr(second)


def test_what_is_ignored_changes_nothing() -> None:
    first, second = KneeLimit(), KneeLimit()
    rng = random.Random(3)
    for i in range(3000):
        sample = Sample(i * 0.01, rng.uniform(0.1, 0.3), 1 + i % first.value, Outcome.OK)
        first.on_sample(sample)
        second.on_sample(sample)
        second.on_sample(Sample(i * 0.01, 100.0, 1, Outcome.IGNORED))
    assert first.value == second.value
    assert first.reason == second.reason


def test_the_same_run_twice_is_the_same_run() -> None:
    once, twice = (run(KneeLimit(), queue(20), quota=30, n=3000) for _ in range(2))
    assert once == twice


def test_memory_is_bounded() -> None:
    limit = KneeLimit()
    run(limit, queue(30), n=20000, spread=0.5)
    assert len(limit._fit._bins) < 120
    assert len(limit._fit._hypotheses) < 1000


# ---------------------------------------------------------------- words


def test_it_says_why() -> None:
    limit = KneeLimit()
    seen = {limit.reason}

    class Watched:
        value = limit.value

        def on_sample(self, sample: Sample) -> int:
            self.value = limit.on_sample(sample)
            seen.add(limit.reason.rstrip("0123456789. ?"))
            return self.value

    run(Watched(), cliff(24), n=4000)
    run(Watched(), queue(15), n=6000, start=100)
    run(Watched(), quota=10, n=400, start=700)
    run(Watched(), quota=20, n=10000, start=800)
    starts = {" ".join(reason.split()[:3]) for reason in seen}
    assert {"initial", "growing: latency does", "past the knee", "probe: is more"} <= starts
    assert {"throughput was lost", "refused at", "probe: is one", "the knee is"} <= starts
    assert {"probe: is less", "probe: is throughput", "what was refused"} <= starts


def test_its_parts_say_what_they_are() -> None:
    limit, level = KneeLimit(7), Level(7, 1, 10)
    trials = Trials(level, Fit(), Ceiling(), Brink(), 0.17)
    assert repr(limit) == "<KneeLimit: 7, initial>"
    assert repr(level) == "<Level 7, going to 7>"
    assert repr(trials) == "<Trials at 7: settled>"
    assert repr(Growth(level, Fit(), trials, 0.17)) == "<Growth to inf>"
    limit.on_sample(Sample(0.0, 0.1, 7, Outcome.DROPPED))
    assert repr(limit._growth) == "<Growth over>"
    assert repr(Dives()) == "<Dives 0 of 6>"
    assert repr(Drift()) == "<Drift 0.0, slower 0 times>"
    assert repr(Fit()) == "<Fit of 0 bins, weight 0>"
    assert repr(Ceiling()) == "<Ceiling inf>"
    assert repr(Brink()) == "<Brink inf, bad inf>"


def test_the_example_of_its_docstring() -> None:
    assert doctest.testmod(_knee).failed == 0


def test_a_limit_is_what_has_a_value_and_takes_samples() -> None:
    def takes(limit: limits.Limit) -> int:
        return limit.value

    assert takes(KneeLimit(3)) == 3
