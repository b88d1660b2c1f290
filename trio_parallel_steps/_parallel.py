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
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from ._breach import Breach, check_breach
from ._config import ConcurrencyConfig, OnBranchFailure, check_concurrency
from ._contexts import begin
from ._errors import BranchErrors, BranchNotDone, Breached, StepTimeout
from ._guarded import guard
from ._limiter import check_weighs
from ._merge import MergeStrategy, check_merge_strategy
from ._outcomes import BranchStatus, ParallelResult, StepResult, said
from ._resources import ResourceLimits
from ._run_branches import check_ints
from ._spending import Budget, check_budget
from ._steps import Step, check_cache, identity
from ._told import again, as_told, is_timeout
from ._units import Around, Held, Unit, add_to_result
from ._util import check_all, check_seconds, expected
from .abc import Observer
from .hosts import current_run
from .limits import KneeLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from ._contexts import Contexts
    from ._limiter import LimitLike
    from ._nursery import BranchNursery
    from .cache import Cache
    from .hosts._abc import Run

INITIAL: Final = 16  # of an adaptive limit whose ceiling is higher
BY_COMPLETION: Final = frozenset({MergeStrategy.OVERWRITE, MergeStrategy.KEEP_FIRST})


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
        return await _Running(
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
        return _Running(self, self.concurrency, data, held, around).as_branch, ()

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


# ---------------------------------------------------------------- a run of it


def limit_of(config: ConcurrencyConfig, run: Run) -> LimitLike:
    ceiling = config.max_concurrent_branches
    if ceiling is None:
        ceiling = run.default_limit() if config.cpu_based_limits else 10
    if not config.adaptive_limits:
        return ceiling
    most = 10**9 if ceiling == math.inf else int(ceiling)
    return KneeLimit(min(INITIAL, most), max_limit=most)


class _Running:
    """One run of a parallel step."""

    __slots__ = ("_around", "_config", "_data", "_given", "_held", "_result", "_step")

    def __init__(
        self, step: ParallelStep, config: ConcurrencyConfig, data: Any, held: Held, around: Around
    ) -> None:
        self._step = step
        self._config = config
        self._data = data
        self._held = held
        self._given = attrs.evolve(held)
        self._around = around
        self._result: ParallelResult[str, Any] | None = None

    async def alone(self) -> StepResult[Any]:
        run = current_run()
        began = run.now()
        output = exception = reason = None
        status = BranchStatus.SUCCEEDED
        try:
            output = await self._output()
        except Breached:
            raise
        except Exception as exc:  # the step's failure, or of the user's functions
            exception, status = exc, BranchStatus.FAILED
            if is_timeout(exc, self._result):
                status, reason = BranchStatus.TIMED_OUT, str(exc)
        name = self._step.name
        rest = (1, began, began, run.now(), 0, False, self._result)
        try:
            return StepResult(name, name, status, output, exception, reason, *rest)
        finally:
            del exception  # whose traceback keeps this frame: no cycles

    async def as_branch(self) -> Any:
        self._held.begin_again(self._given)  # it may have been shed
        self._result = None
        try:
            return await self._output()
        finally:
            add_to_result(False, self._result)

    async def _output(self) -> Any:
        """Or raises what the step failed with."""
        step = self._step
        failure: Exception | None = None
        base = begin(self._held.value, step.context_include_keys) if step._takes_context else None
        ends = {name: Held(None if base is None else base.given) for name in step.branches}
        try:
            await self._run_branches(ends)
        except StepTimeout as exc:
            failure = exc
        finally:
            lost = self._merge(base, ends)
            self._held.kept = _last(ends)
        result = self._result
        assert result is not None
        try:
            failure = failure or self._failure(result)
            if failure is not None:
                if lost is not None:
                    failure.add_note(f"The contexts of its branches were not merged: {said(lost)}")
                raise failure
            if lost is not None:
                raise lost
            return result.outputs if step.reduce is None else step.reduce(result.outputs)
        finally:
            del failure, lost  # no cycles

    async def _run_branches(self, ends: Mapping[str, Held]) -> None:
        step, config, around = self._step, self._config, self._around
        run = current_run()
        nursery: BranchNursery | None = None
        try:
            async with around.open(
                limit_of(config, run),
                name=step.name,
                fail_after=min(step.step_timeout, config.timeout),
                cancel_rules=config.cancel_rules,
                on_breach="cancel" if config.breach_watcher else "drain",
            ) as nursery:
                self._start_all(nursery, ends)
        except (Breached, StepTimeout) as exc:
            exc.result = self._note_result(nursery)
            raise
        finally:
            self._note_result(nursery)

    def _note_result(self, nursery: BranchNursery | None) -> ParallelResult[str, Any] | None:
        if self._result is None and nursery is not None:
            result = with_told(nursery.result)
            tracks = self._config.completion_tracking
            self._result = result if tracks else without_order(result)
        return self._result

    def _start_all(self, nursery: BranchNursery, ends: Mapping[str, Held]) -> None:
        step, config = self._step, self._config
        around = self._around.beside_others(config.breach_watcher)
        core = nursery._core
        core.cancels_branches = config.individual_cancellation
        limits = around.resources or ResourceLimits()
        watches_lag = config.adaptive_limits and config.cpu_based_limits
        if around.resources or watches_lag or config.memory_based_limits:
            watches_memory = config.memory_based_limits
            guard(core, limits, watches_memory=watches_memory, watches_lag=watches_lag)
        for name, weight in step.weights.items():
            check_weighs(core.pool, f"weights[{name!r}]", weight)
        priorities, weights, data, now = step.priorities, step.weights, self._data, core.run.now()
        for name, unit in step.branches.items():
            async_fn, args = unit._branch(name, data, ends[name], around)
            priority, weight = priorities.get(name, 0), weights.get(name, 1)
            nursery._submit(name, async_fn, args, priority, weight, unit.timeout, unit.retry, now)

    def _failure(self, result: ParallelResult[str, Any]) -> Exception | None:
        """What the step failed with, by what became of its branches."""
        for exc in result.errors.values():
            if isinstance(exc, Breached):
                breached = again(exc, result)
                breached.__cause__ = exc
                return breached
        if self._step.on_branch_failure is OnBranchFailure.PROPAGATE:
            failed = not result.success
        else:
            failed = not any(branch.success for branch in result.values())
        if not failed:
            return None
        told = result.feedback or f"{result.name!r} has no branch that could succeed"
        errors: list[Exception] = list(result.errors.values())
        return BranchErrors(told, errors or [BranchNotDone(told)], result)

    def _merge(self, base: Contexts | None, ends: Mapping[str, Held]) -> Exception | None:
        """Returns why that could not be."""
        result = self._result
        if base is None or result is None:
            return None
        strategy = self._step.merge_strategy
        names = [name for name, branch in result.items() if branch.success]
        if strategy in BY_COMPLETION:
            names.sort(key=lambda name: _place(ends[name], result[name]))
        try:
            merged = base.merged(strategy, [(name, ends[name].value) for name in names])
        except Exception as exc:  # a conflict, or out of the user's function
            return exc
        self._held.value = merged
        return None


def _last(ends: Mapping[str, Held]) -> int | None:
    """The place of a step whose branches have these, if the journal had all of it."""
    places = [end.kept for end in ends.values() if end.kept is not None]
    return max(places) if len(places) == len(ends) > 0 else None


def _place(end: Held, result: StepResult[Any]) -> tuple[bool, int]:
    """In the order of completion: what the journal had came before all others."""
    if end.kept is not None:
        return False, end.kept
    assert result.completion_index is not None
    return True, result.completion_index


def without_order(result: ParallelResult[str, Any]) -> ParallelResult[str, Any]:
    results = {name: attrs.evolve(branch, completion_index=None) for name, branch in result.items()}
    return attrs.evolve(result, branches=results, endings=())


def with_told(result: ParallelResult[str, Any]) -> ParallelResult[str, Any]:
    """With what is in it as it is told, if some of it was a unit of its own."""
    if not any(isinstance(exc, Breached | StepTimeout) for exc in result.errors.values()):
        return result
    results = {name: as_told(branch) for name, branch in result.items()}
    endings = [results[name] for name in result.completion_order]
    return attrs.evolve(result, branches=results, endings=endings)
