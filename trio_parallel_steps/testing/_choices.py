"""The choices of one run, and how they are written down.

1. A choice is a number below how many there are to choose from; 0 is what comes first: of tasks the
   one that was spawned first, of faults none.
2. The choices of a run are a prefix that was given, and what follows it: always 0, or as a random
   number generator has it.
3. The same prefix meets the same choices: a fingerprint of all that was to be chosen from so far
   goes with it, and another one means that the program itself is not the same each time.

A schedule as a string: the choices among tasks, with dots, a run of zeros as ``0*5``, zeros at the
end left out; then, if a fault was injected, ``!``, its number (from 0) and ``@`` the step.  The
first come, first served schedule without a fault is ``-``.
"""

import re
from itertools import groupby
from random import Random
from typing import Final

import attrs

NOTHING: Final = "-"
WRITTEN: Final = re.compile(
    r"(?P<order>-|\d+(?:\*\d+)?(?:\.\d+(?:\*\d+)?)*)(?: !(?P<fault>\d+)@(?P<step>\d+))?"
)


@attrs.frozen
class Schedule:
    """What a run did at its choices."""

    order: tuple[int, ...] = ()
    fault: tuple[int, int] | None = None
    """the number of a fault, and the step before which it was injected"""

    def __str__(self) -> str:
        order = list(self.order)
        while order and order[-1] == 0:
            order.pop()
        parts = []
        for choice, group in groupby(order):
            count = len(list(group))
            if choice == 0 and count > 2:
                parts.append(f"0*{count}")
            else:
                parts += [str(choice)] * count
        written = ".".join(parts) or NOTHING
        return written if self.fault is None else f"{written} !{self.fault[0]}@{self.fault[1]}"


def parse(text: str) -> Schedule:
    """ValueError for what is no schedule."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        raise ValueError(f"`schedule` must be a string that explore() has given, got {text!r}")
    order: list[int] = []
    if match["order"] != NOTHING:
        for part in match["order"].split("."):
            choice, _, count = part.partition("*")
            order += [int(choice)] * int(count or 1)
    fault = None if match["fault"] is None else (int(match["fault"]), int(match["step"]))
    return Schedule(tuple(order), fault)


class Unplayable(Exception):
    """The schedule asks for what there is not to choose from."""


class Choices:
    """Those of one run."""

    __slots__ = ("_expected", "_fault", "_prefix", "_random", "fault", "mark", "marks", "order")

    order: list[int]
    fault: tuple[int, int] | None

    def __init__(
        self,
        schedule: Schedule,
        random: Random | None = None,
        expected: int | None = None,
        *,
        marked: bool = False,
    ) -> None:
        self._prefix = schedule.order
        self._fault = schedule.fault
        self._random = random
        self._expected = expected  # the fingerprint at the end of the prefix
        self.order = []
        self.fault = None
        self.mark = 0
        self.marks: list[tuple[int, int]] | None = [] if marked else None

    def among(self, size: int, names: tuple[int, ...]) -> int:
        """Choose one of so many tasks; `names` tell which those are."""
        at = len(self.order)
        prefix = self._prefix
        mark = self.mark = hash((self.mark, names))
        if at < len(prefix):
            choice = prefix[at]
            if at == len(prefix) - 1 and self._expected is not None and mark != self._expected:
                raise Unplayable(f"choice {at} is not among what it was among before")
            if choice >= size:
                raise Unplayable(f"choice {at} is {choice}, of {size}")
        elif self._random is None:
            choice = 0
        else:
            choice = int(self._random.random() * size)
        self.order.append(choice)
        if self.marks is not None:
            self.marks.append((size, mark))
        return choice

    def schedule(self) -> Schedule:
        return Schedule(tuple(self.order), self.fault)
