"""Admission: who may run next, in pools shared by any number of steps.

1. A pool has a cap, and what is used of it.  A sub-cap has a parent pool; a waiter's chain is its
   pool, and outward to the root.
2. A weight fits a pool if it stays within the cap, or if nothing is used (so one above the cap runs
   alone).  A grant takes the weight in the whole chain at once, or nothing; the root's ledger must
   have it.
3. Order: branches that resume, first come first served; then higher priority, deeper nesting, first
   come; one queue for all steps of a pool.
4. The first ungated waiter that fits below a pool and does not fit the pool is its head: nothing
   behind it is granted there.
5. A sub-cap offers its parent the best that it would admit itself.  Whatever makes that another,
   or none, is told at once (`_offer`): an offer that is looked at stands.
6. Work conserving: after each event, grant until nothing fits.  Submissions are granted at the next
   checkpoint (`kick` asks the host for it), the best first; the end of a branch passes its token on
   at once.
7. A place keeps its token from record to record while the best waiter is its own step's and the
   limit allows it.
8. The last nested branch hands its token to the branch around it (`heir`), before anyone.
9. A pause or a rate holds what is queued, never who resumes.  A paused step's waiters are set
   aside, and are never in the way of others.

`Waiter` is anything that may be granted a token: a record, or a task that enters a limiter.  While
all weights are 1 and no sub-caps are there, a pool is plain: who is first fits if anyone does.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from ._queue import RESUMES, Queue
from ._records import QUEUED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._core import StepCore
    from ._guarding import Guarding
    from ._meter import Meter
    from ._outcomes import BranchStatus
    from ._queue import Entry
    from ._rate import Gate


class Token:
    """What is borrowed from the ledger: the right to run one record after another."""

    __slots__ = ("borrowers", "holder", "weight")

    def __init__(self, holder: Waiter, weight: int = 1) -> None:
        self.holder: Waiter = holder
        self.weight: int = weight
        # On whose behalf the ledger has lent; None: on the token's own.
        self.borrowers: tuple[object, ...] | None = None

    def __repr__(self) -> str:
        return f"<token of {self.holder!r}>"


class Waiter(Protocol):
    status: BranchStatus
    _priority: int
    _weight: int
    _entry: Entry | None
    _token: Token | None

    @property
    def _step(self) -> Admitted | None: ...


class Admitted(Protocol):
    """What the pool needs of a step."""

    depth: int
    paused: str | None
    held: list[Entry]
    guarding: Guarding | None

    def granted(self, waiter: Any) -> None: ...


class Ledger(Protocol):
    """Whether there is a token: the host's own primitive."""

    def take(self, borrower: object) -> None: ...
    def give(self, borrower: object) -> None: ...
    def available(self) -> int | float: ...
    def set_total(self, total_tokens: int | float) -> None: ...


