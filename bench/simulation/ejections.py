"""How often ejection is wrong, and what it does for a bad member: ``python -m bench.simulation.ejections``.

The product's own ``Ejector`` judges, in virtual time. What is simulated, and the figures: docs/decisions/ejection.md.
The same arguments print the same bytes. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from math import log
from random import Random

from balancer.members.comparison import class_of
from balancer.members.ejector import STEP_SECONDS
from balancer.members.outcome import Outcome
from balancer.members.tally import Tally
from tests.support.ejection import ERROR, GOOD, JudgedPool

DAY = 86_400
MEMBERS, RATE = 10, 100
MEDIAN, SIGMA = 0.02, 1.0
# Latencies are drawn from so many, which were drawn from the distribution.
DRAWN = 1_000_003
# With correlated latencies, all members together become slower or quicker by up to this factor, at random moments.
TOGETHER = 32


@dataclass(frozen=True)
class Case:
    """A kind of day on which all members are equally good. ``failing``: the part of attempts that fail; 0: of latency.

    ``together``: all members are slow at once at times.
    """

    name: str
    failing: float = 0.0
    together: bool = False


CASES = (
    Case("1 % random 5xx", 0.01),
    Case("10 % random 5xx", 0.10),
    Case("log-normal latency"),
    Case("log-normal latency, all slow at once at times", together=True),
)


class DrawnTally(Tally):
    """A tally whose latencies are drawn by class: ``draw`` returns those of a step."""

    def __init__(self, draw: Callable[[], Iterable[int]]) -> None:
        super().__init__()
        self._draw = draw

    def take_latencies(self, given: int, in_flight: int, late: int) -> int:
        counts = self.latencies
        for latency in self._draw():
            counts[latency] += 1
        return 0


def a_day(case: Case, seed: int) -> Counter[str]:
    """Return the false ejections of one day by kind, with the attempts under "attempts".

    Each half second every member has its attempts, by turns. Which of them fail is drawn one by one. Between failures
    the counts are raised at once. A member that is ejected is restored at once, so that the next one can be.
    """
    rng, found = Random(seed), Counter[str]()
    pool = JudgedPool(MEMBERS, seed=seed, compares_latency=not case.failing)
    drawn = [class_of(MEDIAN * rng.lognormvariate(0, SIGMA)) for _ in range(DRAWN)]
    members, everyone = pool.members, pool.ejector.everyone
    each = round(RATE * STEP_SECONDS)
    shift = 0

    def draw() -> Iterable[int]:
        if case.failing:
            return ()
        place = int(rng.random() * (DRAWN - each))
        of_step = drawn[place : place + each]
        return [latency + shift for latency in of_step] if shift else of_step

    tallies = [DrawnTally(draw) for _ in members]
    for member, tally in zip(members, tallies, strict=True):
        member.tally = tally
    failed_of = [0] * MEMBERS
    # Without failures the first is beyond the day.
    gap = log(1 - case.failing) or -1e-12
    done, until_change = 0, 0.0
    next_failure = int(log(1 - rng.random()) / gap)
    for _ in range(round(DAY / STEP_SECONDS)):
        end = done + each * MEMBERS
        while next_failure < end:
            number = next_failure % MEMBERS
            pool.now += (next_failure - done) / (end - done) * STEP_SECONDS * 0.99
            tallies[number].answered = next_failure // MEMBERS - failed_of[number]
            everyone.answered = next_failure - everyone.failed
            pool.ejector.failed(members[number], ERROR)
            failed_of[number] += 1
            next_failure += 1 + int(log(1 - rng.random()) / gap)
        done = end
        if case.together and pool.now >= until_change:
            until_change, shift = pool.now + rng.expovariate(1 / 20), rng.randint(0, 2 * (TOGETHER.bit_length() - 1))
        for number, tally in enumerate(tallies):
            tally.answered = done // MEMBERS - failed_of[number]
        everyone.answered = done - everyone.failed
        pool.wait_for_step()
        if pool.changes:
            for _, member, stage in pool.changes:
                found[member.ejection.kind.value if member.ejection else stage] += 1
            pool.changes.clear()
            for member in members:
                pool.ejector.restore(member)
            pool.changes.clear()
    found["attempts"] = done
    return found


@dataclass(frozen=True)
class Bad:
    """A way in which the first member of a pool is bad. ``answer``: its outcome at a time, in seconds."""

    name: str
    answer: Callable[[float, Random], Outcome]


def _latency(rng: Random, factor: float = 1.0) -> Outcome:
    seconds = factor * MEDIAN * rng.lognormvariate(0, SIGMA)
    return Outcome(200, "", seconds, seconds)


BADS = (
    Bad("failing: every request", lambda now, rng: ERROR),
    Bad("failing: a third of the requests", lambda now, rng: ERROR if rng.random() < 1 / 3 else _latency(rng)),
    Bad("slow: ten times", lambda now, rng: _latency(rng, 10)),
    Bad("flapping: 5 s bad, 25 s good", lambda now, rng: ERROR if now % 30 < 5 else _latency(rng)),
)


def an_hour(bad: Bad, members: int, seed: int) -> str:
    """Return a row of a table: what one bad member of a pool comes to in an hour."""
    pool, rng = JudgedPool(members, seed=seed), Random(seed)
    first = pool.members[0]
    pool.serve(60, RATE, lambda member: GOOD)
    began, requests, bad_answers = pool.now, 0, 0
    while pool.now < began + 3600:
        pool.wait(1 / RATE)
        member, requests = pool.request(), requests + 1
        outcome = bad.answer(pool.now, rng) if member is first else _latency(rng)
        bad_answers += member is first and (outcome.status >= 500 or "slow" in bad.name)
        pool.finish(member, outcome)
    ejections = [(when, member) for when, member, stage in pool.changes if stage == "ejected"]
    wrong = sum(member is not first for _, member in ejections)
    noticed = f"{ejections[0][0] - began:.1f} s" if ejections else "never"
    part, without = bad_answers / requests, 1 / members
    return (
        f"| {members} | {bad.name} | {noticed} | {len(ejections)} | {wrong} | {part:.2%} | {without:.0%} |"
    ).replace("%", " %")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.simulation.ejections", description=__doc__.partition(":")[0])
    parser.add_argument("--days", type=int, default=7, help="of each case; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="days at a time, one core each; default: %(default)s")
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(given.jobs) as jobs:
        _print_false_ejections(jobs, given.days)
    print("\n| members | the bad one | out after | ejections in an hour | of others | bad answers | its share |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for members in (2, 3, 10):
        for bad in BADS:
            print(an_hour(bad, members, 1), flush=True)


def _print_false_ejections(jobs: ProcessPoolExecutor, days: int) -> None:
    print(f"{MEMBERS} equal members, {RATE} attempts a second each, log-normal latency (sigma {SIGMA:g})\n")
    print("| all members alike | days | attempts | ejected for failures | for latency |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        found = Counter[str]()
        seeds: Sequence[int] = range(1, days + 1)
        for number, of_day in enumerate(jobs.map(a_day, repeat(case), seeds), 1):
            found += of_day
            print(f"{case.name}: day {number} {dict(of_day)}", file=sys.stderr, flush=True)
        print(
            f"| {case.name} | {days} | {found['attempts']:,} | {found['failures']} | {found['latency']} |", flush=True
        )


if __name__ == "__main__":
    main()
