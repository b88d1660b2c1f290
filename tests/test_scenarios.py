"""Every scenario, on every host: what the table says, and the same to the last field as on trio."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from drivers import EVERY_DRIVER, Driver, World, on_trio
from scenarios import SCENARIOS, Recorder, Scenario, Seen

EVERY_SCENARIO = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)


def run(scenario: Scenario, driver: Driver) -> tuple[dict[str, Seen], Any]:
    async def program(world: World) -> tuple[dict[str, Seen], Any]:
        recorder = Recorder(world)
        returned = await scenario.program(recorder)
        return recorder.seen, returned

    return driver(program)


@functools.cache
def reference(scenario_index: int) -> tuple[dict[str, Seen], Any]:
    return run(SCENARIOS[scenario_index], on_trio)


def test_the_table_is_as_long_as_was_promised() -> None:
    assert len(SCENARIOS) >= 60
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


@EVERY_SCENARIO
@EVERY_DRIVER
def test_what_the_table_says(scenario: Scenario, driver: Driver) -> None:
    seen, returned = run(scenario, driver)
    assert returned == scenario.then
    if scenario.left is None:
        return
    step = seen["step"]
    assert step.branches == scenario.branches
    assert step.left == scenario.left
    assert step.stop_reason == scenario.stop_reason
    if scenario.time is not None:
        assert max(ended for _, ended in step.times.values()) == scenario.time


@EVERY_SCENARIO
@EVERY_DRIVER
def test_the_same_as_on_trio(scenario: Scenario, driver: Driver) -> None:
    if driver is on_trio:
        pytest.skip("it is what the others are compared with")
    seen, returned = run(scenario, driver)
    expected, expected_return = reference(SCENARIOS.index(scenario))
    assert returned == expected_return
    assert seen.keys() == expected.keys()
    for name in seen:
        for field in Seen.__attrs_attrs__:
            if field.name in ("order", "times") and not scenario.ordered:
                continue
            ours, theirs = getattr(seen[name], field.name), getattr(expected[name], field.name)
            assert ours == theirs, (name, field.name)
