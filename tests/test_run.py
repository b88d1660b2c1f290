"""`trio-parallel-steps run`, from outside."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from test_each import environment, joblog_lines
from trio_parallel_steps._journal import Journal
from trio_parallel_steps.cli import main
from trio_parallel_steps.cli._output import Lines, Sink, Stream

Out = pytest.CaptureFixture[str]

FILE = """\
name = "nightly"

[[steps]]
name = "list"
command = ["echo", "listed"]

[[steps]]
name = "check"

[steps.concurrency]
max_concurrent_branches = 4
adaptive_limits = false
memory_based_limits = false

[steps.branches.good]
command = "echo fine"
[steps.branches.bad]
command = "echo out; echo err >&2; exit 3"
[[steps.branches.deep.steps]]
name = "one"
command = "echo deep; echo ran >> effects"

[[steps]]
name = "last"
command = "echo last"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("nightly.toml").write_text(FILE)
    return "nightly.toml"


def run(*args: str) -> int:
    return main(["run", *args])


def marks(capfd: Out) -> dict[str, str]:
    """What each leaf's line on stderr says of it."""
    lines = capfd.readouterr().err.splitlines()
    told = {}
    for line in lines:
        mark, _, rest = line.strip().partition("  ")
        if rest:
            told[rest.split("  ")[0]] = mark
    return told


ALL_FINE = ("--set", "steps.check.branches.bad.command='true'")


def test_all_went_as_it_should(file: str, capfd: Out) -> None:
    assert run(file, *ALL_FINE) == 0
    assert marks(capfd) == {
        "list": "ok",
        "check/good": "ok",
        "check/bad": "ok",
        "check/deep/one": "ok",
        "last": "ok",
    }


def test_a_failure_ends_it_and_its_output_is_shown(file: str, capfd: Out) -> None:
    assert run(file) == 1
    out, err = capfd.readouterr()
    assert out == "out\n"
    lines = err.splitlines()
    assert "err" in lines
    (line,) = [line for line in lines if line.startswith("   FAILED")]
    assert "check/bad" in line
    assert "exited with 3" in line
    assert lines[-1] == "nightly: failed: check/bad"
    assert "last" not in err


def test_keep_going_goes_on(file: str, capfd: Out) -> None:
    assert run(file, "--keep-going") == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-2].startswith("       ok  last")
    assert lines[-1] == "nightly: failed: check/bad"


def test_the_last_line_names_what_has_not_succeeded(file: str, capfd: Out) -> None:
    slow = ("--set", "steps.check.branches.good.command=sleep 1000")
    last = [
        (["steps.check.branches.good.timeout=0.1"], "failed: check/bad; timed out: check/good"),
        (["steps.check.timeout=0.1"], "failed: check/bad; timed out: check, check/good"),
        (["execution_config.timeout=0.3"], "failed: check/bad; timed out: check"),
        (["steps.list.command='sleep 9'", "steps.list.timeout=0.1"], "timed out: list"),
    ]
    for settings, told in last:
        options = [option for setting in settings for option in ("--set", setting)]
        assert run(file, *slow, *options) in (1, 3)
        assert capfd.readouterr().err.splitlines()[-1] == f"nightly: {told}"


def test_a_line_says_why_without_the_names_of_classes(file: str, capfd: Out) -> None:
    Path(file).write_text("""\
[[steps]]
name = "x"
[steps.branches]
missing = { command = ["no-such-program"] }
nowhere = { command = "true", cwd = "/no/such/folder" }
slow = { command = "sleep 1000", timeout = 0.1 }
unknown = { command = "exit 127" }
""")
    assert run(file, "--joblog", "log") == 1
    err = capfd.readouterr().err
    for line in (
        "s  'no-such-program': No such file or directory\n",
        "s  '/no/such/folder': No such file or directory\n",
        "s  'slow' timed out after 0.1 s\n",
        "s  `exit 127` exited with 127\n",
    ):
        assert line in err
    codes = {line[8]: line[6] for line in joblog_lines(Path("log"))}
    assert codes["no-such-program"] == codes["exit 127"] == "127"


