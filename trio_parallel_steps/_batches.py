"""Jobs carried out in batches: whoever comes first leads, and takes those who came meanwhile along.

1. One batch at a time, in one thread at a time: what it writes to need not be locked.
2. Nothing runs beside the callers.  The first of those who came during a batch leads the next one.
3. A job that was added is carried out, whoever is cancelled: on asyncio a cancellation that was met
   is raised after it, on trio the caller's next checkpoint raises it.
4. An error is told to all of its batch.

(Group commit, as databases have had it since D. DeWitt et al., Implementation Techniques for Main
Memory Database Systems, 1984.)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from .hosts import current_run, protected

if TYPE_CHECKING:
    from collections.abc import Callable

    from .hosts._abc import Event, Run

J = TypeVar("J")


class Batch(Generic[J]):
    __slots__ = ("error", "events", "is_done", "jobs")

    def __init__(self) -> None:
        self.jobs: list[J] = []
        self.events: list[Event] = []  # of those who wait; the first of them leads
        self.is_done: bool = False
        self.error: Exception | None = None


class Batches(Generic[J]):
    __slots__ = ("_carry_out", "_gathering", "_is_busy")

    def __init__(self, carry_out: Callable[[list[J]], None]) -> None:
        self._carry_out = carry_out
        self._gathering: Batch[J] | None = None
        self._is_busy = False

    @protected
    async def add(self, job: J) -> Exception | None:
        """Returns once it has been carried out; what its batch raised, if it did."""
        run = current_run()
        if not self._is_busy:
            self._is_busy = True
            batch: Batch[J] = Batch()
            batch.jobs.append(job)
            await self._lead(run, batch)
            return batch.error
        batch = self._gathering = self._gathering or Batch()
        batch.jobs.append(job)
        batch.events.append(event := run.event())
        try:
            await run.wait_shielded(event)
        finally:
            if not batch.is_done:
                await self._lead(run, batch)
        return batch.error

    async def _lead(self, run: Run, batch: Batch[J]) -> None:
        if self._gathering is batch:
            self._gathering = None
        try:
            await run.finish_in_thread(partial(self._carry_out, batch.jobs))
        except Exception as exc:  # also if no thread can be had: each caller is told
            batch.error = exc
        finally:
            batch.is_done = True
            if self._gathering is None:
                self._is_busy = False
            else:
                self._gathering.events[0].set()
            for event in batch.events:
                event.set()
            del batch  # its error keeps this frame: no cycles
