"""One run of a pipeline file: what is shown and written as its calls and commands end.

1. A leaf is a call or a command.  Its line of the joblog, its output and its line are written in
   one go, as it ends; the output only if it failed, or line by line as it comes.
2. A signal breaches the pipeline, so that what is done is kept; a second one cancels what the
   breach lets run.  Process groups are ended before this process is.
"""

import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from trio_parallel_steps import (
    Branch,
    BranchStatus,
    Breach,
    Breached,
    CommandFailed,
    JournalError,
    Pipeline,
    PipelineResult,
    StepResult,
    current_branch,
)
from trio_parallel_steps.abc import Observer

from ._each_run import exit_code_of
from ._job_options import JobOptions
from ._joblog import JobLog
from ._output import JobOutput, Lines, Sink, Stream, WholeLines, printable
from ._signals import open_signals
from ._tracebacks import user_traceback

MARKS = {
    BranchStatus.SUCCEEDED: "ok",
    BranchStatus.FAILED: "FAILED",
    BranchStatus.TIMED_OUT: "TIMED OUT",
    BranchStatus.CANCELLED: "cancelled",
    BranchStatus.BREACHED: "stopped",
}
BAD = frozenset({BranchStatus.FAILED, BranchStatus.TIMED_OUT})


class Leaf:
    """A call or a command of the file."""

    def __init__(
        self, run: "PipelineRun", number: int, names: tuple[str, ...], shown: str, output: JobOutput
    ) -> None:
        self.number = number
        self.key = "/".join(names)
        self.shown = shown
        self.output = output
        self.started = 0.0  # wall clock
        self._run = run

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        self.output(stream, chunk)

    async def run(self, async_fn: Callable[[], Awaitable[Any]]) -> Any:
        self._run.begun[current_branch()] = self
        self.started = self.started or time.time()
        self.output.begin()
        try:
            return await async_fn()
        except SystemExit as leaving:  # of a call: it fails, and the rest of the run goes on
            raise RuntimeError(f"it called sys.exit({leaving.code!r})") from None
        except Exception as exc:  # of a call: where it raised is what it has to show
            self.output("stderr", user_traceback(exc).encode(errors="replace"))
            raise


