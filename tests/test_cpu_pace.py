"""The mean of CPU under its limit, on a machine whose load follows what runs.  Virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from drivers import Driver, World, on_asyncio, on_trio
from trio_parallel_steps import ResourceLimits, map_branches
from trio_parallel_steps._readings import Figures
from trio_parallel_steps.pressure import measured_by
from trio_parallel_steps.pressure._rates import Rate

SECONDS = 10


class CPUs:
    """Each that runs takes one of them, or its share."""

    name = "CPUs"
    every = 0.0

    def __init__(self, world: World, cpus: int) -> None:
        self.cpus = cpus
        self.used = 0.0
        self.running = 0
        self._world = world
        self._at = self.began = world.now()
        self._rate = Rate()

    def runs(self, change: int) -> None:
        now = self._world.now()
        self.used += min(self.running, self.cpus) * (now - self._at)
        self.running += change
        self._at = now

    def read(self) -> Figures:
        self.runs(0)
        share = self._rate.add(self._at, self.used)
        return {} if share is None else {"cpu_percent": 100 * share / self.cpus}

    def mean(self) -> float:
        self.runs(0)
        return 100 * self.used / self.cpus / (self._at - self.began)


@pytest.mark.parametrize(
    ("cpus", "limit", "branches"),
    [(2, 50, 4), (2, 80, 64), (4, 30, 16), (4, 50, 64), (8, 50, 16), (8, 80, 64), (16, 30, 64)],
)
@pytest.mark.parametrize("driver", [on_trio, on_asyncio], ids=["trio", "asyncio"])
def test_the_mean_is_near_the_limit(driver: Driver, cpus: int, limit: int, branches: int) -> None:
    random = Random(0)

    async def main(world: World) -> float:
        machine = CPUs(world, cpus)

        async def work(item: int) -> None:
            machine.runs(+1)
            share = max(1.0, machine.running / cpus)
            await world.sleep(random.uniform(0.01, 0.02) * share)
            machine.runs(-1)

        def items() -> Iterator[int]:
            while world.now() < machine.began + SECONDS:
                yield 0

        limits = ResourceLimits(max_cpu_percent=limit)
        with measured_by(machine):
            async with map_branches(work, items(), branches, resources=limits) as results:
                async for _ in results:
                    pass
        return machine.mean()

    assert driver(main) == pytest.approx(limit, abs=10)
