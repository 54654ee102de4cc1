"""What the status page shows: takes samples once a second, keeps two minutes of them, makes what open pages are sent.

A page is given the whole picture once and then, once a second, the rows that have changed; both are made once for all
pages. A change of members does not wait for the second. Requests pay nothing for this: all figures are differences
of what ``Stats`` counts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from balancer.admin.history import CHART, Json, MemberHistory, Pool
from balancer.admin.pool_view import View, by_name
from balancer.admin.subscriber import Subscriber, iso, sse
from balancer.discovery.container_names import ContainerNames
from balancer.members.member import Member
from balancer.telemetry.events import Event
from balancer.types import Clock
from balancer.version import __version__

log = logging.getLogger(__name__)

Pools = Callable[[], Sequence[View]]

# Seconds between two samples.
INTERVAL = 1.0
# Changes of members are sent at once, but not more often than this, in seconds.
AT_ONCE = 0.2
# How long an action that names a container waits for DNS to say whose its address is now, in seconds.
CONFIRM_SECONDS = 2.0


class StatusFeed:
    """Runs beside the admin listener: ``run`` until cancelled, ``close`` ends the streams of open pages."""

    def __init__(
        self,
        pools: Pools,
        names: ContainerNames,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        **about: Any,
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
        self.subscribers: set[Subscriber] = set()
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
            for track in pool.due():
                if not self._names.asks(track.member):
                    self._look_up(pool, track)
        # Times that were told stay the same, but for a step of the machine's clock.
        offset = self._wall_clock() - now
        if abs(offset - self._offset) > 0.5:
            self._offset = offset

    def close(self) -> None:
        """End the streams."""
        self.closed = True
        for viewer in self.subscribers:
            viewer.wake.set()

    @property
    def viewers(self) -> int:
        """How many pages are open."""
        return len(self.subscribers)

    def wall(self, reading: float) -> float:
        """Seconds since 1970 of a reading of the clock."""
        return reading + self._offset

    def event_json(self, event: Event, pool: str) -> Json:
        """An event as the API tells it."""
        return {
            "id": f"{pool}-{event.number}",
            "time": iso(self.wall(event.when)),
            "pool": pool,
            "kind": event.kind.value,
            "level": event.level.value,
            "member": str(event.member) if event.member else None,
            "name": event.name or None,
            "text": event.text,
            "moved": event.moved,
            "lost": event.lost,
            "refused": event.refused,
        }

    def events(self) -> list[Json]:
        """What happened lately in all pools, the oldest first."""
        self._follow()
        found = [
            (event.when, event.number, self.event_json(event, pool.name))
            for pool in self.pools()
            for event in pool.stats.events.recent
        ]
        return [told for _, _, told in sorted(found, key=lambda it: it[:2])]

    def _follow(self) -> None:
        for pool in self.pools():
            for track in pool.follow(self._numbers):
                self._look_up(pool, track)

    def _look_up(self, pool: Pool, track: MemberHistory) -> None:
        asked_at = self._clock()

        def found(name: str) -> None:
            if pool.take_name(track, name, asked_at, self._numbers):
                self._news.set()

        self._names.look_up(
            track.member, track.member.address.host, found, lambda: pool.tracks.get(track.member) is track
        )

    async def confirm(self, pool: Pool, member: Member) -> str:
        """The name of the container that has a member's address now; what was known last where DNS does not say."""
        self._follow()
        if not (track := pool.tracks.get(member)):
            return ""
        asked_at = self._clock()
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                name = await self._names.find(member.address.host)
        except TimeoutError:
            name = ""
        if name and pool.tracks.get(member) is track and pool.take_name(track, name, asked_at, self._numbers):
            self._news.set()
        return name or track.name

    def _publish(self, sampled: bool) -> None:
        """Make the delta to what pages have, if there is any page."""
        pools = self.pools()
        events = [self.event_json(event, pool.name) for pool in pools for event in pool.pop_changes()]
        usable = self._known == self.number
        self._whole = None
        self.number += 1
        for viewer in self.subscribers:
            viewer.wake.set()
        if not self.subscribers or not usable:
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

    def full_state(self) -> bytes:
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
                    "changes": [self.event_json(it, pool.name) for it in pool.stats.events.dns],
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
        track = pool.tracks[member]
        return {
            "address": str(member.address),
            "name": track.name or None,
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
            "failed_attempts": track.counted(pool.stats.members.get(member.address))[2],
        }

    def _now(self) -> float:
        return round(self.wall(self._clock()), 3)
