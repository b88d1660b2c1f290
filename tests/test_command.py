"""command: a program as a branch, whose process group ends when its branch is told to.

Processes are real: their output says when, never sleeps.  Time that passes is jumped over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from helpers import CANCELLED, SUCCEEDED, TIMED_OUT
from jumps import EVERY_HOST, Jump, Run, garbage, on_asyncio, on_trio, on_uvloop
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    CommandFailed,
    CommandOutput,
    Retry,
    command,
    in_thread,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.hosts._commands import STREAMS, CommandGroup, CommandLine

ALL_LOOPS = pytest.mark.parametrize("run", [on_trio, on_asyncio, on_uvloop])


class Heard:
    """An `on_output` that says when a word has come; made inside a run."""

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.all = b""
        self.event = current_run().event()

    def __call__(self, stream: str, chunk: bytes) -> None:
        self.all += chunk
        if self.word in self.all:
            self.event.set()

    async def wait(self) -> None:
        await self.event.wait()

    def pids(self) -> list[int]:
        return [int(word) for word in self.all.split() if word.isdigit()]


def is_running(pid: int) -> bool:
    """A zombie is nobody's business here: not every first process of a container reaps."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def open_files() -> set[str]:
    return {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}


async def wait_until_dead(pid: int) -> None:
    """It has been told to end, and may take a moment."""

    def wait() -> None:
        with suppress(psutil.NoSuchProcess):
            fd = os.pidfd_open(pid)
            try:
                select.select([fd], [], [])
            finally:
                os.close(fd)

    with suppress(ProcessLookupError):
        await in_thread(wait)()


async def some_turns() -> None:
    await in_thread(lambda: None)()


async def until(holds: Callable[[CommandGroup], bool]) -> None:
    """Of the one that runs."""
    groups = [each for each in gc.get_objects() if isinstance(each, CommandGroup)]
    (group,) = (group for group in groups if group._pid and not group.over.is_set())
    del groups
    while not holds(group):
        await some_turns()


# ---------------------------------------------------------------- what it gives


@ALL_LOOPS
def test_it_gives_what_was_written_to_each_stream(run: Run) -> None:
    async def main(jump: Jump) -> Any:
        branches = {
            "argv": command(["printf", "%s|", "a b", "$HOME", ""]),
            "shell": command("printf out; printf err >&2"),
        }
        return (await run_branches(branches)).outputs

    outputs = run(main)
    assert outputs == {
        "argv": CommandOutput(b"a b|$HOME||", b""),
        "shell": CommandOutput(b"out", b"err"),
    }
    assert repr(outputs["shell"]) == "<CommandOutput: 3 bytes of stdout, 3 of stderr>"


def test_text_is_stdout_as_utf_8() -> None:
    assert (
        CommandOutput("häuser".encode() + b"\xff\n", b"").text
        == "häuser\N{REPLACEMENT CHARACTER}\n"
    )


@EVERY_HOST
def test_env_adds_to_the_processs_own_as_it_is_when_the_command_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    print_both = command('printf "$OURS $MORE"', env={"MORE": "more"})
    monkeypatch.setenv("OURS", "ours")
    monkeypatch.setenv("MORE", "less")

    async def main(jump: Jump) -> str:
        return (await print_both()).text

    assert run(main) == "ours more"


@EVERY_HOST
@pytest.mark.parametrize("kind", [str, Path])
def test_cwd_is_where_it_runs(run: Run, kind: Callable[[Any], Any], tmp_path: Path) -> None:
    async def main(jump: Jump) -> str:
        return (await command(["pwd", "-P"], cwd=kind(tmp_path))()).text

    assert run(main) == f"{tmp_path.resolve()}\n"


@EVERY_HOST
def test_stdin_is_empty(run: Run) -> None:
    async def main(jump: Jump) -> bytes:
        return (await command(["cat"])()).stdout

    assert run(main) == b""


@ALL_LOOPS
def test_both_streams_are_drained_at_the_same_time(run: Run) -> None:
    """More than pipes hold, on either one while the other is full."""
    big = 300_000
    script = f"head -c {big} /dev/zero >&2; head -c {big} /dev/zero; head -c {big} /dev/zero >&2"

    async def main(jump: Jump) -> CommandOutput:
        return await command(script)()

    output = run(main)
    assert (len(output.stdout), len(output.stderr)) == (big, 2 * big)


