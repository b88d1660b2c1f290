"""One run of a program under one schedule, and what came of it.

1. It is fresh: a trio run of its own, with a clock that starts at 0, and the global random number
   generator in the same state each time.
2. A pass is what trio runs between two looks at the clock.  The order of a pass's tasks is chosen
   one by one: which goes first, which of the others next, ...
3. It ends.  A program that hangs, or goes on for ever, is cancelled, with its shields lifted.
4. What an instrument raises trio only logs: it is kept here, and is a failure.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, final

import attrs
import trio

from . import _scheduler
from ._choices import Choices, Unplayable
from ._clock import VirtualClock
from ._faults import Fault, exposed_names

PASSES: Final = 100_000  # no small program has that many


class Hang(Exception):
    """No task can run, and no deadline is ahead; or the program goes on for ever."""


@final
@attrs.frozen(eq=False)
class Run:
    """What came of one run of a program: what a check is given."""

    exception: BaseException | None
    """what it raised"""
    cancelled: bool
    """whether it was cut short by a cancellation of the whole program"""
    fault: Fault | None
    """what was injected"""
    fault_step: int | None
    """before which step"""
    exposed: Mapping[str, Any]
    """what the program gave names, see `expose`"""
    seconds: float
    """how long it took, in virtual time"""
    schedule: str
    """for `replay`"""
    _value: Any

    @property
    def value(self) -> Any:
        """What it returned; raises what it raised; None if it was cancelled."""
        if self.exception is not None:
            raise self.exception
        return self._value


class Observation(trio.abc.Instrument):
    """Counts steps, and injects a fault before one of them; keeps what could have been injected
    where, for the search."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        session = self._session
        if session.is_open:
            try:
                session.before_step(task)
            except Exception as exc:
                session.give_up(exc)


