"""Generated exchanges: sound ones that must come out right, broken ones that must come out harmless, and mere bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import case
from tests.fuzz.known import unknown
from tests.fuzz.seeds import seeds
from tests.support.judge import check
from tests.support.pipes import PipeLoop
from tests.support.reader import Responses
from tests.support.world import Client, Link, World, honest_text


def generated(count: int) -> settings:
    """The same examples every time: what is new is for ``make fuzz`` to find."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


SEEDS = sorted(set(seeds()))
WORDS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b",", b";", b"0\r\n\r\n", b"3\r\nabc\r\n", b"Host: b\r\n", b"HTTP/1.0",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n",
    b"GET /z HTTP/1.1\r\nHost: a\r\n\r\n", b"\xfft\x05", b"\xfft\x3c", b"\xffb\x50",
    *(bytes([case.ESCAPE, letter]) for letter in b"|&+12moerpgadhufvswx"),
]  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    request: bytes
    response: bytes


tokens = st.sampled_from([b"x", b"x-y", b"accept", b"cookie", b"etag"])
fields = st.lists(st.tuples(tokens, st.sampled_from([b"", b"1", b"a b", b"\xe9", b'";,='])), max_size=3)
bodies = st.binary(max_size=40).map(lambda data: data.replace(b"\xff", b"\xfe"))


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> bytes:
    """The rest of a head, and a body: with a length, or in chunks."""
    lines = b"".join(b"%b: %b\r\n" % it for it in draw(fields))
    if draw(st.booleans()):
        return lines + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b""
    while body:
        size = draw(st.integers(1, len(body)))
        extension = draw(st.sampled_from([b"", b";a", b';a="b;"']))
        chunks += b"%x%b\r\n%b\r\n" % (size, extension, body[:size])
        body = body[size:]
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    return lines + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn, name: bytes) -> bytes:
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"]))
    head = method + b" /" + name + b" HTTP/1.1\r\nHost: a\r\n"
    body = draw(bodies) if method in (b"POST", b"PUT") else b""
    if body:
        return head + draw(framed(body))
    return head + b"".join(b"%b: %b\r\n" % it for it in draw(fields)) + b"\r\n"


@st.composite
def exchanges(draw: st.DrawFn, name: bytes) -> Exchange:
    """A request, and a response whose body has the same name in it."""
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: <%b>\r\n\r\n" % name]))
    status = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"500 ", b"599 Odd"]))
    response = b"HTTP/1.1 " + status + b"\r\n" + draw(framed(name * draw(st.integers(0, 9))))
    return Exchange(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % name, interim + response)


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@contextmanager
def opened(**options: Any) -> Iterator[World]:
    """A world on a loop of its own, so that one that failed does not play on in the next."""
    loop = PipeLoop()
    world = World(loop, **options).open()
    try:
        yield world
    except BaseException:
        world.close()
        raise
    finally:
        loop.close()


@generated(100)
@given(st.data())
def test_sound_requests_in_any_pieces_get_their_answers(data: st.DataObject) -> None:
    with opened(limit=data.draw(st.sampled_from([0, 1]))) as world:
        streams: dict[Client, list[bytes]] = {}
        for _ in range(data.draw(st.integers(1, 3))):
            client = world.client()
            names = [b"%b-%d" % (client.host.encode(), number) for number in range(data.draw(st.integers(1, 4)))]
            streams[client] = data.draw(pieces(b"".join(data.draw(requests(name)) for name in names)))
        clients = list(streams)
        while remaining := [it for it in clients if streams[it]]:
            client = data.draw(st.sampled_from(remaining))
            client.send(streams[client].pop(0))
            if data.draw(st.booleans()):
                world.settle()
        world.loop.wait(0.5)
        for client in clients:
            expected = [b"" if it.method == b"HEAD" else honest_text(it) for it in client.asked.whole]
            assert [it.body for it in client.got.messages] == expected
        check(world)


@generated(100)
@given(st.data())
def test_sound_response_in_any_pieces_reaches_its_own_client(data: st.DataObject) -> None:
    with opened(answering=False) as world:
        for number in range(data.draw(st.integers(1, 3))):
            # In each round the connections that the last one left are used again.
            rounds: dict[Client, Exchange] = {}
            for client in [*world.clients, world.client()]:
                rounds[client] = data.draw(exchanges(b"%b-%d" % (client.host.encode(), number)))
                client.send(rounds[client].request)
            world.settle()
            streams = {it: _answers(it, rounds, data) for it in world.links if it.waiting}
            assert len(streams) == len(rounds)
            while remaining := [it for it in streams if streams[it]]:
                link = data.draw(st.sampled_from(remaining))
                link.pipe.send(streams[link].pop(0))
                if data.draw(st.booleans()):
                    world.settle()
                client = data.draw(st.sampled_from(world.clients))
                client.pipe.take() if data.draw(st.booleans()) else client.pipe.stop_taking()
            for client in world.clients:
                client.pipe.take()
            world.settle()
            for client, exchange in rounds.items():
                reference = Responses(lambda _: b"GET")
                reference.feed(exchange.response)
                assert client.got.messages[-1].complete
                assert client.got.messages[-1].body == reference.messages[0].body
                assert len(client.got.messages) == len(client.asked.messages)
        check(world)


def _answers(link: Link, rounds: dict[Client, Exchange], data: st.DataObject) -> list[bytes]:
    target = link.requests.messages[-1].target
    [response] = [it.response for it in rounds.values() if it.request.split()[1] == target]
    return data.draw(pieces(response))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A seed of the fuzzer's with bytes of another, words of HTTP, or events put into it or in place of a part."""
    case_bytes = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(case_bytes)))
        end = draw(st.sampled_from([start, start + 1, start + 9]))
        other = draw(st.one_of(st.sampled_from(WORDS), st.sampled_from(SEEDS), st.binary(max_size=3)))
        case_bytes = case_bytes[:start] + other + case_bytes[end:]
    return case_bytes


@generated(400)
@given(broken())
def test_broken_messages_do_no_harm(loop: PipeLoop, case_bytes: bytes) -> None:
    assert unknown(case.run(case_bytes, loop)) == []


@generated(300)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(WORDS)), max_size=12).map(b"".join))
def test_mere_bytes_do_no_harm(loop: PipeLoop, case_bytes: bytes) -> None:
    assert unknown(case.run(case_bytes, loop)) == []
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\xffm"
    assert unknown(case.run(request + case_bytes, loop)) == []
