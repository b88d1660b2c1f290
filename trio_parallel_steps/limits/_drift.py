"""`Drift`: a plant that is slower or faster than it was.

1. A trial that ran far higher than expected, at a level that is known, means that the plant is
   slower: all is forgotten but the latency without load, and that too if it goes on happening.
2. Far lower, or somewhat lower several times, means that it is faster: what was measured fades.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._brink import Brink
    from ._fit import Fit
    from ._level import Trial

SURPRISE: Final = 4.5
"""Standard errors that chance does not explain."""

FADING: Final = 0.7
"""Of what surprises sum up to, from trial to trial."""

AGAIN: Final = 2
"""Times in a row that the latency without load is believed to have stayed."""


class Drift:
    """What surprises say."""

    __slots__ = ("_lower", "_slower", "_unloaded")

    def __init__(self) -> None:
        self._slower = 0  # trials in a row that ran higher than expected
        self._unloaded = 0.0  # log latency, before that
        self._lower = 0.0  # surprises of trials that ran lower, fading

    def heed(self, surprise: float, trial: Trial, fit: Fit, brink: Brink) -> bool:
        """Has the plant changed?  Then what no longer holds is forgotten."""
        self._lower = min(0.0, FADING * self._lower + surprise)
        if surprise > SURPRISE and fit.was_better(trial.x, trial.y):
            self._slow_down(fit)
            brink.forget()
            return True
        self._slower = 0
        if self._lower >= -SURPRISE:
            return False
        self._lower = 0.0
        fit.expect_less(trial.x, trial.y)
        brink.doubt()
        return True

    def _slow_down(self, fit: Fit) -> None:
        if not self._slower:
            self._unloaded = fit.base
        self._slower += 1
        if self._slower <= AGAIN:
            fit.keep_base(self._unloaded)
        else:
            fit.forget()

    def __repr__(self) -> str:
        return f"<Drift {self._lower:.1f}, slower {self._slower} times>"
