"""Results: complete, immutable, in submission order; in words and in JSON."""

import json
import pickle
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from helpers import (
    BREACHED,
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    fail_after,
    give,
    give_after,
)
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    Breached,
    ParallelResult,
    open_branch_nursery,
    run_branches,
)


async def one_of_each() -> ParallelResult[str, Any]:
    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(6, policy=COLLECT, name="each") as nursery:
            nursery.start_soon("failed", fail_after, 2, ValueError("no luck"))
            nursery.start_soon("succeeded", give_after, 1, "fine")
            nursery.start_soon("timed out", trio.sleep_forever, timeout=3)
            nursery.start_soon("cancelled", trio.sleep_forever)
            nursery.start_soon("breached", trio.sleep_forever)
            nursery.start_soon("silent", fail_after, 2, KeyError())
            for filler in range(3):
                nursery.start_soon(filler, trio.sleep_forever, priority=-1)
            await trio.sleep(4)
            nursery.cancel("cancelled", "not needed")
            nursery.cancel(2)
            await trio.sleep(1)
            nursery.breach("too much")
    assert isinstance(caught.value.result, ParallelResult)
    return caught.value.result


async def test_feedback_is_a_sentence_for_each_way_to_end(autojump_clock: MockClock) -> None:
    result = await one_of_each()
    feedback = {key: ended.feedback for key, ended in result.items() if isinstance(key, str)}
    assert feedback == {
        "failed": "'failed' failed: ValueError: no luck",
        "succeeded": None,
        "timed out": "'timed out' timed out: TooSlowError: 'timed out' timed out after 3 s",
        "cancelled": "'cancelled' was cancelled: not needed",
        "breached": "'breached' was breached: too much",
        "silent": "'silent' failed: KeyError",
    }


async def test_the_steps_feedback_names_every_branch_that_did_not_succeed() -> None:
    async with open_branch_nursery(policy=COLLECT) as nursery:
        nursery.start_soon("fine", give, 1)
        nursery.start_soon("first", fail_after, 0, ValueError("no"))
        nursery.start_soon("second", give, 1)
        nursery.cancel("second", "not needed")
    assert nursery.result.feedback == (
        "2 of 3 branches did not succeed: 'first' failed: ValueError: no; "
        "'second' never ran: not needed"
    )
    assert (await run_branches({"fine": lambda: give(1)})).feedback is None


