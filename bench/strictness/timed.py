"""The bounds that need time or number: what a candidate puts up with from a client, measured side by side."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.processes import Address
from bench.strictness.client import PATIENCE, Client
from tests.support.hostile import POST
from tests.support.messages import GET

# How long is watched: longer than any limit that the balancer has.
WATCH = 90.0
# How many requests are sent without waiting for an answer.
AHEAD = 300

Probe = Callable[[Address], Awaitable[str]]

_NGINX_BODY = "https://nginx.org/en/docs/http/ngx_http_core_module.html#client_max_body_size"
_NGINX_CONNECTIONS = "https://nginx.org/en/docs/http/ngx_http_limit_conn_module.html"
_CADDY_BODY = "https://caddyserver.com/docs/caddyfile/directives/request_body"

# What is documented where nothing is measured, or where WATCH is not long enough, by (bound, candidate).
DOCUMENTED = {
    (
        "an idle connection",
        "caddy",
    ): "[stream_idle_timeout](https://caddyserver.com/docs/caddyfile/options#timeouts): 5 min",
    (
        "a body that is announced too large",
        "nginx-keepalive",
    ): f"[client_max_body_size]({_NGINX_BODY}): 413 beyond 1 MiB by default",
    ("a body that is announced too large", "caddy"): f"[request_body]({_CADDY_BODY}), where set: 413",
    ("too many connections of one client", "nginx-keepalive"): f"[limit_conn]({_NGINX_CONNECTIONS}), where set: 503",
}


async def measure(address: Address) -> dict[str, str]:
    """What a candidate does about each bound that can be measured."""
    cells = await asyncio.gather(*(probe(address) for probe in PROBES.values()))
    return dict(zip(PROBES, cells, strict=True))


async def _until_cut(address: Address, begun: bytes, trickle: bytes = b"", answered: bool = False) -> str:
    """Send something, then ``trickle`` every second, and wait for the candidate to end it."""
    client = await Client.connect(address)
    client.send(begun)
    if answered:
        while not client.received.endswith(b"ok") and await client.more(5):
            pass
    start, seen = time.monotonic(), len(client.received)
    last = start
    try:
        while (now := time.monotonic()) < start + WATCH:
            if trickle and now > last + 1:
                client.send(trickle)
                last = now
            await client.more(0.25)
            if client.ended or len(client.received) > seen:
                status = re.match(rb"HTTP/1\.[01] (\d{3})", client.received[seen:])
                said = status[1].decode() if status else "closes" if client.ended else "answers"
                return f"{said} after {time.monotonic() - start:.0f} s"
    finally:
        client.close()
    return f"open after {WATCH:.0f} s"


async def _sending_on(address: Address) -> str:
    """Send a body that the member refuses at its beginning, and go on until the candidate ends the connection."""
    client = await Client.connect(address)
    client.send(POST.replace(b"POST /", b"POST /refuse") + b"Content-Length: 100000000\r\n\r\n")
    start, answered = time.monotonic(), 0.0
    try:
        while (now := time.monotonic()) < start + WATCH and not client.broken:
            client.send(bytes(1000))
            if not client.ended:
                await client.more(0.1)
            else:
                await asyncio.sleep(0.1)
            answered = answered or (now if client.received else 0.0)
        status = re.match(rb"HTTP/1\.[01] (\d{3})", client.received)
        if not status:
            return f"no answer in {WATCH:.0f} s of the body"
        more = f"for {time.monotonic() - answered:.0f} s more" if client.broken else "without an end"
        return f"{status[1].decode()}, read {more}"
    finally:
        client.close()


async def _not_reading(address: Address) -> str:
    """Ask for more than all buffers hold and read none of it, until the candidate's process closes the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, GET.replace(b"GET /", b"GET /flood"))
        client = Address(*sock.getsockname())
        await asyncio.sleep(1)
        start = time.monotonic()
        while time.monotonic() < start + WATCH:
            if not _established(address, client):
                return f"closes after {time.monotonic() - start + 1:.0f} s"
            await asyncio.sleep(0.5)
    return f"open after {WATCH:.0f} s"


def _established(server: Address, client: Address) -> bool:
    """Whether a process still has the server's end: the client cannot see a close behind what it has not read."""
    wanted = (_hexadecimal(server), _hexadecimal(client))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (words[1], words[2]) == wanted:
            return words[3] == "01" and words[9] != "0"
    return False


def _hexadecimal(address: Address) -> str:
    return f"{socket.inet_aton(address.host)[::-1].hex().upper()}:{address.port:04X}"


async def _ahead(address: Address) -> str:
    """Send AHEAD requests without waiting for an answer, and count the answers."""
    client = await Client.connect(address)
    client.send(GET * AHEAD)
    try:
        # A response before the last one has the beginning of the next behind it.
        while not client.received.endswith(b"ok") or client.received.count(b"HTTP/1.1 200") < AHEAD:
            if not await client.more(PATIENCE):
                break
        answered = client.received.count(b"HTTP/1.1 200")
        return f"{answered} answered" + (", then closed" if client.ended else "")
    finally:
        client.close()


async def _refused_head(address: Address) -> str:
    """Whether the refusal of HEAD has a body."""
    client = await Client.connect(address)
    client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    try:
        while await client.more(PATIENCE):
            pass
        head, _, body = client.received.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        said = status[1].decode() if status else "no answer"
        return f"{said} with a body" if body else f"{said} without a body"
    finally:
        client.close()


PROBES: dict[str, Probe] = {
    "a connection without a byte": lambda address: _until_cut(address, b""),
    "a head that stops": lambda address: _until_cut(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: "),
    "a head that trickles in": lambda address: _until_cut(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x"),
    "an idle connection": lambda address: _until_cut(address, GET, answered=True),
    "a body that stops": lambda address: _until_cut(address, POST + b"Content-Length: 9\r\n\r\nabc"),
    "a client that does not read": _not_reading,
    "a body that trickles in": lambda address: _until_cut(address, POST + b"Content-Length: 1000\r\n\r\n", b"x"),
    "a body that waits for 100 (Continue)": lambda address: _until_cut(
        address, POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    ),
    "an upload that goes on behind its answer": _sending_on,
    f"{AHEAD} requests ahead of their answers": _ahead,
    "HEAD without a host": _refused_head,
}
