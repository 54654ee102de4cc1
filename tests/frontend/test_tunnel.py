"""Upgrades: whatever protocol a member switches to crosses byte for byte, both ways, to the end."""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest
from websockets.frames import Frame, Opcode

from balancer.http import websocket_frames
from balancer.upstream.base import Upstream
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.native import NativeUpstream
from tests.support import wire
from tests.support.messages import GET
from tests.support.processes import serving
from tests.support.wire import LIMIT, OK, Connection, Member, answer_all, balance, eventually

ASKS = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: Rot13/1\r\n\r\n"
SWITCHES = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Rot13/1\r\nX-Mode: z\r\n\r\n"
# The code of a close frame (RFC 6455 section 7.4.1).
GOING_AWAY = b"\x03\xe9"


async def accept(connection: Connection) -> None:
    """Switch, and send everything back until the client has ended; then say so."""
    await connection.head()
    await connection.send(SWITCHES)
    while piece := await connection.reader.read(65536):
        await connection.send(piece)
    await connection.send(b"bye")


async def test_bytes_cross_both_ways_and_each_direction_ends_by_itself() -> None:
    data = os.urandom(3_000_000)
    async with Member(accept) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS + b"early")
        head = await client.head()
        assert head == (
            b"HTTP/1.1 101 Switching Protocols\r\nx-mode: z\r\nconnection: upgrade\r\nupgrade: Rot13/1\r\n\r\n"
        )
        assert b"connection: upgrade\r\nupgrade: Rot13/1\r\n" in member.received[0]
        sending = asyncio.create_task(client.send(data))
        assert await client.exactly(5 + len(data)) == b"early" + data
        await sending
        client.writer.write_eof()
        assert (await client.to_end()).endswith(b"bye")
        await running.idle()
        assert running.records[0].status == 101
        assert running.records[0].body_bytes == len(data) + 8


async def test_members_reason_phrase_of_a_switch_is_passed_on() -> None:
    async def switch(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES.replace(b"Switching Protocols", b"Web Socket Protocol Handshake"))

    async with Member(switch) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        assert (await client.head()).startswith(b"HTTP/1.1 101 Web Socket Protocol Handshake\r\n")


async def test_bytes_that_come_with_the_switch_are_not_lost() -> None:
    async def eager(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES + b"hello")
        await connection.to_end()

    async with Member(eager) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        await client.head()
        assert await client.exactly(5) == b"hello"


async def test_member_may_ignore_the_upgrade() -> None:
    async with Member() as member, balance(member) as running, running.client() as client:
        for _ in range(3):
            await client.send(ASKS + GET)
            for _ in range(2):
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")
                assert await client.exactly(2) == b"ok"


async def test_switch_without_a_request_for_it_is_a_bad_response() -> None:
    async with Member(accept) as member, balance(member) as running, running.client() as client:
        await client.send(GET)
        assert b"x-balancer-error: bad_response\r\n" in await client.head()


