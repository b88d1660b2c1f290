"""What keeps the values of a `Cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from .._announce import warn

if TYPE_CHECKING:
    from ..hosts._abc import Run


class CacheWarning(RuntimeWarning):
    """An entry of a `Cache` could not be read, or a value could not be kept.  The function has
    been called, or will be, and its caller is not disturbed."""


MISSING: Final = object()


class Store(Protocol):
    async def get(self, key: str, run: Run) -> Any:
        """The value, or MISSING.  A checkpoint."""

    async def put(self, key: str, value: Any, run: Run) -> None:
        """Never disturbs the caller, who has the value."""


def warn_of(message: str, exc: Exception | None = None) -> None:
    warn(message, exc, CacheWarning)
