"""`trio-parallel-steps run`, from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from test_each import environment, joblog_lines
from trio_parallel_steps.cli import main

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
    assert lines[-1].startswith("nightly: 'check' failed: BranchErrors")
    assert "last" not in err


def test_keep_going_goes_on(file: str, capfd: Out) -> None:
    assert run(file, "--keep-going") == 1
    assert marks(capfd)["last"] == "ok"


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
    assert marks(capfd).keys() == {"check/bad", "nightly:"} - {"nightly:"}
    assert Path("effects").read_text() == "ran\n"
    # Another command is another pipeline.
    assert run(file, "--resume", *ALL_FINE) == 2
    assert "another pipeline" in capfd.readouterr().err
    # Without --resume it begins anew.
    assert run(file, "--journal", "nightly.toml.journal") == 1
    assert Path("effects").read_text() == "ran\nran\n"


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
    import sys

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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "x"], "`--set` must be KEY=VALUE, got 'x'"),
        (["--cancel", "x"], "`--cancel` must be WHEN=CANCEL, got 'x'"),
        (["--set", "steps.chek.timeout=3"], "the list has no 'chek': did you mean `check`?"),
        (["--set", "steps.check.timout=3"], "did you mean `timeout`?"),
        (["--limit", "0"], "`--limit` must be an int >= 1 or inf, got '0'"),
        (["--json", "no/such/folder"], "`--json` must be a file that can be written"),
        (["--joblog", "no/such/folder"], "`--joblog` must be a joblog that can be written"),
        (["--journal", "no/such/folder"], "no/such"),
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


def test_all_faults_of_a_file_are_told(file: str, capfd: Out) -> None:
    Path(file).write_text("nam = 1\n[[steps]]\nname = 'x'\ncommand = 3\n")
    assert run(file) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Error: nightly.toml: ") for line in lines)
