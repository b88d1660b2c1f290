"""The command line, from outside; what the census counts is in test_census.py."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

import trio_parallel_steps
from trio_parallel_steps import BranchStatus, StepResult, run_branches
from trio_parallel_steps.cli import main
from trio_parallel_steps.cli._census import Counts, Package, count_source, standard_library
from trio_parallel_steps.cli._demo import Finish, run_jobs
from trio_parallel_steps.cli._jobs import Job, census_jobs, sample_jobs
from trio_parallel_steps.cli._progress import Progress
from trio_parallel_steps.cli._view import PlainView, names, open_view

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")
BY_NAME = {package.name: package for package in standard_library()}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "trio_parallel_steps.cli", *args]


def environment(**more: str) -> dict[str, str]:
    """This one, but with nothing in it that tells rich about a terminal."""
    told = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    package = Path(trio_parallel_steps.__file__).parent
    return {**kept, "PYTHONPATH": str(package.parent), "TERM": "xterm", **more}


def statuses(written: dict[str, Any]) -> dict[str, str]:
    return {branch["name"]: branch["status"] for branch in written["result"]["branches"]}


def reasons(written: dict[str, Any]) -> dict[str, str]:
    return {branch["name"]: branch["reason"] for branch in written["result"]["branches"]}


def counts_of(name: str) -> Counts:
    return sum((count_source(file.read_bytes()) for file in BY_NAME[name].files), Counts())


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("demo --limit 0", "`--limit` must be an int >= 1 or inf, got '0'"),
        ("demo --limit -1", "`--limit` must be an int >= 1 or inf, got '-1'"),
        ("demo --limit nan", "`--limit` must be an int >= 1 or inf, got 'nan'"),
        ("demo --limit 1.5", "`--limit` must be an int >= 1 or inf, got '1.5'"),
        ("demo --limit True", "`--limit` must be an int >= 1 or inf, got 'True'"),
        ("demo --fail -1", "`--fail` must be an int >= 0, got '-1'"),
        ("demo --fail some", "`--fail` must be an int >= 0, got 'some'"),
        (
            "demo --fail 3 --only json --only this",
            "`--fail` must be at most the number of packages, 2, got 3",
        ),
        ("demo --breach-after nan", "`--breach-after` must be a number of seconds >= 0, got 'nan'"),
        ("demo --breach-after -1", "`--breach-after` must be a number of seconds >= 0, got '-1'"),
        ("demo --breach-after 5s", "`--breach-after` must be a number of seconds >= 0, got '5s'"),
        (
            "demo --only numpy --only JSON",
            "`--only` must match a package or module of the standard library, got 'numpy', 'JSON'",
        ),
        ("demo --json no/such/folder", "`--json` must be a file that can be written, got "),
        ("demo --json .", "`--json` must be a file that can be written, got '.': "),
        ("demo --json a\0b", "`--json` must be a file that can be written, got 'a\\x00b': "),
        ("demo --limit", "Option '--limit' requires an argument"),
        ("demo --limits 3", "No such option"),
        ("demo everything", "unexpected extra argument"),
        ("demonstrate", "No such command"),
        ("--limit 3", "No such option"),
        ("", "Missing command"),
    ],
)
def test_a_bad_option_is_one_line_and_nothing_starts(
    args: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args.split(" ") if args else []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_bad_option_leaves_the_json_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("precious")
    assert main(["demo", "--json", str(new), "--only", "numpy"]) == 2
    assert main(["demo", "--json", str(old), "--fail", "999"]) == 2
    assert not new.exists()
    assert old.read_text() == "precious"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("trio_parallel_steps.cli._") or name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"trio-parallel-steps needs {missing}: pip install 'trio-parallel-steps[cli]'\n")


def test_ctrl_c_while_it_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, *args: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "trio_parallel_steps.cli._commands", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    assert main(["--version"]) == 130


def test_another_missing_module_is_not_taken_for_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "trio_parallel_steps.cli._commands")
    monkeypatch.setitem(sys.modules, "trio_parallel_steps.cli._tables", None)
    with pytest.raises(ModuleNotFoundError, match="_tables"):
        main(["demo"])


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        number = version("trio-parallel-steps")
    except PackageNotFoundError:
        number = "(not installed)"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trio-parallel-steps {number}\n"


def test_the_help_names_the_command_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["demo", "-h"]) == 0
    out = capsys.readouterr().out
    for option in ("--limit", "--fail", "--breach-after", "--samples", "--only", "--json"):
        assert option in out


# ---------------------------------------------------------------- which branches


def packages_of(sizes: dict[str, int]) -> list[Package]:
    return [Package(name, (), size) for name, size in sizes.items()]


def test_the_first_packages_by_name_are_those_that_fail() -> None:
    jobs = census_jobs(packages_of({"a": 1, "b": 9, "c": 5}), fail=2)
    assert [(job.key, job.fails, job.priority, job.sample) for job in jobs] == [
        ("a", True, 0, False),
        ("b", True, 0, False),
        ("c", False, 0, False),
    ]


def test_samples_read_the_largest_packages_the_low_ones_the_larger() -> None:
    jobs = sample_jobs(packages_of({f"p{size}": size for size in range(10)}))
    assert {job.key: job.package.name for job in jobs} == {
        "high_priority_1": "p4",
        "high_priority_2": "p3",
        "high_priority_3": "p2",
        "low_priority_1": "p9",
        "low_priority_2": "p8",
        "low_priority_3": "p7",
        "low_priority_4": "p6",
        "low_priority_5": "p5",
    }
    high = {job.priority for job in jobs if job.key.startswith("high")}
    low = {job.priority for job in jobs if job.key.startswith("low")}
    assert min(high) > max(low) > 0


def test_with_few_packages_samples_read_some_more_than_once() -> None:
    jobs = sample_jobs(packages_of({"a": 1, "b": 2, "c": 3}))
    assert [job.package.name for job in jobs] == ["a", "c", "b", "c", "b", "a", "c", "b"]


# ---------------------------------------------------------------- the demo, on real input


def test_the_census_is_what_is_in_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    args = ["demo", "--only", "json", "--only", "co*", "--limit", "2", "--json", str(file)]
    assert main(args) == 0
    written = json.loads(file.read_text())
    expected = {name: counts_of(name) for name in BY_NAME if name == "json" or name[:2] == "co"}
    whole = sum(expected.values(), Counts())
    largest = max(expected, key=lambda name: expected[name].lines)
    assert statuses(written) == dict.fromkeys(expected, "succeeded")
    assert written["endings"] == {"succeeded": len(expected)}
    assert written["packages"] == {
        name: {
            "files": counts.files,
            "unparsed": counts.unparsed,
            "lines": counts.lines,
            "classes": counts.classes,
            "functions": counts.functions,
        }
        for name, counts in expected.items()
    }
    assert written["totals"] == {
        "packages": len(expected),
        "packages_in_all": len(expected),
        "files": whole.files,
        "unparsed": 0,
        "lines": whole.lines,
        "classes": whole.classes,
        "functions": whole.functions,
        "largest": largest,
    }
    assert written["result"]["success"] is True
    assert written["result"]["peak_in_flight"] == 2
    assert (written["interrupted"], written["breached"]) == (False, False)
    out, err = capsys.readouterr()
    assert err == ""
    for shown in (f"{whole.lines:,}", f"{whole.functions:,}", f"{largest}, ", "succeeded"):
        assert shown in out


def test_branches_told_to_fail_do_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    assert main(["demo", "--only", "c*", "--fail", "2", "--json", str(file)]) == 1
    written = json.loads(file.read_text())
    keys = [name for name in BY_NAME if name.startswith("c")]
    assert statuses(written) == {
        **dict.fromkeys(keys, "succeeded"),
        **dict.fromkeys(keys[:2], "failed"),
    }
    assert list(written["packages"]) == keys[2:]
    assert written["totals"]["packages_in_all"] == len(keys)
    out = capsys.readouterr().out
    assert f"Told to fail: {keys[0]}, {keys[1]}\n" in out
    for key in keys[:2]:
        assert f"'{key}' failed: ToldToFail: told to by --fail\n" in out


def test_a_breach_at_once_skips_every_branch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    args = ["demo", "--only", "c*", "--breach-after", "0", "--json", str(file)]
    assert main(args) == 3
    written = json.loads(file.read_text())
    assert written["breached"] is True
    assert set(statuses(written).values()) == {"skipped"}
    assert written["packages"] == {}
    assert written["totals"]["largest"] is None
    out = capsys.readouterr().out
    for name, reason in reasons(written).items():
        assert "--breach-after 0" in reason
        assert f"'{name}' never ran: {reason}\n" in out


def test_once_a_high_sample_is_in_the_low_ones_are_dropped_by_the_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    args = ["demo", "--only", "json", "--samples", "--limit", "1", "--json", str(file)]
    assert main(args) == 0
    written = json.loads(file.read_text())
    assert statuses(written) == {
        **{f"high_priority_{i}": "succeeded" for i in (1, 2, 3)},
        **{f"low_priority_{i}": "skipped" for i in (1, 2, 3, 4, 5)},
        "json": "succeeded",
    }
    order = written["result"]["completion_order"]
    assert order == ["high_priority_1", "high_priority_2", "high_priority_3", "json"]
    for name, reason in reasons(written).items():
        if name.startswith("low"):
            assert "high_priority_*" in reason
    assert list(written["packages"]) == ["json"]
    assert written["totals"]["packages_in_all"] == 1
    assert written["totals"]["files"] == len(BY_NAME["json"].files)
    assert "'low_priority_5' never ran: " in capsys.readouterr().out


def test_json_on_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--only", "this", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["totals"]["largest"] == "this"
    assert "Totals" in err


def test_a_result_that_cannot_be_written_in_the_end_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs a device that is always full")
    assert main(["demo", "--only", "this", "--json", str(full)]) == 1
    out, err = capsys.readouterr()
    assert "Totals" in out
    assert err == "Error: `--json`: '/dev/full' was not written: No space left on device\n"


# ---------------------------------------------------------------- endings, by the clock and the key

THIS = BY_NAME["this"]
# Read for ever, file by file, until the thread is told that its branch was cancelled.
ENDLESS = Package("endless", cast("tuple[Path, ...]", itertools.repeat(THIS.files[0])), 0)


class OnceEndlessRuns(Progress):
    def __init__(self, do: Callable[[], None]) -> None:
        super().__init__()
        self._do = do

    def branch_started(self, branch: Any) -> None:
        super().branch_started(branch)
        if branch.key == "endless":
            self._do()


def finish_of(
    jobs: list[Job],
    limit: int,
    breach_after: float | None = None,
    once_endless_runs: Callable[[MockClock], None] = lambda clock: None,
) -> Finish:
    """Run the jobs by a clock that stands still."""
    clock = MockClock()
    progress = OnceEndlessRuns(lambda: once_endless_runs(clock))
    view = PlainView(Console(file=io.StringIO()), progress)
    return trio.run(run_jobs, jobs, limit, breach_after, progress, view, clock=clock)


def test_a_low_sample_that_runs_is_cancelled_in_its_thread() -> None:
    high = Job("high_priority_1", THIS, 2, sample=True)
    low = Job("low_priority_1", ENDLESS, 1, sample=True)
    finish = finish_of([high, low, Job("this", THIS)], limit=2)
    assert finish.exit_code == 0
    assert finish.result["low_priority_1"].status is BranchStatus.CANCELLED
    assert "high_priority_*" in str(finish.result["low_priority_1"].reason)
    assert list(finish.counted) == ["this"]


def test_a_breach_stops_what_runs_and_keeps_what_has_ended() -> None:
    jobs = [Job("this", THIS), Job("endless", ENDLESS), Job("never", THIS)]
    finish = finish_of(jobs, 1, 3600, lambda clock: clock.jump(3600))
    assert finish.exit_code == 3
    assert [result.status for result in finish.result.values()] == [
        BranchStatus.SUCCEEDED,
        BranchStatus.BREACHED,
        BranchStatus.SKIPPED,
    ]
    assert all(
        "--breach-after 3600" in str(finish.result[key].reason) for key in ("endless", "never")
    )
    assert list(finish.counted) == ["this"]
    assert finish.seconds >= 3600


@posix
def test_ctrl_c_stops_what_runs_and_keeps_what_has_ended() -> None:
    jobs = [Job("this", THIS), Job("endless", ENDLESS), Job("never", THIS)]
    finish = finish_of(jobs, 1, None, lambda clock: signal.raise_signal(signal.SIGINT))
    assert finish.exit_code == 130
    assert [result.status for result in finish.result.values()] == [
        BranchStatus.SUCCEEDED,
        BranchStatus.CANCELLED,
        BranchStatus.SKIPPED,
    ]
    for key in ("endless", "never"):
        assert finish.result[key].reason == "interrupted by Ctrl-C"
    assert list(finish.counted) == ["this"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
def test_ctrl_c_in_the_midst_of_the_real_thing_ends_with_the_tables(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with subprocess.Popen(
        command("demo", "--limit", "2", "--json", str(file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "2 running (limit 2)" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
    assert process.returncode == 130
    assert err == ""
    assert "Totals" in out
    assert "Endings" in out
    written = json.loads(file.read_text())
    assert written["interrupted"] is True
    assert list(statuses(written)) == list(BY_NAME)
    assert set(statuses(written).values()) <= {"succeeded", "cancelled", "skipped"}
    assert written["endings"]["skipped"] > 0
    for name, status in statuses(written).items():
        if status == "skipped":
            assert f"'{name}' never ran: interrupted by Ctrl-C\n" in out


@pytest.mark.parametrize(
    "interrupt",
    [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])],
    ids=["before the step is open", "the second one"],
)
def test_a_ctrl_c_that_the_step_does_not_get_ends_it_quietly(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise interrupt

    monkeypatch.setattr("trio.run", interrupted)
    assert main(["demo", "--only", "this"]) == 130
    out, err = capsys.readouterr()
    assert "Totals" not in out
    assert err.strip() == ""


def test_a_python_without_sources_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Error: this Python keeps no .py files of its standard library\n"


def test_an_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise BaseExceptionGroup("", [KeyboardInterrupt(), RuntimeError("a bug")])

    monkeypatch.setattr("trio.run", broken)
    with pytest.raises(BaseExceptionGroup) as caught:
        main(["demo", "--only", "this"])
    assert caught.group_contains(RuntimeError, match="a bug")


@posix
def test_a_reader_that_leaves_ends_it_without_a_traceback() -> None:
    with subprocess.Popen(
        command("demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("Census of the standard library of Python ")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# ---------------------------------------------------------------- the view


def test_where_output_is_no_terminal_it_is_plain_lines() -> None:
    done = subprocess.run(
        command("demo", "--only", "c*", "--fail", "1"),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert " failed: ToldToFail: told to by --fail\n" in done.stdout


def on_a_terminal(*args: str, **env: str) -> tuple[int, str]:
    """The exit code, and all that was written to the terminal."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*args), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**env)
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux says that nobody has it open any more
            pass
        finally:
            os.close(ours)
    return process.returncode, shown.decode()


