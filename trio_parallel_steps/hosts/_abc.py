"""What the engine asks of an event loop: `Run` once an event loop's run, `Host` once a step.

The core decides; a host runs what it is told to run and reports how it ended.  Both hosts call a
branch through `start_call`, the boundary between the engine's code and the user's.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from random import random
from threading import get_ident
from types import CodeType, CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary, ref

from .._announce import Announcer
from .._cpus import usable_cpus
from .._records import running_record, running_try
from .._util import not_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
    from types import FrameType, TracebackType

    from .._admission import Ledger
    from .._core import StepCore
    from .._foreign import SharedLedger
    from .._records import Cause, Record
    from ._calls import Call
    from ._commands import CommandGroup, CommandLine


class Event(Protocol):
    """One-shot: waiting for it is a checkpoint."""

    def set(self) -> None: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> None: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Run(Protocol):
    """One run of an event loop, and what all steps in it share."""

    announcer: Announcer
    limiters: WeakValueDictionary[int, Any]
    """Those over limiters of the user's own, by the id of what they are over (and keep alive)."""
    sampler: Any
    """What reads the pressure for the guards of all steps, while there are any; else None."""
    groups_crashes: bool
    """Whether a KeyboardInterrupt leaves a block in a group."""
    slice: float
    """Seconds of real time that may pass between two passes of the scheduler."""

    def check_thread(self) -> None:
        """RuntimeError in any thread but the event loop's."""

    def now(self) -> float: ...
    def call_at(self, when: float, call: Callable[[], object]) -> Timer: ...
    def random(self) -> float:
        """From 0 to 1."""

    def event(self) -> Event: ...
    def ledger(self, total_tokens: int | float) -> Ledger: ...
    def shared_ledger(self, limiter: Any) -> SharedLedger:
        """Over a limiter of the user's own; RuntimeError if it is not this event loop's."""

    def current_task(self) -> Hashable: ...
    def await_frames(self, task: Any) -> Iterable[tuple[FrameType, int]]:
        """Where the user's code of a suspended task stands, outermost first: frames and line
        numbers."""

    def default_limit(self) -> int: ...
    def host(self, name: str, redeliver: float) -> Host: ...
    def split_cancelled(
        self, exc: BaseException
    ) -> tuple[BaseException | None, BaseException | None]:
        """Its part that is Cancelled, and the rest."""

    async def checkpoint(self) -> None: ...
    def may_pass(self) -> bool:
        """Is the slice not over, and the task not cancelled?  Then a checkpoint may be left out."""

    async def pass_by(self) -> None:
        """Such a checkpoint, where it may not."""

    async def wait_shielded(self, event: Event) -> None:
        """Deaf to cancellations; on asyncio, one that was met is raised after it."""

    async def run_in_thread(self, sync_fn: Callable[[], Any]) -> Any: ...
    async def finish_in_thread(self, sync_fn: Callable[[], None]) -> None:
        """It is run, and waited for, deaf to cancellations; on asyncio, one that was met is raised
        after it (or by the task's next await)."""

    async def run_in_process(self, call: Call) -> Any: ...
    async def run_command(self, command: CommandLine) -> CommandGroup:
        """Until it is over, or has been ended for a cancellation."""


SLICE: Final = 0.0005  # how long a run's slice is


class BaseRun:
    """What is the same on every event loop."""

    __slots__ = ("_default_limit", "announcer", "limiters", "random", "sampler", "slice", "thread")

    def __init__(self) -> None:
        self.slice: float = SLICE
        self.announcer: Announcer = Announcer()
        self.thread: int = get_ident()
        self.limiters: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self.random: Callable[[], float] = random
        self.sampler: Any = None
        self._default_limit: int = 0

    def default_limit(self) -> int:
        if not self._default_limit:  # reading quotas takes longer than a small step
            self._default_limit = min(10, 2 * usable_cpus())
        return self._default_limit


