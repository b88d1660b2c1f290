"""What became of the branches of a step, in words and values.

1. One branch, one ending; a key is in the result of its step exactly once.
2. A result is complete and immutable, iterates in the order of submission, and pickles if its
   contents do.
3. A ParallelResult may hold the live handles of ended branches in place of their StepResults: they
   turn into one when somebody looks (a million branches cost a million results only if read).
"""

import enum
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, final

import attrs

from ._errors import BranchErrors, BranchNotDone

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@final
class BranchStatus(enum.Enum):
    """How a branch stands.  The first request to stop is the cause; the branch's own code decides
    the ending: it returned, it raised an Exception, or only Cancelled came out, and then the cause
    gives the status."""

    QUEUED = "queued"
    """submitted, not admitted yet"""
    RUNNING = "running"
    """admitted"""
    SUCCEEDED = "succeeded"
    """returned, even if it had been told to stop"""
    FAILED = "failed"
    """raised an Exception of its own, even if it had been told to stop"""
    TIMED_OUT = "timed_out"
    """stopped by its own timeout or by the step's ``fail_after`` / ``move_on_after``"""
    CANCELLED = "cancelled"
    """stopped by ``cancel()``, a cancel rule, the policy, a failing body or from outside"""
    BREACHED = "breached"
    """stopped by a breach of the step"""
    SKIPPED = "skipped"
    """stopped before its function was first called; ``reason`` says why"""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # members are singletons; Enum's own is a call in Python


SAID = {
    BranchStatus.FAILED: "failed",
    BranchStatus.TIMED_OUT: "timed out",
    BranchStatus.CANCELLED: "was cancelled",
    BranchStatus.BREACHED: "was breached",
    BranchStatus.SKIPPED: "never ran",
}


@final
@attrs.frozen(eq=False)
class StepResult(Generic[T_co]):
    """What became of one branch.  Compared by identity.  Pickles if its contents do."""

    key: Hashable
    name: str
    """``str(key)``"""
    status: BranchStatus
    output: T_co | None
    """what the branch returned; None unless SUCCEEDED"""
    exception: Exception | None
    """the branch's own error (for its own timeout, a `trio.TooSlowError`); never Cancelled,
    KeyboardInterrupt or SystemExit"""
    reason: str | None
    """why it was cancelled, breached, timed out or skipped"""
    attempts: int
    """0 if it was never admitted"""
    submitted_at: float
    started_at: float | None
    """the first admission; None if it was never admitted"""
    ended_at: float
    completion_index: int | None
    """0 for the first branch of the step to end; None if skipped"""
    from_cache: bool = False
    """whether its output was kept of an earlier call or run: in a cache, or in a journal"""
    branches: "ParallelResult[Any, Any] | None" = None
    """of a parallel step: what became of its branches"""
    steps: "tuple[StepResult[Any], ...]" = ()
    """of a pipeline: what became of its steps"""

    @property
    def success(self) -> bool:
        """Whether it SUCCEEDED."""
        return self.status is BranchStatus.SUCCEEDED

    @property
    def feedback(self) -> str | None:
        """One human sentence; None on success."""
        if self.success:
            return None
        was_stopped = self.status in (BranchStatus.CANCELLED, BranchStatus.BREACHED)
        why = self.reason if self.exception is None or was_stopped else said(self.exception)
        return f"{self.name!r} {SAID[self.status]}: {why}"

    @property
    def wait_time(self) -> float:
        """Seconds queued before the first admission; if skipped, until it ended."""
        return (self.ended_at if self.started_at is None else self.started_at) - self.submitted_at

    @property
    def duration(self) -> float:
        """Seconds from the first admission to the end; 0.0 if skipped."""
        return 0.0 if self.started_at is None else self.ended_at - self.started_at

    def unwrap(self) -> T_co:
        """The output, or raises: `exception` itself, else `BranchNotDone` naming status and
        reason."""
        if self.success:
            return cast("T_co", self.output)
        if self.exception is not None:
            raise self.exception
        raise BranchNotDone(self.feedback)


def said(exception: BaseException) -> str:
    """An exception in half a line, as a traceback's last line has it."""
    try:
        text = str(exception)
    except Exception:  # the user's own: as a traceback has it
        text = "<exception str() failed>"
    return f"{type(exception).__name__}: {text}" if text else type(exception).__name__


class Ended(Protocol[T_co]):
    """What a `ParallelResult` needs of a branch: a StepResult's fields, or its live handle's."""

    @property
    def key(self) -> Hashable: ...
    @property
    def completion_index(self) -> int | None: ...
    @property
    def status(self) -> BranchStatus: ...
    @property
    def output(self) -> T_co | None: ...
    @property
    def exception(self) -> Exception | None: ...


