"""Real memory: 100 branches that each hold 50 MB, with room for 100, under a limit of 1024 MB.

Without guards they would take 5 GB.  They run in a process of their own; the peak is the kernel's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import figures
import trio_parallel_steps
from memory_hogs import BOUND_MB, BRANCHES, LIMIT_MB, MB, NEEDS_MB
from servers import PATIENCE, missing

SCRIPT = Path(__file__).with_name("memory_hogs.py")
PACKAGE = Path(trio_parallel_steps.__file__).parent.parent


def hogs(host: str, how: str) -> dict[str, Any]:
    """What such a process says at its end."""
    if psutil.virtual_memory().available < 2 * LIMIT_MB * MB:
        missing(f"{2 * LIMIT_MB:.0f} MB of free memory")
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), host, how],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


@pytest.mark.parametrize(
    ("host", "how"),
    [("trio", "reserved"), ("trio", "unreserved"), ("trio", "shed"), ("asyncio", "unreserved")],
)
def test_real_memory_stays_below_its_limit(host: str, how: str) -> None:
    assert BRANCHES * NEEDS_MB > BOUND_MB > LIMIT_MB  # unguarded it would fail
    said = hogs(host, how)
    figures.add("real memory", host=f"{host}, {how}", most_mb=said["peak_mb"])
    assert said["succeeded"] == BRANCHES
    assert said["peak_mb"] <= LIMIT_MB
    assert said["peak_in_flight"] > 1  # nor is it one at a time
