"""How sure it is that a member is worse than the others: tests of counts and of latencies. No I/O.

Latencies are counted in a list by class: two classes for each doubling, from some 15 us to 9 hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, exp, lgamma, sqrt

CLASSES = 64
_PER_SECOND = 65536.0


def class_of(seconds: float) -> int:
    """Return the class of a latency."""
    ticks = int(seconds * _PER_SECOND) + 2
    bits = ticks.bit_length()
    return min(2 * bits + ((ticks >> (bits - 2)) & 1), CLASSES - 1)


def _begin(number: int) -> float:
    """Return the least latency of a class, in seconds."""
    bits, upper = divmod(number, 2)
    return (2.0 ** (bits - 1) * (1.5 if upper else 1.0) - 2.0) / _PER_SECOND


def quantile(counts: Sequence[int], share: float = 0.5) -> float:
    """Return a quantile of latencies by class, by default the median, in seconds; 0 for none.

    It is interpolated in its class.
    """
    left = sum(counts) * share
    for number, count in enumerate(counts):
        if count and left <= count:
            begin = _begin(number)
            return begin + (_begin(number + 1) - begin) * left / count
        left -= count
    return 0.0


def rank_z(own: Sequence[int], others: Sequence[int]) -> float:
    """Return by how many standard deviations the ranks of ``own`` latencies, by class, are above chance.

    The test of Mann and Whitney (1947), with the correction for ties.
    """
    first, second = sum(own), sum(others)
    if not first or not second:
        return 0.0
    above = ties = 0.0
    below = 0
    for mine, theirs in zip(own, others, strict=True):
        if mine or theirs:
            above += mine * (below + theirs / 2)
            below += theirs
            together = mine + theirs
            ties += together * (together * together - 1.0)
    total = first + second
    spread = first * second / 12 * (total + 1 - ties / (total * (total - 1.0)))
    return (above - first * second / 2) / sqrt(spread) if spread > 0 else 0.0


def exact_p(failed: int, total: int, others_failed: int, others_total: int) -> float:
    """Return how likely so many failures of a member, or more, would be if it were as good as the others.

    Fisher's exact test (1922), one-sided: given the failures of all, those of the member are hypergeometric.
    """
    failures, everything = failed + others_failed, total + others_total
    if failed * everything <= total * failures:
        return 1.0
    good = everything - failures
    term = exp(_log_ways(failures, failed) + _log_ways(good, total - failed) - _log_ways(everything, total))
    p, count = 0.0, failed
    # Above the mean, each term is smaller than the one before, ever more so.
    while term > p * 1e-9 and term > 0.0:
        p += term
        term *= (failures - count) * (total - count) / ((count + 1.0) * (good - total + count + 1.0))
        count += 1
    return p


def _log_ways(things: int, chosen: int) -> float:
    return lgamma(things + 1.0) - lgamma(chosen + 1.0) - lgamma(things - chosen + 1.0)


def binomial_p(failed: int, total: int, rate: float) -> float:
    """Return how likely ``failed`` or more of a few attempts would fail, if each did at this rate."""
    less = sum(comb(total, count) * rate**count * (1 - rate) ** (total - count) for count in range(failed))
    return 1.0 - less
