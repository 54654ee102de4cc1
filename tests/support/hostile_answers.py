"""Every response that a member may send in place of a sound one, and what has to become of it.

As ``tests.support.hostile`` has it for requests; nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a member sends for a request. ``forever`` is repeated behind it for as long as somebody takes it.

    ``becomes``: what the client gets. BAD_GATEWAY: our 502. CUT: a response that has begun and is broken off.
    PASSES: the response, with ``arrives`` in it. In the first two cases the connection to the member is not used again,
    and ``spoilt`` says so of the third. ``closes``: the member ends its connection with it. ``asked``: headers of the
    request, as lines.
    """

    name: str
    rule: str
    response: bytes
    becomes: str
    arrives: bytes = b""
    forever: bytes = b""
    closes: bool = False
    spoilt: bool = False
    asked: bytes = b""


BAD_GATEWAY, CUT, PASSES = "502", "cut off", "passed"

_200 = b"HTTP/1.1 200 OK\r\n"
_101 = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n"
_UPGRADE = b"Connection: Upgrade\r\nUpgrade: x\r\n"
_LENGTH = b"Content-Length: 2\r\n\r\nok"
_CHUNKED = _200 + b"Transfer-Encoding: chunked\r\n\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def _bad_line(rule: str, line: bytes, name: str) -> Answer:
    return Answer(name, rule, line + b"\r\n" + _LENGTH, BAD_GATEWAY)


def _bad_field(rule: str, field: bytes, name: str) -> Answer:
    return Answer(name, rule, _200 + field + b"\r\n" + _LENGTH, BAD_GATEWAY)


def _bad_framing(fields: bytes, name: str, body: bytes = b"ok", rule: str = "9112 §6.3") -> Answer:
    return Answer(name, rule, _200 + fields + b"\r\n\r\n" + body, BAD_GATEWAY)


def _bad_chunks(
    body: bytes, name: str, rule: str = "9112 §7.1", closes: bool = False, becomes: str = BAD_GATEWAY
) -> Answer:
    """Where the connection ends behind a piece of the body, that is passed on with the head (CUT)."""
    return Answer(name, rule, _CHUNKED + body, becomes, closes=closes)


def _endless(rule: str, response: bytes, forever: bytes, name: str, becomes: str = BAD_GATEWAY) -> Answer:
    return Answer(name, rule, response, becomes, forever=forever)


