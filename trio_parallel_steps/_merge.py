"""What becomes of the contexts of a step's branches: `MergeStrategy`, and how changes are joined.

1. A branch's changes are what differs from the context it was given, field by field, down to what
   has no fields (`_fields`) or is of another type than it was: the leaves.  Added and deleted keys
   are changes.  What is the same (`_same`) is none, so it never conflicts and undoes nothing.
2. Changes are joined as a tree, branch after branch, at a cost linear in what changed.
3. Two values of one type that have fields are joined field by field, also where no branch was
   given any.  A deletion is a leaf.
4. OVERWRITE is what writing the changes one after another would leave; KEEP_FIRST is the same from
   the last to the first.  To change a key within what was deleted or replaced brings back that key
   alone; what is no mapping comes back whole.
5. The other two raise `MergeConflict` where two leaves differ, or one branch changed what is within
   the other's leaf.  CONTEXT_UPDATE unites lists and sets first: see `_unions`.
6. Neither a context nor what is joined to it is written to.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, TypeAlias, final

import attrs

from ._errors import MergeConflict
from ._fields import GONE, fields, rebuilt
from ._same import same
from ._unions import Union, unites
from ._util import expected

STRATEGY: Final = "a MergeStrategy or a function of a context and a dict of contexts"


@final
class MergeStrategy(enum.Enum):
    """What becomes of the branches' contexts once a parallel step has ended.

    Each branch has a copy of the context, and changes it.  Changes of branches that succeeded are
    merged leaf by leaf: within mappings, and attrs, dataclass and pydantic instances, too.  What a
    branch left as it was never conflicts and undoes nothing.

    >>> MergeStrategy("overwrite")  # as it is spelled in a file
    <MergeStrategy.OVERWRITE: 'overwrite'>
    """

    NO_MERGE = "no_merge"
    """The context stays as it was."""
    CONTEXT_UPDATE = "context_update"
    """In submission order.  Lists that several branches changed unite, each item once: what a
    branch added is added, what one removed is left out; sets as well.  Two different values of
    another kind are a `MergeConflict`."""
    OVERWRITE = "overwrite"
    """In completion order: the last branch to end wins."""
    KEEP_FIRST = "keep_first"
    """In completion order: the first branch to end wins."""
    ERROR_ON_CONFLICT = "error_on_conflict"
    """Two branches that changed one value differently are a `MergeConflict`."""


# Those that go by the order in which branches have ended.
BY_COMPLETION: Final = frozenset({MergeStrategy.OVERWRITE, MergeStrategy.KEEP_FIRST})

OwnMerge: TypeAlias = Callable[[Any, Mapping[str, Any]], Any]


def check_merge_strategy(value: MergeStrategy | OwnMerge) -> MergeStrategy | OwnMerge:
    if isinstance(value, MergeStrategy):
        return value
    if not callable(value):
        raise TypeError(expected("merge_strategy", STRATEGY, value))
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__):
        raise TypeError(expected("merge_strategy", f"{STRATEGY}, not async", value))
    return value


# ---------------------------------------------------------------- changes


@attrs.frozen(eq=False)
class Leaf:
    """A value set by a branch, or GONE."""

    was: Any
    value: Any
    branch: str


@attrs.frozen(eq=False)
class Within:
    """Changed fields.  They are set in what the context has in this place, or in `left`."""

    left: Any
    in_place: bool
    fields: Changes
    branch: str


Change: TypeAlias = Leaf | Within | Union
Changes: TypeAlias = dict[Hashable, Change]


def changes(before: Mapping[Hashable, Any], after: Mapping[Hashable, Any], branch: str) -> Changes:
    """What `branch` made of the fields that it was given."""
    return _changes(before, after, branch, {})


def _changes(
    before: Mapping[Hashable, Any],
    after: Mapping[Hashable, Any],
    branch: str,
    within: dict[tuple[int, int], None],
) -> Changes:
    found: Changes = {}
    for key, value in after.items():
        was = before.get(key, GONE)
        if was is not value:
            change = _change(was, value, branch, within)
            if change is not None:
                found[key] = change
    if not before.keys() <= after.keys():
        gone = [key for key in before if key not in after]
        found |= {key: Leaf(before[key], GONE, branch) for key in gone}
    return found


def _change(
    was: Any, value: Any, branch: str, within: dict[tuple[int, int], None]
) -> Change | None:
    before = fields(was) if type(was) is type(value) else None
    if before is None:
        return None if same(was, value) else Leaf(was, value, branch)
    pair = id(was), id(value)
    if pair in within:  # it holds itself
        return None
    within[pair] = None
    found = _changes(before, fields(value) or {}, branch, within)
    del within[pair]
    return Within(value, True, found, branch) if found else None


# ---------------------------------------------------------------- joining


def joined(strategy: MergeStrategy, branches: Iterable[Changes]) -> Changes:
    """All that the branches changed, which are in the order that the strategy asks for."""
    result: Changes = {}
    if strategy is MergeStrategy.OVERWRITE or strategy is MergeStrategy.KEEP_FIRST:
        last_wins = strategy is MergeStrategy.OVERWRITE
        for more in branches if last_wins else reversed([*branches]):
            _overwrite(result, more, True)
    else:
        for more in branches:
            _join(result, more, (), strategy is MergeStrategy.CONTEXT_UPDATE)
    return result


def _overwrite(losers: Changes, winners: Changes, in_place: bool) -> None:
    for key, winner in winners.items():
        loser = losers.get(key)
        if loser is not None:
            losers[key] = _written_over(loser, winner)
        else:
            losers[key] = winner if in_place else _alone(winner)


def _written_over(loser: Change, winner: Change) -> Change:
    pair = _both_within(loser, winner)
    if pair is None:
        return _alone(winner)
    _overwrite(pair[0].fields, pair[1].fields, pair[0].in_place)
    return pair[0]


def _join(into: Changes, more: Changes, path: tuple[Hashable, ...], unite: bool) -> None:
    for key, second in more.items():
        first = into.get(key)
        into[key] = second if first is None else _of_both(first, second, (*path, key), unite)


def _of_both(first: Change, second: Change, path: tuple[Hashable, ...], unite: bool) -> Change:
    if isinstance(first, Leaf) and isinstance(second, Leaf) and same(first.value, second.value):
        return first
    pair = _both_within(first, second)
    if pair is not None:
        _join(pair[0].fields, pair[1].fields, path, unite)
        return pair[0]
    if unite and isinstance(second, Leaf):
        if isinstance(first, Leaf) and unites(first.value, second.value):
            first = Union(first.was, first.value, first.branch)
        if isinstance(first, Union) and unites(first.first, second.value):
            first.unite(second.value)
            return first
    raise MergeConflict(path, (first.branch, second.branch))


def _both_within(first: Change, second: Change) -> tuple[Within, Within] | None:
    """Both seen as changed fields, if they are of one type that has any."""
    one, other = _within(first), _within(second)
    if one is None or other is None or type(one.left) is not type(other.left):
        return None
    return one, other


def _within(change: Change) -> Within | None:
    if isinstance(change, Leaf):
        parts = fields(change.value)
        if parts is None:
            return None
        of = {key: Leaf(GONE, part, change.branch) for key, part in parts.items()}
        return Within(change.value, False, dict(of), change.branch)
    return change if isinstance(change, Within) else None


def _alone(change: Change) -> Change:
    """As it is where the context has nothing that it could be set in."""
    if not isinstance(change, Within) or not change.in_place:
        return change
    left = change.left
    parts = fields(left) or {}
    of: Changes
    if isinstance(left, Mapping):
        of = {key: Leaf(GONE, GONE, change.branch) for key in parts if key not in change.fields}
        of |= {key: _alone(part) for key, part in change.fields.items()}
    else:
        of = {key: Leaf(GONE, part, change.branch) for key, part in parts.items()}
    return Within(left, False, of, change.branch)


# ---------------------------------------------------------------- writing


def written(place: Any, found: Changes) -> Any:
    """A copy of `place`, which has fields, with the changes in it."""
    parts = fields(place) or {}
    return rebuilt(place, {key: _written(parts, key, part) for key, part in found.items()})


def _written(parts: Mapping[Hashable, Any], key: Hashable, change: Change) -> Any:
    match change:
        case Leaf():
            return change.value
        case Within():
            return written(parts[key] if change.in_place else change.left, change.fields)
        case _:
            return change.united()
