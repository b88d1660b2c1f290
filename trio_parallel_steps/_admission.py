"""Admission: who may run next, in one pool shared by any number of steps.

1. Order: higher priority first, then deeper nesting, then first come; one queue for all steps.
2. A grant is synchronous and belongs to a waiter: it takes a token, and the ledger must have it.
3. Work conserving: after each event, grant until nothing fits.  Submissions are granted at the next
   checkpoint (`kick` asks the host for it), the best first; the end of a branch passes its token on
   at once.
4. A place keeps its token from record to record while the best waiter is its own step's and the
   limit allows it.
5. A paused pool grants nothing; a paused step's waiters are set aside, never in the way of others.
6. Entries of the queue are dropped lazily: one whose waiter has gone, or has another priority now,
   is passed over when it comes up, and swept out before such entries outnumber the rest.

`Waiter` is anything that may be granted a token: a record, or a task that enters the limiter.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ._records import QUEUED

if TYPE_CHECKING:
    from ._core import StepCore
    from ._outcomes import BranchStatus


class Token:
    """What is borrowed from the ledger: the right to run one record after another."""

    __slots__ = ("holder",)

    def __init__(self, holder: Waiter) -> None:
        self.holder: Waiter = holder

    def __repr__(self) -> str:
        return f"<token of {self.holder!r}>"


class Waiter(Protocol):
    status: BranchStatus
    _priority: int
    _arrival: int
    _token: Token | None

    @property
    def _step(self) -> Admitted | None: ...


class Admitted(Protocol):
    """What the pool needs of a step."""

    depth: int
    paused: str | None
    held: list[Entry]

    def granted(self, waiter: Any) -> None: ...


class Ledger(Protocol):
    """Whether there is a token: the host's own primitive."""

    def take(self, token: Token) -> None: ...
    def give(self, token: Token) -> None: ...
    def set_total(self, total_tokens: int | float) -> None: ...


Entry: TypeAlias = tuple[int, int, int, Any]  # -priority, -depth, arrival, waiter


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
    waiter = entry[3]
    return waiter.status is QUEUED and waiter._token is None and entry[0] == -waiter._priority


class Pool:
    """One pool of tokens: its queue, its cap and what it has granted."""

    __slots__ = (
        "_arrivals",
        "_has_stale",
        "_kicked",
        "_ledger",
        "_queue",
        "admitted",
        "cap",
        "paused",
        "steps",
        "used",
        "waiting",
    )

    def __init__(self, ledger: Ledger, cap: int | float, paused: str | None = None) -> None:
        self.cap: int | float = cap
        self.used: int = 0
        self.waiting: int = 0
        self.admitted: int = 0
        self.paused: str | None = paused
        self.steps: dict[StepCore, None] = {}  # the open ones, in the order of opening
        self._ledger: Ledger = ledger
        self._queue: Queue = Queue()
        self._arrivals: int = 0
        self._has_stale: bool = False  # may the queue hold entries of who has gone?
        self._kicked: bool = False  # a dispatch has been asked for and has not come yet

    def is_idle(self) -> bool:
        return not (self.used or self.waiting or self.steps)

    # ------------------------------------------------------------ waiters come and go

    def push(self, waiter: Waiter, depth: int) -> None:
        self._arrivals = waiter._arrival = self._arrivals + 1
        self.waiting += 1
        self._queue.push((-waiter._priority, -depth, self._arrivals, waiter))

    def reorder(self, waiter: Waiter, depth: int) -> None:
        """Its priority has changed; it keeps its turn among those of the new one."""
        self._queue.push((-waiter._priority, -depth, waiter._arrival, waiter))
        self._has_stale = True
        self._sweep()

    def forget(self) -> None:
        """A waiter has gone without a token."""
        self.waiting -= 1
        self._has_stale = True
        self._sweep()

    def put_back(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._queue.push(entry)

    def _sweep(self) -> None:
        if len(self._queue) > 2 * self.waiting + 1000 or not self.waiting:
            self._queue.sweep()

    def _best(self) -> Any:
        """Take the best ungated waiter out of the queue."""
        while (entry := self._queue.pop()) is not None:
            if is_current(entry):
                step = entry[3]._step
                if step is None or step.paused is None:
                    return entry[3]
                step.held.append(entry)
        return None

    # ------------------------------------------------------------ grants

    def kick(self, step: StepCore) -> None:
        """Something may fit: look at the next checkpoint."""
        if not self._kicked and self.waiting and self.used < self.cap and self.paused is None:
            step.host.soon(self.dispatch)
            self._kicked = True

    def changed(self) -> None:
        """As `kick`, for an event of the pool itself."""
        for step in self.steps:
            self.kick(step)
            return
        self.dispatch()  # only tasks wait

    def dispatch(self) -> None:
        self._kicked = False
        while self.used < self.cap and self.paused is None:
            waiter = self._best()
            if waiter is None:
                return
            self._grant(waiter)

    def _grant(self, waiter: Any) -> None:
        token = Token(waiter)
        self._ledger.take(token)
        self.used += 1
        self._hand(token, waiter)
        waiter._step.granted(waiter)

    def _hand(self, token: Token, waiter: Any) -> None:
        token.holder = waiter
        waiter._token = token
        self.waiting -= 1
        self.admitted += 1

    def enter(self, waiter: Waiter, depth: int) -> None:
        """Queue a task, and grant at once what fits, unless who was submitted before has yet to be
        looked at."""
        self.push(waiter, depth)
        if not self._kicked:
            self.dispatch()

    def pass_on(self, token: Token, step: StepCore) -> Any:
        """A place of `step` has come free: the record to run there next, or None and the token goes
        to whoever is next."""
        if self.waiting and self.used <= self.cap and self.paused is None:
            waiter = self._best()
            if waiter is not None:
                if waiter._step is step:
                    self._hand(token, waiter)
                    return waiter
                self._release(token)
                self._grant(waiter)
                return None
        self.give_back(token)
        return None

    def give_back(self, token: Token) -> None:
        self._release(token)
        if self.waiting:
            self.dispatch()

    def _release(self, token: Token) -> None:
        self.used -= 1
        self._ledger.give(token)
        if self._has_stale and not self.waiting:
            self._has_stale = False
            self._queue.sweep()

    # ------------------------------------------------------------ changes

    def set_cap(self, cap: int | float) -> None:
        self.cap = cap
        self._ledger.set_total(cap)
        self.changed()

    def set_paused(self, reason: str | None) -> None:
        self.paused = reason
        if reason is None:
            self.changed()
