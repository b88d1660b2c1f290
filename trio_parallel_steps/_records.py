"""The record of one branch: what was asked for, how it stands, what became of it.

1. A branch is one object from submission to result: what users hold as `Branch` is the record.
2. It is QUEUED until its function is about to be called, then RUNNING, then ended, once.
3. A token granted before the function is called (the place to run in takes a scheduler pass to come
   up) leaves it QUEUED: told to stop in between, it is SKIPPED like any other that never ran.
4. Once ended it refers to nothing of the step: no function, no arguments, no context, no engine.
"""

from __future__ import annotations

import contextvars
import enum
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ref

from ._outcomes import BranchStatus, StepResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from ._admission import Token
    from ._core import StepCore
    from ._parking import Wait
    from ._queue import Entry
    from ._tries import Tries

QUEUED: Final = BranchStatus.QUEUED
RUNNING: Final = BranchStatus.RUNNING
SUCCEEDED: Final = BranchStatus.SUCCEEDED
FAILED: Final = BranchStatus.FAILED
TIMED_OUT: Final = BranchStatus.TIMED_OUT
CANCELLED: Final = BranchStatus.CANCELLED
BREACHED: Final = BranchStatus.BREACHED
SKIPPED: Final = BranchStatus.SKIPPED


NONE: Final[list[Any]] = []  # never written to


class Cause(enum.Enum):
    """Why a branch, or a whole step, was told to stop."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SATISFIED = "satisfied"
    POLICY = "policy"
    BODY = "body"
    DEADLINE = "deadline"
    BREACH = "breach"
    DRAIN = "drain"  # a breach that lets what runs end by itself
    OUTSIDE = "outside"
    SHED = "shed"  # to be queued again
    CRASH = "crash"

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # as BranchStatus


# The endings table: a running branch out of which only Cancelled came.  (A queued one is SKIPPED.)
STOPPED_AS: Final = {
    Cause.CANCEL: CANCELLED,
    Cause.TIMEOUT: TIMED_OUT,
    Cause.SATISFIED: CANCELLED,
    Cause.POLICY: CANCELLED,
    Cause.BODY: CANCELLED,
    Cause.DEADLINE: TIMED_OUT,
    Cause.BREACH: BREACHED,
    Cause.DRAIN: BREACHED,
    Cause.OUTSIDE: CANCELLED,
    Cause.CRASH: CANCELLED,
}


class Waker(Protocol):
    """An event, or what stands for one."""

    def set(self) -> None: ...


class Record:
    """One branch; `Branch` adds what users call."""

    __slots__ = (
        "__weakref__",
        "_added",
        "_args",
        "_cause",
        "_context",
        "_done",
        "_entry",
        "_fn",
        "_place",
        "_priority",
        "_reason",
        "_result",
        "_resumed",
        "_step",
        "_timeout",
        "_token",
        "_tries",
        "_value",
        "_waits",
        "_weight",
        "attempts",
        "completion_index",
        "ended_at",
        "key",
        "started_at",
        "status",
        "submitted_at",
    )

    def __init__(
        self,
        step: StepCore,
        key: Hashable,
        async_fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        priority: int,
        weight: int,
        timeout: float,
        context: contextvars.Context,
        now: float,
    ) -> None:
        self.key: Hashable = key
        self.status: BranchStatus = QUEUED
        self.attempts: int = 0
        self.submitted_at: float = now
        self.started_at: float | None = None
        self.ended_at: float = now
        self.completion_index: int | None = None
        self._step: StepCore | None = step
        self._fn: Callable[..., Awaitable[Any]] | None = async_fn
        self._args: tuple[Any, ...] = args
        self._priority: int = priority
        self._timeout: float = timeout
        self._context: contextvars.Context | None = context
        self._weight: int = weight  # how many tokens it takes
        self._entry: Entry | None = None  # its place in the pool's queue
        self._token: Token | None = None  # what it may run by, once granted; lent while parked
        self._waits: list[Wait] = NONE  # what its tasks are in
        self._tries: Tries | None = None  # if it may be tried again
        self._resumed: list[Waker] | None = None  # to be set once it may go on
        self._place: Any = None  # the host's own: where it runs
        self._cause: Cause | None = None  # the first request to stop it alone
        self._reason: str | None = None
        self._value: Any = None  # what it returned or raised
        self._done: list[Waker] | None = None  # to be set as it ends
        self._result: StepResult[Any] | None = None
        # What the steps layer adds to its result: the last fields of a StepResult.
        self._added: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """``str(key)``"""
        return str(self.key)

    @property
    def output(self) -> Any:
        """What it returned; None unless it SUCCEEDED."""
        return self._value if self.status is SUCCEEDED else None

    @property
    def exception(self) -> Exception | None:
        """What it raised last, or the TooSlowError of its own timeout; None if there was none."""
        return None if self.status is SUCCEEDED else self._value

    @property
    def reason(self) -> str | None:
        """Why it was stopped; None if its own code decided otherwise, or while it runs."""
        return self._reason if self.status not in (QUEUED, RUNNING, SUCCEEDED, FAILED) else None

    @property
    def result(self) -> StepResult[Any]:
        """The same object however often it is asked for."""
        if self._result is None:
            if self.status is QUEUED or self.status is RUNNING:
                raise RuntimeError(f"{self!r} has not ended: there is no result yet")
            self._result = StepResult(
                self.key,
                self.name,
                self.status,
                self.output,
                self.exception,
                self.reason,
                self.attempts,
                self.submitted_at,
                self.started_at,
                self.ended_at,
                self.completion_index,
                *self._added,
            )
        return self._result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} {self.status.value}>"


# Whose code is running: set in the branch's own copy of its context, so tasks and threads that it
# starts inherit it.  Weakly: frames of what it raises may hold a context, so no cycles.
running_record: Final[contextvars.ContextVar[ref[Record]]] = contextvars.ContextVar(
    "running_record"
)

# Which of its tries, for one that may be tried again.
running_try: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("running_try")
