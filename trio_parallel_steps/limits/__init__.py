"""Algorithms that find a limit from what was measured: how long branches ran, how many beside them,
and whether they were turned away.

1. Pure: no clock, no randomness, no I/O.  The same samples give the same values.
2. A `Limit` says a number; a `BranchLimiter` enforces it.
3. What is `Outcome.IGNORED` says nothing about load, and changes nothing.

All but the default are ports of Netflix' concurrency-limits, equal to it sample by sample.
"""

from ._aimd import AIMDLimit as AIMDLimit
from ._fixed import FixedLimit as FixedLimit
from ._gradient import GradientLimit as GradientLimit
from ._gradient2 import Gradient2Limit as Gradient2Limit
from ._knee import KneeLimit as KneeLimit
from ._sample import Limit as Limit, Outcome as Outcome, Sample as Sample
from ._vegas import VegasLimit as VegasLimit
from ._windowed import WindowedLimit as WindowedLimit
