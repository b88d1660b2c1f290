"""A command's processes under asyncio: a protocol of the loop's own subprocess transport.

1. The start runs in a task of its own, which nobody cancels: asyncio's own way of cancelling one
   kills the process alone, and leaves its children.
2. A cancellation is kept while the group is ended, and raised once the transport has closed all.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ._asyncio_shields import wait_shielded
from ._commands import STREAMS, CommandGroup

if TYPE_CHECKING:
    from ._abc import Event
    from ._asyncio import AsyncioRun
    from ._commands import CommandLine


class CommandProtocol(asyncio.SubprocessProtocol):
    """Tells the group what its transport says."""

    def __init__(self, group: CommandGroup, lost: Event) -> None:
        self.group = group
        self.lost = lost
        self.transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.SubprocessTransport", transport)
        self.group.started(self.transport.get_pid())

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.group.wrote(STREAMS[fd - 1], data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.group.closed(STREAMS[fd - 1])

    def process_exited(self) -> None:
        exit_code = self.transport.get_returncode()
        assert exit_code is not None
        self.group.exited(exit_code)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def run_command(run: AsyncioRun, command: CommandLine) -> CommandGroup:
    group = CommandGroup(run, command)
    protocol = CommandProtocol(group, run.event())
    started = run.event()
    starting = run.loop.create_task(_start(run.loop, protocol, command))
    starting.add_done_callback(lambda task: started.set())
    cancelled = await _outlast(started, None)
    try:
        starting.result()  # raises what the start did
        if cancelled is None:
            try:
                await group.over.wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
        group.end()
        cancelled = await _outlast(group.over, cancelled)
        protocol.transport.close()
        cancelled = await _outlast(protocol.lost, cancelled)
        if cancelled is not None:
            raise cancelled
    finally:
        del starting, cancelled  # no cycles
    return group


async def _start(
    loop: asyncio.AbstractEventLoop, protocol: CommandProtocol, command: CommandLine
) -> None:
    try:
        await loop.subprocess_exec(
            lambda: protocol,
            *command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=command.env,
            cwd=command.cwd,
        )
    except OSError as exc:
        if exc.filename is None:
            exc.filename = _not_there(command)
        raise


def _not_there(command: CommandLine) -> str:
    """uvloop says neither what nor where."""
    cwd = command.cwd
    return command.argv[0] if cwd is None or Path(cwd).is_dir() else str(cwd)


async def _outlast(
    event: Event, cancelled: asyncio.CancelledError | None
) -> asyncio.CancelledError | None:
    """Wait for it.  The first cancellation, if one was met."""
    try:
        await wait_shielded(event)
    except asyncio.CancelledError as exc:
        return cancelled or exc
    return cancelled
