"""Pressure stall information: the share of time in which tasks waited for memory, CPU or I/O.

The kernel's running totals are compared, as its averages come late.  Of our own cgroup where it
has them (v2), else of the host; not where the kernel has none.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._cgroups import unified_group
from ._rates import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._readings import Figures

RESOURCES: Final = ("memory", "cpu", "io")


class PsiProbe:
    __slots__ = ("_clock", "_files", "_rates")

    name = "PSI"
    every = 0.5

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates: dict[str, Rate] = {}
        group = unified_group(root)
        self._files: dict[str, Path] = {}
        for resource in RESOURCES:
            own = None if group is None else group / f"{resource}.pressure"
            host = root / "proc/pressure" / resource
            self._files[resource] = host if own is None or not own.exists() else own

    def read(self) -> Figures:
        shares: dict[str, float] = {}
        now = self._clock()
        for resource, path in self._files.items():
            try:
                lines = path.read_text().splitlines()
            except OSError:  # the kernel has none, or has it turned off
                continue
            for line in lines:  # some avg10=0.00 avg60=0.00 avg300=0.00 total=0
                kind, *fields = line.split()
                total = int(dict(field.split("=") for field in fields)["total"])
                name = f"{resource} {kind}"
                share = self._rates.setdefault(name, Rate()).add(now, total / 1e6)
                if share is not None:
                    shares[name] = min(1.0, share)
        return {"psi": shares} if shares else {}
