"""in_process: a sync function in a process of its own, which ends when its branch is told to.

Processes are real: FIFOs say when, never sleeps.  Time that passes for a timeout is jumped over.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import psutil
import pytest
import trio
import trio_parallel

import __main__
import workers
from helpers import BREACHED, CANCELLED, SUCCEEDED, TIMED_OUT
from jumps import EVERY_HOST, Jump, Run, garbage, on_asyncio, on_trio, on_uvloop
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    BranchNursery,
    Breached,
    in_process,
    in_thread,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps.hosts._calls import Call, NotTaken, call as run_call

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

THOSE_OF_ASYNCIO = pytest.mark.parametrize("run", [on_asyncio, on_uvloop])


@pytest.fixture(autouse=True)
def bare_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers need nothing of pytest's main module, which takes them a while to import."""
    monkeypatch.setattr(__main__, "__spec__", None)
    monkeypatch.delattr(__main__, "__file__", raising=False)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    return make_fifo(tmp_path / "fifo")


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


async def hear(fifo: Path) -> int:
    """The process id of the worker that tells it."""
    return await in_thread(read_from)(fifo)


def read_from(fifo: Path) -> int:
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ready, _, _ = select.select([fd], [], [], 60)
        assert ready, "no worker says anything"
        return int(os.read(fd, 100))
    finally:
        os.close(fd)


def is_gone(pid: int) -> bool:
    """Ended and reaped."""
    return not psutil.pid_exists(pid)


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize("run", [on_trio, on_asyncio, on_uvloop])
def test_it_runs_in_a_process_which_is_used_again_and_ends_with_the_run(run: Run) -> None:
    async def main(jump: Jump) -> int:
        async with open_branch_nursery(1) as nursery:
            nursery.start_soon("a", in_process(workers.pid))
            nursery.start_soon("b", in_process(workers.all_of), 1, 2)
            nursery.start_soon("c", in_process(workers.pid))
        pid: int = nursery.result.outputs["a"]
        assert pid != os.getpid()
        assert nursery.result.outputs == {"a": pid, "b": ((1, 2), {}), "c": pid}
        assert await in_process(workers.all_of)(1, two=2) == ((1,), {"two": 2})
        assert await in_process(workers.pid)() == pid
        return pid

    assert is_gone(run(main))


@EVERY_HOST
def test_the_steps_limiter_is_the_only_cap(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that wait for each other, where trio-parallel's own limiter would admit one."""
    monkeypatch.setattr("trio_parallel._impl.DEFAULT_LIMIT", 1)
    here = [make_fifo(tmp_path / f"here{n}") for n in range(2)]
    all_are = [make_fifo(tmp_path / f"all{n}") for n in range(2)]

    async def main(jump: Jump) -> None:
        async with open_branch_nursery(2) as nursery:
            for n in range(2):
                nursery.start_soon(n, in_process(workers.meets), here[n], all_are[n])
            pids = {n: await hear(here[n]) for n in range(2)}
            for path in all_are:
                await in_thread(path.write_text)("all")
        assert nursery.result.outputs == pids
        assert len(set(pids.values())) == 2

    run(main)


def test_a_worker_may_run_an_event_loop_of_its_own() -> None:
    async def main() -> int:
        return await in_process(workers.runs_a_loop)()

    assert trio.run(main) == 42


# ---------------------------------------------------------------- what is stopped


async def outlive(jump: Jump, fifo: Path, how: str) -> tuple[BranchNursery, int]:
    """The step of a branch that hangs until it is stopped, and its process."""
    options: dict[str, Any] = {"deadline": {"move_on_after": 60}}.get(how, {})
    pid = 0
    with anyio.CancelScope() as outside, suppress(BranchErrors, Breached):
        async with open_branch_nursery(2, **options) as nursery:
            timeout = 60 if how == "timeout" else float("inf")
            nursery.start_soon("a", in_process(workers.hangs), fifo, timeout=timeout)
            pid = await hear(fifo)
            assert psutil.pid_exists(pid)
            match how:
                case "cancel":
                    nursery.cancel("a")
                case "breach":
                    nursery.breach("enough")
                case "policy":
                    nursery.start_soon("b", in_thread(int), "x")
                case "outside":
                    outside.cancel()
                case _:
                    jump(60)
    return nursery, pid


@EVERY_HOST
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("cancel", CANCELLED),
        ("breach", BREACHED),
        ("timeout", TIMED_OUT),
        ("deadline", TIMED_OUT),
        ("policy", CANCELLED),
        ("outside", CANCELLED),
    ],
)
def test_what_stops_the_branch_kills_its_process(
    run: Run, fifo: Path, how: str, status: Any
) -> None:
    """And when the block is left, it is gone."""

    async def main(jump: Jump) -> None:
        nursery, pid = await outlive(jump, fifo, how)
        assert nursery.result["a"].status is status
        assert is_gone(pid)

    run(main)


