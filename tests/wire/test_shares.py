"""One client's requests do not hold up another's, at any front end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from balancer.frontend.client_registry import ClientRegistry
from balancer.process.sockets import listen
from balancer.types import UnixSocket
from tests.support import wire
from tests.support.doors import ALL, Door, OpenDoor, Reply
from tests.support.gate import Gate
from tests.support.messages import LAST_GET as GET
from tests.support.proxy_header import LOOPBACK
from tests.support.wire import LIMIT, Connection, Member, Running, balance, connected, eventually

HONEST, ATTACKER = "127.0.0.1", "127.0.0.2"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" + b"a" * 1000

# An attacker's requests.
CROWD = 100
FULL = Reply(503, "queue_full")


async def exchange(running: Running, host: str, request: bytes = GET) -> bytes:
    async with running.client(host=host) as client:
        await client.send(request)
        return await client.to_end()


# Those that tell clients apart.
DOORS = {name: door for name, door in ALL.items() if door.first or not door.unix}
each_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def ask(here: OpenDoor, host: str) -> asyncio.Task[Reply]:
    return asyncio.create_task(here.ask(host))


def queued(running: Running) -> int:
    return len(running.balancer.dispatcher.queue)


@each_door
async def test_one_client_s_requests_do_not_hold_up_another_s(door: Door, tmp_path: Path) -> None:
    gate = Gate()
    settings: dict[str, Any] = {"max_requests_per_member": 2, "queue_timeout": 3 * LIMIT}
    async with Member(gate) as member, door.open(member, tmp_path, **settings) as here:
        attack = [ask(here, ATTACKER) for _ in range(CROWD)]
        await eventually(lambda: (gate.waiting, queued(here.running)) == (2, CROWD - 2))
        honest = ask(here, HONEST)
        await eventually(lambda: queued(here.running) == CROWD - 1)
        gate.let(4)  # The two that members have, one in its turn, and this one.
        assert await asyncio.wait_for(honest, LIMIT) == Reply(200)
        gate.let(CROWD - 3)
        assert all(answer == Reply(200) for answer in await asyncio.gather(*attack))


@each_door
async def test_place_in_a_full_queue_is_made_by_the_client_that_has_most(door: Door, tmp_path: Path) -> None:
    gate = Gate()
    settings: dict[str, Any] = {"max_requests_per_member": 1, "queue_max": 20, "queue_timeout": 3 * LIMIT}
    async with Member(gate) as member, door.open(member, tmp_path, **settings) as here:
        attack = [ask(here, ATTACKER) for _ in range(21)]
        await eventually(lambda: (gate.waiting, queued(here.running)) == (1, 20))
        honest = ask(here, HONEST)
        (gone,), attack_left = await asyncio.wait(attack, return_when=asyncio.FIRST_COMPLETED)
        assert gone.result() == FULL
        assert b"20 of its 20 requests were yours, whose share is 2" in gone.result().body
        assert await ask(here, ATTACKER) == FULL
        # It is in the log as any request is.
        first, second = here.running.records
        assert (first.status, first.error, first.request.client) == (503, "queue_full", ATTACKER)
        assert first.queued > 0
        assert (second.status, second.error, second.queued) == (503, "queue_full", 0)
        gate.let(3)
        assert await asyncio.wait_for(honest, LIMIT) == Reply(200)
        gate.let(18)
        assert all(answer == Reply(200) for answer in await asyncio.gather(*attack_left))


@each_door
async def test_one_address_before_all_clients_has_the_whole_queue(door: Door, tmp_path: Path) -> None:
    """As where Docker's own proxy accepts the connections, or a proxy that is not trusted."""
    gate = Gate()
    settings: dict[str, Any] = {"max_requests_per_member": 2, "queue_max": 30, "queue_timeout": 3 * LIMIT}
    async with Member(gate) as member, door.open(member, tmp_path, **settings) as here:
        crowd = [ask(here, HONEST) for _ in range(32)]
        await eventually(lambda: (gate.waiting, queued(here.running)) == (2, 30))
        answer = await ask(here, HONEST)
        assert answer == FULL
        assert b"30 requests wait for a member already\n" in answer.body
        gate.let(32)
        assert all(answer == Reply(200) for answer in await asyncio.gather(*crowd))
        assert gate.most == 2


async def is_next(
    running: Running, gate: Gate, crowd: list[Coroutine[Any, Any, bytes]], honest: Coroutine[Any, Any, bytes]
) -> None:
    """Have a crowd of 20 wait for one slot; one more, of another client, is answered after two of them."""
    attack = [asyncio.create_task(it) for it in crowd]
    await eventually(lambda: (gate.waiting, queued(running)) == (1, 19))
    other = asyncio.create_task(honest)
    await eventually(lambda: queued(running) == 20)
    gate.let(3)
    assert (await asyncio.wait_for(other, LIMIT)).endswith(b"ok")
    gate.let(18)
    assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*attack))


