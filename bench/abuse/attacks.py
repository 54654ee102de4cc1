"""Every attack by name: what one connection of it does. Those of HTTP/2 stand in ``attacks_http2.py``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from bench.abuse.attack import Attack, Visit, Wire
from bench.abuse.attacks_http2 import HTTP2

MIB = 1024 * 1024
# What a flood hands over at a time.
PIECE = 64 * 1024
# Where a head without end ends after all.
ENDLESS = 100 * MIB
# A line of a slow head, and a byte of a slow reader, every so many seconds.
SLOW_SECONDS = 1.0
FOREVER = 3600.0

_HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
# The record of a ClientHello of 512 bytes, of which a few come.
_HALF_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(10)
_HALF_PROXY = b"PROXY TCP4 192.0.2.7 "


async def _cut(wire: Wire) -> None:
    """Wait until the other side ends the connection, whatever it says before."""
    while True:
        await wire.read()


async def half_heads(wire: Wire) -> None:
    async with wire.discarding():
        await wire.send(_HEAD)
        while True:
            await asyncio.sleep(SLOW_SECONDS)
            await wire.send(b"X: y\r\n")


async def endless_head(wire: Wire) -> None:
    async with wire.discarding():
        await wire.send(_HEAD + b"X: ")
        for _ in range(ENDLESS // PIECE):
            await wire.send(b"a" * PIECE)
        await asyncio.sleep(FOREVER)


async def one_byte_chunks(wire: Wire) -> None:
    async with wire.discarding():
        await wire.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await wire.send(b"1\r\nx\r\n" * (PIECE // 6))


async def idle(wire: Wire) -> None:
    await _cut(wire)


def begins(data: bytes) -> Visit:
    """Send the beginning of something, and then nothing."""

    async def visit(wire: Wire) -> None:
        await wire.send(data)
        await _cut(wire)

    return visit


async def handshake(wire: Wire) -> None:
    """Nothing: the handshake was it. The place makes the next one."""


def goes_on(data: bytes) -> Visit:
    """Send what is refused, and go on at full speed without regard to the answer, until the connection is reset."""

    async def visit(wire: Wire) -> None:
        async with wire.discarding(stubborn=True):
            await wire.send(data)
            while True:
                await wire.send(bytes(PIECE))

    return visit


async def reads_nothing(wire: Wire) -> None:
    wire.transport.pause_reading()
    await wire.send(b"GET /16m HTTP/1.1\r\nHost: a\r\n\r\n")
    await asyncio.sleep(FOREVER)


async def reads_slowly(wire: Wire) -> None:
    """One byte a second: asyncio would read ahead."""
    transport = wire.transport
    transport.pause_reading()
    await wire.send(b"GET /16m HTTP/1.1\r\nHost: a\r\n\r\n")
    fd = transport.get_extra_info("socket").fileno()
    while True:
        await asyncio.sleep(SLOW_SECONDS)
        try:
            if not os.read(fd, 1):
                raise EOFError
        except BlockingIOError:
            continue
        wire.tally.received_bytes += 1


def again(request: bytes) -> Visit:
    """Ask for the same over and over, each time with the answer at hand."""

    async def visit(wire: Wire) -> None:
        while True:
            await wire.send(request)
            await wire.read()

    return visit


async def garbage(wire: Wire) -> None:
    async with wire.discarding(stubborn=True):
        while True:
            await wire.send(os.urandom(PIECE))


async def status_stream(wire: Wire) -> None:
    await wire.send(b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    if b" 200 " not in await wire.read():
        raise EOFError
    await _cut(wire)


_SLASHES = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"/" * 16000)
_SEMICOLONS = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %b\r\n\r\n" % (b";" * 31000)

HTTP1: Mapping[str, Attack] = {
    "half-heads": Attack(half_heads),
    "half-heads-tls": Attack(half_heads, tls="http/1.1"),
    "endless-head": Attack(endless_head),
    "endless-head-tls": Attack(endless_head, tls="http/1.1"),
    "one-byte-chunks": Attack(one_byte_chunks),
    "idle": Attack(idle),
    "half-hello": Attack(begins(_HALF_HELLO)),
    "half-proxy": Attack(begins(_HALF_PROXY)),
    "handshake": Attack(handshake, tls="http/1.1"),
    "refused": Attack(goes_on(b"NO REQUEST\r\n\r\n")),
    "crowd": Attack(goes_on(_HEAD + b"\r\n")),
    "reads-nothing": Attack(reads_nothing, small=True),
    "reads-slowly": Attack(reads_slowly, small=True),
    "slashes": Attack(again(_SLASHES)),
    "semicolons": Attack(again(_SEMICOLONS)),
    "garbage": Attack(garbage),
    "status-stream": Attack(status_stream),
    "api": Attack(again(b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 10)),
    "queue": Attack(again(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")),
}

ATTACKS: Mapping[str, Attack] = {**HTTP1, **HTTP2}
