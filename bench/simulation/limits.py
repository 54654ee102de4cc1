"""Limits that find themselves beside fixed ones, on a virtual clock: ``python -m bench.simulation.limits``.

Members of one kind are offered a load at random times, through one balancer or several, each with a queue. The limits
are those of ``balancer.dispatch.limits``. The same arguments print the same bytes.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import exp, inf
from random import Random

from balancer.dispatch.limits import AutoLimit

MEMBERS = 2
# Seconds that a client waits, and that a request may wait in the queue; requests that all queues hold.
PATIENCE, QUEUE_TIMEOUT = 5.0, 2.0
QUEUE_MAX = 1000
# The network between balancers and members, one way, in seconds.
DELAY = 0.0005
# When speed halves, if it does, and when a run ends.
HALVED_AT, END = 20.0, 50.0
SETTLED = 10.0
# Shares of what a member works on at once that are tried as fixed limits.
TRIED = (0.5, 0.75, 1.0, 1.125, 1.25, 1.5, 2.0)
LOADS = (0.5, 1.0, 1.5, 3.0)


@dataclass(frozen=True)
class Kind:
    """A kind of member: what it works on at once, and the mean seconds for a request.

    ``model``: "turns" (the rest wait in its backlog), "thrash" (the rest slow all down, more than in proportion), or
    "loop" (all wait for something else first, and then one after the other for the processor).
    """

    model: str
    knee: int
    service: float

    @property
    def capacity(self) -> float:
        """Requests a second of all members."""
        return MEMBERS * self.knee / self.service


KINDS = {
    "sync": Kind("turns", 1, 0.02),
    "threads": Kind("turns", 8, 0.04),
    "threads that thrash": Kind("thrash", 8, 0.04),
    "asyncio": Kind("loop", 100, 0.4),
    "asyncio that thrashes": Kind("thrash", 100, 0.4),
}
TIMES: dict[str, Callable[[Random], float]] = {
    "constant": lambda rng: 1.0,
    "exponential": lambda rng: rng.expovariate(1.0),
    "log-normal": lambda rng: exp(rng.gauss(-0.5, 1.0)),
}


@dataclass(frozen=True)
class Setup:
    """One run. ``limit``: a fixed one for each member and balancer, or 0 to find it from ``start`` on."""

    kind: Kind
    times: str
    load: float
    limit: int = 0
    start: int = 4
    halved_at: float = inf
    end: float = END
    balancers: int = 1
    seed: int = 1


class Container:
    """A member. ``calls``: those that wait in its backlog."""

    def __init__(self) -> None:
        self.busy = 0
        self.free_at = 0.0
        self.backlog: deque[Call] = deque()


class Side:
    """A balancer's view of a member: what it has in flight there, and the limit if that finds itself."""

    def __init__(self, limit: int, found: AutoLimit | None) -> None:
        self.in_flight = 0
        self.found = found
        self._limit = limit

    @property
    def is_free(self) -> bool:
        return self.in_flight < (self.found.limit if self.found else self._limit)


@dataclass(eq=False)
class Call:
    """A request at a member. ``is_awaited``: its client is still there."""

    balancer: int
    member: int
    arrived: float
    sent: float
    is_awaited: bool = True


