"""PROXY headers before HTTP and before TLS: who has to send one, and what becomes of it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from ipaddress import ip_network
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from balancer.http.proxy_protocol import SIGNATURE
from tests.support.http2 import Http2Client
from tests.support.messages import GET
from tests.support.processes import serving
from tests.support.proxy_header import LOOPBACK, V1, announced
from tests.support.tls import issue, trusting
from tests.support.websocket import member as websocket_member
from tests.support.wire import Member, balance, eventually

V1_IPv6 = b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n"
V2 = SIGNATURE + b"\x21\x11\x00\x0f" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + b"\xdc\x04\x01\xbb" + b"\x04\x00\x00"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UNKNOWN = b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (V1, "192.0.2.7"),
        (V1_IPv6, "2001:db8::7"),
        (V2, "192.0.2.7"),
        (LOCAL, "127.0.0.1"),
        (UNKNOWN, "127.0.0.1"),
    ],
    ids=["v1", "v1 IPv6", "v2", "LOCAL", "UNKNOWN"],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
async def test_client_is_whom_the_header_names(header: bytes, source: str, cut: bool) -> None:
    async with Member() as member, announced(member) as running, running.client() as client:
        if cut:
            for byte in header:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            await client.send(GET)
        else:
            await client.send(header + GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await client.exactly(2)
        # The header is for the connection, not for its first request alone.
        await client.send(GET)
        await client.head()
        assert [it.request.client for it in running.records] == [source, source]
        node = f'"[{source}]"' if ":" in source else source
        assert member.received[0].count(f"\r\nx-forwarded-for: {source}\r\n".encode()) == 2
        assert member.received[0].count(f"\r\nforwarded: for={node};".encode()) == 2


async def test_claims_of_the_named_client_are_not_believed() -> None:
    claim = GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    async with Member() as member, announced(member) as running:
        for header in (V1, LOCAL):
            async with running.client() as client:
                await client.send(header + claim)
                await client.head()
        # LOCAL is the trusted proxy itself.
        assert b"\r\nx-forwarded-for: 192.0.2.7\r\n" in member.received[0]
        assert b"\r\nx-forwarded-for: 203.0.113.9, 127.0.0.1\r\n" in member.received[0]


@pytest.mark.parametrize(
    "sent",
    [
        GET,
        b"PROXY TCP4 nonsense\r\n" + GET,
        V1[:-2] + b"\n" + GET,
        SIGNATURE + b"\x31\x11\x00\x0c" + GET,
        b"PROXY " * 40,
    ],
    ids=["no header", "a bad line", "a bare LF", "a bad version", "a line without an end"],
)
async def test_trusted_proxy_without_a_sound_header_gets_no_answer(sent: bytes) -> None:
    async with Member() as member, announced(member) as running:
        assert await running.exchange(sent) == b""
        assert (member.received, running.records) == ([], [])


async def test_header_that_does_not_end_is_cut() -> None:
    for begun in (b"", V1[:20], V2[:20]):
        async with Member() as member, announced(member, header_timeout=0.3) as running, running.client() as client:
            await client.send(begun)
            assert await client.to_end() == b""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_client_that_leaves_within_its_header_leaves_nothing_behind() -> None:
    async with Member() as member, announced(member) as running, running.client() as client:
        await client.send(V1 + GET)
        await client.head()
        before = open_files()
        for begun in [b"", V1[:20], V2[:20]] * 10:
            async with running.client() as leaving:
                await leaving.send(begun)
        await eventually(lambda: open_files() <= before)


async def test_client_that_is_no_trusted_proxy_is_served_as_itself() -> None:
    async with Member() as member, announced(member, trusted_proxies=(ip_network("10.0.0.0/8"),)) as running:
        async with running.client() as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert running.records[0].request.client == "127.0.0.1"
        for header in (V1, V2):
            assert (await running.exchange(header + GET)).startswith(b"HTTP/1.1 400 ")
        assert len(member.received) == 1


async def test_proxy_header_without_the_setting_is_malformed() -> None:
    async with Member() as member, balance(member, trusted_proxies=LOOPBACK) as running:
        assert (await running.exchange(V1 + GET)).startswith(b"HTTP/1.1 400 ")


async def test_websockets_client_is_whom_the_header_names() -> None:
    async with (
        websocket_member() as address,
        balance(address, proxy_protocol=True, trusted_proxies=LOOPBACK) as running,
    ):
        sock = socket.create_connection(running.address)
        sock.sendall(V2)
        sock.setblocking(False)
        async with connect(running.url.replace("http", "ws"), sock=sock, proxy=None) as websocket:
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
        await running.idle()
        assert running.records[0].request.client == "192.0.2.7"


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_tls_begins_after_the_header(header: bytes, tmp_path: Path) -> None:
    async with Member() as member, announced(member, **issue(tmp_path)) as running:
        for _ in range(20):
            async with running.client(trusting(), first=header) as client:
                await client.send(GET)
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert {it.request.client for it in running.records} == {"192.0.2.7"}
        assert member.received[0].count(b"\r\nx-forwarded-proto: https\r\n") == 20
        # Without its header, not even a handshake.
        assert await running.exchange(b"\x16\x03\x01" + bytes(100)) == b""


async def test_http_2_begins_after_the_header(tmp_path: Path) -> None:
    pytest.importorskip("zttp")
    async with (
        Member() as member,
        announced(member, http2=True, **issue(tmp_path)) as running,
        running.client(trusting("h2"), first=V2) as connection,
    ):
        client = Http2Client(connection)
        await client.begin()
        assert (await client.get("/")).status == 200
        assert running.records[0].request.client == "192.0.2.7"


async def test_proxy_header_on_a_unix_socket_is_taken_from_all(tmp_path: Path) -> None:
    path = tmp_path / "balancer.sock"
    async with Member() as member, serving(member, bind=f"unix:{path}", proxy_protocol="on") as serve:
        async with serve.client() as client:
            await client.send(V1 + GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert b"\r\nx-forwarded-for: 192.0.2.7\r\n" in member.received[0]
        async with serve.client() as client:
            await client.send(GET)
            assert await client.to_end() == b""


async def test_many_at_once_keep_their_own() -> None:
    async with Member() as member, announced(member) as running:

        async def one(number: int) -> None:
            source = str(ipaddress.ip_address("10.0.0.0") + number)
            async with running.client() as client:
                await client.send(f"PROXY TCP4 {source} 10.9.9.9 1 2\r\n".encode())
                await client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
                await client.head()

        await asyncio.gather(*(one(number) for number in range(200)))
        named = {it.request.target: it.request.client for it in running.records}
        assert named == {b"/%d" % it: str(ipaddress.ip_address("10.0.0.0") + it) for it in range(200)}
