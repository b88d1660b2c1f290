"""`ParallelStep`: named branches side by side, and their contexts merged into one.

1. What does not fit together is refused as the step is built.
2. Each branch gets the same data and a copy of the context.  What the branches that succeeded made
   of theirs is merged once all have ended, however the step ends.
3. A failed branch stops no other; whether the step has failed is judged at the end.  A breach is no
   failure: it goes through, that of a pipeline in a branch once all have ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from ._breach import Breach, check_breach
from ._config import ConcurrencyConfig, OnBranchFailure, check_concurrency
from ._functions import identity
from ._merge import BY_COMPLETION, MergeStrategy, check_merge_strategy
from ._parallel_run import ParallelRun
from ._run_branches import check_ints
from ._spending import Budget, check_budget
from ._steps import Step, check_cache
from ._units import Around, Held, Unit
from ._util import check_all, check_seconds, expected
from .abc import Observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from ._outcomes import StepResult
    from .cache import Cache


@final
class ParallelStep(Unit):
    """Named branches, run side by side: steps, pipelines, other parallel steps, or async functions
    of data.

    Each gets the same data and its own deep copy of the context.  The output is ``{branch:
    output}`` of those that succeeded, in declared order, or what `reduce` makes of it.

    `merge_strategy` says what becomes of the branches' changes to the context: a `MergeStrategy`,
    or a function of the context and ``{branch: its context}`` that returns the new one.  With
    `context_include_keys`, only these are given to branches, and merged.

    `concurrency_config` says how the branches run together (None: the defaults of
    `ConcurrencyConfig`); `priorities` and `weights` are by branch, as in `run_branches`; `timeout`
    is the step's, in seconds.  A `cache` is for all steps in it that have none of their own.

    >>> import trio
    >>> async def double(data):
    ...     return 2 * data
    >>> async def negate(data):
    ...     return -data
    >>> both = ParallelStep({"doubled": double, "negated": negate})
    >>> trio.run(both.run, 21).output
    {'doubled': 42, 'negated': -21}
    """

    __slots__ = (
        "branches",
        "cache",
        "concurrency",
        "context_include_keys",
        "merge_strategy",
        "on_branch_failure",
        "priorities",
        "reduce",
        "step_timeout",
        "weights",
    )

    branches: Mapping[str, Unit]
    merge_strategy: MergeStrategy | Callable[[Any, Mapping[str, Any]], Any]
    concurrency: ConcurrencyConfig
    on_branch_failure: OnBranchFailure
    priorities: Mapping[str, int]
    weights: Mapping[str, int]
    context_include_keys: frozenset[str] | None
    reduce: Callable[[dict[str, Any]], Any] | None
    step_timeout: float
    cache: Cache | None

    def __init__(
        self,
        branches: Mapping[str, Unit | Callable[..., Awaitable[Any]]],
        merge_strategy: MergeStrategy
        | Callable[[Any, Mapping[str, Any]], Any] = MergeStrategy.NO_MERGE,
        concurrency_config: ConcurrencyConfig | None = None,
        *,
        name: str = "parallel",
        on_branch_failure: OnBranchFailure = OnBranchFailure.PROPAGATE,
        priorities: Mapping[str, int] | None = None,
        weights: Mapping[str, int] | None = None,
        context_include_keys: Iterable[str] | None = None,
        reduce: Callable[[dict[str, Any]], Any] | None = None,
        timeout: float = math.inf,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(name)
        self.branches = _units(branches)
        self.merge_strategy = check_merge_strategy(merge_strategy)
        if not isinstance(on_branch_failure, OnBranchFailure):
            what = "an OnBranchFailure"
            raise TypeError(expected("on_branch_failure", what, on_branch_failure))
        self.on_branch_failure = on_branch_failure
        check_ints("priorities", priorities, branches)
        check_ints("weights", weights, branches, 1)
        self.priorities = dict(priorities or {})
        self.weights = dict(weights or {})
        self.context_include_keys = None
        if context_include_keys is not None:
            if isinstance(context_include_keys, str):
                what = "an iterable of str"
                raise TypeError(expected("context_include_keys", what, context_include_keys))
            keys = check_all("context_include_keys", context_include_keys, str)
            self.context_include_keys = frozenset(keys)
        if reduce is not None and not callable(reduce):
            raise TypeError(expected("reduce", "a function of {branch: output}", reduce))
        self.reduce = reduce
        self.step_timeout = check_seconds("timeout", timeout)
        self.cache = check_cache(cache)
        if cache is not None:
            for unit in steps_in(self):
                unit._check_keyable()
        self.concurrency = self._checked(concurrency_config)

    async def run(
        self,
        data: Any = None,
        *,
        context: Any = None,
        concurrency: ConcurrencyConfig | None = None,
        budget: Budget | None = None,
        breach: Breach | None = None,
        observers: Iterable[Observer] = (),
    ) -> StepResult[Any]:
        """Run all branches, and return when all have ended.  A checkpoint.

        `concurrency` takes the place of the step's own.  Raises `Breached`, also that of a pipeline
        in a branch; every other Exception is in the result, whose ``.branches`` is the
        `ParallelResult`.
        """
        config = self.concurrency if concurrency is None else self._checked(concurrency)
        around = Around(
            Budget(check_budget(budget)),
            check_breach(breach),
            check_all("observers", observers, Observer),
        )
        held = Held.of(context, self)
        return await ParallelRun(
            self, config, data, held, around.within(self.name, self.cache)
        ).alone()

    def __repr__(self) -> str:
        return f"<ParallelStep {self.name!r}: {len(self.branches)} branches>"

    # ------------------------------------------------------------ inside

    def _checked(self, config: ConcurrencyConfig | None) -> ConcurrencyConfig:
        """That fits this step."""
        if config is None:
            config = ConcurrencyConfig()
        check_concurrency(config)
        if not config.completion_tracking and self.merge_strategy in BY_COMPLETION:
            raise ValueError(
                f"{self.merge_strategy} goes by the order of completion, "
                "and needs completion_tracking=True"
            )
        if not config.individual_cancellation:
            for name, unit in self.branches.items():
                if unit.timeout != math.inf:
                    raise ValueError(
                        f"the timeout of branch {name!r} needs individual_cancellation=True"
                    )
        return config

    @property
    def _lets_run(self) -> bool:  # type: ignore[override]
        return not self.concurrency.breach_watcher

    @property
    def _takes_context(self) -> bool:
        return callable(self.merge_strategy) or any(
            unit._takes_context for unit in self.branches.values()
        )

    def _branch(
        self, name: str, data: Any, held: Held, around: Around
    ) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        around = around.within(name, self.cache)
        return ParallelRun(self, self.concurrency, data, held, around).as_branch, ()

    def _within(self) -> Iterator[Unit]:
        return iter(self.branches.values())

    def _described(self) -> Any:
        branches = {name: unit._described() for name, unit in self.branches.items()}
        strategy, reduce, keys = self.merge_strategy, self.reduce, self.context_include_keys
        return {
            "branches": branches,
            "merge": strategy.value if isinstance(strategy, MergeStrategy) else identity(strategy),
            "reduce": None if reduce is None else identity(reduce),
            "keys": None if keys is None else sorted(keys),
        }


def _units(branches: Any) -> Mapping[str, Unit]:
    if not isinstance(branches, Mapping):
        raise TypeError(expected("branches", "a mapping from name to branch", branches))
    units: dict[str, Unit] = {}
    for name, branch in branches.items():
        if not isinstance(name, str):
            raise TypeError(expected("branches", "a mapping whose keys are str", name))
        if isinstance(branch, Unit):
            units[name] = branch
            continue
        try:
            units[name] = Step(name, branch)
        except TypeError as exc:
            raise TypeError(str(exc).replace("`fn`", f"`branches[{name!r}]`")) from None
    return units


def steps_in(unit: Unit) -> Iterator[Step[Any]]:
    if isinstance(unit, Step):
        yield unit
    for part in unit._within():
        yield from steps_in(part)


def short_form(
    concurrency: ConcurrencyConfig | None,
    max_concurrency: float | None,
    track_completion: bool | None,
) -> ConcurrencyConfig | None:
    """What `Step.parallel` was given, in one."""
    if max_concurrency is None and track_completion is None:
        return concurrency
    if concurrency is not None:
        raise TypeError(
            "`concurrency` says it all: `max_concurrency` and `track_completion` can't be given "
            "beside it"
        )
    tracks = True if track_completion is None else track_completion
    return ConcurrencyConfig(max_concurrency, completion_tracking=tracks)
