"""The tables of a pipeline file, as values: a key is a field; checked as they are made.

1. What `_structure` reads, `_schema` describes and `_plan` shows is these classes.  The text under
   a field is what the schema says of the key.
2. A key that would change nothing where it stands is an error: `env` of a `call`, a `priority` of
   what is no branch.
3. Nothing here opens a file, imports a module or starts anything.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from ._config import ConcurrencyConfig, ExecutionConfig, OnBranchFailure
from ._merge import MergeStrategy
from ._retry import Retry  # noqa: TC001  (cattrs asks for it)
from ._util import check_int, check_seconds, expected

GRACE: Final = 5.0
MANY: Final = 12  # names in one sentence


def _check_seconds(table: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None:
        check_seconds(attribute.name, value)


def _check_weight(table: Any, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None:
        check_int(attribute.name, value, 1)


def _check_weights(
    table: Any, attribute: attrs.Attribute[Any], value: Mapping[str, int] | None
) -> None:
    for branch, weight in (value or {}).items():
        check_int(f"{attribute.name}.{branch}", weight, 1)


def _check_named(table: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value:
        raise ValueError(expected(attribute.name, "a str that is not empty", value))


def _check_some(table: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value:
        raise ValueError(expected(attribute.name, "one at least", value))


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about `word`, which is none of `words`."""
    known = sorted(words)
    near = get_close_matches(word, known, 1)
    if near:
        return f": did you mean `{near[0]}`?"
    if not 0 < len(known) <= MANY:
        return ""
    return ": known: " + ", ".join(f"`{each}`" for each in known)


@attrs.frozen
class Call:
    """A function by name, and found."""

    target: str
    """``module:function``"""
    fn: Callable[..., Awaitable[Any]] = attrs.field(eq=False, repr=False)

    def __str__(self) -> str:
        return self.target


# With dicts, for tables have more than one base with fields.
@attrs.frozen(kw_only=True, slots=False)
class Work:
    """What a plain step, or a branch that is one, does."""

    call: Call | None = None
    """"module:function": an async function, or a sync one, which runs in a thread; it gets the data
    if it takes any"""
    command: str | tuple[str, ...] | None = None
    """a program and its arguments, or a str for the shell"""
    env: Mapping[str, str] | None = None
    """of the command, added to the environment of the run"""
    cwd: Path | None = None
    """the folder that the command runs in, from that of the file on; by default where the run was
    started"""
    grace: float | None = attrs.field(default=None, validator=_check_seconds)
    """seconds from SIGTERM to SIGKILL for a command that is stopped; by default 5"""
    timeout: float = attrs.field(default=math.inf, validator=_check_seconds)
    """seconds, for each try"""
    retry: Retry | None = None
    """whether there is another try after an error"""

    def __attrs_post_init__(self) -> None:
        if (self.call is None) == (self.command is None):
            given = "neither" if self.call is None else "both"
            raise ValueError(f"must have either `call` or `command`, got {given}")
        if self.command is not None:
            if not self.command:
                raise ValueError(expected("command", "one str at least", self.command))
            return
        for name in ("env", "cwd", "grace"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for a `command`, and this is a `call`")


@attrs.frozen(kw_only=True, slots=False)
class Parallel:
    """What a parallel step, or a branch that is one, holds."""

    branches: Mapping[str, BranchTable] = attrs.field(validator=_check_some)
    """by name: each runs beside the others"""
    merge_strategy: MergeStrategy = MergeStrategy.NO_MERGE
    """what becomes of the branches' changes to the context"""
    on_branch_failure: OnBranchFailure = OnBranchFailure.PROPAGATE
    """what a failed branch means to the step"""
    priorities: Mapping[str, int] | None = None
    """by branch: who is admitted first, higher before lower; 0 where none is given"""
    weights: Mapping[str, int] | None = attrs.field(default=None, validator=_check_weights)
    """by branch: how many places of the limit it takes; 1 where none is given"""
    context_include_keys: tuple[str, ...] | None = None
    """of the context: only these are given to branches, and merged"""
    concurrency: ConcurrencyConfig | None = None
    """how the branches run together"""
    timeout: float = attrs.field(default=math.inf, validator=_check_seconds)
    """seconds, for the whole step"""

    def __attrs_post_init__(self) -> None:
        self.shares("priority", "priorities")
        self.shares("weight", "weights")

    def shares(self, key: str, keys: str) -> dict[str, int]:
        """What the step gives its branches, and what they say themselves."""
        shares = dict(getattr(self, keys) or {})
        for name in shares:
            if name not in self.branches:
                raise ValueError(f"`{keys}.{name}` is no branch{nearest(name, self.branches)}")
        for name, branch in self.branches.items():
            share = getattr(branch, key)
            if share is None:
                continue
            if name in shares:
                raise ValueError(f"`{keys}.{name}` is given twice: the branch has a `{key}`")
            shares[name] = share
        return shares


@attrs.frozen(kw_only=True, slots=False)
class Share:
    """What a branch has of the limit of its step."""

    priority: int | None = None
    """who is admitted first, higher before lower; by default 0"""
    weight: int | None = attrs.field(default=None, validator=_check_weight)
    """how many places of the limit it takes; by default 1"""


@attrs.frozen(kw_only=True, slots=False)
class Named:
    name: str = attrs.field(validator=_check_named)
    """of the step"""


@attrs.frozen(kw_only=True, slots=False)
class PlainStep(Work, Named):
    """a plain step"""


@attrs.frozen(kw_only=True, slots=False)
class WideStep(Parallel, Named):
    """a parallel step"""


StepTable: TypeAlias = PlainStep | WideStep


def _check_names(table: Any, attribute: attrs.Attribute[Any], steps: tuple[StepTable, ...]) -> None:
    _check_some(table, attribute, steps)
    first: dict[str, int] = {}
    for i, step in enumerate(steps):
        if first.setdefault(step.name, i) != i:
            raise ValueError(
                f"`steps[{i}].name` must be of one step only, got {step.name!r}, "
                f"which is that of steps[{first[step.name]}]"
            )


@attrs.frozen(kw_only=True, slots=False)
class Serial:
    """What a pipeline, or a branch that is one, holds."""

    steps: tuple[StepTable, ...] = attrs.field(validator=_check_names)
    """one after another; each is given what the one before it has returned"""
    execution_config: ExecutionConfig | None = None
    """how the pipeline runs as a whole"""


@attrs.frozen(kw_only=True, slots=False)
class PlainBranch(Work, Share):
    """a branch that is a plain step"""


@attrs.frozen(kw_only=True, slots=False)
class WideBranch(Parallel, Share):
    """a branch that is a parallel step"""


@attrs.frozen(kw_only=True, slots=False)
class LongBranch(Serial, Share):
    """a branch that is a pipeline"""


BranchTable: TypeAlias = PlainBranch | WideBranch | LongBranch


@attrs.frozen(kw_only=True, slots=False)
class PipelineTable(Serial):
    """a pipeline file"""

    name: str | None = None
    """of the pipeline; by default the file's, without its ending"""
    version: str = ""
    """tells a journal that the pipeline does something else now"""
