"""A command's processes: what becomes of them.  The hosts start, read and await them; when to end
them is decided here.

1. The process leads a session, and so a process group, of its own.  Its stdin is empty; stdout and
   stderr are read apart, and at the same time.
2. It is over once the process has exited and its output is closed.
3. What the process has left in the background may hold its output open.  It has LINGER seconds to
   close it (bash's ``>(tee log)`` needs them), then the group is ended.
4. A group is ended by SIGTERM, and `grace` seconds later by SIGKILL; by SIGKILL at once, when the
   process has exited and its output is closed before.  After SIGKILL nobody waits for the output:
   what holds it still is in a session of its own, and that is its own affair.
5. What `on_output` raises ends the group, and is the branch's error.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from ._trio import unprotected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ._abc import Run, Timer

Stream: TypeAlias = Literal["stdout", "stderr"]

STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")
LINGER: Final = 1.0  # seconds


@attrs.frozen
class CommandLine:
    """What is to be run, and how."""

    argv: tuple[str, ...]
    env: Mapping[str, str] | None
    """all of it; None: this process's own"""
    cwd: str | Path | None
    grace: float
    on_output: Callable[[Stream, bytes], object] | None
    max_output_bytes: int | float


class CommandGroup:
    """One that runs, as its host sees it."""

    __slots__ = (
        "_chunks",
        "_command",
        "_is_ending",
        "_is_killed",
        "_now",
        "_open",
        "_pid",
        "_run",
        "_timer",
        "error",
        "exit_code",
        "over",
    )

    def __init__(self, run: Run, command: CommandLine) -> None:
        self._run = run
        self._command = command
        self._pid = 0
        self._open: set[Stream] = set(STREAMS)
        self._chunks = {stream: bytearray() for stream in STREAMS}
        self._timer: Timer | None = None
        self._is_ending = False
        self._is_killed = False
        self.exit_code: int | None = None
        self.error: Exception | None = None
        self.over = run.event()

    def __repr__(self) -> str:
        state = "running" if self.exit_code is None else f"exited with {self.exit_code}"
        return f"<{type(self).__name__} {self._pid}: {state}>"

    def output(self, stream: Stream) -> bytes:
        """What was kept of it."""
        return bytes(self._last(stream))

    # ------------------------------------------------------------ what the host reports

    def started(self, pid: int) -> None:
        self._pid = pid

    def wrote(self, stream: Stream, chunk: bytes) -> None:
        kept = self._chunks[stream]
        kept += chunk
        if len(kept) > 2 * self._command.max_output_bytes:
            self._chunks[stream] = self._last(stream)
        if self._command.on_output is not None and self.error is None:
            try:
                call(self._command.on_output, stream, chunk)
            except Exception as exc:
                self.error = exc
                self.end()

    def closed(self, stream: Stream) -> None:
        """May be told more than once."""
        self._open.discard(stream)
        self._look()

    def exited(self, exit_code: int) -> None:
        """May be told more than once."""
        self.exit_code = exit_code
        self._look()

    # ------------------------------------------------------------ what ends it

    def end(self) -> None:
        """The branch has been told to stop."""
        if not self._is_ending and not self.over.is_set():
            self._is_ending = True
            self._signal(signal.SIGTERM)
            self._drop_timer()
            grace = self._command.grace
            if grace != math.inf:
                self._timer = self._run.call_at(self._run.now() + grace, self._kill)

    def _kill(self) -> None:
        self._is_killed = True
        self._signal(signal.SIGKILL)
        self._look()

    def _look(self) -> None:
        if self.exit_code is None or self.over.is_set():
            return
        if not self._open or self._is_killed:
            if self._is_ending and not self._is_killed:
                self._signal(signal.SIGKILL)
            self._drop_timer()
            self.over.set()
        elif not self._is_ending and self._timer is None:
            self._timer = self._run.call_at(self._run.now() + LINGER, self.end)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _signal(self, number: signal.Signals) -> None:
        # The number of a group that still has members is not given to a new one.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def _last(self, stream: Stream) -> bytearray:
        kept, most = self._chunks[stream], self._command.max_output_bytes
        return kept if len(kept) <= most else kept[-int(most) :]


@unprotected
def call(on_output: Callable[[Stream, bytes], object], stream: Stream, chunk: bytes) -> None:
    on_output(stream, chunk)
