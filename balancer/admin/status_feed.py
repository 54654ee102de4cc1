"""The data of the status page: samples once a second, kept for two minutes, and messages for open pages.

A page gets the whole state once and then, once a second, the rows that have changed; both are made once for all
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

from balancer import build
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
# Seconds between two messages at least: changes of members do not wait for the next sample.
MIN_MESSAGE_INTERVAL = 0.2
# Seconds that an action that names a container waits for DNS to confirm its address.
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
        self._changed = asyncio.Event()
        self.subscribers: set[Subscriber] = set()
        self.closed = False
        # Number of the last message; a page that has not had the one before needs the whole state.
        self.number = 0
        self._delta = b""
        self._delta_from = -1
        self._whole: bytes | None = None
        # The last message that the rows in ``_pools`` agree with.
        self._rows_number = -1

    def pools(self) -> list[Pool]:
        """Return the pools with figures, each with its history."""
        views = {name: view for name, view in by_name(self._views()).items() if view.stats}
        if [(pool.name, pool.view) for pool in self._pools.values()] != list(views.items()):
            before = self._pools
            now = self._clock()
            self._pools = {}
            for name, view in views.items():
                assert view.stats
                self._pools[view] = pool = before.get(view) or Pool(name, view, view.stats, now)
                pool.name = name
                pool.stats.events.on_change = self._changed.set
            self._whole = None
            self._rows_number = -1
        return list(self._pools.values())

    async def run(self) -> None:
        """Take a sample every INTERVAL, and send changes of members in between."""
        due = self._clock()
        try:
            self._update(sample=False)
            while True:
                due = max(due + INTERVAL, self._clock())
                while (left := due - self._clock()) > 0:
                    try:
                        async with asyncio.timeout(left):
                            await self._changed.wait()
                    except TimeoutError:
                        break
                    # Other changes within the interval go into the same message.
                    await asyncio.sleep(min(MIN_MESSAGE_INTERVAL, max(0.0, due - self._clock())))
                    self._update(sample=False)
                self._update(sample=True)
        finally:
            await self._names.close()

    def _update(self, sample: bool) -> None:
        self._changed.clear()
        try:
            self._take_changes()
            if sample:
                self._sample(self._clock())
            self._publish(sample)
        except Exception:
            # A fault here must not stop the balancer.
            log.exception("the status page could not be brought up to date")

    def _sample(self, now: float) -> None:
        for pool in self.pools():
            pool.sample(now)
            for track in pool.due():
                if not self._names.is_looking_up(track.member):
                    self._look_up(pool, track)
        # Times that were sent stay the same, but for a step of the machine's clock.
        offset = self._wall_clock() - now
        if abs(offset - self._offset) > 0.5:
            self._offset = offset

    def close(self) -> None:
        """End the streams of open pages."""
        self.closed = True
        for subscriber in self.subscribers:
            subscriber.wake.set()

    @property
    def page_count(self) -> int:
        """Number of open pages."""
        return len(self.subscribers)

    def wall(self, reading: float) -> float:
        """Return the seconds since 1970 of a reading of the clock."""
        return reading + self._offset

    def event_json(self, event: Event, pool: str) -> Json:
        """Return an event as the API shows it."""
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
        """Return the recent events of all pools, the oldest first."""
        self._take_changes()
        found = [
            (event.when, event.number, self.event_json(event, pool.name))
            for pool in self.pools()
            for event in pool.stats.events.recent
        ]
        return [event for _, _, event in sorted(found, key=lambda entry: entry[:2])]

    def _take_changes(self) -> None:
        for pool in self.pools():
            for track in pool.take_changes(self._numbers):
                self._look_up(pool, track)

    def _look_up(self, pool: Pool, track: MemberHistory) -> None:
        looked_up_at = self._clock()

        def found(name: str) -> None:
            if pool.take_name(track, name, looked_up_at, self._numbers):
                self._changed.set()

        self._names.look_up(
            track.member, track.member.address.host, found, lambda: pool.tracks.get(track.member) is track
        )

    async def confirm(self, pool: Pool, member: Member) -> str:
        """Return the name of the container at a member's address now; the last one where DNS has no answer."""
        self._take_changes()
        if not (track := pool.tracks.get(member)):
            return ""
        looked_up_at = self._clock()
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                name = await self._names.find(member.address.host)
        except TimeoutError:
            name = ""
        if name and pool.tracks.get(member) is track and pool.take_name(track, name, looked_up_at, self._numbers):
            self._changed.set()
        return name or track.name

    def _publish(self, sampled: bool) -> None:
        """Make the message with the changes since the last, if a page is open."""
        pools = self.pools()
        events = [self.event_json(event, pool.name) for pool in pools for event in pool.pop_changes()]
        usable = self._rows_number == self.number
        self._whole = None
        self.number += 1
        for subscriber in self.subscribers:
            subscriber.wake.set()
        if not self.subscribers or not usable:
            return
        message = {
            "number": self.number,
            "time": self._now(),
            "sample": sampled,
            "pools": [self._pool_delta(pool, sampled) for pool in pools],
            "events": events,
        }
        self._delta, self._delta_from, self._rows_number = sse("delta", message), self.number - 1, self.number

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
        """Return the whole state as of the last message; the same bytes for all pages until the next."""
        if self._whole is None:
            self._whole = sse("whole", self._everything())
        return self._whole

    def _everything(self) -> Json:
        if self._rows_number != self.number:
            self._take_changes()
        pools = []
        for pool in self.pools():
            if self._rows_number != self.number:
                pool.sent_members = pool.member_rows(self.wall)
                pool.sent_values = pool.value_rows()
            tracks = [(track, 0) for track in pool.tracks.values()]
            tracks += [(track, pool.samples - track.gone_at) for track in pool.gone]
            pools.append(
                {
                    "name": pool.name,
                    "alias": pool.view.settings.alias,
                    "policy": pool.view.settings.policy,
                    "members": list(pool.sent_members.values()),
                    "values": list(pool.sent_values.values()),
                    # Rates, the latest last, and the number of samples since then.
                    "chart": [
                        [track.number, str(track.member.address), track.name, ago, list(track.gauge.rates)]
                        for track, ago in tracks
                    ],
                    "refused": list(pool.refused),
                    "summary": pool.summary(),
                    "dns": self.dns(pool),
                    "changes": [self.event_json(change, pool.name) for change in pool.stats.events.dns],
                }
            )
        self._rows_number = self.number
        return {
            "number": self.number,
            "time": self._now(),
            "version": __version__,
            "build": build.describe(),
            **self._about,
            "interval": INTERVAL,
            "samples": CHART,
            "pools": pools,
            "events": self.events(),
        }

    def dns(self, pool: Pool) -> Json | None:
        """Return the last answer; None before there was one."""
        snapshot = pool.view.snapshot
        if snapshot is None:
            return None
        return {
            "time": iso(self.wall(snapshot.when)),
            "answers": [
                {
                    "record": answer.record,
                    "rcode": answer.rcode,
                    "outcome": answer.outcome.value,
                    "addresses": len(answer.endpoints),
                    "truncated": answer.over_tcp,
                }
                for answer in snapshot.answers
            ],
        }

    def status(self) -> Json:
        """Return all figures of the pools and their members."""
        self._take_changes()
        return {
            "version": __version__,
            "build": build.describe(),
            "time": iso(self._now()),
            "pools": [self._status(pool) for pool in self.pools()],
        }

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
                for member in sorted(pool.tracks, key=lambda member: member.address)
            ],
        }

    def _member(self, pool: Pool, member: Member, row: list[Any], lately: int) -> Json:
        _, in_flight, rate, recent, p50, p99, requests, failed, _, limit = row
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
            "limit": limit,
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
