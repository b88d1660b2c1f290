"""Put a step under guards, which the sampler of its event loop's run tells of each reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._guarding import Guarding
from ._guards import Guards
from .pressure import current_sampler

if TYPE_CHECKING:
    from ._core import StepCore
    from ._resources import ResourceLimits


def guard(
    step: StepCore,
    limits: ResourceLimits,
    *,
    watches_memory: bool = False,
    watches_lag: bool = False,
) -> None:
    """Until the step is left; of the first reading it is told at once."""
    guards = Guards(limits, watches_memory=watches_memory, watches_lag=watches_lag)
    guarding = step.guarding = Guarding(step, guards)
    sampler = current_sampler(step.run)
    guarding.hasten = sampler.hasten
    guarding.leave = sampler.subscribe(guarding.told)
