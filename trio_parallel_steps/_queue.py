"""The queue of a pool.

Entries are dropped lazily: one that is no longer its waiter's is passed over when it comes up, and
swept out before such entries outnumber the rest.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final, TypeAlias

Entry: TypeAlias = tuple[float, int, int, Any]  # -priority, -depth, arrival, waiter or sub-cap

RESUMES: Final = -inf  # in place of the negated priority


class Queue:
    """Entries, smallest first.

    What arrives in order, as nearly all does, is appended to a run; the rest goes to a heap.
    """

    __slots__ = ("_heap", "_run")

    def __init__(self) -> None:
        self._run: deque[Entry] = deque()
        self._heap: list[Entry] = []

    def __len__(self) -> int:
        return len(self._run) + len(self._heap)

    def push(self, entry: Entry) -> None:
        run = self._run
        if not run or run[-1] < entry:
            run.append(entry)
        else:
            heappush(self._heap, entry)

    def peek(self) -> Entry | None:
        run = self._run
        heap = self._heap
        if heap and (not run or heap[0] < run[0]):
            return heap[0]
        return run[0] if run else None

    def pop(self) -> Entry | None:
        run = self._run
        heap = self._heap
        if heap and (not run or heap[0] < run[0]):
            return heappop(heap)
        return run.popleft() if run else None

    def sweep(self) -> None:
        self._run = deque(filter(is_current, self._run))
        self._heap = list(filter(is_current, self._heap))
        heapify(self._heap)


def is_current(entry: Entry) -> bool:
    return entry[3]._entry is entry
