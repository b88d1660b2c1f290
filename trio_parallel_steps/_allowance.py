"""How many branches memory lets in before it is measured again.

1. What is committed is the larger of two sums.  From below: what was there when nothing ran, and
   the need of all that run.  From above: what the last reading saw, and the need of those admitted
   since.  The one knows what is promised and not taken yet, the other what no one has promised;
   what a branch has taken is in either sum once.
2. A branch that reserves needs what it reserves, whatever it has taken of it so far.  It is
   admitted if that fits below the threshold of STOP.
3. One that does not needs as much as any of its kind has grown: the growth between two readings is
   that of the branches admitted in between (of all, if none was), and the growth since the oldest
   was admitted is that of all.  The largest of these is believed, and forgotten little by little
   as branches end, and as memory stands still: then those that run have taken what they have.  It
   is admitted if that fits below the threshold of HOLD, and the window is open.
4. The window bounds how many of them run: at first one for each GUESS_MB of room, or one.  It
   doubles when as many have ended as it lets in, as a whole life is known then: one that a reading
   has seen, or all of them where readings tell the peak in between.  That memory stands still says
   less: the window grows by its first size when it has been full and memory has stood still for
   STILL_S.  At HOLD it shrinks to what runs.

So those that take their memory after `t` seconds have at most ``1 + t / STILL_S`` windows of their
kind beside them when the first does.  If that many can't fit, or if they grow for seconds with
pauses in between, they must reserve what they need, or the step must be one that may shed.
"""

from __future__ import annotations

from math import inf
from typing import Final, final

GUESS_MB: Final = 1024.0  # what a branch may need of which nothing is known
FORGOTTEN: Final = 0.005  # of a need, with each branch that ends: half of it with 139
DOUBTED: Final = 0.05  # of it, when memory has stood still
STILL_MB: Final = 1.0  # growth between two readings that is none
STILL: Final = 0.001  # or this part of the allowance
STILL_S: Final = 0.2


@final
class Ticket:
    """One admitted branch."""

    __slots__ = ("floor", "memory_mb", "reading")

    def __init__(self, memory_mb: float, floor: float, reading: int) -> None:
        self.memory_mb: float = memory_mb
        self.floor: float = floor  # the working set when it was admitted
        self.reading: int = reading  # after how many of them


class Allowance:
    __slots__ = (
        "_base",
        "_ended",
        "_first_window",
        "_fit_mb",
        "_hold_mb",
        "_knows_peak",
        "_live",
        "_most",
        "_most_reserved",
        "_need",
        "_new",
        "_new_reserved",
        "_ramps",
        "_readings",
        "_reserved",
        "_seen",
        "_still_since",
        "_unreserved",
        "_window",
    )

    def __init__(self, *, ramps: bool = True) -> None:
        """`ramps`: is there a window?"""
        self._ramps = ramps
        self._live: dict[Ticket, None] = {}  # in the order of their admission
        self._unreserved = 0
        self._reserved = 0.0  # megabytes, of those that run
        self._readings = 0
        # Since the last reading: those admitted that still run, and the most that ran at once.
        self._new = 0
        self._new_reserved = 0.0
        self._most = 0
        self._most_reserved = 0.0
        self._ended = 0  # since the window has grown
        self._window: float = inf
        self._first_window = 0
        self._still_since = 0.0
        self._knows_peak = False
        self._need = 0.0
        self._base = inf
        self._seen = 0.0
        self._hold_mb = self._fit_mb = inf

    def __repr__(self) -> str:
        return (
            f"<Allowance: {len(self._live)} run, {self._reserved:g} MB reserved, "
            f"window {self._window}, {self._need:.3g} MB each>"
        )

    @property
    def is_ramping(self) -> bool:
        """Does the next reading open the window, or show what is still to come?"""
        return self._ramps and bool(self._live)

    # ------------------------------------------------------------ branches

    def may_admit(self, memory_mb: float = 0.0) -> bool:
        """One that reserves so much, or nothing.  That one may always run is the caller's."""
        committed = max(
            self._base + self._reserved + self._unreserved * self._need,
            self._seen + self._new_reserved + self._new * self._need,
        )
        if not self._readings:
            return True
        if memory_mb:
            return committed + memory_mb <= self._fit_mb
        return self._unreserved < self._window and committed + self._need <= self._hold_mb

    def admit(self) -> Ticket | None:
        """One that reserves nothing, if it may be admitted; else None."""
        running, need = self._unreserved, self._need
        if self._readings and not (
            running < self._window
            and self._base + self._reserved + (running + 1) * need <= self._hold_mb
            and self._seen + self._new_reserved + (self._new + 1) * need <= self._hold_mb
        ):
            return None
        ticket = Ticket(0.0, self._seen, self._readings)
        self._live[ticket] = None
        self._unreserved = running = running + 1
        self._new += 1
        if running > self._most:
            self._most = running
        return ticket

    def admitted(self, memory_mb: float = 0.0) -> Ticket:
        ticket = Ticket(memory_mb, self._seen, self._readings)
        self._live[ticket] = None
        if memory_mb:
            self._reserved += memory_mb
            self._new_reserved += memory_mb
            self._most_reserved = max(self._most_reserved, self._reserved)
        else:
            self._unreserved += 1
            self._new += 1
            self._most = max(self._most, self._unreserved)
        return ticket

    def ended(self, ticket: Ticket) -> None:
        del self._live[ticket]
        is_new = ticket.reading == self._readings
        if ticket.memory_mb:
            self._reserved -= ticket.memory_mb
            self._new_reserved -= ticket.memory_mb * is_new
        else:
            self._unreserved -= 1
            self._new -= is_new
            self._ended += not is_new or self._knows_peak
            self._need *= 1 - FORGOTTEN
        if not self._live:
            self._reserved = self._new_reserved = 0.0  # no rounding is left

    # ------------------------------------------------------------ readings

    def measured(
        self, now: float, seen: float, peak: float | None, hold_room: float, fit_room: float
    ) -> None:
        """Megabytes: the working set, the most it was since the last reading (None if unknown), and
        what is free below the thresholds of HOLD and STOP (negative beyond them)."""
        self._knows_peak = peak is not None
        peak = seen if peak is None else max(seen, peak)
        if self._readings:
            self._learn(peak)
            self._open_window(now, peak - self._seen)
        elif self._ramps:
            self._window = self._first_window = max(1, int(hold_room / GUESS_MB))
        if hold_room <= 0 and self._ramps:
            self._window = max(1, min(self._window, self._unreserved))
        self._readings += 1
        self._seen = seen
        self._base = min(self._base, seen) if self._live else seen
        self._hold_mb = seen + hold_room
        self._fit_mb = seen + fit_room
        self._new = 0
        self._new_reserved = 0.0
        self._most = self._unreserved
        self._most_reserved = self._reserved

    def _learn(self, peak: float) -> None:
        if not self._most:
            return
        oldest = next(iter(self._live), None)
        floor = self._base if oldest is None else oldest.floor
        since_reading = (peak - self._seen - self._new_reserved) / (self._new or self._most)
        since_oldest = (peak - floor - self._most_reserved) / self._most
        self._need = max(self._need, since_reading, since_oldest)

    def _open_window(self, now: float, growth: float) -> None:
        if self._ended >= self._window:
            self._window *= 2
            self._ended = 0
        if self._new or growth > max(STILL_MB, STILL * self._hold_mb):
            self._still_since = now
        elif now - self._still_since >= STILL_S:
            self._still_since = now
            self._need *= 1 - DOUBTED  # what is true of it is learned again
            if self._unreserved >= self._window:
                self._window += self._first_window