FRAMINGS = [b"Transfer-Encoding: chunked", b"Content-Length: 0", b"Content-Length: 5"]
# httpx refuses these.
ODD_FRAMINGS = [b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip, chunked"]


@pytest.mark.parametrize(
    ("framing", "upstream"),
    [*((it, NativeUpstream) for it in FRAMINGS + ODD_FRAMINGS), *((it, HttpxUpstream) for it in FRAMINGS)],
)
async def test_switch_that_announces_a_body_opens_a_tunnel_without_that_header(
    framing: bytes, upstream: type[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some frameworks put it on every response without a length. Behind a 101 there is no body."""
    monkeypatch.setattr(wire, "upstream_class", upstream)

    async def accept_framed(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES.replace(b"X-Mode: z", framing) + b"hello")
        await connection.until(b"bye")
        await connection.send(b"BYE")

    async with Member(accept_framed) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        assert await client.head() == (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Rot13/1\r\n\r\n"
        )
        assert await client.exactly(5) == b"hello"
        await client.send(b"bye")
        assert await client.exactly(3) == b"BYE"


@pytest.mark.parametrize("protocol", [b"h2c", b"HTTP/2.0", b"TLS/1.0", b"websocket, h2c"])
async def test_protocol_that_carries_requests_is_not_asked_for(protocol: bytes) -> None:
    """Else its requests would all go to one member, and nobody would check them (h2c smuggling)."""
    async with Member() as member, balance(member) as running, running.client() as client:
        await client.send(ASKS.replace(b"Rot13/1", protocol))
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert b"upgrade" not in member.received[0].lower()


@pytest.mark.parametrize("who", ["client", "member"])
async def test_client_that_is_cut_off_takes_its_tunnel_along(who: str) -> None:
    async def accept(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES)
        await connection.to_end()

    async with Member(accept) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        await client.head()
        (inside,) = [it for it in member.connections if it.received]
        if who == "client":
            client.reset()
            await eventually(inside.reader.at_eof)
        else:
            inside.reset()
            await client.to_end()
        await running.idle()
        await eventually(lambda: running.balancer.upstream.active == 0)  # type: ignore[attr-defined]
        assert [it.in_flight for it in running.balancer.membership.members.values()] == [0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("use", ["silent", "in use"])
async def test_tunnel_outlives_the_limits_of_http(use: str) -> None:
    async with Member(accept) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS)
        await client.head()
        for _ in range(10):
            await asyncio.sleep(0.1)  # The limits are 0.3 s.
            if use == "in use":
                await client.send(b"a")
                assert await client.exactly(1) == b"a"
        await client.send(b"b")
        assert await client.exactly(1) == b"b"


async def test_websocket_that_dies_in_mid_frame_is_not_closed_as_if_it_were_whole() -> None:
    whole, half = Frame(Opcode.BINARY, bytes(300)).serialize(mask=False), b"\x82\x7e\x01"

    async def die(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES.replace(b"Rot13/1", b"websocket") + whole + half)
        await connection.until(b"go")
        connection.close()

    async with Member(die) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS.replace(b"Rot13/1", b"websocket"))
        await client.head()
        await client.exactly(len(whole + half))
        await client.send(b"\x81\x82\0\0\0\0go")
        assert (await client.to_end()).endswith(whole + half)


async def test_upgrade_behind_another_request_waits_for_its_turn() -> None:
    async def script(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if b"upgrade" in head:
                await connection.send(SWITCHES)
                await connection.until(b"end")
                await connection.send(b"END")
            else:
                await asyncio.sleep(0.1)
                await connection.send(OK)

    async with Member(script) as member, balance(member) as running, running.client() as client:
        await client.send(GET + ASKS + b"end")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        await client.exactly(2)
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        assert await client.exactly(3) == b"END"


async def test_client_that_comes_back_while_the_balancer_stops_is_sent_on_as_well() -> None:
    """The listener is open until those who were there have been told, and some connect again at once."""
    asks = ASKS.replace(b"Rot13/1", b"websocket")

    async def accept_websocket(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES.replace(b"Rot13/1", b"websocket"))
        await connection.to_end()

    async with Member(accept_websocket) as member, serving(member) as running, running.client() as first:
        await first.send(asks)
        await first.head()
        running.process.terminate()
        assert (await first.exactly(4))[2:] == GOING_AWAY
        async with running.client() as second:
            await second.send(asks)
            assert (await second.head()).startswith(b"HTTP/1.1 101 ")
            assert (await second.exactly(4))[2:] == GOING_AWAY
        async with asyncio.timeout(LIMIT):
            assert await running.process.wait() == 0


# A request with a body that asks for another protocol, as ``docker exec`` sends it.
BODY = b'{"Detach":false}'
ATTACH = b"POST /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
WITH_BODY = {
    "a length": (ATTACH + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY),
    "chunks": (ATTACH + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
}
with_body = pytest.mark.parametrize(("head", "body"), WITH_BODY.values(), ids=WITH_BODY)
ATTACHED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


async def attach(connection: Connection) -> None:
    """Read a request with its body, switch, and answer in the other protocol."""
    await connection.head()
    await connection.until(b"0\r\n\r\n" if b"chunked" in connection.received else BODY)
    await connection.send(ATTACHED)
    await connection.until(b"stdin")
    await connection.send(b"stdout")
    await connection.to_end()


@with_body
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"GET"])
@pytest.mark.parametrize("pieces", ["whole", "body apart", "byte by byte"])
async def test_request_with_a_body_may_ask_for_another_protocol(
    head: bytes, body: bytes, method: bytes, pieces: str
) -> None:
    async with Member(attach) as member, balance(member) as running, running.client() as client:
        head = head.replace(b"POST", method)
        if pieces == "whole":
            await client.send(head + body + b"stdin")
        elif pieces == "body apart":
            await client.send(head)
            await asyncio.sleep(0.05)
            await client.send(body)
        else:
            for byte in head + body:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
        assert await client.head() == b"HTTP/1.1 101 UPGRADED\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\n"
        assert b"connection: upgrade\r\nupgrade: tcp\r\n" in member.received[0]
        if pieces != "whole":
            await client.send(b"stdin")
        assert await client.exactly(6) == b"stdout"
        client.close()
        await running.idle()
        assert [it.status for it in running.records] == [101]


@with_body
async def test_request_with_a_body_may_ask_for_another_protocol_through_httpx(
    head: bytes, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "upstream_class", HttpxUpstream)
    async with Member(attach) as member, balance(member) as running, running.client() as client:
        await client.send(head + body + b"stdin")
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        assert await client.exactly(6) == b"stdout"


@with_body
async def test_member_may_ignore_the_upgrade_of_a_request_with_a_body(head: bytes, body: bytes) -> None:
    async with Member(answer_all) as member, balance(member) as running, running.client() as client:
        for _ in range(3):
            await client.send(head + body + GET)
            for _ in range(2):
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")
                assert await client.exactly(2) == b"ok"


async def test_switch_before_the_end_of_the_body_waits_for_it() -> None:
    """No client may begin the other protocol in the middle of its request (RFC 9110 section 7.8)."""
    switched = asyncio.Event()

    async def switch_early(connection: Connection) -> None:
        await connection.head()
        await connection.send(ATTACHED + b"early")
        switched.set()
        await connection.until(b"0\r\n\r\n")
        await connection.until(b"stdin")
        await connection.send(b"stdout")

    head, _ = WITH_BODY["chunks"]
    async with Member(switch_early) as member, balance(member) as running, running.client() as client:
        await client.send(head + b"1\r\na\r\n")
        await switched.wait()
        await asyncio.sleep(0.1)
        assert running.records == []
        await client.send(b"1\r\nb\r\n0\r\n\r\nstdin")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await client.exactly(11) == b"earlystdout"
        assert member.received[0].endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\nstdin")


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_member_that_dies_behind_an_early_switch_is_a_failed_member(ending: str) -> None:
    switched = asyncio.Event()

    async def die(connection: Connection) -> None:
        await connection.head()
        await connection.send(ATTACHED)
        switched.set()
        if ending == "reset":
            await connection.until(b"b")
            connection.reset()

    head, _ = WITH_BODY["chunks"]
    async with Member(die) as member, balance(member) as running, running.client() as client:
        await client.send(head + b"1\r\na\r\n")
        await switched.wait()
        await client.send(b"1\r\nb\r\n")
        if ending == "close":
            await client.send(b"0\r\n\r\n")
        # An orderly end may be seen only behind the switch.
        answers = [b"HTTP/1.1 502 "] if ending == "reset" else [b"HTTP/1.1 502 ", b"HTTP/1.1 101 "]
        assert (await client.head())[:13] in answers
        client.close()
        await running.idle()
        assert [it.in_flight for it in running.balancer.membership.members.values()] == [0]


async def test_client_that_leaves_between_an_early_switch_and_its_body_leaves_nothing() -> None:
    switched = asyncio.Event()

    async def switch_early(connection: Connection) -> None:
        await connection.head()
        await connection.send(ATTACHED)
        switched.set()
        await connection.to_end()

    head, _ = WITH_BODY["chunks"]
    async with Member(switch_early) as member, balance(member) as running, running.client() as client:
        await client.send(head + b"1\r\na\r\n")
        await switched.wait()
        client.close()
        await running.idle()
        await eventually(lambda: running.balancer.upstream.active == 0)  # type: ignore[attr-defined]
        assert [it.error for it in running.records] == ["client_gone"]


@pytest.mark.parametrize("first", [b"HTTP/1.1 100 Continue\r\n\r\n", b""], ids=["100", "101 alone"])
async def test_client_that_waits_for_100_gets_it_before_the_switch(first: bytes) -> None:
    """A member has to send 100 before 101 (RFC 9110 section 7.8); without it the body would never come."""

    async def switch(connection: Connection) -> None:
        await connection.head()
        if first:
            await connection.send(first)
            await connection.until(BODY)
        await connection.send(ATTACHED)
        await connection.to_end()

    head, body = WITH_BODY["a length"]
    async with Member(switch) as member, balance(member) as running, running.client() as client:
        await client.send(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        if first:
            assert await client.head() == first
            await client.send(body)
            assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        else:
            assert b"x-balancer-error: bad_response\r\n" in await client.head()


@pytest.mark.usefixtures("impatient")
async def test_body_of_an_upgrade_has_to_go_on() -> None:
    head, _ = WITH_BODY["a length"]
    async with Member(attach) as member, balance(member) as running, running.client() as client:
        await client.send(head + b"{")
        assert (await client.to_end()).startswith(b"HTTP/1.1 408 ")


EMPTY_PING, EMPTY_PONG = b"\x89\x80abcd", b"\x8a\x00"
ASKS_WEBSOCKET = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def test_frames_of_a_websocket_take_turns_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    most = frames = 0
    head_size = websocket_frames._head_size

    def counting(head: bytes) -> tuple[int, int]:
        nonlocal most, frames
        frames += 1
        most = max(most, frames)
        return head_size(head)

    monkeypatch.setattr(websocket_frames, "_head_size", counting)
    loop, ends = asyncio.get_running_loop(), False

    def turn() -> None:
        nonlocal frames
        frames = 0
        if not ends:
            loop.call_soon(turn)

    turn()

    async def flooded(connection: Connection) -> None:
        await connection.head()
        await connection.send(SWITCHES.replace(b"Rot13/1", b"websocket"))
        assert await connection.exactly(600_000) == EMPTY_PING * 100_000
        await connection.send(EMPTY_PONG * 100_000)

    async with Member(flooded) as member, balance(member) as running, running.client() as client:
        await client.send(ASKS_WEBSOCKET)
        await client.head()
        client.writer.write(EMPTY_PING * 100_000)
        assert await client.exactly(200_000) == EMPTY_PONG * 100_000
        # Each direction has had as many in a turn.
        assert websocket_frames.FRAMES_PER_TURN <= most <= 2 * websocket_frames.FRAMES_PER_TURN + 2
        ends = True


def test_frames_are_followed_alike_whole_and_by_turns() -> None:
    rng = Random(3)

    def frame() -> bytes:
        size = rng.choice([0, 0, 0, 1, 125, 126, 70_000])
        if size < 126:
            length = bytes((size,))
        else:
            length = b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
        return b"\x82" + length + rng.randbytes(size)

    data = b"".join(frame() for _ in range(20_000))
    frames = websocket_frames.Frames()
    at = 0
    while at < len(data):
        piece = data[at : at + rng.choice([1, 2, 1000, 250_000])]
        while piece:
            size = frames.feed(piece)
            assert size
            piece, at = piece[size:], at + size
    assert frames.is_between
