"""What users say of resources, and are told: `ResourceLimits`, `PressureAction`, `Pressure`."""

from __future__ import annotations

import enum
from math import inf
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from ._util import expected, is_number

if TYPE_CHECKING:
    from collections.abc import Mapping

POSITIVE: Final = "a finite number > 0, or None"
PERCENT: Final = "a number > 0 and <= 100, or None"


@final
class PressureLevel(enum.IntEnum):
    """How hard a resource is pressed; a harder level does all that an easier one does."""

    OK = 0
    HOLD = 1
    """Nothing new is admitted but what has reserved its memory."""
    SHRINK = 2
    """An adaptive limit is cut."""
    STOP = 3
    """Nothing new at all."""
    SHED = 4
    """The step's `PressureAction` comes."""


@final
class PressureAction(enum.Enum):
    """What a step does when a resource is at its limit."""

    HOLD = "hold"
    """Backpressure: admit nothing new (one branch that is not parked may always run)."""
    SHED = "shed"
    """And cancel the lowest-priority, newest branch, one at a time, to run again later: for
    branches that are safe to repeat."""
    BREACH = "breach"
    """Stop the whole step."""


def _check_positive(limits: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is None:
        return
    what = PERCENT if attribute.name.endswith("percent") else POSITIVE
    if not is_number(value):
        raise TypeError(expected(attribute.name, what, value))
    if not 0 < value < inf or (what is PERCENT and value > 100):  # NaN too
        raise ValueError(expected(attribute.name, what, value))


def _check_action(limits: Any, attribute: attrs.Attribute[Any], value: PressureAction) -> None:
    if not isinstance(value, PressureAction):
        raise TypeError(expected("action", "a PressureAction", value))


@final
@attrs.frozen(kw_only=True)
class ResourceLimits:
    """What a step may use; None means no limit.

    `max_memory_mb` is of this process and its children (RSS, in 2**20 bytes), `max_memory_percent`
    of what the host or the tightest cgroup allows (page cache that can be reclaimed left out),
    `max_cpu_percent` of `usable_cpus`, by this process and its children over the last second, and
    `max_loop_lag` the seconds that a ready task waits (the median of the last second).

    A limit of memory is where the step must never come: admissions are held from 70 % of it on and
    `action` comes at 95 %, of what the host and the cgroups allow too.  CPU and lag are held at
    their limits; SHED or BREACH come there, and holding at 90 %.

    >>> ResourceLimits(max_memory_mb=1024, action=PressureAction.SHED).max_memory_mb
    1024
    """

    max_memory_mb: float | None = attrs.field(default=None, validator=_check_positive)
    """of this process and its children (RSS), in 2**20 bytes"""
    max_memory_percent: float | None = attrs.field(default=None, validator=_check_positive)
    """of what the host or the tightest cgroup allows"""
    max_cpu_percent: float | None = attrs.field(default=None, validator=_check_positive)
    """of the CPUs that this process may use, by it and its children"""
    max_loop_lag: float | None = attrs.field(default=None, validator=_check_positive)
    """seconds that a ready task waits"""
    action: PressureAction = attrs.field(default=PressureAction.HOLD, validator=_check_action)
    """what happens at a limit"""

    @property
    def limits_memory(self) -> bool:
        """Is there a limit of memory?"""
        return self.max_memory_mb is not None or self.max_memory_percent is not None


def check_resources(
    resources: ResourceLimits | None, name: str = "resources"
) -> ResourceLimits | None:
    if not isinstance(resources, ResourceLimits | None):
        raise TypeError(expected(name, "a ResourceLimits or None", resources))
    return resources


@final
@attrs.frozen(kw_only=True)
class Pressure:
    """How pressed a step's resources are, by its `ResourceLimits`; None is what was not measured.

    `working_set_mb` is the RSS of this process and its children.  `memory_percent` is of the
    tightest of the host, every cgroup and `max_memory_mb`.  `cpu_percent` is of `usable_cpus`,
    `loop_lag` in seconds.  `psi` has the shares of the last second in which tasks stalled, from
    ``"memory some"`` to ``"io full"``; `io` bytes a second, ``"read"`` and ``"write"``.  `levels`
    has the level of each guard, `level` the hardest; `reason` says in words, with figures, of the
    guard that is pressed most.
    """

    working_set_mb: float | None
    memory_percent: float | None
    cpu_percent: float | None
    loop_lag: float | None
    psi: Mapping[str, float] | None
    io: Mapping[str, float] | None
    levels: Mapping[str, PressureLevel]
    level: PressureLevel
    reason: str
