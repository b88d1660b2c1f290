"""Which branches the demo runs: one a package, and the samples.

1. Each package is counted once; a sample reads one again, and its counts go into no total.
2. ``--fail N``: the first N packages by name.
3. Samples go before the census and the high ones before the low ones.  The low ones get the five
   largest packages and the high ones the next three, so that a high one is in first even if all of
   them run at once.
"""

from collections.abc import Sequence

import attrs

from trio_parallel_steps import CancelRule

from ._census import Package

SAMPLE_RULE = CancelRule("high_priority_*", "low_priority_*")
HIGH, LOW = 2, 1  # the census has 0
HIGH_SAMPLES, LOW_SAMPLES = 3, 5


@attrs.frozen
class Job:
    """A branch to be: its key, what it reads, and how."""

    key: str
    package: Package
    priority: int = 0
    fails: bool = False
    sample: bool = False


def census_jobs(packages: Sequence[Package], fail: int = 0) -> list[Job]:
    """A job for each package, of which the first `fail` fail."""
    return [Job(package.name, package, fails=i < fail) for i, package in enumerate(packages)]


def sample_jobs(packages: Sequence[Package]) -> list[Job]:
    """high_priority_1..3 and low_priority_1..5 over the largest packages; if there are fewer than
    eight, some are read more than once."""
    largest = sorted(packages, key=lambda package: package.size, reverse=True)
    largest = [largest[i % len(largest)] for i in range(LOW_SAMPLES + HIGH_SAMPLES)]
    low = [
        Job(f"low_priority_{i}", package, LOW, sample=True)
        for i, package in enumerate(largest[:LOW_SAMPLES], 1)
    ]
    high = [
        Job(f"high_priority_{i}", package, HIGH, sample=True)
        for i, package in enumerate(largest[LOW_SAMPLES:], 1)
    ]
    return high + low
