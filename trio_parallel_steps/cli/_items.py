"""Items that jobs are made of: files that are named, or what comes from stdin, as it is needed."""

import os
from collections.abc import AsyncGenerator, Sequence

import trio


async def items(files: Sequence[str], separator: bytes) -> AsyncGenerator[str]:
    """Those that are named, else those of stdin, which is read as far as its pipe holds."""
    for file in files:
        yield file
    rest = b""
    # A thread that still reads when all has been stopped is left behind: it holds no lock.
    while not files and (
        chunk := await trio.to_thread.run_sync(os.read, 0, 65536, abandon_on_cancel=True)
    ):
        *whole, rest = (rest + chunk).split(separator)
        for item in whole:
            yield os.fsdecode(item)
    if rest:
        yield os.fsdecode(rest)
