"""What a limit is told, and what it is asked.

Durations are compared and averaged in whole nanoseconds, so that two sums of the same samples can't
differ; a float of seconds holds them exactly for 26 days on the clock.
"""

import enum
from typing import Final, Protocol, final, runtime_checkable

import attrs

# What Java's long holds, and far past any clock.
_LONGEST: Final = 9.2e9


@final
class Outcome(enum.Enum):
    """What a branch's ending says about load."""

    OK = "ok"
    """it returned"""
    DROPPED = "dropped"
    """`Backpressure`, or its own timeout"""
    IGNORED = "ignored"
    """any other exception, and every cancellation: nothing"""


@final
@attrs.frozen
class Sample:
    """One branch that has ended, as a limit sees it.

    >>> Sample(started_at=2.0, latency=0.25, in_flight=3, outcome=Outcome.OK)
    Sample(started_at=2.0, latency=0.25, in_flight=3, outcome=<Outcome.OK: 'ok'>)
    """

    started_at: float
    """seconds on the event loop's clock"""
    latency: float
    """seconds running; queueing left out"""
    in_flight: int
    """how many ran when it started, itself included"""
    outcome: Outcome


@runtime_checkable
class Limit(Protocol):
    """An algorithm that says how many branches may run.  Write your own with these two.

    >>> class HalvedByDrops:
    ...     def __init__(self):
    ...         self.value = 64
    ...     def on_sample(self, sample):
    ...         if sample.outcome is Outcome.DROPPED:
    ...             self.value = max(1, self.value // 2)
    ...         return self.value
    >>> isinstance(HalvedByDrops(), Limit)
    True
    >>> HalvedByDrops().on_sample(Sample(0.0, 1.0, 64, Outcome.DROPPED))
    32
    """

    @property
    def value(self) -> int:
        """How many may run now, >= 1."""

    def on_sample(self, sample: Sample) -> int:
        """Take in how a branch ended, in the order of endings; the new value, >= 1.  Synchronous,
        quick, and never raises."""


def nanoseconds(seconds: float) -> int:
    return round(max(-_LONGEST, min(seconds, _LONGEST)) * 1e9)
