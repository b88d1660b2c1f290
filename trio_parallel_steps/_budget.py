"""The books of a budget: what was promised and what was spent, in any units, and the limits on it.

1. What would pass a limit, of its own book or of one around it, is refused whole, and then nothing
   is written.  A book is asked before those around it: what its own limit forbids is not their
   business.
2. Settled + reserved never exceeds a limit, but for what is settled beyond its reservation: that
   has been spent, and is recorded in full.
3. Amounts are added exactly, as the decimals that they print as.
4. A unit that a book does not have is not its business, but a book without any limits counts all.

Who is stopped by a refusal, and who is told, is `_spending`'s.
"""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import TYPE_CHECKING, Final, TypeAlias

from ._errors import BudgetExceeded
from ._util import expected, is_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_add: Final = _EXACT.add
_subtract: Final = _EXACT.subtract
_ZERO: Final = Decimal(0)
_FRACTION: Final = Decimal("0.0")

Amounts: TypeAlias = dict[str, Decimal]


class Account:
    """One unit in one book."""

    __slots__ = ("limit", "settled", "used")

    def __init__(self, limit: Decimal) -> None:
        self.limit = limit
        self.settled = _ZERO
        self.used = _ZERO  # settled + reserved


class Book:
    """The accounts of one budget.  Its chain is itself and the books around it, outward."""

    __slots__ = ("_around", "_chained", "accounts", "counts_all")

    def __init__(self, parent: Book | None, limits: Mapping[str, float]) -> None:
        self.accounts = {unit: Account(check_limit(unit, limit)) for unit, limit in limits.items()}
        self.counts_all = not limits
        self._around: tuple[Book, ...] = () if parent is None else parent.chain  # outward
        # The accounts of the whole chain.  (Itself in a tuple of its own would be a cycle.)
        around = () if parent is None else parent._chained
        self._chained: tuple[dict[str, Account], ...] = (self.accounts, *around)
        self._open(limits)

    @property
    def chain(self) -> tuple[Book, ...]:
        return (self, *self._around)

    def reserve(self, amounts: Mapping[str, float]) -> Amounts:
        """All of it in the whole chain, or nothing: then BudgetExceeded."""
        asked = self._read(amounts)
        changes = []
        for accounts in self._chained:
            for unit, amount in asked.items():
                if (account := accounts.get(unit)) is not None and amount:
                    used = _add(account.used, amount)
                    if used > account.limit:
                        raise self._refusal(accounts, unit, account.used, amount)
                    changes.append((account, used))
        for account, used in changes:
            account.used = used
        return asked

    def spend(self, amounts: Mapping[str, float]) -> None:
        """Reserve and settle."""
        for unit, cost in self.reserve(amounts).items():
            for accounts in self._chained:
                if (account := accounts.get(unit)) is not None:
                    account.settled = _add(account.settled, cost)

    def settle(self, reserved: Amounts, amounts: Mapping[str, float]) -> BudgetExceeded | None:
        """Take them out of what is left in `reserved`, and what is more from nowhere.  A refusal
        here comes after the fact, and is returned: of several, the one furthest out."""
        refusals = []
        for unit, cost in self._read(amounts).items():
            left = reserved.get(unit, _ZERO)
            covered = cost <= left
            reserved[unit] = _subtract(left, cost) if covered else _ZERO
            for accounts in self._chained:
                if (account := accounts.get(unit)) is None:
                    continue
                account.settled = _add(account.settled, cost)
                if covered:
                    continue
                others = _subtract(account.used, left)
                account.used = _add(others, cost)
                if account.used > account.limit:
                    refusals.append(self._refusal(accounts, unit, others, cost))
        return max(refusals, key=lambda error: len(error._asked)) if refusals else None

    def release(self, reserved: Amounts) -> None:
        """Give back what is left of a reservation."""
        for unit, amount in reserved.items():
            if amount:
                for accounts in self._chained:
                    if (account := accounts.get(unit)) is not None:
                        account.used = _subtract(account.used, amount)

    def _read(self, amounts: Mapping[str, float]) -> Amounts:
        """What a call was given, checked: TypeError or ValueError for what makes no sense here."""
        asked = {}
        accounts = self.accounts
        for unit, amount in amounts.items():
            if unit not in accounts and not self.counts_all:
                units = ", ".join(map(repr, accounts))
                raise ValueError(f"{unit!r} is no unit of this budget, which has {units}")
            # The common cases first: this runs once a call.
            if type(amount) is int and amount >= 0:
                asked[unit] = Decimal(amount)
            elif type(amount) is float and 0.0 <= amount < 1e16:
                asked[unit] = Decimal(repr(amount))
            else:
                asked[unit] = _amount(unit, amount)
        if self.counts_all:
            self._open(asked)
        return asked

    def _open(self, units: Iterable[str]) -> None:
        """Where all is counted."""
        for book in self.chain:
            if book.counts_all:
                for unit in units:
                    if unit not in book.accounts:
                        book.accounts[unit] = Account(Decimal(math.inf))

    def _refusal(
        self, accounts: dict[str, Account], unit: str, used: Decimal, requested: Decimal
    ) -> BudgetExceeded:
        limit = to_number(accounts[unit].limit)
        error = BudgetExceeded(unit, limit, to_number(used), to_number(requested))
        asked = next(n for n, its in enumerate(self._chained, 1) if its is accounts)
        error._asked = self.chain[:asked]
        return error


def check_limit(unit: str, limit: float) -> Decimal:
    what = "a number >= 0, or math.inf"
    if not is_number(limit):
        raise TypeError(expected(unit, what, limit))
    if not limit >= 0:  # NaN too
        raise ValueError(expected(unit, what, limit))
    return _decimal(limit)


def _amount(unit: str, amount: float) -> Decimal:
    if is_number(amount) and 0 <= amount < math.inf:
        return _decimal(amount)
    what = "a finite number >= 0"
    raise (ValueError if is_number(amount) else TypeError)(expected(unit, what, amount))


def _decimal(number: float) -> Decimal:
    if isinstance(number, int):
        return Decimal(number)
    # Of a subclass (numpy has one) the repr may be anything.  The fraction marks 1e300 as a float.
    return _add(Decimal(float.__repr__(number)), _FRACTION)


def to_number(amount: Decimal) -> float:
    """As it went in: a sum of ints is an int."""
    return int(amount) if amount.as_tuple().exponent == 0 else float(amount)