@EVERY_HOST
def test_a_branch_may_be_stopped_before_its_process_has_started(run: Run, fifo: Path) -> None:
    async def main(jump: Jump) -> None:
        for turns in range(3):
            started = anyio.Event()

            async def hangs(started: anyio.Event) -> None:
                started.set()
                await in_process(workers.hangs)(fifo)

            async with open_branch_nursery(1) as nursery:
                nursery.start_soon("a", hangs, started)
                await started.wait()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                nursery.cancel("a")
            assert nursery.result["a"].status is CANCELLED

    run(main)
    assert not children()


def children() -> list[psutil.Process]:
    """Without multiprocessing's own tracker of resources, which stays."""
    return [
        process
        for process in psutil.Process().children()
        if "resource_tracker" not in " ".join(process.cmdline())
    ]


@EVERY_HOST
def test_others_go_on_when_one_is_killed(run: Run, fifo: Path, tmp_path: Path) -> None:
    here, all_are = make_fifo(tmp_path / "here"), make_fifo(tmp_path / "all")

    async def main(jump: Jump) -> None:
        async with open_branch_nursery(2) as nursery:
            nursery.start_soon("killed", in_process(workers.hangs), fifo)
            nursery.start_soon("goes on", in_process(workers.meets), here, all_are)
            pid = await hear(fifo)
            other = await hear(here)
            nursery.cancel("killed")
            await nursery["killed"].wait()
            assert is_gone(pid)
            await in_thread(all_are.write_text)("go")
        assert nursery.result.outputs == {"goes on": other}

    run(main)


# ---------------------------------------------------------------- what fails


def broken(result: Any) -> str:
    assert type(result.exception) is trio_parallel.BrokenWorkerError
    assert type(result.exception.__cause__).__mro__[1] is trio_parallel.BrokenWorkerError
    return str(result.exception)


@EVERY_HOST
def test_a_worker_that_dies_fails_its_branch_alone(run: Run) -> None:
    async def main(jump: Jump) -> None:
        realtime = signal.SIGRTMIN + 1
        async with open_branch_nursery(5, policy=COLLECT) as nursery:
            for how in (3, 1, -signal.SIGSEGV, -realtime):
                nursery.start_soon(how, in_process(workers.dies), how)
            nursery.start_soon("well", in_process(workers.pid))
        result = nursery.result
        died = "the worker process of dies() died: "
        assert broken(result[3]) == died + "exit code 3"
        assert broken(result[1]).startswith(died + "exit code 1, see stderr; a worker imports")
        assert broken(result[-signal.SIGSEGV]) == died + "killed by SIGSEGV"
        assert broken(result[-realtime]) == died + f"killed by signal {realtime}"
        assert result["well"].status is SUCCEEDED

    run(main)


@EVERY_HOST
def test_an_idle_worker_that_is_killed_is_missed_by_nobody(run: Run) -> None:
    async def kill(pid: int) -> None:
        process = psutil.Process(pid)
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            await in_thread(lambda: None)()

    async def main(jump: Jump) -> None:
        first = await in_process(workers.pid)()
        await kill(first)
        second = await in_process(workers.pid)()
        assert second != first
        await kill(second)  # it is missed at the end of the run neither

    run(main)


