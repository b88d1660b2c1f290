"""The limits say what Netflix' own say, sample by sample; and what its traces don't tell."""

import copy
import csv
import gzip
import inspect
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

import figures
from trio_parallel_steps.limits import (
    AIMDLimit,
    FixedLimit,
    Gradient2Limit,
    GradientLimit,
    KneeLimit,
    Limit,
    Outcome,
    Sample,
    VegasLimit,
    WindowedLimit,
)

TRACES = Path(__file__).parent / "traces"


def sample(
    latency: float = 0.1, in_flight: int = 1000, *, at: float = 0.0, outcome: Outcome = Outcome.OK
) -> Sample:
    return Sample(started_at=at, latency=latency, in_flight=in_flight, outcome=outcome)


def drop(latency: float = 0.1, in_flight: int = 1000, *, at: float = 0.0) -> Sample:
    return sample(latency, in_flight, at=at, outcome=Outcome.DROPPED)


def values(limit: Limit, samples: Iterable[Sample]) -> list[int]:
    """What it says after each."""
    said = []
    for each in samples:
        said.append(limit.on_sample(each))
        assert said[-1] == limit.value
    return said


def last(limit: Limit, *samples: Sample) -> int:
    return values(limit, samples)[-1]


# ---------------------------------------------------------------- the traces


@attrs.frozen
class Trace:
    file: str
    algorithm: str
    params: dict[str, Any]
    pinned: dict[str, Any]
    events: dict[int, int]
    n: int
    initial_limit: int

    def rows(self) -> Iterator[tuple[int, ...]]:
        with gzip.open(TRACES / f"{self.file}.gz", "rt", newline="") as file:
            columns = {name: map(int, column) for name, *column in csv.reader(file)}
        names = "start_ns", "rtt_ns", "inflight", "dropped", "limit_after"
        return zip(*(columns[name] for name in names), strict=True)


@cache
def traces() -> list[Trace]:
    listed = json.loads((TRACES / "manifest.json").read_text("utf-8"))["traces"]
    fields = [field.name for field in attrs.fields(Trace)]
    return [
        Trace(
            **{
                **{name: trace[name] for name in fields},
                "pinned": trace["pinned"] or {},
                "events": dict(trace["events"]),
            }
        )
        for trace in listed
    ]


ALGORITHMS: dict[str, Callable[..., Limit]] = {
    "AIMD": AIMDLimit,
    "Fixed": FixedLimit,
    "Gradient": GradientLimit,
    "Gradient2": Gradient2Limit,
    "Vegas": VegasLimit,
}

# Functions, as the manifest writes them; those of Vegas are its defaults everywhere.
FUNCTIONS: dict[str, Callable[[int], int]] = {
    "max(1,isqrt)": lambda limit: max(1, math.isqrt(limit)),
    "max(4,isqrt)": lambda limit: max(4, math.isqrt(limit)),
}


def is_default(name: str, value: object) -> bool:
    return name in "alpha beta threshold increase decrease".split() and isinstance(value, str)


def made(algorithm: str, params: dict[str, Any], pinned: dict[str, Any]) -> Limit:
    if algorithm == "Settable":
        return FixedLimit(params["initial_limit"])
    if algorithm == "Windowed":
        delegate = made(**params["delegate"], pinned=pinned.get("delegate", {}))
        others = {name: value for name, value in params.items() if name != "delegate"}
        return WindowedLimit(delegate, **others)
    options = {
        name: FUNCTIONS.get(value, value) if isinstance(value, str) else value
        for name, value in params.items()
        if not is_default(name, value)
    }
    return ALGORITHMS[algorithm](**options, **pinned)


@pytest.mark.parametrize("trace", traces(), ids=lambda trace: trace.file.removesuffix(".csv"))
def test_a_limit_says_what_netflix_own_said_after_each_sample(trace: Trace) -> None:
    limit = made(trace.algorithm, trace.params, trace.pinned)
    assert limit.value == trace.initial_limit
    wrong = []
    for number, (start, rtt, in_flight, dropped, after) in enumerate(trace.rows()):
        if number in trace.events:
            assert isinstance(limit, FixedLimit)
            limit.value = trace.events[number]
        outcome = Outcome.DROPPED if dropped else Outcome.OK
        said = limit.on_sample(Sample(start / 1e9, rtt / 1e9, in_flight, outcome))
        if (said, limit.value) != (after, after):
            wrong.append((number, said, after))
    assert number + 1 == trace.n
    assert wrong == []
    figures.add("traces of concurrency-limits", traces=1, samples=trace.n)


