"""What a member's attempts have come to lately, counted as cheaply as can be. No I/O."""

from __future__ import annotations

from math import log

from balancer.members.comparison import CLASSES, class_of
from balancer.members.outcome import Outcome

# The failures that are a member's own, in words for people. A refused or unreachable connection is none of these: it
# takes the member down (``balancer.members.health``).
FAILURES = {
    "died": "resets",
    "truncated": "broken off",
    "silent": "broken off",
    "timeout": "time-outs",
    "not_http": "not HTTP",
}
STATUSES = "5xx"
# Statuses that say what a server cannot do for anyone (RFC 9110 sections 15.6.2 and 15.6.6). The request asked for it.
OF_THE_REQUEST = frozenset({501, 505})

# Answers between two steps whose latency counts: enough for the test, however many there are.
LATEST = 64

# How much worse a failing member is than the others: at least this part of what succeeds there fails with it.
WORSE = 0.3


def words_of(outcome: Outcome) -> str:
    """Return what kind of failure of the member an outcome is, or "" for none."""
    if outcome.failure:
        return FAILURES.get(outcome.failure, "")
    return STATUSES if outcome.status >= 500 and outcome.status not in OF_THE_REQUEST else ""


class Counts:
    """Attempts that were answered and that failed: all so far, and those of the last minute or two.

    The latter are what lies above a base, which follows the total.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self._answered_base = 0.0
        self._failed_base = 0.0

    def fade(self, left: float) -> None:
        """Keep so much of the recent counts, from 0 to 1."""
        self._answered_base = self.answered - (self.answered - self._answered_base) * left
        self._failed_base = self.failed - (self.failed - self._failed_base) * left

    @property
    def recent_answered(self) -> float:
        """The answered attempts of late."""
        return self.answered - self._answered_base

    @property
    def recent_failed(self) -> float:
        """The failed attempts of late."""
        return self.failed - self._failed_base


class Tally(Counts):
    """The attempts at one member. Times are clock readings in seconds.

    Attributes:
        latest: Times to first byte of the last LATEST answers, in seconds; that of the n-th is at ``n % LATEST``.
        latencies: Times to first byte in this block, by class.
        slowness: The evidence that it is slow.
        slow_since: When that began.
        judged_from: When it came on trial: what began before says nothing about it as it is now.
        times: Ejections in a row. ``restored_at``: when the last one ended.
        trial_answers, trial_failures, trial_slow: Attempts of its trial, by what they came to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest = [0.0] * LATEST
        self.latencies = [0] * CLASSES
        self._classed = 0
        self._in_block = False
        self.slowness = 0.0
        self.slow_since = 0.0
        self.judged_from = 0.0
        self.times = 0
        self.restored_at = 0.0
        self.trial_answers = self.trial_failures = self.trial_slow = 0
        # Requests given to it at the last step and at the one before, and those that it had finished by then.
        self._given = (0, 0)
        self._finished = (0, 0)
        self.begin()

    def begin(self) -> None:
        """Begin with no evidence against it."""
        self.score = 0.0
        self.words = ""
        # Where the score was last 0: the counts of this member and of all, and when.
        self.span_answered = self.span_failed = self.all_answered = self.all_failed = 0
        self.span_since = 0.0
        self.tested_at = 0.0
        # Answers up to the last failure.
        self._answered_before = self.answered
        self.slowness = 0.0

    def add_failure(self, words: str, rate: float, everyone: Counts, now: float, cap: float) -> None:
        """Take in a failure: add to the score what it says, less what the answers since the last one said.

        That is the logarithm of how much likelier they are from a member that is WORSE (Page's CUSUM, 1954).
        ``rate``: at which attempts at the others fail. ``everyone``: counts of all members.
        """
        if rate >= 1.0:
            rate = 1.0 - 1e-9
        worse = rate + (1 - rate) * WORSE
        answers, self._answered_before = max(0, self.answered - self._answered_before), self.answered
        self.score -= answers * log((1 - rate) / (1 - worse))
        if self.score <= 0.0:
            self.score, self.words, self.span_since = 0.0, words, now
            self.span_answered, self.span_failed = self.answered, self.failed
            self.all_answered, self.all_failed = everyone.answered, everyone.failed
        elif words != self.words:
            self.words = "failures"
        self.failed += 1
        everyone.failed += 1
        self.score = min(self.score + log(worse / rate), cap)

    def span(self, everyone: Counts) -> tuple[int, int, int, int]:
        """Return the attempts since the score was last 0: failed and all, first of this member, then of the others."""
        # An answer that broke off is one no more: there may be fewer than at the beginning.
        failed, answered = self.failed - self.span_failed, max(0, self.answered - self.span_answered)
        others_failed = everyone.failed - self.all_failed - failed
        others_answered = max(0, everyone.answered - self.all_answered - answered)
        return failed, failed + answered, others_failed, others_failed + others_answered

    def is_idle(self, given: int) -> bool:
        """Whether nothing has happened since the last step. ``given``: all requests that it got so far."""
        is_settled = self._given[0] == self._given[1] == given
        return is_settled and self.answered + self.failed == self._finished[0] and not self._in_block

    def take_latencies(self, given: int, in_flight: int, late: int) -> int:
        """Add the latest latencies to the block, and requests that wait in class ``late``; return how many wait.

        These are requests given to it between the last two steps, of which it cannot have finished so many.
        ``in_flight``: all that it has not finished.
        """
        for number in range(max(self._classed, self.answered - LATEST) + 1, self.answered + 1):
            self.latencies[class_of(self.latest[number % LATEST])] += 1
        self._classed = self.answered
        finished = self.answered + self.failed
        new = given - self._given[0]
        unfinished = self._given[0] - self._given[1] - (finished - self._finished[1])
        self._given, self._finished = (given, self._given[0]), (finished, self._finished[0])
        waiting = max(0, min(in_flight - new, unfinished))
        self.latencies[late] += waiting
        self._in_block = True
        return waiting

    def begin_block(self) -> None:
        """Begin a block without latencies."""
        self.latencies = [0] * CLASSES
        self._in_block = False