@posix
def test_on_a_terminal_the_view_is_live_and_gives_the_terminal_back() -> None:
    code, shown = on_a_terminal("demo", "--only", "c*", "--fail", "1")
    assert code == 1
    assert "running (limit " in shown
    assert "told to by --fail" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor


@posix
def test_on_a_terminal_without_cursor_codes_it_is_plain_lines() -> None:
    code, shown = on_a_terminal("demo", "--only", "this", TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert "Totals" in shown


def test_forced_colours_in_a_file_bring_no_cursor_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO())
    assert console.is_terminal
    assert isinstance(open_view(console, Progress()), PlainView)


async def test_progress_adds_up_and_tells_every_ending_but_success() -> None:
    class Checking(Progress):
        seen = 0

        def branch_ended(self, branch: Any, result: StepResult[Any]) -> None:
            super().branch_ended(branch, result)
            self.seen += 1
            assert self.total == 3
            assert self.ended == self.seen

    async def fails() -> None:
        raise ValueError("no")

    progress = Checking()
    sleep = trio.sleep_forever
    with pytest.raises(trio_parallel_steps.BranchErrors):
        await run_branches({"a": sleep, "b": fails, "c": sleep}, 2, observers=[progress])
    assert progress.seen == 3
    assert (progress.queued, list(progress.running), progress.ended, progress.ran) == (0, [], 3, 2)
    assert {result.name: result.status.value for result in progress.take_news()} == {
        "a": "cancelled",
        "b": "failed",
        "c": "skipped",
    }
    assert progress.take_news() == []


def test_only_so_many_names_are_shown() -> None:
    progress = Progress()
    progress.running = {f"p{i}": None for i in range(12)}
    assert names(progress) == "p0, p1, p2, p3, p4, p5, p6, p7, p8, p9 and 2 more"
    progress.running = {"p0": None, "p1": None}
    assert names(progress) == "p0, p1"
