"""Programs that are interrupted, each in a process of its own, by SIGINT at a random moment.

Run as a script, this is a server: it imports what is needed once, and forks a child for each trial,
while it has a single thread.  A child runs a program in real time and tells what happens by a pipe,
line by line; those lines are also the marks by which the server chooses its moments: at once or a
little after one of them, or some time after the beginning.  It writes a line of JSON a trial.

What must hold of a trial, wherever the signal was met:

1. The child ends, as an uncaught KeyboardInterrupt ends a process, unless it was over before.
2. Each branch that began has done its cleanup, which awaits, behind a shield, to its end.
3. Each branch that was queued was told to have ended, once, and its step to have been closed.
4. At the end no token is borrowed, and nobody waits for one.
5. Nothing complains: of a coroutine that nobody awaited, or an exception that nobody retrieved.

On trio that holds of a second signal too, which some trials have.  On asyncio none has one: there
the second is raised in whatever code runs, the loop's own included, which may have taken a callback
from its queue and then forgets it; so any program can hang there.

One moment is out of reach, for trio's own nurseries too: CPython may raise a KeyboardInterrupt in
the function with the ``async with`` when it has called ``__aexit__`` and has not begun to await it.
Such trials are `torn`, and counted apart.  So it may between any coroutine function's call and its
await, in the code of branches too: that one was never awaited says nothing there.  With
``restrict_keyboard_interrupt_to_checkpoints``, which is a host of its own here, there is no such
moment, and nothing is excused.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from itertools import count, cycle
from random import Random
from typing import IO, Any, Final

import attrs
import trio

from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breached,
    ParallelResult,
    Retry,
    StepResult,
    StepTimeout,
    hedged,
    in_thread,
    map_branches,
    open_branch_nursery,
)
from trio_parallel_steps.abc import Observer
from trio_parallel_steps.hosts import _asyncio, _trio  # noqa: F401  imported once, for all children

MS: Final = 0.001
PATIENCE: Final = 10.0  # seconds from the last signal: who needs more hangs
TWICE: Final = 0.3  # of the trials on trio have a second signal
COMPLAINTS: Final = ("never retrieved", "never awaited", "was destroyed")


class Oops(Exception):
    """A branch's own error."""


# ---------------------------------------------------------------- what a child runs


