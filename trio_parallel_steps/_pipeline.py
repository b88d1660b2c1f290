"""`Pipeline`: units one after another.

1. A pipeline is a step of the engine, whose branches are its units, submitted one at a time.  Each
   is given what the last one returned.
2. A parallel step in it opens within its branch, which is parked meanwhile, so that the pipeline's
   limit is one for all that runs in it, however deep.
3. A unit that does not succeed ends it.  What was done until then is in the result, whatever ended
   it.
4. What a breach does to the unit that runs is that unit's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import attrs

from ._breach import Breach, check_breach
from ._config import ExecutionConfig, check_execution
from ._errors import BranchNotDone, Breached
from ._outcomes import StepResult, said
from ._parallel import ParallelStep
from ._resources import PressureAction
from ._spending import Budget, check_budget
from ._told import again, as_told
from ._units import Around, Held, Unit, add_to_result, limit_here, start
from ._util import check_all, check_str
from .abc import Observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from ._core import StepCore
    from ._nursery import BranchNursery


STEPS: Final = "an iterable of Step, ParallelStep or Pipeline"


@final
@attrs.frozen(eq=False)
class PipelineResult:
    """What became of a pipeline.  Pickles if its contents do."""

    success: bool
    output: Any
    """what the last step returned; None unless the pipeline succeeded"""
    context: Any
    """as its steps have left it; the caller's own object, which is never written to, if no step
    takes a context"""
    steps: tuple[StepResult[Any], ...]
    """those that were begun; a parallel step's has ``.branches``"""
    feedback: str | None
    """one sentence about what did not succeed; None on success"""
    usage: dict[str, float]
    """what was spent, by unit, failed branches included, and what a journal has recorded"""


@final
class Pipeline(Unit):
    """Steps one after another, each given the output of the one before.  A failed step ends it.

    `steps` are steps, parallel steps and other pipelines; ``>>`` makes one too.  Of several with
    one name, the second is called ``name#2`` in the result.  `execution_config` is for the whole
    run.  `version` tells a journal that the pipeline does something else now.

    >>> import trio
    >>> from trio_parallel_steps import Step
    >>> async def words(data):
    ...     return data.split()
    >>> async def count(data):
    ...     return len(data)
    >>> pipeline = Step("words", words) >> Step("count", count)
    >>> trio.run(pipeline.run, "to be or not").output
    4
    """

    __slots__ = ("_units", "execution_config", "steps", "version")

    steps: tuple[Unit, ...]
    execution_config: ExecutionConfig
    version: str

    def __init__(
        self,
        steps: Iterable[Unit],
        execution_config: ExecutionConfig | None = None,
        *,
        name: str = "pipeline",
        version: str = "",
    ) -> None:
        super().__init__(name)
        self.steps = check_all("steps", steps, Unit, STEPS)  # type: ignore[type-abstract]
        self._units: dict[str, Unit] = dict(_named(self.steps))
        self.execution_config = (
            ExecutionConfig() if execution_config is None else check_execution(execution_config)
        )
        self.version = check_str("version", version)
        limits = self.execution_config.resource_limits
        if limits is not None and limits.action is PressureAction.SHED:
            _check_sheds(self)

    async def run(
        self,
        data: Any = None,
        *,
        context: Any = None,
        budget: Budget | None = None,
        breach: Breach | None = None,
        journal: Any = None,
        observers: Iterable[Observer] = (),
    ) -> PipelineResult:
        """Run it.  A checkpoint.

        With a `journal`, a path, each step and branch that succeeds is recorded there durably as
        it ends, and a run that finds it there does not run it again; what it spent counts in that
        run too, against its limits and those of `budget`.  Their outputs, and the contexts that
        they change, have to pickle; data and context have to be what a `cache.Cache` can key.
        `JournalError` for a journal of another pipeline, version, data or context, or one that is
        in use.

        Raises `Breached`, with the PipelineResult so far; every other Exception is in the result.
        """
        around = Around(
            Budget(check_budget(budget)),
            check_breach(breach),
            check_all("observers", observers, Observer),
        )
        running = _Running(self, data, Held.of(context, self), around)
        if journal is None:
            return await running.alone()
        return await _journalled(running, journal)

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {' >> '.join(self._units)}>"

    # ------------------------------------------------------------ inside

    @property
    def _takes_context(self) -> bool:
        return any(unit._takes_context for unit in self.steps)

    def _branch(
        self, name: str, data: Any, held: Held, around: Around
    ) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        return _Running(self, data, held, around.within(name)).as_branch, ()

    def _within(self) -> Iterator[Unit]:
        return iter(self.steps)

    def _described(self) -> Any:
        steps = {name: unit._described() for name, unit in self._units.items()}
        return {"steps": steps, "version": self.version}


def joined(left: Unit, right: Unit) -> Pipeline:
    """``left >> right``: one pipeline, as far as that has no say of its own in how it runs."""
    if isinstance(left, Pipeline):
        config, name, version = left.execution_config, left.name, left.version
        return Pipeline((*left.steps, *_parts(right)), config, name=name, version=version)
    return Pipeline((left, *_parts(right)))


