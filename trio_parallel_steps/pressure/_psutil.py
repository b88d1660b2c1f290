"""This process, its children and its host, by psutil.  Nothing else here imports it.

1. `psutil.Process` objects are kept from reading to reading: each is a process, and not a number
   that another may have by now.
2. ``cpu_percent`` is not asked: its first answer is 0.0, for each object, so that children that
   come and go would count as idle.  CPU seconds are added up instead, what a parent has reaped of
   its children's included: less what had been counted while they lived.
3. Children vanish, and may be another user's: what can't be read of one is not counted.  What can't
   be read of this process itself is an error of the probe's.
4. To list the descendants takes longest.  They are listed so seldom that it takes at most LISTING
   of the time; on Linux by the kernel's lists of children, in place of all the host's processes.
"""

from __future__ import annotations

import sys
import time
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psutil

from .._cpus import usable_cpus
from .._readings import Scope
from ._rates import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._readings import Figures

T = TypeVar("T")

MB: Final = 2**20
LISTING: Final = 0.01


class Family:
    """This process and its descendants."""

    __slots__ = ("_children", "_clock", "_list_at", "_proc", "own")

    def __init__(
        self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.own = psutil.Process()
        self._children: dict[int, psutil.Process] = {}
        self._clock = clock
        self._proc = proc
        self._list_at = 0.0

    def measure(self, what: Callable[[psutil.Process], T]) -> dict[psutil.Process, T]:
        """Of each of them, this process first."""
        measured = {self.own: what(self.own)}
        for child in self._listed():
            try:
                measured[child] = what(child)
            except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie is the former too
                continue
        return measured

    def _listed(self) -> list[psutil.Process]:
        began = self._clock()
        if began >= self._list_at:
            found: dict[int, psutil.Process] = {}
            for pid in self._pids():
                known = self._children.get(pid)
                try:
                    is_same = known is not None and known.is_running()
                    found[pid] = known if known and is_same else psutil.Process(pid)
                except psutil.NoSuchProcess:
                    continue
            self._children = found
            ended = self._clock()
            self._list_at = ended + (ended - began) / LISTING
        return list(self._children.values())

    def _pids(self) -> list[int]:
        if (self._proc / str(getpid()) / "task" / str(getpid()) / "children").exists():
            return list(self._kernel_lists())
        return [child.pid for child in self.own.children(recursive=True)]

    def _kernel_lists(self) -> Iterator[int]:
        """Each thread has a list of its own."""
        parents = [getpid()]
        while parents:
            for path in (self._proc / str(parents.pop()) / "task").glob("*/children"):
                try:
                    children = [int(pid) for pid in path.read_text().split()]
                except OSError:  # the thread, or its process, has ended
                    continue
                parents += children
                yield from children


class MemoryProbe:
    """RSS, and the most of it since the last reading.  That is known of this process alone, and
    only where it has never been more."""

    __slots__ = ("_family", "_peak", "_peak_of")

    name = "process memory"
    every = 0.0

    def __init__(self, family: Family, peak_of: Callable[[], float] | None = None) -> None:
        self._family = family
        self._peak_of = peak_of or _peak
        self._peak = self._peak_of()

    def read(self) -> Figures:
        rss = self._family.measure(lambda process: process.memory_info().rss)
        own = rss[self._family.own]
        total = sum(rss.values())
        before, self._peak = self._peak, self._peak_of()
        figures: Figures = {"working_set_mb": total / MB}
        if self._peak:
            peak = max(own, self._peak) if self._peak > before else own
            figures["peak_mb"] = (total - own + peak) / MB
        return figures


def _peak() -> float:
    """Bytes, since the process began; 0.0 where it is not known."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


PEAK_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class CpuProbe:
    """The share of `usable_cpus` that was used over the last second."""

    __slots__ = ("_clock", "_cpus", "_family", "_last", "_rate", "_read_at", "_used")

    name = "CPU"
    every = 0.0

    def __init__(
        self,
        family: Family,
        cpus: Callable[[], int] = usable_cpus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._family = family
        self._cpus = cpus()
        self._clock = clock
        self._rate = Rate()
        self._last: dict[psutil.Process, tuple[float, float]] = {}
        self._read_at = clock()
        self._used = 0.0

    def read(self) -> Figures:
        now = self._clock()
        times = self._family.measure(_cpu_seconds)
        if self._last:
            # No more than there was: one that is seen late has used some of it before.
            there_was = (now - self._read_at) * self._cpus
            self._used += min(self._used_since(times), there_was)
        self._last = times
        self._read_at = now
        share = self._rate.add(now, self._used)
        if share is None:
            return {}
        return {"cpu_percent": 100 * share / self._cpus}

    def _used_since(self, times: dict[psutil.Process, tuple[float, float]]) -> float:
        used = reaped = 0.0
        for process, (own, children) in times.items():
            if process in self._last:
                own_before, children_before = self._last[process]
                used += max(0.0, own - own_before)
                reaped += max(0.0, children - children_before)
            else:
                used += own + children
        gone = sum(sum(self._last[process]) for process in self._last.keys() - times.keys())
        return used + max(0.0, reaped - gone)


def _cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """Its own, and those of the children that it has waited for."""
    times: Any = process.cpu_times()
    return times.user + times.system, times.children_user + times.children_system


class HostProbe:
    """All memory of the host that can't be reclaimed at once."""

    __slots__ = ()

    name = "host memory"
    every = 0.0

    def read(self) -> Figures:
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        return {"host": Scope("host", used / MB, memory.total / MB, is_host=True)}


class IoProbe:
    """Bytes a second that were read from and written to disks."""

    __slots__ = ("_clock", "_family", "_last", "_rates", "_totals")

    name = "I/O"
    every = 0.5

    def __init__(self, family: Family, clock: Callable[[], float] = time.monotonic) -> None:
        self._family = family
        self._clock = clock
        self._last: dict[psutil.Process, tuple[int, int]] = {}
        self._rates = Rate(), Rate()
        self._totals = [0, 0]

    def read(self) -> Figures:
        if not hasattr(self._family.own, "io_counters"):  # not on every platform
            return {}
        counted = self._family.measure(_io_bytes)
        for process, counts in counted.items():
            if self._last:
                before = self._last.get(process, (0, 0))
                for n in range(2):
                    self._totals[n] += counts[n] - before[n]
        self._last = counted
        now = self._clock()
        read = self._rates[0].add(now, self._totals[0])
        write = self._rates[1].add(now, self._totals[1])
        if read is None or write is None:
            return {}
        return {"io": {"read": read, "write": write}}


def _io_bytes(process: psutil.Process) -> tuple[int, int]:
    counters = process.io_counters()
    return counters.read_bytes, counters.write_bytes
