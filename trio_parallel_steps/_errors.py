"""The exceptions of the package.  Whatever the engine raises carries ``.result``; groups are never
flattened, and all of them pickle if their contents do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio import TooSlowError as TooSlowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._outcomes import ParallelResult


class BranchErrors(ExceptionGroup[Exception]):
    """Branch exceptions, and an exception of the block's own body beside them, even alone, as with
    a trio nursery.  ``except*`` works as with any group, and what it splits off keeps ``.result``.
    """

    result: ParallelResult[Any, Any] | None

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[Exception],
        result: ParallelResult[Any, Any] | None = None,
    ) -> BranchErrors:
        self = super().__new__(cls, message, exceptions)
        self.result = result
        return self

    def __init__(
        self,
        message: str,
        exceptions: Sequence[Exception],
        result: ParallelResult[Any, Any] | None = None,
    ) -> None:
        super().__init__(message, exceptions)

    def derive(self, excs: Sequence[Any], /) -> Any:
        """As of any exception group; keeps ``.result``."""
        return BaseBranchErrors._or_branch_errors(self.message, excs, self.result)


class BaseBranchErrors(BaseExceptionGroup[BaseException]):
    """What leaves a step beside a cancellation from outside, a KeyboardInterrupt or a SystemExit.
    Once these have been split off, what is left is a `BranchErrors`."""

    result: ParallelResult[Any, Any] | None

    def __new__(
        cls,
        message: str,
        exceptions: Sequence[BaseException],
        result: ParallelResult[Any, Any] | None = None,
    ) -> BaseBranchErrors:
        self = super().__new__(cls, message, exceptions)
        self.result = result
        return self

    def __init__(
        self,
        message: str,
        exceptions: Sequence[BaseException],
        result: ParallelResult[Any, Any] | None = None,
    ) -> None:
        super().__init__(message, exceptions)

    def derive(self, excs: Sequence[Any], /) -> Any:
        return self._or_branch_errors(self.message, excs, self.result)

    @staticmethod
    def _or_branch_errors(
        message: str, excs: Sequence[Any], result: ParallelResult[Any, Any] | None
    ) -> BranchErrors | BaseBranchErrors:
        if all(isinstance(exc, Exception) for exc in excs):
            return BranchErrors(message, excs, result)
        return BaseBranchErrors(message, excs, result)


class Breached(Exception):
    """The step was stopped as a whole.  Branch errors met while unwinding are its ``__cause__``."""

    reason: str
    result: ParallelResult[Any, Any] | None

    def __init__(self, reason: str, result: ParallelResult[Any, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


class StepTimeout(trio.TooSlowError):
    """The step's ``fail_after`` cut something short.  Branch errors met while unwinding are its
    ``__cause__``."""

    result: ParallelResult[Any, Any] | None

    def __init__(self, message: str, result: ParallelResult[Any, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result


class BranchNotDone(Exception):
    """There is no output: the branch was cancelled, breached, timed out or skipped, or a policy was
    not met."""
