"""Connections count from accept on, at every door, and what comes before HTTP is bounded in number and in time."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
from contextlib import AsyncExitStack
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from balancer.config.settings import Settings
from balancer.frontend import acceptor, client_registry, places
from balancer.frontend.places import Place, Places
from balancer.telemetry.client_limits import ClientLimits
from tests.support.doors import HELLO, OWN, Door, OpenDoor, Reply, at_once, folder
from tests.support.messages import GET
from tests.support.processes import serving
from tests.support.proxy_header import V1
from tests.support.tls import trusting
from tests.support.wire import LIMIT, Member, eventually

STALLS = [(door, sent) for door in OWN.values() for sent in door.stalls]
each_stall = pytest.mark.parametrize(
    ("door", "sent"), STALLS, ids=[f"{door.name} after {len(sent)} bytes" for door, sent in STALLS]
)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handshake makes room, however slow the machine; a test of that sets it anew."""
    monkeypatch.setattr(places, "PATIENCE_SECONDS", LIMIT)


def beyond(door: Door) -> Reply:
    """The answer to a connection that is one too many."""
    return Reply(0) if door.speaks_http2 else Reply(503, "too_many_connections")


async def held(here: OpenDoor, count: int) -> None:
    """Wait until so many places are taken."""
    await eventually(lambda: here.clients.places.held == count)


@at_once(OWN)
async def test_connections_that_send_nothing_count(door: Door, tmp_path: Path) -> None:
    async with Member() as member, door.open(member, tmp_path, max_connections=2) as here:
        async with here.stalled(), here.stalled():
            await held(here, 2)
            assert await here.ask() == beyond(door)
            assert here.reached == {"connections": 1}
        await held(here, 0)
        assert await here.ask() == Reply(200)


@each_stall
async def test_connections_before_http_count(door: Door, sent: bytes, tmp_path: Path) -> None:
    async with Member() as member, door.open(member, tmp_path, max_connections=1) as here:
        async with here.stalled(sent):
            await held(here, 1)
            assert await here.ask() == beyond(door)
        await held(here, 0)
        assert await here.ask() == Reply(200)


@at_once(OWN)
async def test_connections_of_one_client_count_before_http(door: Door, tmp_path: Path) -> None:
    """From accept on, or from the PROXY header on, which names it."""
    sent = door.first
    async with Member() as member, door.open(member, tmp_path, max_connections_per_client=1) as here:
        async with here.stalled(sent) as client:
            await held(here, 1)
            if sent:
                per_client = here.clients.places.per_client
                await eventually(lambda: bool(per_client))
            assert await here.ask() == beyond(door)
            assert here.reached == {"connections_per_client": 1}
            client.close()
        await held(here, 0)
        assert await here.ask() == Reply(200)


