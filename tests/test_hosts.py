"""Which event loop runs here, and what is said where it is the wrong one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sniffio
import trio
import trio.testing

import trio_parallel_steps
from drivers import run_asyncio, run_trio
from trio_parallel_steps import (
    COLLECT,
    BranchLimiter,
    BranchStatus,
    Breach,
    check_cancelled,
    current_branch,
    in_thread,
    open_branch_nursery,
    run_branches,
    run_branches_sync,
)


async def a_value() -> int:
    return 7


async def step(**options: Any) -> dict[str, int]:
    return (await run_branches({"a": a_value}, **options)).outputs


# ---------------------------------------------------------------- detection


def test_each_loop_is_found() -> None:
    assert run_trio(step) == {"a": 7}
    assert run_asyncio(step) == {"a": 7}


def test_a_step_is_asked_for_its_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    found = sniffio.current_async_library

    def asks() -> str:
        asked.append(1)
        return found()

    import trio_parallel_steps.hosts as hosts

    monkeypatch.setattr(hosts, "current_async_library", asks)

    async def main() -> None:
        asked.clear()
        async with open_branch_nursery(2) as nursery:
            for key in range(20):
                nursery.start_soon(key, a_value)
            nursery.cancel(3)
            nursery[5].priority = 2
        assert len(asked) == 1

    run_asyncio(main)
    run_trio(main)


@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_the_host_can_be_named(host: str) -> None:
    run: Any = run_trio if host == "trio" else run_asyncio

    async def main() -> dict[str, int]:
        return await step(host=host)

    assert run(main) == {"a": 7}


def test_the_name_goes_before_what_sniffio_says() -> None:
    async def main() -> dict[str, int]:
        token = sniffio.current_async_library_cvar.set("trio")
        try:
            return await step(host="asyncio")
        finally:
            sniffio.current_async_library_cvar.reset(token)

    assert run_asyncio(main) == {"a": 7}


def test_guest_mode_is_two_loops_in_one_thread() -> None:
    """asyncio's side finds asyncio, trio's side trio."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        seen: list[Any] = []

        async def trio_main() -> None:
            seen.append((sniffio.current_async_library(), await step()))
            seen.append(await step(host="trio"))

        trio.lowlevel.start_guest_run(
            trio_main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome),
        )
        seen.append((sniffio.current_async_library(), await step()))
        (await done).unwrap()
        return seen

    seen = asyncio.run(main())
    assert sorted(map(str, seen)) == [
        "('asyncio', {'a': 7})",
        "('trio', {'a': 7})",
        "{'a': 7}",
    ]


# ---------------------------------------------------------------- the wrong place


