"""`Brink`: the level past which throughput is lost.

1. A level was good, a higher one lost throughput: the limit stays below where it turned bad.
2. It is closed in on from below, a third of the way at a time: going over costs more than staying.
3. Once it is found the bad level is tried again, ever more seldom: the plant may have changed.
"""

from __future__ import annotations

from math import inf
from typing import Final

TRIES: Final = 2
TRIES_MAX: Final = 32
"""Trials between two visits of a level that was bad."""


class Brink:
    """A good level and a bad one, and how far one may go between them."""

    __slots__ = ("_age", "_good", "_patience", "_retrying", "bad", "value")

    def __init__(self) -> None:
        self.value: float = inf
        """The highest level to use; infinite as long as nothing was lost."""
        self.bad: float = inf
        self._good: float = inf
        self._age = 0  # trials since it moved
        self._patience = TRIES
        self._retrying = False

    def fell(self, good: float, bad: int) -> None:
        """Throughput at `bad` was less than at `good`, a lower level."""
        if self._retrying:
            self._patience = min(TRIES_MAX, 2 * self._patience)
        self._retrying = False
        self.bad = max(2, bad)
        self.value = self._good = min(good, self.bad - 1)
        self._age = 0

    def held(self, level: int) -> None:
        """Nothing was lost at `level`."""
        if self._retrying:
            self.forget()
        elif self.value < inf and level >= self.value:
            self._good = max(self._good, level)
            gap = self.bad - self._good
            value = self._good + (max(1, gap // 3) if gap > max(1, 0.05 * self.bad) else 0)
            if value > self.value:
                self.value = value
                self._age = 0
        self._age += 1

    def is_due(self) -> bool:
        """Is it time to try the bad level again?"""
        return self._age >= self._patience

    def retry(self) -> None:
        """The bad level is tried again."""
        self._retrying = True

    def doubt(self) -> None:
        """The plant has changed: try again soon."""
        self._patience = TRIES

    def forget(self) -> None:
        """The plant has changed, so nothing is known of a brink."""
        self.value = self.bad = self._good = inf
        self._retrying = False
        self._patience = TRIES

    def __repr__(self) -> str:
        return f"<Brink {self.value}, bad {self.bad}>"
