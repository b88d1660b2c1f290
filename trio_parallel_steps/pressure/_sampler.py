"""One sampler per run of an event loop, however many guards it has.

1. It starts with the first subscriber and ends with the last: its timer, and its probes, but for
   who comes within KEPT seconds, as one small step after another does.
2. It is a timer of the run's, no task: no step waits for it, and it keeps no run open.
3. A reading comes as soon as any subscriber wants the next; each probe is read as often as it says
   that it is worth, and its last figures stand till then.
4. A probe that raises is reported once, and left out from then on, its figures too.
5. The event loop's lag is how late the sampler's own timer was called: it was ready to run since
   it was due, as a task would have been.  A pass of the scheduler that takes long is seen by whom
   it makes wait.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from .._announce import warn
from .._outcomes import said
from .._readings import Figures, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..hosts._abc import Run, Timer

Told: TypeAlias = "Callable[[Reading], float]"
"""Called with each reading; returns the seconds until it wants the next."""

SOON: Final = 0.02  # seconds between two readings, at least
FRESH: Final = 0.1  # seconds for which a reading is as good as new
KEPT: Final = 1.0  # seconds for which probes can go on where they were
LAGS: Final = 10  # how many the median is of: those of a second, where readings come often


class Probe(Protocol):
    """Measures one thing.  Called in the event loop's thread: it must be quick."""

    @property
    def name(self) -> str: ...
    @property
    def every(self) -> float:
        """Seconds between two of its readings, at least."""

    def read(self) -> Figures:
        """Without what can't be measured now."""


def _own_probes() -> Sequence[Probe]:
    from ._machine import probes  # loads psutil

    return probes()


_probes: Final[ContextVar[Callable[[], Sequence[Probe]]]] = ContextVar(
    "pressure_probes", default=_own_probes
)


@contextmanager
def measured_by(*probes: Probe) -> Iterator[None]:
    """Samplers that start in this block read these in place of the machine's."""
    token = _probes.set(lambda: probes)
    try:
        yield
    finally:
        _probes.reset(token)


class _Source:
    """A probe, what it said last, and when it is asked again."""

    __slots__ = ("due", "figures", "probe")

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.due = -inf
        self.figures = Figures()


class Sampler:
    """Make none: `current_sampler` knows the run's."""

    __slots__ = (
        "_due",
        "_is_telling",
        "_lags",
        "_make_probes",
        "_read_at",
        "_run",
        "_sources",
        "_timer",
        "_told",
    )

    def __init__(self) -> None:
        self._run: Any = None  # while there are subscribers; the run keeps us, so no cycle
        self._told: dict[object, tuple[Told, float]] = {}  # and what each wants
        self._make_probes: Callable[[], Sequence[Probe]] | None = None
        self._sources: list[_Source] = []
        self._lags: deque[float] = deque(maxlen=LAGS)
        self._timer: Timer | None = None
        self._due = inf
        self._read_at = -inf
        self._is_telling = False

    def __repr__(self) -> str:
        return f"<Sampler: {len(self._told)} guards, {len(self._sources)} probes>"

    @property
    def is_running(self) -> bool:
        """Has it any guards?"""
        return bool(self._told)

    def subscribe(self, told: Told) -> Callable[[], None]:
        """Tell of each reading, of one at once; until what this returns is called."""
        key = object()
        if not self._told:
            self._start()
        if self._run.now() - self._read_at > FRESH:
            self._read()
        self._told[key] = told, told(self._reading())
        self._plan()
        return lambda: self._unsubscribe(key)

    def _start(self) -> None:
        make_probes = _probes.get()
        if make_probes is not self._make_probes or self._run.now() - self._read_at > KEPT:
            self._make_probes = make_probes
            self._sources = [_Source(probe) for probe in make_probes()]
            self._read_at = -inf

    def _unsubscribe(self, key: object) -> None:
        if self._told.pop(key, None) is not None and not self._told:
            self._stop()

    def hasten(self) -> None:
        """Something has changed that is worth a reading: it comes as soon as one may.  (While a
        reading is told, it is that one.)"""
        if self._told:
            self._call_at(self._read_at + SOON)

    # ------------------------------------------------------------ timing

    def _plan(self) -> None:
        if self._told:
            self._call_at(self._read_at + min(wants for _, wants in self._told.values()))

    def _call_at(self, when: float) -> None:
        when = max(when, self._run.now())
        if self._is_telling or when >= self._due:  # planned once all have been told
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._run.call_at(when, self._tick)

    def _tick(self) -> None:
        self._lags.append(max(0.0, self._run.now() - self._due))
        self._timer, self._due = None, inf
        self._read()
        reading = self._reading()
        self._is_telling = True
        try:
            for key, (told, _) in list(self._told.items()):
                # Any of them may be ended by another, or by itself.
                if key in self._told:
                    wants = told(reading)
                    if key in self._told:
                        self._told[key] = told, wants
        finally:
            self._is_telling = False
        self._plan()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, inf
        self._lags.clear()
        self._run = None

    # ------------------------------------------------------------ reading

    def _read(self) -> None:
        self._read_at = now = self._run.now()
        for source in self._sources.copy():
            if now < source.due:
                continue
            source.due = now + source.probe.every
            try:
                source.figures = source.probe.read()
                Reading(**source.figures)  # TypeError for what no reading has
            except Exception as exc:  # its figures are missed; no step hears of it
                self._sources.remove(source)
                warn(
                    f"the probe {source.probe.name!r} raised {said(exc)}: "
                    "what it measures is left out from now on",
                    exc,
                )

    def _reading(self) -> Reading:
        figures = Figures()
        if self._lags:
            figures["loop_lag"] = median(self._lags)
        for source in self._sources:
            figures.update(source.figures)
        return Reading(at=self._read_at, **figures)


def current_sampler(run: Run) -> Sampler:
    """The run's, which starts with its first subscriber."""
    sampler: Sampler | None = run.sampler
    if sampler is None:
        sampler = run.sampler = Sampler()
    sampler._run = run
    return sampler