async def test_times_add_up(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon("first", give_after, 2, 1)
        await trio.sleep(1)
        nursery.start_soon("second", give_after, 5, 2)
        nursery.start_soon("skipped", give_after, 5, 3)
        await trio.sleep(3)
        nursery.cancel("skipped")
    result = nursery.result
    times = {key: (ended.wait_time, ended.duration) for key, ended in result.items()}
    assert times == {"first": (0, 2), "second": (1, 5), "skipped": (3, 0)}
    second = result["second"]
    assert second.started_at is not None
    assert second.submitted_at < second.started_at < second.ended_at
    assert second.started_at - second.submitted_at == second.wait_time


async def test_iteration_is_in_submission_order_and_completion_in_its_own(
    autojump_clock: MockClock,
) -> None:
    async with open_branch_nursery(3) as nursery:
        for key, seconds in {"c": 3, "a": 1, "b": 2}.items():
            nursery.start_soon(key, give_after, seconds, seconds)
        nursery.start_soon("skipped", give, 1)
        nursery.cancel("skipped")
    result = nursery.result
    assert list(result) == ["c", "a", "b", "skipped"]
    assert list(result.outputs) == ["c", "a", "b"]
    assert result.completion_order == ("a", "b", "c")
    assert [result[key].completion_index for key in result.completion_order] == [0, 1, 2]
    assert result["skipped"].completion_index is None


async def test_with_status_lists_keys_in_submission_order(autojump_clock: MockClock) -> None:
    result: Any = await one_of_each()
    assert result.with_status(FAILED) == ["failed", "silent"]
    assert result.with_status(SUCCEEDED, BREACHED, TIMED_OUT) == [
        "succeeded",
        "timed out",
        "breached",
        0,
        1,
    ]
    assert result.with_status(CANCELLED) == ["cancelled", 2]
    assert result.with_status(SKIPPED) == []
    assert result.with_status() == []
    assert list(result.errors) == ["failed", "timed out", "silent"]


async def test_a_result_is_a_mapping_and_immutable() -> None:
    result = await run_branches({"a": lambda: give(1), 2: lambda: give(2)})
    assert "a" in result
    assert "b" not in result
    assert len(result) == 2
    assert result["a"] is result["a"] is dict(result)["a"]
    assert result.get("b") is None
    with pytest.raises(KeyError):
        result["b"]
    with pytest.raises(TypeError):
        result["a"] = 1  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        result.success = False  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        result["a"].output = 2  # type: ignore[misc]
    assert result[2].name == "2"


async def test_results_are_compared_by_identity() -> None:
    one = await run_branches({"a": lambda: give(1)})
    other = await run_branches({"a": lambda: give(1)})
    assert one == one
    assert one != other
    assert one["a"] != other["a"]
    assert len({one, other}) == 2
    assert len({one["a"], other["a"]}) == 2


async def test_an_output_may_be_none_and_is_a_success_all_the_same() -> None:
    result = await run_branches({"a": lambda: give(None)})
    assert result["a"].success
    assert result.outputs == {"a": None}
    assert result["a"].unwrap() is None


async def test_to_dict_is_json_with_times_from_the_steps_start(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    result: Any = await one_of_each()
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["name"] == "each"
    assert told["success"] is False
    assert told["stop_reason"] == "too much"
    assert told["feedback"] == result.feedback
    assert told["peak_in_flight"] == 6
    assert told["completion_order"][0] == "succeeded"
    branches = {branch["name"]: branch for branch in told["branches"]}
    assert list(branches) == [str(key) for key in result]
    assert branches["succeeded"]["status"] == "succeeded"
    assert branches["succeeded"]["started_at"] == 0
    assert branches["succeeded"]["ended_at"] == 1
    assert branches["failed"]["exception"] == "ValueError: no luck"
    assert branches["failed"]["feedback"] == "'failed' failed: ValueError: no luck"
    assert branches["cancelled"]["reason"] == "not needed"
    assert not any("output" in branch for branch in told["branches"])


async def test_to_dict_takes_any_output_and_any_key() -> None:
    key = (1, frozenset({2}))
    async with open_branch_nursery(1) as nursery:
        nursery.start_soon(key, give, object())
        nursery.start_soon(None, give, 1)
        nursery.cancel(None)
    told = json.loads(json.dumps(nursery.result.to_dict()))
    assert [branch["name"] for branch in told["branches"]] == [str(key), "None"]
    assert told["branches"][1]["started_at"] is None


async def test_results_pickle_with_all_they_say(autojump_clock: MockClock) -> None:
    result: Any = await one_of_each()
    again = pickle.loads(pickle.dumps(result))
    assert list(again) == list(result)
    assert again.completion_order == result.completion_order
    assert again.to_dict() == result.to_dict()
    assert again.outputs == result.outputs
    assert repr(again.errors) == repr(result.errors)
    assert pickle.loads(pickle.dumps(again)).to_dict() == result.to_dict()
    one = pickle.loads(pickle.dumps(result["failed"]))
    assert one.feedback == result["failed"].feedback


async def test_what_does_not_pickle_does_not_keep_other_results_from_it() -> None:
    result = await run_branches({"a": lambda: give(lambda: 1), "b": lambda: give(1)})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(result)
    assert pickle.loads(pickle.dumps(result["b"])).output == 1


async def test_reprs_fit_a_line(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(BranchLimiter(1, name="pool"), name="mine") as nursery:
        branch = nursery.start_soon("a", give_after, 1, 1)
        nursery.start_soon("b", give_after, 1, 1)
        assert repr(branch) == "<Branch 'a' queued>"
        await trio.sleep(0.5)
        assert repr(branch) == "<Branch 'a' running>"
        assert repr(nursery) == "<BranchNursery 'mine': 1 queued, 1 running, 0 ended>"
        assert repr(nursery.limiter) == "<BranchLimiter 'pool': 1 of 1 in use, 1 waiting>"
    assert repr(branch) == "<Branch 'a' succeeded>"
    assert repr(nursery.result) == "<ParallelResult of 'mine': 2 of 2 succeeded>"
    assert repr(nursery) == "<BranchNursery 'mine': 0 queued, 0 running, 2 ended>"


async def test_statistics_say_how_the_step_stands(autojump_clock: MockClock) -> None:
    async with open_branch_nursery(2, move_on_after=5) as nursery:
        for n in range(4):
            nursery.start_soon(n, give_after, 1 + n, n)
        first = nursery.statistics()
        assert (first.queued, first.running, first.ended) == (4, 0, 0)
        await trio.sleep(1.5)
        second = nursery.statistics()
        assert (second.queued, second.running, second.ended) == (1, 2, 1)
        assert (second.peak_in_flight, second.stop_reason) == (2, None)
    last = nursery.statistics()
    assert (last.queued, last.running, last.ended) == (0, 0, 4)
    assert last.stop_reason == nursery.result.stop_reason == "step timed out after 5 s"
    assert nursery.result.peak_in_flight == 2
