"""`Budget`: limits on usage that cannot be overshot, and that stop steps when they are reached for.

1. Reserve before the work, settle after it: refusal comes before the money is spent, and nothing
   ever waits for money.
2. A refusal is the breach: it stops every open step that was given the asked budget, or a parent up
   to the one that refused, synchronously in the task that asked.  The inner step first, so that
   none takes the stop of one around it for a cancellation from outside.
3. Each call is told once to each open step that was given the budget, one inside it or one around
   it: what it is told of is the innermost budget that it uses and that has changed.
4. Who asks from another thread than that of the open steps is refused before anything changes.
   While none is open, any thread may ask, one at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, final

from ._budget import Amounts, Book, to_number
from ._errors import BudgetExceeded
from ._records import Cause
from ._util import expected
from .hosts import protected

if TYPE_CHECKING:
    from types import TracebackType

    from ._core import StepCore


class Reservation(Protocol):
    """What the block of `Budget.reserve` is given: usage that is promised, and not spent yet."""

    def settle(self, /, **amounts: float) -> None:
        """What it really cost; several calls add up.

        More than was reserved is recorded in full.  If that passes a limit, the steps of the budget
        are breached at once, and the call raises `BudgetExceeded`.
        """


@final
class Budget:
    """Counted limits on usage, in any units: ``Budget(usd=1.0, tokens=50_000)``.

    Reaching a limit is allowed, passing it is not: a request that would pass it is refused before
    anything is spent.  Settled + reserved never exceeds a limit, except by what
    `Reservation.settle` reports beyond its reservation.  Amounts add up as the decimals they print
    as.  A Budget without any limits counts whatever it is told and refuses nothing.

    What is asked of a budget is asked of its `parent` too, for the units that the parent has.

    Any number of steps may be given it (``budget=``).  A refusal breaches every open step given
    this budget, or any parent up to the one that refused; with none open it only raises.  The
    asking branch ends as BREACHED unless it returns.

    >>> budget = Budget(usd=0.3)
    >>> budget.spend(usd=0.1)
    >>> with budget.reserve(usd=0.2) as reservation:
    ...     reservation.settle(usd=0.1)
    >>> budget.spend(usd=0.1)
    >>> budget.used()
    {'usd': 0.3}
    >>> budget.spend(usd=0.01)
    Traceback (most recent call last):
    trio_parallel_steps._errors.BudgetExceeded: budget exceeded: 0.01 usd requested, 0.3 of 0.3 used
    """

    __slots__ = ("_all_observed", "_all_steps", "_around", "_book", "_observed", "_steps")

    def __init__(self, parent: Budget | None = None, /, **limits: float) -> None:
        if not isinstance(parent, Budget | None):
            raise TypeError(expected("parent", "a Budget or None", parent))
        self._book: Book = Book(None if parent is None else parent._book, limits)
        self._around: tuple[Budget, ...] = () if parent is None else parent._chain  # outward
        # The open steps that were given it or one inside it, in the order of opening.
        self._steps: dict[StepCore, None] = {}
        self._observed: dict[StepCore, None] = {}  # those of them that have observers
        # The outermost budget's.  (That one itself would be a cycle.)
        outermost = self._around[-1] if self._around else self
        self._all_steps: dict[StepCore, None] = outermost._steps
        self._all_observed: dict[StepCore, None] = outermost._observed

    @protected
    def spend(self, /, **amounts: float) -> None:
        """Reserve and settle at once.

        Raises `BudgetExceeded`, and breaches the open steps, if a limit would be passed: then
        nothing was spent.  ValueError for a unit that the budget does not have, for a negative
        amount, infinity and NaN.
        """
        if self._all_steps:
            self._check_thread()
        try:
            self._book.spend(amounts)
        except BudgetExceeded as refusal:
            self._breach(refusal)
            raise
        if self._all_observed:
            self._tell()

    @protected
    def reserve(self, /, **amounts: float) -> AbstractContextManager[Reservation]:
        """Promise usage before the work: ``with budget.reserve(usd=0.1) as reservation:``.

        `Reservation.settle` says what it really cost; leaving the block releases what was not
        settled.  Raises as `spend` does, at the call.
        """
        if self._all_steps:
            self._check_thread()
        try:
            reserved = self._book.reserve(amounts)
        except BudgetExceeded as refusal:
            self._breach(refusal)
            raise
        if self._all_observed:
            self._tell()
        return _Reserved(self, reserved)

    def used(self) -> dict[str, float]:
        """Settled plus reserved, by unit; every unit is listed."""
        return {unit: to_number(account.used) for unit, account in self._book.accounts.items()}

    def settled(self) -> dict[str, float]:
        """What was really spent, by unit; every unit is listed."""
        return {unit: to_number(account.settled) for unit, account in self._book.accounts.items()}

    def __repr__(self) -> str:
        accounts = ", ".join(
            f"{to_number(account.used)} of {to_number(account.limit)} {unit}"
            for unit, account in self._book.accounts.items()
        )
        return f"<Budget: {accounts or 'no limits'}>"

    # ------------------------------------------------------------ inside

    @property
    def _chain(self) -> tuple[Budget, ...]:
        return (self, *self._around)

    def _check_thread(self) -> None:
        for step in self._all_steps:
            step.run.check_thread()
            break  # they are all of one thread, as each was checked before it opened

    def _breach(self, refusal: BudgetExceeded) -> None:
        concerned = self._chain[: len(refusal._asked)]
        for step in reversed(tuple(concerned[-1]._steps)):
            if step.budget in concerned and step.stop(Cause.BREACH, refusal.reason):
                step.exceeded = refusal.again(None)

    def _tell(self) -> None:
        told: dict[StepCore, None] = {}
        for budget in self._chain:
            for step in tuple(budget._observed):
                if step not in told:
                    step.tell("usage_changed", budget)
            told = budget._observed

    def _attach(self, step: StepCore) -> None:
        """The step opens."""
        for budget in self._chain:
            budget._steps[step] = None
            if step.observers:
                budget._observed[step] = None

    def _detach(self, step: StepCore) -> None:
        """The step closes."""
        for budget in self._chain:
            del budget._steps[step]
            budget._observed.pop(step, None)


class _Reserved:
    """A reservation, and its block."""

    __slots__ = ("_budget", "_is_open", "_left")

    def __init__(self, budget: Budget, left: Amounts) -> None:
        self._budget = budget
        self._left = left
        self._is_open = True

    @protected
    def __enter__(self) -> _Reserved:
        if not self._is_open:
            raise self._ended()
        return self

    @protected
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        budget = self._budget
        if budget._all_steps:
            budget._check_thread()
        left, self._left = self._left, {}
        self._is_open = False
        budget._book.release(left)

    @protected
    def settle(self, /, **amounts: float) -> None:
        if not self._is_open:
            raise self._ended()
        budget = self._budget
        if budget._all_steps:
            budget._check_thread()
        refusal = budget._book.settle(self._left, amounts)
        if budget._all_observed:
            budget._tell()
        if refusal is not None:
            budget._breach(refusal)
            try:
                raise refusal
            finally:
                del refusal  # no cycles

    def _ended(self) -> RuntimeError:
        return RuntimeError("a reservation ends with its block: reserve again")

    def __repr__(self) -> str:
        left = ", ".join(f"{to_number(amount)} {unit}" for unit, amount in self._left.items())
        return f"<Reservation: {left or 'nothing'} left>"


def check_budget(budget: Any) -> Budget | None:
    if not isinstance(budget, Budget | None):
        raise TypeError(expected("budget", "a Budget or None", budget))
    return budget
