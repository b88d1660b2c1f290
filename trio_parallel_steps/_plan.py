"""`Plan`: a pipeline file as it was read, to be shown before it runs, and what it makes.

1. A line has all that the file says of a step, but for what is a key's default anyway.
2. What the classes of the pipeline refuse is a fault of the file, at the path of the step.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import attrs

from ._command import command
from ._errors import ConfigError
from ._pipeline import Pipeline
from ._steps import Step
from ._tables import GRACE, Parallel, PipelineTable, Serial, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ._parallel import ParallelStep
    from ._tables import BranchTable, StepTable
    from .hosts._commands import Stream

APART = {"name", "call", "command", "branches", "steps"}  # shown in places of their own


@final
@attrs.frozen
class Plan:
    """What a pipeline file says, read and checked.

    >>> from trio_parallel_steps.files import plan_of
    >>> plan = plan_of({"steps": [{"name": "lint", "command": ["ruff", "check"]}]}, "checks.toml")
    >>> plan.name
    'checks'
    """

    file: Path
    table: PipelineTable

    @property
    def name(self) -> str:
        """The pipeline's."""
        return self.file.stem if self.table.name is None else self.table.name

    def lines(self) -> Iterator[str]:
        """What would run, as an indented tree, with all that the file says of each step."""
        yield f"{self.name}{_options(self.table)}"
        for step in self.table.steps:
            yield from _lines(step.name, step, "  ")


# ---------------------------------------------------------------- shown


def _lines(name: str, table: StepTable | BranchTable, indent: str) -> Iterator[str]:
    work = f": {_work(table)}" if isinstance(table, Work) else ""
    yield f"{indent}{name}{work}{_options(table)}"
    if isinstance(table, Parallel):
        for key, branch in table.branches.items():
            yield from _lines(key, branch, f"{indent}  ")
    elif isinstance(table, Serial):
        for step in table.steps:
            yield from _lines(step.name, step, f"{indent}  ")


def _work(work: Work) -> str:
    if isinstance(work.command, tuple):
        return shlex.join(work.command)
    return work.command or f"call {work.call}"


def _options(table: Any) -> str:
    said = ", ".join(_said(table, ""))
    return f"  ({said})" if said else ""


def _said(table: Any, prefix: str) -> Iterator[str]:
    """The fields that are not as by default, those of tables within it too."""
    for field in attrs.fields(type(table)):
        value = getattr(table, field.name)
        if field.name in APART or value == field.default:
            continue
        if attrs.has(type(value)):
            yield from _said(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value.value if isinstance(value, Enum) else value)


# ---------------------------------------------------------------- built


class Watch(Protocol):
    """What is told of one call or command, each time that it runs."""

    def on_output(self, stream: Stream, chunk: bytes) -> object:
        """Of a command: some bytes of ``"stdout"`` or ``"stderr"``."""

    async def run(self, async_fn: Callable[[], Awaitable[Any]]) -> Any:
        """In place of the call: what it returns goes on, and so does what it raises."""


def pipeline_of(
    plan: Plan, watch: Callable[[tuple[str, ...], str], Watch] | None = None
) -> Pipeline:
    """The pipeline that a plan makes.

    `watch` is called for each call and command in it with the names that lead to it and what the
    plan shows of it, and returns who is told of it.

    Raises `ConfigError`, where the parts of a step don't fit together.
    """
    build = _Build(str(plan.file), watch)
    return build.pipeline(plan.name, plan.table, "", (), version=plan.table.version)


@attrs.frozen
class _Build:
    file: str
    watch: Callable[[tuple[str, ...], str], Watch] | None

    def pipeline(
        self, name: str, table: Serial, path: str, names: tuple[str, ...], version: str = ""
    ) -> Pipeline:
        steps = [
            self.unit(each.name, each, f"{path}steps[{i}]", (*names, each.name))
            for i, each in enumerate(table.steps)
        ]
        return Pipeline(steps, table.execution_config, name=name, version=version)

    def unit(
        self, name: str, table: StepTable | BranchTable, path: str, names: tuple[str, ...]
    ) -> Any:
        if isinstance(table, Serial):
            return self.pipeline(name, table, f"{path}.", names)
        try:
            return (
                self.parallel(name, table, path, names)
                if isinstance(table, Parallel)
                else self.step(name, table, names)
            )
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:  # what the classes say of their arguments
            raise ConfigError(self.file, [f"`{path}`: {error}"]) from None

    def parallel(
        self, name: str, table: Parallel, path: str, names: tuple[str, ...]
    ) -> ParallelStep:
        branches = {
            key: self.unit(key, branch, f"{path}.branches.{key}", (*names, key))
            for key, branch in table.branches.items()
        }
        return Step.parallel(
            branches,
            name=name,
            merge_strategy=table.merge_strategy,
            on_branch_failure=table.on_branch_failure,
            concurrency=table.concurrency,
            priorities=table.shares("priority", "priorities"),
            weights=table.shares("weight", "weights"),
            context_include_keys=table.context_include_keys,
            timeout=table.timeout,
        )

    def step(self, name: str, work: Work, names: tuple[str, ...]) -> Step[Any]:
        watch = None if self.watch is None else self.watch(names, _work(work))
        if work.call is not None:
            fn: Any = work.call.fn
        else:
            assert work.command is not None
            grace = GRACE if work.grace is None else work.grace
            on_output = None if watch is None else watch.on_output
            fn = command(work.command, env=work.env, cwd=work.cwd, grace=grace, on_output=on_output)
        if watch is not None:
            fn = _watched(fn, watch)
        return Step(name, fn, timeout=work.timeout, retry=work.retry)


def _watched(fn: Callable[..., Awaitable[Any]], watch: Watch) -> Callable[..., Awaitable[Any]]:
    @wraps(fn)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        return await watch.run(partial(fn, *args, **kwargs))

    return watched
