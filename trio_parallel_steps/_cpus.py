"""How many CPUs this process may use: affinity, and the CPU quota of its cgroups (v1 and v2)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use: affinity and cgroup quota counted, rounded up; at least 1.

    >>> usable_cpus() >= 1
    True
    """
    return max(1, int(min(_affinity(), _whole(cgroup_quota(CGROUPS, OWN_CGROUPS)))))


def _whole(cpus: float) -> float:
    return cpus if cpus == math.inf else math.ceil(cpus)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


def cgroup_quota(cgroups: Path, own: Path) -> float:
    """CPUs by the tightest quota among our cgroups and their ancestors; inf where there is none."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        try:
            _, controllers, path = line.split(":", 2)
        except ValueError:  # not a line of that file's
            continue
        if not controllers:
            quota = min(quota, _tightest(cgroups, path, _quota_v2))
        elif "cpu" in controllers.split(","):
            for mount in (cgroups / "cpu", cgroups / controllers):
                quota = min(quota, _tightest(mount, path, _quota_v1))
    return quota


def _tightest(mount: Path, path: str, quota_of: Callable[[Path], float]) -> float:
    # Inside a container the path may be the host's: then only the root of the mount is there.
    group = mount / path.strip("/")
    groups = [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return min(map(quota_of, groups))


def _quota_v2(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(group: Path) -> float:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
