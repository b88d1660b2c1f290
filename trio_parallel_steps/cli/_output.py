"""Where the output of jobs goes.

1. A job's output is written whole, when it has ended: stdout to stdout and stderr to stderr.
   With ``--stream`` lines are written as they come, each with its job's key before it.
2. Nothing of one job stands within a line of another's, or within its output as a whole.
3. Once whoever reads it has gone (``| head``), nothing more is written, and the run is told.
"""

import os
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

Stream: TypeAlias = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
COLOURS = (36, 33, 32, 35, 34, 31)  # of ANSI


def printable(text: str) -> str:
    """In one line, and with no codes that a terminal would follow."""
    return text.translate(CONTROLS)


class Sink:
    """The two streams of this process."""

    def __init__(self, reader_gone: Callable[[], object], stdout: int = 1, stderr: int = 2) -> None:
        self._reader_gone = reader_gone
        self._fds = {"stdout": stdout, "stderr": stderr}

    def write(self, stream: Stream, data: bytes | bytearray) -> None:
        """All of it, or nothing more of anything."""
        fd = self._fds.get(stream)
        if fd is None:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
        except BrokenPipeError:
            self._fds.clear()
            self._reader_gone()

    def has_colours(self, stream: Stream) -> bool:
        return not os.environ.get("NO_COLOR") and os.isatty(self._fds.get(stream, -1))


class JobOutput(Protocol):
    """That of one job; an `on_output` of `command`."""

    received: int
    """bytes of stdout so far"""

    def __call__(self, stream: Stream, chunk: bytes) -> None: ...
    def begin(self) -> None:
        """It runs, perhaps once more."""

    def finish(self, sink: Sink) -> None:
        """It has ended."""


class Whole:
    """Kept until it has ended; of a job that was run again, the last run's."""

    def __init__(self) -> None:
        self.received = 0
        self._chunks: dict[Stream, bytearray] = {}

    def begin(self) -> None:
        self.received = 0
        self._chunks = {stream: bytearray() for stream in STREAMS}

    def __call__(self, stream: Stream, chunk: bytes) -> None:
        self.received += len(chunk) if stream == "stdout" else 0
        self._chunks[stream] += chunk

    def finish(self, sink: Sink) -> None:
        for stream, chunks in self._chunks.items():
            sink.write(stream, chunks)
        self._chunks = {}


class WholeLines(Whole):
    """What is written next begins a line, even if the last one of this had no end."""

    def finish(self, sink: Sink) -> None:
        for written in self._chunks.values():
            if written and not written.endswith(b"\n"):
                written.append(ord("\n"))
        super().finish(sink)


class Lines:
    """Written line by line, with the key."""

    def __init__(self, sink: Sink, key: str, number: int) -> None:
        self.received = 0
        self._sink = sink
        self._rest = {stream: bytearray() for stream in STREAMS}
        plain = os.fsencode(f"{printable(key)} | ")
        colour = COLOURS[number % len(COLOURS)]
        coloured = b"\x1b[%dm%s\x1b[0m" % (colour, plain)
        self._prefix = {
            stream: coloured if sink.has_colours(stream) else plain for stream in STREAMS
        }

    def begin(self) -> None:
        self.finish(self._sink)
        self.received = 0

    def __call__(self, stream: Stream, chunk: bytes) -> None:
        self.received += len(chunk) if stream == "stdout" else 0
        end = chunk.rfind(b"\n")  # not sought in what is kept, which may be long
        if end >= 0:
            self._write(stream, (self._rest[stream] + chunk[:end]).split(b"\n"))
            self._rest[stream].clear()
        self._rest[stream] += chunk[end + 1 :]

    def finish(self, sink: Sink) -> None:
        for stream, rest in self._rest.items():
            self._write(stream, [rest] if rest else [])
            self._rest[stream] = bytearray()

    def _write(self, stream: Stream, lines: list[bytearray]) -> None:
        prefix = self._prefix[stream]
        self._sink.write(stream, b"".join(b"%s%s\n" % (prefix, line) for line in lines))