def test_a_line_is_a_line_whatever_is_in_it(file: str, capfd: Out) -> None:
    Path(file).write_text(r"""
[[steps]]
name = "x"
[steps.branches."new\nline"]
command = "printf out; printf err >&2; exit 1"
[steps.branches."\u001b[31mred"]
command = "printf '\u001b[1mbold' >&2; exit 1"
""")
    assert run(file, "--limit", "1") == 1
    out, err = capfd.readouterr()
    assert out == "out\n"
    lines = err.splitlines()
    assert (lines[0], lines[2]) == ("err", "\x1b[1mbold")  # their own, as they wrote it
    assert lines[1].startswith(r"   FAILED  x/new\x0aline  0.0 s  `printf out;")
    assert lines[3].startswith(r"   FAILED  x/\x1b[31mred  0.0 s  `printf '\x1b[1mbold'")
    assert lines[4] == r"nightly: failed: x/new\x0aline, x/\x1b[31mred"
    assert run(file, "--limit", "1", "--stream") == 1
    assert capfd.readouterr().out == "x/new\\x0aline | out\n"


CALLS = """\
import os, sys
def prints():
    print("printed")
    os.system("echo from a child")
def leaves(): sys.exit(7)
def fails(): raise ValueError("two\\nlines")
"""


@pytest.fixture
def calls(file: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(sys.modules, "its_calls", raising=False)
    Path("its_calls.py").write_text(CALLS)
    names = ("prints", "leaves", "fails")
    branches = "".join(f"{name} = {{ call = 'its_calls:{name}' }}\n" for name in names)
    Path(file).write_text(f"[[steps]]\nname = 'x'\n[steps.branches]\n{branches}")
    return file


def test_a_call_that_leaves_has_failed(calls: str, capfd: Out) -> None:
    assert run(calls) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("nightly: failed: ")
    told = {line.split("  ", 3)[-1] for line in lines if "FAILED" in line}
    assert {line.split("s  ")[-1] for line in told} == {
        "RuntimeError: it called sys.exit(7)",
        "ValueError: two lines",
    }


def test_a_call_that_raised_shows_where(calls: str, capfd: Out) -> None:
    for option in ((), ("--stream",)):
        assert run(calls, *option) == 1
        err = capfd.readouterr().err
        assert 'its_calls.py", line 6, in fails' in err
        assert err.count("Traceback (most recent call last):") == 1  # no command has one
        assert "_run_pipeline.py" not in err
        assert "trio" not in err


def test_json_has_stdout_to_itself(calls: str, capfd: Out) -> None:
    assert run(calls, "--json", "-") == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["exit_code"] == 1
    assert "printed" in err  # maybe within a line of ours: what a thread prints comes in pieces
    assert "from a child" in err


def test_stream_shows_lines_with_their_keys(file: str, capfd: Out) -> None:
    assert run(file, "--stream", "--keep-going") == 1
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [
        "check/bad | out",
        "check/deep/one | deep",
        "check/good | fine",
        "last | last",
        "list | listed",
    ]
    assert "check/bad | err" in err.splitlines()


def test_dry_run_shows_what_options_make_of_the_file(file: str, capfd: Out) -> None:
    rules = ("--cancel", "good=deep", "--limit", "3", "--max-memory-mb", "1024", "--keep-going")
    assert run(file, "--dry-run", *ALL_FINE, *rules) == 0
    out = capfd.readouterr().out
    assert "bad: true" in out
    for said in (
        "max_parallel_steps=3",
        "resource_limits.max_memory_mb=1024",
        "on_branch_failure=ignore",
        "cancel_rules",
    ):
        assert said in out
    assert not Path("effects").exists()


def test_an_infinite_limit_takes_the_files_away(file: str, capfd: Out) -> None:
    setting = ("--set", "execution_config.max_parallel_steps=2")
    assert run(file, "--dry-run", *setting) == 0
    assert "max_parallel_steps=2" in capfd.readouterr().out
    assert run(file, "--dry-run", *setting, "--limit", "inf") == 0
    assert "max_parallel_steps" not in capfd.readouterr().out


def test_a_cancel_rule_of_an_option(file: str, capfd: Out) -> None:
    slow = ("--set", "steps.check.branches.bad.command=sleep 1000")
    assert run(file, *slow, "--cancel", "good=bad") == 0
    assert marks(capfd)["check/bad"] == "cancelled"


def test_a_limit_of_an_option(file: str) -> None:
    path = Path("at_once.toml")
    lock = "mkdir lock && sleep 0.05 && rmdir lock"
    branches = "".join(f"[steps.branches.b{i}]\ncommand = '{lock}'\n" for i in range(4))
    path.write_text(f"[[steps]]\nname = 'x'\n{branches}")
    assert run(str(path), "--limit", "1") == 0


def test_the_joblog_has_a_line_for_each(file: str) -> None:
    assert run(file, "--joblog", "log") == 1
    lines = joblog_lines(Path("log"))
    assert {(line[0], line[6], line[8]) for line in lines} == {
        ("1", "0", "echo listed"),
        ("2", "0", "echo fine"),
        ("3", "3", "echo out; echo err >&2; exit 3"),
        ("4", "0", "echo deep; echo ran >> effects"),
    }


def test_resume_runs_what_has_not_succeeded(file: str, capfd: Out) -> None:
    assert run(file, "--resume") == 1
    assert Path("nightly.toml.journal").exists()
    capfd.readouterr()
    assert run(file, "--resume") == 1
    failed, before, last = capfd.readouterr().err.splitlines()[-3:]
    assert failed.startswith("   FAILED  check/bad  ")
    assert (before, last) == ("nightly: 3 had succeeded before", "nightly: failed: check/bad")
    assert Path("effects").read_text() == "ran\n"
    # Another command is another pipeline.
    assert run(file, "--resume", *ALL_FINE) == 2
    assert "another pipeline" in capfd.readouterr().err
    # Without --resume it begins anew.
    assert run(file, "--journal", "nightly.toml.journal") == 1
    assert Path("effects").read_text() == "ran\nran\n"


def test_a_journal_of_another_version_is_refused_as_that(file: str, capfd: Out) -> None:
    assert run(file, "--resume") == 1
    assert run(file, "--resume", "--set", 'version="2"') == 2
    assert "is of version '' of the pipeline, not of '2'" in capfd.readouterr().err


def test_what_is_no_journal_is_not_taken_away(file: str, capfd: Out) -> None:
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE mine (x)")
    Path("text").write_text("mine")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    before = Path("other.db").read_bytes()
    for name, reason in {
        "other.db": "it is another program's database",
        "text": "file is not a database",
        "folder": "it is no file",
        "fifo": "it is no file",
    }.items():
        assert run(file, "--journal", name) == 2
        said = f"Error: `--journal` must be a journal, or a new file, got '{name}': {reason}\n"
        assert capfd.readouterr().err == said
    assert Path("other.db").read_bytes() == before
    assert Path("text").read_text() == "mine"
    assert Path("fifo").is_fifo()
    # An empty one is nobody's.
    Path("empty").touch()
    assert run(file, "--journal", "empty") == 1


def test_nor_is_the_journal_of_a_run_that_goes_on(file: str, capfd: Out) -> None:
    assert run(file, "--journal", "journal") == 1
    capfd.readouterr()
    with closing(sqlite3.connect("journal")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert run(file, "--journal", "journal") == 2
    assert "in use by another run" in capfd.readouterr().err
    assert Path("effects").read_text() == "ran\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--journal", "nightly.toml"], "`--journal` must be a file of its own"),
        (["--joblog", "nightly.toml"], "got 'nightly.toml', as `FILE`"),
        (["--json", "./nightly.toml"], "got './nightly.toml', as `FILE`"),
        (["--json", "x", "--joblog", "x"], "`--joblog` must be a file of its own, got 'x'"),
    ],
)
def test_no_two_options_name_one_file(file: str, args: list[str], message: str, capfd: Out) -> None:
    assert run(file, *args) == 2
    assert message in capfd.readouterr().err
    assert Path(file).read_text() == FILE