@dataclass
class World:
    """A run. ``answers``: when answers came that a client waited for."""

    setup: Setup
    now: float = 0.0
    answers: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _turn: int = 0

    def __post_init__(self) -> None:
        setup = self.setup
        self._rng = Random(f"{setup.seed} {setup.kind} {setup.times} {setup.load}")
        self._members = [Container() for _ in range(MEMBERS)]
        self._queues: list[deque[float]] = [deque() for _ in range(setup.balancers)]
        self.sides = [[self._side(number) for number in range(MEMBERS)] for _ in self._queues]

    def _side(self, number: int) -> Side:
        setup = self.setup
        if setup.limit:
            return Side(setup.limit, None)
        start = max(1, setup.start)
        return Side(0, AutoLimit(start, jitter=(number + 0.5) / MEMBERS, parts=setup.balancers))

    def run(self) -> World:
        """Run to the end, and return this."""
        self._arrive()
        while self._events and self._events[0][0] <= self.setup.end:
            self.now, _, step = heappop(self._events)
            step()
        return self

    def goodput(self, since: float, until: float) -> float:
        """Return the answers a second between two moments."""
        return sum(since <= when < until for when in self.answers) / (until - since)

    def _after(self, delay: float, step: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (self.now + delay, self._count, step))

    def _arrive(self) -> None:
        self._after(self._rng.expovariate(self.setup.load * self.setup.kind.capacity), self._arrive)
        balancer = int(self._rng.random() * len(self._queues))
        if len(self._queues[balancer]) < QUEUE_MAX / len(self._queues):
            self._queues[balancer].append(self.now)
            self._dispatch(balancer)

    def _dispatch(self, balancer: int) -> None:
        queue = self._queues[balancer]
        while queue:
            if self.now - queue[0] > QUEUE_TIMEOUT:
                queue.popleft()
                continue
            turns = [(self._turn + step) % MEMBERS for step in range(MEMBERS)]
            member = next((number for number in turns if self.sides[balancer][number].is_free), None)
            if member is None:
                return
            self._turn = member + 1
            self.sides[balancer][member].in_flight += 1
            call = Call(balancer, member, queue.popleft(), self.now)
            self._after(DELAY, lambda call=call: self._take(call))  # type: ignore[misc]
            self._after(call.arrived + PATIENCE - self.now, lambda call=call: self._leave(call))  # type: ignore[misc]

    def _service_time(self, mean: float) -> float:
        halved = 2.0 if self.now >= self.setup.halved_at else 1.0
        return mean * halved * TIMES[self.setup.times](self._rng)

    def _take(self, call: Call) -> None:
        """A member gets a request."""
        kind, member = self.setup.kind, self._members[call.member]
        if kind.model == "loop":
            cpu = kind.service / kind.knee
            self._after(self._service_time(kind.service - cpu), lambda: self._compute(call, cpu))
        elif kind.model == "turns" and member.busy == kind.knee:
            member.backlog.append(call)
        else:
            member.busy += 1
            slower = max(1.0, member.busy / kind.knee) ** 1.5
            self._after(self._service_time(kind.service * slower), lambda: self._done(call))

    def _compute(self, call: Call, cpu: float) -> None:
        member = self._members[call.member]
        cpu *= 2.0 if self.now >= self.setup.halved_at else 1.0
        member.free_at = max(self.now, member.free_at) + cpu
        self._after(member.free_at - self.now + DELAY, lambda: self._answer(call))

    def _done(self, call: Call) -> None:
        member = self._members[call.member]
        if member.backlog:
            following = member.backlog.popleft()
            self._after(self._service_time(self.setup.kind.service), lambda: self._done(following))
        else:
            member.busy -= 1
        self._after(DELAY, lambda: self._answer(call))

    def _answer(self, call: Call) -> None:
        """A balancer gets an answer, which counts if its client is there."""
        if call.is_awaited:
            self.answers.append(self.now)
            self._end(call, answered=True)

    def _leave(self, call: Call) -> None:
        """A client has lost patience. Its member works on."""
        if call.is_awaited:
            self._end(call, answered=False)

    def _end(self, call: Call, answered: bool) -> None:
        call.is_awaited = False
        side = self.sides[call.balancer][call.member]
        if side.found:
            side.found.expire(self.now)
            if answered:
                side.found.learn(self.now - call.sent, side.in_flight, self.now)
            else:
                side.found.fail(side.in_flight, self.now, self.now - call.sent)
        side.in_flight -= 1
        self._dispatch(call.balancer)


def best_fixed(kind: Kind, times: str, load: float, halved: bool = False) -> tuple[float, int]:
    """Return the goodput with the best of the fixed limits that are tried, and that limit."""
    limits = dict.fromkeys(max(1, round(kind.knee * share)) for share in TRIED)
    at, end = (0.0 if halved else inf), 2 * SETTLED
    return max(
        (World(Setup(kind, times, load, limit, halved_at=at, end=end)).run().goodput(SETTLED, end), limit)
        for limit in limits
    )


def main(arguments: list[str] | None = None) -> None:
    """Print goodput as a share of the capacity, or of that with the best fixed limit."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulation.limits", description="Limits that find themselves."
    )
    parser.add_argument("--only", default=",".join(KINDS), help="some of %(default)s")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)), help="multiples of the capacity: %(default)s")
    parser.add_argument("--balancers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--start", type=int, default=4, help="limit to begin with; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--fixed", action="store_true", help="beside the best of some fixed limits, not the capacity")
    given = parser.parse_args(arguments)
    print("| member | times | load | 10 to 20 s | 30 to 50 s | halved at 20 s: 40 to 50 s | limits found |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for name in given.only.split(","):
        for times in TIMES:
            for load in map(float, given.loads.split(",")):
                setup = Setup(KINDS[name], times, load, 0, given.start, inf, END, given.balancers, given.seed)
                print(f"| {name} | {times} | {load:g} | {_row(setup, given.fixed)} |", flush=True)


def _row(setup: Setup, fixed: bool) -> str:
    """Return the cells of a table for one kind of member and load."""
    kind, times, load = setup.kind, setup.times, setup.load
    most = min(1.0, load) * kind.capacity
    best, best_halved = most, min(load, 0.5) * kind.capacity
    if fixed:
        best, best_halved = best_fixed(kind, times, load)[0], best_fixed(kind, times, load, halved=True)[0]
    steady, halved = World(setup).run(), World(replace(setup, halved_at=HALVED_AT)).run()
    shares = (
        steady.goodput(SETTLED, 2 * SETTLED) / best,
        steady.goodput(30.0, END) / best,
        halved.goodput(HALVED_AT + 20, END) / best_halved,
    )
    found = ", ".join(f"{side.found.size:.0f}" for sides in steady.sides for side in sides if side.found)
    return " | ".join([*(f"{share:.0%}" for share in shares), found])


if __name__ == "__main__":
    main()
