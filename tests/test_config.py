"""`ConcurrencyConfig` and `ExecutionConfig`: values, checked as they are made."""

import math
from typing import Any

import pytest

from trio_parallel_steps import CancelRule, ConcurrencyConfig, ExecutionConfig, ResourceLimits


def test_the_first_fields_are_positional_and_all_options_are_on() -> None:
    config = ConcurrencyConfig(4, False)
    assert (config.max_concurrent_branches, config.adaptive_limits) == (4, False)
    assert config.cpu_based_limits
    assert config.memory_based_limits
    assert config.completion_tracking
    assert config.individual_cancellation
    assert config.breach_watcher
    assert config.cancel_rules == ()
    assert config.timeout == math.inf


def test_simple_has_no_limit_and_nothing_adaptive() -> None:
    assert ConcurrencyConfig.simple() == ConcurrencyConfig(math.inf, False, False, False)


def test_cancel_rules_may_be_any_iterable() -> None:
    rule = CancelRule("a", "b")
    assert ConcurrencyConfig(cancel_rules=[rule]).cancel_rules == (rule,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"max_concurrent_branches": 0},
            ValueError,
            "must be an int >= 1, math.inf or None, got 0",
        ),
        ({"max_concurrent_branches": 2.5}, ValueError, "must be an int >= 1, math.inf or None"),
        ({"max_concurrent_branches": True}, TypeError, "must be an int >= 1, math.inf or None"),
        ({"adaptive_limits": 1}, TypeError, "`adaptive_limits` must be a bool, got 1"),
        ({"cpu_based_limits": None}, TypeError, "`cpu_based_limits` must be a bool, got None"),
        ({"memory_based_limits": 0}, TypeError, "`memory_based_limits` must be a bool, got 0"),
        ({"completion_tracking": "no"}, TypeError, "`completion_tracking` must be a bool"),
        ({"individual_cancellation": 0}, TypeError, "`individual_cancellation` must be a bool"),
        ({"breach_watcher": 0}, TypeError, "`breach_watcher` must be a bool"),
        ({"cancel_rules": 1}, TypeError, "`cancel_rules` must be an iterable of CancelRule, got 1"),
        ({"cancel_rules": ["a"]}, TypeError, "`cancel_rules` must be an iterable of CancelRule"),
        ({"timeout": -1}, ValueError, "`timeout` must be a number of seconds >= 0, or math.inf"),
        (
            {"cancel_rules": [CancelRule("a", "b")], "individual_cancellation": False},
            ValueError,
            "`cancel_rules` need individual_cancellation=True",
        ),
    ],
)
def test_a_bad_option_of_a_step_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        ConcurrencyConfig(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_parallel_steps": 0}, ValueError, "`max_parallel_steps` must be an int >= 1, got 0"),
        ({"max_parallel_steps": math.inf}, TypeError, "`max_parallel_steps` must be an int >= 1"),
        ({"resource_limits": 1}, TypeError, "`resource_limits` must be a ResourceLimits or None"),
        ({"usage_limits": 1}, TypeError, "`usage_limits` must be a mapping from unit to limit"),
        ({"usage_limits": {1: 1}}, TypeError, "`usage_limits[1]` must be a str, got 1"),
        ({"usage_limits": {"usd": -1}}, ValueError, "`usage_limits['usd']` must be a number >= 0"),
        ({"timeout": math.nan}, ValueError, "`timeout` must be a number of seconds >= 0"),
    ],
)
def test_a_bad_option_of_a_pipeline_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        ExecutionConfig(**options)
    assert message in str(caught.value)


def test_good_options_of_a_pipeline_are_kept() -> None:
    limits = ResourceLimits(max_memory_mb=1024)
    config = ExecutionConfig(
        max_parallel_steps=4, resource_limits=limits, usage_limits={"usd": 2.5}, timeout=60
    )
    assert config.max_parallel_steps == 4
    assert config.resource_limits is limits
    assert config.usage_limits == {"usd": 2.5}
    assert config.timeout == 60
