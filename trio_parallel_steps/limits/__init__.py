"""Algorithms that find a limit: pure, with no clock, no randomness and no I/O."""

from ._knee import KneeLimit as KneeLimit
from ._sample import Limit as Limit, Outcome as Outcome, Sample as Sample
