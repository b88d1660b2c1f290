"""The exceptions of the package.  Whatever the engine raises carries ``.result``; groups are never
flattened, and all of them pickle if their contents do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import trio
from trio import TooSlowError as TooSlowError

from ._util import check_seconds, signal_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from ._outcomes import ParallelResult
    from ._pipeline import PipelineResult

SHOWN: Final = 100  # characters of a command in the text of its error


class _Group:
    """An exception group with the result of its step, which whatever is split off keeps."""

    message: str
    result: ParallelResult[Any, Any] | None

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[BaseException],
        result: ParallelResult[Any, Any] | None = None,
    ) -> Self:
        self = super().__new__(cls, message, exceptions)  # type: ignore[call-arg]
        self.result = result
        return self

    def __init__(
        self,
        message: str,
        exceptions: Sequence[BaseException],
        result: ParallelResult[Any, Any] | None = None,
    ) -> None:
        super().__init__(message, exceptions)  # type: ignore[call-arg]

    def derive(self, excs: Sequence[Any], /) -> Any:
        """As of any exception group; keeps ``.result``."""
        all_errors = all(isinstance(exc, Exception) for exc in excs)
        return (BranchErrors if all_errors else BaseBranchErrors)(self.message, excs, self.result)


class BranchErrors(_Group, ExceptionGroup[Exception]):
    """Branch exceptions, and an exception of the block's own body beside them, even alone, as with
    a trio nursery.  ``except*`` works as with any group, and what it splits off keeps ``.result``.
    """


class BaseBranchErrors(_Group, BaseExceptionGroup[BaseException]):
    """What leaves a step beside a cancellation from outside, a KeyboardInterrupt or a SystemExit.
    Once these have been split off, what is left is a `BranchErrors`."""


class Breached(Exception):
    """The step was stopped as a whole.  Branch errors met while unwinding are its ``__cause__``."""

    reason: str
    result: ParallelResult[Any, Any] | PipelineResult | None

    def __init__(
        self, reason: str, result: ParallelResult[Any, Any] | PipelineResult | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


class BudgetExceeded(Breached):
    """A request would have passed a limit of a `Budget`.  Raised at the refused call; the block of
    each step that it breached raises one equal in its fields, with the ``.result``.

    ``str()`` and ``reason`` are one sentence.
    """

    __slots__ = ("_asked",)

    resource: str
    """the unit"""
    limit: float
    used: float
    """settled + still reserved, without the refused request"""
    requested: float

    def __init__(
        self,
        resource: str,
        limit: float,
        used: float,
        requested: float,
        result: ParallelResult[Any, Any] | PipelineResult | None = None,
    ) -> None:
        super().__init__(
            f"budget exceeded: {requested} {resource} requested, {used} of {limit} used", result
        )
        self.resource = resource
        self.limit = limit
        self.used = used
        self.requested = requested
        # The books that were asked, up to the one that refused; not known of a copy.
        self._asked: tuple[object, ...] = ()

    def again(self, result: ParallelResult[Any, Any] | PipelineResult | None) -> BudgetExceeded:
        """One equal in its fields, to be raised elsewhere."""
        return BudgetExceeded(self.resource, self.limit, self.used, self.requested, result)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.resource, self.limit, self.used, self.requested, self.result)
        return type(self), fields, self.__dict__


class StepTimeout(trio.TooSlowError):
    """The step's ``fail_after`` cut something short.  Branch errors met while unwinding are its
    ``__cause__``."""

    result: ParallelResult[Any, Any] | None

    def __init__(self, message: str, result: ParallelResult[Any, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result


class CommandFailed(Exception):
    """A command branch ended with a non-zero exit status.

    ``str()`` names the command, the exit code or the signal, and the last line of stderr.
    """

    command: str
    """as a shell has it"""
    exit_code: int
    """negative: killed by that signal, as in subprocess"""
    stdout: bytes
    stderr: bytes

    def __init__(
        self, command: str, exit_code: int, stdout: bytes = b"", stderr: bytes = b""
    ) -> None:
        super().__init__(command, exit_code, stdout, stderr)
        self.command = command
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        first, *more = self.command.strip().splitlines() or [""]
        shown = first[:SHOWN] + ("..." if more or len(first) > SHOWN else "")
        said = self.stderr.decode(errors="replace").strip().splitlines()
        code = self.exit_code
        ending = f"exited with {code}" if code >= 0 else f"was killed by {signal_name(-code)}"
        return f"`{shown}` {ending}" + (f": {said[-1]}" if said else "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


class Backpressure(Exception):
    """Raise it in a branch (or map 429 and 503 to it) to say 'overloaded'.

    Under a `Retry` the branch is queued again, after `retry_after` seconds if that is given.
    """

    retry_after: float | None

    def __init__(self, message: str = "backpressure", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            check_seconds("retry_after", retry_after)
        self.retry_after = retry_after


class ConfigError(ValueError):
    """What is wrong with a pipeline file, a line for each fault: the file, the path to the key,
    what was expected, what was given."""

    file: str
    """as it was named; empty where no file is to blame"""
    faults: tuple[str, ...]

    def __init__(self, file: str, faults: Iterable[str]) -> None:
        self.file = file
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{file}: {fault}" if file else fault for fault in self.faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.faults)


class JournalError(ValueError):
    """The file can't be the journal of this run: it is another pipeline's or another version's, in
    use by another run, no journal at all, or it can't be written.  The text says which, and what to
    do."""


class BranchNotDone(Exception):
    """There is no output: the branch was cancelled, breached, timed out or skipped, or a policy was
    not met."""


class MergeConflict(Exception):
    """Two branches of a step changed one value of the context in different ways.

    >>> str(MergeConflict(("totals", "usd"), ("a", "b")))
    "branches 'a' and 'b' changed context['totals']['usd'] in different ways"
    """

    path: tuple[Hashable, ...]
    """the keys, or names of fields, that lead to the value"""
    branches: tuple[str, str]
    """the names of the two"""

    def __init__(self, path: tuple[Hashable, ...], branches: tuple[str, str]) -> None:
        super().__init__(path, branches)
        self.path = path
        self.branches = branches

    def __str__(self) -> str:
        first, second = self.branches
        return f"branches {first!r} and {second!r} changed {path_of(self.path)} in different ways"


def path_of(path: tuple[Hashable, ...]) -> str:
    return "".join(["context", *(f"[{key!r}]" for key in path)])