@final
@attrs.frozen(eq=False, repr=False, slots=True)
class ParallelResult(Mapping[K, StepResult[T]]):
    """What became of all branches of a step: a mapping from key to `StepResult`, immutable, in the
    order in which they were submitted, always the same.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> async def double(x): return 2 * x
    >>> async def main():
    ...     return await run_branches({"a": lambda: double(1), "b": lambda: double(2)}, 2)
    >>> result = trio.run(main)
    >>> result.outputs
    {'a': 2, 'b': 4}
    >>> result["b"].status
    <BranchStatus.SUCCEEDED: 'succeeded'>
    """

    _branches: Mapping[K, Ended[T]]
    _endings: Iterable[Ended[T]]
    name: str
    """the step's"""
    success: bool
    """True if the step did what its policy asks.  Branches cancelled on purpose do not count
    against it; a breach, a step deadline, a failing body or a cancellation from outside does."""
    stop_reason: str | None
    """why the step ended early; None if it ran to its end"""
    peak_in_flight: int
    """the most branches that ran at once"""
    opened_at: float
    """on the host's clock"""
    opened_at_unix: float
    """the same instant in seconds since 1970"""

    def __getitem__(self, key: K) -> StepResult[T]:
        branch: Any = self._branches[key]
        return cast("StepResult[T]", branch if type(branch) is StepResult else branch.result)

    def __iter__(self) -> Iterator[K]:
        return iter(self._branches)

    def __len__(self) -> int:
        return len(self._branches)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def completion_order(self) -> tuple[K, ...]:
        """Keys of the branches that ran, in the order in which they ended."""
        return tuple(
            cast("K", branch.key) for branch in self._endings if branch.completion_index is not None
        )

    @property
    def outputs(self) -> dict[K, T]:
        """Outputs of the branches that succeeded, in submission order."""
        return {
            key: cast("T", branch.output)
            for key, branch in self._branches.items()
            if branch.status is BranchStatus.SUCCEEDED
        }

    @property
    def errors(self) -> dict[K, Exception]:
        """Exceptions of the branches that have one, in submission order."""
        return {
            key: branch.exception
            for key, branch in self._branches.items()
            if branch.exception is not None
        }

    @property
    def feedback(self) -> str | None:
        """One sentence naming every branch that did not succeed; None if all did."""
        sentences = [result.feedback for result in self.values() if not result.success]
        if not sentences:
            return None
        told = "; ".join(cast("list[str]", sentences))
        return f"{len(sentences)} of {len(self)} branches did not succeed: {told}"

    def with_status(self, *statuses: BranchStatus) -> list[K]:
        """Keys of the branches that ended so, in submission order."""
        return [key for key, branch in self._branches.items() if branch.status in statuses]

    def raise_for_errors(self) -> None:
        """Raise `BranchErrors` of all branch exceptions, if there are any."""
        errors = list(self.errors.values())
        if errors:
            raise BranchErrors(f"{len(errors)} branches of {self.name!r} failed", errors, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data: times relative to the step's start and one wall-clock stamp,
        statuses, feedback; outputs left out."""

        def since(instant: float | None) -> float | None:
            return None if instant is None else instant - self.opened_at

        stamp = datetime.fromtimestamp(self.opened_at_unix, UTC)
        return {
            "name": self.name,
            "success": self.success,
            "stop_reason": self.stop_reason,
            "feedback": self.feedback,
            "peak_in_flight": self.peak_in_flight,
            "opened_at": stamp.isoformat(),
            "completion_order": [str(key) for key in self.completion_order],
            "branches": [
                {
                    "name": result.name,
                    "status": result.status.value,
                    "reason": result.reason,
                    "exception": None if result.exception is None else said(result.exception),
                    "feedback": result.feedback,
                    "attempts": result.attempts,
                    "submitted_at": since(result.submitted_at),
                    "started_at": since(result.started_at),
                    "ended_at": since(result.ended_at),
                    "completion_index": result.completion_index,
                    "from_cache": result.from_cache,
                }
                for result in self.values()
            ],
        }

    def __repr__(self) -> str:
        succeeded = sum(b.status is BranchStatus.SUCCEEDED for b in self._branches.values())
        return f"<ParallelResult of {self.name!r}: {succeeded} of {len(self)} succeeded>"

    def __reduce__(self) -> tuple[Any, ...]:
        results = dict(self)
        ran = tuple(results[key] for key in self.completion_order)
        rest = (self.name, self.success, self.stop_reason, self.peak_in_flight)
        return ParallelResult, (results, ran, *rest, self.opened_at, self.opened_at_unix)