def test_all_traces_are_there() -> None:
    assert len(traces()) == 41
    assert sum(trace.n for trace in traces()) == 96_000


# ---------------------------------------------------------------- what no trace tells


def test_drops_take_gradient_down_to_its_queue_size_not_to_its_minimum() -> None:
    limit = GradientLimit(min_limit=1)
    assert last(limit, *[drop()] * 1000) == 4
    nine = GradientLimit(min_limit=1, queue_size=9)
    assert last(nine, *[drop()] * 1000) == 9


def test_the_queue_size_of_gradient_comes_before_its_maximum() -> None:
    assert last(GradientLimit(initial_limit=5, max_limit=7, queue_size=9), sample()) == 9


def test_a_probe_of_gradient_stops_at_its_minimum_or_its_queue_size() -> None:
    assert last(GradientLimit(countdown=0, min_limit=2), sample()) == 7
    assert last(GradientLimit(countdown=0, min_limit=12), sample()) == 12


def windows(*ends: float, limit: Limit | None = None, **options: Any) -> list[int]:
    """Where a sample of .1 s ends at each of these times, and each window of two adds one."""
    windowed = WindowedLimit(
        limit or AIMDLimit(initial_limit=50), window_size=options.pop("window_size", 2), **options
    )
    return values(windowed, [sample(0.1, at=end - 0.1) for end in ends])


def test_a_window_is_open_still_for_a_sample_that_ends_when_it_does() -> None:
    # The first closes at once, at 1 s; the next window lasts until 2 s.
    assert windows(1.0, 1.5, 2.0) == [50, 50, 50]
    assert windows(1.0, 1.5, 2.000000001) == [50, 50, 51]


def test_a_window_is_open_still_at_time_zero() -> None:
    assert windows(0.0, 0.000000001, 0.5, window_size=2) == [50, 51, 51]


def percentile(**options: Any) -> WindowedLimit:
    named = {"percentile": 0.5, "sampler_size": 10, "window_size": 10, **options}
    return WindowedLimit(AIMDLimit(initial_limit=50), sampler="percentile", **named)


FIRST = sample(at=0.0)  # closes a window of one, and the next is open until 1.1 s


def test_a_drop_counts_unless_the_percentiles_window_is_full() -> None:
    ten = [sample(at=0.2)] * 9
    closing = sample(at=2.0)
    assert last(percentile(), FIRST, *ten, drop(at=0.2), closing) == 20 + 25
    assert last(percentile(), FIRST, *ten, sample(at=0.2), drop(at=0.2), closing) == 51


def test_a_full_window_takes_no_latency_and_no_number_in_flight_either() -> None:
    ten = [sample(0.1, 10, at=0.2)] * 10
    assert last(percentile(), FIRST, *ten, sample(0.1, 100, at=0.2), sample(at=2.0)) == 50

    limit = percentile(min_window_s=0.01, max_window_s=9.0)
    ten = [sample(0.1, 10, at=0.15)] * 10
    # The window that closes at .35 s is followed by one of .2 s: the short one is not in it.
    assert last(limit, FIRST, *ten, sample(0.01, at=0.2), sample(0.1, 10, at=0.25)) == 50
    assert last(limit, *[sample(0.05, at=0.4)] * 9, sample(0.05, at=0.51)) == 51


def test_a_percentile_window_that_can_hold_too_few_never_counts() -> None:
    many = [sample(at=0.2 + number) for number in range(100)]
    assert set(values(percentile(sampler_size=9), many)) == {50}
    assert set(values(percentile(window_size=9, sampler_size=9), many)) == {50}
    dense = [sample(at=0.01 * number) for number in range(1000)]
    assert last(percentile(sampler_size=9), *dense) == 50
    assert last(percentile(window_size=9, sampler_size=9), *dense) > 50


@attrs.define
class Heard:
    """A limit that writes down what it hears."""

    samples: list[Sample] = attrs.field(factory=list)
    value: int = 7

    def on_sample(self, sample: Sample) -> int:
        self.samples.append(sample)
        return self.value


NS = 1e-9


def heard(latencies: Iterable[int], **options: Any) -> list[Sample]:
    """By the delegate, when these many nanoseconds end in one window."""
    delegate = Heard()
    options = {"min_rtt_threshold_s": 0.0, "window_size": 2, **options}
    limit = WindowedLimit(delegate, **options)
    limit.on_sample(sample(1.0))
    *inside, closing = latencies
    for latency in inside:
        limit.on_sample(sample(latency * NS, at=1.5))
    limit.on_sample(sample(closing * NS, at=3.0))
    return delegate.samples


