"""Members that say nothing any more: busy, paused, hung, cut off from the network."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from typing import Any

import pytest

from balancer.members.health import State
from tests.support.messages import LAST_GET as GET
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import Connection, Member, Running, balance, eventually

PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27


def cut_off(sock: Any) -> None:
    """Have the kernel drop every segment for a socket, as where the network is gone: a filter (BPF) that takes none."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


async def mute(connection: Connection) -> None:
    await connection.to_end()


async def waiting(running: Running, member: Member, request: bytes) -> asyncio.Task[bytes]:
    """A request that has arrived at the member."""
    task = asyncio.create_task(running.exchange(request))
    await eventually(lambda: bool(member.received))
    return task


class Busy:
    """A member with one thread: while it works on a request, its probes wait. ``done`` lets it go on."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.turn = asyncio.Lock()

    async def __call__(self, connection: Connection) -> None:
        async with self.turn:
            head = await connection.head()
            if b"/healthz" not in head:
                await self.done.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings under which a member that does not answer probes is down within a second."""
    monkeypatch.setattr("balancer.members.probe_scheduler.LATE_SECONDS", 0.1)
    return {"health_path": "/healthz", "health_timeout": 0.3, "health_interval": 0.1}


@pytest.mark.parametrize("request_", [GET, PUT, POST], ids=["GET", "PUT", "POST"])
async def test_request_at_a_busy_member_ends_there_whatever_the_state(request_: bytes, quick: dict[str, Any]) -> None:
    busy, resolver = Busy(), ScriptedResolver()
    async with Member(busy) as one, Member() as other, balance(resolve=resolver, **quick) as running:
        resolver.found(one.address)
        await running.available(1)
        request = asyncio.create_task(running.exchange(request_))
        await eventually(lambda: busy.turn.locked())
        resolver.found(one.address, other.address)
        member = running.balancer.membership.members[one.address]
        await eventually(lambda: member.state is State.DOWN)
        assert member.reason == "GET /healthz: no answer within 0.3 s"
        assert not request.done()
        assert (await running.exchange(GET)).endswith(b"ok")  # new ones go to the other
        busy.done.set()
        assert (await request).endswith(b"busy")
        assert not any(it.attempts for it in running.records)
        await eventually(lambda: member.state is State.UP)


async def test_member_is_suspect_while_a_probe_is_late_and_up_when_it_is_answered(quick: dict[str, Any]) -> None:
    busy, resolver = Busy(), ScriptedResolver()
    settings = {**quick, "health_timeout": 60.0}
    async with Member(busy) as one, balance(resolve=resolver, **settings) as running:
        resolver.found(one.address)
        await running.available(1)
        request = await waiting(running, one, GET)
        member = running.balancer.membership.members[one.address]
        await eventually(lambda: member.state is State.SUSPECT)
        assert member.reason == "no answer to a probe for 0.1 s"
        probes = member.probes
        busy.done.set()
        assert (await request).endswith(b"busy")
        await eventually(lambda: member.state is State.UP)
        assert member.probes <= probes + 1  # one is enough in the queue of a busy member


@pytest.mark.usefixtures("each_way")
async def test_requests_beyond_what_all_members_can_do_run_once_each(quick: dict[str, Any]) -> None:
    one_busy, other_busy = Busy(), Busy()
    async with Member(one_busy) as one, Member(other_busy) as other, balance(one, other, **quick) as running:
        requests = [asyncio.create_task(running.exchange(GET)) for _ in range(16)]
        members = running.balancer.membership.members.values()
        await eventually(lambda: all(it.state is State.DOWN for it in members))
        one_busy.done.set()
        other_busy.done.set()
        assert all(it.endswith(b"busy") for it in await asyncio.gather(*requests))
        assert sum(it.startswith(b"GET / ") for it in one.received + other.received) == 16


@pytest.mark.long
async def test_member_without_room_for_connections_keeps_what_it_has() -> None:
    """A full queue of connections drops what asks for one more, as a network that is gone does."""
    answer = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.head()
        await answer.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    probe, resolver = ScriptedProbe(), ScriptedResolver()
    async with Member(slow) as full, Member() as other, balance(resolve=resolver, probe=probe) as running:
        resolver.found(full.address)
        await running.available(1)
        request = await waiting(running, full, GET)
        resolver.found(full.address, other.address)
        await running.available(2)
        probe.silent.add(full.address)
        await running.available(1)
        assert running.balancer.membership.members[full.address].state is State.DOWN
        done, _ = await asyncio.wait([request], timeout=5)  # in this time a network that is gone is found
        assert not done
        answer.set()
        assert (await request).endswith(b"slow")


