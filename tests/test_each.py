"""`trio-parallel-steps each`, from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trio_parallel_steps
from trio_parallel_steps.cli import main
from trio_parallel_steps.cli._joblog import HEADER
from trio_parallel_steps.cli._placeholders import fill

Out = pytest.CaptureFixture[str]


def each(*args: str) -> list[str]:
    return [sys.executable, "-m", "trio_parallel_steps.cli", "each", *args]


def environment() -> dict[str, str]:
    package = Path(trio_parallel_steps.__file__).parent
    return {**os.environ, "PYTHONPATH": str(package.parent)}


def run(*args: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        each(*args), input=stdin, capture_output=True, env=environment(), check=False, **options
    )


def joblog_lines(path: Path) -> list[list[str]]:
    header, *lines = path.read_text().splitlines()
    assert header == HEADER
    return [line.split("\t") for line in lines]


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("template", "item", "filled"),
    [
        ("gzip -k {}", "a b.txt", "gzip -k 'a b.txt'"),
        ("gzip -k", "a b.txt", "gzip -k 'a b.txt'"),
        ("true", "", "true ''"),
        ("cp {} {.}.bak", "d.d/x.tar.gz", "cp d.d/x.tar.gz d.d/x.tar.bak"),
        ("{.}", "d.d/x", "d.d/x"),
        ("{/} {//} {/.}", "/a/b c/d.e", "d.e '/a/b c' d"),
        ("{//}", "x", "."),
        ("{//}", "/x", "/"),
        ("{#}: {}", "$(reboot)", "7: '$(reboot)'"),
        ("echo {#}", "x", "echo 7 x"),
        ("{}", "{/}", "'{/}'"),
        ("awk '{print}' {}", "x", "awk '{print}' x"),
    ],
)
def test_placeholders_are_filled_with_quoted_values(template: str, item: str, filled: str) -> None:
    assert fill(template, item, 7) == filled


def test_each_file_gets_its_command(tmp_path: Path, capfd: Out) -> None:
    files = [tmp_path / name for name in ("a", "b c")]
    for file in files:
        file.write_text(file.name)
    assert main(["each", "--keep-order", "cat {}; echo; echo {/} >&2", *map(str, files)]) == 0
    assert capfd.readouterr() == ("a\nb c\n", "a\nb c\n")


def test_items_come_from_stdin_too() -> None:
    ended = run("--keep-order", "printf '%s|' {}", stdin=b"a b\n\n\xff\nlast")
    assert (ended.returncode, ended.stdout) == (0, b"a b||\xff|last|")


def test_and_may_end_with_null_characters() -> None:
    ended = run("-0", "--keep-order", "printf '%s|' {}", stdin=b"a\nb\0c\0")
    assert (ended.returncode, ended.stdout) == (0, b"a\nb|c|")


def test_stdin_is_read_as_it_is_needed() -> None:
    """The input is endless, and the first result there before it would have an end."""
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        ended = subprocess.run(
            each("--limit", "1", "exit 4"),
            stdin=endless.stdout,
            capture_output=True,
            env=environment(),
            check=False,
        )
        endless.kill()
    assert ended.returncode == 1
    assert ended.stderr == b"each: 1 failed\n"


def test_a_dry_run_prints_the_commands(tmp_path: Path, capfd: Out) -> None:
    log = tmp_path / "log"
    assert main(["each", "--dry-run", "--joblog", str(log), "touch {}.x", "a b", "c"]) == 0
    assert capfd.readouterr().out == "touch 'a b'.x\ntouch c.x\n"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- output


def test_the_output_of_a_job_is_never_interleaved(capfd: Out) -> None:
    script = "for n in 1 2 3 4 5; do echo {} $n; head -c 70000 /dev/zero | tr '\\0' {}; echo; done"
    assert main(["each", "--limit", "4", script, *"abcdef"]) == 0
    lines = capfd.readouterr().out.splitlines()
    keys = [line[0] for line in lines]
    assert len(keys) == 60
    assert [keys[n] for n in range(0, 60, 10)] == [key for n, key in enumerate(keys) if n % 10 == 9]
    assert {line[0] * 70000 for line in lines[1::2]} == set(lines[1::2])


def test_output_in_the_order_of_the_items(tmp_path: Path, capfd: Out) -> None:
    """The first waits for the last."""
    go = tmp_path / "go"
    os.mkfifo(go)
    script = f"case {{}} in 1) read x < {go};; 3) echo > {go};; esac; echo {{}}"
    assert main(["each", "--limit", "3", "--keep-order", script, "1", "2", "3"]) == 0
    assert capfd.readouterr().out == "1\n2\n3\n"


def test_what_was_kept_for_its_turn_is_not_lost_at_a_failure(tmp_path: Path, capfd: Out) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    ending = f"1) exec sleep 60;; 2) echo > {go};; 3) read x < {go}; exit 1"
    script = f"echo {{}}; case {{}} in {ending};; esac"
    assert main(["each", "--limit", "3", "--keep-order", script, "1", "2", "3"]) == 1
    assert capfd.readouterr().out == "1\n2\n3\n"


def test_lines_are_shown_as_they_come_with_their_key(tmp_path: Path, capfd: Out) -> None:
    """Each writes half a line, waits for the other, and writes the rest."""
    ab, ba = tmp_path / "ab", tmp_path / "ba"
    for fifo in (ab, ba):
        os.mkfifo(fifo)
    script = (
        "printf 'half of '; "
        f"case {{}} in a) echo > {ab}; read x < {ba};; b) read x < {ab}; echo > {ba};; esac; "
        "echo {}; echo err >&2; printf tail"
    )
    assert main(["each", "--limit", "2", "--stream", script, "a", "b"]) == 0
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == [
        *("a | half of a", "a | tail", "b | half of b", "b | tail"),
    ]
    assert sorted(captured.err.splitlines()) == ["a | err", "b | err"]


def test_keys_have_colours_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in environment().items() if name != "NO_COLOR"}
    subprocess.run(each("--stream", "echo", "x"), stdout=theirs, env=env, check=True)
    shown = os.read(ours, 1000)
    subprocess.run(
        each("--stream", "echo", "x"), stdout=theirs, env={**env, "NO_COLOR": "1"}, check=True
    )
    plain = os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)
    assert (shown, plain) == (b"\x1b[33mx | \x1b[0mx\r\n", b"x | x\r\n")


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_reader_that_goes_away_stops_it_quietly(stream: list[str]) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        with subprocess.Popen(
            each("--limit", "2", *stream, "echo"),
            stdin=endless.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().endswith(b"y\n")
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == 1
        endless.kill()


# ---------------------------------------------------------------- endings


def test_a_failure_stops_all(tmp_path: Path, capfd: Out) -> None:
    script = f"test {{}} != 2 || exit 5; echo {{}} >> {tmp_path}/ran"
    assert main(["each", "--limit", "1", script, "1", "2", "3"]) == 1
    assert (tmp_path / "ran").read_text() == "1\n"
    assert capfd.readouterr().err == "each: 1 succeeded, 1 failed\n"


def test_unless_told_to_keep_going(tmp_path: Path, capfd: Out) -> None:
    script = f"test {{}} != 2 || exit 5; echo {{}} >> {tmp_path}/ran"
    assert main(["each", "--limit", "1", "--keep-going", script, "1", "2", "3"]) == 1
    assert (tmp_path / "ran").read_text() == "1\n3\n"


def test_the_limit_is_kept(tmp_path: Path, capfd: Out) -> None:
    """There are two places, and never a third that finds none."""
    x, y = tmp_path / "x", tmp_path / "y"
    script = f"if mkdir {x}; then rmdir {x}; else mkdir {y} && rmdir {y}; fi # {{}}"
    assert main(["each", "--limit", "2", script, *map(str, range(50))]) == 0


def test_a_job_that_takes_too_long_has_failed(tmp_path: Path, capfd: Out) -> None:
    log = tmp_path / "log"
    script = "test {} = 2 || exec sleep 60"
    args = ["--timeout", "2", "--keep-going", "--joblog", str(log)]
    assert main(["each", *args, script, "1", "2"]) == 1
    assert {(line[0], *line[6:8]) for line in joblog_lines(log)} == {
        ("1", "0", "15"),
        ("2", "0", "0"),
    }


def test_a_step_that_takes_too_long_ends_with_3(capfd: Out) -> None:
    assert main(["each", "--limit", "2", "--step-timeout", "1", "exec sleep", "60", "61"]) == 3
    assert capfd.readouterr().err == "each: 2 cancelled\n"


def test_a_failed_job_is_run_again(tmp_path: Path, capfd: Out) -> None:
    script = f"echo x >> {tmp_path}/{{}}; echo out; test $(wc -l < {tmp_path}/{{}}) = 3"
    assert main(["each", "--retry", "2", script, "a"]) == 0
    assert capfd.readouterr().out == "out\n"  # that of the last run
    assert main(["each", "--retry", "1", script, "b"]) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_groups_first(number: signal.Signals, code: int, tmp_path: Path) -> None:
    script = ": {}; sleep 60 & trap 'wait; echo bye; exit' TERM; echo ready >&2; wait"
    with subprocess.Popen(
        each("--stream", "--joblog", str(tmp_path / "log"), script, "a"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        # Where the tests run in the background, it would be ignored.
        preexec_fn=lambda: signal.signal(number, signal.default_int_handler) and None,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"a | ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"a | bye\n"
        assert process.wait() == code
    assert joblog_lines(tmp_path / "log") == []  # it is run again


def test_more_memory_than_allowed_stops_all_if_so_told(capfd: Out) -> None:
    args = ["--max-memory-mb", "1", "--on-memory", "breach"]
    assert main(["each", *args, "exec sleep", "60"]) == 3
    assert "memory" in capfd.readouterr().err


def test_or_else_holds_the_others_back(capfd: Out) -> None:
    """One may always run."""
    assert main(["each", "--max-memory-mb", "1", "--limit", "4", "true", "1", "2", "3"]) == 0


# ---------------------------------------------------------------- what is left for programs


def test_the_joblog_is_gnu_parallels(tmp_path: Path, capfd: Out) -> None:
    log = tmp_path / "log"
    script = "printf 123; exit {}"
    assert (
        main(["each", "--keep-going", "--limit", "1", "--joblog", str(log), script, "0", "3"]) == 1
    )
    assert main(["each", "--joblog", str(tmp_path / "2"), "kill -9 $$ #\n", "x"]) == 1
    first, second = joblog_lines(log)
    (killed,) = joblog_lines(tmp_path / "2")
    assert (first[:2], first[4:]) == (["1", ":"], ["0", "3", "0", "0", "printf 123; exit 0"])
    assert (second[:2], second[4:]) == (["2", ":"], ["0", "3", "3", "0", "printf 123; exit 3"])
    assert killed[4:] == ["0", "0", "0", "9", "kill -9 $$ #\0 x"]
    assert float(first[2]) > 1e9
    assert float(first[3]) >= 0


def test_resume_skips_what_has_succeeded(tmp_path: Path, capfd: Out) -> None:
    log = tmp_path / "log"
    script = f"echo {{}} >> {tmp_path}/ran; test {{}} != 2 || test -e {tmp_path}/ok"
    args = ["each", "--limit", "1", "--keep-going", "--joblog", str(log), "--resume", script]
    assert main([*args, "1", "2", "3", "1"]) == 1
    (tmp_path / "ok").touch()
    capfd.readouterr()
    assert main([*args[:-1], "--dry-run", script, "0", "1", "2", "3", "1", "1"]) == 0
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()] == ["0", "2", "1"]
    assert main([*args, "0", "1", "2", "3", "1", "1"]) == 0
    assert (tmp_path / "ran").read_text().split() == [*"1231", *"021"]
    assert main([*args, "0", "1", "2", "3", "1", "1"]) == 0
    assert (tmp_path / "ran").read_text().split() == [*"1231", *"021"]


@pytest.mark.parametrize("torn", [1, 5, 60])
def test_a_torn_last_line_is_as_if_it_had_not_been_written(
    torn: int, tmp_path: Path, capfd: Out
) -> None:
    log = tmp_path / "log"
    script = f"echo {{}} >> {tmp_path}/ran"
    args = ["each", "--limit", "1", "--joblog", str(log), "--resume", script]
    assert main([*args, "1", "2"]) == 0
    log.write_bytes(log.read_bytes()[:-torn])
    assert main([*args, "1", "2"]) == 0
    assert (tmp_path / "ran").read_text().split() == ["1", "2", "2"]
    assert [line[8] for line in joblog_lines(log)] == [fill(script, item, 0) for item in "12"]


@pytest.mark.parametrize("at", [1, 7, 19])
def test_it_goes_on_after_a_sigkill(tmp_path: Path, at: int) -> None:
    log = tmp_path / "log"
    kills = (
        f"test {{}} != {at} -o -e {tmp_path}/again || {{ touch {tmp_path}/again; kill -9 $PPID; }}"
    )
    args = ["--joblog", str(log), "--resume", f"echo {{}} >> {tmp_path}/ran; {kills}"]
    items = [str(n) for n in range(20)]
    assert run(*args, *items).returncode == -9
    recorded = [line[8].split()[1] for line in joblog_lines(log)]
    assert run(*args, *items).returncode == 0
    ran = (tmp_path / "ran").read_text().split()
    assert set(ran) == set(items)
    assert [ran.count(item) for item in recorded] == [1] * len(recorded)


def test_without_resume_the_joblog_begins_anew(tmp_path: Path, capfd: Out) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        assert main(["each", "--joblog", str(log), "true", "1"]) == 0
    assert len(joblog_lines(log)) == 1


def test_json_says_what_became_of_each(tmp_path: Path, capfd: Out) -> None:
    file = tmp_path / "json"
    assert main(["each", "--keep-going", "--json", str(file), "exit {}", "0", "3"]) == 1
    written = json.loads(file.read_text())
    assert (written["exit_code"], written["endings"]) == (1, {"succeeded": 1, "failed": 1})
    jobs = [
        (job["number"], job["item"], job["command"], job["status"], job["exit_code"])
        for job in written["jobs"]
    ]
    assert jobs == [(1, "0", "exit 0", "succeeded", 0), (2, "3", "exit 3", "failed", 3)]
    assert "exited with 3" in written["jobs"][1]["feedback"]


def test_json_on_stdout_has_it_to_itself(capfd: Out) -> None:
    assert main(["each", "--json", "-", "echo", "x"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["exit_code"] == 0
    assert captured.err == "x\n"


NO_JOBLOG = "`--joblog` must be a joblog that can be written, got"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Missing argument 'COMMAND'."),
        ([" "], "`COMMAND` must be a command of the shell's, got ' '"),
        (["--limit", "0", "x"], "`--limit` must be an int >= 1 or inf, got '0'"),
        (["--timeout", "0", "x"], "`--timeout` must be a number > 0, got '0'"),
        (["--step-timeout", "nan", "x"], "`--step-timeout` must be a number > 0, got 'nan'"),
        (["--retry", "-1", "x"], "`--retry` must be an int >= 0, got '-1'"),
        (["--max-memory-mb", "inf", "x"], "`--max-memory-mb` must be a number > 0, got 'inf'"),
        (["--resume", "x"], "`--resume` must have a `--joblog` to go by"),
        (
            ["--json", "x", "--joblog", "x", "x"],
            "`--joblog` must be a file of its own, got 'x', as `--json`",
        ),
        (["--keep-order", "--stream", "x"], "`--keep-order` and `--stream` exclude each other"),
        (["--joblog", "/no/file", "x"], f"{NO_JOBLOG} '/no/file': No such file or directory"),
        (
            ["--joblog", __file__, "--resume", "x"],
            f"{NO_JOBLOG} {__file__!r}: its first line is no joblog's",
        ),
    ],
)
def test_a_bad_option_is_one_line_and_2(args: list[str], said: str, capfd: Out) -> None:
    assert main(["each", *args]) == 2
    assert capfd.readouterr() == ("", f"Error: {said}\n")
    assert Path(__file__).stat().st_size > 0


def test_stdin_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for more in ([], ["--dry-run"]):
        with (tmp_path / "written").open("wb") as stdin:
            ended = subprocess.run(
                each(*more, "echo"),
                stdin=stdin,
                capture_output=True,
                env=environment(),
                check=False,
            )
        assert ended.returncode == 1
        assert ended.stderr.startswith(b"Error: could not read stdin: ")
        assert len(ended.stderr.splitlines()) == 1


def test_a_timeout_is_told_with_the_item(capfd: Out) -> None:
    assert main(["each", "--timeout", "0.1", "sleep 9; echo", "a\x1b[1mb"]) == 1
    assert capfd.readouterr().err == "each: a\\x1b[1mb: timed out after 0.1 s\neach: 1 failed\n"
