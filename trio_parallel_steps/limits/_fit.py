"""`Fit`: what is known of how latency grows with concurrency.

1. The model: with n in flight the log of latency is a + s/m * log(1 + (n/c)^m).  Below the knee c
   it is flat, past it latency grows as n^s, and m says how sharply the one turns into the other.
2. (m, s) is one of SHAPES, each with a prior; log c is on a grid.  Every pair is a hypothesis.  Its
   a is fitted by least squares, in closed form, and what is left over makes its likelihood.
3. c may also lie far below all that was measured or far above: a coarser grid down to 1, and one
   value above, so that a single level says nothing about where the knee is.
4. Log latencies are summed in bins of log n, with their weight in samples.  All of them together
   weigh as much as the mean's precision asks for: new ones push out the old, and slowly those far
   from the level that is in use, which are seldom measured anew.
5. The best level maximises E[log n - (1 + latency_weight) * growth(n)], growth being that of log
   latency: log throughput less latency's price.  For a sharp knee this is the newsvendor's
   quantile of c.
6. A call costs at most bins * hypotheses, both bounded by the logarithm of what an int can hold.
"""

from __future__ import annotations

from math import exp, inf, log1p, sqrt
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH: Final = 0.06
"""Of a bin, in log n."""

SHAPES: Final = ((2, 1, 0.0), (4, 1, 0.0), (16, 1, 0.6), (2, 2, -0.5), (16, 2, -1.5))
"""m, s and the log of the prior: soft to sharp knees of a queue, then a plant that loses throughput
(the quadratic term of the universal scalability law), smoothly or over a cliff."""

PRECISION: Final = 4000.0
"""Weight of all bins, over the variance of log latency: a standard error of the mean of 1/63."""

LEAST_WEIGHT: Final = 200.0
BIAS: Final = 0.02
"""Of a bin's mean, however many its samples: no shape is exactly the plant's."""

NEAR: Final = 4
"""Bins this near to the level in use are measured anew; those further off fade by FADING."""
FADING: Final = 0.95
ABOVE: Final = 12
BELOW: Final = 10
"""Bins above and below what was measured, where the grid is fine."""
STEP: Final = 2
COARSE: Final = 6
SPAN: Final = 400
"""Bins of the tables, either way: exp(SPAN * WIDTH) is more than any level that is tried."""


def _growth(d: float, m: int, s: int) -> float:
    """Of log latency, at log n = log c + d."""
    z = m * d
    return s / m * (z + log1p(exp(-z)) if z > 0 else log1p(exp(z)))


_TABLES: Final = [
    (tuple(_growth(i * WIDTH, m, s) for i in range(-SPAN, SPAN + 1)), prior)
    for m, s, prior in SHAPES
]


_Hypothesis: TypeAlias = tuple[float, int, tuple[float, ...], float]
"""Its probability, the knee's bin, the growth of log latency by bins from there, and a."""


@attrs.define
class _Bin:
    weight: float = 0.0
    total: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.weight


