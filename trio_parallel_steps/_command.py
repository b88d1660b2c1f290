"""`command`: a program as a branch."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

import attrs

from ._errors import CommandFailed
from ._util import check_seconds, check_tokens, expected
from .hosts import current_run, protected
from .hosts._commands import CommandLine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POSIX: Final = os.name == "posix"


@final
@attrs.frozen(repr=False)
class CommandOutput:
    """What a command that succeeded has written."""

    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as UTF-8, with U+FFFD for what is not."""
        return self.stdout.decode(errors="replace")

    def __repr__(self) -> str:
        sizes = f"{len(self.stdout)} bytes of stdout, {len(self.stderr)} of stderr"
        return f"<{type(self).__name__}: {sizes}>"


def command(
    argv: Sequence[str] | str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    grace: float = 5.0,
    on_output: Callable[[Literal["stdout", "stderr"], bytes], object] | None = None,
    max_output_bytes: int | float = math.inf,
) -> Callable[[], Awaitable[CommandOutput]]:
    """An async function without arguments that runs a program and returns what it wrote, a
    `CommandOutput`.  A checkpoint.

    `argv` is the program and its arguments, or a str for the shell (``/bin/sh -c``).  `env` adds
    to the process's own environment; `cwd` is the folder to run in, the process's own by default.
    stdin is empty.  `on_output` is called with ``"stdout"`` or ``"stderr"`` and some bytes, as they
    come; it must be quick, and what it raises stops the command.  Of each stream the last
    `max_output_bytes` are kept in memory, by default all.

    An exit status other than 0 is a `CommandFailed` of the branch, a program that is not there an
    OSError (FileNotFoundError, say) that names it; of a shell's it is a CommandFailed with 127.

    A branch that is stopped ends the whole process group: SIGTERM, and SIGKILL `grace` seconds
    later.  It ends when the process is gone.  The group is in a session of its own, so that Ctrl-C
    in a terminal does not reach it, and a program that asks at the terminal can't.  What a program
    leaves in the background has a second to close its output, and is then ended with its group;
    what has closed it, or opens a session of its own (a daemon does both), goes on.

    It needs a POSIX system: NotImplementedError elsewhere.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> async def main():
    ...     branches = {"hello": command(["echo", "hello"]), "sum": command("echo $((1 + 2))")}
    ...     return await run_branches(branches)
    >>> {key: output.text for key, output in trio.run(main).outputs.items()}
    {'hello': 'hello\\n', 'sum': '3\\n'}
    """
    if not POSIX:
        raise NotImplementedError("command() needs a POSIX system: it ends process groups")
    words = _check_argv(argv)
    line = CommandLine(
        words,
        _check_env(env),
        _check_cwd(cwd),
        check_seconds("grace", grace),
        _check_on_output(on_output),
        check_tokens("max_output_bytes", max_output_bytes),
    )
    shown = argv if isinstance(argv, str) else shlex.join(words)

    @protected
    async def run_command() -> CommandOutput:
        return await _run(line, shown)

    # What tells it from other commands, to a journal.
    run_command.described = {"command": shown, "env": line.env, "cwd": cwd}  # type: ignore[attr-defined]
    return run_command


async def _run(line: CommandLine, shown: str) -> CommandOutput:
    if line.env is not None:
        line = attrs.evolve(line, env={**os.environ, **line.env})
    group = await current_run().run_command(line)
    try:
        if group.error is not None:
            raise group.error
        stdout, stderr = group.output("stdout"), group.output("stderr")
        if group.exit_code:
            raise CommandFailed(shown, group.exit_code, stdout, stderr)
        return CommandOutput(stdout, stderr)
    finally:
        del group  # its error's traceback keeps this frame: no cycles


# ---------------------------------------------------------------- arguments


def _check_argv(argv: Any) -> tuple[str, ...]:
    what = "a sequence of str, or a str for the shell"
    if isinstance(argv, str):
        if not argv.strip():
            raise ValueError(expected("argv", "no empty command", argv))
        return "/bin/sh", "-c", _check_text("argv", argv)
    if not isinstance(argv, Sequence) or isinstance(argv, bytes | bytearray | memoryview):
        raise TypeError(expected("argv", what, argv))
    for word in argv:
        if not isinstance(word, str):
            raise TypeError(expected("argv", what, argv))
    if not argv or not argv[0]:
        raise ValueError(expected("argv", "a program and its arguments", argv))
    return tuple(_check_text("argv", word) for word in argv)


def _check_env(env: Any) -> dict[str, str] | None:
    if env is None:
        return None
    what = "a mapping of str to str, or None"
    if not isinstance(env, Mapping):
        raise TypeError(expected("env", what, env))
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(expected("env", what, env))
        if not name or "=" in name:
            raise ValueError(expected("env", "a mapping whose names are names", name))
        _check_text("env", name + value)
    return dict(env)


def _check_cwd(cwd: Any) -> Path | str | None:
    if cwd is not None:
        if not isinstance(cwd, str | Path):
            raise TypeError(expected("cwd", "a path, or None", cwd))
        if not str(cwd):
            raise ValueError(expected("cwd", "a path, or None", cwd))
        _check_text("cwd", str(cwd))
    return cwd  # type: ignore[no-any-return]


def _check_on_output(on_output: Any) -> Any:
    if on_output is not None and (not callable(on_output) or iscoroutinefunction(on_output)):
        raise TypeError(expected("on_output", "a function of a stream's name and bytes", on_output))
    return on_output


def _check_text(name: str, text: str) -> str:
    if "\0" in text:
        raise ValueError(expected(name, "free of null characters", text))
    return text
