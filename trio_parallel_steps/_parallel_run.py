"""One run of a `ParallelStep`.

1. Its branches run in a step of the engine, which collects; what that step's options mean is said
   in `limit_of` and `_start_all`.
2. However it ends, what the branches that succeeded made of their contexts is merged; the step's
   own failure goes before a conflict there.
3. What became of a branch is told by what it raised (`_told`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs

from ._config import OnBranchFailure
from ._contexts import begin
from ._errors import BranchErrors, BranchNotDone, Breached, StepTimeout
from ._limiter import check_weighs
from ._merge import BY_COMPLETION
from ._outcomes import BranchStatus, ParallelResult, StepResult, said
from ._told import again, as_told, is_timeout
from ._units import Around, Held, add_to_result
from .hosts import current_run
from .limits import KneeLimit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._config import ConcurrencyConfig
    from ._contexts import Contexts
    from ._limiter import LimitLike
    from ._nursery import BranchNursery
    from ._parallel import ParallelStep
    from .hosts._abc import Run

INITIAL: Final = 16  # of an adaptive limit whose ceiling is higher


def limit_of(config: ConcurrencyConfig, run: Run) -> LimitLike:
    ceiling = config.max_concurrent_branches
    if ceiling is None:
        ceiling = run.default_limit() if config.cpu_based_limits else 10
    if not config.adaptive_limits:
        return ceiling
    most = 10**9 if ceiling == math.inf else int(ceiling)
    return KneeLimit(min(INITIAL, most), max_limit=most)


class ParallelRun:
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
        try:
            return StepResult(
                key=name,
                name=name,
                status=status,
                output=output,
                exception=exception,
                reason=reason,
                attempts=1,
                submitted_at=began,
                started_at=began,
                ended_at=run.now(),
                completion_index=0,
                branches=self._result,
            )
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
        if base is None and self._around.journal is None:  # nothing is held of any
            ends = dict.fromkeys(step.branches, Held(None))
        else:
            given = None if base is None else base.given
            ends = {name: Held(given) for name in step.branches}
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
        watches = {
            "watches_memory": config.memory_based_limits,
            "watches_lag": config.adaptive_limits and config.cpu_based_limits,
        }
        around = attrs.evolve(around, watches=watches)
        around.guard(core)
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
            failed = not result.with_status(BranchStatus.SUCCEEDED)
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
        names = result.with_status(BranchStatus.SUCCEEDED)
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
