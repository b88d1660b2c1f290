"""The probes of the machine that this runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._cgroups import CgroupProbe
from ._psi import PsiProbe
from ._psutil import CpuProbe, Family, HostProbe, IoProbe, MemoryProbe

if TYPE_CHECKING:
    from ._sampler import Probe


def probes() -> tuple[Probe, ...]:
    family = Family()
    return (
        MemoryProbe(family),
        HostProbe(),
        CgroupProbe(),
        CpuProbe(family),
        PsiProbe(),
        IoProbe(family),
    )