@each_stall
async def test_connections_before_http_are_bounded(
    door: Door, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all, also where nothing else bounds them."""
    monkeypatch.setattr(places, "CLIENT_PART", 1)
    async with (
        Member() as member,
        door.open(member, tmp_path, max_handshakes=3) as here,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(here.stalled(sent)) for _ in range(3)]
        await held(here, 3)
        for _ in range(2):
            assert await here.ask() == Reply(0)
        assert here.reached == {"handshakes": 2}
        clients[1].close()
        await held(here, 2)
        assert await here.ask() == Reply(200)


@pytest.mark.parametrize("name", ["TLS", "PROXY and TLS"])
async def test_one_client_has_a_part_of_the_handshakes(name: str, tmp_path: Path) -> None:
    door = OWN[name]
    async with Member() as member, door.open(member, tmp_path, max_handshakes=2 * places.CLIENT_PART) as here:
        async with here.stalled(door.first + HELLO), here.stalled(door.first + HELLO):
            await held(here, 2)
            per_client = here.clients.places.per_client
            await eventually(lambda: sum(per_client.values()) == 2)
            assert await here.ask() == Reply(0)
            assert here.reached == {"handshakes": 1}
            if door.first:
                assert await here.ask("192.0.2.8") == Reply(200)
        await held(here, 0)
        assert await here.ask() == Reply(200)


@each_stall
async def test_handshake_that_stalls_makes_room(
    door: Door, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Member() as member, door.open(member, tmp_path, max_connections=1) as here:
        async with here.stalled(sent) as stalled:
            await held(here, 1)
            monkeypatch.setattr(places, "PATIENCE_SECONDS", 0.0)
            assert await here.ask() == Reply(200)
            assert await stalled.to_end() == b""
        assert here.reached == {"handshakes": 1}
        await held(here, 0)


async def test_handshakes_that_make_room_in_their_first_turn_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "PATIENCE_SECONDS", 0.0)
    async with Member() as member, OWN["TLS"].open(member, tmp_path, max_handshakes=1) as here:
        waiting = [socket.create_connection(here.running.address, LIMIT) for _ in range(20)]
        for sock in waiting[:-1]:
            sock.setblocking(False)
            async with asyncio.timeout(LIMIT):
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        await held(here, 1)
        for sock in waiting:
            sock.close()
        await held(here, 0)


@at_once(OWN)
async def test_only_so_many_refused_connections_get_an_answer(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "REFUSED_MAX", 1)
    async with Member() as member, door.open(member, tmp_path, max_connections=1) as here:
        async with here.stalled():
            await held(here, 1)
            async with here.client():
                assert here.clients.places.refused == 1
                assert await here.ask() == Reply(0)
        await held(here, 0)
        await eventually(lambda: here.clients.places.refused == 0)
        assert await here.ask() == Reply(200)


async def stall(door: Door, sent: bytes, folder: Path) -> str:
    """Begin late, and send no more than this; returns what the log is to say of it."""
    async with Member() as member, door.open(member, folder, header_timeout=2) as here, here.stalled() as client:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(1.3)
        await client.send(sent)
        await client.to_end()
        assert asyncio.get_running_loop().time() - began < 3.2
        assert here.reached == {"handshake_timeout": 1}
    who = "192.0.2.7" if V1 in sent else "127.0.0.1"
    step = "PROXY header" if door.first and V1 not in sent else "TLS handshake"
    return f"a client at {who} has not ended its {step} after 2 s; its connection is closed"


async def test_all_that_comes_before_a_request_shares_one_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.TaskGroup() as group:
        stalls = [
            group.create_task(stall(door, sent, folder(tmp_path, number)))
            for number, (door, sent) in enumerate(STALLS)
            if not door.unix
        ]
    lines = [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]
    assert sorted(lines) == sorted(it.result() for it in stalls)


@at_once({name: OWN[name] for name in ("PROXY", "TLS", "PROXY and TLS")})
async def test_first_head_has_what_the_handshake_has_left(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    async with (
        Member() as member,
        door.open(member, tmp_path, header_timeout=2) as here,
        here.running.client() as client,
    ):
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(1.3)
        if door.first:
            client.writer.write(door.first)
        if door.protocol:
            await client.writer.start_tls(trusting(), server_hostname="127.0.0.1")
        await client.send(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in await client.to_end()
        assert asyncio.get_running_loop().time() - began < 3.2


async def test_turn_of_the_loop_begins_few_handshakes(tmp_path: Path) -> None:
    """Each takes as long as many requests of those who are there."""
    async with Member() as member, OWN["TLS"].open(member, tmp_path) as here:
        waiting = [
            socket.create_connection(here.running.address, LIMIT) for _ in range(10 * acceptor.HANDSHAKES_PER_TURN)
        ]
        begun = [0]
        async with asyncio.timeout(LIMIT):
            while begun[-1] < len(waiting):
                await asyncio.sleep(0)
                begun.append(here.clients.places.held)
        assert max(after - before for before, after in pairwise(begun)) <= acceptor.HANDSHAKES_PER_TURN
        for sock in waiting:
            sock.close()


async def test_client_without_a_protocol_in_common_is_counted(tmp_path: Path) -> None:
    tls = trusting()
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("AES256-SHA256")
    async with Member() as member, OWN["TLS"].open(member, tmp_path) as here:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with here.running.client(tls):
                pass
        await eventually(lambda: here.reached == {"handshake_failed": 1})


async def test_client_that_leaves_in_its_handshake_is_no_failure(tmp_path: Path) -> None:
    async with Member() as member, OWN["TLS"].open(member, tmp_path) as here:
        for sent in (b"", HELLO):
            async with here.running.client() as client:
                await client.send(sent)
            await held(here, 0)
        assert here.reached == {}


def serving_process(supervisor: int) -> int:
    """The one process that a supervisor has."""
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


@pytest.mark.parametrize("name", ["HTTP/1.1", "TLS", "Unix socket"])
async def test_process_without_descriptors_says_so_and_lets_clients_wait(name: str, tmp_path: Path) -> None:
    door = OWN[name]
    settings: dict[str, Any] = {"bind": f"unix:{tmp_path}/balancer.sock"} if door.unix else door.settings(tmp_path)
    async with Member() as member, serving(member, **settings) as serve, AsyncExitStack() as stack:
        await serve.logged("up: accepts connections")
        context = trusting() if door.protocol else None
        waiting = [await stack.enter_async_context(serve.client()) for _ in range(10)]
        await asyncio.sleep(0.2)
        pid = serving_process(serve.process.pid)
        opened = set(map(int, os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208
        used = next(number for number in count() if number not in opened)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[1]))
        waiting += [await stack.enter_async_context(serve.client()) for _ in range(60)]
        await serve.logged("no connection can be accepted: Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for client in waiting[-3:]:
            if context:
                await client.writer.start_tls(context, server_hostname="127.0.0.1")
            await client.send(GET)
            assert await OpenDoor.reply(client) == Reply(200)


# The counting itself.


def counting(**settings: Any) -> Places:
    return Places(Settings(**settings), ClientLimits())


def taken(places: Places, peer: str, now: float = 0.0) -> Place | None:
    place = places.take(peer, now, handshake=True)
    return place if place and places.name(place, peer, now) else None


def test_place_is_given_back_once() -> None:
    it = counting(max_connections=2)
    place, other = it.take("a", 0.0), it.take("b", 0.0)
    assert place and other
    for _ in range(2):
        place.free()
    assert it.held == 1


def test_nothing_is_left_of_connections_that_have_ended() -> None:
    it = counting(max_connections=3, max_connections_per_client=2, max_handshakes=64)
    found = [place for client in "aaabbbccc" for place in [taken(it, client)] if place]
    assert [place.refusal is None for place in found] == [True, True, False, True, False, False, False, False, False]
    found[0].arrive()
    for place in found:
        place.free()
    assert (it.held, it.refused, it.per_client, it.handshakes) == (0, 0, {}, {})
    assert not it.handshakes_of


def test_oldest_handshake_makes_room_and_none_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PATIENCE_SECONDS", 1.0)
    it, dropped = counting(max_handshakes=2), []
    for number, (now, client) in enumerate([(0.0, "a"), (0.5, "b")]):
        place = taken(it, client, now)
        assert place
        place.drop = lambda number=number: dropped.append(number)
    assert taken(it, "c", 0.9) is None
    assert taken(it, "c", 1.1)
    assert dropped == [0]
    assert taken(it, "d", 1.2) is None
