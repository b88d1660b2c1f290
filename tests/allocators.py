"""A process whose branches take memory, in virtual time, and a step that admits them by `Guards`.

Ticks of ten milliseconds.  A branch is what it holds after so many seconds, and gives all of it
back when it ends.  Readings come as the guards want them, and as soon as one may once an admission
was refused, as the sampler's do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from trio_parallel_steps import ResourceLimits
from trio_parallel_steps._guards import Guards
from trio_parallel_steps._readings import Reading
from trio_parallel_steps.pressure._sampler import SOON

TICK = 0.01


@attrs.frozen
class Plan:
    holds: Callable[[float], float]  # megabytes, by its age in seconds
    lasts: float
    memory_mb: float = 0.0


def at_once(mb: float, lasts: float = 1.0, memory_mb: float = 0.0) -> Plan:
    return Plan(lambda age: mb, lasts, memory_mb)


def late(mb: float, after: float, lasts: float = 1.0, memory_mb: float = 0.0) -> Plan:
    return Plan(lambda age: mb if age >= after else 0.0, lasts, memory_mb)


def in_steps(mb: float, number: int, every: float, lasts: float, memory_mb: float = 0.0) -> Plan:
    return Plan(
        lambda age: mb / number * min(number, 1 + int(age / every + 1e-9)), lasts, memory_mb
    )


@attrs.frozen
class Ran:
    peak_mb: float
    took: float
    in_flight: int  # the most
    mean_in_flight: float


def simulate(
    plans: Sequence[Plan],
    limits: ResourceLimits,
    limit: int = 100,
    base_mb: float = 40.0,
    leak_mb: float = 0.0,
    sees_peak: bool = True,
) -> Ran:
    """`leak_mb` stays when a branch ends."""
    guards = Guards(limits)
    queue = list(plans)
    running: list[tuple[Plan, float, Any]] = []
    now = peak = busy = since_reading = 0.0
    read_at, next_at = -1.0, 0.0
    most = tick = 0
    while queue or running:
        now = tick * TICK
        for entry in [entry for entry in running if now - entry[1] >= entry[0].lasts - 1e-9]:
            running.remove(entry)
            guards.ended(entry[2])
            base_mb += leak_mb
        seen = base_mb + sum(plan.holds(now - began) for plan, began, _ in running)
        if now >= next_at - 1e-9:
            top = max(seen, since_reading) if sees_peak else None
            guards.judge(Reading(at=now, working_set_mb=seen, peak_mb=top))
            read_at, next_at, since_reading = now, now + guards.interval(), 0.0
        while queue and len(running) < limit:
            if running and guards.held_by(queue[0].memory_mb):
                next_at = min(next_at, max(now + TICK, read_at + SOON))
                break
            plan = queue.pop(0)
            running.append((plan, now, guards.admitted(plan.memory_mb)))
        seen = base_mb + sum(plan.holds(now - began) for plan, began, _ in running)
        since_reading = max(since_reading, seen)
        peak = max(peak, seen)
        most = max(most, len(running))
        busy += len(running) * TICK
        tick += 1
        assert now < 1000, "it does not get on"
    return Ran(peak, now, most, busy / now)