class Teller(Observer):
    """Writes each event to a pipe, at once and whole."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def tell(self, *event: object) -> None:
        os.write(self._pipe, (json.dumps([time.monotonic_ns(), *event]) + "\n").encode())

    def step_opened(self, step: BranchNursery) -> None:
        self.tell("opened", step.name)

    def branch_queued(self, branch: Any) -> None:
        self.tell("queued", branch.key)

    def branch_started(self, branch: Any) -> None:
        self.tell("started", branch.key)

    def branch_ended(self, branch: Any, result: StepResult[Any]) -> None:
        self.tell("ended", branch.key, result.status.value)

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        self.tell("closed", step.name)


async def rest_on_trio(seconds: float) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)


async def rest_on_asyncio(seconds: float) -> asyncio.CancelledError | None:
    """Returns what it was told meanwhile."""
    sleeping = asyncio.ensure_future(asyncio.sleep(seconds))
    cancelled = None
    while not sleeping.done():
        try:
            await asyncio.wait([sleeping])
        except asyncio.CancelledError as exc:
            cancelled = exc
    return cancelled


@attrs.frozen
class Host:
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    sleep: Callable[[float], Awaitable[Any]]
    rest: Callable[[float], Awaitable[BaseException | None]]
    """Through whatever comes."""


HOSTS: Final = {
    "trio": Host(trio.run, trio.sleep, rest_on_trio),
    "trio at checkpoints": Host(
        partial(trio.run, restrict_keyboard_interrupt_to_checkpoints=True),
        trio.sleep,
        rest_on_trio,
    ),
    "asyncio": Host(lambda program: asyncio.run(program()), asyncio.sleep, rest_on_asyncio),
}

Kind = Callable[["Program"], Awaitable[None]]
KINDS: dict[str, Kind] = {}


def kind(fn: Kind) -> Kind:
    KINDS[fn.__name__] = trio.lowlevel.disable_ki_protection(fn)
    return fn


class Program:
    def __init__(self, host: Host, teller: Teller, name: str, random: Random) -> None:
        self.sleep = host.sleep
        self.rest = host.rest
        self.teller = teller
        self.kind = KINDS[name]
        self.random = random
        self.limiter = BranchLimiter(3)
        self.numbers = count()

    @trio.lowlevel.enable_ki_protection
    async def __call__(self) -> None:
        self.teller.tell("begins")
        try:
            await self.kind(self)
        finally:
            how = self.limiter.statistics()
            self.teller.tell("over", how.borrowed_tokens, how.tasks_waiting)

    def options(self, **options: Any) -> dict[str, Any]:
        return {"name": f"step {next(self.numbers)}", "observers": [self.teller], **options}

    def start(
        self, nursery: BranchNursery, body: Callable[[], Awaitable[Any]], **options: Any
    ) -> Any:
        key = f"{next(self.numbers)}"
        return nursery.start_soon(key, self.branch, key, body, **options)

    async def branch(self, key: str, body: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.teller.tell("began", key)
            await body()
        finally:
            await self.clean_up(key)

    @trio.lowlevel.enable_ki_protection
    async def clean_up(self, key: str) -> None:
        self.teller.tell("cleaning", key)
        cancelled = await self.rest(self.random.choice((0, 0, MS / 4, MS)))
        self.teller.tell("cleaned", key)
        if cancelled is not None:
            raise cancelled

    # ------------------------------------------------------------ bodies of branches

    async def wait(self) -> None:
        await self.sleep(1000)

    async def work(self) -> None:
        for _ in range(self.random.randrange(4)):
            await self.sleep(self.random.choice((0, 0, MS / 4, MS)))

    async def fail(self) -> None:
        await self.work()
        raise Oops

    async def spin(self) -> None:
        """Holds the thread."""
        for _ in range(self.random.randrange(5)):
            end = time.perf_counter() + MS / 2
            while time.perf_counter() < end:
                pass
            await self.sleep(0)

    async def nest(self, depth: int = 2) -> None:
        async with open_branch_nursery(**self.options()) as nursery:
            for _ in range(2):
                self.start(nursery, self.work if depth == 1 else lambda: self.nest(depth - 1))


@kind
async def submits(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for number in range(40):
            program.start(nursery, program.work, priority=number % 3)
            if number % 4 == 0:
                await program.sleep(0)


@kind
async def runs(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for body in (program.spin, program.work) * 4:
            program.start(nursery, body)


@kind
async def nests(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for _ in range(3):
            program.start(nursery, program.nest)


@kind
async def is_breached(program: Program) -> None:
    for drains in (False, True, False):
        options = program.options(on_breach="drain" if drains else "cancel")
        try:
            async with open_branch_nursery(program.limiter, **options) as nursery:
                for body in (program.work, program.nest, program.wait):
                    program.start(nursery, program.work if drains else body)
                    program.start(nursery, program.spin)
                await program.sleep(2 * MS)
                nursery.breach("enough")
        except Breached:
            pass


@kind
async def times_out(program: Program) -> None:
    for limit in ({"fail_after": 2 * MS}, {"move_on_after": 2 * MS}):
        try:
            async with open_branch_nursery(
                program.limiter, **program.options(**limit, policy=COLLECT)
            ) as nursery:
                for body in (program.wait, program.work, program.nest) * 2:
                    program.start(nursery, body, timeout=program.random.choice((MS, 5 * MS)))
        except StepTimeout:
            pass


@kind
async def fails(program: Program) -> None:
    for policy in (None, COLLECT, FIRST_SUCCESS):
        options = {} if policy is None else {"policy": policy}
        try:
            async with open_branch_nursery(
                program.limiter, **program.options(**options)
            ) as nursery:
                for body in (program.nest, program.fail, program.wait, program.fail):
                    program.start(nursery, body, timeout=4 * MS)
        except BranchErrors:
            pass


@kind
async def retries(program: Program) -> None:
    retry = Retry(on=Oops, attempts=4, wait_initial=MS, wait_jitter=MS)
    async with open_branch_nursery(program.limiter, **program.options(policy=COLLECT)) as nursery:
        for body in (program.fail, program.work) * 3:
            program.start(nursery, body, retry=retry)


@kind
async def maps(program: Program) -> None:
    async def one(number: int) -> None:
        await program.branch(f"item {number}", program.work)

    async with map_branches(
        one, range(40), program.limiter, key="item {}".format, **program.options()
    ) as results:
        async for _ in results:
            await program.work()


@kind
async def iterates(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for body in (program.work, program.spin) * 4:
            program.start(nursery, body)
        async for _ in nursery.completed():
            await program.work()


@kind
async def opens_and_closes(program: Program) -> None:
    for _ in range(30):
        async with open_branch_nursery(program.limiter, **program.options()) as nursery:
            program.start(nursery, program.work)


@kind
async def steers(program: Program) -> None:
    """Its branches are cancelled, held and passed, and the limit changes."""
    random = program.random
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        branches = [program.start(nursery, program.work) for _ in range(20)]
        for _ in range(10):
            random.choice(branches).cancel("not that one")
            if (branch := random.choice(branches)).status is BranchStatus.QUEUED:
                branch.priority = random.randrange(5)
            program.limiter.total_tokens = random.randint(1, 4)
            nursery.pause("a while")
            await program.sleep(MS / 4)
            nursery.resume()
            await program.sleep(MS / 4)


@kind
async def uses_threads(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for _ in range(6):
            program.start(nursery, in_thread(lambda: time.sleep(2 * MS)))


@kind
async def hedges(program: Program) -> None:
    async with open_branch_nursery(program.limiter, **program.options()) as nursery:
        for _ in range(6):
            program.start(nursery, hedged(program.work, after=MS / 2))


def run_child(host: str, name: str, seed: int, pipe: int) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    teller = Teller(pipe)
    random = Random(seed)
    try:
        HOSTS[host].run(Program(HOSTS[host], teller, name, random))
    except BaseExceptionGroup as group:
        # On trio it always is in one, and on asyncio the cancellation that it has become, beside
        # errors.  A program that wants to end as others do sees to it so.
        if group.subgroup((KeyboardInterrupt, asyncio.CancelledError)) is None:
            raise
        raise KeyboardInterrupt from None


# ---------------------------------------------------------------- the server


@attrs.frozen
class Moment:
    """So long after the child's event of that number, or after the signal before."""

    mark: int
    seconds: float