@pytest.mark.parametrize(
    ("host", "error", "match"),
    [
        ("curio", ValueError, r"`host` must be 'trio', 'asyncio' or None, got 'curio'"),
        (3, TypeError, "`host` must be a str, got 3"),
    ],
)
def test_a_host_that_is_none(host: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        open_branch_nursery(host=host)


def test_a_loop_that_is_neither() -> None:
    async def main() -> None:
        token = sniffio.current_async_library_cvar.set("curio")
        try:
            with pytest.raises(RuntimeError, match="neither trio nor asyncio, but 'curio'"):
                await step()
        finally:
            sniffio.current_async_library_cvar.reset(token)

    run_asyncio(main)


def send(coroutine: Any) -> None:
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def test_outside_any_loop() -> None:
    with pytest.raises(RuntimeError, match="must be called from async context, on trio or asyncio"):
        send(step())
    with pytest.raises(RuntimeError, match="must be called from async context, on trio or asyncio"):
        send(BranchLimiter(1).__aenter__())
    with pytest.raises(RuntimeError, match="not inside a branch"):
        current_branch()
    Breach().trip("bound to no loop: fine")
    BranchLimiter(1).pause("as is this")


@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_a_named_host_that_does_not_run(host: str) -> None:
    """The message names it."""
    run: Any = run_asyncio if host == "trio" else run_trio

    async def main() -> None:
        with pytest.raises(RuntimeError, match=host):
            await step(host=host)

    run(main)
    with pytest.raises(RuntimeError, match=host):
        send(step(host=host))


def test_redeliver_is_checked() -> None:
    with pytest.raises(ValueError, match="`redeliver` must be a number of seconds >= 0"):
        open_branch_nursery(redeliver=-1)
    with pytest.raises(TypeError, match="`redeliver` must be a number of seconds"):
        open_branch_nursery(redeliver="soon")  # type: ignore[arg-type]


# ---------------------------------------------------------------- functions of the other library


async def trio_sleeps() -> None:
    await trio.sleep(1)


async def trio_passes() -> None:
    await trio.lowlevel.checkpoint()


async def trio_waits() -> None:
    await trio.Event().wait()


async def trio_opens() -> None:
    async with trio.open_nursery():
        pass


async def trio_moves_on() -> None:
    with trio.move_on_after(1):
        await a_value()


async def asyncio_sleeps() -> None:
    await asyncio.sleep(1)


async def asyncio_passes() -> None:
    await asyncio.sleep(0)


async def asyncio_waits() -> None:
    await asyncio.Event().wait()


async def asyncio_opens() -> None:
    async with asyncio.timeout(1):
        await a_value()


FOREIGN = [
    *[("asyncio", fn) for fn in (trio_sleeps, trio_passes, trio_waits, trio_opens, trio_moves_on)],
    *[("trio", fn) for fn in (asyncio_sleeps, asyncio_passes, asyncio_waits, asyncio_opens)],
]


@pytest.mark.parametrize(("host", "fn"), FOREIGN, ids=lambda value: str(value)[:30])
def test_a_function_of_the_other_library_says_so(host: str, fn: Any) -> None:
    run: Any = run_trio if host == "trio" else run_asyncio
    other = "asyncio" if host == "trio" else "trio"

    async def main() -> Any:
        return (await run_branches({"wrong": fn, "right": a_value}, policy=COLLECT))["wrong"]

    ended = run(main)
    assert ended.status.value == "failed"
    assert isinstance(ended.exception, RuntimeError | TypeError)
    said = str(ended.exception)
    assert "'wrong'" in said
    assert f"{other}'s" in said
    assert f"{host} that runs here" in said
    assert ended.exception.__cause__ is not None
    assert said in ended.feedback


@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_an_error_that_only_looks_like_it_is_left_alone(host: str) -> None:
    run: Any = run_trio if host == "trio" else run_asyncio

    async def fails() -> None:
        raise ValueError("no running event loop: Task got bad yield")

    async def main() -> Any:
        return (await run_branches({"a": fails}, policy=COLLECT))["a"].exception

    assert type(run(main)) is ValueError


# ---------------------------------------------------------------- the sync door


def test_the_sync_door_brings_its_own_loop() -> None:
    async def which() -> str:
        return sniffio.current_async_library()

    assert run_branches_sync({"a": which}).outputs == {"a": "trio"}
    assert run_branches_sync({"a": which}, host="asyncio").outputs == {"a": "asyncio"}


@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_the_sync_door_is_shut_in_a_running_loop(host: str) -> None:
    run: Any = run_trio if host == "trio" else run_asyncio

    async def main() -> None:
        for named in (None, "trio", "asyncio"):
            with pytest.raises(RuntimeError, match="await run_branches"):
                run_branches_sync({"a": a_value}, host=named)

    run(main)


def test_the_sync_door_is_shut_in_a_callback_of_a_running_loop() -> None:
    """No task runs then, but the loop does."""
    told: list[str] = []

    async def main() -> None:
        def callback() -> None:
            try:
                run_branches_sync({"a": a_value}, host="asyncio")
            except RuntimeError as exc:
                told.append(str(exc))

        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(1)

    run_asyncio(main)
    assert "await run_branches" in told[0]


# ---------------------------------------------------------------- what is loaded


def test_an_asyncio_app_never_runs_trio_and_a_trio_app_never_loads_asyncio() -> None:
    script = """
        import sys
        import trio, trio_parallel_steps as steps
        async def a(): return 7
        async def main():
            return (await steps.run_branches({"a": a})).outputs
        before = "asyncio" in sys.modules
        assert trio.run(main) == {"a": 7}
        assert before or "asyncio" not in sys.modules
        assert "trio_parallel_steps.hosts._asyncio" not in sys.modules
        assert "anyio" not in sys.modules
        def never(*args, **kwargs): raise AssertionError
        trio.run = never
        trio.lowlevel.start_guest_run = never
        import asyncio
        assert asyncio.run(main()) == {"a": 7}
        assert "anyio" not in sys.modules
    """
    root = Path(trio_parallel_steps.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        env={"PYTHONPATH": str(root)},
    )


def test_a_branch_may_catch_what_trio_says_to_a_foreign_await() -> None:
    async def catches() -> str:
        try:
            await asyncio.sleep(0)
        except TypeError:
            return "caught"
        raise AssertionError("unreachable")

    assert run_branches_sync({"a": catches}, host="trio").outputs == {"a": "caught"}


def test_check_cancelled_says_nothing_while_nothing_was_told() -> None:
    def works() -> str:
        check_cancelled()
        return "done"

    for host in ("trio", "asyncio"):
        result = run_branches_sync({"a": in_thread(works)}, host=host)
        assert result.outputs == {"a": "done"}


def test_on_asyncio_a_group_of_nothing_but_cancellations_is_one() -> None:
    async def groups() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as exc:
            raise BaseExceptionGroup("group", [exc]) from None

    async def main() -> BranchStatus:
        async with open_branch_nursery() as nursery:
            nursery.start_soon("a", groups)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            nursery.cancel("a")
        return nursery.result["a"].status

    assert asyncio.run(main()) is BranchStatus.CANCELLED
