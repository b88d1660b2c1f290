"""What an algorithm is told of each branch that has run under its limit."""

from __future__ import annotations

from enum import Enum
from typing import Protocol, final

import attrs


class Outcome(Enum):
    """How a branch ended, as far as a limit is concerned."""

    OK = "ok"
    """It succeeded."""
    DROPPED = "dropped"
    """`Backpressure`, or the branch's own timeout: there was too much in flight."""
    IGNORED = "ignored"
    """Any other exception, and every cancellation: it says nothing about load."""


@final
@attrs.frozen
class Sample:
    """One branch that has run."""

    started_at: float
    """When it started, in seconds on any one clock."""
    latency: float
    """Seconds that it ran; its time in the queue is left out."""
    in_flight: int
    """How many were running when it started, itself included."""
    outcome: Outcome
    """How it ended."""


class Limit(Protocol):
    """An algorithm that moves a limit by what it is told."""

    @property
    def value(self) -> int:
        """How many may be in flight, at least 1."""
        ...

    def on_sample(self, sample: Sample) -> int:
        """Take a sample into account; returns the new value."""
        ...
