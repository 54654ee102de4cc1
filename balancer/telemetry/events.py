"""Recent events, one sentence each, for the status page and the API. No I/O.

Bounded: the last KEPT. Events that come by the thousand (requests that a member failed, refusals) are one for each
member or token in WINDOW seconds, which counts on. Consequences of a member's flip stand in the same sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from balancer.discovery.snapshot import Snapshot
from balancer.dispatch.context import RequestRecord
from balancer.members.ejection import describe
from balancer.members.health import HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import Change
from balancer.telemetry.observer import Observer
from balancer.types import Address
from balancer.words import counted

KEPT = 500
# Changes of DNS have a list of their own, so that a flood of other events leaves them alone.
KEPT_OF_DNS = 100
# Seconds for which an event goes on counting.
WINDOW = 5.0
# Members that are named where many come or go together.
NAMED = 3


class EventKind(StrEnum):
    """The kind of an event."""

    DNS = "dns"
    JOINED = "joined"
    LEFT = "left"
    STATE = "state"
    FAILED = "failed"
    REFUSED = "refused"
    DRAINED = "drained"
    EJECTED = "ejected"


class Level(StrEnum):
    """The severity of an event, for its colour on the status page."""

    GOOD = "good"
    INFO = "info"
    WARNING = "warning"
    BAD = "bad"


LEVELS = {State.UP: Level.GOOD, State.SUSPECT: Level.WARNING, State.DRAINING: Level.WARNING, State.DOWN: Level.BAD}


@dataclass(slots=True, eq=False)
class Event:
    """An event. ``when``: clock reading in seconds. ``moved``: requests that its member failed and that went on to
    another; ``lost``: those that ended there; ``refused``: those that the balancer answered itself. ``name``: that of
    the member's container at this moment, which the status page finds; None until then, "" if event stays unknown.
    """

    number: int
    when: float
    kind: EventKind
    level: Level
    words: str
    member: Address | None = None
    moved: int = 0
    lost: int = 0
    refused: int = 0
    name: str | None = field(default=None, init=False)

    @property
    def text(self) -> str:
        """Sentence for people, with the counts."""
        parts = [self.words] if self.words else []
        if self.refused:
            parts = [f"{_requests(self.refused)} {self.words}"]
        if self.moved:
            parts.append(f"{_requests(self.moved)} moved")
        if self.lost:
            parts.append(f"{_requests(self.lost)} lost")
        return ", ".join(parts)


class Events(Observer):
    """The events of a pool. ``recent`` and ``dns``: in the order in which they began.

    ``on_change``: called when members came, went, changed their state, were drained or ejected.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.recent: deque[Event] = deque(maxlen=KEPT)
        self.dns: deque[Event] = deque(maxlen=KEPT_OF_DNS)
        self.on_change = on_change
        self._number = 0
        self._changed: dict[int, Event] = {}
        self._counting: dict[Address | str, Event] = {}
        self._answers: dict[str, tuple[str, bool]] = {}

    def pop_changes(self) -> list[Event]:
        """Return the events that are new or have counted on since the last call, for one reader."""
        changed = [event for event in self._changed.values() if event.number > self._number - KEPT]
        self._changed.clear()
        return changed

    def resolved(self, snapshot: Snapshot, change: Change) -> None:
        self._forget(snapshot.when)
        for answer in snapshot.answers:
            result = answer.words, answer.over_tcp
            if self._answers.get(answer.record) != result:
                self._answers[answer.record] = result
                words = f"DNS {answer.record}: {answer.words}, {counted(len(answer.endpoints), 'address', 'addresses')}"
                if answer.over_tcp:
                    words += ", too large for UDP"
                level = Level.INFO if answer.endpoints else Level.WARNING
                self.dns.append(self._add(snapshot.when, EventKind.DNS, level, words))
        if change.joined:
            words = f"{_names(change.joined)} joined"
            one = change.joined[0].address if len(change.joined) == 1 else None
            self.dns.append(self._add(snapshot.when, EventKind.JOINED, Level.INFO, words, one))
        if change.left:
            words = f"{_names(change.left)} left DNS"
            one = change.left[0].address if len(change.left) == 1 else None
            self.dns.append(self._add(snapshot.when, EventKind.LEFT, Level.INFO, words, one))
        if change:
            self.on_change()

    def flipped(self, member: Member, before: State, event: HealthEvent) -> None:
        if member.state is State.LEAVING:
            return  # ``resolved`` reports the members that left.
        words = f"{member.address} {member.state.value}: {member.reason}"
        made = self._add(member.since, EventKind.STATE, LEVELS[member.state], words, member.address)
        if made.level in (Level.WARNING, Level.BAD):
            self._counting[member.address] = made
        else:
            self._counting.pop(member.address, None)
        self.on_change()

    def drained(self, member: Member) -> None:
        words = "drained by hand" if member.drained else "no longer drained"
        level = Level.WARNING if member.drained else Level.GOOD
        self._add(member.drained_since, EventKind.DRAINED, level, f"{member.address} {words}", member.address)
        self.on_change()

    def ejected(self, member: Member) -> None:
        out = member.ejection and not member.ejection.on_trial
        level = Level.BAD if out else Level.INFO if member.ejection else Level.GOOD
        words = f"{member.address} {describe(member.ejection)}"
        self._add(member.ejection_changed, EventKind.EJECTED, level, words, member.address)
        self.on_change()

    def failed(self, record: RequestRecord) -> None:
        """Take note of a request that a member failed, or that ended with an error."""
        now = record.started + record.duration
        ended = len(record.attempts) - 1 if record.error and record.error != "client_gone" else -1
        for place, attempt in enumerate(record.attempts):
            event = self._counting_on(attempt.member, now)
            if event is None:
                words = f"{attempt.member}: {attempt.words}"
                event = self._add(now, EventKind.FAILED, Level.WARNING, words, attempt.member)
                self._counting[attempt.member] = event
            if place == ended:
                event.lost += 1
                event.level = Level.BAD
            else:
                event.moved += 1
            self._changed[event.number] = event
        if record.error and record.error != "client_gone":
            event = self._counting_on(record.error, now)
            if event is None:
                words = "broken off" if record.error == "truncated" else f"answered {record.status} {record.error}"
                level = Level.WARNING if record.status < 500 and record.error != "truncated" else Level.BAD
                event = self._counting[record.error] = self._add(now, EventKind.REFUSED, level, words)
            event.refused += 1
            self._changed[event.number] = event

    def _add(self, when: float, kind: EventKind, level: Level, words: str, member: Address | None = None) -> Event:
        self._number += 1
        made = Event(self._number, when, kind, level, words, member)
        self.recent.append(made)
        self._changed[made.number] = made
        if len(self._changed) > 2 * KEPT:  # No page reads them.
            self._changed = {event.number: event for event in self.recent}
        return made

    def _counting_on(self, key: Address | str, now: float) -> Event | None:
        found = self._counting.get(key)
        return found if found and now - found.when < WINDOW else None

    def _forget(self, now: float) -> None:
        if self._counting:
            self._counting = {key: event for key, event in self._counting.items() if now - event.when < WINDOW}


def _requests(number: int) -> str:
    return counted(number, "request")


def _names(members: Sequence[Member]) -> str:
    names = [str(member.address) for member in members[:NAMED]]
    rest = len(members) - len(names)
    if rest:
        return f"{', '.join(names)} and {rest} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