STATUS_LINES = (
    Answer("a response that is not HTTP", "9112 §4", b"SSH-2.0-OpenSSH\r\n", BAD_GATEWAY),
    Answer("a response of HTTP/0.9", "9112 §4", b"hello", BAD_GATEWAY, closes=True),
    Answer("a frame of HTTP/2", "9113 §3.4", b"\0\0\0\4\0\0\0\0\0", BAD_GATEWAY),
    _bad_line("9112 §4", b"PRI * HTTP/2.0", "a preface of HTTP/2 for a response"),
    _bad_line("9112 §4", b"GET / HTTP/1.1", "a request for a response"),
    _bad_line("9112 §2.3", b"HTTP/1.2 200 OK", "HTTP/1.2 in a status line"),
    _bad_line("9112 §2.3", b"http/1.1 200 OK", "http in lower case in a status line"),
    _bad_line("9112 §4", b"ICY 200 OK", "another protocol in a status line"),
    _bad_line("9112 §4", b" HTTP/1.1 200 OK", "a space before the status line"),
    _bad_line("9112 §4", b"HTTP/1.1  200 OK", "two spaces before the status"),
    _bad_line("9112 §4", b"HTTP/1.1 20 OK", "a status of two digits"),
    _bad_line("9112 §4", b"HTTP/1.1 2000 OK", "a status of four digits"),
    _bad_line("9112 §4", b"HTTP/1.1 2x0 OK", "a status that is no number"),
    _bad_line("9112 §4", b"HTTP/1.1 +20 OK", "a signed status"),
    _bad_line("9110 §15", b"HTTP/1.1 000 OK", "a status of 000"),
    _bad_line("9110 §15", b"HTTP/1.1 099 OK", "a status of 099"),
    _bad_line("9112 §4", b"HTTP/1.1", "no status"),
    _bad_line("9112 §2.2", b"HTTP/1.1 200 a\rb", "a bare CR in the reason"),
    Answer("a bare LF after the status line", "9112 §2.2", b"HTTP/1.1 200 OK\n" + _LENGTH, BAD_GATEWAY),
    Answer("a switch of protocols that was not asked for", "9110 §15.2.2",
           b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", BAD_GATEWAY),
)  # fmt: skip

ANSWER_FIELDS = (
    _bad_field("9112 §5.2", b"X: a\r\n b", "a folded field in a response"),
    Answer("a space before the first field of a response", "9112 §2.2", _200 + b" X: y\r\n" + _LENGTH, BAD_GATEWAY),
    _bad_field("9110 §5.5", b"X: a\0b", "a NUL in a response field"),
    _bad_field("9110 §5.5", b"X: a\x01b", "a control character in a response field"),
    _bad_field("9110 §5.5", b"X: a\x7fb", "a DEL in a response field"),
    _bad_field("9112 §2.2", b"X: a\rb", "a bare CR in a response field"),
    _bad_field("9112 §2.2", b"X: a\nY: b", "a bare LF after a response field"),
    Answer("a bare LF at the end of a response head", "9112 §2.2", _200 + b"Content-Length: 2\r\n\nok", BAD_GATEWAY),
    _bad_field("9112 §5.1", b"X : b", "a space before the colon of a response field"),
    _bad_field("9110 §5.1", b"X Y: b", "a space in the name of a response field"),
    _bad_field("9110 §5.1", b"X\0: b", "a NUL in the name of a response field"),
    _bad_field("9110 §5.1", b"X(: b", "a response field whose name is no token"),
    _bad_field("9110 §5.1", b"X\xe9: b", "a name beyond ASCII in a response"),
    _bad_field("9110 §5.1", b": b", "an empty name in a response"),
    _bad_field("9112 §5", b"X", "a response field without a colon"),
)

ANSWER_FRAMING = (
    _bad_framing(b"Content-Length: 5\r\nTransfer-Encoding: chunked", "a length and chunks in a response",
                 b"2\r\nok\r\n0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding: chunked\r\nContent-Length: 2", "chunks and a length in a response",
                 b"2\r\nok\r\n0\r\n\r\n"),
    _bad_framing(b"Content-Length: 2\r\nContent-Length: 3", "two lengths that differ in a response"),
    _bad_framing(b"Content-Length: 2\r\nContent-Length: 2", "two lengths in a response"),
    _bad_framing(b"Content-Length: 2, 2", "a list of lengths in a response"),
    _bad_framing(b"Content-Length: 2, 3", "a list of lengths that differ in a response"),
    _bad_framing(b"Content-Length: +2", "a signed length in a response"),
    _bad_framing(b"Content-Length: -2", "a negative length in a response"),
    _bad_framing(b"Content-Length: 0x2", "a length in hexadecimal in a response"),
    _bad_framing(b"Content-Length: 2x", "a length with a letter behind it in a response"),
    _bad_framing(b"Content-Length:", "an empty length in a response"),
    _bad_framing(b"Content-Length: 18446744073709551618", "a length of 2 to the 64th and 2 in a response"),
    _bad_framing(b"Content-Length: 18446744073709551611", "a length of 2 to the 64th less 5 in a response"),
    _bad_framing(b"Content-Length : 2", "a length with a space before the colon in a response"),
    _bad_framing(b"Content-Length:\r\n 2", "a folded length in a response"),
    _bad_framing(b"Transfer-Encoding: gzip, chunked", "another coding before the chunks in a response",
                 b"0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding: chunked, gzip", "chunks that are not last in a response", b"0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding: identity", "another coding in a response"),
    _bad_framing(b"Transfer-Encoding: chunked, chunked", "chunks twice in a response", b"0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "chunks in two fields of a response",
                 b"0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding: \x0bchunked", "a vertical tab in the coding of a response", b"0\r\n\r\n"),
    _bad_framing(b"Transfer-Encoding : chunked", "a coding with a space before the colon in a response",
                 b"2\r\nok\r\n0\r\n\r\n"),
    Answer("chunks in a response of HTTP/1.0", "9112 §6.1",
           b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", BAD_GATEWAY, closes=True),
)  # fmt: skip

ANSWER_BODIES = (
    Answer(
        "a length in an interim response",
        "9110 §8.6",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nno" + _200 + _LENGTH,
        BAD_GATEWAY,
    ),
    Answer(
        "chunks in an interim response",
        "9112 §6.1",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n" + _200 + _LENGTH,
        BAD_GATEWAY,
    ),
    _bad_chunks(b"x\r\nok\r\n0\r\n\r\n", "a size that is none in a response"),
    _bad_chunks(b"fffffffffffffffff\r\nok\r\n0\r\n\r\n", "a size beyond 64 bits in a response"),
    _bad_chunks(b"+2\r\nok\r\n0\r\n\r\n", "a signed size in a response"),
    _bad_chunks(b"0x2\r\nok\r\n0\r\n\r\n", "a size with a prefix in a response"),
    _bad_chunks(b" 2\r\nok\r\n0\r\n\r\n", "a space before the size in a response"),
    _bad_chunks(b"2 \r\nok\r\n0\r\n\r\n", "a space after the size in a response"),
    _bad_chunks(b"2\nok\r\n0\r\n\r\n", "a bare LF after the size in a response"),
    _bad_chunks(b"2\r\nok\n0\r\n\r\n", "a bare LF after the data in a response"),
    _bad_chunks(b"2;a\nb\r\nok\r\n0\r\n\r\n", "a bare LF in an extension in a response", "9112 §7.1.1"),
    _bad_chunks(b"1\r\nok\r\n0\r\n\r\n", "more than the size in a response"),
    _bad_chunks(b"3\r\nok\r\n0\r\n\r\n", "less than the size in a response"),
    _bad_chunks(b"2\r\nok\r\n", "chunks that end early", closes=True, becomes=CUT),
    Answer("a body that ends early", "9112 §8", _200 + b"Content-Length: 3\r\n\r\nok", CUT, closes=True),
    _bad_chunks(b"2\r\nok\r\n0\r\nX\r\n\r\n", "a trailer without a colon in a response", "9112 §5"),
    _bad_chunks(b"2\r\nok\r\n0\r\nX: a\0b\r\n\r\n", "a NUL in a trailer of a response", "9110 §5.5"),
)

ANSWER_SIZES = (
    _endless("bounded", b"HTTP/1.1 200 ", b"a" * 16384, "a reason without end"),
    _endless("bounded", _200 + b"X: ", b"a" * 16384, "a response field without end"),
    _endless("bounded", _200, b"a" * 16384, "a response field name without end"),
    _endless("bounded", _200, b"X: y\r\n" * 2048, "response fields without end"),
    _endless("bounded", b"", b"\r\n" * 8192, "empty lines without end before a response"),
    _endless("9110 §15.2", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 300,
             "interim responses without end"),
    _endless("9112 §7.1.1", _CHUNKED + b"2;", b"a" * 16384, "an extension without end in a response"),
    _endless("9112 §7.1.1", _CHUNKED, b"0" * 16384, "a size with zeros without end in a response"),
    _endless("9112 §7.1.2", _CHUNKED + b"0\r\nX: ", b"a" * 16384, "a trailer without end in a response"),
    _endless("9112 §7.1.2", _CHUNKED + b"0\r\n", b"X: y\r\n" * 2048, "trailers without end in a response"),
)  # fmt: skip

ANSWERS_PASSED = (
    # The version of a member is not passed on, nor is a reason with what it must not have: the line is written anew.
    Answer("HTTP/2.0 in a status line", "9112 §2.3", b"HTTP/2.0 200 OK\r\n" + _LENGTH, PASSES, b"HTTP/1.1 200 OK\r\n"),
    Answer("a NUL in the reason", "9112 §4", b"HTTP/1.1 200 a\0b\r\n" + _LENGTH, PASSES, b"HTTP/1.1 200 OK\r\n"),
    Answer("a second response behind the first", "9112 §9.3", _200 + _LENGTH + POISON, PASSES, b"ok", spoilt=True),
    Answer("a body behind 204", "9112 §6.3", b"HTTP/1.1 204 No Content\r\n\r\n" + POISON, PASSES,
           b"HTTP/1.1 204 No Content\r\n", spoilt=True),
    Answer("a body behind 304", "9112 §6.3",
           b"HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n" + POISON, PASSES,
           b"HTTP/1.1 304 Not Modified\r\n", spoilt=True),
    Answer("no reason", "9112 §4", b"HTTP/1.1 200 \r\n" + _LENGTH, PASSES, b"ok"),
    Answer("an unknown status", "9110 §15", b"HTTP/1.1 299 Fine\r\n" + _LENGTH, PASSES, b"HTTP/1.1 299 Fine\r\n"),
    Answer("a reason of the member's own", "9112 §4", b"HTTP/1.1 401 Token+timed+out\r\n" + _LENGTH, PASSES,
           b"HTTP/1.1 401 Token+timed+out\r\n"),
    Answer("obs-text in a reason", "9112 §4", b"HTTP/1.1 200 caf\xe9\tau lait\r\n" + _LENGTH, PASSES,
           b"HTTP/1.1 200 caf\xe9\tau lait\r\n"),
    Answer("a status of 600", "9110 §15", b"HTTP/1.1 600 Odd\r\n" + _LENGTH, PASSES, b"HTTP/1.1 600 Odd\r\n"),
    Answer("a status of 999", "9110 §15", b"HTTP/1.1 999 Odd\r\n" + _LENGTH, PASSES, b"HTTP/1.1 999 Odd\r\n"),
    Answer("obs-text in a response", "9110 §5.5", _200 + b"X: \xff\r\n" + _LENGTH, PASSES, b"x: \xff\r\n"),
    Answer("white space around a value of a response", "9112 §5", _200 + b"X:\t b \t\r\n" + _LENGTH, PASSES,
           b"\r\nx: b\r\n"),
    Answer("interim responses", "9110 §15.2",
           b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _200 + _LENGTH, PASSES, b"ok"),
    Answer("90 fields in a response", "9110 §5.4", _200 + b"X: y\r\n" * 90 + _LENGTH, PASSES, b"x: y\r\n" * 90),
    Answer("extensions and trailers in a response", "9112 §7.1", _CHUNKED + b"2;a=b\r\nok\r\n0\r\nX: y\r\n\r\n",
           PASSES, b"2\r\nok\r\n0\r\n"),
    Answer("a switch of protocols with chunks announced", "9110 §15.2.2",
           _101 + b"Transfer-Encoding: chunked\r\n\r\nok", PASSES, b"upgrade: x\r\n\r\nok", closes=True,
           asked=_UPGRADE),
    Answer("a switch of protocols with a length", "9110 §15.2.2", _101 + b"Content-Length: 9\r\n\r\nok",
           PASSES, b"upgrade: x\r\n\r\nok", closes=True, asked=_UPGRADE),
    Answer("a length of 0 with 204", "9110 §8.6",
           b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n", PASSES,
           b"HTTP/1.1 204 No Content\r\nx: y\r\n"),
    Answer("a body until the connection ends", "9112 §6.3", _200 + b"\r\nok", PASSES, b"ok", closes=True),
)  # fmt: skip

RESPONSES: dict[str, tuple[Answer, ...]] = {
    "Status line": STATUS_LINES,
    "Fields of a response": ANSWER_FIELDS,
    "Length and coding of a response": ANSWER_FRAMING,
    "Body of a response": ANSWER_BODIES,
    "Bounds of a response": ANSWER_SIZES,
    "Responses that pass": ANSWERS_PASSED,
}
ANSWERS = [answer for answers in RESPONSES.values() for answer in answers]