@EVERY_HOST
def test_an_error_of_the_functions_comes_out_as_itself(run: Run) -> None:
    async def main(jump: Jump) -> None:
        functions: dict[str, Callable[[], Any]] = {
            "custom": workers.raises,
            "not picklable": workers.raises_what_cannot_be_pickled,
            "theirs": workers.raises_a_broken_worker_error,
            "stop": functools.partial(next, iter(())),
        }
        result = await run_branches(
            {key: in_process(function) for key, function in functions.items()}, 1, policy=COLLECT
        )
        custom = result["custom"].exception
        assert type(custom) is workers.Custom
        assert (str(custom), custom.code) == ("7: in the worker", 7)
        assert repr(custom.__cause__) == "KeyError('the cause')"
        names = [frame.name for frame in traceback.extract_tb(custom.__traceback__)]
        assert names[-1] == "raises"
        assert "in raises" in "".join(traceback.format_exception(custom))

        exc = result["not picklable"].exception
        assert type(exc) is RuntimeError
        assert str(exc).startswith("Holding: own words (which can't be pickled: TypeError: ")
        assert "in raises_what_cannot_be_pickled\n    raise Holding" in exc.__notes__[0]

        assert repr(result["theirs"].exception) == "BrokenWorkerError('own words')"
        assert str(result["stop"].exception) == "coroutine raised StopIteration"

    run(main)


@EVERY_HOST
def test_what_cannot_be_pickled_is_a_type_error_that_says_what(run: Run) -> None:
    def local() -> None:
        pytest.fail("run")

    async def main(jump: Jump) -> None:
        async with open_branch_nursery(1, policy=COLLECT) as nursery:
            nursery.start_soon("function", in_process(local))
            nursery.start_soon("argument", in_process(workers.all_of), threading.Lock())
            nursery.start_soon("result", in_process(workers.returns_what_cannot_be_pickled))
            nursery.start_soon("coroutine", in_process(workers.returns_a_coroutine))
            nursery.start_soon("one way", in_process(workers.returns_one_way))
        said = {key: str(exc) for key, exc in nursery.result.errors.items()}
        assert {type(exc) for exc in nursery.result.errors.values()} == {TypeError}
        picked = " and its arguments must be picklable, to go to a worker process, and are not: "
        assert "<locals>.local()" + picked in said["function"]
        assert said["argument"].startswith("all_of()" + picked + "TypeError: cannot pickle")
        assert said["result"].startswith(
            "what returns_what_cannot_be_pickled() returned must be picklable, "
            "to come from a worker process, and is not: TypeError: cannot pickle"
        )
        assert said["coroutine"].startswith("what returns_a_coroutine() returned must be picklable")
        assert said["one way"] == (
            "what returns_one_way() returned can't be unpickled here: LookupError: not here"
        )

    run(main)


@EVERY_HOST
def test_what_no_one_collects_is_not_collected(run: Run) -> None:
    async def main(jump: Jump) -> None:
        await run_branches({"a": in_process(workers.raises_what_is_no_exception)}, policy=COLLECT)

    with pytest.raises((SystemExit, BaseExceptionGroup)) as caught:
        run(main)
    exc: BaseException = caught.value
    while isinstance(exc, BaseExceptionGroup):
        (exc,) = exc.exceptions
    assert repr(exc) == "SystemExit(5)"


@EVERY_HOST
def test_a_process_that_cannot_be_started_fails_its_branch(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(process: Any) -> None:
        raise BlockingIOError("too many")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)

    async def main(jump: Jump) -> None:
        result = await run_branches({"a": in_process(workers.pid)}, policy=COLLECT)
        assert repr(result["a"].exception) == "BlockingIOError('too many')"

    run(main)


@EVERY_HOST
def test_workers_that_die_before_they_take_a_call_are_replaced_a_few_times_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here never; with a main module that raises it would go on for ever."""
    monkeypatch.setattr("trio_parallel_steps.hosts._trio_processes.FRESH", 0)

    async def main(jump: Jump) -> None:
        result = await run_branches({"a": in_process(workers.pid)}, policy=COLLECT)
        error = result["a"].exception
        assert type(error) is trio_parallel.BrokenWorkerError
        assert str(error).startswith("no worker process has lived to take pid(): see stderr; a wor")

    run(main)


@EVERY_HOST
def test_nothing_is_left_to_the_garbage_collector(run: Run) -> None:
    async def program() -> None:
        async with open_branch_nursery(1, policy=COLLECT) as nursery:
            nursery.start_soon("a", in_process(workers.pid))
            nursery.start_soon("b", in_process(workers.raises))
            nursery.start_soon("c", in_process(workers.returns_one_way))

    async def main(jump: Jump) -> None:
        await program()  # what is made once has been made
        with garbage() as found:
            await program()
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        assert found == []

    for thread in threading.enumerate():
        if thread.name == "in_process":  # of an event loop that is gone: what it leaves is not ours
            thread.join(30)
    run(main)


# ---------------------------------------------------------------- without what it needs


def test_without_trio_parallel_it_says_which_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trio_parallel", None)
    with pytest.raises(ImportError, match=r"pip install 'trio-parallel-steps\[process\]'$"):
        in_process(pow)


def test_without_trio_parallel_the_package_is_imported_all_the_same() -> None:
    script = """
