"""A step under guards: what they hold, what they shed, when they stop it.

1. A branch is admitted only with leave of the guards, which counts from then on as if it ran.
   Without it, it is set aside, and is in nobody's way.  Who still waits for a token when guards
   begin to hold needs it anew.
2. One branch may always run: while none does that is not parked, the best gets leave.  Who waits
   for a step of its own that is guarded, too, runs as long as a branch of that one does.
3. What was set aside is looked through when a reading has come, and when a branch has ended, or is
   queued again, or parked.
4. Branches are shed one at a time: the lowest priority first, of these the newest, and never the
   only one.  The next is not told to stop before the last is out and its memory could come back.
   A branch that was shed is queued again, as a new try, once memory is back, or none runs.
5. One that has been shed ALONE times runs alone.
6. While nothing is pressed, set aside, shed or reserved, there is nothing to look at: then a branch
   costs two counts (`_is_quiet`).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from ._parking import Awaited
from ._records import QUEUED, RUNNING, Cause, Record
from ._resources import PressureAction, PressureLevel
from ._retry import Retry
from ._tries import Tries, give_up_in_time, queue_again, to_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._allowance import Ticket
    from ._core import StepCore
    from ._guards import Guards
    from ._queue import Entry
    from ._readings import Reading
    from ._resources import Pressure

ALONE: Final = 3  # so often shed
SETTLES_S: Final = 0.25  # till what a branch held has been given back
NEVER: Final = Retry(on=Exception, attempts=1)


class Guarding:
    """Of one step."""

    __slots__ = (
        "_admit",
        "_alone",
        "_aside",
        "_end",
        "_is_quiet",
        "_leaves",
        "_reserved",
        "_shed",
        "_settled_at",
        "_shedding",
        "_sheds",
        "_step",
        "guards",
        "hasten",
        "leave",
    )

    def __init__(self, step: StepCore, guards: Guards) -> None:
        self.guards: Guards = guards
        self._admit, self._end = guards.quickly()
        self._sheds: bool = guards.limits.action is PressureAction.SHED
        self.hasten: Callable[[], object]  # the sampler's
        self.leave: Callable[[], object]  # no more readings
        self._step: StepCore = step
        self._leaves: dict[Record, Ticket] = {}  # in the order in which they were given
        self._reserved: dict[Record, float] = {}  # megabytes
        # Of those that are to run alone, of the others that reserve memory, and of the rest: the
        # first keep all others waiting, of the others one kind does not wait for the other.
        self._aside: tuple[list[Entry], list[Entry], list[Entry]] = ([], [], [])
        self._shedding: Record | None = None
        self._shed: dict[Record, None] = {}  # until memory is back
        self._alone: Record | None = None
        self._settled_at: float = 0.0  # after the last that was shed
        self._is_quiet: bool = True

    def submitted(self, record: Record) -> None:
        if self._sheds and record._tries is None:
            assert record._context is not None
            record._tries = Tries(NEVER, record._context.copy())

    def reserve(self, record: Record, memory_mb: float) -> None:
        self._reserved[record] = memory_mb
        self._is_quiet = False

    # ------------------------------------------------------------ leave to be admitted

    def lets(self, entry: Entry) -> bool:
        """Has who is first in the queue leave?  If not, it is set aside."""
        record = entry[3]
        if record in self._leaves:
            return True
        if self._is_quiet and (ticket := self._admit()) is not None:
            self._leaves[record] = ticket
            return True
        if self._give_leave(record):
            return True
        heappush(self._aside_for(record), entry)
        self._is_quiet = False
        return False

    def _aside_for(self, record: Record) -> list[Entry]:
        alone, reserving, others = self._aside
        if self._runs_alone(record):
            return alone
        return reserving if record in self._reserved else others

    def _give_leave(self, record: Record) -> bool:
        if not self._may(record):
            return False
        self._leaves[record] = self.guards.admitted(self._reserved.get(record, 0.0))
        if self._runs_alone(record):
            self._alone = record
        return True

    def _may(self, record: Record) -> bool:
        runs_alone = self._runs_alone(record)
        if self._alone is not None or (not runs_alone and _first(self._aside[0]) is not None):
            return False
        if not any(r.status is QUEUED or _is_busy(r, self._step) for r in self._leaves):
            return True
        return not runs_alone and self._held_by(record) is None

    def _runs_alone(self, record: Record) -> bool:
        return record._tries is not None and record._tries.shed >= ALONE

    def _held_by(self, record: Record) -> str | None:
        return self.guards.held_by(self._reserved.get(record, 0.0))

    def why_held(self, record: Record) -> str | None:
        """None for one that is not."""
        if record in self._shed:
            return "shed: until memory is back"
        if record in self._leaves or self._may(record):
            return None
        if self._runs_alone(record):
            return f"shed {ALONE} times: to run alone"
        first = _first(self._aside[0])
        alone = self._alone if first is None else first[3]
        if alone is not None:
            return f"{alone.key!r}, which was shed {ALONE} times, runs alone"
        return f"paused: {self._held_by(record)}"

    def look(self) -> None:
        """Who was set aside and may have leave now?"""
        if self._step.cause is not None:
            return  # nothing is admitted any more
        is_any = False
        for aside in self._aside:
            while (entry := _first(aside)) is not None and self._give_leave(entry[3]):
                heappop(aside)
                self._step.pool.put_back([entry])
                is_any = True
        if is_any:
            self._step.pool.kick(self._step)

    def tried(self, record: Record) -> None:
        """It does not run any more."""
        if record in self._leaves:
            self.guards.ended(self._leaves.pop(record))
        if record is self._shedding:
            self._shedding = None
            self._settled_at = self._step.run.now() + SETTLES_S
        if record is self._alone:
            self._alone = None
        self.look()
        if any(self._aside) or self._shed:
            self.hasten()
        self._note_quiet()

    def _note_quiet(self) -> None:
        self._is_quiet = (
            self.guards.is_quiet
            and not (any(self._aside) or self._shed or self._reserved)
            and self._alone is self._shedding is None
        )

    def ended(self, record: Record) -> None:
        if self._is_quiet:
            if (ticket := self._leaves.pop(record, None)) is not None:
                self._end(ticket)
            return
        self._reserved.pop(record, None)
        self._shed.pop(record, None)
        self.tried(record)

    # ------------------------------------------------------------ readings

    def told(self, reading: Reading) -> float:
        """Seconds until the next one is wanted."""
        step = self._step
        before, pressure = self.guards.pressure, self.guards.judge(reading)
        if step.observers and (before is None or before.levels != pressure.levels):
            step.tell("pressure_changed", step.handle, pressure)
        was = PressureLevel.OK if before is None else before.level
        if was < PressureLevel.HOLD <= pressure.level:
            self._take_leave_back()
        if was < PressureLevel.SHRINK <= pressure.level:
            self._shrink()
        if self.guards.acts:
            self._act(pressure, reading.at)
        if self.guards.is_memory_back or len(self._leaves) <= step.parked:
            self._queue_again()
        self.look()
        self._note_quiet()
        return self.guards.interval()

    def _take_leave_back(self) -> None:
        """Of who still waits for a token."""
        waiting = [
            record
            for record in self._leaves
            if record.status is QUEUED and record._entry is not None and record is not self._alone
        ]
        for record in waiting:
            self.guards.ended(self._leaves.pop(record))
        if waiting:
            self._step.pool.unblock()

    def _shrink(self) -> None:
        step = self._step
        for meter in step.meters:
            try:
                meter.pressed(step.run.now())
            except Exception as exc:
                step.limit_raised(exc)

    def _act(self, pressure: Pressure, now: float) -> None:
        if self.guards.limits.action is PressureAction.BREACH:
            self._step.stop(Cause.BREACH, pressure.reason)
        elif self._shedding is None and self._step.cause is None and now >= self._settled_at:
            self._shed_one(pressure.reason)

    def _shed_one(self, reason: str) -> None:
        running = [
            record
            for record in reversed(self._leaves)
            if record.status is RUNNING and record._cause is None
        ]
        if len(running) > 1:
            chosen = min(running, key=lambda record: record._priority)
            self._step.notice_late(chosen)
            if chosen._cause is None and self._step.cause is None:
                self._shedding = chosen
                self._step.tell_to_stop(chosen, Cause.SHED, f"shed: {reason}")

    def shed(self, record: Record) -> None:
        """It is out: queue it again, once memory is back."""
        tries = record._tries
        assert tries is not None
        tries.shed += 1
        to_queue(self._step, record)
        give_up_in_time(self._step, record)
        self._shed[record] = None
        self.tried(record)  # and nothing is quiet
        if self._step.observers:
            self._step.tell("branch_queued", record)

    def _queue_again(self) -> None:
        shed, self._shed = self._shed, {}
        for record in shed:
            queue_again(self._step, record)


def _is_busy(record: Record, step: StepCore) -> bool:
    """Does it run, or is a branch of a guarded step to run that it waits for?  (That guard lets one
    run; of what is not guarded, or paused, nobody knows.)"""
    if record.status is RUNNING:
        return not record._waits or any(_is_wait_busy(wait.target, step) for wait in record._waits)
    inner = record._step  # None once it has ended
    return inner is not None and inner is not step and inner.paused is None


def _is_wait_busy(target: Record | StepCore | Awaited, step: StepCore) -> bool:
    if isinstance(target, Awaited):
        return False
    records = (target,) if isinstance(target, Record) else target.records.values()
    return any(
        record._step is not None and record._step.guarding is not None and _is_busy(record, step)
        for record in records
    )


def _first(aside: list[Entry]) -> Entry | None:
    """The best, once those are out that have gone or are queued elsewhere."""
    while aside and aside[0][3]._entry is not aside[0]:
        heappop(aside)
    return aside[0] if aside else None
