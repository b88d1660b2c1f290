"""A parallel step in simulated time, under a limit: how good was it, beside the best fixed one?

1. N branches wait from the start; whenever fewer than the limit run, the next one starts.
2. The plant is shared alike: with n branches running, each goes on at 1 / slowdown(n).
3. A refusal (quota, bucket) takes `drop_s`, is told the limit as DROPPED, and the branch comes back
   after ``min(2, 0.1 * 2**tries)`` seconds.
4. Deterministic: no clock, and all randomness is in the work, which the case's seed draws.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import fmean

import attrs

from plants import Case, Oracle
from trio_parallel_steps.limits import FixedLimit, Limit, Outcome, Sample

Step = tuple[float, int, float, int]
"""when it ends, the branch, when it started, in flight then"""


@attrs.define
class Ran:
    """What came of it."""

    makespan: float = 0.0
    done_at: list[float] = attrs.field(factory=list)
    refused: int = 0
    latency_sum: float = 0.0
    limits: list[tuple[float, int]] = attrs.field(factory=list)
    """since when which"""
    truncated: bool = False

    @property
    def throughput(self) -> float:
        return len(self.done_at) / self.makespan

    @property
    def latency(self) -> float:
        return self.latency_sum / max(1, len(self.done_at))

    @property
    def refusal(self) -> float:
        return self.refused / max(1, self.refused + len(self.done_at))


class Loop:
    """One run of a case under a limit; `plan` moves it when the plant changes."""

    def __init__(
        self,
        case: Case,
        limit: Limit,
        *,
        plan: Sequence[tuple[float, int]] = (),
        works: Sequence[float] = (),
        log: list[str] | None = None,
    ) -> None:
        self._case = case
        self._limit = limit
        self._plan = plan
        self._works = works or case.works()
        self._log = log
        self._now = 0.0
        self._progress = 0.0  # seconds of work that a branch has done that has run all along
        self._running: list[Step] = []  # a heap, by the progress at which each ends
        self._refusals: list[Step] = []  # a heap, by time
        self._backing_off: list[tuple[float, int]] = []  # a heap, by time
        self._back: deque[int] = deque()
        self._fresh = 0
        self._tries: Counter[int] = Counter()
        self._tokens = float(case.bucket.burst) if case.bucket else 0.0
        self._tokens_at = 0.0
        self._segments = iter(case.plant)
        self._slowdown = next(self._segments).slowdown()
        self._next_segment = next(self._segments, None)
        self._may_run = 0
        self._ran = Ran()

    def run(self, *, longest: float = 3600.0) -> Ran:
        ran, case = self._ran, self._case
        self._set_limit(max(1, min(case.max_limit, self._limit.value)))
        events, most_events = 0, 60 * case.n + 200_000
        while len(ran.done_at) < case.n:
            self._start_those_that_may()
            events += 1
            if events > most_events or self._now > longest:
                break
            self._go_on()
        ran.makespan = self._now
        ran.truncated = len(ran.done_at) < case.n
        return ran

    @property
    def _in_flight(self) -> int:
        return len(self._running) + len(self._refusals)

    # ------------------------------------------------------------ starts

    def _start_those_that_may(self) -> None:
        while self._in_flight < self._may_run:
            branch = self._next_branch()
            if branch is None:
                return
            self._start(branch)

    def _next_branch(self) -> int | None:
        while self._backing_off and self._backing_off[0][0] <= self._now:
            self._back.append(heapq.heappop(self._backing_off)[1])
        if self._back:
            return self._back.popleft()
        if self._fresh == self._case.n:
            return None
        self._fresh += 1
        return self._fresh - 1

    def _start(self, branch: int) -> None:
        in_flight = self._in_flight + 1
        if self._refuses():
            ends_at = self._now + self._case.drop_s
            heapq.heappush(self._refusals, (ends_at, branch, self._now, in_flight))
        else:
            ends_at = self._progress + self._works[branch]
            heapq.heappush(self._running, (ends_at, branch, self._now, in_flight))
        self._tell("start", branch, in_flight)

    def _refuses(self) -> bool:
        if self._case.quota is not None and len(self._running) >= self._case.quota:
            return True
        bucket = self._case.bucket
        if bucket is None:
            return False
        gained = (self._now - self._tokens_at) * bucket.rate
        self._tokens = min(bucket.burst, self._tokens + gained)
        self._tokens_at = self._now
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False

    # ------------------------------------------------------------ events

    def _go_on(self) -> None:
        """To the next event."""
        running, refusals = self._running, self._refusals
        rate = self._slowdown(len(running)) if running else 0.0
        ends_at = self._now + (running[0][0] - self._progress) * rate if running else math.inf
        refused_at = refusals[0][0] if refusals else math.inf
        may_start = self._backing_off and self._in_flight < self._may_run
        back_at = self._backing_off[0][0] if may_start else math.inf
        changes_at = math.inf if self._next_segment is None else self._next_segment.at
        at = min(ends_at, refused_at, back_at, changes_at)
        if running:
            passed = (at - self._now) / rate
            self._progress = running[0][0] if at == ends_at else self._progress + passed
        self._now = at
        if at == changes_at:
            self._change_plant()
        elif at == ends_at:
            self._end()
        elif at == refused_at:
            self._refuse()

    def _change_plant(self) -> None:
        assert self._next_segment is not None
        self._slowdown = self._next_segment.slowdown()
        self._next_segment = next(self._segments, None)
        for at, limit in self._plan:
            if self._now >= at:
                planned = limit
        if self._plan:
            self._set_limit(planned)

    def _end(self) -> None:
        _, branch, started_at, in_flight = heapq.heappop(self._running)
        self._ran.done_at.append(self._now)
        self._ran.latency_sum += self._now - started_at
        self._tell("end", branch, in_flight)
        self._sample(started_at, in_flight, Outcome.OK)

    def _refuse(self) -> None:
        _, branch, started_at, in_flight = heapq.heappop(self._refusals)
        self._ran.refused += 1
        pause = min(2.0, 0.1 * 2 ** self._tries[branch])
        self._tries[branch] += 1
        heapq.heappush(self._backing_off, (self._now + pause, branch))
        self._tell("refused", branch, in_flight)
        self._sample(started_at, in_flight, Outcome.DROPPED)

    def _sample(self, started_at: float, in_flight: int, outcome: Outcome) -> None:
        if self._plan:
            return
        sample = Sample(started_at, self._now - started_at, in_flight, outcome)
        limit = max(1, min(self._case.max_limit, self._limit.on_sample(sample)))
        if limit != self._may_run:
            self._set_limit(limit)

    def _set_limit(self, limit: int) -> None:
        self._tell("limit", self._may_run, limit)
        self._may_run = limit
        self._ran.limits.append((self._now, limit))

    def _tell(self, what: str, *figures: int) -> None:
        if self._log is not None:
            self._log.append(" ".join((repr(self._now), what, *map(str, figures))))


# ---------------------------------------------------------------- the oracle


@attrs.frozen(order=True)
class Fixed:
    """How a fixed limit does."""

    throughput: float
    limit: int
    latency: float
    refusal: float


def examined(case: Case) -> Case:
    """With its oracle."""
    if case.oracle is not None:
        return case
    find = best_fixed if len(case.plant) == 1 else best_plan
    return attrs.evolve(case, oracle=find(case))


def best_fixed(case: Case) -> Oracle:
    """The smallest limit within a percent of the best throughput."""
    works, highest = case.works(), case.highest_limit()
    seen = {limit: _fixed(case, limit, works) for limit in _grid(highest)}
    best = max(seen.values()).limit
    for limit in range(max(1, int(best * 0.88)), min(highest, int(best * 1.12) + 1) + 1):
        if limit not in seen:
            seen[limit] = _fixed(case, limit, works)
    top = max(one.throughput for one in seen.values())
    least = min(
        (one for one in seen.values() if one.throughput >= 0.99 * top), key=lambda one: one.limit
    )
    return Oracle(least.limit, top, least.latency, least.refusal)


def best_plan(case: Case) -> Oracle:
    """One that knows when the plant changes, and the best limit for each segment."""
    plan = []
    for segment in case.plant:
        alone = attrs.evolve(case, plant=[attrs.evolve(segment, at=0.0)], n=min(case.n, 4000))
        plan.append((segment.at, best_fixed(alone).limit))
    ran = Loop(case, FixedLimit(plan[0][1]), plan=plan).run()
    return Oracle(plan[0][1], ran.throughput, ran.latency, ran.refusal, plan)


def _fixed(case: Case, limit: int, works: Sequence[float]) -> Fixed:
    ran = Loop(case, FixedLimit(limit), works=works).run()
    return Fixed(ran.throughput, limit, ran.latency, ran.refusal)


def _grid(highest: int) -> list[int]:
    limits, limit = {highest}, 1.0
    while limit <= highest:
        limits.add(int(limit))
        limit = max(limit + 1, limit * 1.12)
    return sorted(limits)


# ---------------------------------------------------------------- marks


@attrs.frozen
class Marks:
    """How a limit did in a case."""

    id: str
    family: str
    ratio: float
    """throughput, beside the oracle's"""
    inflation: float
    """mean latency, beside the oracle's"""
    convergence: float | None
    """seconds until throughput stayed near the oracle's; None for moving and tiny cases"""
    limit_cv: float
    """coefficient of variation of the limit in the second half"""
    refusal: float
    """share of the attempts that were refused"""
    oracle_refusal: float
    limit_mean: float
    oracle_limit: int
    truncated: bool


