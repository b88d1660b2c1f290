"""Memory by cgroups, v1 and v2: the groups that this process is in, up to the root of the mount.

In a container ``/proc/self/cgroup`` may name paths of the host's.  Field 4 of ``mountinfo`` says
which group the mount shows; what lies outside of it is out of sight, and the mount's own root
stands for it.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from .._readings import Figures, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MB: Final = 2**20
NO_LIMIT: Final = 2**60  # bytes; v1 has no other word for none
LOOK_AGAIN: Final = 10.0  # seconds after which a group may have got a limit


@attrs.frozen
class Files:
    """What a version calls its files; the smallest limit counts."""

    used: str
    limits: tuple[str, ...]
    inactive: str


V1: Final = Files("memory.usage_in_bytes", ("memory.limit_in_bytes",), "total_inactive_file")
V2: Final = Files("memory.current", ("memory.max", "memory.high"), "inactive_file")


@attrs.frozen
class Group:
    path: Path
    name: str
    files: Files

    def limit(self) -> float | None:
        """Bytes."""
        limits = [limit for name in self.files.limits if (limit := self._number(name)) is not None]
        return min((limit for limit in limits if limit < NO_LIMIT), default=None)

    def scope(self) -> Scope | None:
        limit, used = self.limit(), self._number(self.files.used)
        if not limit or used is None:
            return None
        return Scope(self.name, max(0, used - self._inactive()) / MB, limit / MB)

    def _number(self, name: str) -> int | None:
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):  # not there; or "max"
            return None

    def _inactive(self) -> int:
        try:
            stat = (self.path / "memory.stat").read_text()
        except OSError:
            return 0
        for line in stat.splitlines():
            name, _, value = line.partition(" ")
            if name == self.files.inactive:
                return int(value)
        return 0


def memory_groups(root: Path) -> Iterator[Group]:
    """Innermost first.  `root` is where ``/`` is."""
    for mount, relative, version in _own_groups(root):
        place = mount / relative
        for path in (place, *place.parents):
            if path.is_relative_to(mount):
                name = "/".join(path.relative_to(mount).parts)
                yield Group(path, f"cgroup /{name}", version)


def unified_group(root: Path) -> Path | None:
    """The v2 group of this process, where there is one to see."""
    for mount, relative, version in _own_groups(root):
        if version is V2:
            return mount / relative
    return None


def _own_groups(root: Path) -> Iterator[tuple[Path, str, Files]]:
    """Mounts of those controllers that know of memory, and where in them we are."""
    try:
        paths = dict(_own_paths(root / "proc/self/cgroup"))
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no cgroups here
        return
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        if kind == "cgroup2":
            version = V2
        elif kind == "cgroup" and "memory" in options.split(","):
            version = V1
        else:
            continue
        if version in paths:
            _, _, _, shown, mount = map(_unescaped, before.split(" ")[:5])
            yield root / mount.lstrip("/"), _below(shown, paths[version]), version


def _own_paths(own: Path) -> Iterator[tuple[Files, str]]:
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield V2, path
        elif "memory" in controllers.split(","):
            yield V1, path


def _below(shown: str, path: str) -> str:
    """The path of a group within a mount that shows that group."""
    shown = shown.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{shown}/"):
        return ""
    return path[len(shown) :].strip("/")


def _unescaped(field: str) -> str:
    """Spaces and the like are in octal there."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


class CgroupProbe:
    """What every limited group of ours holds, and may."""

    __slots__ = ("_clock", "_groups", "_limited", "_look_at")

    name = "cgroup memory"
    every = 0.0

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._groups = tuple(memory_groups(root))
        self._limited: tuple[Group, ...] = ()
        self._clock = clock
        self._look_at = -math.inf

    def read(self) -> Figures:
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_AGAIN
            self._limited = tuple(group for group in self._groups if group.limit())
        scopes = (group.scope() for group in self._limited)
        return {"cgroups": tuple(scope for scope in scopes if scope is not None)}
