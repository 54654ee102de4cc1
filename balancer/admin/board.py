"""What the status page shows: takes samples once a second, keeps two minutes of them, makes what open pages are sent.

A page is given the whole picture once and then, once a second, the rows that have changed; both are made once for all
pages. A change of members does not wait for the second. Requests pay nothing for this: all figures are differences
of what ``Stats`` counts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from balancer import __version__
from balancer.admin.names import Names
from balancer.admin.view import View, by_name
from balancer.dispatch import Clock
from balancer.events import Happening
from balancer.membership import Member
from balancer.stats import BOUNDS, Stats, Tally, percentile

log = logging.getLogger(__name__)

Pools = Callable[[], Sequence[View]]
Json = dict[str, Any]

# Seconds between two samples; samples of the chart; samples that latencies and shares are made of.
INTERVAL = 1.0
CHART = 120
LATELY = 10
# Changes of members are sent at once, but not more often than this, in seconds.
AT_ONCE = 0.2

NOTHING = (0,) * (len(BOUNDS) + 1)


class Gauge:
    """How one tally moves. ``rates``: requests a second, one for each of the last CHART samples."""

    __slots__ = ("_past", "rates")

    def __init__(self) -> None:
        self.rates: deque[float] = deque(maxlen=CHART)
        self._past: deque[tuple[tuple[int, ...], int]] = deque([(NOTHING, 0)], maxlen=LATELY + 1)

    def sample(self, tally: Tally | None, elapsed: float) -> None:
        """Take in what the tally says, ``elapsed`` seconds after the last time."""
        last = self._past[-1]
        count = tally.count if tally else last[1]
        now = last if tally is None or count == last[1] else (tuple(tally.buckets), count)
        self._past.append(now)
        self.rates.append(rounded((count - last[1]) / elapsed))

    @property
    def rate(self) -> float:
        return self.rates[-1] if self.rates else 0

    def lately(self) -> tuple[int, float | None, float | None]:
        """Requests of the last LATELY samples, and their median and p99 in milliseconds."""
        (before, count_before), (now, count_now) = self._past[0], self._past[-1]
        if count_now == count_before:
            return 0, None, None
        buckets = [b - a for a, b in zip(before, now, strict=True)]
        p50, p99 = (rounded(percentile(buckets, it) * 1000, 2) for it in (0.5, 0.99))
        return count_now - count_before, p50, p99


class Track:
    """One member as pages know it: ``number`` is never used again, as addresses are."""

    __slots__ = ("gauge", "gone_at", "member", "name", "number")

    def __init__(self, number: int, member: Member) -> None:
        self.number = number
        self.member = member
        self.gauge = Gauge()
        self.name = ""
        self.gone_at = 0  # the sample at which it was no longer there


class Pool:
    """What is known of a pool beyond what it knows itself. ``name``: what it is called."""

    def __init__(self, name: str, view: View, stats: Stats, now: float) -> None:
        self.name = name
        self.view = view
        self.stats = stats
        self.total = Gauge()
        self.refused: deque[float] = deque(maxlen=CHART)
        self.tracks: dict[Member, Track] = {}
        self.gone: list[Track] = []
        self.samples = 0
        self._refused_before = refusals(stats)
        self._sampled = now
        # What pages were last sent, by the member's number.
        self.sent_members: dict[int, list[Any]] = {}
        self.sent_values: dict[int, list[Any]] = {}

    def sample(self, now: float) -> None:
        elapsed = max(now - self._sampled, 0.001)
        self._sampled = now
        self.samples += 1
        self.total.sample(self.stats.total, elapsed)
        refused = refusals(self.stats)
        self.refused.append(rounded((refused - self._refused_before) / elapsed))
        self._refused_before = refused
        for track in self.tracks.values():
            track.gauge.sample(self.stats.members.get(track.member.address), elapsed)
        # What is gone stays in the chart until it has moved out of it.
        self.gone = [it for it in self.gone if self.samples - it.gone_at < CHART]

    def follow(self, numbers: itertools.count[int]) -> list[Track]:
        """Take up members that have come, put away those that have gone; returns the new ones."""
        members = self.view.members
        for member in [it for it in self.tracks if members.get(it.address) is not it]:
            track = self.tracks.pop(member)
            if any(track.gauge.rates):
                track.gone_at = self.samples
                self.gone.append(track)
        came = []
        for member in members.values():
            if member not in self.tracks:
                track = Track(next(numbers), member)
                self.tracks[member] = track
                came.append(track)
        return came

    def member_rows(self, wall: Callable[[float], float]) -> dict[int, list[Any]]:
        """Who is there: number, address, name, state, reason, since, drained since (0: not)."""
        return {
            track.number: [
                track.number,
                str(member.address),
                track.name,
                member.state.value,
                member.reason,
                round(wall(member.since), 1),
                round(wall(member.drained_since), 1) if member.drained else 0,
            ]
            for member, track in self.tracks.items()
        }

    def value_rows(self) -> dict[int, list[Any]]:
        """Figures: number, in flight, requests a second, requests of late, p50, p99, in all, failed, retries."""
        rows = {}
        for member, track in self.tracks.items():
            tally = self.stats.members.get(member.address)
            rows[track.number] = [
                track.number,
                member.in_flight,
                track.gauge.rate,
                *track.gauge.lately(),
                *((tally.count, tally.failed, sum(tally.retries.values())) if tally else (0, 0, 0)),
            ]
        return rows

    def summary(self) -> Json:
        total = self.stats.total
        recent, p50, p99 = self.total.lately()
        return {
            "rate": self.total.rate,
            "refused_rate": self.refused[-1] if self.refused else 0,
            "recent": recent,
            "p50_ms": p50,
            "p99_ms": p99,
            "in_flight": sum(it.in_flight for it in self.tracks),
            "held": self.view.held,
            "held_ever": self.stats.held,
            "requests": total.count,
            "failed": total.failed,
            "refused": self._refused_before,
            "retries": sum(total.retries.values()),
            "available": self.view.available,
        }


class Board:
    """Runs beside the admin listener: ``run`` until cancelled, ``close`` ends the streams of open pages."""

    def __init__(
        self, pools: Pools, names: Names, clock: Clock = time.monotonic, wall_clock: Clock = time.time, **about: Any
    ) -> None:
        self._views = pools
        self._names = names
        self._clock = clock
        self._wall_clock = wall_clock
        self._about = about
        self._pools: dict[View, Pool] = {}
        self._numbers = itertools.count(1)
        self._offset = wall_clock() - clock()
        self._news = asyncio.Event()
        self._viewers: set[Viewer] = set()
        self.closed = False
        # Counts what was made for pages; who has not seen the one before needs the whole picture.
        self.number = 0
        self._delta = b""
        self._delta_from = -1
        self._whole: bytes | None = None
        # The message up to which the pools know what pages were sent.
        self._known = -1

    def pools(self) -> list[Pool]:
        """One for each that counts what it does."""
        wanted = {name: it for name, it in by_name(self._views()).items() if it.stats}
        if [(it.name, it.view) for it in self._pools.values()] != list(wanted.items()):
            known = self._pools
            now = self._clock()
            self._pools = {}
            for name, view in wanted.items():
                assert view.stats
                self._pools[view] = pool = known.get(view) or Pool(name, view, view.stats, now)
                pool.name = name
                pool.stats.events.on_change = self._news.set
            self._whole = None
            self._known = -1
        return list(self._pools.values())

    async def run(self) -> None:
        """Take a sample every INTERVAL, and look at members when some have changed."""
        due = self._clock()
        try:
            self._look(sample=False)
            while True:
                due = max(due + INTERVAL, self._clock())
                while (left := due - self._clock()) > 0:
                    try:
                        async with asyncio.timeout(left):
                            await self._news.wait()
                    except TimeoutError:
                        break
                    # Whatever else changes with it goes into the same message.
                    await asyncio.sleep(min(AT_ONCE, max(0.0, due - self._clock())))
                    self._look(sample=False)
                self._look(sample=True)
        finally:
            await self._names.close()

    def _look(self, sample: bool) -> None:
        self._news.clear()
        try:
            self._follow()
            if sample:
                self._sample(self._clock())
            self._publish(sample)
        except Exception:
            # The balancer is worth more than its status page.
            log.exception("the status page could not be brought up to date")

    def _sample(self, now: float) -> None:
        for pool in self.pools():
            pool.sample(now)
        # Times that were told stay the same, but for a step of the machine's clock.
        offset = self._wall_clock() - now
        if abs(offset - self._offset) > 0.5:
            self._offset = offset

    def close(self) -> None:
        """End the streams."""
        self.closed = True
        for viewer in self._viewers:
            viewer.wake.set()

    @property
    def viewers(self) -> int:
        """How many pages are open."""
        return len(self._viewers)

    def wall(self, reading: float) -> float:
        """Seconds since 1970 of a reading of the clock."""
        return reading + self._offset

    def told(self, event: Happening, pool: str) -> Json:
        """An event as the API tells it."""
        return {
            "id": f"{pool}-{event.number}",
            "time": iso(self.wall(event.when)),
            "pool": pool,
            "kind": event.kind.value,
            "level": event.level.value,
            "member": str(event.member) if event.member else None,
            "text": event.text,
            "moved": event.moved,
            "lost": event.lost,
            "refused": event.refused,
        }

    def events(self) -> list[Json]:
        """What happened lately in all pools, the oldest first."""
        found = [
            (event.when, event.number, self.told(event, pool.name))
            for pool in self.pools()
            for event in pool.stats.events.recent
        ]
        return [told for _, _, told in sorted(found, key=lambda it: it[:2])]

    def _follow(self) -> None:
        for pool in self.pools():
            for track in pool.follow(self._numbers):
                self._look_up(pool, track)

    def _look_up(self, pool: Pool, track: Track) -> None:
        def found(name: str) -> None:
            track.name = name
            self._news.set()

        self._names.look_up(track.member, found, lambda: track.member in pool.tracks)

    def _publish(self, sampled: bool) -> None:
        """Make the delta to what pages have, if there is any page."""
        pools = self.pools()
        events = [self.told(event, pool.name) for pool in pools for event in pool.stats.events.take_changed()]
        usable = self._known == self.number
        self._whole = None
        self.number += 1
        for viewer in self._viewers:
            viewer.wake.set()
        if not self._viewers or not usable:
            return
        message = {
            "number": self.number,
            "time": self._now(),
            "sample": sampled,
            "pools": [self._pool_delta(pool, sampled) for pool in pools],
            "events": events,
        }
        self._delta, self._delta_from, self._known = sse("delta", message), self.number - 1, self.number

    def _pool_delta(self, pool: Pool, sampled: bool) -> Json:
        members = pool.member_rows(self.wall)
        changed = [row for number, row in members.items() if pool.sent_members.get(number) != row]
        left = [number for number in pool.sent_members if number not in members]
        for row in changed:
            pool.sent_members[row[0]] = row
        for number in left:
            del pool.sent_members[number]
            pool.sent_values.pop(number, None)
        delta: Json = {"name": pool.name, "members": changed, "left": left, "dns": self.dns(pool)}
        if sampled:
            values = pool.value_rows()
            delta["values"] = [row for number, row in values.items() if pool.sent_values.get(number) != row]
            delta["summary"] = pool.summary()
            pool.sent_values = values
        return delta

    def whole(self) -> bytes:
        """The whole picture as of the last message; the same bytes for all who ask until the next."""
        if self._whole is None:
            self._whole = sse("whole", self._everything())
        return self._whole

    def _everything(self) -> Json:
        if self._known != self.number:
            self._follow()
        pools = []
        for pool in self.pools():
            if self._known != self.number:
                pool.sent_members = pool.member_rows(self.wall)
                pool.sent_values = pool.value_rows()
            tracks = [(it, 0) for it in pool.tracks.values()]
            tracks += [(it, pool.samples - it.gone_at) for it in pool.gone]
            pools.append(
                {
                    "name": pool.name,
                    "alias": pool.view.settings.alias,
                    "policy": pool.view.settings.policy,
                    "members": list(pool.sent_members.values()),
                    "values": list(pool.sent_values.values()),
                    # Rates, the latest last, and how many samples ago that was.
                    "chart": [
                        [track.number, str(track.member.address), track.name, ago, list(track.gauge.rates)]
                        for track, ago in tracks
                    ],
                    "refused": list(pool.refused),
                    "summary": pool.summary(),
                    "dns": self.dns(pool),
                    "changes": [self.told(it, pool.name) for it in pool.stats.events.dns],
                }
            )
        self._known = self.number
        return {
            "number": self.number,
            "time": self._now(),
            "version": __version__,
            **self._about,
            "interval": INTERVAL,
            "samples": CHART,
            "pools": pools,
            "events": self.events(),
        }

    def dns(self, pool: Pool) -> Json | None:
        """The last answer; None before there was one."""
        snapshot = pool.view.snapshot
        if snapshot is None:
            return None
        return {
            "time": iso(self.wall(snapshot.when)),
            "answers": [
                {
                    "record": it.record,
                    "rcode": it.rcode,
                    "outcome": it.outcome.value,
                    "addresses": len(it.endpoints),
                    "truncated": it.over_tcp,
                }
                for it in snapshot.answers
            ],
        }

    def status(self) -> Json:
        """All there is to know of the pools and their members."""
        self._follow()
        return {"version": __version__, "time": iso(self._now()), "pools": [self._status(it) for it in self.pools()]}

    def _status(self, pool: Pool) -> Json:
        summary = pool.summary()
        values = pool.value_rows()
        return {
            "name": pool.name,
            "alias": pool.view.settings.alias,
            "policy": pool.view.settings.policy,
            **summary,
            "dns": self.dns(pool),
            "members": [
                self._member(pool, member, values[pool.tracks[member].number], summary["recent"])
                for member in sorted(pool.tracks, key=lambda it: it.address)
            ],
        }

    def _member(self, pool: Pool, member: Member, row: list[Any], lately: int) -> Json:
        _, in_flight, rate, recent, p50, p99, requests, failed, _ = row
        tally = pool.stats.members.get(member.address)
        return {
            "address": str(member.address),
            "name": pool.tracks[member].name or None,
            "state": member.state.value,
            "reason": member.reason,
            "since": iso(self.wall(member.since)),
            "drained": member.drained,
            "drained_since": iso(self.wall(member.drained_since)) if member.drained else None,
            "in_flight": in_flight,
            "rate": rate,
            "share": round(recent / lately, 4) if lately else 0,
            "p50_ms": p50,
            "p99_ms": p99,
            "requests": requests,
            "failed": failed,
            "retries": dict(tally.retries) if tally else {},
        }

    def _now(self) -> float:
        return round(self.wall(self._clock()), 3)


class Viewer:
    """One open page: use it within ``with``, and await ``next`` for what to send it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._seen = -1
        self.wake = asyncio.Event()
        self.gone = False

    def __enter__(self) -> Viewer:
        self._board._viewers.add(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._board._viewers.discard(self)

    def leave(self) -> None:
        self.gone = True
        self.wake.set()

    async def next(self) -> bytes:
        """What the page has not seen, as server-sent events; nothing at the end.

        A page that reads more slowly than there is news misses some, and gets the whole picture anew.
        """
        board = self._board
        while self._seen == board.number and not (self.gone or board.closed):
            self.wake.clear()
            await self.wake.wait()
        if self.gone or board.closed:
            return b""
        piece = board._delta if self._seen == board._delta_from >= 0 else board.whole()
        self._seen = board.number
        return piece


def refusals(stats: Stats) -> int:
    """Requests that the balancer answered itself or broke off; not those whose client left."""
    return sum(stats.errors.values()) - stats.errors["client_gone"]


def rounded(number: float, digits: int = 1) -> float:
    """Without a fraction where there is none, so that it takes few bytes."""
    number = round(number, digits)
    return int(number) if number == int(number) else number


def iso(wall: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sse(event: str, message: Json) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    return f"event: {event}\ndata: {json.dumps(message, separators=(',', ':'))}\n\n".encode()
