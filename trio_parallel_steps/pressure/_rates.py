"""How fast a counter grows, over the last second."""

from __future__ import annotations

from collections import deque
from typing import Final

SPAN: Final = 1.0  # seconds
LEAST: Final = 0.5  # of them must have passed, or a moment would count as a second


class Rate:
    __slots__ = ("_readings",)

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque()

    def add(self, now: float, count: float) -> float | None:
        """Per second, since the youngest reading that is a second old; None until there is half a
        second to tell."""
        readings = self._readings
        readings.append((now, count))
        while len(readings) > 2 and readings[1][0] <= now - SPAN:
            readings.popleft()
        then, before = readings[0]
        return (count - before) / (now - then) if now - then >= LEAST else None
