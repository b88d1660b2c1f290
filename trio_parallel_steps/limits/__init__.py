"""Algorithms that find a limit from what was measured."""

from ._sample import Limit as Limit, Outcome as Outcome, Sample as Sample