def forwarded(clients: str) -> bytes:
    return GET.replace(b"\r\n\r\n", f"\r\nX-Forwarded-For: {clients}\r\n\r\n".encode())


@pytest.mark.usefixtures("each_way")
async def test_clients_behind_a_trusted_proxy_are_those_that_it_names() -> None:
    gate = Gate()
    settings: dict[str, Any] = {"max_requests_per_member": 1, "trusted_proxies": LOOPBACK}
    async with Member(gate) as member, balance(member, **settings) as running:

        def via_proxy(client: str) -> Coroutine[Any, Any, bytes]:
            return exchange(running, HONEST, forwarded(f"192.0.2.99, {client}"))

        await is_next(
            running, gate, [via_proxy(f"2001:db8::{number:x}") for number in range(20)], via_proxy("2001:db8:0:1::1")
        )


async def test_claims_of_clients_make_no_clients_of_them() -> None:
    gate = Gate()
    async with Member(gate) as member, balance(member, max_requests_per_member=1) as running:
        claims = [exchange(running, ATTACKER, forwarded(f"192.0.2.{number}")) for number in range(20)]
        await is_next(running, gate, claims, exchange(running, HONEST))


async def test_clients_of_a_unix_socket_are_one_client(tmp_path: Path) -> None:
    gate = Gate()
    socket = UnixSocket(str(tmp_path / "socket"))

    async def locally() -> bytes:
        async with connected(socket) as client:
            await client.send(GET)
            return await client.to_end()

    async with Member(gate) as member, balance(member, max_requests_per_member=1) as running:
        local = ClientRegistry(running.balancer.proxy, running.balancer.settings)
        async with wire.listening(running.balancer, listen("BIND", socket), local):
            await is_next(running, gate, [locally() for _ in range(20)], exchange(running, HONEST))


async def test_bytes_in_the_queue_are_shared_as_places_are() -> None:
    gate = Gate()
    settings: dict[str, Any] = {"max_requests_per_member": 1, "queue_max_bytes": 10_000}
    async with Member(gate) as member, balance(member, **settings) as running:
        first = asyncio.create_task(exchange(running, ATTACKER))
        await eventually(lambda: gate.waiting == 1)
        attack = [asyncio.create_task(exchange(running, ATTACKER, POST)) for _ in range(10)]
        await eventually(lambda: queued(running) == 10)
        honest = asyncio.create_task(exchange(running, HONEST, POST))
        await eventually(lambda: any(task.done() for task in attack) or honest.done())
        assert not honest.done()
        gate.let(12)
        assert (await honest).endswith(b"ok")
        answers = await asyncio.gather(first, *attack)
        assert len([answer for answer in answers if answer.endswith(b"ok")]) == 10
        (gone,) = [answer for answer in answers if b" 503 " in answer]
        assert b"10000 bytes were yours, whose share is 1000" in gone


@pytest.mark.usefixtures("each_way")
async def test_client_that_keeps_its_slots_does_not_get_those_of_another_that_waits() -> None:
    """The answers to the attacker take for ever, those to the twenty people of an office do not."""
    turns, forever = asyncio.Semaphore(0), asyncio.Event()
    kept = 0

    async def script(connection: Connection) -> None:
        nonlocal kept
        while True:
            if b"x-slow" in await connection.head():
                kept += 1
                await forever.wait()
            else:
                await turns.acquire()
            await connection.send(wire.OK)

    async def ask() -> None:
        while not forever.is_set():
            await exchange(running, HONEST)

    slow = GET.replace(b"\r\n\r\n", b"\r\nX-Slow: 1\r\n\r\n")
    settings: dict[str, Any] = {"max_requests_per_member": 10, "queue_timeout": 3 * LIMIT}
    async with Member(script) as member, balance(member, **settings) as running:
        office = [asyncio.create_task(ask()) for _ in range(20)]
        await eventually(lambda: queued(running) == 10)
        attack = [asyncio.create_task(exchange(running, ATTACKER, slow)) for _ in range(50)]
        for answered in range(40):
            await eventually(lambda: (queued(running), len(running.records)) == (60, answered))  # noqa: B023 - awaited
            turns.release()
        assert kept == 5, "of the ten slots"
        forever.set()
        for _ in range(40):
            turns.release()
        await asyncio.gather(*office, *attack)
