"""Guards: what a reading of the machine's pressure means for one step.

1. A guard compares one resource with its limit, and has a level: OK, HOLD, SHRINK, STOP or SHED.
2. Hysteresis: a level is entered at its threshold, and left once the load is below its release.
3. Memory, as parts of the allowance (the tightest of the user's limit, every cgroup, the host):
   HOLD from .70 on, SHRINK .80, STOP .85, SHED .95.  "Resume at .75" is above HOLD's threshold, so
   it can't be HOLD's release: it is that of SHRINK and STOP.  Branches are shed down to .85, what
   was shed is queued again below .75, and HOLD ends below .65.
4. The host's allowance is what we hold and what is available: what others hold is not ours to give
   back.  With `max_memory_percent` all that is used counts, as the user asked for that.
5. CPU and loop lag, as parts of the user's limit: HOLD at 1.  Lag shrinks at 2.5 and stops at 12.5
   times the limit (50 and 250 ms for one of 20).  Where the action is SHED or BREACH it comes at
   the limit itself, and HOLD at .9.
6. PSI counts beside a memory limit only: the share of the last second in which all tasks stalled on
   memory, HOLD from .05 on, SHRINK .10, STOP .25.  CPU's PSI says that others wait too, and tells
   nothing to do; both it and that of I/O are figures only.
7. What was not measured holds nothing.
8. Of CPU the mean is to stay near the limit: how many run is bounded too, see `Pace`.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from ._allowance import Allowance
from ._resources import Pressure, PressureAction, PressureLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._allowance import Ticket
    from ._readings import Reading
    from ._resources import ResourceLimits


# ---------------------------------------------------------------- one resource


@attrs.frozen
class Thresholds:
    """Parts of the limit where levels HOLD, SHRINK, STOP and SHED are entered, and left."""

    enter: tuple[float, float, float, float]
    release: tuple[float, float, float, float]


MEMORY: Final = Thresholds((0.70, 0.80, 0.85, 0.95), (0.65, 0.75, 0.75, 0.85))
STALLS: Final = Thresholds((0.05, 0.10, 0.25, inf), (0.02, 0.05, 0.10, inf))
CPU: Final = Thresholds((1.0, inf, inf, inf), (0.95, inf, inf, inf))
LAG: Final = Thresholds((1.0, 2.5, 12.5, inf), (0.75, 2.0, 2.5, inf))
LAG_S: Final = 0.02
ACTING: Final = Thresholds((0.9, inf, inf, 1.0), (0.8, inf, inf, 0.9))


class Guard:
    """The level of one resource."""

    __slots__ = ("_thresholds", "level")

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.level = PressureLevel.OK

    def judge(self, load: float) -> PressureLevel:
        """`load` is the part of the limit that is used."""
        entered = max(
            (n for n, at in enumerate(self._thresholds.enter, 1) if load >= at), default=0
        )
        kept = self.level
        while kept > entered and load < self._thresholds.release[kept - 1]:
            kept = PressureLevel(kept - 1)
        self.level = PressureLevel(max(entered, kept))
        return self.level


@attrs.frozen
class Bound:
    """Megabytes used, of those that are allowed."""

    name: str
    used_mb: float
    limit_mb: float

    @property
    def load(self) -> float:
        return self.used_mb / self.limit_mb

    def room_mb(self, part: float) -> float:
        """What is free below that part of the limit."""
        return part * self.limit_mb - self.used_mb


def memory_bounds(limits: ResourceLimits, reading: Reading) -> Iterator[Bound]:
    own = reading.working_set_mb
    if own is not None and limits.max_memory_mb is not None:
        yield Bound("max_memory_mb", own, limits.max_memory_mb)
    percent = limits.max_memory_percent
    for scope in reading.scopes:
        if percent is not None:
            name = f"{percent:g} % of {scope.name}"
            yield Bound(name, scope.used_mb, scope.limit_mb * percent / 100)
        if not scope.is_host:
            yield Bound(scope.name, scope.used_mb, scope.limit_mb)
        elif own is not None:
            yield Bound(scope.name, own, own + scope.limit_mb - scope.used_mb)


# ---------------------------------------------------------------- what they look at

Look: TypeAlias = "Callable[[ResourceLimits, Reading], tuple[float, str] | None]"
"""The load, and words with figures; None if it was not measured."""


def _memory(limits: ResourceLimits, reading: Reading) -> tuple[float, str] | None:
    bounds = tuple(memory_bounds(limits, reading))
    if not bounds:
        return None
    worst = max(bounds, key=lambda bound: bound.load)
    words = f"{worst.used_mb:.0f} of {worst.limit_mb:.0f} MB ({worst.name})"
    return worst.load, words


def _stalls(limits: ResourceLimits, reading: Reading) -> tuple[float, str] | None:
    share = None if reading.psi is None else reading.psi.get("memory full")
    return None if share is None else (share, f"{share:.0%} of the time")


def _cpu(limits: ResourceLimits, reading: Reading) -> tuple[float, str] | None:
    percent, limit = reading.cpu_percent, limits.max_cpu_percent
    if percent is None or limit is None:
        return None
    return percent / limit, f"{percent:.0f} % of usable CPUs, limit {limit:g} %"


def _lag(limits: ResourceLimits, reading: Reading) -> tuple[float, str] | None:
    return _lag_over(limits.max_loop_lag, reading)


def _own_lag(limits: ResourceLimits, reading: Reading) -> tuple[float, str] | None:
    return _lag_over(LAG_S, reading)


def _lag_over(limit: float | None, reading: Reading) -> tuple[float, str] | None:
    lag = reading.loop_lag
    if lag is None or limit is None:
        return None
    return lag / limit, f"{lag * 1000:.0f} ms, limit {limit * 1000:g} ms"


# ---------------------------------------------------------------- CPU

CUT: Final = 0.7  # of those that run, when the limit is reached
OPENS: Final = 0.5  # of what is free below the limit, with each reading


class Pace:
    """How many branches CPU lets run: any number until its limit is reached.  Each time that it is,
    a part of those that run then, and little by little more while it is not: readings are means,
    and show late what was let in."""

    __slots__ = ("_was_held", "running", "window")

    def __init__(self) -> None:
        self.running = 0
        self.window = inf
        self._was_held = False

    def measured(self, load: float, level: PressureLevel) -> None:
        is_held = level >= PressureLevel.HOLD
        if is_held and not self._was_held:
            self.window = max(1.0, min(self.window, self.running) * min(CUT, 1 / load))
        elif not is_held and self.running + 1 > self.window:
            self.window *= 1 + OPENS * max(0.0, 1 - load)
        self._was_held = is_held

    def may_admit(self) -> bool:
        return self.running + 1 <= self.window or not self.running


# ---------------------------------------------------------------- a step's

NEAR: Final = 0.5  # of a limit: readings come often from there on
OFTEN: Final = 0.1  # seconds
SELDOM: Final = 1.0  # for memory alone: what is a mean of the last second is read often


class Guards:
    """The guards of one step.

    `watches_memory`: against what the host and the cgroups allow even without a limit of the
    user's; admissions do not ramp up then.  `watches_lag`: against `LAG_S` if the user has set no
    limit of it; that holds and shrinks, whatever the user's action is.
    """

    __slots__ = ("_allowance", "_guards", "_interval", "_pace", "limits", "pressure")

    def __init__(
        self,
        limits: ResourceLimits,
        *,
        watches_memory: bool = False,
        watches_lag: bool = False,
    ) -> None:
        self.limits: ResourceLimits = limits
        self.pressure: Pressure | None = None  # by the last reading
        self._allowance = Allowance(ramps=limits.limits_memory)
        self._guards: dict[str, tuple[Guard, Look]] = {}
        self._interval = OFTEN
        self._pace = Pace()
        acts = limits.action is not PressureAction.HOLD
        if limits.limits_memory or watches_memory:
            self._guards["memory"] = Guard(MEMORY), _memory
            self._guards["memory stalls"] = Guard(STALLS), _stalls
        if limits.max_cpu_percent is not None:
            self._guards["cpu"] = Guard(ACTING if acts else CPU), _cpu
        if limits.max_loop_lag is not None:
            self._guards["loop lag"] = Guard(ACTING if acts else LAG), _lag
        elif watches_lag:
            self._guards["loop lag"] = Guard(LAG), _own_lag

    # ------------------------------------------------------------ readings

    def judge(self, reading: Reading) -> Pressure:
        """What the reading means: `pressure`, from now on."""
        worst = (PressureLevel.OK, 0.0, "nothing was measured")
        levels: dict[str, PressureLevel] = {}
        for name, (guard, look) in self._guards.items():
            load, words = look(self.limits, reading) or (0.0, "not measured")
            levels[name] = guard.judge(load)
            if name == "cpu":
                self._pace.measured(load, levels[name])
            if load:
                worst = max(worst, (levels[name], load, f"{name}: {words}"))
        level, load, reason = worst
        self._measure(reading)
        ramps = self._allowance.is_ramping
        is_slow = "cpu" not in levels and "loop lag" not in levels and not ramps
        self._interval = SELDOM if is_slow and not level and load < NEAR else OFTEN
        self.pressure = Pressure(
            working_set_mb=reading.working_set_mb,
            memory_percent=self._memory_percent(reading),
            cpu_percent=reading.cpu_percent,
            loop_lag=reading.loop_lag,
            psi=reading.psi,
            io=reading.io,
            levels=levels,
            level=level,
            reason=reason,
        )
        return self.pressure

    def _measure(self, reading: Reading) -> None:
        seen = reading.working_set_mb
        bounds = tuple(memory_bounds(self.limits, reading))
        if seen is None or not bounds:
            return
        self._allowance.measured(
            reading.at,
            seen,
            reading.peak_mb,
            min(bound.room_mb(MEMORY.enter[0]) for bound in bounds),
            min(bound.room_mb(MEMORY.enter[2]) for bound in bounds),
        )

    def _memory_percent(self, reading: Reading) -> float | None:
        loads = [scope.used_mb / scope.limit_mb for scope in reading.scopes]
        if reading.working_set_mb is not None and self.limits.max_memory_mb is not None:
            loads.append(reading.working_set_mb / self.limits.max_memory_mb)
        return max(loads) * 100 if loads else None

    def interval(self) -> float:
        """Seconds until the next reading is wanted."""
        return self._interval

    @property
    def acts(self) -> bool:
        """Must a branch be shed, or the step be breached, as the limits' action says?"""
        at_limit = self.pressure is not None and self.pressure.level is PressureLevel.SHED
        return at_limit and self.limits.action is not PressureAction.HOLD

    @property
    def is_memory_back(self) -> bool:
        """May what was shed be queued again?"""
        return self.pressure is None or self.pressure.levels.get("memory", 0) <= PressureLevel.HOLD

    # ------------------------------------------------------------ admissions

    def held_by(self, memory_mb: float = 0.0) -> str | None:
        """Why a branch that reserves so much (or nothing) may not be admitted now, or None.

        One branch may run all the same while none does: that is the caller's to see."""
        levels = {} if self.pressure is None else self.pressure.levels
        for name, level in levels.items():
            reserved = memory_mb and name == "memory"
            if level >= (PressureLevel.STOP if reserved else PressureLevel.HOLD):
                return name
        if not self._pace.may_admit():
            return "cpu"
        if memory_mb or "memory" in self._guards:
            return None if self._allowance.may_admit(memory_mb) else "memory"
        return None

    @property
    def is_quiet(self) -> bool:
        """Is nothing pressed, and is CPU not paced?"""
        is_easy = self.pressure is None or self.pressure.level is PressureLevel.OK
        return is_easy and self._pace.window == inf

    def quickly(self) -> tuple[Callable[[], Ticket | None], Callable[[Ticket], None]]:
        """What admits one that reserves nothing, while all is quiet (None if that needs a closer
        look), and what ends it."""
        if "cpu" in self._guards:
            return self._admit, self.ended
        return self._allowance.admit, self._allowance.ended  # how many run, nobody asks

    def _admit(self) -> Ticket | None:
        ticket = self._allowance.admit()
        if ticket is not None:
            self._pace.running += 1
        return ticket

    def admitted(self, memory_mb: float = 0.0) -> Ticket:
        """One was: keep what this returns, for `ended`."""
        self._pace.running += 1
        return self._allowance.admitted(memory_mb)

    def ended(self, ticket: Ticket) -> None:
        """It is over, or queued again."""
        self._pace.running -= 1
        self._allowance.ended(ticket)
