"""Worker processes under asyncio: a thread beside the loop runs trio, which kills and awaits them.

1. A branch that is cancelled waits until its worker is gone.
2. The thread starts with the first call and ends with the loop: an async generator stands for it
   there, which the loop closes with all its generators (asyncio.run has it do so).  A loop that is
   dropped without that ends it when it is collected, which its last call may delay.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import finalize

from ._asyncio_shields import outlast
from ._trio_processes import TrioThread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._calls import Call


class LoopWorkers:
    """Those of one loop."""

    __slots__ = ("__weakref__", "_presence", "_thread")

    def __init__(self) -> None:
        self._thread = TrioThread()
        self._presence = _presence(self._thread)
        with suppress(StopIteration):  # it has come to its yield: the loop knows it
            self._presence.asend(None).send(None)
        # When the interpreter ends, multiprocessing ends them.
        finalize(self, self._thread.stop).atexit = False

    async def run(self, call: Call) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def soon(settle: Callable[..., object], *args: Any) -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(settle, *args)

        scope = self._thread.start(call, future, soon)
        try:
            return await outlast(future, lambda reason: self._thread.cancel(scope))
        finally:
            del future  # its exception's traceback keeps this frame: no cycles


async def _presence(thread: TrioThread) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        thread.stop()
        await asyncio.wrap_future(thread.ended)
