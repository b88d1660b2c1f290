"""How parallel steps and pipelines run: values, checked as they are made."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any, Self, final

import attrs

from ._budget import check_limit
from ._resources import ResourceLimits, check_resources
from ._rules import CancelRule
from ._util import (
    check_all,
    check_bool,
    check_int,
    check_seconds,
    check_str,
    check_tokens,
    expected,
)


def _check_bool(config: Any, attribute: attrs.Attribute[Any], value: bool) -> None:
    check_bool(attribute.name, value)


def _check_ceiling(config: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None:
        check_tokens(attribute.name, value, "an int >= 1, math.inf or None")


def _check_parallel(config: Any, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None:
        check_int(attribute.name, value, 1)


def _check_seconds(config: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    check_seconds(attribute.name, value)


def _check_resources(
    config: Any, attribute: attrs.Attribute[Any], value: ResourceLimits | None
) -> None:
    check_resources(value, attribute.name)


def _check_usage(
    config: Any, attribute: attrs.Attribute[Any], value: Mapping[str, float] | None
) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(expected(attribute.name, "a mapping from unit to limit, or None", value))
    for unit, limit in value.items():
        check_str(f"{attribute.name}[{unit!r}]", unit)
        check_limit(f"{attribute.name}[{unit!r}]", limit)


def _rules(rules: Any) -> tuple[CancelRule, ...]:
    return check_all("cancel_rules", rules, CancelRule)


@final
class OnBranchFailure(enum.Enum):
    """What a failed branch means to its parallel step."""

    PROPAGATE = "propagate"
    """siblings run to their end, then the step fails"""
    IGNORE = "ignore"
    """the step succeeds if at least one branch did"""


@final
@attrs.frozen
class ConcurrencyConfig:
    """How the branches of a parallel step run together.  Each option changes what happens.

    >>> ConcurrencyConfig(4, adaptive_limits=False).max_concurrent_branches
    4
    """

    max_concurrent_branches: float | None = attrs.field(default=None, validator=_check_ceiling)
    """the ceiling, an int or math.inf; None: ``min(10, 2 * usable_cpus())`` with
    `cpu_based_limits`, else 10"""
    adaptive_limits: bool = attrs.field(default=True, validator=_check_bool)
    """move the limit between 1 and the ceiling by measured latency (`limits.KneeLimit`); False:
    fixed at the ceiling"""
    cpu_based_limits: bool = attrs.field(default=True, validator=_check_bool)
    """see above; with `adaptive_limits`, too, admissions are held while the event loop lags"""
    memory_based_limits: bool = attrs.field(default=True, validator=_check_bool)
    """hold admissions as memory runs short; nothing is cancelled for it"""
    completion_tracking: bool = attrs.field(default=True, validator=_check_bool)
    """False: `ParallelResult.completion_order` is (), and the merge strategies that go by it are
    refused when the step is built"""
    individual_cancellation: bool = attrs.field(default=True, validator=_check_bool)
    """False: `Branch.cancel` is a RuntimeError, and cancel rules, timeouts of branches and
    `PressureAction.SHED` are refused when the step is built"""
    breach_watcher: bool = attrs.field(default=True, validator=_check_bool)
    """False: a breach stops admissions only; branches that run end by themselves, and then
    `Breached` is raised"""
    cancel_rules: tuple[CancelRule, ...] = attrs.field(default=(), kw_only=True, converter=_rules)
    """who cancels whom, once it is in"""
    timeout: float = attrs.field(default=math.inf, kw_only=True, validator=_check_seconds)
    """the step's, in seconds; unfinished branches end as TIMED_OUT, and the step fails"""

    def __attrs_post_init__(self) -> None:
        if self.cancel_rules and not self.individual_cancellation:
            raise ValueError("`cancel_rules` need individual_cancellation=True")

    @classmethod
    def simple(cls) -> Self:
        """No limit, nothing adaptive: what ``gather`` does, structured."""
        return cls(
            math.inf, adaptive_limits=False, cpu_based_limits=False, memory_based_limits=False
        )


@final
@attrs.frozen(kw_only=True)
class ExecutionConfig:
    """How a pipeline runs as a whole.

    >>> ExecutionConfig(max_parallel_steps=4, usage_limits={"usd": 2.5}).max_parallel_steps
    4
    """

    max_parallel_steps: int | None = attrs.field(default=None, validator=_check_parallel)
    """branches in flight in the whole pipeline, nested ones included"""
    resource_limits: ResourceLimits | None = attrs.field(default=None, validator=_check_resources)
    """of each parallel step in it"""
    usage_limits: Mapping[str, float] | None = attrs.field(default=None, validator=_check_usage)
    """a `Budget` for the whole run"""
    timeout: float = attrs.field(default=math.inf, validator=_check_seconds)
    """in seconds; the step that runs then ends as TIMED_OUT, and the pipeline with it"""


def check_concurrency(config: Any) -> ConcurrencyConfig:
    if not isinstance(config, ConcurrencyConfig):
        raise TypeError(expected("concurrency", "a ConcurrencyConfig or None", config))
    return config


def check_execution(config: Any) -> ExecutionConfig:
    if not isinstance(config, ExecutionConfig):
        raise TypeError(expected("execution_config", "an ExecutionConfig or None", config))
    return config
