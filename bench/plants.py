"""What limits are examined on: plants, which get slower the more they run, and the work for them.

1. A case is plain data, and its work is drawn from its seed: the same for every limit.
2. A plant is known by how much slower each branch is while `n` of them run, 1 or more.
3. Cases of our own are drawn from a seed too, over the ranges of the public ones: no limit is tuned
   to one that it is shown on.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import attrs
import cattrs

Slowdown = Callable[[int], float]


@attrs.frozen
class Segment:
    """How a plant behaves from the time `at` on, in seconds."""

    kind: str
    at: float = 0.0
    c: float | None = None
    """what it can do at once"""
    m: float = 1.0
    """how sharply a soft knee bends"""
    sigma: float = 0.0
    kappa: float = 1.0
    """contention and coherency, of the universal scalability law"""
    cap: int = 1
    factor: float = 1.0
    """how many branches fit in memory, and how much slower all are beyond"""

    def slowdown(self) -> Slowdown:
        return SLOWDOWNS[self.kind](self)

    def highest(self, case: "Case") -> float:
        """A limit past which none is better."""
        return HIGHEST[self.kind](self, case)


def _capacity(segment: Segment) -> float:
    return 1e9 if segment.c is None else segment.c


def _knee(segment: Segment) -> Slowdown:
    c = _capacity(segment)
    return lambda n: n / c if n > c else 1.0


def _soft(segment: Segment) -> Slowdown:
    c, m = _capacity(segment), segment.m
    return lambda n: float((1 + (n / c) ** m) ** (1 / m))


def _usl(segment: Segment) -> Slowdown:
    sigma, kappa = segment.sigma, segment.kappa
    return lambda n: 1 + sigma * (n - 1) + kappa * n * (n - 1)


def _cliff(segment: Segment) -> Slowdown:
    c, cap, factor = _capacity(segment), segment.cap, segment.factor
    return lambda n: max(1.0, n / c) * (factor * n / cap if n > cap else 1.0)


def _flat(segment: Segment) -> Slowdown:
    return lambda n: 1.0


SLOWDOWNS: dict[str, Callable[[Segment], Slowdown]] = {
    "knee": _knee, "soft": _soft, "usl": _usl, "cliff": _cliff, "flat": _flat,
}  # fmt: skip

HIGHEST: dict[str, Callable[[Segment, "Case"], float]] = {
    "knee": lambda plant, case: 2.5 * _capacity(plant) + 6,
    "soft": lambda plant, case: 8 * _capacity(plant) + 6,
    "usl": lambda plant, case: 2.5 * math.sqrt((1 - plant.sigma) / plant.kappa) + 6,
    "cliff": lambda plant, case: 1.6 * plant.cap + 6,
    "flat": lambda plant, case: case.max_limit,
}


@attrs.frozen
class Bucket:
    """Refuses what comes when it has no token."""

    rate: float
    burst: int


@attrs.frozen
class Cold:
    """The first branches have more to do."""

    first: int
    factor: float


@attrs.frozen
class Oracle:
    """The best fixed limit, or the best for each segment; and where it leads."""

    limit: int
    throughput: float
    latency: float
    refusal: float
    plan: Sequence[tuple[float, int]] = ()


@attrs.frozen
class Case:
    id: str
    family: str
    seed: int
    n: int
    max_limit: int
    r0: float
    """seconds of work in a branch, on average"""
    cv: float
    """its coefficient of variation"""
    plant: Sequence[Segment]
    quota: int | None = None
    bucket: Bucket | None = None
    drop_s: float = 0.02
    """what a refusal takes"""
    mix: Sequence[tuple[float, float]] = ()
    """shares of the branches, and how much more they have to do"""
    cold: Cold | None = None
    oracle: Oracle | None = None

    def works(self) -> list[float]:
        """Seconds that each branch would take alone."""
        rng = Random(self.seed)
        sigma = math.sqrt(math.log(1 + self.cv * self.cv))
        works = []
        for _ in range(self.n):
            work = self.r0 * math.exp(sigma * rng.gauss(0, 1) - sigma * sigma / 2)
            works.append(work * self._mixed(rng) if self.mix else work)
        if self.cold is not None:
            for i in range(min(self.cold.first, self.n)):
                works[i] *= self.cold.factor
        return works

    def _mixed(self, rng: Random) -> float:
        """Scaled to a mean of 1."""
        mean = sum(share * factor for share, factor in self.mix)
        left = rng.random()
        for share, factor in self.mix[:-1]:
            left -= share
            if left < 0:
                return factor / mean
        return self.mix[-1][1] / mean

    def highest_limit(self) -> int:
        """Where the search for the best one ends."""
        highest = max(8, *(segment.highest(self) for segment in self.plant))
        if self.quota is not None:
            highest = min(highest, self.quota * 1.5 + 4)
        if self.bucket is not None:
            highest = min(highest, 3 * self.bucket.rate * self.r0 + 6)
        return int(min(self.max_limit, highest, self.n))


def public_cases() -> list[Case]:
    content = json.loads(Path(__file__).with_name("cases_public.json").read_text())
    return cattrs.structure(content["cases"], list[Case])


def smallest_of_each_family(cases: Sequence[Case]) -> list[Case]:
    families = dict.fromkeys(case.family for case in cases)
    return [min((c for c in cases if c.family == f), key=lambda case: case.n) for f in families]


# ---------------------------------------------------------------- cases of our own


@attrs.define
class Draft:
    """A case as it is drawn."""

    rng: Random
    number: int
    r0: float
    c: int
    rate: float
    """of branches, a second, at its best"""
    seconds: float
    options: dict[str, Any] = attrs.field(factory=dict)
    """of the case"""

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def uniform(self, low: float, high: float, digits: int = 4) -> float:
        return round(self.rng.uniform(low, high), digits)

    def plant(self, kind: str, **figures: float) -> None:
        self.options["plant"] = [Segment(kind, **figures)]  # type: ignore[arg-type]


def _draw_knee(draft: Draft) -> None:
    draft.plant("knee", c=draft.c)


def _draw_soft(draft: Draft) -> None:
    draft.plant("soft", c=draft.c, m=draft.uniform(2, 5))


def _draw_usl(draft: Draft) -> None:
    best = draft.log_uniform(12, 100)
    sigma = draft.rng.uniform(0.005, 0.03)
    kappa = (1 - sigma) / best**2
    draft.plant("usl", sigma=round(sigma, 4), kappa=round(kappa, 8))
    draft.rate = best / draft.r0 / (1 + sigma * (best - 1) + kappa * best * (best - 1))


def _draw_quota(draft: Draft) -> None:
    draft.options.update(quota=draft.c, drop_s=draft.uniform(0.02, 0.05))
    draft.plant("flat")


def _draw_moving(draft: Draft) -> None:
    """There, and every second time back again."""
    there = int(draft.log_uniform(5, 100))
    capacities = [draft.c, there, draft.c] if draft.number % 2 else [draft.c, there]
    draft.options["plant"] = [Segment("knee", 30.0 * i, c) for i, c in enumerate(capacities)]
    draft.rate, draft.seconds = (draft.c + there) / 2 / draft.r0, 90


def _draw_mixed(draft: Draft) -> None:
    draft.options["mix"] = MIXES[draft.number % len(MIXES)]
    draft.plant("knee", c=draft.c)


def _draw_cliff(draft: Draft) -> None:
    cap, factor = max(8, draft.c), draft.uniform(2, 6)
    draft.plant("cliff", cap=cap, factor=factor)
    if draft.number % 2:
        c = max(4, int(draft.c * draft.rng.uniform(0.5, 1)))
        draft.plant("cliff", cap=cap, factor=factor, c=c)


def _draw_tiny(draft: Draft) -> None:
    draft.plant("knee", c=int(draft.log_uniform(4, 40)))
    draft.options.update(n=draft.rng.choice([20, 40, 60]), r0=draft.uniform(0.2, 0.9))


def _draw_cold(draft: Draft) -> None:
    draft.options["cold"] = Cold(draft.rng.choice([10, 20, 40]), draft.uniform(3, 8, digits=1))
    draft.plant("knee", c=draft.c)


def _draw_bucket(draft: Draft) -> None:
    draft.rate = draft.log_uniform(20, 160)
    draft.options["bucket"] = Bucket(round(draft.rate, 4), draft.rng.randrange(5, 30))
    draft.options["drop_s"] = draft.uniform(0.02, 0.05)
    draft.plant("flat")


def _draw_flat(draft: Draft) -> None:
    most = int(draft.log_uniform(50, 200))
    draft.options["max_limit"] = most
    draft.plant("flat")
    draft.rate = most / draft.r0


MIXES = [
    [(0.8, 0.4), (0.2, 4.0)],
    [(0.5, 0.2), (0.4, 1.0), (0.1, 6.0)],
    [(0.9, 0.5), (0.1, 5.0)],
]

FAMILIES: dict[str, Callable[[Draft], None]] = {
    "knee": _draw_knee,
    "softknee": _draw_soft,
    "usl": _draw_usl,
    "quota": _draw_quota,
    "moving": _draw_moving,
    "mixed": _draw_mixed,
    "cliff": _draw_cliff,
    "tiny": _draw_tiny,
    "cold": _draw_cold,
    "bucket": _draw_bucket,
    "flat": _draw_flat,
}


def own_cases(seed: int, per: int) -> list[Case]:
    """So many of each family."""
    rng = Random(seed)
    return [_drawn(rng, family, seed, k) for family in FAMILIES for k in range(per)]


def _drawn(rng: Random, family: str, seed: int, number: int) -> Case:
    draft = Draft(rng, number, r0=0.0, c=0, rate=0.0, seconds=0.0)
    draft.r0 = round(draft.log_uniform(0.1, 0.6), 4)
    cv = draft.uniform(0.1, 0.5)
    draft.c = int(draft.log_uniform(5, 100))
    case_seed = rng.randrange(2**30)
    draft.seconds, draft.rate = rng.uniform(40, 90), draft.c / draft.r0
    FAMILIES[family](draft)
    options = {
        "n": int(min(20_000, max(1500, draft.rate * draft.seconds))),
        "max_limit": 1000,
        "r0": draft.r0,
        **draft.options,
    }
    return Case(f"{family}-s{seed}-{number}", family, case_seed, cv=cv, **options)
