"""Classes of durations, and the percentiles of their counts. No I/O.

A count by class is a dictionary of indexes of BOUNDS, so that it takes memory for the classes that occur: 30 to 60 for
a busy member, which is 2 to 4 kB. A percentile is the lower end of its class. So it is no larger than the largest
duration seen, and at most 5 % smaller than the right one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import ceil

# Upper bounds of the classes, in seconds: each at most 5 % above the one before, from 10 us to 10,000 s. Those of 1,
# 2.5 and 5 in a decade are among them, as the Prometheus histogram has them.
BOUNDS = (
    *(
        round(low * (high / low) ** (step / steps) * 10.0**power, 7)
        for power in range(-5, 4)
        for low, high, steps in ((1, 2.5, 20), (2.5, 5, 16), (5, 10, 16))
        for step in range(steps)
    ),
    10_000.0,
)

# Numbers of durations by class: the index of the first of BOUNDS that is no smaller, or one beyond.
Classes = defaultdict[int, int]


def add_to(classes: Classes, other: Mapping[int, int]) -> None:
    """Add other numbers of durations to some."""
    for index, number in other.items():
        classes[index] += number


def percentile(classes: Mapping[int, int], share: float) -> float:
    """Return the latency in seconds that ``share`` (0 to 1) of the durations did not exceed, to 5 %; 0 for none.

    What is beyond the last bound has that latency.
    """
    wanted = max(1, ceil(share * sum(classes.values())))
    for index in sorted(classes):
        wanted -= classes[index]
        if wanted <= 0:
            return BOUNDS[index - 1] if index else 0.0
    return 0.0


def cumulated(classes: Mapping[int, int], bounds: Iterable[float]) -> list[tuple[float, int]]:
    """Return the counts up to each of some of BOUNDS, which ascend."""
    places = [(BOUNDS.index(bound), bound) for bound in bounds]
    found, so_far = [], 0
    left = sorted(classes.items(), reverse=True)
    for place, bound in places:
        while left and left[-1][0] <= place:
            so_far += left.pop()[1]
        found.append((bound, so_far))
    return found
