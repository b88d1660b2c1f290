"""The contexts of one run of a parallel step: copied for its branches, and merged once they end.

1. The caller's object is copied once, deeply, before anything starts; after that it is neither read
   nor written to, and nothing is shared with it.
2. Each branch has a deep copy of its own.  With `include_keys` a mapping's holds those keys alone;
   of an instance all is copied.  Only they are merged, and all else stays as it was.
3. What is merged is written to a further copy (`_merge`).  A value that a branch has set is taken
   over as it is.
4. A context has fields that can be set: see `_fields`.  None is the context of a run without one,
   and stays None.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any, Final, final

from ._errors import path_of
from ._fields import GONE, declared, fields, rebuilt
from ._merge import Changes, MergeStrategy, OwnMerge, changes, joined, written
from ._util import expected

CONTEXT: Final = (
    "a mutable mapping, an instance with attributes (attrs, dataclass, pydantic or plain), or None"
)


def begin(context: Any, include_keys: frozenset[str] | None = None) -> Contexts:
    """The contexts of a run that is given `context`, as it is now."""
    whole = checked_copy(context)
    if include_keys is not None:
        _check_include_keys(context, include_keys)
    return Contexts(whole, include_keys)


@final
class Contexts:
    """Of one run of a parallel step."""

    __slots__ = ("_given", "_include_keys", "_whole")

    def __init__(self, whole: Any, include_keys: frozenset[str] | None) -> None:
        self._whole = whole
        self._include_keys = include_keys
        self._given = whole
        if include_keys is not None and isinstance(whole, MutableMapping):
            self._given = rebuilt(whole, {key: GONE for key in whole if key not in include_keys})

    def __repr__(self) -> str:
        return f"<Contexts of {type(self._whole).__name__}>"

    @property
    def given(self) -> Any:
        """What each branch is given a deep copy of."""
        return self._given

    def merged(self, strategy: MergeStrategy | OwnMerge, ended: Sequence[tuple[str, Any]]) -> Any:
        """The context that the step leaves.

        `ended` has the name and the context of each branch that succeeded, in the order that the
        strategy asks for.  `MergeConflict` is raised, and what a function of the user's raises.
        """
        context = copy.deepcopy(self._whole)
        if context is None or strategy is MergeStrategy.NO_MERGE:
            return context
        if not isinstance(strategy, MergeStrategy):
            # Who left it as it was may have it still.
            left = {name: copied(end) if end is self._given else end for name, end in ended}
            return _merged_by(strategy, context, left)
        before = self._included(self._given)
        return written(
            context, joined(strategy, (self._changes(before, name, left) for name, left in ended))
        )

    def _changes(self, before: Mapping[Hashable, Any], name: str, left: Any) -> Changes:
        if type(left) is not type(self._whole) and not (
            isinstance(left, MutableMapping) and isinstance(self._whole, MutableMapping)
        ):
            kind = type(self._whole).__name__
            raise TypeError(
                f"the context of branch {name!r} must be a {kind}, as it was, got {left!r}"
            )
        return changes(before, self._included(left), name)

    def _included(self, context: Any) -> Mapping[Hashable, Any]:
        parts = fields(context) or {}
        keys = self._include_keys
        return parts if keys is None else {key: parts[key] for key in parts if key in keys}


def _merged_by(function: OwnMerge, context: Any, branches: Mapping[str, Any]) -> Any:
    merged = function(context, branches)
    if fields(merged) is None:
        if inspect.iscoroutine(merged):
            merged.close()  # it will never be awaited, and the error says so already
        raise TypeError(f"`merge_strategy` must return the new context, got {merged!r}")
    return merged


def _check_include_keys(context: Any, include_keys: frozenset[str]) -> None:
    if context is None or isinstance(context, MutableMapping):
        return  # a key may come later
    known = declared(type(context)) | {*fields(context)}  # type: ignore[operator, misc]
    unknown = sorted(include_keys - known)
    if unknown:
        what = f"fields of {type(context).__name__} ({', '.join(sorted(map(str, known)))})"
        raise ValueError(expected("context_include_keys", what, unknown[0]))


def checked_copy(context: Any) -> Any:
    """Of a user's own."""
    if context is not None and fields(context) is None:
        raise TypeError(expected("context", CONTEXT, context))
    return copied(context)


def copied(context: Any) -> Any:
    try:
        return copy.deepcopy(context)
    except Exception as error:  # the values' own: they can't be copied
        raise TypeError(
            f"`context` must be what can be deep-copied, but {path_of(_culprit(context))} "
            f"is not: {error}"
        ) from error


def _culprit(context: Any) -> tuple[Hashable, ...]:
    """The path to what can't be copied."""
    path: tuple[Hashable, ...] = ()
    above: list[Any] = []
    while not any(context is one for one in above):
        above.append(context)
        for key, part in (fields(context) or {}).items():
            try:
                copy.deepcopy(part)
            except Exception:  # the value's own
                path, context = (*path, key), part
                break
    return path
