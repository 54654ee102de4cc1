"""A member as the API shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from balancer.admin.history import Json, Pool
from balancer.admin.subscriber import iso
from balancer.members.ejection import Ejection
from balancer.members.member import Member


def member_json(pool: Pool, member: Member, row: list[Any], lately: int, wall: Callable[[float], float]) -> Json:
    """Return all figures of a member.

    ``row``: its row of ``Pool.value_rows``. ``lately``: requests of the whole pool in the last ten seconds. ``wall``:
    returns the seconds since 1970 of a reading of the clock.
    """
    _, in_flight, rate, recent, p50, p99, requests, failed, _, limit = row
    track = pool.tracks[member]
    return {
        "address": str(member.address),
        "name": track.name or None,
        "state": member.state.value,
        "reason": member.reason,
        "since": iso(wall(member.since)),
        "drained": member.drained,
        "drained_since": iso(wall(member.drained_since)) if member.drained else None,
        "ejection": ejection_json(member.ejection, wall) if member.ejection else None,
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


def ejection_json(ejection: Ejection, wall: Callable[[float], float]) -> Json:
    """Return why a member is ejected, and until when."""
    return {
        "kind": ejection.kind.value,
        "reason": ejection.reason,
        "since": iso(wall(ejection.since)),
        "until": iso(wall(ejection.until)),
        "times": ejection.times,
        "on_trial": ejection.on_trial,
    }
