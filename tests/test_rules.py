"""Cancel rules, sentence by sentence of the contract."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from helpers import (
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    fail,
    fail_when_stopped,
    give,
    give_after,
    give_when_stopped,
    run_in_many_orders,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import COLLECT, Branch, CancelRule, open_branch_nursery
from trio_parallel_steps._rules import Rules
from trio_parallel_steps.abc import Observer

MODEL_CASE = CancelRule("high_priority_*", "low_priority_*")


async def test_the_model_case(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2, cancel_rules=[MODEL_CASE]) as nursery:
        for n in range(3):
            nursery.start_soon(f"low_priority_{n}", trio.sleep_forever)
        nursery.start_soon("high_priority_0", give_after, 1, "in", priority=1)
        nursery.start_soon("other", give_after, 2, "in", priority=-1)
    result = nursery.result
    assert statuses(result) == {
        "low_priority_0": CANCELLED,
        "low_priority_1": SKIPPED,
        "low_priority_2": SKIPPED,
        "high_priority_0": SUCCEEDED,
        "other": SUCCEEDED,
    }
    reason = "'high_priority_0' succeeded: 'high_priority_*' cancels 'low_priority_*'"
    assert {result[f"low_priority_{n}"].reason for n in range(3)} == {reason}
    assert result.success
    assert result.stop_reason is None


async def test_by_default_only_a_success_triggers_it() -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("a", "b")], policy=COLLECT) as n:
        n.start_soon("a", fail, ValueError())
        n.start_soon("b", give, 1)
    assert statuses(n.result) == {"a": FAILED, "b": SUCCEEDED}


async def test_on_end_a_failure_triggers_it_too() -> None:
    rule = CancelRule("a", "b", on="end")
    async with open_branch_nursery(1, cancel_rules=[rule], policy=COLLECT) as nursery:
        nursery.start_soon("a", fail, ValueError())
        nursery.start_soon("b", give, 1)
    assert statuses(nursery.result) == {"a": FAILED, "b": SKIPPED}
    assert nursery.result["b"].reason == "'a' ended: 'a' cancels 'b'"


async def test_on_end_a_success_triggers_it_as_well() -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("a", "b", on="end")]) as nursery:
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b", give, 1)
    assert statuses(nursery.result) == {"a": SUCCEEDED, "b": SKIPPED}


async def test_on_end_a_timeout_triggers_it(autojump_clock: MockClock) -> None:
    rule = CancelRule("a", "b", on="end")
    async with open_branch_nursery(cancel_rules=[rule], policy=COLLECT) as nursery:
        nursery.start_soon("a", trio.sleep_forever, timeout=1)
        nursery.start_soon("b", trio.sleep_forever)
    assert statuses(nursery.result) == {"a": TIMED_OUT, "b": CANCELLED}


@pytest.mark.parametrize("on", ["success", "end"])
async def test_what_was_cancelled_or_skipped_triggers_nothing(
    on: str, autojump_clock: MockClock
) -> None:
    rule = CancelRule("a*", "b", on=on)
    async with open_branch_nursery(2, cancel_rules=[rule]) as nursery:
        nursery.start_soon("a runs", trio.sleep_forever)
        nursery.start_soon("b", give_after, 2, 1)
        nursery.start_soon("a waits", give, 1)
        nursery.cancel("a waits")
        await trio.sleep(1)
        nursery.cancel("a runs")
    ended = {"a runs": CANCELLED, "b": SUCCEEDED, "a waits": SKIPPED}
    assert statuses(nursery.result) == ended


async def test_what_was_told_to_stop_and_returned_has_succeeded_and_triggers_it() -> None:
    async with open_branch_nursery(cancel_rules=[CancelRule("a", "b")]) as nursery:
        nursery.start_soon("a", give_when_stopped, 1)
        nursery.start_soon("b", trio.sleep_forever)
        await until_nothing_is_ready()
        nursery.cancel("a")
    assert statuses(nursery.result) == {"a": SUCCEEDED, "b": CANCELLED}


async def test_a_branch_never_cancels_itself() -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("*", "*")]) as nursery:
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b", give, 2)
        nursery.start_soon("c", give, 3)
    assert statuses(nursery.result) == {"a": SUCCEEDED, "b": SKIPPED, "c": SKIPPED}


async def test_later_submissions_are_not_affected() -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("a", "b*")]) as nursery:
        await nursery.start_soon("a", give, 1).wait()
        nursery.start_soon("b", give, 2)
    assert nursery.result.outputs == {"a": 1, "b": 2}


async def test_a_rule_fires_again_for_what_came_in_between() -> None:
    async with open_branch_nursery(cancel_rules=[CancelRule("a*", "b*")]) as nursery:
        await nursery.start_soon("a1", give, 1).wait()
        nursery.start_soon("b", trio.sleep_forever)
        await nursery.start_soon("a2", give, 1).wait()
    assert nursery.result["b"].reason == "'a2' succeeded: 'a*' cancels 'b*'"


def test_it_is_applied_before_the_freed_token_admits_anyone() -> None:
    started: list[str] = []

    async def starts(key: str) -> None:
        started.append(key)

    async def program() -> None:
        started.clear()
        async with open_branch_nursery(1, cancel_rules=[CancelRule("a", "b")]) as nursery:
            nursery.start_soon("a", starts, "a")
            nursery.start_soon("b", starts, "b")
            nursery.start_soon("c", starts, "c")
        assert started == ["a", "c"]

    run_in_many_orders(program)


async def test_only_strings_match() -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("*", "*", on="end")]) as nursery:
        nursery.start_soon(1, give, 1)
        nursery.start_soon(("a",), give, 2)
        nursery.start_soon("a", give, 3)
        nursery.start_soon(None, give, 4)
        nursery.start_soon("b", give, 5)
    assert nursery.result.outputs == {1: 1, ("a",): 2, "a": 3, None: 4}


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("b", "b", True),
        ("b", "B", False),
        ("b", "bb", False),
        ("b?", "b1", True),
        ("b?", "b", False),
        ("b[12]", "b2", True),
        ("b[!12]", "b2", False),
        ("*", "b\nb", True),
        ("b.", "bx", False),
        ("b[*]", "b*", True),
        ("", "b", False),
    ],
)
async def test_patterns_are_case_sensitive_globs(pattern: str, key: str, matches: bool) -> None:
    async with open_branch_nursery(1, cancel_rules=[CancelRule("when", pattern)]) as nursery:
        nursery.start_soon("when", give, 1)
        nursery.start_soon(key, give, 2)
    assert statuses(nursery.result)[key] is (SKIPPED if matches else SUCCEEDED)


async def test_the_first_of_several_rules_gives_the_reason() -> None:
    rules = [CancelRule("a", "b"), CancelRule("*", "*")]
    async with open_branch_nursery(1, cancel_rules=rules) as nursery:
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b", give, 2)
        nursery.start_soon("c", give, 3)
    assert nursery.result["b"].reason == "'a' succeeded: 'a' cancels 'b'"
    assert nursery.result["c"].reason == "'a' succeeded: '*' cancels '*'"


async def test_what_a_rule_cancels_may_return_or_raise_all_the_same() -> None:
    rule = CancelRule("a", "b*")
    async with open_branch_nursery(3, cancel_rules=[rule], policy=COLLECT) as nursery:
        nursery.start_soon("b returns", give_when_stopped, "kept")
        nursery.start_soon("b raises", fail_when_stopped, ValueError())
        await until_nothing_is_ready()
        nursery.start_soon("a", give, 1)
    assert statuses(nursery.result) == {"b returns": SUCCEEDED, "b raises": FAILED, "a": SUCCEEDED}


async def test_rules_may_come_from_any_iterable() -> None:
    rules = (CancelRule(when, "b") for when in "ac")
    async with open_branch_nursery(1, cancel_rules=rules) as nursery:
        nursery.start_soon("c", give, 1)
        nursery.start_soon("b", give, 2)
    assert statuses(nursery.result) == {"c": SUCCEEDED, "b": SKIPPED}


async def test_observers_hear_whom_a_rule_cancels_and_why() -> None:
    log: list[tuple[Any, str]] = []

    class Log(Observer):
        def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
            log.append((branch.key, reason))

    rule = CancelRule("a", "b*")
    async with open_branch_nursery(2, cancel_rules=[rule], observers=[Log()]) as nursery:
        nursery.start_soon("b1", trio.sleep_forever)
        nursery.start_soon("a", give, 1)
        nursery.start_soon("b2", give, 1)
    reason = "'a' succeeded: 'a' cancels 'b*'"
    assert log == [("b1", reason), ("b2", reason)]


def test_however_many_have_ended_those_that_have_not_are_cancelled() -> None:
    def record(key: str, step: object) -> Any:
        return SimpleNamespace(key=key, status=SUCCEEDED, _step=step)

    rules = Rules([CancelRule("end", "a*")])
    waiting = []
    for number in range(3000):
        one = record(f"a{number}", object() if number % 100 == 0 else None)
        rules.submitted(one)
        if one._step is not None:
            waiting.append(one)
    told = [other for other, _ in rules.ended(record("end", None))]
    assert [other for other in told if other._step is not None] == waiting
    assert len(told) < 1500  # those that had ended are not all kept


def test_rules_are_values() -> None:
    assert CancelRule("a", "b") == CancelRule("a", "b", on="success")
    assert CancelRule("a", "b") != CancelRule("a", "b", on="end")
    assert len({CancelRule("a", "b"), CancelRule("a", "b")}) == 1
    assert pickle.loads(pickle.dumps(MODEL_CASE)) == MODEL_CASE
