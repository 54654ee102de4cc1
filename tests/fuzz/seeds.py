"""What the fuzzer begins with: every message of the corpus, answered and interrupted in a few ways."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES

_GET = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
_NEXT = b"\xff1GET /2 HTTP/1.1\r\nHost: a\r\n\r\n\xffmHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_UPLOAD = b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
_TUNNEL = b"GET /t HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
_SWITCH = b"\xffmHTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
_WEBSOCKET = (
    b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def seeds() -> Iterator[bytes]:
    for request in [*REQUESTS.values(), *MALFORMED.values()]:
        yield request
        middle = len(request) // 2
        yield request[:middle] + b"\xff|" + request[middle:] + b"\xffe"
        yield request + b"\xff2" + _GET + b"\xff1" + _GET
    for response, closes in RESPONSES.values():
        end = b"\xffe" if closes else b""
        middle = len(response) // 2
        for method in (b"GET", b"POST", b"HEAD"):
            request = method + b" /1 HTTP/1.1\r\nHost: a\r\n\r\n"
            # The second of the next two goes to the same member again.
            yield request + b"\xffm" + response + end + _NEXT + _NEXT
        yield _GET + b"\xffm" + response[:middle] + b"\xff|" + response[middle:] + b"\xffr"
        yield _GET + b"\xff1\xffp\xffm" + response + end + b"\xfft\x05\xff1\xffg"
        yield _UPLOAD + b"\xffm" + response + end + b"\xff10\r\n\r\n"
        yield _UPLOAD + b"\xffm" + response + end + b"\xff2" + _GET + _GET
        yield _GET + b"\xffm" + response[:middle] + b"\xff1\xffr"
        yield _GET.replace(b"1.1", b"1.0") + b"\xffm" + response + end
        yield b"\xffL" + _GET + b"\xff2" + _GET + b"\xffo" + response + end + b"\xffm" + response + end
        yield _TUNNEL + b"\xffm" + response + end + _NEXT
        if not closes:
            # The same again and again, and then in two pieces.
            again = b"\xff1" + _GET + b"\xffm" + response + b"\xff|"
            yield 4 * again + again[:-middle] + b"\xff|" + again[-middle:]
    yield 3 * (b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n\xff|") + b"\r\n\xff|GET /4 HTTP/1.1\r\nHost: a\r\n\r\nGET"
    yield _TUNNEL + b"early" + _SWITCH + b"down\xff1up\xffe\xffmdown\xffe"
    yield _TUNNEL + _SWITCH + b"\xffb\x20\xffp\xff1\xffb\x20\xffp\xff1\xffr"
    yield _WEBSOCKET + _SWITCH
    yield _WEBSOCKET + b"\x81\x81abcdx"
    yield _UPLOAD + b"\xffb\x60\xff|\r\n0\r\n\r\n"
    yield b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n\xffb\x64\xff|\xffb\x64"
    yield b"\xffd" + _GET + b"\xfft\x03\xffu"
    yield b"\xffh" + _GET + b"\xfft\x09\xffu\xfft\x09"
    yield b"\xffS" + _GET + b"\xffT" + _GET
    yield _GET + b"\xffm\xff1\xfft\x3c\xffv\xfft\x3c"
    yield _GET + b"\xffm\xffs\xffw\xfft\x05\xffx\xfft\x05"
    yield (
        _GET + b"\xffmHTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n\xfft\x05\xffw\xfft\x05\xffx"
    )
    yield _GET + b"\xfff" + _GET + b"\xff&" + _GET + b"\xff+" + _GET + b"\xffr"