class Host(Protocol):
    """Where one step runs."""

    async def enter(self, core: StepCore, timeout: float) -> None:
        """Open for branches, and start the step's deadline.  Not a checkpoint."""

    async def leave(
        self, exc: BaseException | None, traceback: TracebackType | None
    ) -> list[BaseException]:
        """Wait until every branch has ended and all tasks are gone.  Returns what is not the
        step's: a Cancelled from outside, what no one collects."""

    async def resume(self, record: Record, event: Event) -> None:
        """Wait for the event, deaf to cancellations (what was met is raised after it), but on trio
        not past the record's own timeout."""

    # What the core asks.

    def run(self, record: Record) -> None:
        """Start it soon, in a place of its own."""

    def stop(self, record: Record, reason: str) -> None:
        """Cancel one that runs."""

    def stop_all(self, reason: str) -> None:
        """Cancel all that runs, and the body."""

    def soon(self, call: Callable[[], None]) -> None:
        """Call it at the next checkpoint."""

    def start_beside(
        self, async_fn: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], object]:
        """Run it in a task of the step's that is no branch, once a step: it is cancelled with the
        step, or by what this returns, and the block waits for it."""

    def overtaken(self, record: Record | None) -> Cause | None:
        """What stopped the record, or the step, that the core has not been told of yet: a deadline,
        or a cancellation from outside."""

    def is_cancelled(self) -> bool:
        """Has the step's deadline passed, or has it been cancelled from outside (or by us)?"""

    def now(self) -> float: ...

    def task_of(self, record: Record) -> Any:
        """The task in which it runs."""

    def wake(self) -> None:
        """Nothing is outstanding: let the block go."""


# In a thread of `in_thread`: raises the host's own Cancelled once the caller has been told to stop.
thread_check: Final[ContextVar[Callable[[], None]]] = ContextVar("thread_check")


def start_call(record: Record) -> Awaitable[Any]:
    """Call the branch's function, in whose context this is."""
    running_record.set(ref(record))
    if record._tries is not None:
        running_try.set(record.attempts)
    async_fn = record._fn
    assert async_fn is not None
    awaitable = async_fn(*record._args)
    if type(awaitable) is not CoroutineType and not inspect.isawaitable(awaitable):
        raise TypeError(not_async(async_fn))
    return awaitable


def split(
    exc: BaseException, cancelled: type[BaseException]
) -> tuple[BaseException | None, BaseException | None]:
    """Its part that is Cancelled, and the rest: itself, if there is none, as a group that is split
    is made anew."""
    if isinstance(exc, cancelled):
        return exc, None
    if isinstance(exc, BaseExceptionGroup) and exc.subgroup(cancelled) is not None:
        return exc.split(cancelled)
    return None, exc


def first_leaf(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def await_frames(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """Of a suspended coroutine, and of what it awaits."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:  # a future, say
            return
        yield frame, frame.f_lineno
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def users_frames(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    return (place for place in await_frames(awaited) if is_users(place[0]))


# Whose frames say nothing of where a user's code stands.
LIBRARIES: Final = frozenset({__name__.partition(".")[0], "anyio", "asyncio", "trio"})


def is_users(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] not in LIBRARIES


# What each event loop says to a function of the other's.
FOREIGN: Final = {
    "trio": (
        "no running event loop",
        "trio.run received unrecognized yield message",
        "'NoneType' object has no attribute 'create_future'",
    ),
    "asyncio": (
        "must be called from async context",
        "Task got bad yield",
        "'RunContext' object has no attribute 'runner'",
    ),
}


def name_foreign(exc: Exception, record: Record, host: str, other: str) -> Exception:
    """The branch's error, or if it comes from awaiting a function of the other library's, one that
    says so."""
    if type(exc) not in (RuntimeError, TypeError, AttributeError):
        return exc  # one of the user's own
    if not str(exc).startswith(FOREIGN[host]):
        return exc
    error = RuntimeError(
        f"{record.key!r} awaited a function of {other}'s, but it is {host} that runs here"
    )
    error.__cause__ = exc
    return error


def strip(exc: BaseException, engine: frozenset[CodeType]) -> None:
    """Drop the engine's own frames: a traceback begins in the user's code, and does not keep the
    engine alive."""
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_frame.f_code in engine:
        traceback = traceback.tb_next
    exc.__traceback__ = traceback