@attrs.define
class Trial:
    host: str
    kind: str
    seed: int
    moments: list[Moment]
    events: list[list[Any]] = attrs.field(factory=list)
    sent: list[tuple[int, int]] = attrs.field(factory=list)  # before and after, in ns
    ended: int = 0
    status: int = 0
    said: str = ""
    violations: list[str] = attrs.field(factory=list)

    def check(self, right: bool, promise: str, *seen: object) -> None:
        if not right:
            self.violations.append(f"{promise}: {', '.join(map(str, seen))}")

    def milliseconds(self) -> float:
        """From the last signal to the end."""
        return (self.ended - self.sent[-1][0]) / 1e6

    def times(self, what: str) -> list[int]:
        return [event[0] for event in self.events if event[1] == what]

    def is_torn(self) -> bool:
        return self.host == "trio" and "__aexit__' was never awaited" in self.said

    def where(self) -> str:
        """Was the program there at the first signal, as its process saw it?"""
        begun, over = self.times("begins"), self.times("over")
        if self.is_torn():
            return "torn"
        if not self.sent:
            return "never"
        if not begun or self.sent[0][1] < begun[0]:
            return "before"
        return "after" if over and self.sent[0][0] > over[0] else "inside"

    def is_before_end(self, sent: tuple[int, int]) -> bool:
        """What is sent just before the end may be met after it."""
        over = self.times("over")
        return not over or sent[1] + 1e6 < over[0]

    def counts(self, what: str) -> Counter[str]:
        return Counter(event[2] for event in self.events if event[1] == what)

    def judge(self) -> None:
        if self.is_torn():
            return
        if not self.sent:
            self.check(self.status == 0, "it ends by itself", self.status)
        elif self.is_before_end(self.sent[0]):
            self.check(self.status == -signal.SIGINT, "KeyboardInterrupt", self.status)
        if not self.times("begins"):
            return
        began, cleaned = self.counts("began"), self.counts("cleaned")
        if all(map(self.is_before_end, self.sent)):  # else what runs programs is interrupted too
            judged = COMPLAINTS if self.host != "trio" else set(COMPLAINTS) - {"never awaited"}
            complaints = [complaint for complaint in judged if complaint in self.said]
            self.check(not complaints, "no complaint", *complaints)
        self.check(cleaned >= began, "each cleanup is done", began - cleaned)
        started, ended = self.counts("started"), self.counts("ended")
        self.check(started >= began, "what begins was told", began - started)
        queued = Counter(set(self.counts("queued")))  # a retry queues a branch again
        self.check(ended == queued, "each has one ending", ended)
        opened, closed = self.counts("opened"), self.counts("closed")
        self.check(opened == closed, "each step is closed", opened - closed)
        over_with = [event[2:] for event in self.events if event[1] == "over"]
        self.check(over_with == [[0, 0]], "no token is left", over_with)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {
            "host": self.host,
            "kind": self.kind,
            "seed": self.seed,
            "sent": len(self.sent),
            "where": self.where(),
            "ms": round(self.milliseconds(), 1) if self.sent else 0,
            "violations": self.violations,
        }
        if self.violations:
            first = self.events[0][0] if self.events else 0
            report["said"] = self.said
            report["sent_at"] = [(one[1] - first) / 1e6 for one in self.sent]
            report["events"] = [
                " ".join(map(str, [(event[0] - first) / 1e6, *event[1:]])) for event in self.events
            ]
        return report


