"""SIGINT at random moments, to programs that run in real time in processes of their own: what must
hold of each, and how, is told in ``interrupted.py``.

A trial has its signal inside the program; those that came too early or too late count for nothing,
and those that CPython has torn are counted apart.
What is marked `long` is for ``nox -s chaos``: there a program has to be gone within a second, which
is the promise; elsewhere the machine may be as busy as it likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import figures
import interrupted
import trio_parallel_steps

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is nothing to fork")

SECOND = 1000  # in ms


def serve(host: str, seed: int, inside: int) -> subprocess.Popen[str]:
    """Trials until so many had their signal inside."""
    ours = [Path(interrupted.__file__).parent, Path(trio_parallel_steps.__file__).parent.parent]
    path = os.pathsep.join([*map(str, ours), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", interrupted.__file__, host, str(seed), str(inside)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def read(server: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert server.stdout is not None
    trials = list(map(json.loads, server.stdout))
    assert server.wait() == 0
    return trials


def run_trials(*wanted: tuple[str, int]) -> float:
    """On that host, so many, all at once.  Returns the longest time from a signal to the end of its
    process, in ms."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(host, seed, inside))
            for seed, (host, inside) in enumerate(wanted)
        ]
        seen = [trial for server in servers for trial in read(server)]
    for trial in seen:
        assert not trial["violations"], json.dumps(trial, indent=1)
    hosts = dict.fromkeys(host for host, _ in wanted)
    return max(note(host, [trial for trial in seen if trial["host"] == host]) for host in hosts)


def note(host: str, trials: list[dict[str, Any]]) -> float:
    met = [trial for trial in trials if trial["where"] == "inside"]
    longest: float = max(trial["ms"] for trial in met)
    figures.add(
        "signals",
        host=host,
        sent=sum(trial["sent"] for trial in trials),
        inside=len(met),
        twice=sum(trial["sent"] == 2 for trial in met),
        torn=sum(trial["where"] == "torn" for trial in trials),
        longest_ms=longest,
        violations=0,
    )
    return longest


def test_a_signal_at_any_moment_ends_a_program_and_all_its_cleanup_is_done() -> None:
    run_trials(("trio", 80), ("trio at checkpoints", 80), ("asyncio", 60))


@pytest.mark.long
def test_two_thousand_signals_and_each_program_is_gone_within_a_second() -> None:
    assert run_trials(("trio", 1_000), ("trio at checkpoints", 500), ("asyncio", 500)) <= SECOND
