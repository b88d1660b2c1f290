"""What a step, a parallel step and a pipeline have in common.

1. A unit has a name, is put before another with ``>>``, and runs as a branch: of the step that its
   pipeline is, of its parallel step, or of a step of its own.
2. What it needs of the run that it is in is handed down (`Around`), never looked up.
3. Nobody writes to the context that a unit is given: whoever may change it gets a copy, and what
   has succeeded leaves its copy in the place of it (`Held`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Unpack

import attrs

from ._branch import current_branch, enclosing_branch
from ._contexts import checked_copy, copied
from ._guarded import guard
from ._open import open_branch_nursery
from ._policies import COLLECT
from ._resources import PressureAction, ResourceLimits
from ._util import check_str
from .hosts import current_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from ._breach import Breach
    from ._core import StepCore
    from ._journal import Journal
    from ._limiter import LimitLike
    from ._nursery import BranchNursery
    from ._open import NurseryOptions
    from ._pipeline import Pipeline
    from ._retry import Retry
    from ._spending import Budget
    from .abc import Observer
    from .cache import Cache


@attrs.define(eq=False)
class Held:
    """The context of a unit that runs, as far as it has come."""

    value: Any
    kept: int | None = None
    """which of those that the journal had it is, if it is one of them"""

    @classmethod
    def of(cls, context: Any, unit: Unit) -> Held:
        """The caller's.  TypeError for what `unit` could not be given a copy of."""
        return cls(checked_copy(context) if unit._takes_context else context)

    def copy(self) -> Any:
        """To be changed at will."""
        return copied(self.value)

    def begin_again(self, given: Held) -> None:
        self.value, self.kept = given.value, given.kept


@attrs.frozen(eq=False)
class Around:
    """What a unit finds around it."""

    budget: Budget
    breach: Breach | None = None
    observers: tuple[Observer, ...] = ()
    resources: ResourceLimits | None = None
    cache: Cache | None = None
    journal: Journal | None = None
    watches: Mapping[str, bool] = attrs.field(factory=dict)
    """what the parallel step around it looks at, to hold its branches: options of `guard`"""
    path: tuple[str, ...] = ()
    """names, outward in"""
    is_breached: bool = True
    """with the run, or does it go on?"""
    pipelines: int = 0
    """around it, in which nothing runs beside it: a breach does to them what it does to it"""

    def within(self, name: str, cache: Cache | None = None) -> Around:
        """As what is in the unit `name`, which brings that cache, finds it."""
        return attrs.evolve(self, path=(*self.path, name), cache=cache or self.cache)

    def beside_others(self, is_breached: bool) -> Around:
        """For what does not run alone, and is breached with the run, or goes on."""
        around = attrs.evolve(self, pipelines=0)
        if is_breached:
            return around
        resources = around.resources
        if resources is not None and resources.action is PressureAction.BREACH:
            resources = attrs.evolve(resources, action=PressureAction.HOLD)
        return attrs.evolve(around, is_breached=False, resources=resources)

    def guard(self, core: StepCore) -> None:
        """Hold what runs in it, while what is watched, or limited, is short."""
        if self.resources is not None or any(self.watches.values()):
            guard(core, self.resources or ResourceLimits(), **self.watches)

    def open(
        self, limit: LimitLike, **options: Unpack[NurseryOptions]
    ) -> AbstractAsyncContextManager[BranchNursery]:
        """A step in it."""
        options["policy"] = COLLECT
        options["observers"] = self.observers
        if self.is_breached:
            options["budget"], options["breach"] = self.budget, self.breach
        return open_branch_nursery(limit, **options)


class Unit(ABC):
    """A step, a parallel step or a pipeline."""

    __slots__ = ("__weakref__", "name")

    name: str
    timeout: float = math.inf
    retry: Retry | None = None
    _lets_run: bool = False
    """after a breach: what runs ends by itself"""

    def __init__(self, name: str) -> None:
        self.name = check_str("name", name)

    def __rshift__(self, other: Unit) -> Pipeline:
        """A pipeline of both, one after the other.  A pipeline on the left keeps its name and its
        options, for all of it; one on the right that has any stays a step of its own."""
        from ._pipeline import joined

        return joined(self, other) if isinstance(other, Unit) else NotImplemented

    # ------------------------------------------------------------ inside

    @property
    @abstractmethod
    def _takes_context(self) -> bool:
        """May it change the context?"""

    @abstractmethod
    def _branch(
        self, name: str, data: Any, held: Held, around: Around
    ) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        """What runs as the branch `name`, and its arguments."""

    def _within(self) -> Iterator[Unit]:
        """What it is made of."""
        return iter(())

    @abstractmethod
    def _described(self) -> Any:
        """What it is and does, as plain data: as much as makes it another one."""


def start(
    nursery: BranchNursery,
    name: str,
    unit: Unit,
    data: Any,
    held: Held,
    around: Around,
) -> Any:
    """Submit it; returns the branch."""
    async_fn, args = unit._branch(name, data, held, around)
    now = nursery._run.now()
    return nursery._submit(name, async_fn, args, 0, 1, unit.timeout, unit.retry, now)


def add_to_result(*added: Any) -> None:
    """The last fields of the StepResult of the branch that the caller is."""
    current_branch()._added = added


def limit_here() -> float | None:
    """Of who brings no limit: that of the branch around it, or none."""
    return math.inf if enclosing_branch(current_run()) is None else None
