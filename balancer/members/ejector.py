"""Ejects members that are worse than the others while they answer, tries them again, and restores them. No I/O.

Rules:
* A member is compared with the others, never with a number: where all are equally bad, none is ejected.
* Failures: each adds to a score what it says about the member, and answers subtract (``Tally.add_failure``). Past
  THRESHOLD, the attempts since the score was last 0 are compared with those at the others in that time.
* Latency: twice a second, the times to first byte of a block are compared by their ranks, all over the same time. The
  medians must differ by SLOW_FACTOR and by SLOW_SECONDS, and all but a few of the member's be above the others' median,
  in each block of SLOW_FOR.
* No more than a share of the members that are up is out at a time, and one member at least is not.
* An ejection ends with a trial: a tenth of the member's share, which one failure ends unless the others fail as well.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random

from balancer.members.comparison import CLASSES, binomial_p, class_of, exact_p, quantile, rank_z
from balancer.members.ejection import Ejection, EjectionKind
from balancer.members.health import State
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.members.outcome import Outcome
from balancer.members.tally import LATEST, Counts, Tally, words_of
from balancer.types import Clock

# Seconds between two steps.
STEP_SECONDS = 0.5
# Seconds after which the recent counts are cut, and what is left of them: half after a minute.
FADE_SECONDS = 15.0
FADE = 0.5 ** (FADE_SECONDS / 60)

# The rate of failures that is assumed of the others where they have fewer, and what is added to their counts.
FLOOR = 0.01
PRIOR_FAILED = 1
PRIOR = 20
# The score that accuses a member. At 1 % of failures it takes seven in a row (docs/decisions/ejection.md).
THRESHOLD = 21.0
# How likely the difference from the others may be by chance, for a member that is accused; seconds between two such
# comparisons, and the longest time over which they are made.
CONFIRMED = 0.001
TEST_SECONDS = 0.02
SPAN_SECONDS = 30.0

# Latencies of a member, on average, that make a block, and the seconds after which one that is not full is dropped.
BLOCK = 12
BLOCK_SECONDS = 30.0
# A slow member: its median is this many times that of the others, and so much longer.
SLOW_FACTOR = 3.0
SLOW_SECONDS = 0.02
# Of its latencies, the part that may be as short as most of the others': a queue that has built up by chance comes and
# goes within a block.
QUICK = 0.1
# The evidence that ejects it: half the squares of z, added up over blocks of so many seconds or more.
SLOWNESS = 21.0
SLOW_FOR = 1.5
# An answer of a trial is slow if it is slow beside the median, and beside what this part of all answers took at most.
# The factor is the width of a class.
USUAL = 0.9
USUAL_FACTOR = 1.5

# Seconds of a first ejection, and of the longest; the part by which chance makes one longer.
FIRST_SECONDS = 10.0
MAX_SECONDS = 300.0
JITTER = 0.1
# Seconds after which a restored member begins with FIRST_SECONDS again.
FORGIVEN_AFTER = 600.0
# Good answers that end a trial, or the seconds in which one is enough.
TRIAL_ANSWERS = 10
TRIAL_SECONDS = 5.0
# How likely the failures of a trial may be at the rate of the others. Slow answers that end it, if most are slow.
TRIAL_CHANCE = 0.1
TRIAL_SLOW = 3


class Ejector:
    """The ejections of a pool.

    ``on_change``: called with a member that was ejected, goes on trial or is restored. ``max_share``: the part of the
    members that are up which may be out at a time. ``compares_latency``: any member may get any request, so that slow
    requests make no member look slow. ``everyone``: the attempts at all members.
    """

    def __init__(
        self,
        membership: Membership,
        rng: Random,
        clock: Clock,
        on_change: Callable[[Member], None],
        max_share: float = 0.5,
        compares_latency: bool = True,
    ) -> None:
        self._membership = membership
        self._rng = rng
        self._clock = clock
        self._on_change = on_change
        self._max_share = max_share
        self._compares_latency = compares_latency
        # Members that are ejected or on trial.
        self._out: dict[Member, None] = {}
        self.everyone = Counts()
        self._block_since = self._faded_at = 0.0
        # The latency above which an answer of a trial is slow.
        self._slow_above = inf

    def answered(self, member: Member, first_byte: float) -> None:
        """Count an answer of a member, whose head came after so many seconds. Each request pays for this."""
        tally = member.tally
        if tally is None:
            tally = member.tally = Tally()
        self.everyone.answered += 1
        tally.answered = answered = tally.answered + 1
        tally.latest[answered % LATEST] = first_byte
        if member.ejection is not None:
            self._on_trial_answer(member, tally, member.ejection, first_byte)

    def failed(self, member: Member, outcome: Outcome) -> None:
        """Take in the outcome of an attempt that has failed, or whose status is 500 or more."""
        words = words_of(outcome)
        if words:
            tally = member.tally
            if tally is None:
                tally = member.tally = Tally()
            if outcome.failure and 0 < outcome.status < 500:
                # Its head was counted as an answer.
                self.everyone.answered -= 1
                tally.answered -= 1
            self._on_failure(member, tally, outcome, words)
        elif not outcome.failure:
            self.answered(member, outcome.first_byte)

    def eject(self, member: Member, kind: EjectionKind, reason: str, seconds: float) -> None:
        """Eject a member for so many seconds; a trial follows."""
        if member.state is State.LEAVING:
            return
        now, times = self._clock(), max(1, member.tally.times if member.tally else 0)
        self._out[member] = None
        self._set(member, Ejection(kind, reason, now, now + seconds, times))

    def restore(self, member: Member) -> None:
        """Give a member that is ejected or on trial its share again."""
        self._out.pop(member, None)
        if member.ejection:
            if member.tally:
                member.tally.begin()
                member.tally.restored_at = self._clock()
            self._set(member, None)

    def came_up(self, member: Member) -> None:
        """Forget the evidence against a member that was down: its process may be another one."""
        if member.tally:
            member.tally.begin()
        if member.ejection and not member.ejection.on_trial:
            self._begin_trial(member, member.ejection)

    def step(self) -> None:
        """Begin and end the trials that are due, and look for slow members; every STEP_SECONDS."""
        now = self._clock()
        for member in list(self._out):
            ejection = member.ejection
            if ejection is None:
                del self._out[member]  # It has left.
            elif not ejection.on_trial and ejection.until <= now:
                self._begin_trial(member, ejection)
            elif ejection.on_trial and member.tally:
                self._end_trial(member, member.tally, now)
        members = self._membership.members.values()
        if now - self._faded_at >= FADE_SECONDS:
            self._faded_at = now
            self.everyone.fade(FADE)
            for member in members:
                if member.tally:
                    member.tally.fade(FADE)
        busy = {
            member: member.tally for member in members if member.tally and not member.tally.is_idle(member.requests)
        }
        for member, tally in busy.items():
            waiting = tally.take_latencies(member.requests, member.in_flight, class_of(STEP_SECONDS))
            if self._slow_above < STEP_SECONDS:
                tally.trial_slow += waiting
        if self._compares_latency and busy:
            self._compare_latencies(busy, now)

    def _on_failure(self, member: Member, tally: Tally, outcome: Outcome, words: str) -> None:
        now = self._clock()
        everyone, ejection = self.everyone, member.ejection
        if now - outcome.duration >= tally.judged_from and (ejection is None or ejection.on_trial):
            rate = self._rate_of_others(tally)
            tally.add_failure(words, rate, everyone, now, THRESHOLD + 1)
            if ejection:
                tally.trial_failures += 1
                total = tally.trial_failures + tally.trial_answers
                if binomial_p(tally.trial_failures, total, rate) <= TRIAL_CHANCE:
                    reason = f"{words} on trial: {tally.trial_failures} of {total}, others {rate:.0%} at most"
                    self._eject(member, tally, EjectionKind.FAILURES, reason, now)
            elif tally.score >= THRESHOLD and now >= tally.tested_at + TEST_SECONDS:
                self._accuse(member, tally, now)
        else:
            tally.failed += 1
            everyone.failed += 1

    def _rate_of_others(self, tally: Tally) -> float:
        """Return the rate of failures of the others: lately, or since the score was last 0, which knows sooner."""
        failed = self.everyone.recent_failed - tally.recent_failed + PRIOR_FAILED
        answered = self.everyone.recent_answered - tally.recent_answered
        rate = max(FLOOR, failed / (failed + answered + PRIOR))
        if tally.score > 0.0:
            _, _, failed_now, total_now = tally.span(self.everyone)
            rate = max(rate, failed_now / (total_now + 1))
        return rate

    def _accuse(self, member: Member, tally: Tally, now: float) -> None:
        """Compare the failures of a member with those of the others in the same time; eject it if they confirm it."""
        tally.tested_at = now
        failed, total, others_failed, others_total = tally.span(self.everyone)
        if exact_p(failed, total, others_failed, others_total) <= CONFIRMED and self._has_room(member):
            reason = f"{tally.words}: {failed} of {total}, others {others_failed} of {others_total}"
            self._eject(member, tally, EjectionKind.FAILURES, reason, now)
        elif now - tally.span_since > SPAN_SECONDS:
            tally.begin()

    def _has_room(self, member: Member) -> bool:
        """Whether one more member may be out."""
        membership = self._membership
        if member.state is not State.UP or not membership.is_available(member):
            return False
        out = [other for other in self._out if other.ejection and other.state is State.UP]
        available = len(membership.available)
        on_trial = sum(membership.is_available(other) for other in out)
        up = available + len(out) - on_trial
        return len(out) + 1 <= up * self._max_share and available - on_trial > 1

    def _eject(self, member: Member, tally: Tally, kind: EjectionKind, reason: str, now: float) -> None:
        """Eject a member, for twice as long as the last time unless it was good for long."""
        again = member.ejection is not None or now - tally.restored_at < FORGIVEN_AFTER
        tally.times = tally.times + 1 if again and tally.times else 1
        seconds = min(FIRST_SECONDS * 2.0 ** min(tally.times - 1, 10), MAX_SECONDS)
        self.eject(member, kind, reason, seconds * (1 + JITTER * self._rng.random()))

    def _begin_trial(self, member: Member, ejection: Ejection) -> None:
        tally = member.tally
        if tally is None:
            tally = member.tally = Tally()
        tally.begin()
        tally.judged_from = self._clock()
        tally.trial_answers = tally.trial_failures = tally.trial_slow = 0
        ejection.on_trial = True
        self._set(member, ejection)

    def _on_trial_answer(self, member: Member, tally: Tally, ejection: Ejection, first_byte: float) -> None:
        now = self._clock()
        if not ejection.on_trial or now - first_byte < tally.judged_from:
            return
        tally.trial_answers += 1
        if first_byte > self._slow_above:
            tally.trial_slow += 1
        self._end_trial(member, tally, now)

    def _end_trial(self, member: Member, tally: Tally, now: float) -> None:
        """End a trial that has shown enough."""
        answers, slow = tally.trial_answers, tally.trial_slow
        if 2 * slow > answers:
            if slow >= TRIAL_SLOW:
                reason = f"latency on trial: {slow} of {max(slow, answers)} above {_seconds(self._slow_above)}"
                self._eject(member, tally, EjectionKind.LATENCY, reason, now)
        elif answers >= TRIAL_ANSWERS or (answers and now - tally.judged_from >= TRIAL_SECONDS):
            self.restore(member)

    def _compare_latencies(self, tallies: dict[Member, Tally], now: float) -> None:
        """Look for slow members of those with attempts in this block, once it is full; begin the next."""
        counts = [0] * CLASSES
        for tally in tallies.values():
            counts = [count + more for count, more in zip(counts, tally.latencies, strict=True)]
        is_full = sum(counts) >= BLOCK * len(tallies)
        if not is_full and now - self._block_since < BLOCK_SECONDS:
            return
        if is_full:
            middle = quantile(counts)
            self._slow_above = max(SLOW_FACTOR * middle, middle + SLOW_SECONDS, USUAL_FACTOR * quantile(counts, USUAL))
            # A median that is above that of the others is above that of all.
            least = max(middle, SLOW_SECONDS)
            for member, tally in tallies.items():
                if member.ejection is None and quantile(tally.latencies) > least:
                    self._judge_latency(member, tally, counts, now)
                else:
                    tally.slowness = 0.0
        for tally in tallies.values():
            tally.begin_block()
        self._block_since = now

    def _judge_latency(self, member: Member, tally: Tally, counts: list[int], now: float) -> None:
        """Add a block to the evidence that a member is slow, or drop it all; eject the member if that is enough."""
        others = [count - mine for count, mine in zip(counts, tally.latencies, strict=True)]
        own_median, others_median = quantile(tally.latencies), quantile(others)
        is_slow = (
            own_median > others_median * SLOW_FACTOR
            and own_median > others_median + SLOW_SECONDS
            and quantile(tally.latencies, QUICK) > others_median
        )
        z = rank_z(tally.latencies, others) if is_slow else 0.0
        if z <= 0.0:
            tally.slowness = 0.0
            return
        if not tally.slowness:
            tally.slow_since = self._block_since
        tally.slowness += z * z / 2
        if now - tally.slow_since >= SLOW_FOR and tally.slowness >= SLOWNESS and self._has_room(member):
            reason = f"latency: median {_seconds(own_median)}, others {_seconds(others_median)}"
            self._eject(member, tally, EjectionKind.LATENCY, reason, now)

    def _set(self, member: Member, ejection: Ejection | None) -> None:
        self._membership.set_ejection(member, ejection)
        self._on_change(member)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