class PipelineRun(Observer):
    def __init__(self, shared: JobOptions, joblog: JobLog | None) -> None:
        self._shared = shared
        self._joblog = joblog
        self._breach = Breach()
        self._scope = trio.CancelScope()
        self._sink = Sink(self._reader_gone, stdout=2 if shared.json_file == "-" else 1)
        self._number = 0
        self._stopped: int | None = None  # the exit code of what stopped it
        self._reason: str | None = None
        self._result: PipelineResult | None = None
        self._is_breached = False
        self._bad: dict[str, list[str]] = {}  # what to call it, and the keys of those
        self.kept = 0  # calls and commands that the journal says have succeeded
        self.begun: dict[Branch[Any], Leaf] = {}
        self.records: list[dict[str, Any]] = []
        self.error: OSError | None = None
        self.refusal: JournalError | None = None  # before anything has run

    def watch(self, names: tuple[str, ...], shown: str) -> Leaf:
        self._number += 1
        key = "/".join(names)
        output = Lines(self._sink, key, self._number) if self._shared.stream else WholeLines()
        return Leaf(self, self._number, names, shown, output)

    # ------------------------------------------------------------ the run

    async def run(self, pipeline: Pipeline, journal: Path | None) -> None:
        async with trio.open_nursery() as around:
            await around.start(self._watch_signals)
            with self._scope:
                try:
                    self._result = await pipeline.run(
                        breach=self._breach, journal=journal, observers=[self]
                    )
                except JournalError as refusal:
                    self.refusal = refusal
                except Breached as breached:
                    self._is_breached = True
                    if isinstance(breached.result, PipelineResult):
                        self._result = breached.result
            around.cancel_scope.cancel()

    async def _watch_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with open_signals() as signals:
            task_status.started()
            async for number in signals:
                self._stop(128 + number, f"stopped by {signal.Signals(number).name}")

    def _reader_gone(self) -> None:
        self._stop(1, "nobody reads the output any more")

    def _stop(self, exit_code: int, reason: str) -> None:
        if self._stopped is None:
            self._stopped, self._reason = exit_code, reason
            self._breach.trip(reason)
        else:
            self._scope.cancel()

    # ------------------------------------------------------------ endings

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self.kept += result.from_cache
        leaf = self.begun.pop(branch, None)
        if leaf is None:  # it holds others, or has not begun
            return
        is_bad = result.status in BAD
        if is_bad:
            self._note(result.status, leaf.key)
        if isinstance(result.exception, JournalError):  # a full disk, again
            self._stop(1, str(result.exception))
        code = exit_code_of(result)
        if code == 127 and not isinstance(result.exception, CommandFailed | OSError):
            code = 1
        with self._writing():
            if self._joblog is not None and code is not None:
                received = leaf.output.received
                self._joblog.add(
                    leaf.number, leaf.started, result.duration, received, code, leaf.shown
                )
            if self._shared.stream or is_bad:
                leaf.output.finish(self._sink)
            line = f"{MARKS[result.status]:>9}  {leaf.key}  {result.duration:.1f} s"
            if is_bad:
                line += f"  {' '.join(why_not(result).split())}"
            self._sink.write("stderr", os.fsencode(f"{printable(line)}\n"))
        if self._shared.json_file is not None:
            self.records.append(
                {
                    "name": leaf.key,
                    "runs": leaf.shown,
                    "status": result.status.value,
                    "exit_code": code,
                    "attempts": result.attempts,
                    "started": leaf.started,
                    "seconds": result.duration,
                    "feedback": result.feedback,
                }
            )

    def _note(self, status: BranchStatus, key: str) -> None:
        self._bad.setdefault(MARKS[status].lower(), []).append(key)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk stops all."""
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            self._stop(1, str(error))

    # ------------------------------------------------------------ what came of it

    @property
    def exit_code(self) -> int:
        if self._stopped is not None:
            return self._stopped
        if self._is_breached:
            return 3
        result = self._result
        assert result is not None
        if self._has_timed_out:
            return 3
        return int(bool(self._bad) or not result.success)

    @property
    def _has_timed_out(self) -> bool:
        """A step has, or the pipeline; of which a branch may know nothing."""
        result = self._result
        if result is None or result.success:
            return False
        return result.steps[-1].status is BranchStatus.TIMED_OUT

    @property
    def feedback(self) -> str | None:
        return self._reason if self._result is None else self._result.feedback

    @property
    def summary(self) -> str | None:
        """The last line: what stopped it, or the keys of what has not succeeded."""
        if self._stopped is not None or self._is_breached:
            return self._reason or self.feedback
        bad = {mark: list(keys) for mark, keys in self._bad.items()}
        if self._has_timed_out:
            assert self._result is not None
            step, timed_out = self._result.steps[-1].name, bad.setdefault("timed out", [])
            if step not in timed_out:
                timed_out.insert(0, step)
        told = "; ".join(f"{mark}: {', '.join(keys)}" for mark, keys in bad.items())
        return told or (self.feedback and " ".join(self.feedback.split()))

    def as_dict(self) -> dict[str, Any]:
        result = self._result
        steps = () if result is None else result.steps
        return {
            "success": self.exit_code == 0,
            "feedback": self.feedback,
            "usage": {} if result is None else result.usage,
            "from_journal": self.kept,
            "steps": [
                {"name": step.name, "status": step.status.value, "from_journal": step.from_cache}
                for step in steps
            ],
            "jobs": self.records,
        }


def why_not(result: StepResult[Any]) -> str:
    """Its mark has said that it failed, or timed out."""
    error = result.exception
    match error:
        case CommandFailed() | trio.TooSlowError():
            return str(error)
        case OSError(filename=str() | Path() as file, strerror=str(reason)):
            return f"{str(file)!r}: {reason}"
        case None:
            return result.reason or ""
    return (result.feedback or "").removeprefix(f"{result.name!r} failed: ")