import sys
sys.modules["trio_parallel"] = None
from trio_parallel_steps import in_process
try:
    in_process(pow)
except ImportError as exc:
    print(exc.name, exc)
"""
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said == (
        "trio_parallel in_process() needs trio-parallel: "
        "pip install 'trio-parallel-steps[process]'\n"
    )


def test_the_extra_has_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert [each.partition(">")[0] for each in extras["process"]] == ["trio-parallel"]
    assert "process" in extras["all"][0]


def test_it_is_named_as_the_function() -> None:
    assert in_process(workers.pid).__name__ == "pid"
    assert in_process(functools.partial(pow)).__wrapped__.func is pow  # type: ignore[attr-defined]


def test_a_function_without_a_name_is_shown() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"^functools.partial\(<function .*<lambda> .*must be"):
            await in_process(functools.partial(lambda: None))()

    trio.run(main)


async def test_a_coroutine_or_an_async_function_is_refused_before_anything_starts() -> None:
    coroutine = workers.an_async_function()
    with pytest.raises(TypeError, match=r"^`sync_fn` must be a function, got <coroutine"):
        in_process(coroutine)  # type: ignore[arg-type]
    coroutine.close()
    for given in (workers.an_async_function, functools.partial(workers.an_async_function)):
        with pytest.raises(TypeError, match="sync function: an async one needs no process, got"):
            in_process(given)


def test_outside_an_event_loop_it_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="async context"):
        in_process(workers.pid)().send(None)  # type: ignore[attr-defined]


def test_a_call_that_is_asked_too_often_is_refused() -> None:
    """As when one worker after another dies of the main module: else that would never end."""
    asked = Call(workers.pid, (), {})
    with pytest.raises(NotTaken):
        pickle.dumps(asked)
    asked.sends_left = 1
    assert pickle.loads(pickle.loads(pickle.dumps(asked)))[0] is workers.pid
    with pytest.raises(NotTaken):
        pickle.dumps(asked)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (workers.raises, workers.Custom),
        (workers.returns_a_coroutine, TypeError),
        (workers.raises_what_cannot_be_pickled, RuntimeError),
    ],
)
def test_what_a_worker_does_can_be_done_here(given: Any, error: type[Exception]) -> None:
    asked = Call(given, (), {})
    asked.sends_left = 1
    with pytest.raises(error) as caught:
        asked.answer(run_call(pickle.loads(pickle.dumps(asked))))
    assert type(caught.value) is error
    assert caught.value.__context__ is None or error is workers.Custom
    assert asked.answer(run_call(pickle.dumps((pow, (2,), {"exp": 3})))) == 8


# ---------------------------------------------------------------- asyncio: a thread beside the loop


async def hang(fifo: Path) -> tuple[asyncio.Task[Any], int]:
    async def hangs() -> Any:
        return await in_process(workers.hangs)(fifo)

    task = asyncio.create_task(hangs())
    return task, await hear(fifo)


@THOSE_OF_ASYNCIO
def test_a_loop_that_shuts_down_ends_its_processes(run: Run, fifo: Path) -> None:
    async def main(jump: Jump) -> None:
        task, pid = await hang(fifo)
        await asyncio.get_running_loop().shutdown_asyncgens()
        assert is_gone(pid)
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RuntimeError, match="the event loop has been shut down"):
            await in_process(workers.pid)()

    run(main)


@THOSE_OF_ASYNCIO
def test_a_task_that_is_left_running_is_cancelled_with_its_process(run: Run, fifo: Path) -> None:
    async def main(jump: Jump) -> tuple[asyncio.Task[Any], int]:
        return await hang(fifo)

    task, pid = run(main)
    assert task.cancelled()
    assert is_gone(pid)


def test_one_thread_beside_the_loop_which_ends_with_it() -> None:
    before = set(threading.enumerate())

    async def main(jump: Jump) -> list[threading.Thread]:
        await run_branches({n: in_process(workers.pid) for n in range(3)}, 1)
        tasks = asyncio.all_tasks()
        assert tasks == {asyncio.current_task()}
        return [each for each in threading.enumerate() if each.name == "in_process"]

    (thread,) = on_asyncio(main)
    thread.join()  # hangs, if it is kept
    assert thread not in before


@pytest.mark.parametrize("busy", [False, True])
def test_a_loop_that_is_dropped_ends_its_processes_too(
    busy: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the call that was out has ended, which then nobody hears of."""
    here, go = make_fifo(tmp_path / "here"), make_fifo(tmp_path / "go")
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> int:
        if not busy:
            return await in_process(workers.pid)()

        async def meets() -> None:
            await in_process(workers.meets)(here, go)

        tasks.append(asyncio.create_task(meets()))
        return await hear(here)

    loop = asyncio.new_event_loop()
    pid = loop.run_until_complete(main())
    (thread,) = [each for each in threading.enumerate() if each.name == "in_process"]
    loop.close()
    del loop
    tasks.clear()
    if busy:
        go.write_text("go")
    for _ in range(6000):
        gc.collect()
        thread.join(0.01)
        if not thread.is_alive():
            break
    assert not thread.is_alive()
    assert is_gone(pid)
    said = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert said == ["Task was destroyed but it is pending!"] * busy  # asyncio's own word


