"""Settings for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

import drivers
from clocks import PATIENCE, stalls_fail

# A shell starts what it puts in the background with Ctrl-C ignored, and so would the children of
# the tests be.  Caught here, it is as it was for those that are executed.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A schedule that takes long is no bug, and the machine may be busy; what CI draws it must draw
# again, which is hypothesis' own choice there.
settings.register_profile("patient", settings.get_profile("default"), deadline=None)
# For `nox -s mutmut`, which runs them thousands of times.
settings.register_profile(
    "few", deadline=None, derandomize=True, database=None, max_examples=10, phases=[Phase.generate]
)
if settings.get_current_profile_name() == "default":
    settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def a_stall_is_a_failure() -> Iterator[None]:
    with stalls_fail(float(os.environ.get("PATIENCE", PATIENCE))):
        yield


@pytest.fixture
def threads_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for threads, and would take seconds each."""
    monkeypatch.setattr(drivers, "PAUSE", 0.001)
