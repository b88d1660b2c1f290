"""Which event loop runs here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sniffio import AsyncLibraryNotFoundError, current_async_library

from .._util import check_str, expected
from ._trio import (
    CapacityLimiter,
    current_run as _trio_run,
    protected,
    run as _trio_main,
    unprotected,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._abc import Run

__all__ = [
    "HOSTS",
    "CapacityLimiter",
    "check_host",
    "current_run",
    "loop_runner",
    "protected",
    "unprotected",
]

HOSTS: Final = ("trio", "asyncio")


def current_run(host: str | None = None) -> Run:
    """The run of the event loop that this task runs in; RuntimeError outside one.

    `host` says which, where both run in this thread and sniffio would say the other.
    """
    if host is None:
        try:
            host = current_async_library()
        except AsyncLibraryNotFoundError:
            raise RuntimeError("must be called from async context, on trio or asyncio") from None
    try:
        if host == "trio":
            return _trio_run()
        if host == "asyncio":
            from ._asyncio import current_run as asyncio_run  # loaded by those who need it

            return asyncio_run()
    except RuntimeError:
        raise RuntimeError(f"{host} does not run here") from None
    raise RuntimeError(f"neither trio nor asyncio, but {host!r}, runs here")


def check_host(host: str | None) -> str | None:
    if host is not None and check_str("host", host) not in HOSTS:
        raise ValueError(expected("host", "'trio', 'asyncio' or None", host))
    return host


def loop_runner(host: str | None) -> Callable[[Callable[[], Any]], Any]:
    """What runs an async function in an event loop of its own; RuntimeError inside one."""
    check_host(host)
    if (running := _running_library()) is not None:
        raise RuntimeError(f"{running} runs in this thread: await run_branches(...) instead")
    if host == "asyncio":
        from ._asyncio import run

        return run
    return _trio_main


def _running_library() -> str | None:
    try:
        return current_async_library()
    except AsyncLibraryNotFoundError:
        # In a callback of a loop there is no task, and sniffio sees nothing.
        asyncio = sys.modules.get("asyncio")
        return None if asyncio is None or asyncio._get_running_loop() is None else "asyncio"