def test_a_run_that_was_killed_is_resumed(file: str) -> None:
    content = FILE.replace("echo out; echo err >&2; exit 3", "test -e go || kill -9 $PPID; echo on")
    Path(file).write_text(content)
    command = [*environment_command(), file, "--resume", "--limit", "1"]
    killed = subprocess.run(command, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    Path("go").touch()
    assert subprocess.run(command, env=environment(), check=False).returncode == 0
    assert Path("effects").read_text() == "ran\n"


def environment_command() -> list[str]:
    return [sys.executable, "-m", "trio_parallel_steps.cli", "run"]


def test_json_has_what_became_of_it(file: str, capfd: Out) -> None:
    assert run(file, "--json", "-") == 1
    out, _ = capfd.readouterr()
    said: dict[str, Any] = json.loads(out)
    assert (said["pipeline"], said["exit_code"], said["success"]) == ("nightly", 1, False)
    assert [(step["name"], step["status"]) for step in said["steps"]] == [
        ("list", "succeeded"),
        ("check", "failed"),
    ]
    jobs = {job["name"]: job for job in said["jobs"]}
    assert jobs["check/bad"]["exit_code"] == 3
    assert jobs["check/bad"]["runs"] == "echo out; echo err >&2; exit 3"
    assert run(file, "--json", "result.json") == 1
    assert json.loads(Path("result.json").read_text())["pipeline"] == "nightly"


def test_timeouts_and_breaches_exit_with_3(file: str, capfd: Out) -> None:
    slow = ("--set", "steps.check.branches.bad.command=sleep 1000")
    assert run(file, *slow, "--set", "execution_config.timeout=0.3") == 3
    assert run(file, *slow, "--set", "steps.check.timeout=0.3") == 3
    assert run(file, *slow, "--set", "steps.check.branches.bad.timeout=0.3") == 1
    capfd.readouterr()
    assert run(file, *slow, "--max-memory-mb", "1", "--on-memory", "breach") == 3
    assert "memory" in capfd.readouterr().err


def test_ctrl_c_ends_the_groups(file: str) -> None:
    script = "trap 'touch told; exit 1' TERM; touch up; sleep 1000 & wait"
    Path(file).write_text(f"[[steps]]\nname = 'x'\ncommand = \"{script}\"\n")
    process = subprocess.Popen(
        [*environment_command(), file], env=environment(), stderr=subprocess.PIPE
    )
    while not Path("up").exists():
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert Path("told").exists()
    assert b"stopped by SIGINT" in err


def test_a_second_ctrl_c_is_told_of_as_the_first(file: str) -> None:
    script = "trap 'touch told' TERM; touch up; while :; do sleep 0.01; done"
    Path(file).write_text(f"[[steps]]\nname = 'x'\ncommand = \"{script}\"\ngrace = 0.5\n")
    command = [*environment_command(), file, "--json", "result"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    for mark in ("up", "told"):
        while not Path(mark).exists():
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == b"nightly: stopped by SIGINT"
    assert json.loads(Path("result").read_text())["feedback"] == "stopped by SIGINT"


def test_a_closed_stdout_does_not_become_the_joblog(file: str) -> None:
    command = " ".join([*environment_command(), file, "--stream", "--joblog", "log"])
    ended = subprocess.run(["sh", "-c", f"{command} >&-"], env=environment(), check=False)
    assert ended.returncode == 1
    assert len(joblog_lines(Path("log"))) == 4


@pytest.mark.parametrize("args", [["--json", "-"], ["--dry-run"]])
def test_a_full_disk_is_one_line(file: str, args: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*environment_command(), file, *args]
        ended = subprocess.run(
            command, env=environment(), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(b"Error: ")
    assert b"No space left on device" in last


def test_a_journal_that_cannot_be_written_stops_the_run(
    file: str, monkeypatch: pytest.MonkeyPatch, capfd: Out
) -> None:
    def full(self: Any, jobs: Any) -> None:
        if None in jobs:
            self._connection.close()
        else:
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "_carry_out", full)
    assert run(file, "--keep-going", "--resume", "--limit", "1") == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("   FAILED  list  ")
    assert "could not be written: OperationalError: database or disk is full" in lines[1]
    assert len(lines) == 2


def test_a_dry_run_shows_any_byte(file: str) -> None:
    setting = os.fsdecode(b"steps.last.command=ls \xff")
    command = [*environment_command(), file, "--dry-run", "--set", setting]
    ended = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"last: ls \xff\n" in ended.stdout


@pytest.mark.parametrize("command", ["run nightly.toml --dry-run", "schema", "--help"])
def test_nothing_is_said_to_a_reader_that_has_gone(file: str, command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        ended = subprocess.run(
            [*environment_command()[:-1], *command.split()],
            env=environment(),
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_long_line_is_not_sought_through_for_each_piece_of_it() -> None:
    """Time would tell only of a very long one: what is kept is not copied."""
    written: list[bytes] = []

    class Kept(Sink):
        def write(self, stream: Stream, data: bytes | bytearray) -> None:
            written.append(bytes(data))

    sink = Kept(lambda: None)
    lines = Lines(sink, "x", 1)
    rest = lines._rest["stdout"]
    for chunk in (b"a", b"b", b"c\nd\ne", b"", b"f"):
        lines("stdout", chunk)
        assert lines._rest["stdout"] is rest
    lines.finish(sink)
    assert b"".join(written) == b"x | abc\nx | d\nx | ef\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "x"], "`--set` must be KEY=VALUE, got 'x'"),
        (["--cancel", "x"], "`--cancel` must be WHEN=CANCEL, got 'x'"),
        (["--cancel", "good=bed"], "`--cancel` must match branches of a parallel step"),
        (["--cancel", "list=last"], "got 'list=last'"),
        (["--set", "steps.chek.timeout=3"], "the list has no 'chek': did you mean `check`?"),
        (["--set", "steps.check.timout=3"], "did you mean `timeout`?"),
        (["--limit", "0"], "`--limit` must be an int >= 1 or inf, got '0'"),
        (["--json", "no/such/folder"], "`--json` must be a file that can be written"),
        (["--joblog", "no/such/folder"], "`--joblog` must be a joblog that can be written"),
        (["--journal", "no/such/folder"], "no/such"),
        (["--set", "execution_config=3", "--limit", "inf"], "`execution_config` must be a table"),
        (
            ["--set", "steps.check.concurrency=3", "--cancel", "good=bad"],
            "concurrency` must be a table",
        ),
        (
            ["--set", "steps.check.concurrency.cancel_rules=3", "--cancel", "good=bad"],
            "cancel_rules` must be a list",
        ),
    ],
)
def test_a_bad_option_is_refused(file: str, args: list[str], message: str, capfd: Out) -> None:
    assert run(file, *args) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "ok" not in err.split()


def test_a_file_that_is_not_there_is_refused(file: str, capfd: Out) -> None:
    assert run("no.toml") == 2
    assert "`FILE` must be a pipeline file, got 'no.toml'" in capfd.readouterr().err


def test_a_file_that_is_nested_too_deeply_is_refused(file: str, capfd: Out) -> None:
    depth = 5000
    Path("deep.json").write_text('{"steps": [' * depth + "]}" * depth)
    for args in ([], ["--set", "name=x"]):
        assert run("deep.json", *args) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("Error: ")


def test_all_faults_of_a_file_are_told(file: str, capfd: Out) -> None:
    Path(file).write_text("nam = 1\n[[steps]]\nname = 'x'\ncommand = 3\n")
    assert run(file) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Error: nightly.toml: ") for line in lines)


@pytest.mark.parametrize("statement", ["raise RuntimeError('two\\nlines')", "raise SystemExit(4)"])
def test_a_module_that_raises_is_one_line(
    file: str, statement: str, monkeypatch: pytest.MonkeyPatch, capfd: Out
) -> None:
    monkeypatch.delitem(sys.modules, "it_raises", raising=False)
    Path("it_raises.py").write_text(statement)
    Path(file).write_text("[[steps]]\nname = 'x'\ncall = 'it_raises:x'\n")
    assert run(file) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Error: nightly.toml: `steps[0].call` can't be imported: ")