def test_an_average_is_cut_to_whole_nanoseconds() -> None:
    (one,) = heard([10, 10, 12])  # 10.67
    assert round(one.latency * 1e9) == 10
    assert one.latency == 10 / 1e9


def test_a_whole_number_of_nanoseconds_is_not_lost_in_seconds() -> None:
    for number in [*range(1, 3000), 2**49 + 1]:
        delegate = Heard()
        limit = WindowedLimit(delegate, window_size=1, min_rtt_threshold_s=0.0)
        limit.on_sample(sample(number / 1e9))
        assert delegate.samples == [sample(number / 1e9)]


def test_the_delegate_compares_what_was_cut() -> None:
    limit = WindowedLimit(VegasLimit(initial_limit=40), min_rtt_threshold_s=0.0)
    ones = [sample(NS, at=1.0)] * 10
    # 19 ns / 10 is 1 ns: none of the 40 wait, where of 1.9 ns 19 would.
    twos = [sample(NS, at=3.0), *[sample(2 * NS, at=3.0)] * 9, sample(NS, at=5.0)]
    assert last(limit, *ones, *twos) == 46


def test_a_window_tells_when_its_last_sample_started_the_most_in_flight_and_any_drop() -> None:
    delegate = Heard()
    limit = WindowedLimit(delegate, window_size=3)
    given = [sample(0.2, 1), sample(0.2, 9, at=0.3), drop(0.3, 4, at=0.4), sample(0.4, 5, at=2.0)]
    assert values(limit, given) == [7, 7, 7, 7]
    (one,) = delegate.samples
    assert one == Sample(2.0, 0.3, 9, Outcome.DROPPED)


@pytest.mark.parametrize(
    ("share", "number", "expected"),
    [(0.5, 10, 5), (0.5, 11, 6), (0.9, 10, 9), (0.99, 10, 10), (0.04, 12, 1), (0.04, 14, 1)],
)
def test_a_percentile_is_the_sample_whose_place_is_the_share_rounded_half_up(
    share: float, number: int, expected: int
) -> None:
    (one,) = heard(
        reversed(range(1, number + 1)), sampler="percentile", percentile=share, sampler_size=50
    )
    assert round(one.latency * 1e9) == expected


def test_a_window_with_too_few_samples_is_thrown_away() -> None:
    # 1.9 s closes a window of two where three are needed, and it does not help the next one.
    ends = [1.0, 1.5, 2.1, 2.5, 3.2, 3.3, 3.4, 4.3]
    assert windows(*ends, window_size=3) == [50] * 7 + [51]


def test_aimd_starts_where_it_is_told_and_keeps_to_its_bounds_afterwards() -> None:
    idle = sample(in_flight=0)
    assert values(AIMDLimit(initial_limit=150, max_limit=100), [idle]) == [100]
    assert values(AIMDLimit(initial_limit=3), [idle]) == [20]
    assert AIMDLimit(initial_limit=150, max_limit=100).value == 150


def test_a_latency_that_is_just_the_timeout_is_no_drop() -> None:
    def limit() -> Limit:
        return AIMDLimit(initial_limit=100, timeout_s=0.3)

    assert last(limit(), sample(0.3)) == 101
    assert last(limit(), sample(0.300000001)) == 90


@pytest.mark.parametrize(("in_flight", "value"), [(24, 50), (25, 51)])
def test_aimd_grows_when_half_of_it_is_used(in_flight: int, value: int) -> None:
    assert last(AIMDLimit(initial_limit=50), sample(0.1, in_flight)) == value


def test_a_smaller_latency_is_the_base_of_vegas_even_of_a_dropped_branch() -> None:
    assert values(VegasLimit(), [drop(0.2), drop(0.1), drop(0.1)]) == [20, 20, 19]


def test_vegas_falls_by_a_drop_though_little_is_in_flight() -> None:
    assert values(VegasLimit(), [sample(0.1), sample(0.1, 9), drop(0.1, 9)]) == [20, 20, 19]
    assert last(VegasLimit(), sample(0.1), sample(0.1, 10)) == 26


@pytest.mark.parametrize(
    ("latency", "value"),
    [
        (1.05, 26),  # 1 waits: the threshold
        (1.1, 21),  # 2
        (1.15, 20),  # 3 is alpha
        (1.42, 20),  # 6 is beta
        (1.45, 19),  # 7
    ],
)
def test_vegas_moves_by_how_many_wait(latency: float, value: int) -> None:
    assert last(VegasLimit(), sample(1.0), sample(latency, 20)) == value