@EVERY_HOST
def test_output_is_seen_as_it_comes(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")

    async def main(jump: Jump) -> list[tuple[str, bytes]]:
        seen: list[tuple[str, bytes]] = []
        heard = Heard(b"first")

        def on_output(stream: str, chunk: bytes) -> None:
            seen.append((stream, chunk))
            heard(stream, chunk)

        async with open_branch_nursery() as nursery:
            branch = nursery.start_soon(
                "a",
                command(
                    "printf first; read go < go; printf last >&2", cwd=tmp_path, on_output=on_output
                ),
            )
            await heard.wait()
            assert seen == [("stdout", b"first")]
            await in_thread((tmp_path / "go").write_text)("go\n")
        assert (await branch.wait()).output == CommandOutput(b"first", b"last")
        return seen

    assert run(main) == [("stdout", b"first"), ("stderr", b"last")]


@EVERY_HOST
def test_what_on_output_raises_ends_the_group_and_is_the_branchs_error(run: Run) -> None:
    async def main(jump: Jump) -> Any:
        error = ValueError("enough")
        calls = 0

        def on_output(stream: str, chunk: bytes) -> None:
            nonlocal calls
            calls += 1
            raise error

        forever = command(["cat", "/dev/zero"], on_output=on_output, max_output_bytes=1)
        with pytest.raises(BranchErrors) as caught:
            await run_branches({"a": forever})
        assert caught.value.exceptions == (error,)
        assert calls == 1
        assert not psutil.Process().children()

    run(main)


@EVERY_HOST
def test_the_last_bytes_are_kept_of_each_stream(run: Run) -> None:
    async def main(jump: Jump) -> CommandOutput:
        script = "seq 100000; echo mistake >&2"
        return await command(script, max_output_bytes=12)()

    assert run(main) == CommandOutput(b"99999\n100000\n"[-12:], b"mistake\n")


def test_no_more_is_held_meanwhile_and_a_group_says_what_it_is() -> None:
    async def main(jump: Jump) -> int:
        line = CommandLine(("x",), None, None, 5.0, None, 10)
        group = CommandGroup(current_run(), line)
        for _ in range(1000):
            group.wrote("stdout", b"12345")
        assert group.output("stdout") == b"1234512345"
        assert repr(group) == "<CommandGroup 0: running>"
        group.exited(3)
        assert repr(group) == "<CommandGroup 0: exited with 3>"
        for stream in STREAMS:
            group.closed(stream)
        assert group.over.is_set()
        return len(group._chunks["stdout"])

    assert on_trio(main) <= 2 * 10


# ---------------------------------------------------------------- how it fails


@ALL_LOOPS
def test_a_non_zero_exit_is_an_error(run: Run) -> None:
    async def main(jump: Jump) -> Any:
        result = await run_branches(
            {
                "code": command("echo out; echo so; echo 'it is' >&2; exit 3"),
                "signal": command("kill -9 $$"),
                "argv": command(["sh", "-c", "exit 1"]),
            },
            policy=COLLECT,
        )
        return result.errors

    errors = run(main)
    code = errors["code"]
    assert isinstance(code, CommandFailed)
    assert (code.exit_code, code.stdout, code.stderr) == (3, b"out\nso\n", b"it is\n")
    assert code.command == "echo out; echo so; echo 'it is' >&2; exit 3"
    assert str(code) == "`echo out; echo so; echo 'it is' >&2; exit 3` exited with 3: it is"
    assert errors["signal"].exit_code == -9
    assert str(errors["signal"]) == "`kill -9 $$` was killed by SIGKILL"
    assert str(errors["argv"]) == "`sh -c 'exit 1'` exited with 1"


def test_its_text_is_one_line() -> None:
    assert str(CommandFailed("make\nmake test", 2, b"", b"one\ntwo\n\n")) == (
        "`make...` exited with 2: two"
    )
    assert str(CommandFailed("x" * 500, -9)) == f"`{'x' * 100}...` was killed by SIGKILL"
    assert str(CommandFailed("x", -99)) == "`x` was killed by signal 99"
    assert repr(CommandFailed("x", 1)) == "<CommandFailed: `x` exited with 1>"


def test_it_pickles() -> None:
    error = CommandFailed("make", 2, b"out", b"err")
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@ALL_LOOPS
def test_a_program_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    async def main(jump: Jump) -> Any:
        missing = tmp_path / "missing"
        branches = {
            "argv": command(["no-such-program", "x"]),
            "cwd": command(["true"], cwd=missing),
            "shell": command("no-such-program"),
        }
        return (await run_branches(branches, policy=COLLECT)).errors

    errors = run(main)
    assert type(errors["argv"]) is FileNotFoundError
    assert "no-such-program" in str(errors["argv"])
    assert type(errors["cwd"]) is FileNotFoundError
    assert "missing" in str(errors["cwd"])
    assert errors["shell"].exit_code == 127
    assert "no-such-program" in str(errors["shell"])


@EVERY_HOST
def test_it_can_be_tried_again(run: Run, tmp_path: Path) -> None:
    flaky = command("test -e here || { touch here; exit 1; }", cwd=tmp_path)

    async def main(jump: Jump) -> Any:
        async with open_branch_nursery() as nursery:
            retry = Retry(on=CommandFailed, wait_initial=0.0, wait_jitter=0.0)
            nursery.start_soon("flaky", flaky, retry=retry)
        return nursery.result["flaky"]

    result = run(main)
    assert (result.status, result.attempts) == (SUCCEEDED, 2)


# ---------------------------------------------------------------- how it is ended

# Each says its process ids, and then that it is ready.
POLITE = 'sleep 60 & trap "wait; echo bye; exit 0" TERM; echo $! $$ ready; wait'
DEAF = 'trap "" TERM; sleep 60 & echo $! $$ ready; wait'


@ALL_LOOPS
def test_a_stopped_branch_ends_the_group_and_waits_for_it(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"ready")
        async with open_branch_nursery() as nursery:
            branch = nursery.start_soon("a", command(POLITE, on_output=heard))
            await heard.wait()
            branch.cancel("please")
        assert nursery.result["a"].status is CANCELLED
        assert heard.all.endswith(b"bye\n")  # SIGTERM, and the output of its cleanup
        assert not any(map(is_running, heard.pids()))

    run(main)


@EVERY_HOST
def test_a_group_that_is_deaf_to_sigterm_is_killed_after_grace(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"ready")
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon("a", command(DEAF, on_output=heard, grace=100.0))
            await heard.wait()
            branch.cancel()
            await until(lambda group: group._is_ending)
            jump(99.0)
            await some_turns()
            assert all(map(is_running, heard.pids()))
            jump(2.0)
        assert nursery.result["a"].status is CANCELLED
        for pid in heard.pids():
            await wait_until_dead(pid)

    run(main)


@ALL_LOOPS
def test_grace_may_be_none_at_all(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"ready")
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon("a", command(DEAF, on_output=heard, grace=0))
            await heard.wait()
            branch.cancel()
        for pid in heard.pids():
            await wait_until_dead(pid)

    run(main)


@EVERY_HOST
def test_grace_may_be_for_ever(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")

    async def main(jump: Jump) -> Any:
        heard = Heard(b"ready")
        script = 'trap "" TERM; echo ready; read go < go'
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon(
                "a", command(script, cwd=tmp_path, on_output=heard, grace=float("inf"))
            )
            await heard.wait()
            branch.cancel()
            await until(lambda group: group._is_ending)
            jump(1e6)
            await some_turns()
            await in_thread((tmp_path / "go").write_text)("go\n")
        return nursery.result["a"].status

    assert run(main) is CANCELLED


@EVERY_HOST
def test_its_timeout_ends_it(run: Run) -> None:
    async def main(jump: Jump) -> Any:
        heard = Heard(b"ready")
        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon("a", command(POLITE, on_output=heard), timeout=10.0)
            await heard.wait()
            jump(11.0)
        assert not any(map(is_running, heard.pids()))
        return nursery.result["a"].status

    assert run(main) is TIMED_OUT


@EVERY_HOST
def test_what_is_deaf_and_has_closed_its_output_is_killed_with_its_leader(
    run: Run, tmp_path: Path
) -> None:
    deaf = 'trap "" TERM; exec >&- 2>&-; echo > go; exec sleep 60'
    script = f"({deaf}) & echo $!; read go < go; echo ready; wait"

    async def main(jump: Jump) -> None:
        heard = Heard(b"ready")
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon("a", command(script, on_output=heard, cwd=tmp_path))
            await heard.wait()
            branch.cancel()
        (pid,) = heard.pids()
        await wait_until_dead(pid)

    os.mkfifo(tmp_path / "go")
    run(main)


@EVERY_HOST
def test_what_holds_the_output_open_is_ended_a_second_later(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"\n")
        async with open_branch_nursery() as nursery:
            branch = nursery.start_soon("a", command("sleep 60 & echo $!", on_output=heard))
            await heard.wait()
            (pid,) = heard.pids()
            await until(lambda group: group.exit_code is not None)
            jump(0.9)
            await some_turns()
            assert is_running(pid)
            jump(0.2)
        assert (await branch.wait()).success
        await wait_until_dead(pid)

    run(main)


@EVERY_HOST
def test_what_holds_the_output_open_may_still_write_a_last_word(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")

    async def main(jump: Jump) -> bytes:
        heard = Heard(b"first")
        async with open_branch_nursery() as nursery:
            branch = nursery.start_soon(
                "a",
                command("(read go < go; echo last) & echo first", cwd=tmp_path, on_output=heard),
            )
            await heard.wait()
            await until(lambda group: group.exit_code is not None)
            await in_thread((tmp_path / "go").write_text)("go\n")
        output = (await branch.wait()).unwrap()
        return output.stdout

    assert run(main) == b"first\nlast\n"


@EVERY_HOST
def test_a_daemon_that_holds_the_output_open_is_let_go(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"\n")
        async with open_branch_nursery() as nursery:
            daemon = command("setsid sh -c 'echo $$; exec sleep 60' &", on_output=heard)
            branch = nursery.start_soon("a", daemon)
            await heard.wait()
            (pid,) = heard.pids()
            await until(lambda group: group.exit_code is not None)
            jump(1.1)
            await until(lambda group: group._is_ending)
            jump(5.1)
        assert (await branch.wait()).success
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
        await wait_until_dead(pid)

    run(main)


@EVERY_HOST
def test_a_daemon_that_has_closed_its_output_is_its_own_affair(run: Run) -> None:
    async def main(jump: Jump) -> None:
        output = await command("sleep 60 >/dev/null 2>&1 & echo $!")()
        pid = int(output.stdout)
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
        await wait_until_dead(pid)

    run(main)


@EVERY_HOST
@pytest.mark.parametrize("turns", range(12))
def test_nothing_is_left_wherever_it_is_cancelled(run: Run, turns: int) -> None:
    """Before it is started, while it is, before the first read, and on."""

    async def main(jump: Jump) -> int:
        before = open_files()
        heard = Heard(b"\n")
        async with open_branch_nursery(policy=COLLECT) as nursery:
            branch = nursery.start_soon("a", command("echo $$; exec sleep 60", on_output=heard))
            for _ in range(turns):
                await current_run().checkpoint()
            branch.cancel()
        assert nursery.result["a"].status.value in ("cancelled", "skipped")
        assert not any(map(is_running, heard.pids()))
        await current_run().checkpoint()
        left = {name for name in open_files() - before if name.startswith("pipe:")}
        assert not left
        return len(psutil.Process().children())

    assert run(main) == 0
    gc.collect()  # a transport that was not closed warns


def test_pipes_are_closed_whoever_keeps_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[trio.Process] = []
    open_process = trio.lowlevel.open_process

    async def open_and_keep(*args: Any, **kwargs: Any) -> trio.Process:
        started.append(await open_process(*args, **kwargs))
        return started[-1]

    async def main(jump: Jump) -> None:
        monkeypatch.setattr("trio.lowlevel.open_process", open_and_keep)
        await command("true")()
        for pipe in (started[0].stdout, started[0].stderr):
            assert pipe is not None
            with pytest.raises(trio.ClosedResourceError):
                await pipe.receive_some()

    on_trio(main)


@EVERY_HOST
def test_a_cancellation_from_outside_goes_through_once_it_has_ended(run: Run) -> None:
    async def main(jump: Jump) -> None:
        heard = Heard(b"ready")
        polite = command(POLITE, on_output=heard)
        if run is on_trio:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(polite)
                await heard.wait()
                nursery.cancel_scope.cancel()
        else:
            task = asyncio.ensure_future(polite())
            await heard.wait()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # it is patient
            with pytest.raises(asyncio.CancelledError):
                await task
        assert heard.all.endswith(b"bye\n")
        assert not any(map(is_running, heard.pids()))

    run(main)


@EVERY_HOST
def test_what_ends_leaves_nothing_for_the_collector(run: Run) -> None:
    async def main(jump: Jump) -> list[Any]:
        await command("true")()
        with garbage() as found:
            for script in ("true", "exit 1"):
                await run_branches({"a": command(script)}, policy=COLLECT)
            if run is on_asyncio:  # trio's open_process leaves its own error in a cycle
                await run_branches({"a": command(["no-such-program"])}, policy=COLLECT)
            heard = Heard(b"ready")
            async with open_branch_nursery(policy=COLLECT) as nursery:
                branch = nursery.start_soon("a", command(POLITE, on_output=heard))
                await heard.wait()
                branch.cancel()
            del heard, nursery, branch
        return found

    assert run(main) == []


# ---------------------------------------------------------------- bad input

untyped: Any = command


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda: untyped(1),
            TypeError,
            "`argv` must be a sequence of str, or a str for the shell, got 1",
        ),
        (lambda: untyped(b"ls"), TypeError, "`argv` must be a sequence of str, or a str for the"),
        (
            lambda: untyped(["ls", 1]),
            TypeError,
            "`argv` must be a sequence of str, or a str for the",
        ),
        (lambda: untyped({"ls"}), TypeError, "`argv` must be a sequence of str, or a str for the"),
        (lambda: untyped([]), ValueError, "`argv` must be a program and its arguments, got []"),
        (lambda: untyped(["", "x"]), ValueError, "`argv` must be a program and its arguments, got"),
        (lambda: untyped(" "), ValueError, "`argv` must be no empty command, got ' '"),
        (
            lambda: untyped("a\0b"),
            ValueError,
            "`argv` must be free of null characters, got 'a\\x00b'",
        ),
        (lambda: untyped(["a", "\0"]), ValueError, "`argv` must be free of null characters"),
        (
            lambda: untyped("a", env=[]),
            TypeError,
            "`env` must be a mapping of str to str, or None, got []",
        ),
        (lambda: untyped("a", env={"A": 1}), TypeError, "`env` must be a mapping of str to str"),
        (lambda: untyped("a", env={1: "A"}), TypeError, "`env` must be a mapping of str to str"),
        (
            lambda: untyped("a", env={"": "A"}),
            ValueError,
            "`env` must be a mapping whose names are",
        ),
        (
            lambda: untyped("a", env={"A=": "A"}),
            ValueError,
            "`env` must be a mapping whose names are",
        ),
        (
            lambda: untyped("a", env={"A": "\0"}),
            ValueError,
            "`env` must be free of null characters",
        ),
        (lambda: untyped("a", cwd=1), TypeError, "`cwd` must be a path, or None, got 1"),
        (lambda: untyped("a", cwd=""), ValueError, "`cwd` must be a path, or None, got ''"),
        (lambda: untyped("a", cwd="\0"), ValueError, "`cwd` must be free of null characters"),
        (lambda: untyped("a", grace=True), TypeError, "`grace` must be a number of seconds >= 0"),
        (lambda: untyped("a", grace=-1), ValueError, "`grace` must be a number of seconds >= 0"),
        (
            lambda: untyped("a", on_output=1),
            TypeError,
            "`on_output` must be a function of a stream's",
        ),
        (
            lambda: untyped("a", on_output=trio.sleep),
            TypeError,
            "`on_output` must be a function of",
        ),
        (
            lambda: untyped("a", max_output_bytes=0),
            ValueError,
            "`max_output_bytes` must be an int >= 1",
        ),
        (
            lambda: untyped("a", max_output_bytes="1"),
            TypeError,
            "`max_output_bytes` must be an int >= 1",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    make: Callable[[], Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(said)


def test_it_needs_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_parallel_steps._command.POSIX", False)
    with pytest.raises(NotImplementedError, match="needs a POSIX system"):
        command("true")
