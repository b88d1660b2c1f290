"""Why does a branch wait?  One line each, read off the core: nothing is kept for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._records import QUEUED, RUNNING, Record

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ._admission import Pool
    from ._core import StepCore


def explain(step: StepCore) -> dict[Hashable, str]:
    """For each branch that waits, what it waits for."""
    waiting = {key: why_waiting(step, record) for key, record in step.records.items()}
    return {key: why for key, why in waiting.items() if why is not None}


def why_waiting(step: StepCore, record: Record) -> str | None:
    """None for one that runs, is about to, or has ended."""
    if record.status is QUEUED and record._token is None:
        tries = record._tries
        if tries is not None and tries.timer is not None and record._entry is None:
            return f"retry: {in_seconds(max(0.0, tries.due - step.run.now()))}"
        if step.paused is not None:
            return f"paused: {step.paused}"
        if step.guarding is not None and (why := step.guarding.why_held(record)) is not None:
            return why
        return _what_holds(step.pool, record._weight, is_new=True)
    if record.status is RUNNING and record._waits:
        return "waits for " + ", ".join(dict.fromkeys(wait.what() for wait in record._waits))
    if record.status is RUNNING and record._entry is not None:
        return f"to go on: {_what_holds(step.pool, record._weight, is_new=False)}"
    return None


def _what_holds(pool: Pool, weight: int, is_new: bool) -> str:
    """The first of the pools, outward, that would not admit it."""
    within: Pool | None = pool
    while within is not None:
        if is_new and within.paused is not None:
            return f"paused: {within.paused}"
        if not within.has_room(weight):
            return _in_use(within)
        if is_new and within.gate is not None and (seconds := within.gate.opens_in()):
            return f"rate: {in_seconds(seconds)}"
        pool, within = within, within.parent
    if pool.is_to_look():
        return "the next checkpoint"
    return f"its turn: {_in_use(pool)}"


def in_seconds(seconds: float) -> str:
    """Three digits, or as many as there are."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _in_use(pool: Pool) -> str:
    used, total = pool.in_use()
    return f"limit: {used} of {total} in use"
