"""A limit that only its owner moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from .._util import check_int

if TYPE_CHECKING:
    from ._sample import Sample


@final
class FixedLimit:
    """Stays at `limit`, an int >= 1, whatever the samples say; setting `value` moves it at once.

    Netflix' FixedLimit and SettableLimit in one.

    >>> from trio_parallel_steps.limits import Outcome, Sample
    >>> limit = FixedLimit(17)
    >>> limit.on_sample(Sample(0.0, 1.0, 17, Outcome.DROPPED))
    17
    >>> limit.value = 40
    >>> limit
    <FixedLimit: 40>
    """

    __slots__ = ("_value",)

    def __init__(self, limit: int) -> None:
        self._value = check_int("limit", limit, 1)

    @property
    def value(self) -> int:
        """How many may run now, >= 1; settable."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = check_int("value", value, 1)

    def on_sample(self, sample: Sample) -> int:
        """The same value."""
        return self._value

    def __repr__(self) -> str:
        return f"<FixedLimit: {self._value}>"
