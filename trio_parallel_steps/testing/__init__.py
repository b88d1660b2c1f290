"""Test trio programs: under every schedule, with faults, and against the promises of this package.

Not imported by ``import trio_parallel_steps``; needs nothing else.  `explore` works for any trio
code.  The pytest fixture is in `trio_parallel_steps.testing.fixtures`.
"""

from ._explore import explore as explore, replay as replay
from ._faults import (
    Call as Call,
    Cancel as Cancel,
    Deadline as Deadline,
    Fault as Fault,
    Interrupt as Interrupt,
    SetLimit as SetLimit,
    TripBreach as TripBreach,
    expose as expose,
)
from ._invariants import (
    InvariantBroken as InvariantBroken,
    check_invariants as check_invariants,
)
from ._recorder import Event as Event, Recorder as Recorder, recorder as recorder
from ._run import Hang as Hang, Run as Run
from ._search import (
    Explored as Explored,
    NotDeterministic as NotDeterministic,
    ScheduleFailed as ScheduleFailed,
)
from ._stalls import (
    Stalled as Stalled,
    StallWatch as StallWatch,
    assert_no_stall as assert_no_stall,
)
