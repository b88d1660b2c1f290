"""One run of a program under one schedule, and what came of it.

1. It is fresh: as in a trio run of its own, with a clock that starts at 0, and the global random
   number generator in the same state each time.
2. A pass is what trio runs between two looks at the clock.  The order of a pass's tasks is chosen
   one by one: which goes first, which of the others next, ...
3. It ends.  A program that hangs, or goes on for ever, is cancelled, with its shields lifted.
4. What an instrument raises trio only logs: it is kept here, and is a failure.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import attrs
import trio

from . import _scheduler
from ._choices import Choices, Unplayable
from ._faults import Fault, exposed_names
from ._tasks import children, position, tasks_from

if TYPE_CHECKING:
    from ._clock import VirtualClock

PASSES: Final = 100_000  # no small program has that many
HANGS: Final = 1_000  # of one that is being ended, and waits on


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
    """Tells the session before each step."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        session = self.session
        if session is not None and session.is_open:
            try:
                session.before_step(task)
            except Exception as exc:
                session.give_up(exc)


class Loops:
    """Where sessions are run: in one loop, as long as it is clean."""

    def __init__(self) -> None:
        self._random = random.getstate()
        self._loop: _scheduler.Loop | None = None
        self._observation = Observation()
        self._is_watched = False

    def run(self, session: "Session") -> Run:
        if self._loop is None or self._is_watched is not session.is_watched:
            self._end_loop()
            self._is_watched = session.is_watched
            self._loop = _scheduler.Loop([self._observation] if session.is_watched else [])
        self._observation.session = session
        try:
            return session(self._loop)
        finally:
            self._observation.session = None
            if not self._loop.is_clean:
                self._end_loop()

    def close(self) -> None:
        self._end_loop()
        random.setstate(self._random)

    def _end_loop(self) -> None:
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.close()


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
        self._clock: VirtualClock
        self._hangs = 0
        self.seconds = 0.0

    @property
    def is_watched(self) -> bool:
        """Does it need an instrument?"""
        return bool(self.faults) or self.tracer is not None

    def __call__(self, loop: _scheduler.Loop) -> Run:
        random.seed(0)
        self._clock = loop.clock
        loop.clock.on_hang = self._hang
        try:
            with _scheduler.scheduled(self._order):
                loop.run(self._main)
        except trio.TrioInternalError as exc:
            if self.trouble is None:
                raise
            self.exception = exc
        finally:
            loop.clock.on_hang = None
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
            seconds=self.seconds,
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
            self.seconds = trio.current_time()
            if _scheduler.is_interrupt_pending():  # it came too late for the program to see it
                self.exception = KeyboardInterrupt()

    # ------------------------------------------------------------ what trio asks

    def _order(self, batch: list[trio.lowlevel.Task]) -> None:
        if not self.is_open or not batch:
            return
        self._clock.has_waited = False
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
            raise RuntimeError("it can't be stopped")
        elif self.passes > PASSES + 1000:
            self._unshield()

    def _hang(self) -> None:
        self._hangs += 1
        if self._hangs == 1:
            where = self._where()
            self.give_up(Hang(f"nothing can run, and no deadline is ahead\n{where}"))
        elif self._hangs == 2:
            self._unshield()
        elif self._hangs < HANGS:
            assert self.trouble is not None
            for task in [task for task in self._tasks() if not children(task)]:
                _scheduler.force(task, self.trouble)
        else:
            raise RuntimeError("it can't be stopped")

    def _unshield(self) -> None:
        for task in self._tasks():
            _scheduler.unshield(task)

    def _tasks(self) -> Iterator[trio.lowlevel.Task]:
        assert self.main_task is not None
        return tasks_from(self.main_task)

    def _where(self) -> str:
        return "\n".join(f"  {self.name(task)} {position(task)}" for task in self._tasks())

    def name(self, task: trio.lowlevel.Task) -> str:
        """A number, as names may be equal, and the last part: what encloses a function says little
        here."""
        if task is self.main_task:
            return "the program"
        number = _scheduler.spawned(task) - self._first
        return f"#{number} {task.name.rpartition('.')[2]}"
