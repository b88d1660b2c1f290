"""What does it cost to give each branch a context of its own, and to merge what they changed?

CPU time of a step's contexts, from the first copy to the merged one: each branch has a deep copy of
100 keys and changes one.  Beside it: the deep copies alone, and a merge by hand that looks for
conflicts between each branch and every other one.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import attrs

from _harness import Report, compared, open_report, rotated
from trio_parallel_steps import MergeStrategy
from trio_parallel_steps._contexts import begin, copied

Context = dict[str, Any]
KEYS = 100

SHAPES: dict[str, Callable[[int], Any]] = {
    "ints": lambda number: number,
    "lists": lambda number: [number, number + 1],
    "mappings of mappings": lambda number: {"n": number, "in": {"items": [number]}},
}


def change(context: Context, number: int) -> None:
    """Each branch sets another key, while there are any left."""
    context[f"key {number % KEYS}"] = number


def merged(strategy: MergeStrategy) -> Callable[[Context, int], Context]:
    def run(context: Context, branches: int) -> Context:
        contexts = begin(context)
        ended = []
        for number in range(branches):
            own = copied(contexts.given)
            if strategy is MergeStrategy.OVERWRITE or number < KEYS:
                change(own, number)
            ended.append((str(number), own))
        result: Context = contexts.merged(strategy, ended)
        return result

    return run


def appended(context: Context, branches: int) -> Context:
    """Every branch appends to one list, which has an item a branch in the end."""
    contexts = begin({**context, "log": []})
    ended = []
    for number in range(branches):
        own = copied(contexts.given)
        own["log"].append({"branch": number})
        ended.append((str(number), own))
    result: Context = contexts.merged(MergeStrategy.CONTEXT_UPDATE, ended)
    return result


def copies(context: Context, branches: int) -> Context:
    for number in range(branches):
        own = copy.deepcopy(context)
        change(own, number)
    return own


def quadratic(context: Context, branches: int) -> Context:
    """Look for conflicts between each branch and every other one, key by key."""
    lefts = []
    for number in range(branches):
        own = copy.deepcopy(context)
        change(own, number)
        lefts.append(own)
    result = copy.deepcopy(context)
    for place, left in enumerate(lefts):
        for other in lefts[:place]:
            for key, value in left.items():
                if value != context[key] and other[key] != context[key] and other[key] != value:
                    result[key] = value
        result.update({key: left[key] for key in left if left[key] != context[key]})
    return result


@attrs.frozen
class Contestant:
    name: str
    run: Callable[[Context, int], Context]


COPIES = Contestant("the deep copies alone", copies)
CONTESTANTS = (
    Contestant("OVERWRITE", merged(MergeStrategy.OVERWRITE)),
    Contestant("ERROR_ON_CONFLICT", merged(MergeStrategy.ERROR_ON_CONFLICT)),
    Contestant("CONTEXT_UPDATE, one list", appended),
    Contestant("each branch with every other", quadratic),
    COPIES,
)


def main(report: Report) -> None:
    branches, rounds = (100, 3) if report.quick else (1_000, 3)
    for shape, make in SHAPES.items():
        context = {f"key {number}": make(number) for number in range(KEYS)}

        def measure(contestant: Contestant, context: Context = context) -> float:
            began = time.process_time()
            contestant.run(context, branches)
            return time.process_time() - began

        samples = rotated(CONTESTANTS, rounds, measure)
        title = f"{branches:,} branches x {KEYS} {shape}, {rounds} rounds"
        report.add(compared(title, "s", samples, (COPIES.name,)))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
