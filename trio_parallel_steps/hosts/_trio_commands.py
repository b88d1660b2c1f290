"""A command's processes under trio.

Trio's reads and waits lose nothing when they are cancelled: they are begun anew, shielded, until
the group has been ended.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import trio

from ._commands import STREAMS, CommandGroup

if TYPE_CHECKING:
    from ._abc import Run
    from ._commands import CommandLine, Stream


async def run_command(run: Run, command: CommandLine) -> CommandGroup:
    group = CommandGroup(run, command)
    # Cancelled comes out of it before there is a process, or not at all.
    process = await trio.lowlevel.open_process(
        command.argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=command.env,
        cwd=command.cwd,
    )
    group.started(process.pid)
    try:
        await _attend(process, group)
    finally:
        with trio.CancelScope(shield=True):
            if not group.over.is_set():
                group.end()
                await _attend(process, group)
            for stream in STREAMS:
                await _pipe(process, stream).aclose()
    return group


async def _attend(process: trio.Process, group: CommandGroup) -> None:
    """Until it is over."""
    async with trio.open_nursery(strict_exception_groups=True) as nursery:
        for stream in STREAMS:
            nursery.start_soon(_read, process, group, stream)
        nursery.start_soon(_wait, process, group)
        await group.over.wait()
        nursery.cancel_scope.cancel()


async def _read(process: trio.Process, group: CommandGroup, stream: Stream) -> None:
    async for chunk in _pipe(process, stream):
        group.wrote(stream, bytes(chunk))
    group.closed(stream)


async def _wait(process: trio.Process, group: CommandGroup) -> None:
    group.exited(await process.wait())


def _pipe(process: trio.Process, stream: Stream) -> trio.abc.ReceiveStream:
    pipe = process.stdout if stream == "stdout" else process.stderr
    assert pipe is not None
    return pipe
