"""Are two values the same?  Asked of a value and of its deep copy, so identity does not tell.

1. Types count: 1, 1.0 and True are three values.  A NaN is the same as another.
2. What has fields is compared field by field, lists and tuples item by item, whatever their ``==``
   says: a field may be left out of it.
3. Of all else ``==`` is asked, and may raise, or answer with no bool (an array).  Then, and of what
   has no ``==`` of its own, it counts what would be pickled.
4. What holds itself is the same unless a difference is found.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import count
from operator import is_
from typing import Any, Final, TypeAlias

from ._fields import ATOMS, fields

# What is being compared, kept alive lest an id be used again.
Seen: TypeAlias = dict[tuple[int, int], tuple[Any, Any]]

DEPTH: Final = 3
PICKLED: Final = 4  # this protocol holds bytes where later ones may hold buffers


def same(one: Any, other: Any, seen: Seen | None = None) -> bool:
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in ATOMS:
        return bool(one == other or (one != one and other != other))
    if kind is list and len(one) == len(other) and all(map(is_, one, other)):
        return True  # of atoms, most often: a deep copy holds the same ones
    seen = {} if seen is None else seen
    pair = id(one), id(other)
    if pair in seen:
        return True
    seen[pair] = one, other
    if kind is list or kind is tuple:
        return _same_items(one, other, seen)
    if isinstance(one, list | tuple):
        return _same_items(one, other, seen) and _same_attributes(one, other, seen)
    ones = fields(one)
    if ones is not None:
        return _same_fields(ones, fields(other) or {}, seen)
    answer = _is_equal(one, other)
    if answer is not None:
        return answer
    if isinstance(one, set | frozenset):
        others = Distinct(other)
        return len(one) == len(other) and all(others.find(item) is not None for item in one)
    return _same_pickles(one, other, seen)


def _same_items(ones: Any, others: Any, seen: Seen) -> bool:
    return len(ones) == len(others) and all(
        one is other or same(one, other, seen) for one, other in zip(ones, others, strict=True)
    )


def _same_fields(ones: Mapping[Hashable, Any], others: Mapping[Hashable, Any], seen: Seen) -> bool:
    return len(ones) == len(others) and all(
        key in others and same(one, others[key], seen) for key, one in ones.items()
    )


def _same_attributes(one: Any, other: Any, seen: Seen) -> bool:
    """Of a list or tuple: those of a subclass."""
    return same(getattr(one, "__dict__", None), getattr(other, "__dict__", None), seen)


def _is_equal(one: Any, other: Any) -> bool | None:
    """By ``==``; None if that can't tell."""
    try:
        answer = one == other
        if answer is True or (answer is False and _compares(one)):
            return bool(answer)
    except Exception:  # the values' own: they are compared in another way
        return None
    return None


def _compares(value: Any) -> bool:
    """Is a copy of it equal to it, as far as its ``==`` is concerned?"""
    if isinstance(value, set | frozenset):
        return all(_compares(item) for item in value)
    kind: Any = type(value)
    return kind.__eq__ is not object.__eq__ and (value == value) is True


def _same_pickles(one: Any, other: Any, seen: Seen) -> bool:
    try:
        parts, others = one.__reduce_ex__(PICKLED), other.__reduce_ex__(PICKLED)
    except Exception:  # the values' own: not to be pickled, so nothing says that they are the same
        return False
    if isinstance(parts, str):
        return bool(parts == others)
    return same(_listed(parts), _listed(others), seen)


def _listed(parts: Iterable[Any]) -> list[Any]:
    return [list(part) if isinstance(part, Iterator) else part for part in parts]


# ---------------------------------------------------------------- items


def mark(value: Any, depth: int = DEPTH) -> int:
    """A hash: of values that are the same, the same; it looks a few levels deep."""
    kind = type(value)
    if kind in ATOMS:
        return hash((kind, value)) if value == value else hash(kind)
    if depth == 0:
        return hash(kind)
    if isinstance(value, list | tuple):
        return hash((kind, *(mark(item, depth - 1) for item in value)))
    parts = fields(value)
    if parts is not None:
        return hash((kind, frozenset((key, mark(p, depth - 1)) for key, p in parts.items())))
    try:
        if not isinstance(value, set | frozenset) and _compares(value):
            return hash(value)
    except Exception:  # the value's own: unhashable, or its == raises
        return hash(kind)
    return hash(kind)


class Distinct:
    """Items in order, each once, hashable or not; found in constant time unless their marks agree.

    An item is known by a number, in the order in which they came.
    """

    __slots__ = ("_by_mark", "_items", "_numbers")

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items: dict[int, Any] = {}
        self._by_mark: dict[int, list[int]] = {}
        self._numbers = count()
        for item in items:
            self.add(item)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items.values())

    def find(self, item: Any) -> int | None:
        return self._find(item, self._by_mark.get(mark(item), ()))

    def _find(self, item: Any, numbers: Iterable[int]) -> int | None:
        return next((n for n in numbers if same(self._items[n], item)), None)

    def add(self, item: Any) -> None:
        numbers = self._by_mark.setdefault(mark(item), [])
        if self._find(item, numbers) is None:
            numbers.append(number := next(self._numbers))
            self._items[number] = item

    def discard(self, item: Any) -> None:
        numbers = self._by_mark.get(mark(item), [])
        number = self._find(item, numbers)
        if number is not None:
            numbers.remove(number)
            del self._items[number]

    def without(self, numbers: set[int]) -> list[Any]:
        """The items that are none of `numbers`."""
        return [item for number, item in self._items.items() if number not in numbers]