@pytest.mark.parametrize(("limit", "step"), [(9, 1), (99, 1), (100, 2), (999, 2), (1000, 3)])
def test_a_step_of_vegas_is_the_limits_order_of_magnitude(limit: int, step: int) -> None:
    vegas = VegasLimit(initial_limit=limit, max_limit=10_000)
    assert values(vegas, [sample(1.0), drop(1.0)]) == [limit, limit - step]
    vegas = VegasLimit(initial_limit=limit, max_limit=10_000)
    assert values(vegas, [sample(1.0), sample(1.0)]) == [limit, limit + 6 * step]


def test_vegas_is_bounded_before_it_is_smoothed() -> None:
    limit = VegasLimit(initial_limit=100, max_limit=50, smoothing=0.5)
    assert values(limit, [sample(1.0)] * 3) == [100, 75, 62]
    low = VegasLimit(initial_limit=1, smoothing=0.5)
    assert values(low, [drop(1.0)] * 3) == [1, 1, 1]


def test_a_probe_of_vegas_takes_any_latency_as_its_base() -> None:
    limit = VegasLimit(initial_limit=10, probe_multiplier=1, probe_jitter=0.5)
    idle = [sample(0.1, 0), sample(5.0, 0), sample(4.0, 0), sample(9.0, 0), sample(4.0, 0)]
    assert last(limit, *idle) == 10  # the fifth is the probe; ahead of it, the base is 0.1
    assert last(limit, sample(4.0)) == 16


@pytest.mark.parametrize(("in_flight", "value"), [(24, 50), (25, 57)])
def test_gradient_grows_when_half_of_it_is_used(in_flight: int, value: int) -> None:
    assert last(GradientLimit(), sample(0.1, in_flight)) == value


def test_gradient_falls_by_a_drop_though_little_is_in_flight() -> None:
    assert last(GradientLimit(smoothing=1.0), drop(0.1, 0)) == 45


def test_the_gradient_is_a_half_at_least_and_one_at_most() -> None:
    assert last(GradientLimit(smoothing=1.0), sample(0.1), sample(90.0)) == 35  # 57 / 2 + 7
    assert last(GradientLimit(smoothing=1.0), sample(0.1), sample(0.1)) == 64  # 57 + 7
    flat = Gradient2Limit(smoothing=1.0, initial_limit=100)
    assert last(flat, sample(0.1), sample(0.1)) == 108
    steep = Gradient2Limit(smoothing=1.0, initial_limit=100, long_window=10**6)
    assert last(steep, *[sample(0.1, 0)] * 10, sample(9.0)) == 54


def test_a_probe_of_gradient_forgets_the_smallest_latency() -> None:
    limit = GradientLimit(initial_limit=10, countdown=2)
    # .1 s is the base of two samples, .4 s that of those after the probe, which itself is not used.
    assert values(limit, [sample(0.1), sample(0.4), sample(0.1)]) == [14, 13, 4]
    assert values(limit, [sample(0.4), sample(0.8), sample(9.0)]) == [8, 12, 4]


def test_only_downwards_gradient_is_smoothed() -> None:
    assert last(GradientLimit(smoothing=0.5), sample(0.1)) == 57
    assert last(GradientLimit(smoothing=0.5), drop(0.1)) == 47


def test_gradient2_does_not_look_at_drops() -> None:
    assert last(Gradient2Limit(smoothing=1.0), drop(0.1)) == 24


def test_gradient2_averages_ten_plainly_then_exponentially_and_while_idle_too() -> None:
    def after(*latencies: float) -> int:
        limit = Gradient2Limit(
            initial_limit=1000, max_limit=10**6, smoothing=1.0, queue_size=0, rtt_tolerance=1.0,
            long_window=19,
        )  # fmt: skip
        return last(limit, *[sample(latency, 0) for latency in latencies], sample(2.0))

    assert after(1.0) == 750  # an average of 1.5 s
    assert after(*[1.0] * 9) == 550
    assert after(*[1.0] * 10) == 550  # a tenth of 2 s and nine of 1 s, now by weight
    assert after(*[1.0] * 10, 2.0) == 595


def test_an_average_over_twice_a_latency_comes_down_by_a_twentieth() -> None:
    def after(latency: float, tested: float) -> int:
        limit = Gradient2Limit(
            initial_limit=1000, max_limit=10**6, smoothing=1.0, queue_size=0, rtt_tolerance=1.0,
            long_window=10**9,
        )  # fmt: skip
        return last(limit, *[sample(4.0, 0)] * 10, sample(latency, 0), sample(tested))

    assert after(2.0, 5.0) == 799  # 4 s, but for the rounding of the weights
    assert after(1.9, 5.0) == 759  # 3.8 s