def _parts(unit: Unit) -> tuple[Unit, ...]:
    if not isinstance(unit, Pipeline):
        return (unit,)
    is_plain = unit.execution_config == ExecutionConfig() and not unit.version
    return unit.steps if is_plain and unit.name == "pipeline" else (unit,)


def _named(units: Iterable[Unit]) -> Iterator[tuple[str, Unit]]:
    seen: dict[str, int] = {}
    taken: set[str] = set()
    for unit in units:
        name = unit.name
        while name in taken:  # it may be what another one is called
            seen[unit.name] = seen.get(unit.name, 1) + 1
            name = f"{unit.name}#{seen[unit.name]}"
        taken.add(name)
        yield name, unit


def _check_sheds(unit: Unit) -> None:
    for part in unit._within():
        if isinstance(part, ParallelStep) and not part.concurrency.individual_cancellation:
            raise ValueError(
                f"PressureAction.SHED needs individual_cancellation=True, "
                f"which {part.name!r} has not"
            )
        _check_sheds(part)


# ---------------------------------------------------------------- a run of it


class _Running:
    """One run of a pipeline."""

    __slots__ = ("_around", "_data", "_failed", "_given", "_held", "_pipeline", "_steps")

    def __init__(self, pipeline: Pipeline, data: Any, held: Held, around: Around) -> None:
        config = pipeline.execution_config
        if config.usage_limits is not None:
            around = attrs.evolve(around, budget=Budget(around.budget, **config.usage_limits))
        if config.resource_limits is not None:
            around = attrs.evolve(around, resources=config.resource_limits)
        self._pipeline = pipeline
        self._data = data
        self._held = held
        self._given = attrs.evolve(held)
        self._around: Around = around
        self._steps: tuple[StepResult[Any], ...] = ()
        self._failed: StepResult[Any] | None = None

    async def alone(self) -> PipelineResult:
        output, feedback = None, None
        try:
            output = await self._output()
        except Breached as breached:
            told = breached.reason
            raise again(breached, self._result(None, told)) from breached.__cause__
        except Exception as exc:
            stopped = [step.feedback for step in self._steps if not step.success]
            feedback = stopped[-1] if stopped else said(exc)
        return self._result(output, feedback)

    async def as_branch(self) -> Any:
        self._held.begin_again(self._given)  # it may have been shed
        self._failed = None
        try:
            return await self._output()
        finally:
            add_to_result(False, None, self._take_steps())

    def _result(self, output: Any, feedback: str | None) -> PipelineResult:
        usage = self._around.budget.settled()
        steps = self._take_steps()
        return PipelineResult(feedback is None, output, self._held.value, steps, feedback, usage)

    def _take_steps(self) -> tuple[StepResult[Any], ...]:
        """What is raised out of it is the exception of one of them, and keeps its frames: no
        cycles."""
        steps, self._steps = self._steps, ()
        return steps

    async def _output(self) -> Any:
        """Of the last step; raises what the pipeline failed with."""
        pipeline, around = self._pipeline, self._around
        config = pipeline.execution_config
        limit = config.max_parallel_steps
        nursery: BranchNursery | None = None
        try:
            async with around.open(
                limit_here() if limit is None else limit,
                name=pipeline.name,
                fail_after=config.timeout,
            ) as nursery:
                around.guard(nursery._core)
                output = await self._one_after_another(nursery)
        finally:
            self._steps = () if nursery is None else _steps_of(nursery)
            del nursery  # no cycles: it has what is raised
        failed, self._failed = self._failed, None
        if failed is None:
            return output
        try:
            raise failed.exception or BranchNotDone(failed.feedback)
        finally:
            del failed  # no cycles

    async def _one_after_another(self, nursery: BranchNursery) -> Any:
        data = self._data
        around = attrs.evolve(self._around, pipelines=self._around.pipelines + 1)
        for name, unit in self._pipeline._units.items():
            for core in _cores(nursery._core, around.pipelines):
                core.drains = unit._lets_run
            branch = start(nursery, name, unit, data, self._held, around)
            result = await branch.wait()
            if not result.success:
                self._failed = as_told(result)
                return None
            data = result.output
        return data


def _steps_of(nursery: BranchNursery) -> tuple[StepResult[Any], ...]:
    return tuple(map(as_told, nursery.result.values()))


def _cores(core: StepCore | None, number: int) -> Iterator[StepCore]:
    """This one, and those around it: so many."""
    for _ in range(number):
        assert core is not None
        yield core
        core = None if core.parent is None else core.parent._step


async def _journalled(running: _Running, path: Any) -> PipelineResult:
    pipeline = running._pipeline
    from ._canonical import canonical, text  # with what they need, for who has a journal
    from ._journal import open_journal

    try:
        described = {"name": pipeline.name, "steps": pipeline._described()["steps"]}
    except TypeError as exc:
        raise TypeError(f"a step can't be known again by a journal: {exc}") from exc
    for argument, value in (("data", running._data), ("context", running._held.value)):
        try:
            described[argument] = canonical(value)
        except TypeError as exc:
            raise TypeError(f"`{argument}` can't be known again by a journal: {exc}") from exc
    async with open_journal(path, text(described), pipeline.version) as journal:
        running._around = attrs.evolve(running._around, journal=journal)
        return await running.alone()