def marks(case: Case, limit: Limit, log: list[str] | None = None) -> Marks:
    """How `limit` does in a case that has its oracle."""
    oracle = case.oracle
    assert oracle is not None
    ran = Loop(case, limit, log=log).run()
    mean, cv = _limit_moments(ran)
    return Marks(
        id=case.id,
        family=case.family,
        ratio=ran.throughput / oracle.throughput,
        inflation=ran.latency / oracle.latency,
        convergence=_convergence(ran, oracle) if len(case.plant) == 1 else None,
        limit_cv=cv,
        refusal=ran.refusal,
        oracle_refusal=oracle.refusal,
        limit_mean=mean,
        oracle_limit=oracle.limit,
        truncated=ran.truncated,
    )


def _convergence(ran: Ran, oracle: Oracle) -> float | None:
    """When the first of ten windows began that came to .9 of the oracle's throughput together."""
    width = max(1.0, 60 / oracle.throughput)
    windows = int((ran.makespan - 1.5 * oracle.latency) / width)
    if windows < 4:
        return None
    counts = Counter(int(at / width) for at in ran.done_at)
    gained = [counts[window] / width / oracle.throughput for window in range(windows)]
    for window, share in enumerate(gained):
        if share >= 0.85 and fmean(gained[window : window + 10]) >= 0.9:
            return window * width
    return ran.makespan


def _limit_moments(ran: Ran) -> tuple[float, float]:
    """Its mean and coefficient of variation over time, in the second half but for the end."""
    begin, end = ran.makespan * 0.5, ran.makespan * 0.95
    weight = first = second = 0.0
    until = [at for at, _ in ran.limits[1:]] + [ran.makespan]
    for (since, limit), ended in zip(ran.limits, until, strict=True):
        seconds = min(end, ended) - max(begin, since)
        if seconds > 0:
            weight += seconds
            first += seconds * limit
            second += seconds * limit * limit
    if not weight:
        return ran.limits[-1][1], 0.0
    mean = first / weight
    return mean, math.sqrt(max(0.0, second / weight - mean * mean)) / mean


@attrs.frozen
class Total:
    """Marks of many cases in one figure each."""

    mean: float
    worst: float


def total(figures: Iterable[float | None], worst: str) -> Total | None:
    """`worst` is "min" or "max"."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return None
    return Total(fmean(known), min(known) if worst == "min" else max(known))
