"""The rows of the table: which attack meets which door, with which settings, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.abuse.honest import Protocol

# Where the attack goes; honest clients speak the same, but beside the admin port plain HTTP/1.1 to the data port.
Door = Literal["plain", "proxy", "tls", "h2", "admin"]

ENOUGH_MS = 50.0


@dataclass(frozen=True)
class Row:
    """``count``: the attacker's connections at a time.

    ``seconds``: how long it takes, unless that is as long as with the others. ``grace``: what the first so many seconds
    do to honest clients does not count: a limit of time cannot hold before its time is up.

    ``enough_ms``: a p99 that is good enough, whatever that of the peers is. ``gentle``: the attack takes next to no CPU
    time, so the candidates are attacked all at once. ``operator``: an operator with the token gets a status stream
    meanwhile. ``smuggles``: no request of the attacker may reach a member. ``ends``: the balancer has to end
    connections, or streams, before the attack is over.

    The rest is configured of each candidate: requests that a member is given at a time, connections in all (then honest
    clients have theirs before the attack begins, and open none), a limit for silence in mid-body, a route by path, a
    sticky cookie and large heads.
    """

    name: str
    title: str
    door: Door
    attack: str
    count: int = 1
    seconds: float = 0.0
    grace: float = 0.0
    enough_ms: float = ENOUGH_MS
    gentle: bool = False
    operator: bool = False
    smuggles: bool = False
    ends: bool = False
    member_limit: int = 0
    connections: int = 0
    idle_timeout: int = 0
    routed: bool = False

    @property
    def protocol(self) -> Protocol:
        return "plain" if self.door == "admin" else self.door


def _floods() -> Sequence[Row]:
    kinds = {
        "ping": "PING",
        "settings": "SETTINGS",
        "table-size": "SETTINGS with sizes of the HPACK table",
        "size-updates": "16,000 updates of the HPACK table's size in each head",
        "window-update": "WINDOW_UPDATE",
        "priority": "PRIORITY",
        "empty-data": "empty DATA",
        "rapid-reset": "rapid reset (CVE-2023-44487)",
        "made-you-reset": "MadeYouReset (CVE-2025-8671)",
        "continuation": "CONTINUATION without end (CVE-2024-27316)",
        "hpack-bomb": "HPACK bomb",
    }
    return [
        Row(f"{kind}-{count}", f"{title}, {count} connection{'s' * (count > 1)}", "h2", kind, count)
        for kind, title in kinds.items()
        for count in (1, 2)
    ]


ROWS: Sequence[Row] = (
    *_floods(),
    Row(
        "slow-uploads",
        "40 uploads of 1 byte per 5 s, 20 requests a member, from 25 s on",
        "h2",
        "slow-uploads",
        seconds=45,
        grace=25,
        gentle=True,
        member_limit=20,
        ends=True,
    ),
    Row(
        "slow-downloads",
        "40 downloads with 1 byte of window per 4 s, 20 requests a member, idle time-out 10 s, from 25 s on",
        "h2",
        "slow-downloads",
        seconds=45,
        grace=25,
        gentle=True,
        member_limit=20,
        idle_timeout=10,
        ends=True,
    ),
    Row("smuggling", "smuggling over HTTP/2", "h2", "smuggling", 4, smuggles=True),
    Row("garbage-h2", "garbage behind a preface", "h2", "garbage-h2", 20, ends=True),
    Row("chunks", "chunks of 1 byte at full speed", "plain", "one-byte-chunks"),
    Row("half-heads", "300 heads that trickle in", "plain", "half-heads", 300, seconds=12, ends=True),
    Row("half-heads-tls", "300 heads that trickle in", "tls", "half-heads-tls", 300, seconds=12, ends=True),
    Row("half-heads-admin", "300 heads that trickle in", "admin", "half-heads", 300, seconds=12, ends=True),
    Row("endless-head", "one head of 100 MiB", "plain", "endless-head", ends=True),
    Row("endless-head-tls", "one head of 100 MiB", "tls", "endless-head-tls", ends=True),
    Row("endless-head-admin", "one head of 100 MiB", "admin", "endless-head", ends=True),
    Row("idle-admin", "300 idle connections", "admin", "idle", 300, seconds=12, ends=True),
    Row("streams-admin", "200 anonymous status streams", "admin", "status-stream", 200, operator=True),
    Row("api-admin", "/api/status at full speed", "admin", "api", 8),
    Row("half-hello", "1,500 unfinished handshakes", "tls", "half-hello", 1500, seconds=12, ends=True),
    Row(
        "half-hello-full",
        "1,500 unfinished handshakes, 20 connections at most",
        "tls",
        "half-hello",
        1500,
        seconds=12,
        connections=20,
        ends=True,
    ),
    Row("handshakes", "whole handshakes at full speed, from one address", "tls", "handshake", 50),
    Row("garbage-tls", "garbage in place of a handshake", "tls", "garbage", 20, ends=True),
    Row("garbage", "garbage", "plain", "garbage", 20, ends=True),
    Row("refused", "20 refused requests that go on at full speed", "plain", "refused", 20, ends=True),
    Row(
        "refused-full",
        "40 connections at full speed, 20 connections at most",
        "plain",
        "crowd",
        40,
        connections=20,
        ends=True,
    ),
    Row("reads-nothing", "50 clients that read none of 16 MiB", "plain", "reads-nothing", 50),
    Row("reads-slowly", "50 clients that read 1 byte a second", "plain", "reads-slowly", 50),
    Row("slashes", "16 KB of `/`, with a route by path", "plain", "slashes", 4, routed=True),
    Row("semicolons", "31 KB of `;` in `Cookie`, with a sticky cookie", "plain", "semicolons", 4, routed=True),
    Row(
        "half-proxy",
        "500 halves of a PROXY header from a trusted peer",
        "proxy",
        "half-proxy",
        500,
        seconds=12,
        ends=True,
    ),
    Row(
        "queue",
        "300 requests of 0.5 s at a time, of one address, 10 requests a member; 1 s is enough",
        "plain",
        "queue",
        300,
        enough_ms=1000,
        member_limit=10,
    ),
)
