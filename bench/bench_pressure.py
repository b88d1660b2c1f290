"""What does it cost to watch the pressure?

Microseconds of CPU a reading, by probe, with no children and with ten, and what the guards make of
it; then the share of one CPU that a sampler takes at the intervals that guards ask for, in an event
loop that does nothing else.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from _harness import Report, Table, compared, open_report, rotated, run_in
from trio_parallel_steps import ResourceLimits
from trio_parallel_steps._guards import Guards
from trio_parallel_steps._readings import Reading, Scope
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.pressure import current_sampler
from trio_parallel_steps.pressure._machine import probes

LIMITS = ResourceLimits(max_memory_mb=1e5, max_cpu_percent=90, max_loop_lag=1)
CHILD = "import sys; print(flush=True); sys.stdin.read()"


@contextmanager
def children(number: int) -> Iterator[None]:
    command = [sys.executable, "-S", "-c", CHILD]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(number)]
    try:
        for child in started:
            assert child.stdout is not None
            child.stdout.readline()
        yield
    finally:
        for child in started:
            child.communicate(b"")


@attrs.frozen
class Read:
    name: str
    call: Callable[[], object]

    def measure(self, number: int) -> float:
        """Microseconds of CPU a call."""
        self.call()
        began = time.process_time()
        for _ in range(number):
            self.call()
        return (time.process_time() - began) / number * 1e6


def readings(report: Report, number_of_children: int) -> None:
    rounds, number = (3, 100) if report.quick else (9, 500)
    with children(number_of_children):
        own = probes()
        contestants = [Read(f"{probe.name}, every {probe.every:g} s", probe.read) for probe in own]
        contestants.append(Read("all of them", lambda: [probe.read() for probe in own]))
        samples = rotated(contestants, rounds, lambda read: read.measure(number))
    title = f"A reading, with {number_of_children} children, {rounds} rounds of {number}"
    report.add(compared(title, "us", samples, ("all of them",)))


def judgements(report: Report) -> None:
    rounds, number = (3, 1000) if report.quick else (9, 5000)
    guards = Guards(LIMITS)
    reading = Reading(
        working_set_mb=100,
        host=Scope("host", 1000, 16000, is_host=True),
        cgroups=(Scope("cgroup /", 200, 4000),),
        cpu_percent=40,
        loop_lag=0.001,
    )

    def admit() -> None:
        guards.held_by()
        guards.ended(guards.admitted())

    contestants = [Read("judge", lambda: guards.judge(reading)), Read("held_by, admit, end", admit)]
    samples = rotated(contestants, rounds, lambda read: read.measure(number))
    report.add(compared(f"Guards of three limits, {rounds} rounds of {number}", "us", samples, ()))


async def share(wants: float | None, seconds: float) -> float:
    """Percent of one CPU that this process takes while it sleeps."""
    guards = Guards(LIMITS)
    stop: Callable[[], object] = int
    if wants is not None:
        interval = wants

        def told(reading: Reading) -> float:
            guards.judge(reading)
            return interval

        stop = current_sampler(current_run()).subscribe(told)
        await trio.sleep(0.2)
    began = time.process_time()
    await trio.sleep(seconds)
    took = time.process_time() - began
    stop()
    return 100 * took / seconds


def shares(report: Report) -> None:
    seconds = 2.0 if report.quick else 10.0
    rows = []
    for number in (0, 10):
        with children(number):
            for name, wants in [("0.02", 0.02), ("0.1", 0.1), ("1", 1.0), ("no sampler", None)]:
                percent = run_in("trio", lambda wants=wants: share(wants, seconds))  # type: ignore[misc]
                rows.append((name, float(number), percent))
    title = f"Of one CPU, over {seconds:g} s: a reading every so many seconds"
    report.add(Table(title, ("seconds", "children", "percent"), rows))


if __name__ == "__main__":
    report = open_report(__doc__)
    readings(report, 0)
    readings(report, 10)
    judgements(report)
    shares(report)
    report.save()
