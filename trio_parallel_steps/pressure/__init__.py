"""How pressed the machine is: one sampler per run of an event loop, and the probes it reads."""

from __future__ import annotations

from ._sampler import (
    Probe as Probe,
    Sampler as Sampler,
    current_sampler as current_sampler,
    measured_by as measured_by,
)
