"""Jobs in batches: in the order they came, one batch at a time, none lost to a cancellation."""

from __future__ import annotations

import threading
from typing import Any

from drivers import EVERY_DRIVER, Driver, World, on_trio
from trio_parallel_steps._batches import Batches


class Writer:
    """Holds the first batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.first = threading.Event()
        self.threads: set[int] = set()
        self.at_work = 0

    def write(self, jobs: list[Any]) -> None:
        assert not self.at_work
        self.at_work += 1
        if not self.batches:
            self.first.wait(60)
        self.threads.add(threading.get_ident())
        self.batches.append(list(jobs))
        self.at_work -= 1
        if "bad" in jobs:
            raise ValueError("a bad job")


@EVERY_DRIVER
def test_those_who_come_meanwhile_are_one_batch(driver: Driver) -> None:
    writer = Writer()

    async def program(world: World) -> None:
        batches = Batches(writer.write)
        async with world.tasks() as start:
            for number in range(5):
                start(batches.add, number)
                await world.turns(3)
            writer.first.set()
        assert await batches.add(5) is None

    driver(program)
    assert writer.batches == [[0], [1, 2, 3, 4], [5]]
    assert threading.get_ident() not in writer.threads


@EVERY_DRIVER
def test_an_error_is_told_to_all_of_its_batch_and_to_no_other(driver: Driver) -> None:
    writer = Writer()
    told: dict[Any, Any] = {}

    async def program(world: World) -> None:
        batches = Batches(writer.write)

        async def add(job: Any) -> None:
            told[job] = await batches.add(job)

        async with world.tasks() as start:
            for job in ("good", "bad", "with it"):
                start(add, job)
                await world.turns(3)
            writer.first.set()
        await add("after")

    driver(program)
    assert {job: str(error) for job, error in told.items()} == {
        "good": "None",
        "bad": "a bad job",
        "with it": "a bad job",
        "after": "None",
    }


@EVERY_DRIVER
def test_a_cancelled_job_is_carried_out_all_the_same(driver: Driver) -> None:
    """The leader's, and those of who wait, the next leader's too."""
    writer = Writer()

    async def program(world: World) -> None:
        batches = Batches(writer.write)
        async with world.scope() as scope, world.tasks() as start:
            for number in range(4):
                start(batches.add, number)
                await world.turns(3)
            scope.cancel()
            await_turns = world.turns(3)
            async with world.shield():
                try:
                    await await_turns
                finally:
                    writer.first.set()
        assert await batches.add(4) is None

    driver(program)
    assert writer.batches == [[0], [1, 2, 3], [4]]


def test_one_who_is_cancelled_beforehand_is_no_exception() -> None:
    writer = Writer()
    writer.first.set()

    async def program(world: World) -> None:
        batches = Batches(writer.write)
        async with world.scope() as scope:
            scope.cancel()
            assert await batches.add(0) is None

    on_trio(program)
    assert writer.batches == [[0]]


@EVERY_DRIVER
def test_a_thread_that_can_not_be_had_is_an_error(driver: Driver) -> None:
    def write(jobs: list[Any]) -> None:
        raise RuntimeError("can't start new thread")

    async def program(world: World) -> Any:
        batches = Batches(write)
        return [str(await batches.add(0)), str(await batches.add(1))]

    assert driver(program) == ["can't start new thread"] * 2