def test_a_trio_run_that_cannot_start_is_an_error_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(main: Any) -> None:
        raise OSError("too many open files")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trio, "run", run)
            with pytest.raises(OSError, match="too many open files"):
                await in_process(workers.pid)()
        assert await in_process(workers.pid)() != os.getpid()  # the next one can

    asyncio.run(main())


# ---------------------------------------------------------------- whole programs

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
import trio
import workers
from trio_parallel_steps import in_process, open_branch_nursery

async def idle():
    print(await in_process(workers.pid)(), flush=True)

async def hangs():
    async with open_branch_nursery() as nursery:
        nursery.start_soon("a", in_process(workers.hangs), Path(sys.argv[1]))

def trio_run(main):
    trio.run(main)

def asyncio_run(main):
    asyncio.run(main())

def never_closed(main):
    global loop
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())

async def big():
    await in_process(len)(bytes(1_000_000))

"""


def start(tmp_path: Path, last_lines: str, *args: str) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM + last_lines)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, str(script), *args],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["trio_run", "asyncio_run", "never_closed"])
def test_no_process_outlives_the_interpreter(how: str, tmp_path: Path) -> None:
    program = start(tmp_path, f'if __name__ == "__main__":\n    {how}(idle)\n')
    out, err = program.communicate()
    assert err == ""
    assert program.returncode == 0
    assert is_gone(int(out))


@pytest.mark.parametrize("how", ["trio_run", "asyncio_run"])
def test_an_interrupt_kills_the_process_and_is_raised(how: str, fifo: Path, tmp_path: Path) -> None:
    program = start(tmp_path, f'if __name__ == "__main__":\n    {how}(hangs)\n', str(fifo))
    pid = read_from(fifo)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate()
    assert "KeyboardInterrupt" in err.splitlines()[-1 if how == "asyncio_run" else -2]
    assert is_gone(pid)


@pytest.mark.parametrize(("main", "said"), [("idle", "exit code 1"), ("big", "has lived to take")])
def test_a_main_module_without_a_guard_is_an_error_and_not_the_start_of_very_many_processes(
    main: str, said: str, tmp_path: Path
) -> None:
    program = start(tmp_path, f"trio_run({main})\n")
    _, err = program.communicate()
    assert program.returncode == 1
    last = err.rstrip().splitlines()[-1]
    assert last.startswith("trio_parallel.BrokenWorkerError: ")
    assert said in last
    assert 'must be under `if __name__ == "__main__"`' in last
