"""What becomes of the contexts of a step's branches, by each strategy, and by a small model."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from test_same import Array, Plain
from trio_parallel_steps import MergeConflict, MergeStrategy
from trio_parallel_steps._contexts import begin, copied
from trio_parallel_steps._merge import check_merge_strategy

NO_MERGE, CONTEXT_UPDATE, OVERWRITE, KEEP_FIRST, ERROR_ON_CONFLICT = MergeStrategy
MERGING = (CONTEXT_UPDATE, OVERWRITE, KEEP_FIRST, ERROR_ON_CONFLICT)

merging = pytest.mark.parametrize("strategy", MERGING, ids=lambda each: each.value)


def merged(strategy: Any, context: Any, *lefts: Any) -> Any:
    """Of branches "0", "1" and so on: functions that change their context, or what they left."""
    contexts = begin(context)
    ended = []
    for number, left in enumerate(lefts):
        own = copied(contexts.given)
        if callable(left):
            left(own)
        else:
            own = left
        ended.append((str(number), own))
    return contexts.merged(strategy, ended)


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(context: Any) -> None:
        for key in path[:-1]:
            context = context[key]
        context[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    def change(context: Any) -> None:
        for key in path[:-1]:
            context = context[key]
        del context[path[-1]]

    return change


def leave(context: Any) -> None:
    pass


def test_strategies_are_spelled_as_the_contract_has_them() -> None:
    words = "NO_MERGE CONTEXT_UPDATE OVERWRITE KEEP_FIRST ERROR_ON_CONFLICT"
    assert {each.name: each.value for each in MergeStrategy} == {
        word: word.lower() for word in words.split()
    }


# ---------------------------------------------------------------- all that merge


@merging
def test_changes_of_different_values_come_together_at_any_depth(strategy: MergeStrategy) -> None:
    context = {"a": 1, "deep": {"b": {"c": 2, "d": 3}, "e": 4}, "gone": 5}
    changes = [
        put("a", value=10),
        put("deep", "b", "c", value=20),
        put("deep", "b", "new", value=30),
        put("deep", "f", value=40),
        drop("gone"),
        leave,
    ]
    assert merged(strategy, context, *changes) == {
        "a": 10,
        "deep": {"b": {"c": 20, "d": 3, "new": 30}, "e": 4, "f": 40},
    }


@merging
def test_what_was_left_as_it_was_never_conflicts_and_undoes_nothing(
    strategy: MergeStrategy,
) -> None:
    context = {"a": 1, "b": [1], "c": {"d": 1}}
    for changes in ([put("a", value=2), leave], [leave, put("a", value=2)]):
        assert merged(strategy, context, *changes) == {"a": 2, "b": [1], "c": {"d": 1}}
    for changes in ([drop("c"), leave], [leave, drop("c")]):
        assert merged(strategy, context, *changes) == {"a": 1, "b": [1]}
    assert merged(strategy, context, put("c", "d", value=1), put("c", "d", value=2))["c"]["d"] == 2


@merging
def test_values_whose_eq_does_not_tell_are_left_as_they_were_too(strategy: MergeStrategy) -> None:
    context: dict[str, Any] = {
        "array": Array(1, 2),
        "nan": float("nan"),
        "plain": [Plain(1)],
        "n": 0,
    }
    result = merged(strategy, context, put("n", value=1), leave, put("plain", value=[Plain(2)]))
    assert result["n"] == 1
    assert result["array"].items == (1, 2)
    assert result["plain"][0].value == 2


@merging
def test_types_count(strategy: MergeStrategy) -> None:
    result = merged(strategy, {"flag": 1, "n": [0]}, put("flag", value=True), leave)
    assert result["flag"] is True
    result = merged(strategy, {"flag": 1, "n": [0]}, put("n", value=[False]), leave)
    assert result["n"][0] is False


@merging
def test_the_same_change_by_two_branches_is_no_conflict(strategy: MergeStrategy) -> None:
    for change in (put("a", value=[5]), drop("a"), put("new", value={"x": {}})):
        once = merged(strategy, {"a": 1}, change)
        assert merged(strategy, {"a": 1}, change, change, change) == once
    nans = [put("a", value=float("nan")), put("a", value=float("nan"))]
    assert merged(strategy, {"a": 1}, *nans)["a"] != 1


@merging
def test_mappings_that_two_branches_added_are_joined(strategy: MergeStrategy) -> None:
    adding = [
        put("new", value={"x": 1, "in": {"a": 1}}),
        put("new", value={"y": 2, "in": {"b": 2}}),
    ]
    joined = {"x": 1, "y": 2, "in": {"a": 1, "b": 2}}
    assert merged(strategy, {}, *adding) == {"new": joined}
    assert merged(strategy, {"new": 5}, *adding) == {"new": joined}


@merging
def test_no_branch_leaves_the_context_as_it_was(strategy: MergeStrategy) -> None:
    context = {"a": [1]}
    result = merged(strategy, context)
    assert result == context
    assert result is not context
    assert result["a"] is not context["a"]


@merging
def test_what_the_branches_left_is_not_written_to(strategy: MergeStrategy) -> None:
    lefts = [{"a": {"x": 1}, "b": [0, 1]}, {"a": {"y": 2}, "b": [0, 1]}, {"a": {"z": 3}, "b": [0]}]
    as_left = copy.deepcopy(lefts)
    result = merged(strategy, {"b": [0]}, *lefts)
    assert result["a"] == {"x": 1, "y": 2, "z": 3}
    assert lefts == as_left


@merging
def test_one_value_in_two_places_is_changed_in_the_one_that_was_changed(
    strategy: MergeStrategy,
) -> None:
    shared = {"n": 1}
    result = merged(strategy, {"a": shared, "b": shared}, put("b", value={"n": 2}))
    assert result == {"a": {"n": 1}, "b": {"n": 2}}


@merging
def test_one_value_in_two_places_is_changed_in_both(strategy: MergeStrategy) -> None:
    shared = {"n": 1}
    result = merged(strategy, {"a": shared, "b": shared}, put("a", "n", value=2), leave)
    assert result == {"a": {"n": 2}, "b": {"n": 2}}


@merging
def test_what_a_branch_left_as_it_was_is_not_taken_from_it(strategy: MergeStrategy) -> None:
    contexts = begin({"in": {"n": 0, "kept": [1]}})
    own = copied(contexts.given)
    own["in"]["n"] = 1
    result = contexts.merged(strategy, [("a", own)])
    assert result == own
    assert result["in"]["kept"] is not own["in"]["kept"]


@merging
def test_a_context_that_holds_itself(strategy: MergeStrategy) -> None:
    context: dict[str, Any] = {"n": 1}
    context["self"] = context
    result = merged(strategy, context, put("n", value=2), put("new", value=3))
    assert (result["n"], result["new"]) == (2, 3)


# ---------------------------------------------------------------- NO_MERGE


def test_no_merge_leaves_the_context_as_it_was() -> None:
    assert merged(NO_MERGE, {"a": {"b": 1}}, put("a", "b", value=2)) == {"a": {"b": 1}}


# ---------------------------------------------------------------- OVERWRITE, KEEP_FIRST


def test_the_last_branch_wins_or_the_first() -> None:
    changes = [put("a", "n", value=number) for number in (1, 2, 3)]
    assert merged(OVERWRITE, {"a": {"n": 0}}, *changes) == {"a": {"n": 3}}
    assert merged(KEEP_FIRST, {"a": {"n": 0}}, *changes) == {"a": {"n": 1}}


@pytest.mark.parametrize(
    ("first", "second", "last_wins", "first_wins"),
    [
        (drop("a"), put("a", "n", value=1), {"a": {"n": 1}}, {}),
        (put("a", "n", value=1), drop("a"), {}, {"a": {"n": 1}}),
        (put("a", value=5), put("a", "n", value=1), {"a": {"n": 1}}, {"a": 5}),
        (put("a", "n", value=1), put("a", value=5), {"a": 5}, {"a": {"n": 1}}),
        (drop("a"), put("a", "in", "x", value=1), {"a": {"in": {"x": 1}}}, {}),
        (drop("a"), drop("a", "n"), {"a": {}}, {}),
        (drop("a"), put("a", value=7), {"a": 7}, {}),
        (put("a", value={}), put("a", "n", value=1), {"a": {"n": 1}}, {"a": {}}),
    ],
)
def test_a_change_within_what_another_branch_took_away(
    first: Any, second: Any, last_wins: dict[str, Any], first_wins: dict[str, Any]
) -> None:
    context: dict[str, Any] = {"a": {"n": 0, "m": 0, "in": {"x": 0, "y": 0}}}
    assert merged(OVERWRITE, context, first, second) == last_wins
    assert merged(KEEP_FIRST, context, first, second) == first_wins


def test_an_instance_that_another_branch_took_away_comes_back_whole() -> None:
    def change(context: Any) -> None:
        context["it"].value = 2

    def see(context: Any) -> None:
        context["it"].seen = True

    it = Plain(1)
    it.other = 3  # type: ignore[attr-defined]
    result = merged(OVERWRITE, {"it": it}, drop("it"), change)
    assert vars(result["it"]) == {"value": 2, "other": 3}
    result = merged(OVERWRITE, {"it": it}, drop("it"), change, see)
    assert vars(result["it"]) == {"value": 2, "other": 3, "seen": True}
    assert merged(KEEP_FIRST, {"it": it}, drop("it"), change) == {}


def test_what_is_changed_within_what_came_back_without_it() -> None:
    it = Plain({"x": 1, "y": 1})
    result = merged(
        OVERWRITE,
        {"it": it},
        drop("it"),
        lambda own: delattr(own["it"], "value"),
        lambda own: own["it"].value.update(x=2),
    )
    assert result["it"].value == {"x": 2}


def test_a_mapping_of_another_type_replaces_a_mapping() -> None:
    ordered = put("a", value=OrderedDict(x=1))
    result = merged(OVERWRITE, {"a": {"n": 0}}, put("a", "n", value=1), ordered)
    assert type(result["a"]) is OrderedDict
    assert result == {"a": {"x": 1}}
    assert merged(OVERWRITE, {"a": {"n": 0}}, ordered, put("a", "n", value=1)) == {"a": {"n": 1}}


# ---------------------------------------------------------------- conflicts


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (put("a", "n", value=1), put("a", "n", value=2), ("a", "n")),
        (put("a", "n", value=1), put("a", "n", value=True), ("a", "n")),
        (put("a", "n", value=1), put("a", "n", value="1"), ("a", "n")),
        (put("a", "n", value=(1,)), put("a", "n", value=(2,)), ("a", "n")),
        (put("a", "n", value=[1]), put("a", "n", value={1}), ("a", "n")),
        (put("a", "n", value=1), drop("a", "n"), ("a", "n")),
        (put("a", "n", value=1), drop("a"), ("a",)),
        (drop("a"), put("a", "n", value=1), ("a",)),
        (put("a", value=5), put("a", "n", value=1), ("a",)),
        (put("new", value={"x": 1}), put("new", value={"x": 2}), ("new", "x")),
        (put("new", value={"x": 1}), put("new", value=[]), ("new",)),
        (put("new", value={"x": 1}), put("new", value=OrderedDict(x=1)), ("new",)),
        (put("new", value={"x": {}}), put("new", value={"x": None}), ("new", "x")),
    ],
)
@pytest.mark.parametrize("strategy", [CONTEXT_UPDATE, ERROR_ON_CONFLICT])
def test_two_different_changes_are_a_conflict(
    strategy: MergeStrategy, first: Any, second: Any, path: tuple[str, ...]
) -> None:
    with pytest.raises(MergeConflict) as caught:
        merged(strategy, {"a": {"n": 0}}, leave, first, leave, second)
    assert caught.value.path == path
    assert caught.value.branches == ("1", "3")


def test_a_conflict_names_the_value_and_the_branches_and_pickles() -> None:
    conflict = MergeConflict(("totals", 1), ("a", "b"))
    again = pickle.loads(pickle.dumps(conflict))
    assert (again.path, again.branches) == (("totals", 1), ("a", "b"))
    said = "branches 'a' and 'b' changed context['totals'][1] in different ways"
    assert str(conflict) == str(again) == said


@pytest.mark.parametrize("values", [([1, 2], [1, 3]), ({1, 2}, {1, 3})])
def test_lists_and_sets_are_values_like_others_for_error_on_conflict(values: Any) -> None:
    first, second = values
    with pytest.raises(MergeConflict):
        merged(ERROR_ON_CONFLICT, {"a": 0}, put("a", value=first), put("a", value=second))


# ---------------------------------------------------------------- CONTEXT_UPDATE


@pytest.mark.parametrize(
    ("was", "lefts", "united"),
    [
        ([0], [[0, 1], [0, 2]], [0, 1, 2]),
        ([0], [[0, 1, 2], [0, 2, 3]], [0, 1, 2, 3]),
        ([1, 2], [[2], [1, 2, 3]], [2, 3]),  # what one removed, the other doesn't bring back
        ([1, 2], [[1, 2, 3], [2]], [2, 3]),
        ([1, 2], [[9], [1, 2, 3]], [9, 3]),
        ([1, 2], [[], [1]], []),
        ([2, 1], [[1, 2], [2, 1, 3]], [1, 2, 3]),  # the first branch's order
        ([0, 0], [[0, 0, 1], [0, 0, 1, 2]], [0, 1, 2]),
        ([0], [[0, 1], [0, True], [0, 1.0]], [0, 1, True, 1.0]),
        ([], [[{"a": 1}], [{"a": 1}, {"a": [2]}], [{"a": [2]}, []]], [{"a": 1}, {"a": [2]}, []]),
        (None, [[1], [1, 2], [3]], [1, 2, 3]),
        ({0}, [{0, 1}, {0, 2}], {0, 1, 2}),
        ({0, 5}, [{0, 1}, {0, 5, 2}], {0, 1, 2}),
        (frozenset({0}), [frozenset({1}), frozenset({0, 2})], frozenset({1, 2})),
        ([0], [[0, 1], [0], [0, 1]], [0, 1]),
        ([2, 1], [[1, 2, 1], [2, 1]], [1, 2, 1]),  # one branch's list is what it made it
    ],
)
def test_lists_and_sets_unite(was: Any, lefts: Sequence[Any], united: Any) -> None:
    changes = [put("in", "it", value=left) for left in lefts]
    result = merged(CONTEXT_UPDATE, {"in": {"it": was}}, *changes)["in"]["it"]
    assert repr(result) == repr(united)


def test_items_that_are_equal_to_themselves_alone_unite() -> None:
    def append(value: int) -> Callable[[Any], None]:
        return lambda context: context["it"].append(Plain(value))

    result = merged(CONTEXT_UPDATE, {"it": [Plain(0)]}, append(1), append(2), append(1))
    assert [item.value for item in result["it"]] == [0, 1, 2]


def test_what_unites_is_not_written_to() -> None:
    lefts = [{"it": [0, 1], "set": {1}}, {"it": [0, 2], "set": {2}}]
    result = merged(CONTEXT_UPDATE, {"it": [0], "set": set()}, *lefts)
    assert result == {"it": [0, 1, 2], "set": {1, 2}}
    assert lefts == [{"it": [0, 1], "set": {1}}, {"it": [0, 2], "set": {2}}]


def test_a_list_of_a_class_of_its_own_stays_of_that_class() -> None:
    class Log(list[int]):
        pass

    lefts = [{"it": Log([0, 1])}, {"it": Log([0, 2])}]
    result = merged(CONTEXT_UPDATE, {"it": Log([0])}, *lefts)
    assert type(result["it"]) is Log
    assert result["it"] == [0, 1, 2]


@pytest.mark.parametrize("third", [drop("it"), put("it", value={0}), put("it", value=None)])
def test_what_has_united_conflicts_with_another_kind(third: Any) -> None:
    lists = [put("it", value=[1]), put("it", value=[2])]
    with pytest.raises(MergeConflict) as caught:
        merged(CONTEXT_UPDATE, {"it": [0]}, *lists, third)
    assert caught.value.branches == ("0", "2")
    assert caught.value.path == ("it",)


def test_what_was_within_conflicts_with_a_list() -> None:
    with pytest.raises(MergeConflict):
        merged(CONTEXT_UPDATE, {"a": {"n": 1}}, put("a", value=[1]), put("a", "n", value=2))


# ---------------------------------------------------------------- a function


def test_a_function_gets_the_context_and_each_branchs_and_returns_the_new_one() -> None:
    asked = []

    def total(context: Any, branches: Any) -> Any:
        asked.append((copy.deepcopy(context), branches))
        context["in"].append("mine alone")
        return {"total": sum(each["n"] for each in branches.values())}

    context = {"n": 0, "in": [1]}
    contexts = begin(context)
    ended = [("a", {"n": 1}), ("b", {"n": 2})]
    assert contexts.merged(total, ended) == {"total": 3}
    assert asked == [({"n": 0, "in": [1]}, {"a": {"n": 1}, "b": {"n": 2}})]
    assert context == {"n": 0, "in": [1]}
    assert contexts.merged(NO_MERGE, ended) == context


async def an_async_merge(context: Any, branches: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda context, branches: None, "None"),
        (lambda context, branches: 5, "5"),
        (lambda context, branches: an_async_merge(context, branches), "<coroutine object"),
    ],
)
def test_a_function_that_returns_no_context_is_told(function: Any, got: str) -> None:
    with pytest.raises(TypeError) as caught:
        merged(function, {"a": 1}, leave)
    assert str(caught.value).startswith(f"`merge_strategy` must return the new context, got {got}")


def test_what_a_function_raises_goes_through() -> None:
    def refuse(context: Any, branches: Any) -> Any:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        merged(refuse, {"a": 1})


class AsyncCall:
    async def __call__(self, context: Any, branches: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("value", ["overwrite", None, 1])
def test_a_strategy_is_one_or_a_function(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check_merge_strategy(value)
    assert str(caught.value) == (
        "`merge_strategy` must be a MergeStrategy or a function of a context and a dict of "
        f"contexts, got {value!r}"
    )


@pytest.mark.parametrize("value", [an_async_merge, AsyncCall(), functools.partial(an_async_merge)])
def test_a_strategy_is_not_async(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^`merge_strategy` must be .*, not async, got "):
        check_merge_strategy(value)


@pytest.mark.parametrize("value", [*MergeStrategy, max, lambda c, b: c, functools.partial(max)])
def test_a_good_strategy_is_let_through(value: Any) -> None:
    assert check_merge_strategy(value) is value


# ---------------------------------------------------------------- what it costs


class Compared:
    """Counts how often one is compared."""

    count = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return isinstance(other, Compared) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __reduce__(self) -> Any:
        return Compared, (self.number,)


def set_one(own: Any, number: int) -> None:
    own[f"key {number % 10}"] = Compared(number % 10 + 100)


def add_one(own: Any, number: int) -> None:
    own[f"new {number}"] = Compared(number)


def append_one(own: Any, number: int) -> None:
    own["log"].append(Compared(number + 100))


@pytest.mark.parametrize("change", [set_one, add_one, append_one])
@merging
def test_the_cost_is_linear_in_what_changed(
    strategy: MergeStrategy, change: Callable[[Any, int], None]
) -> None:
    if change is append_one and strategy is ERROR_ON_CONFLICT:
        change = set_one
    context = {f"key {number}": Compared(number) for number in range(10)}
    log = [Compared(number) for number in range(10)]
    costs = []
    for branches in (100, 200):
        Compared.count = 0
        changes = [lambda own, n=number: change(own, n) for number in range(branches)]
        merged(strategy, {**context, "log": log}, *changes)
        costs.append(Compared.count)
    assert costs[1] <= 2.1 * costs[0]
    assert costs[1] <= 200 * 20 * 4


# ---------------------------------------------------------------- a model

LEAVES = st.sampled_from([0, 1, True, None, "a"])
LISTS = st.lists(st.sampled_from([0, 1, 2, True]), max_size=3)
TREES = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        LEAVES | LISTS,
        lambda parts: st.dictionaries(st.sampled_from("abc"), parts, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@st.composite
def contexts_and_branches(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    """Branches change some of the context, or all."""
    context = draw(TREES)

    def changed(value: Any) -> Any:
        new: Any = draw(TREES) if isinstance(value, dict) else draw(LEAVES | LISTS)
        what = draw(st.sampled_from("leave leave change mix".split()))
        if what == "leave":
            return value
        if what == "mix" and isinstance(value, dict):
            kept = {key: changed(part) for key, part in value.items() if draw(st.booleans())}
            return {**kept, **{k: part for k, part in new.items() if k not in value}}
        return new

    return context, [copy.deepcopy(changed(context)) for _ in range(draw(st.integers(1, 4)))]


MISSING = object()


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return [(type(i), i) for i in one] == [(type(i), i) for i in other]
    return type(one) is type(other) and one == other


def written_in_turn(context: Any, branches: Sequence[Any]) -> Any:
    """Each branch's changes are written to the context, one branch after another."""
    now = copy.deepcopy(context)
    for branch in branches:
        now = patched(now, context, branch)
    return now


