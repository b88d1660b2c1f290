"""A pool over a limiter of the user's own, which others borrow from too.

1. The limiter is asked first, and the best record is chosen once there is a token: late binding.
2. It is first come first served, between us and the user's own tasks: a token that comes free is
   given back if anyone else waits, or the limit has shrunk, and else passed on from record to
   record.
3. While records wait, as many requests stand in its line as it could serve at once, and at least
   one, as it may have none now and some later; they are withdrawn as the queue shrinks.  A token
   that finds no record is given back.
4. The branch around the last nested one is handed its token, the borrower and all.
5. It lends one token at a time, so weights are refused.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from ._admission import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._admission import Token
    from ._core import StepCore
    from ._queue import Entry


class SharedLedger(Protocol):
    """The host's side: the limiter, and requests that stand in its line."""

    def give(self, borrower: object) -> None: ...
    def set_total(self, total_tokens: int | float) -> None: ...
    def in_use(self) -> tuple[int, int | float]:
        """Tokens borrowed, by whomever, and the total."""

    def try_take(self) -> object | None:
        """A borrower, if there is a token, and nobody stands in line for it."""

    def is_wanted_back(self) -> bool:
        """Does anyone but us stand in line, or has the total been passed by a shrink?"""

    def ask(self, number: int, granted: Callable[[object], None]) -> None:
        """Have that many requests stand in line.  `granted` is called with the borrower of each
        that is served."""


class ForeignPool(Pool):
    __slots__ = ("_shared", "_spare")

    def __init__(self, ledger: SharedLedger, paused: str | None = None) -> None:
        super().__init__(None, inf, paused)
        self._shared: SharedLedger = ledger
        self._spare: list[object] = []  # borrowers that no record has got yet

    def in_use(self) -> tuple[int, int | float]:
        return self._shared.in_use()

    def has_room(self, weight: int) -> bool:
        borrowed, total = self._shared.in_use()
        return borrowed < total

    def _may_be_plain(self) -> bool:
        return False

    def weighs(self) -> bool:
        return False

    def set_cap(self, cap: int | float) -> None:
        self._shared.set_total(cap)
        for step in self.steps:
            step.cap_changed()

    def changed(self) -> None:
        if self.waiting:
            super().changed()
        else:
            self._shared.ask(0, self._granted)

    def dispatch(self, step: StepCore | None = None) -> Any:
        following = super().dispatch(step)
        self._return_spare()
        wanted = 0
        if super()._admissible() is not None:
            wanted = int(min(self.waiting, max(1, self._shared.in_use()[1])))
        self._shared.ask(wanted, self._granted)
        return following

    def _admissible(self) -> Entry | None:
        """If there is a token for it: there is a spare one then."""
        entry = super()._admissible()
        if entry is None or self._spare:
            return entry
        borrower = self._shared.try_take()
        if borrower is None:
            return None
        self._spare.append(borrower)
        return entry

    def _granted(self, borrower: object) -> None:
        self._spare.append(borrower)
        self.dispatch()

    def _return_spare(self) -> None:
        while self._spare:
            self._shared.give(self._spare.pop())

    def _borrow(self, token: Token) -> None:
        borrower = self._spare.pop() if self._spare else self._shared.try_take()
        token.borrowers = () if borrower is None else (borrower,)  # none: over the cap

    def _give(self, token: Token) -> None:
        assert token.borrowers is not None
        self._spare.extend(token.borrowers)

    def _has_what_was_given(self) -> bool:
        return bool(self._spare)  # not if it ran over the cap

    def _yield_to_others(self) -> None:
        if self._spare and self._shared.is_wanted_back():
            self._return_spare()
