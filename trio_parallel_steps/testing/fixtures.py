"""Fixtures for pytest.  In the conftest.py of your tests::

pytest_plugins = ["trio_parallel_steps.testing.fixtures"]
"""

from collections.abc import Iterator

import pytest

from ._invariants import check_invariants
from ._recorder import Recorder, recorder


@pytest.fixture
def step_recorder() -> Iterator[Recorder]:
    """A `trio_parallel_steps.testing.Recorder` for ``observers=[step_recorder]``; when the test is
    over, all that it was told is checked by `trio_parallel_steps.testing.check_invariants`."""
    recorded = recorder()
    yield recorded
    check_invariants(recorded)