@pytest.mark.parametrize("leaves", [False, True], ids=["down", "left DNS"])
async def test_get_moves_away_from_a_member_whose_network_is_gone(leaves: bool) -> None:
    probe, resolver = ScriptedProbe(), ScriptedResolver()
    settings: dict[str, Any] = {"resolve": resolver, "probe": probe, "resolve_interval": 0.1}
    async with Member(mute) as gone, Member() as good, balance(**settings) as running:
        resolver.found(gone.address)
        await running.available(1)
        request = await waiting(running, gone, GET)
        resolver.found(gone.address, good.address)
        await running.available(2)
        for connection in gone.connections:
            cut_off(connection.writer.get_extra_info("socket"))
        if leaves:
            resolver.found(good.address)
        else:
            probe.silent.add(gone.address)
        assert (await request).endswith(b"ok")
        assert [it.reason for it in running.records[0].attempts] == ["died"]


@pytest.mark.long
@pytest.mark.parametrize("returns", [False, True], ids=["gone", "back after 3.5 s"])
async def test_post_waits_for_the_network_to_come_back_for_a_while(returns: bool) -> None:
    """It may not be repeated, so that it gains nothing by failing early."""
    answer = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.head()
        await answer.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    probe = ScriptedProbe()
    async with Member(slow) as gone, balance(gone, probe=probe) as running:
        request = await waiting(running, gone, POST)
        sock = gone.connections[-1].writer.get_extra_info("socket")
        cut_off(sock)
        probe.silent.add(gone.address)
        done, _ = await asyncio.wait([request], timeout=3.5)
        assert not done
        if returns:
            sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            answer.set()
        assert (await request).startswith(b"HTTP/1.1 200" if returns else b"HTTP/1.1 502")
        assert len(gone.received) == 1


@pytest.mark.long
async def test_bytes_that_the_network_swallows_end_the_exchange_without_a_probe() -> None:
    """What was sent and not acknowledged keeps the kernel from asking: the balancer has to look."""
    async with Member(mute) as gone, balance(gone, health_interval=60) as running, running.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nb")
        await eventually(lambda: bool(gone.received))
        cut_off(gone.connections[-1].writer.get_extra_info("socket"))
        await client.send(b"ody")
        assert (await client.head()).startswith(b"HTTP/1.1 502")


@pytest.mark.long
async def test_large_body_waits_for_a_member_that_does_not_read_yet() -> None:
    """The member's kernel acknowledges and has no room: that is a busy member, not a network that is gone."""
    read = asyncio.Event()
    size = 32 * 1024 * 1024

    async def later(connection: Connection) -> None:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await read.wait()
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await connection.head()
        left = size
        while left:
            left -= len(await connection.reader.read(1 << 20))
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone")

    async with Member(later) as busy, balance(busy) as running, running.client() as client:
        client.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        client.writer.write(bytes(size))
        answer = asyncio.create_task(client.to_end())
        done, _ = await asyncio.wait([answer], timeout=9)
        assert not done
        read.set()
        assert (await answer).endswith(b"done")


@pytest.mark.usefixtures("each_way")
async def test_idempotent_request_leaves_a_member_that_has_sent_no_byte_for_hung_timeout() -> None:
    async with Member(mute) as hung, Member() as good:
        resolver = ScriptedResolver(hung.address)
        async with balance(resolve=resolver, hung_timeout=0.5) as running:
            await running.available(1)
            get, post = await waiting(running, hung, GET), asyncio.create_task(running.exchange(POST))
            await eventually(lambda: len(hung.received) == 2)
            resolver.found(hung.address, good.address)
            await running.available(2)
            assert (await get).endswith(b"ok")
            assert running.records[0].attempts[0].words == "the member has sent nothing for 0.5 s"
            assert not post.done()
            post.cancel()


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sign", ["request", "probe"])
async def test_request_stays_with_a_member_that_gives_a_sign_of_life_within_hung_timeout(sign: str) -> None:
    answer = asyncio.Event()

    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if b"GET /slow" in head:
                await answer.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    health = {"health_path": "/healthz", "health_interval": 0.1} if sign == "probe" else {}
    async with Member(script) as one, balance(one, hung_timeout=0.6, **health) as running:  # type: ignore[arg-type]
        slow = await waiting(running, one, b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.2  # Without a sign it is given up within 0.75 s: the limit is checked at its quarters.
        while loop.time() < until:
            if sign == "request":
                assert (await running.exchange(GET)).endswith(b"ok")
            await asyncio.sleep(0.1)
        assert not slow.done()
        answer.set()
        assert (await slow).endswith(b"ok")
        # Nor has it been given up and sent again.
        assert not any(it.attempts for it in running.records)