@pytest.mark.parametrize(("in_flight", "value"), [(9, 20), (10, 24)])
def test_gradient2_moves_when_half_of_it_is_used(in_flight: int, value: int) -> None:
    assert last(Gradient2Limit(smoothing=1.0), sample(0.1, in_flight)) == value


# ---------------------------------------------------------------- every knob


def ending(*ends: float) -> list[Sample]:
    return [sample(0.1, at=end - 0.1) for end in ends]


def windowed(**options: Any) -> Limit:
    return WindowedLimit(AIMDLimit(initial_limit=50), **{"window_size": 2, **options})


def by_percentile(**options: Any) -> Limit:
    """Where a latency over half a second is a drop."""
    delegate = AIMDLimit(initial_limit=50, timeout_s=0.5)
    named = {"sampler": "percentile", "percentile": 0.9, "sampler_size": 10, "window_size": 2}
    return WindowedLimit(delegate, **{**named, **options})


def closed_by(closing: float, *latencies: float) -> list[Sample]:
    return [FIRST, *(sample(latency, at=0.1) for latency in latencies), sample(closing, at=3.0)]


UNLOADED = [sample(1.0, 0)]
HUNDRED = partial(Gradient2Limit, initial_limit=100)

# What makes it, the knob and its value; samples, and where they lead without it and with it.
KNOBS: list[tuple[Callable[..., Limit], str, Any, list[Sample], int, int]] = [
    (AIMDLimit, "initial_limit", 30, [sample()], 21, 31),
    (AIMDLimit, "min_limit", 2, [drop()], 20, 18),
    (AIMDLimit, "max_limit", 20, [sample()], 21, 20),
    (partial(AIMDLimit, min_limit=1), "backoff_ratio", 0.5, [drop()], 18, 10),
    (partial(AIMDLimit, min_limit=1), "timeout_s", 0.05, [sample()], 21, 18),
    (AIMDLimit, "timeout_s", math.inf, [sample(9e9)], 20, 21),
    (VegasLimit, "initial_limit", 30, [sample()], 20, 30),
    (VegasLimit, "max_limit", 22, [sample()] * 2, 26, 22),
    (VegasLimit, "smoothing", 0.5, [sample()] * 2, 26, 23),
    (VegasLimit, "alpha", 5, [sample(1.0), sample(1.2)], 20, 21),
    (VegasLimit, "alpha", lambda limit: limit // 4, [sample(1.0), sample(1.2)], 20, 21),
    (VegasLimit, "beta", 9, [sample()] * 2, 26, 29),
    (VegasLimit, "beta", 3, [sample(1.0), sample(1.24)], 20, 19),
    (VegasLimit, "beta", lambda limit: limit, [sample()] * 2, 26, 40),
    (VegasLimit, "threshold", 2, [sample(1.0), sample(1.1)], 21, 26),
    (VegasLimit, "threshold", lambda limit: limit // 10, [sample(1.0), sample(1.1)], 21, 26),
    (VegasLimit, "increase", lambda limit: 2 * limit, [sample(1.0), sample(1.1)], 21, 40),
    (VegasLimit, "decrease", lambda limit: limit / 2, [sample(), drop()], 19, 10),
    (VegasLimit, "probe_multiplier", 1, [*UNLOADED * 14, sample(9.0, 0), sample(9.0)], 19, 26),
    (VegasLimit, "probe_jitter", 0.5, [*UNLOADED * 299, sample(9.0, 0), sample(9.0)], 19, 26),
    (VegasLimit, "probe_jitter", lambda: 0.5, [*UNLOADED * 299, *[sample(9.0)] * 2], 18, 26),
    (GradientLimit, "initial_limit", 30, [sample()], 57, 35),
    (GradientLimit, "min_limit", 48, [drop()] * 9, 41, 48),
    (GradientLimit, "max_limit", 52, [sample()], 57, 52),
    (GradientLimit, "smoothing", 1.0, [drop()], 49, 45),
    (GradientLimit, "queue_size", 20, [sample()], 57, 70),
    (GradientLimit, "queue_size", lambda limit: limit, [sample()], 57, 100),
    (GradientLimit, "rtt_tolerance", 1.0, [sample(0.1), sample(0.2)], 64, 52),
    (GradientLimit, "probe_interval", 2, [sample()] * 4, 80, 8),
    (GradientLimit, "probe_interval", -1, [*UNLOADED * 1500, sample()], 7, 57),
    (GradientLimit, "backoff_ratio", 0.5, [drop()], 49, 45),
    (GradientLimit, "countdown", 1, [sample()] * 2, 64, 7),
    (GradientLimit, "countdown", lambda: 1, [sample()] * 2, 64, 7),
    (Gradient2Limit, "initial_limit", 30, [sample()], 20, 30),
    (Gradient2Limit, "min_limit", 1, [*UNLOADED * 10, sample(90.0)], 20, 18),
    (Gradient2Limit, "max_limit", 22, [sample()] * 9, 27, 22),
    (Gradient2Limit, "smoothing", 1.0, [sample()], 20, 24),
    (Gradient2Limit, "queue_size", 20, [sample()], 20, 24),
    (Gradient2Limit, "queue_size", lambda limit: limit, [sample()], 20, 24),
    (HUNDRED, "long_window", 1, [*UNLOADED * 10, sample(9.0)], 90, 100),
    (HUNDRED, "rtt_tolerance", 1.0, [*UNLOADED * 10, sample(1.5)], 100, 94),
    (windowed, "min_window_s", 0.1, ending(1.0, 1.1, 1.3), 50, 51),
    (partial(windowed, min_window_s=0.1), "max_window_s", 0.1, ending(1.0, 1.05, 1.15), 50, 51),
    (windowed, "window_size", 3, ending(1.0, 1.5, 2.5), 51, 50),
    (windowed, "min_rtt_threshold_s", 0.11, ending(1.0, 1.5, 2.5), 51, 50),
    (by_percentile, "percentile", 0.5, closed_by(0.9, 0.1, 0.1, 0.9), 45, 51),
    (by_percentile, "sampler_size", 2, closed_by(0.9, 0.1, 0.1, 0.9), 45, 51),
]


@pytest.mark.parametrize(("make", "knob", "value", "samples", "without", "having"), KNOBS)
def test_every_knob_does_something(
    make: Callable[..., Limit],
    knob: str,
    value: object,
    samples: list[Sample],
    without: int,
    having: int,
) -> None:
    assert last(make(), *samples) == without
    assert last(make(**{knob: value}), *samples) == having


def test_the_sampler_is_an_average_or_a_percentile() -> None:
    samples = closed_by(0.9, 0.1, 0.1, 0.9)  # .5 s on average
    average = {"sampler": "average", "percentile": None, "sampler_size": None}
    assert last(by_percentile(), *samples) == 45
    assert last(by_percentile(**average), *samples) == 51


def test_what_draws_a_jitter_or_a_countdown_is_asked_at_the_start_and_after_each_probe() -> None:
    jitters = iter([0.5, 1.0, 0.1])
    vegas = VegasLimit(initial_limit=10, probe_multiplier=1, probe_jitter=lambda: next(jitters))
    values(vegas, [sample(0.1, 0)] * 15)
    assert list(jitters) == []
    countdowns = iter([2, 1, 9])
    gradient = GradientLimit(countdown=lambda: next(countdowns))
    assert values(gradient, [sample(0.1)] * 6) == [57, 64, 8, 12, 4, 8]
    assert list(countdowns) == []


def test_a_countdown_is_for_probing_only() -> None:
    limit = GradientLimit(probe_interval=-1, countdown=lambda: pytest.fail("asked"))
    assert last(limit, sample()) == 57


@pytest.mark.parametrize("cls", [*ALGORITHMS.values(), WindowedLimit])
def test_every_knob_is_tested(cls: type) -> None:
    tested = {knob for make, knob, *_ in KNOBS if isinstance(make(), cls)}
    assert set(inspect.signature(cls).parameters) - tested <= {"limit", "delegate", "sampler"}


# ---------------------------------------------------------------- what all of them promise

MADE: dict[str, Callable[[], Limit]] = {
    "Fixed": lambda: FixedLimit(7),
    "AIMD": AIMDLimit,
    "AIMD low": lambda: AIMDLimit(min_limit=1, initial_limit=1, backoff_ratio=0.1),
    "Vegas": VegasLimit,
    "Vegas low": lambda: VegasLimit(initial_limit=1, max_limit=3, probe_multiplier=1),
    "Vegas smooth": lambda: VegasLimit(smoothing=0.3, max_limit=200, alpha=0, beta=0, threshold=0),
    "Gradient": GradientLimit,
    "Gradient low": lambda: GradientLimit(
        initial_limit=1, max_limit=9, queue_size=0, smoothing=1.0, countdown=3
    ),
    "Gradient2": Gradient2Limit,
    "Gradient2 low": lambda: Gradient2Limit(
        initial_limit=1, min_limit=1, queue_size=0, long_window=1, smoothing=1.0
    ),
    "Knee": KneeLimit,
    "Knee low": lambda: KneeLimit(1, max_limit=9),
    "Windowed": lambda: WindowedLimit(Gradient2Limit(min_limit=1, smoothing=1.0), window_size=1),
    "Windowed percentile": lambda: WindowedLimit(
        VegasLimit(max_limit=200),
        window_size=1,
        min_window_s=1e-9,
        min_rtt_threshold_s=0.0,
        sampler="percentile",
        percentile=0.01,
        sampler_size=3,
    ),
}
BOUNDS = {"Fixed": (7, 7), "AIMD": (20, 200), "AIMD low": (1, 200), "Vegas low": (1, 3),
          "Gradient low": (1, 9), "Gradient2": (20, 200), "Knee low": (1, 9)}  # fmt: skip

finite = st.floats(allow_nan=False, allow_infinity=False)
SAMPLES = st.lists(
    st.builds(
        Sample,
        started_at=finite | st.floats(0, 10),
        latency=finite | st.floats(0, 3) | st.sampled_from([0.0, NS, 0.1, 5.0]),
        in_flight=st.integers(0, 400) | st.integers(),
        outcome=st.sampled_from(Outcome),
    ),
    max_size=30,
)


@pytest.mark.parametrize("name", MADE)
@given(samples=SAMPLES, split=st.integers(0, 30))
def test_the_same_samples_give_the_same_values_within_the_bounds(
    name: str, samples: list[Sample], split: int
) -> None:
    low, high = BOUNDS.get(name, (1, 1000))
    said = values(MADE[name](), samples)
    assert all(type(value) is int and low <= value <= high for value in said)
    limit = MADE[name]()
    begun = values(limit, samples[:split])
    assert begun + values(copy.deepcopy(limit), samples[split:]) == said
    assert begun + values(limit, samples[split:]) == said


IGNORED = sample(7.0, 9, at=1e6, outcome=Outcome.IGNORED)


@pytest.mark.parametrize("name", MADE)
@given(samples=SAMPLES)
def test_what_is_ignored_says_nothing(name: str, samples: list[Sample]) -> None:
    one, other = MADE[name](), MADE[name]()
    for each in samples:
        assert one.on_sample(IGNORED) == other.value
        if each.outcome is not Outcome.IGNORED:
            other.on_sample(each)
        assert one.on_sample(each) == other.value


@pytest.mark.parametrize("latency", [0.0, -1.0, 1e-10])
@pytest.mark.parametrize("name", MADE)
def test_a_branch_that_took_no_time_took_a_nanosecond(name: str, latency: float) -> None:
    one, other = MADE[name](), MADE[name]()
    for number in range(20):
        said = one.on_sample(sample(latency, at=number))
        if not name.startswith("Windowed"):
            assert said == other.on_sample(sample(NS, at=number))


@pytest.mark.parametrize("name", MADE)
def test_a_limit_is_a_limit_and_says_where_it_stands(name: str) -> None:
    limit = MADE[name]()
    assert isinstance(limit, Limit)
    assert re.search(rf": {limit.value}\b", repr(limit))
    assert "\n" not in repr(limit)


def test_a_fixed_limit_is_moved_by_hand_alone() -> None:
    limit = FixedLimit(limit=17)
    assert values(limit, [drop(), sample(), drop(9e9)]) == [17, 17, 17]
    limit.value = 40
    assert values(limit, [drop()]) == [40]


def test_a_sample_is_a_value() -> None:
    assert sample() == sample()
    assert pickle.loads(pickle.dumps(sample())) == sample()
    assert [outcome.value for outcome in Outcome] == ["ok", "dropped", "ignored"]


def test_a_limit_of_ones_own_can_be_windowed() -> None:
    assert heard([5, 5]) == [Sample(3.0, 5 / 1e9, 1000, Outcome.OK)]


# ---------------------------------------------------------------- errors

COUNT = "an int >= 1"
SHARE = "a number > 0 and < 1"
SMOOTHING = "a number > 0 and <= 1"
FUNCTION = "a function of the limit"
SIZE = "an int >= 0, or a function of the limit"
SECONDS = "a number of seconds > 0, or math.inf"
JITTER = "a number > 0 and <= 1, or a function that draws one"
INTERVAL = "an int >= 1, or -1 for never"
BY_SHARE = partial(WindowedLimit, AIMDLimit(), sampler="percentile", percentile=0.5, sampler_size=9)
BY_MEAN = partial(WindowedLimit, AIMDLimit())

# What makes it, the argument; what it has to be; what has a wrong value, and what a wrong type.
ERRORS: list[tuple[Callable[..., Limit], str, str, list[Any], list[Any]]] = [
    (FixedLimit, "limit", COUNT, [0], [1.5, True, None]),
    *[
        (cls, "initial_limit", COUNT, [0, -1], [1.5, True, None])
        for cls in (AIMDLimit, VegasLimit, GradientLimit, Gradient2Limit)
    ],
    *[
        (cls, name, COUNT, [0], [math.inf, None])
        for cls in (AIMDLimit, GradientLimit, Gradient2Limit)
        for name in ("min_limit", "max_limit")
    ],
    (VegasLimit, "max_limit", COUNT, [0], [math.inf, None]),
    *[
        (cls, "backoff_ratio", SHARE, [0, 1, 1.5, math.nan], ["0.9", True])
        for cls in (AIMDLimit, GradientLimit)
    ],
    (AIMDLimit, "timeout_s", SECONDS, [0, -1, math.nan], [None, True]),
    *[
        (cls, "smoothing", SMOOTHING, [0, 1.1, math.nan], [None, True])
        for cls in (VegasLimit, GradientLimit, Gradient2Limit)
    ],
    *[(VegasLimit, name, SIZE, [-1], [1.5, None, True]) for name in ("alpha", "beta", "threshold")],
    *[(VegasLimit, name, FUNCTION, [], [1, None]) for name in ("increase", "decrease")],
    (VegasLimit, "probe_multiplier", COUNT, [0], [1.5, True]),
    (VegasLimit, "probe_jitter", JITTER, [0, 1.1, math.nan], [None, True]),
    *[
        (cls, "queue_size", SIZE, [-1], [1.5, None, True, "max(4,isqrt)"])
        for cls in (GradientLimit, Gradient2Limit)
    ],
    *[
        (cls, "rtt_tolerance", "a finite number >= 1", [0.9, math.inf, math.nan], [None, True])
        for cls in (GradientLimit, Gradient2Limit)
    ],
    (GradientLimit, "probe_interval", INTERVAL, [0, -2], [1.5, True, None]),
    (GradientLimit, "countdown", "an int >= 0", [-1], [1.5, True]),
    (Gradient2Limit, "long_window", COUNT, [0], [1.5, True]),
    (WindowedLimit, "delegate", "a Limit", [], [None, 5, AIMDLimit]),
    *[(BY_MEAN, f"{end}_window_s", SECONDS, [0, -1, math.nan], [None]) for end in ("min", "max")],
    (BY_MEAN, "window_size", COUNT, [0], [1.5, True]),
    (
        BY_MEAN,
        "min_rtt_threshold_s",
        "a number of seconds >= 0, or math.inf",
        [-1, math.nan],
        [None],
    ),
    (BY_MEAN, "sampler", "'average' or 'percentile'", ["mean", None, 5], []),
    *[
        (BY_MEAN, name, "left out with the sampler 'average'", [5], [])
        for name in ("percentile", "sampler_size")
    ],
    (BY_SHARE, "percentile", SHARE, [0, 1, math.nan], [None, True]),
    (BY_SHARE, "sampler_size", COUNT, [0], [None, 1.5, True]),
]


@pytest.mark.parametrize(("make", "name", "what", "wrong_values", "wrong_types"), ERRORS)
def test_a_bad_argument_is_told_what_was_expected(
    make: Callable[..., Limit],
    name: str,
    what: str,
    wrong_values: list[object],
    wrong_types: list[object],
) -> None:
    for error, wrong in (ValueError, wrong_values), (TypeError, wrong_types):
        for value in wrong:
            message = f"`{name}` must be {what}, got {value!r}"
            with pytest.raises(error, match=f"^{re.escape(message)}$"):
                make(**{name: value})


@pytest.mark.parametrize("cls", [AIMDLimit, GradientLimit, Gradient2Limit])
def test_bounds_are_in_order(cls: Callable[..., Limit]) -> None:
    with pytest.raises(ValueError, match=r"^`min_limit` must be <= `max_limit`, 10, got 11$"):
        cls(min_limit=11, max_limit=10)
    assert cls(initial_limit=10, min_limit=10, max_limit=10).value == 10


def test_windows_are_in_order() -> None:
    message = r"^`min_window_s` must be <= `max_window_s`, 0\.5, got 1\.0$"
    with pytest.raises(ValueError, match=message):
        BY_MEAN(max_window_s=0.5)


def test_a_fixed_limit_is_set_to_what_a_limit_can_be() -> None:
    limit = FixedLimit(7)
    with pytest.raises(ValueError, match=r"^`value` must be an int >= 1, got 0$"):
        limit.value = 0
    assert limit.value == 7
