"""Whatever goes wrong, the access log alone says what it was: the token, why, which member, and what was tried."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balancer.accesslog import as_json
from balancer.settings import Address
from balancer.visit import SHUTTING_DOWN
from tests.support.wire import Connection, Member, Running, balance, eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()

Entry = dict[str, Any]


async def hang_up(connection: Connection) -> None:
    await connection.head()
    connection.reset()


async def say_nonsense(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"SSH-2.0-OpenSSH\r\n\r\n")


async def say_nothing(connection: Connection) -> None:
    await connection.head()
    await connection.reader.read()


async def stop_in_the_middle(connection: Connection) -> None:
    await connection.head()
    await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
    connection.reset()


async def entries(running: Running, token: str) -> list[Entry]:
    """What the log says of the requests that this token ended, once there are any."""

    def found() -> list[Entry]:
        lines = [json.loads(as_json(it, 0.0)) for it in running.records]
        return [it for it in lines if it.get("error") == token]

    await eventually(lambda: bool(found()))
    return found()


def head(*, target: bytes = b"/", fields: bytes = b"Host: a\r\n", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, fields)


# Requests that the balancer answers by itself: what is sent, the limits, and what the reason says.
REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "malformed_request": (head(fields=b"Host: a\r\nHost: b\r\n"), {}, "one Host"),
    "method_refused": (head(method=b"TRACE"), {}, "TRACE"),
    "request_timeout": (b"GET / HTTP/1.1\r\n", {"head_timeout": 0.2}, "0.2 s"),
    "body_too_large": (POST, {"max_body": 1}, "1 bytes"),
    "target_too_long": (head(target=b"/" + b"x" * 300), {"max_target": 256}, "256 bytes"),
    "head_too_large": (head(fields=b"Host: a\r\n" + b"X: y\r\n" * 10), {"max_fields": 10}, "10 fields"),
    "version_not_supported": (GET.replace(b"1.1", b"2.0"), {}, "HTTP/2.0"),
}
# What members do, with what request, and what the log says of their try.
FAILED: dict[str, tuple[Callable[[Connection], Any], bytes, dict[str, Any], str]] = {
    "member_failed": (hang_up, POST, {}, "reset"),
    "bad_response": (say_nonsense, GET, {}, ""),
    "response_timeout": (say_nothing, GET, {"response_timeout": 0.2}, "no response within 0.2 s"),
    "truncated": (stop_in_the_middle, GET, {}, "reset"),
}
# Each has a test of its own.
OTHERS = {"no_member", "hold_full", "overloaded", "shutting_down", "too_many_connections", "client_gone"}


def test_every_token_is_explained_here() -> None:
    tokens = set(re.findall(r"^\| \d{3} \| `(\w+)` \|", README, re.MULTILINE)) | {"truncated", "client_gone"}
    assert tokens == REFUSED.keys() | FAILED.keys() | OTHERS


@pytest.mark.parametrize("token", REFUSED)
async def test_what_the_client_did_wrong(token: str) -> None:
    request, settings, words = REFUSED[token]
    async with Member() as member, balance(member, **settings) as running:
        await running.exchange(request)
        (entry,) = await entries(running, token)
        assert words in entry["reason"]
        assert (entry["member"], entry.get("tries")) == ("", None)
        assert entry["client"] == "127.0.0.1"


@pytest.mark.parametrize("token", FAILED)
async def test_what_a_member_did_wrong(token: str) -> None:
    script, request, settings, words = FAILED[token]
    async with Member(script) as member, balance(member, **settings) as running:
        await running.exchange(request)
        (entry,) = await entries(running, token)
        assert entry["member"] == str(member.address)
        assert entry["tries"][-1].startswith(f"{member.address}: ")
        assert words in entry["tries"][-1]
        assert token == "truncated" or entry["reason"] in entry["tries"][-1]


async def test_nobody_could_be_connected_to() -> None:
    gone = Address("127.0.0.1", 1)
    async with Member() as member, balance(member, hold_seconds=0.2, health_interval=60) as running:
        await member.stop()
        await running.exchange(GET)
        (entry,) = await entries(running, "no_member")
        assert entry["tries"] == [f"{member.address}: Connection refused"]
        assert "no member became available in time; last try: " in entry["reason"]
        assert entry["held_ms"] > 150
    async with balance(gone, wait=False, hold_seconds=0.2) as running:
        await running.exchange(GET)
        (entry,) = await entries(running, "no_member")
        assert (entry["member"], entry["reason"]) == ("", "no member became available in time")
        assert entry["held_ms"] > 150


async def test_too_many_waited() -> None:
    async with balance(Address("127.0.0.1", 1), wait=False, hold_seconds=5, hold_max=0) as running:
        await running.exchange(GET)
        (entry,) = await entries(running, "hold_full")
        assert entry["reason"] == "0 requests wait for a member already"


async def test_every_member_was_busy() -> None:
    limits: dict[str, Any] = {"max_requests_per_member": 1, "hold_seconds": 0.2}
    async with Member(say_nothing) as member, balance(member, **limits) as running, running.client() as busy:
        await busy.send(GET)
        await eventually(lambda: len(member.received) == 1)
        await running.exchange(GET)
        (entry,) = await entries(running, "overloaded")
        assert "busy" in entry["reason"]
        assert entry["held_ms"] > 150


async def test_the_balancer_stopped() -> None:
    async with Member(say_nothing) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        await eventually(lambda: len(member.received) == 1)
        running.balancer.proxy.cut()
        assert SHUTTING_DOWN.reason.encode() in await client.to_end()
        (entry,) = await entries(running, "shutting_down")
        assert entry["member"] == str(member.address)


async def test_there_were_too_many_connections() -> None:
    async with Member() as member, balance(member, max_connections=1) as running, running.client() as first:
        await first.send(head())
        await first.head()
        await running.exchange(GET)
        (entry,) = await entries(running, "too_many_connections")
        assert "1 connections already" in entry["reason"]


async def test_the_client_left() -> None:
    async with Member(say_nothing) as member, balance(member) as running:
        async with running.client() as client:
            await client.send(GET)
            await eventually(lambda: len(member.received) == 1)
            client.reset()
        (entry,) = await entries(running, "client_gone")
        assert (entry["status"], entry["member"]) == (499, str(member.address))
