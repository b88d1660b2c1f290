"""What counts as left as it was: of values and their deep copies, whatever their ``==`` says."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from trio_parallel_steps._same import Distinct, mark, same


class Array:
    """As arrays have it: ``==`` is asked item by item, and what that gives has no truth."""

    def __init__(self, *items: float) -> None:
        self.items = items

    def __eq__(self, other: object) -> Any:
        return Array(*(0 for _ in self.items))

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __reduce__(self) -> Any:
        return Array, self.items


class Raises(Array):
    def __eq__(self, other: object) -> Any:
        raise RuntimeError("not to be compared")

    __hash__ = None

    def __reduce__(self) -> Any:
        return Raises, self.items


class ById:
    """Equal if of one id; says itself how it is pickled, so that it is a single value."""

    def __init__(self, number: int, name: str = "") -> None:
        self.number = number
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __reduce__(self) -> Any:
        return ById, (self.number, self.name)


class Opaque:
    """No ``==`` of its own, and not to be pickled."""

    def __deepcopy__(self, memo: Any) -> Opaque:
        return Opaque()

    def __reduce__(self) -> Any:
        raise TypeError("can't be pickled")


@dataclass
class Noted:
    value: int
    note: str = field(default="", compare=False)


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class Point(NamedTuple):
    x: Any
    y: Any


class Tagged(list[int]):
    tag = ""


class Global:
    def __reduce__(self) -> str:
        return "GLOBAL"


GLOBAL = Global()
NAN = float("nan")
LOOP: list[Any] = [1]
LOOP.append(LOOP)

VALUES = [
    *(None, True, 1, 1.0, 0, False, "a", b"a", NAN, 1j, -1.5, "1"),
    *([1], [True], [1.0], [], (), (1,), (1, [2]), [[NAN]]),
    *({}, {"a": 1}, {"a": True}, {"b": 1}, {"a": 1, "b": 1}),
    *({1, 2}, {1}, frozenset({1}), {"a"}, set()),
    *(Array(1, NAN), Array(1, 2), [Array(1)], Raises(1), Raises(2)),
    *(ById(1), ById(2), Decimal("NaN"), Decimal(1), dt.date(2026, 1, 1), dt.date(2026, 1, 2)),
    *(Noted(1), Noted(1, "seen"), Noted(2), Plain(1), Plain(2), Plain([Plain(3)])),
    *(Point(1, 2), Point(True, 2), deque([1]), deque([2]), range(3), object(), Point, print),
    *({Plain(1)}, {Plain(2)}, {Plain(1), Plain(2)}),
]
IDS = [f"{number} {type(value).__name__}" for number, value in enumerate(VALUES)]


@pytest.mark.parametrize("value", VALUES, ids=IDS)
def test_a_deep_copy_is_the_same(value: Any) -> None:
    assert same(value, copy.deepcopy(value))
    assert mark(value) == mark(copy.deepcopy(value))


@pytest.mark.parametrize("number", range(len(VALUES)), ids=IDS)
def test_no_two_of_them_are_the_same(number: int) -> None:
    alike = [other for other in VALUES if same(VALUES[number], other)]
    assert len(alike) == 1
    assert alike[0] is VALUES[number]


def test_another_nan_is_the_same() -> None:
    assert same({"a": [float("nan")]}, {"a": [float("nan")]})
    assert same(Decimal("NaN"), Decimal("NaN"))


def test_equal_by_its_own_word_is_the_same() -> None:
    assert same(ById(1, "a"), ById(1, "b"))


def test_what_is_left_out_of_eq_is_a_difference() -> None:
    assert Noted(1) == Noted(1, "seen")
    assert not same([Noted(1)], [Noted(1, "seen")])


def test_an_attribute_of_a_list_is_a_difference() -> None:
    one, other = Tagged([1]), Tagged([1])
    assert same(one, other)
    other.tag = "b"
    assert not same(one, other)


def test_what_can_neither_be_compared_nor_pickled_is_the_same_as_itself_alone() -> None:
    value = Opaque()
    assert same(value, value)
    assert not same(value, copy.deepcopy(value))


def test_what_pickles_as_a_name_is_known_by_the_name() -> None:
    assert same(GLOBAL, Global())
    assert pickle.loads(pickle.dumps(GLOBAL)) is GLOBAL


def test_what_holds_itself_is_compared_to_the_end() -> None:
    again = copy.deepcopy(LOOP)
    assert same(LOOP, again)
    again[0] = 2
    assert not same(LOOP, again)
    table: dict[str, Any] = {"n": 1}
    table["table"] = table
    other = copy.deepcopy(table)
    assert same(table, other)
    other["n"] = 2
    assert not same(table, other)


def test_pickled_parts_are_kept_while_they_are_compared() -> None:
    # Else an id may be used again for a part that was never compared.
    assert not same([deque([Plain(n)]) for n in range(50)], [deque([Plain(n)]) for n in [0] * 50])


# ---------------------------------------------------------------- items


def test_items_are_there_once_in_order_hashable_or_not() -> None:
    items = [1, True, [1], [True], {"a": [1]}, 1, [1], {"a": [1]}, 1.0, Plain([1]), Plain([1])]
    assert [repr(item) for item in Distinct(items[:-2])] == [
        *("1", "True", "[1]", "[True]", "{'a': [1]}", "1.0")
    ]
    assert len([*Distinct(items)]) == 7


def test_a_nan_is_there_once() -> None:
    assert len([*Distinct([float("nan"), float("nan"), 1.0])]) == 2


@pytest.mark.parametrize("number", range(len(VALUES)), ids=IDS)
def test_an_item_is_found_by_a_copy_and_discarded(number: int) -> None:
    items = Distinct(VALUES)
    value = copy.deepcopy(VALUES[number])
    assert items.find(value) == number
    items.discard(value)
    items.discard(value)
    assert items.find(value) is None
    assert [id(item) for item in items] == [id(v) for v in VALUES if v is not VALUES[number]]
    items.add(value)
    assert [*items][-1] is value


def test_what_lies_deep_is_told_apart_though_marks_agree() -> None:
    deep = [[[[[[number]]]]] for number in range(3)]
    assert len({mark(item) for item in deep}) == 1
    assert [*Distinct([*deep, *copy.deepcopy(deep)])] == deep


TREES = st.recursive(
    st.sampled_from([0, 1, True, 1.0, "a", None, NAN]) | st.frozensets(st.integers(0, 2)),
    lambda parts: st.lists(parts, max_size=2) | st.dictionaries(st.integers(0, 1), parts),
    max_leaves=6,
)


def spelled(value: Any) -> Any:
    """As values are told apart on paper."""
    if isinstance(value, dict):
        return ("dict", sorted((key, spelled(part)) for key, part in value.items()))
    if isinstance(value, list):
        return ("list", [spelled(part) for part in value])
    return (type(value).__name__, repr(sorted(value) if isinstance(value, frozenset) else value))


@given(TREES, TREES)
def test_same_means_spelled_alike(one: Any, other: Any) -> None:
    assert same(one, other) == (spelled(one) == spelled(other))
    if same(one, other):
        assert mark(one) == mark(other)