class Session:
    """One run, while it lasts."""

    def __init__(
        self,
        async_fn: Callable[[], Awaitable[Any]],
        choices: Choices,
        faults: Sequence[Fault] = (),
        fault: tuple[int, int] | None = None,
        *,
        exactly: bool = True,
        listing: bool = False,
        tracer: "Callable[[Session, trio.lowlevel.Task], None] | None" = None,
    ) -> None:
        self.async_fn = async_fn
        self.choices = choices
        self.faults = faults
        self.planned = fault
        self.exactly = exactly  # at that step, else at the first possible one from there on
        self.steps = 0
        self.passes = 0
        self.possible: list[tuple[int, int, int]] | None = [] if listing else None
        """step, fault, how many choices among tasks had been made"""
        self.chosen_at: list[int] | None = [] if listing else None
        """for each choice, the step after it"""
        self.tracer = tracer
        self.is_open = False
        self.exposed: dict[str, Any] = {}
        self.exception: BaseException | None = None
        self.trouble: Exception | None = None
        self.value: Any = None
        self.scope = trio.CancelScope()
        self.main_task: trio.lowlevel.Task | None = None
        self._first = 0
        self._hangs = 0
        self.clock = VirtualClock(_scheduler.awaits_idle, self._hang)

    def __call__(self) -> Run:
        watched = bool(self.faults) or self.tracer is not None
        instruments = [Observation(self)] if watched else []
        before = random.getstate()
        random.setstate(RANDOM)
        try:
            with _scheduler.scheduled(self._order):
                trio.run(self._main, clock=self.clock, instruments=instruments)
        except KeyboardInterrupt as exc:  # it came too late for the program to see it
            self.exception = exc
        except trio.TrioInternalError as exc:
            if self.trouble is None:
                raise
            self.exception = exc
        finally:
            random.setstate(before)
        fault = self.choices.fault
        injected = None if fault is None else self.faults[fault[0]]
        if isinstance(self.exception, KeyboardInterrupt) and (
            injected is None or not injected.explains(self.exception)
        ):
            raise self.exception  # somebody wants us to stop
        if isinstance(self.trouble, Unplayable):
            raise self.trouble
        if self.planned is not None and fault is None and self.exactly:
            raise Unplayable(f"there is no step {self.planned[1]}")
        return Run(
            exception=self.exception if self.trouble is None else self.trouble,
            cancelled=self.scope.cancelled_caught,
            fault=injected,
            fault_step=None if fault is None else fault[1],
            exposed=self.exposed,
            seconds=self.clock.current_time(),
            schedule=str(self.choices.schedule()),
            value=self.value,
        )

    async def _main(self) -> None:
        exposed_names.set(self.exposed)
        self.main_task = trio.lowlevel.current_task()
        self._first = _scheduler.spawned(self.main_task)
        self.is_open = True
        try:
            with self.scope:
                self.value = await self.async_fn()
        except BaseException as exc:
            self.exception = exc
        finally:
            self.is_open = False

    # ------------------------------------------------------------ what trio asks

    def _order(self, batch: list[trio.lowlevel.Task]) -> None:
        if not self.is_open:
            return
        self.passes += 1
        if self.passes > PASSES:
            self._endless()
        if len(batch) > 1:
            first, spawned = self._first, _scheduler.spawned
            rest = batch[:]
            names = tuple([spawned(task) - first for task in rest])
            batch.clear()
            choices = self.choices
            try:
                while len(rest) > 1:
                    if self.chosen_at is not None:
                        self.chosen_at.append(self.steps)
                    index = choices.among(len(rest), names)
                    batch.append(rest.pop(index))
            except Unplayable as exc:
                self.give_up(exc)
            batch += rest
            batch.reverse()

    def before_step(self, task: trio.lowlevel.Task) -> None:
        if self.tracer is not None:
            self.tracer(self, task)
        step = self.steps
        if self.planned is None:
            if self.possible is not None:
                made = len(self.choices.order)
                self.possible += [
                    (step, number, made)
                    for number, fault in enumerate(self.faults)
                    if fault.is_possible(step, self.exposed)
                ]
        elif self.choices.fault is None and step >= self.planned[1]:
            number = self.planned[0]
            fault = self.faults[number]
            if fault.is_possible(step, self.exposed):
                self.choices.fault = (number, step)
                fault.inject(self.scope, self.exposed)
            elif self.exactly:
                raise Unplayable(f"{fault} is not possible before step {step}")
        self.steps += 1

    # ------------------------------------------------------------ how it is ended

    def give_up(self, trouble: Exception) -> None:
        if self.trouble is None:
            self.trouble = trouble
        self.scope.cancel()

    def _endless(self) -> None:
        if self.passes == PASSES + 1:
            self.give_up(
                Hang(f"it goes on for ever: {PASSES} passes of the scheduler\n{self._where()}")
            )
        elif self.passes > 2 * PASSES:
            raise RuntimeError("it can't be cancelled")
        elif self.passes > PASSES + 1000:
            self._unshield()

    def _hang(self) -> None:
        self._hangs += 1
        if self._hangs == 1:
            where = self._where()
            self.give_up(Hang(f"nothing can run, and no deadline is ahead\n{where}"))
        elif self._hangs == 2:
            self._unshield()
        else:
            raise RuntimeError("it can't be cancelled")

    def _unshield(self) -> None:
        for task in all_tasks():
            _scheduler.unshield(task)

    def _where(self) -> str:
        return "\n".join(f"  {self.name(task)} {position(task)}" for task in all_tasks())

    def name(self, task: trio.lowlevel.Task) -> str:
        """A number, as names may be equal, and the last part: what encloses a function says little
        here."""
        if task is self.main_task:
            return "the program"
        number = _scheduler.spawned(task) - self._first
        return f"#{number} {task.name.rpartition('.')[2]}"


RANDOM: Final = random.Random(0).getstate()


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    """The program's."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    # trio's first task holds one nursery for its own tasks, and in it another for the main task.
    system, *_ = root.child_nurseries
    mains = [nursery for nursery in root.child_nurseries if nursery is not system]
    waiting = [task for nursery in mains for task in nursery.child_tasks]
    while waiting:
        task = waiting.pop(0)
        yield task
        waiting += [
            child
            for nursery in task.child_nurseries
            for child in sorted(nursery.child_tasks, key=_scheduler.spawned)
        ]


def position(task: trio.lowlevel.Task) -> str:
    """Where its code stands: the innermost line that is the program's own."""
    found = ""
    for frame, line in task.iter_await_frames():
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("trio", "trio_parallel_steps", "outcome"):
            continue
        name = frame.f_code.co_filename.rpartition("/")[2]
        found = f"at {name}:{line} in {frame.f_code.co_name}"
    return found or "has not begun"