def patched(now: Any, was: Any, left: Any) -> Any:
    if not isinstance(left, dict):
        return left
    old = was if isinstance(was, dict) else {}
    new = dict(now) if isinstance(now, dict) else {}
    for key in {**old, **left}:
        if key not in left:
            new.pop(key, None)
        elif not alike(old.get(key, MISSING), left[key]):
            new[key] = patched(new.get(key), old.get(key), left[key])
    return new


def of_all(was: Any, lefts: Sequence[Any], unite: bool) -> Any:
    """All at once, and a ValueError where they are in conflict."""
    changed = [left for left in lefts if not alike(was, left)]
    if not changed:
        return was
    first = changed[0]
    if all(isinstance(left, dict) for left in changed):
        old = was if isinstance(was, dict) else {}
        new = {}
        for key in dict.fromkeys(key for each in [old, *changed] for key in each):
            parts = [left.get(key, MISSING) for left in changed]
            part = of_all(old.get(key, MISSING), parts, unite)
            if part is not MISSING:
                new[key] = part
        return new
    if all(alike(first, left) for left in changed):
        return first
    if not unite or not all(isinstance(left, list) for left in changed):
        raise ValueError
    old_items = [(type(item), item) for item in was] if isinstance(was, list) else []
    lists = [[(type(item), item) for item in left] for left in changed]
    removed = [item for item in old_items if any(item not in left for left in lists)]
    added = [item for left in lists[1:] for item in left if item not in old_items]
    kept = [item for item in lists[0] if item not in removed]
    return [item for _, item in dict.fromkeys(kept + added)]


@given(contexts_and_branches())
def test_the_strategies_are_those_of_a_model(drawn: tuple[Any, list[Any]]) -> None:
    context, branches = drawn
    as_they_were = copy.deepcopy(drawn)
    assert alike(merged(OVERWRITE, context, *branches), written_in_turn(context, branches))
    backwards = written_in_turn(context, branches[::-1])
    assert alike(merged(KEEP_FIRST, context, *branches), backwards)
    for strategy in (CONTEXT_UPDATE, ERROR_ON_CONFLICT):
        try:
            expected = of_all(context, branches, strategy is CONTEXT_UPDATE)
        except ValueError:
            with pytest.raises(MergeConflict):
                merged(strategy, context, *branches)
        else:
            assert alike(merged(strategy, context, *branches), expected)
    assert alike({"was": context}, {"was": as_they_were[0]})
    assert all(alike(left, was) for left, was in zip(branches, as_they_were[1], strict=True))