class Fit:
    """A posterior over knees."""

    __slots__ = ("_bins", "_fresh", "_hypotheses", "_known", "_weight", "variance")

    def __init__(self) -> None:
        self._bins: dict[int, _Bin] = {}
        self._hypotheses: list[_Hypothesis] = []
        self._weight = 0.0
        self._fresh = 0.0  # weight that no hypothesis has seen
        self._known = 5.0  # samples behind the variance
        self.variance = 0.1
        """Of log latency, at one level."""

    @property
    def is_solved(self) -> bool:
        """Has it anything to say?"""
        return bool(self._hypotheses)

    @property
    def is_stale(self) -> bool:
        """Has enough come in to be worth solving again?"""
        return self._fresh * 6 >= self._weight

    def learn_variance(self, variance: float, n: int) -> None:
        """`n` samples at one level had this variance."""
        self.variance = (self.variance * self._known + max(1e-4, variance) * n) / (self._known + n)
        self._known = min(self._known + n, 300.0)

    def add(self, x: float, y: float, n: int, level: float) -> None:
        """`n` samples had a mean log latency of `y` at log n = `x`; `level` is the log in use."""
        cap = max(LEAST_WEIGHT, PRECISION * self.variance, 3.0 * n)
        if 0 < self._weight > cap - n:
            kept, here = max(0.1, (cap - n) / self._weight), round(level / WIDTH)
            near = range(here - NEAR, here + NEAR + 1)
            self._scale(lambda j, _: kept if j in near else max(kept, FADING))
        bin_ = self._bins.setdefault(round(x / WIDTH), _Bin())
        bin_.weight += n
        bin_.total += n * y
        self._weight += n
        self._fresh += n

    def _scale(self, factor: Callable[[int, _Bin], float]) -> None:
        for j, bin_ in self._bins.items():
            kept = factor(j, bin_)
            bin_.weight *= kept
            bin_.total *= kept
        self._bins = {j: bin_ for j, bin_ in self._bins.items() if bin_.weight >= 1}
        self._weight = sum(bin_.weight for bin_ in self._bins.values())

    def fade(self, factor: float) -> None:
        """All that was measured so far counts for less."""
        self._scale(lambda *_: factor)

    def keep_base(self, base: float) -> None:
        """Forget all but the latency without load."""
        self._weight = 20.0
        self._bins = {0: _Bin(self._weight, self._weight * base)}

    def forget(self) -> None:
        """Forget all that was measured."""
        self._scale(lambda *_: 0.0)

    def expect_less(self, x: float, y: float) -> None:
        """The plant is faster than it was: at `x` latency is `y` now.  What lies above, and was
        worse by far than queueing explains, may well be as it was."""
        top = round(x / WIDTH)

        def kept(j: int, bin_: _Bin) -> float:
            if j <= top:
                return 0.3
            return 1.0 if bin_.mean - y > (j - top) * WIDTH + 0.5 else 0.1

        self._scale(kept)

    def was_better(self, x: float, y: float) -> bool:
        """Was latency clearly below `y`, at `x` or above?"""
        low = x / WIDTH - 0.5
        return any(
            j >= low and bin_.weight >= 5 and bin_.mean < y - 0.15 for j, bin_ in self._bins.items()
        )

    def forget_worse(self, x: float, y: float) -> float:
        """Forget all levels that had surely less throughput than `x`, a lower one, where log
        latency is `y`; returns the lowest of them.  No shape describes a cliff."""
        worse = {
            j
            for j, bin_ in self._bins.items()
            if j * WIDTH > x + WIDTH
            and bin_.mean - y > j * WIDTH - x + 0.25 + 3 * sqrt(self.variance / bin_.weight)
        }
        if not worse:
            return inf
        self._scale(lambda j, _: 0.0 if j in worse else 1.0)
        return exp(min(worse) * WIDTH)

    def _knees(self, above: int, *, far: bool) -> list[tuple[int, float]]:
        """The grid of log c, each with the log of its share of the prior."""
        low, high = max(0, min(self._bins) - BELOW), max(self._bins) + above
        fine = [(knee, 0.0) for knee in range(low, high, STEP)]
        if not far:
            return fine
        return [*((knee, 0.4) for knee in range(low % COARSE, low, COARSE)), *fine, (high, 1.8)]

    def solve(self, above: int = ABOVE, *, far: bool = True) -> None:
        """Weigh the hypotheses by what the bins say."""
        self._fresh = 0.0
        doubt = BIAS**2 / self.variance
        bins = [
            (j, bin_.weight / (1 + bin_.weight * doubt), bin_.mean)
            for j, bin_ in self._bins.items()
        ]
        total = sum(weight for _, weight, _ in bins)
        mean = sum(weight * y for _, weight, y in bins) / total
        rows = [(j, weight, weight * (y - mean)) for j, weight, y in bins]
        found: list[_Hypothesis] = []  # with a loss in place of the probability
        for knee, share in self._knees(above, far=far):
            offset = SPAN - knee
            shifted = [(j + offset, weight, rest) for j, weight, rest in rows]
            for growth, prior in _TABLES:
                first = second = 0.0
                for i, weight, rest in shifted:
                    g = growth[i]
                    u = weight * g
                    first += u
                    second += u * g - 2 * rest * g
                loss = (second - first * first / total) / (2 * self.variance) - prior - share
                found.append((loss, knee, growth, mean - first / total))
        least = min(found)[0]
        likely = [
            (exp(least - loss), knee, growth, base)
            for loss, knee, growth, base in found
            if loss < least + 6
        ]
        evidence = sum(likelihood for likelihood, *_ in likely)
        self._hypotheses = [
            (likelihood / evidence, knee, growth, base) for likelihood, knee, growth, base in likely
        ]

    @property
    def base(self) -> float:
        """Log latency without load."""
        return sum(probability * base for probability, _, _, base in self._hypotheses)

    def predict(self, x: float) -> tuple[float, float]:
        """Mean and variance of what is believed of log latency at log n = `x`."""
        mean = square = 0.0
        at = round(x / WIDTH) + SPAN
        for probability, knee, growth, base in self._hypotheses:
            y = base + growth[at - knee]
            mean += probability * y
            square += probability * y * y
        return mean, max(0.0, square - mean * mean)

    def surprise(self, x: float, y: float, n: int) -> float:
        """How many standard errors `y`, the mean of `n` at `x`, is above what is believed."""
        mean, variance = self.predict(x)
        error = self.variance / n + variance + self.variance / max(20.0, self._weight) + 0.0009
        return (y - mean) / sqrt(error)

    def best(self, x: float, above: int, price: float) -> tuple[float, bool]:
        """The log of the best level from 24 bins below `x` to `above` bins above it, and whether
        better ones may lie beyond."""
        here = round(x / WIDTH)
        low, high = max(0, here - 24), here + above

        def utility(j: int) -> float:
            at = j + SPAN
            loss = sum([p * growth[at - knee] for p, knee, growth, _ in self._hypotheses])
            return j * WIDTH - (1 + price) * loss

        about = max((*range(low, high, 4), high), key=utility)
        best = max(range(max(low, about - 3), min(high, about + 3) + 1), key=utility)
        return best * WIDTH, best == high

    def __repr__(self) -> str:
        return f"<Fit of {len(self._bins)} bins, weight {self._weight:.0f}>"
