"""Cancel rules: when a branch that matches one pattern is in, the ones that match another are
dropped.

Each rule keeps the branches that it may cancel, matched once as they are submitted; when it fires
it takes them all, so any number of firings costs one match a branch and rule.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, final

import attrs

from ._outcomes import BranchStatus
from ._util import check_str, expected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._records import Record

FIRES_ON = {
    "success": frozenset({BranchStatus.SUCCEEDED}),
    "end": frozenset({BranchStatus.SUCCEEDED, BranchStatus.FAILED, BranchStatus.TIMED_OUT}),
}


@final
@attrs.frozen
class CancelRule:
    """When a branch whose key matches `when` succeeds (or, ``on='end'``, ends), cancel those that
    match `cancel`.

    Patterns are `fnmatch.fnmatchcase` globs on str keys.  A branch never cancels itself, later
    submissions are not affected, cancelled or skipped branches trigger nothing, and a rule is
    applied before the freed token admits anyone.

    >>> CancelRule("high_priority_*", "low_priority_*")
    CancelRule(when='high_priority_*', cancel='low_priority_*', on='success')
    """

    when: str
    """the branches, as a glob, of which one fires the rule"""
    cancel: str
    """the branches, as a glob, that it then cancels"""
    on: str = "success"
    """what fires it: 'success' or 'end'"""

    def __attrs_post_init__(self) -> None:
        check_str("when", self.when)
        check_str("cancel", self.cancel)
        if check_str("on", self.on) not in FIRES_ON:
            raise ValueError(expected("on", "'success' or 'end'", self.on))


class _Rule:
    __slots__ = ("candidates", "fires_on", "matches_cancel", "matches_when", "rule", "sweep_at")

    def __init__(self, rule: CancelRule) -> None:
        self.rule = rule
        self.fires_on = FIRES_ON[rule.on]
        self.matches_when = re.compile(translate(rule.when)).match
        self.matches_cancel = re.compile(translate(rule.cancel)).match
        self.candidates: list[Record] = []
        self.sweep_at = 1000

    def add(self, record: Record) -> None:
        if len(self.candidates) >= self.sweep_at:  # those that have ended need not be kept
            self.candidates = [each for each in self.candidates if each._step is not None]
            self.sweep_at = 2 * len(self.candidates) + 1000
        self.candidates.append(record)


class Rules:
    """The rules of one step, and whom they may cancel."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[CancelRule]) -> None:
        self._rules = [_Rule(rule) for rule in rules]

    def submitted(self, record: Record) -> None:
        key = record.key
        if isinstance(key, str):
            for rule in self._rules:
                if rule.matches_cancel(key):
                    rule.add(record)

    def ended(self, record: Record) -> Iterator[tuple[Record, str]]:
        """Whom to cancel, and why, now that `record` has ended."""
        key = record.key
        if not isinstance(key, str):
            return
        for rule in self._rules:
            if record.status in rule.fires_on and rule.matches_when(key):
                candidates, rule.candidates = rule.candidates, []
                what = "succeeded" if rule.rule.on == "success" else "ended"
                reason = f"{key!r} {what}: {rule.rule.when!r} cancels {rule.rule.cancel!r}"
                for candidate in candidates:
                    yield candidate, reason
