"""The HTTP/2 front end: a client connection after its preface, and what its members answer.

A case is pieces, each of which begins with 0xFF and a letter; what stands before the first is raw bytes. Frames are
made of pieces, so that they have the length that they say; ``f`` and ``x`` are for others. So a case reads

    \\xffQ\\x01:method: GET\\n:scheme: https\\n:authority: a\\n:path: /\\xff|

A stream is one byte. Members answer by themselves, unless they have a line of their own (``m``).
What is sent again (``*``, ``%``) goes to later streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.fuzz.play import Play, bounded
from tests.support.corpus import RESPONSES
from tests.support.http2_reader import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    frame,
    literal,
)
from tests.support.http2_world import STREAMS_MAX, UNSENT_MAX, Http2Client, Http2World, finish
from tests.support.pipes import PipeLoop

ESCAPE = b"\xff"
SIZE_MAX = 4096
TIME_MAX = 100.0
FILLER_MAX = 512
REPEATS_MAX = 600
# A second of the virtual clock takes half a millisecond for timers and probes, ten times as much under coverage.
BYTES_PER_SECOND = 25

# What follows the escape. Frames, after a byte that is the stream:
REQUEST, BODY_FOLLOWS = b"Q", b"q"  # a request, as lines; the last of its stream, or not
CODED, CODED_BODY_FOLLOWS = b"H", b"h"  # the same with a field block as it is
BODY, LAST_BODY = b"d", b"D"
FILL = b"b"  # so many KiB of body; the number is the next byte
CONTINUE = b"c"  # the rest of a field block, and its end
CANCEL = b"r"
WINDOW = b"w"
# Other frames, and none:
FRAME = b"f"  # type, flags and stream are the next three bytes
SETTING, ECHO, LEAVE = b"s", b"p", b"g"
RAW = b"x"
AGAIN, BOTH_AGAIN = b"*", b"%"  # the last frame, or the last two, so many times more; streams move on
# What else happens:
CUT, TURN = b"|", b"&"
PASS, LONG = b"t", b"T"
EOF, RESET, STOP, GO_ON = b"e", b"k", b"o", b"n"
MEMBER, MEMBER_EOF = b"m", b"M"
REFUSE, SILENT, FINE = b"u", b"l", b"i"
SHUT, CUT_ALL = b"z", b"y"


def player() -> Play:
    loop = PipeLoop()
    return lambda data: run(data, loop)


def run(data: bytes, loop: PipeLoop) -> list[str]:
    """Play a case; everything that must not have happened, in words."""
    data = data[:SIZE_MAX]
    found: list[str] = []
    case = _Case(data, loop)
    with bounded(found, case.size):
        found += case.play()
    return found


class _Case:
    def __init__(self, data: bytes, loop: PipeLoop) -> None:
        first, *pieces = data.split(ESCAPE)
        self._pieces = [RAW + first, *pieces]
        scripted = any(it[:1] in (MEMBER, MEMBER_EOF) for it in pieces)
        self._world = world = Http2World(loop, answering=not scripted)
        self._found: list[str] = []
        self._began = loop.time()
        self._time = self._filler = 0.0
        self._repeats = 0
        self._last: list[bytes] = []
        self._client: Http2Client
        self._events: dict[bytes, Callable[[], object]] = {
            CUT: world.settle,
            TURN: loop.turn,
            LONG: lambda: self._wait(90.0),
            EOF: lambda: self._client.leave(),
            RESET: lambda: self._client.leave(reset=True),
            STOP: lambda: self._client.pipe.stop_taking(),
            GO_ON: lambda: self._client.pipe.take(),
            REFUSE: lambda: self._mood("refuses"),
            SILENT: lambda: self._mood("silent"),
            FINE: lambda: self._mood("fine"),
            SHUT: world.front.shut_down_connections,
            CUT_ALL: world.balancer.proxy.abort_all,
        }
        self._frames: dict[bytes, Callable[[int, bytes], bytes]] = {
            REQUEST: lambda stream, rest: frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(fields(rest))),
            BODY_FOLLOWS: lambda stream, rest: frame(HEADERS, END_HEADERS, stream, literal(fields(rest))),
            CODED: lambda stream, rest: frame(HEADERS, END_HEADERS | END_STREAM, stream, rest),
            CODED_BODY_FOLLOWS: lambda stream, rest: frame(HEADERS, END_HEADERS, stream, rest),
            BODY: lambda stream, rest: frame(DATA, 0, stream, rest),
            LAST_BODY: lambda stream, rest: frame(DATA, END_STREAM, stream, rest),
            CONTINUE: lambda stream, rest: frame(CONTINUATION, END_HEADERS, stream, rest),
            CANCEL: lambda stream, rest: frame(RST_STREAM, 0, stream, rest[:4].rjust(4, b"\0")),
            WINDOW: lambda stream, rest: frame(WINDOW_UPDATE, 0, stream, rest[:4].rjust(4, b"\0")),
            FILL: self._fill,
        }  # fmt: skip
        self._others: dict[bytes, Callable[[bytes], bytes]] = {
            FRAME: lambda rest: frame(rest[0], rest[1], rest[2], rest[3:]) if len(rest) > 2 else b"",
            SETTING: lambda rest: frame(SETTINGS, 0, 0, rest),
            ECHO: lambda rest: frame(PING, 0, 0, rest[:8].ljust(8, b"\0")),
            LEAVE: lambda rest: frame(GOAWAY, 0, 0, rest.rjust(8, b"\0")),
            RAW: lambda rest: rest,
        }

    def play(self) -> list[str]:
        self._world.open()
        self._client = self._world.http2_client()
        self._client.send(PREFACE + frame(SETTINGS, 0, 0))
        for piece in self._pieces:
            self._do(piece[:1], piece[1:])
            self._look()
        return self._found + finish(self._world)

    def size(self) -> int:
        """The bytes that the client has sent, and for each second that has passed what its timers cost as much as."""
        passed = self._world.loop.time() - self._began
        return len(self._client.pipe.delivered) + int(passed * BYTES_PER_SECOND)

    def _do(self, letter: bytes, rest: bytes) -> None:
        if (letter in self._frames and rest) or letter in self._others:
            self._last = [*self._last[-1:], letter + rest]
            if letter in (CODED, CODED_BODY_FOLLOWS, CONTINUE, FRAME, RAW) and rest:
                self._client.made = False
            self._frame(letter, rest, 0)
        elif letter in (AGAIN, BOTH_AGAIN) and rest:
            self._again(self._last[-1:] if letter == AGAIN else self._last, rest[0])
        elif letter in self._events:
            self._events[letter]()
        elif letter == PASS and rest:
            self._wait(rest[0] / 10)
        elif letter in (MEMBER, MEMBER_EOF):
            self._world.settle()
            self._world.member_says(rest, ends=letter == MEMBER_EOF)

    def _frame(self, letter: bytes, rest: bytes, further: int) -> None:
        """Send a frame, for a stream that comes so much later where it is one of a stream."""
        if letter in self._others:
            self._client.send(self._others[letter](rest))
            return
        stream = rest[0] + further if rest[0] else 0
        if letter in (REQUEST, BODY_FOLLOWS):
            self._client.ask(stream, fields(rest[1:]))
        self._client.send(self._frames[letter](stream, rest[1:]))

    def _again(self, last: list[bytes], count: int) -> None:
        count = min(count, REPEATS_MAX - self._repeats)
        self._repeats += count
        for number in range(1, count + 1):
            for piece in last:
                self._frame(piece[:1], piece[1:], 2 * number)
            self._look()

    def _look(self) -> None:
        """What must not be at any time."""
        connection = self._client.protocol
        if (count := len(connection._streams)) > STREAMS_MAX:
            self._found.append(f"too many streams: {count}")
        if (count := self._client.pipe.get_write_buffer_size()) > UNSENT_MAX:
            self._found.append(f"too much waits for the client: {count} bytes")

    def _fill(self, stream: int, rest: bytes) -> bytes:
        count = int(min(rest[0] if rest else 0, FILLER_MAX - self._filler))
        self._filler += count
        return frame(DATA, 0, stream, b"x" * 1024) * count

    def _wait(self, seconds: float) -> None:
        self._world.settle()
        seconds = min(seconds, TIME_MAX - self._time)
        self._time += seconds
        self._world.loop.wait(seconds)

    def _mood(self, mood: str) -> None:
        self._world.settle()
        self._world.mood = mood


def fields(lines: bytes) -> Fields:
    """The fields that stand on lines of their own."""
    found = []
    for line in lines.split(b"\n"):
        at = line.find(b":", 1)
        found.append((line[:at], line[at + 1 :].removeprefix(b" ")) if at > 0 else (line, b""))
    return found


def _request(stream: int, method: bytes = b"GET", path: bytes = b"/", extra: bytes = b"", body: bool = False) -> bytes:
    letter = BODY_FOLLOWS if body else REQUEST
    head = b":method: %b\n:scheme: https\n:authority: a\n:path: %b" % (method, path)
    return ESCAPE + letter + bytes([stream]) + head + extra


def seeds() -> Iterator[bytes]:
    one, two, three = _request(1, path=b"/1"), _request(3, path=b"/2?b=c"), _request(5, b"HEAD", b"/3")
    upload = _request(7, b"POST", b"/4", b"\ncontent-length: 6", body=True)
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT", b"TRACE", b"X"):
        yield _request(1, method, b"/1")
    for extra in (
        b"\ncookie: a=1\ncookie: b=2", b"\nhost: a", b"\nhost: b", b"\nconnection: close", b"\nte: trailers",
        b"\ntransfer-encoding: chunked", b"\ncontent-length: 3", b"\nX-Upper: 1", b"\nx: \r\n", b"\n:path: /x",
        b"\nx-forwarded-for: 1.2.3.4", b"\nexpect: 100-continue", b"\nupgrade: websocket", b"\nx-request-id: 1",
        b"\nx:  a ", b"\n:protocol: websocket", b"\n: x",
    ):  # fmt: skip
        yield _request(1, path=b"/1", extra=extra)
        yield _request(1, b"POST", b"/1", extra, body=True) + b"\xffD\x01abc"
    for path in (
        b"*",
        b"",
        b"a",
        b"http://b/x",
        b"//b",
        b"/a b",
        b"/\xc3\xa9",
        b"/a#b",
        b"/%00/..",
        b"/" + b"a" * 3000,
    ):
        yield _request(1, path=path)
    yield one + two + three + b"\xff|" + _request(9, path=b"/5")
    yield upload + b"\xffd\x07abc\xff|\xffD\x07def" + one
    yield upload + b"\xffD\x07abc"
    yield upload + b"\xffd\x07abcdefghi"
    yield _request(1, b"POST", b"/1", body=True) + b"\xffb\x01\x50\xffT\xffb\x01\x50"
    yield _request(1, b"POST", b"/1", b"\nexpect: 100-continue", body=True) + b"\xff|\xffD\x01abc"
    yield _request(1, b"PUT", b"/1", body=True) + b"\xffd\x01abc\xff|\xffr\x01\x08" + one
    yield one + b"\xffr\x01\x08\xff|" + two + b"\xff&\xffr\x03\x08"
    yield _request(1, b"PUT", b"/1", body=True) + b"\xffd\x01abc\xffH\x01" + literal([(b"x-sum", b"1")])
    yield b"\xffs\0\x04\0\0\0\x01" + one + b"\xff|\xffw\x01\0\0\x10\0\xff|\xffT"
    yield b"\xffs\0\x01\0\0\0\0\0\x05\0\0\x40\0\0\x03\0\0\0\x01\0\x04\x7f\xf0\xf0\xf0" + one
    yield b"\xffp12345678" + b"\xffw\0\0\0\x10\0" + one + b"\xffw\x01\x7f\xf0\xf0\xf0\xffg\0\0\0\0\0\0\0\0"
    yield one + b"\xffg" + two + b"\xff|" + three
    yield b"\xfff\x02\0\x01\0\0\0\0\x10\xfff\x63\0\x01abc\xfff\x05\x04\x01\0\0\0\x02\xfff\x04\x01\0" + one
    yield b"\xfff\x01\x04\x01" + literal([(b":method", b"GET")]) + b"\xfff\x01\0\x03\x82" + b"\xffc\x03\x87\x84"
    yield b"\xffH\x01\x82\x87\x84\x41\x01a\xff|\xffH\x03\x82\x87\x84\xbe\xff|"
    yield b"\xffo" + one + two + b"\xff|\xffn\xff|"
    yield b"\xffo" + one + b"\xffT\xfft\x64"
    yield one + b"\xff*\x8c\xff|" + _request(0xFD)
    yield one + b"\xff|\xff*\x8c\xff&"
    yield b"\xffo\xffp12345678\xff*\xc8\xff|\xffs\0\x04\0\0\0\x01\xff*\xc8\xff|\xffn" + one
    yield one + b"\xffr\x01\x08\xff%\xc8\xff|" + one + b"\xff|"
    yield _request(1, b"POST", b"/1", body=True) + b"\xff*\x80\xffd\x01abc\xff*\x80\xff|\xffT"
    yield _request(1, b"POST", b"/1", body=True) + b"\xffd\x01\xff*\xc8\xff|\xffw\x01\0\0\0\x01\xff*\xc8"
    for ending in (b"\xffe", b"\xffk", b"\xffz", b"\xffy", b"\xffu", b"\xffl"):
        yield one + b"\xff|" + two + b"\xff&" + ending + three + b"\xff|"
        yield upload + b"\xffd\x07abc" + ending + b"\xff|" + one
    yield one + b"\xffmHTTP/1.1 200 OK\r\nX-Tab: a\tb\r\nContent-Length: 2\r\n\r\nok"
    for response, closes in RESPONSES.values():
        says = (b"\xffM" if closes else b"\xffm") + response.replace(ESCAPE, b"\xfe")
        middle = len(says) // 2
        yield one + says + two + says
        yield three + says
        yield one + b"\xffm" + says[2:middle] + b"\xff|\xffm" + says[middle:]
        yield upload + says + b"\xffD\x07abcdef"
        yield one + b"\xffM" + says[2:middle]
        yield one + b"\xffm" + says[2:middle] + b"\xffr\x01\x08"
