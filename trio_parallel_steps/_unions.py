"""How lists and sets that several branches changed unite: `Union`.

1. Against what they were given: what a branch added is added, what one removed is left out.
2. The items of the first branch come first, in its order; then what the others added, in theirs.
3. Each item is there once; types count, and items need not be hashable.
4. A list that one branch changed, or all in the same way, is that branch's: it is not united.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from ._same import Distinct

UNITED: Final = (list, set, frozenset)


def unites(first: Any, second: Any) -> bool:
    """Are they two lists, or two sets, of one type?"""
    return type(first) is type(second) and isinstance(first, UNITED)


class Union:
    """What the branches so far make of a list or a set."""

    __slots__ = ("_items", "_was", "branch", "first")

    def __init__(self, was: Any, first: Any, branch: str) -> None:
        self._was = Distinct(was if unites(was, first) else ())
        self._items = Distinct(first)
        self.first = first
        self.branch = branch

    def unite(self, value: Any) -> None:
        """Add what a further branch added, and leave out what it removed."""
        kept = set()
        for item in value:
            number = self._was.find(item)
            if number is None:
                self._items.add(item)
            else:
                kept.add(number)
        for item in self._was.without(kept):
            self._items.discard(item)

    def united(self) -> Any:
        """A new one of the same type."""
        if isinstance(self.first, frozenset):
            return type(self.first)(self._items)
        new = copy.copy(self.first)
        new.clear()
        (new.extend if isinstance(new, list) else new.update)(self._items)
        return new