def watch(trial: Trial, pid: int, pipe: int, log: IO[str]) -> None:
    """Interrupt the child at the moments of the trial, and see its end."""
    moments = list(trial.moments)
    due: float | None = None  # when the next signal is sent, once that is known
    waited_for = 0
    last = time.monotonic()
    rest = b""
    while True:
        now = time.monotonic()
        if moments and due is None and len(trial.events) >= waited_for + moments[0].mark:
            due = now + moments[0].seconds
        if due is not None and now >= due:
            before = time.monotonic_ns()
            os.kill(pid, signal.SIGINT)
            trial.sent.append((before, time.monotonic_ns()))
            moments.pop(0)
            due, waited_for, last = None, len(trial.events), time.monotonic()
            continue
        end = last + PATIENCE
        if now >= end:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(1)  # it writes down its stacks
            os.kill(pid, signal.SIGKILL)
            trial.violations.append("it hangs")
            break
        ready, _, _ = select.select([pipe], [], [], min(end, due or end) - now)
        if ready:
            read = os.read(pipe, 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            trial.events += [json.loads(line) for line in lines]
    _, status = os.waitpid(pid, 0)
    trial.ended = time.monotonic_ns()
    trial.status = os.waitstatus_to_exitcode(status)
    log.seek(0)
    trial.said = log.read()
    trial.judge()


class Server:
    def __init__(self, host: str, seed: int, inside: int) -> None:
        self.host = host
        self.random = Random(f"{host}, {seed}")
        self.inside = inside
        self.usual: dict[str, tuple[int, float]] = {}  # events and seconds of an undisturbed run

    def trials(self) -> Iterator[Trial]:
        """Undisturbed ones of each kind first; then until enough were inside."""
        for name in KINDS:
            trial = Trial(self.host, name, self.random.randrange(1 << 30), [])
            yield trial
            first, *_, last = trial.times("begins") + trial.times("over")
            self.usual[name] = len(trial.events), (last - first) / 1e9
        inside = 0
        for name in cycle(KINDS):
            if inside >= self.inside:
                return
            trial = Trial(self.host, name, self.random.randrange(1 << 30), self.moments(name))
            yield trial
            inside += trial.where() == "inside"

    def moments(self, name: str) -> list[Moment]:
        events, seconds = self.usual[name]
        random = self.random
        if random.random() < 0.5:
            moments = [Moment(1, random.uniform(0, seconds))]
        else:
            moments = [Moment(random.randint(1, events), random.choice((0, 0, MS / 5, MS)))]
        if self.host != "asyncio" and random.random() < TWICE:
            moments.append(Moment(random.randrange(8), random.uniform(0, 2 * MS)))
        return moments

    def serve(self) -> tuple[Trial, int] | None:
        """Returns in a child, with its trial and its pipe; and at the end."""
        for trial in self.trials():
            with tempfile.TemporaryFile("w+") as log:
                pipe, childs_end = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.dup2(log.fileno(), 2)
                    return trial, childs_end
                os.close(childs_end)
                watch(trial, pid, pipe, log)
                os.close(pipe)
            sys.stdout.write(json.dumps(trial.report()) + "\n")
            sys.stdout.flush()
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("seed", type=int)
    parser.add_argument("inside", type=int)
    arguments = parser.parse_args()
    gc.freeze()
    child = Server(arguments.host, arguments.seed, arguments.inside).serve()
    if child is not None:
        trial, pipe = child
        run_child(trial.host, trial.kind, trial.seed, pipe)
