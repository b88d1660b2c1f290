"""Values in memory: the objects themselves, the least recently used ones dropped first."""

from __future__ import annotations

from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any

from ._stores import MISSING

if TYPE_CHECKING:
    from cachetools import TTLCache

    from ..hosts._abc import Run


class MemoryStore:
    __slots__ = ("_clock", "_kept", "_maxsize", "_ttl")

    def __init__(self, maxsize: int, ttl: float) -> None:
        if find_spec("cachetools") is None:
            raise ImportError(
                "Cache.memory() needs cachetools: pip install 'trio-parallel-steps[cache]'",
                name="cachetools",
            )
        from cachetools import TTLCache  # an extra

        self._maxsize = maxsize
        self._ttl = ttl
        self._clock = Clock()
        self._kept: TTLCache[str, Any] = TTLCache(maxsize, ttl, timer=self._clock)

    async def get(self, key: str, run: Run) -> Any:
        if not run.may_pass():
            await run.pass_by()
        self._clock.read(run)
        return self._kept.get(key, MISSING)

    async def put(self, key: str, value: Any, run: Run) -> None:
        self._clock.read(run)
        self._kept[key] = value

    def __repr__(self) -> str:
        return f"memory({self._maxsize}, {self._ttl})"


class Clock:
    """The host's, of one run of an event loop after another; between two runs real time passes."""

    __slots__ = ("_ahead", "_now", "_read_at", "_run")

    def __init__(self) -> None:
        self._now = 0.0
        self._read_at = 0.0  # in real time
        self._ahead = 0.0  # of the run's own
        self._run: Run | None = None

    def read(self, run: Run) -> None:
        now = run.now()
        real = monotonic()
        if run is not self._run:
            self._ahead = self._now + (real - self._read_at) - now
            self._run = run
        self._now = now + self._ahead
        self._read_at = real

    def __call__(self) -> float:
        return self._now
