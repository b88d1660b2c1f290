"""What the probes measure, as plain figures: a `Reading`.  None is what was not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen
class Scope:
    """What sets a limit to memory: the host, or a cgroup that we are in.  Used is what can't be
    reclaimed, in megabytes of 2**20 bytes."""

    name: str
    used_mb: float
    limit_mb: float
    is_host: bool = False


@attrs.frozen(kw_only=True)
class Reading:
    at: float = 0.0  # seconds on the event loop's clock
    working_set_mb: float | None = None  # RSS of this process and its children
    peak_mb: float | None = None  # the most that it has been since the last reading
    host: Scope | None = None
    cgroups: tuple[Scope, ...] = ()
    cpu_percent: float | None = None  # of usable_cpus(), over the last second
    loop_lag: float | None = None  # seconds, the median of the last second
    psi: Mapping[str, float] | None = None  # shares of the last second: "memory full" and so on
    io: Mapping[str, float] | None = None  # bytes a second: "read", "write"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        return self.cgroups if self.host is None else (self.host, *self.cgroups)


class Figures(TypedDict, total=False):
    """Those fields of a `Reading` that a probe has measured."""

    working_set_mb: float
    peak_mb: float
    host: Scope
    cgroups: tuple[Scope, ...]
    cpu_percent: float
    loop_lag: float
    psi: Mapping[str, float]
    io: Mapping[str, float]