class Pool:
    """One pool of tokens: its queue, its cap and what it has granted."""

    __slots__ = (
        "_arrival",
        "_entry",
        "_has_stale",
        "_is_plain",
        "_kicked",
        "_ledger",
        "_queue",
        "_weight",
        "admitted",
        "cap",
        "gate",
        "meter",
        "parent",
        "paused",
        "steps",
        "used",
        "waiting",
    )

    def __init__(
        self,
        ledger: Ledger | None,
        cap: int | float,
        paused: str | None = None,
        parent: Pool | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.cap: int | float = cap
        self.gate: Gate | None = gate  # a rate
        self.meter: Meter | None = None  # of a limit that moves the cap
        self.parent: Pool | None = parent
        self.used: int = 0
        self.waiting: int = 0  # in its sub-caps too
        self.admitted: int = 0
        self.paused: str | None = paused
        self.steps: dict[StepCore, None] = {}  # the open ones, sub-caps' too, as they opened
        self._ledger: Ledger | None = ledger  # the root's
        self._queue: Queue = Queue()
        self._arrival: Callable[[], int] = count(1).__next__ if parent is None else parent._arrival
        self._entry: Entry | None = None  # a sub-cap's offer, in its parent's queue
        self._weight: int = 1  # of whom it offers
        self._has_stale: bool = False  # may the queue hold entries of who has gone?
        self._kicked: bool = False  # a dispatch has been asked for and has not come yet
        self._is_plain: bool = self._may_be_plain()

    def in_use(self) -> tuple[int, int | float]:
        """Tokens that are, and the total."""
        return self.used, self.cap

    def weighs(self) -> bool:
        """May a branch take more than one token?"""
        return True

    def is_idle(self) -> bool:
        return not (self.used or self.waiting or self.steps)

    def is_to_look(self) -> bool:
        """Is a look at the queue due at the next checkpoint?"""
        return self._kicked

    def chain(self) -> Iterator[Pool]:
        """Outward to the root."""
        pool: Pool | None = self
        while pool is not None:
            yield pool
            pool = pool.parent

    def meters(self) -> tuple[Meter, ...]:
        """Of the whole chain."""
        if self.parent is None:
            return () if self.meter is None else (self.meter,)
        return tuple(pool.meter for pool in self.chain() if pool.meter is not None)

    def _may_be_plain(self) -> bool:
        return self.parent is None and self.gate is None

    def root(self) -> Pool:
        pool = self
        while pool.parent is not None:
            pool = pool.parent
        return pool

    def fits(self, weight: int) -> bool:
        return self.used + weight <= self.cap or not self.used

    def has_room(self, weight: int) -> bool:
        """As `fits`, for those who explain."""
        return self.fits(weight)

    def is_within(self, outer: Pool) -> bool:
        """Is the other one in our chain?"""
        return outer in self.chain()

    # ------------------------------------------------------------ waiters come and go

    def push(self, waiter: Waiter, depth: int) -> None:
        entry = waiter._entry = (-waiter._priority, -depth, self._arrival(), waiter)
        self._add(entry)

    def resume(self, waiter: Waiter) -> None:
        """Queue one that has lent its token, before all that have not begun, and grant at once what
        fits."""
        entry = waiter._entry = (RESUMES, 0, self._arrival(), waiter)
        self._add(entry)
        self._dispatch_unless_kicked()

    def reorder(self, waiter: Waiter, depth: int) -> None:
        """Its priority has changed; it keeps its turn among those of the new one."""
        assert waiter._entry is not None
        entry = waiter._entry = (-waiter._priority, -depth, waiter._entry[2], waiter)
        self._queue.push(entry)
        self._has_stale = True
        self._sweep()
        self.unblock()

    def forget(self, waiter: Waiter) -> None:
        """It has gone without a token."""
        self._take_out(waiter)
        self._sweep()
        self.unblock()

    def unblock(self) -> None:
        """Who has gone, or comes later or not at all from now on, may have been the head."""
        root = self.root()
        if not root._is_plain:
            self._offer()
            root.changed()

    def put_back(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._queue.push(entry)
        self._offer()

    def _add(self, entry: Entry) -> None:
        if entry[3]._weight != 1:
            self._is_plain = False
        self._queue.push(entry)
        self.waiting += 1
        if self.parent is not None:
            for pool in self.parent.chain():
                pool.waiting += 1
                pool._is_plain = False
            self._offer()

    def _take_out(self, waiter: Waiter) -> None:
        waiter._entry = None
        self._has_stale = True
        for pool in self.chain():
            pool.waiting -= 1
            pool._close_gate()

    def _close_gate(self) -> None:
        if self.gate is not None and not self.waiting:
            self.gate.close()

    def _sweep(self) -> None:
        if len(self._queue) > 2 * self.waiting + 1000 or not self.waiting:
            self._queue.sweep()

    # ------------------------------------------------------------ who is next

    def _best(self) -> Entry | None:
        """The best ungated entry.  What is gated, or has gone, is taken out."""
        queue = self._queue
        while (entry := queue.peek()) is not None:
            waiter: Any = entry[3]
            is_gone: bool = waiter._entry is not entry
            if is_gone:
                queue.pop()
            elif isinstance(waiter, Pool) or entry[0] is RESUMES:
                return entry
            elif (step := waiter._step).paused is not None:
                queue.pop()
                step.held.append(entry)
            elif step.guarding is None or step.guarding.lets(entry):
                return entry
            else:
                queue.pop()
        return None

    def _admissible(self) -> Entry | None:
        """The best entry, if the pool would admit it."""
        if not self.waiting:
            return None
        if self._is_plain and self.used >= self.cap:
            return None
        entry = self._best()
        if entry is None or (self.paused is not None and entry[0] is not RESUMES):
            return None
        if self._is_plain:
            return entry
        if not self.fits(entry[3]._weight):
            return None
        if self.gate is not None and entry[0] is not RESUMES and not self.gate.is_open(self._look):
            return None
        return entry

    def _look(self) -> None:
        self._offer()
        self.root().dispatch()

    def _offer(self) -> None:
        """Tell the parent, and it its own, what we would admit."""
        pool = self
        while (parent := pool.parent) is not None:
            pool._tell(parent)
            pool = parent

    def _tell(self, parent: Pool) -> None:
        best = self._admissible()
        offer = self._entry
        if offer is not None:
            if best is not None and offer[:3] == best[:3]:
                return
            parent._has_stale = True
            self._entry = None
        if best is not None:
            self._entry = (*best[:3], self)
            self._weight = best[3]._weight
            parent._queue.push(self._entry)
            parent._sweep()

    # ------------------------------------------------------------ grants

    def kick(self, step: StepCore) -> None:
        """Something may fit: look at the next checkpoint."""
        root = self if self.parent is None else self.root()
        if not root._kicked and root.waiting and root.used < root.cap and root.paused is None:
            step.host.soon(root.dispatch)
            root._kicked = True

    def admit(self, waiter: Waiter) -> bool:
        """Lend it a token at once, if there is one and nobody waits for it."""
        if self.waiting or self.used >= self.cap or self.paused is not None or not self._is_plain:
            return False
        self._lend_plainly(waiter)
        self.admitted += 1
        return True

    def will_dispatch(self) -> Pool:
        """The caller pushes, and has the root dispatch in the same instant: no kick is needed."""
        root = self.root()
        root._kicked = True
        return root

    def changed(self) -> None:
        """As `kick`, for an event of the pool itself."""
        if self._kicked or not self.waiting:
            return
        for step in self.steps:
            step.host.soon(self.dispatch)
            self._kicked = True
            return
        self.dispatch()  # only tasks wait

    def dispatch(self, step: StepCore | None = None) -> Any:
        """Grant until nothing fits.  Returns the first new record of `step`, if any: a place of its
        own has come free."""
        self._kicked = False
        following = None
        while (entry := self._admissible()) is not None:
            waiter = self._grant_plainly(entry) if self._is_plain else self._grant(entry)
            if following is None and step is waiter._step and waiter.status is QUEUED:
                following = waiter
            else:
                waiter._step.granted(waiter)
        return following

    def _grant_plainly(self, entry: Entry) -> Any:
        waiter = entry[3]
        self._queue.pop()
        self.waiting -= 1
        if entry[0] is not RESUMES:
            self.admitted += 1
        self._lend_plainly(waiter)
        return waiter

    def _lend_plainly(self, waiter: Any) -> None:
        assert self._ledger is not None
        token = waiter._token = Token(waiter)
        waiter._entry = None
        self._ledger.take(token)
        self.used += 1

    def _grant(self, entry: Entry) -> Any:
        """To the waiter of the best entry: it is taken out, and out of the offers it came by."""
        pool, waiter = self, entry[3]
        pool._queue.pop()
        while isinstance(waiter, Pool):
            pool, pool._entry = waiter, None
            entry_below = pool._queue.pop()
            assert entry_below is not None
            waiter = entry_below[3]
        pool._lend(waiter)
        return waiter

    def _lend(self, waiter: Any) -> None:
        """Take its weight in the whole chain."""
        token = Token(waiter, waiter._weight)
        self._use(token, entry=waiter._entry)._borrow(token)
        waiter._entry = None
        waiter._token = token
        self._offer()

    def _use(self, token: Token, entry: Entry | None) -> Pool:
        """Count it in the whole chain.  Returns the root."""
        pool = self
        while True:
            pool.used += token.weight
            if entry is not None:
                pool.waiting -= 1
                if entry[0] is not RESUMES:
                    pool.admitted += 1
                    if pool.gate is not None:
                        pool.gate.spend()
                pool._close_gate()
            if pool.parent is None:
                return pool
            pool = pool.parent

    def _borrow(self, token: Token) -> None:
        """From the root's ledger, as far as it has tokens."""
        ledger = self._ledger
        assert ledger is not None
        if token.weight == 1 and self.used <= self.cap:
            ledger.take(token)
            return
        borrowed = min(token.weight, max(0, ledger.available()))
        token.borrowers = tuple(object() for _ in range(int(borrowed)))
        for borrower in token.borrowers:
            ledger.take(borrower)

    def _give(self, token: Token) -> None:
        ledger = self._ledger
        assert ledger is not None
        if token.borrowers is None:
            ledger.give(token)
        else:
            for borrower in token.borrowers:
                ledger.give(borrower)

    def _has_what_was_given(self) -> bool:
        """Is the token that was released just now still there?"""
        return True

    def _yield_to_others(self) -> None:
        """Nobody else borrows from a ledger of ours."""

    def force(self, waiter: Any) -> None:
        """Over the cap if need be: it has been told to stop, and unwinds."""
        token = Token(waiter, waiter._weight)
        if waiter._entry is not None:
            self._take_out(waiter)
        self._use(token, entry=None)._borrow(token)
        waiter._token = token
        self.unblock()

    def enter(self, waiter: Waiter, depth: int) -> None:
        """Queue a task, and grant at once what fits, unless who was submitted before has yet to be
        looked at."""
        self.push(waiter, depth)
        self._dispatch_unless_kicked()

    def _dispatch_unless_kicked(self) -> None:
        root = self.root()
        if not root._kicked:
            root.dispatch()

    def pass_on(self, token: Token, step: StepCore | None, heir: Any = None) -> Any:
        """A place of `step` has come free: the record to run there next, or None and the token goes
        to whoever is next."""
        if self._is_plain and token.borrowers is None:
            if self.used <= self.cap:
                if heir is not None:
                    if heir._step.pool is self:
                        self._take_out(heir)
                        token.holder = heir
                        heir._token = token
                        heir._step.granted(heir)
                        return None
                elif self.waiting and self.paused is None and (entry := self._best()) is not None:
                    waiter = entry[3]
                    if waiter._step is step and waiter.status is QUEUED:
                        self._queue.pop()
                        self.waiting -= 1
                        self.admitted += 1
                        token.holder = waiter
                        waiter._entry = None
                        waiter._token = token
                        return waiter
            self._release_plainly(token)
            return self.dispatch(step) if self.waiting else None
        self._release(token)
        if heir is not None:
            self._hand_over(token, heir)
        root = self.root()
        root._yield_to_others()
        return root.dispatch(step)

    def _hand_over(self, token: Token, heir: Any) -> None:
        if token.weight < heir._weight or not self.root()._has_what_was_given():
            return
        pool = heir._step.pool
        if self.is_within(pool) and all(outer.fits(heir._weight) for outer in pool.chain()):
            pool._has_stale = True
            pool._lend(heir)
            heir._step.granted(heir)

    def not_begun(self) -> None:
        """Who was granted a token has been stopped before it began: its rate is not spent."""
        for pool in self.chain():
            if pool.gate is not None:
                pool.gate.refund()

    def give_back(self, token: Token) -> None:
        self.pass_on(token, None)

    def _release_plainly(self, token: Token) -> None:
        assert self._ledger is not None
        self.used -= 1
        self._ledger.give(token)
        if self._has_stale and not self.waiting:
            self._has_stale = False
            self._queue.sweep()

    def _release(self, token: Token) -> None:
        pool = self
        while True:
            pool.used -= token.weight
            if pool._has_stale and not pool.waiting:
                pool._has_stale = False
                pool._queue.sweep()
            if pool.parent is None:
                break
            pool = pool.parent
        if not pool._is_plain and not pool.used and not pool.waiting:
            pool._is_plain = pool._may_be_plain()
        pool._give(token)
        self._offer()

    # ------------------------------------------------------------ changes

    def set_cap(self, cap: int | float) -> None:
        self.cap = cap
        if self._ledger is not None:
            self._ledger.set_total(cap)
        self._offer()
        self.root().changed()
        for step in self.steps:
            step.cap_changed()

    def set_paused(self, reason: str | None) -> None:
        self.paused = reason
        if reason is None:
            self._offer()
            self.root().changed()
        else:
            self.unblock()
