"""Every request of strictness, in one place: what is sent, and what has to become of it.

The wire tests send each of them, ``bench/strictness`` sends the same bytes to nginx, HAProxy and Caddy, and
``docs/reference/strictness.md`` has a row for each. Nothing here does I/O.

``rule`` is the number of an RFC and a section of it, or *bounded* for a limit of this project's own. The limits are
written down here rather than imported: they are what is promised.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.messages import GET

# What a request head may have, in bytes, fields, and bytes of the target.
HEAD_MAX = 32 * 1024
FIELDS_MAX = 100
TARGET_MAX = 16 * 1024

# What is sent behind a case: no answer to it may come once something was refused.
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """A request. ``status``: what it is refused with, or 0 if it passes; ``arrives``: what the member then reads.

    ``in_body``: the fault is in the body, so that the member may have got what came before it, but never the end.
    ``unfinished``: the client would go on like that, so nothing is sent behind it.
    """

    name: str
    rule: str
    request: bytes
    status: int = 0
    arrives: bytes = b""
    in_body: bool = False
    unfinished: bool = False


def _refused(rule: str, request: bytes, name: str, status: int = 400) -> Case:
    return Case(name, rule, request, status)


def _unfinished(request: bytes, name: str) -> Case:
    return Case(name, "bounded", request, 431, unfinished=True)


def _line(rule: str, line: bytes, name: str, status: int = 400) -> Case:
    """A request line that is refused."""
    return Case(name, rule, line + b"\r\nHost: a\r\n\r\n", status)


def _host(rule: str, value: bytes, name: str) -> Case:
    return Case(name, rule, b"GET / HTTP/1.1\r\nHost:" + value + b"\r\n\r\n", 400)


def _field(rule: str, field: bytes, name: str) -> Case:
    """A field, with its line ending, that is refused."""
    return Case(name, rule, b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n", 400)


def _length(value: bytes, name: str, body: bytes = b"x") -> Case:
    return Case(name, "9112 §6.3", POST + b"Content-Length:" + value + b"\r\n\r\n" + body, 400)


def _coding(value: bytes, name: str, rule: str = "9112 §6.1") -> Case:
    return Case(name, rule, POST + b"Transfer-Encoding:" + value + b"\r\n\r\n0\r\n\r\n", 400)


def _chunks(body: bytes, name: str, rule: str = "9112 §7.1") -> Case:
    return Case(name, rule, CHUNKED + body, 400, in_body=True)


def _passes(rule: str, request: bytes, arrives: bytes, name: str) -> Case:
    return Case(name, rule, request, arrives=arrives)


def _body_passes(body: bytes, name: str, rule: str = "9112 §7.1") -> Case:
    """A chunked body that arrives as the three bytes ``abc`` and nothing else."""
    return Case(name, rule, CHUNKED + body, arrives=b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


REQUEST_LINES = (
    _line("9112 §2.3", b"GET / HTTP/2.0", "HTTP/2.0 in a request line", 505),
    _line("9112 §2.3", b"GET / HTTP/1.2", "HTTP/1.2"),
    _line("9112 §2.3", b"GET / HTTP/1.10", "HTTP/1.10"),
    _line("9112 §2.3", b"GET / HTTP/01.1", "HTTP/01.1"),
    _line("9112 §2.3", b"GET / http/1.1", "http in lower case"),
    _line("9112 §2.3", b"GET / HTTP/1.1x", "a version with a letter behind it"),
    _line("9112 §2.3", b"GET / HTTPS/1.1", "another protocol"),
    _refused("9112 §3", b"GET /\r\n\r\n", "HTTP/0.9", 505),
    _refused("9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "a preface of HTTP/2"),
    _refused(
        "9113 §3.4", b"PRI * HTTP/2.0\r\n\r\nSM /x HTTP/1.1\r\nHost: a\r\n\r\n", "a request behind half a preface"
    ),
    _refused("9112 §3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "garbage"),
    _refused("9112 §3", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "a response"),
    _line("9112 §3", b"GET\t/\tHTTP/1.1", "tabs in the request line"),
    _line("9112 §3", b" GET / HTTP/1.1", "a space before the method"),
    _line("9112 §3", b"GET / HTTP/1.1 ", "a space after the version"),
    _line("9112 §3", b" / HTTP/1.1", "no method"),
    _line("9112 §3", b"GET HTTP/1.1", "no target"),
    _line("9112 §3.2", b"GET /a b HTTP/1.1", "a space in the target"),
    _line("9112 §3.2", b"GET /\tb HTTP/1.1", "a tab in the target"),
    _refused("9112 §3.2", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "a NUL in the target"),
    _line("9112 §3.2", b"GET /\x01 HTTP/1.1", "a control character in the target"),
    _line("9112 §3.2", b"GET /\x7f HTTP/1.1", "a DEL in the target"),
    _line("9112 §3.2", b"GET /\rb HTTP/1.1", "a bare CR in the target"),
    _line("9112 §3.2", b"GET /a#b HTTP/1.1", "a fragment in the target"),
    _line("9112 §3.2", b"GET index HTTP/1.1", "a target without a slash"),
    _line("9112 §3.2.3", b"GET a:80 HTTP/1.1", "a host and port for GET"),
    _line("9112 §3.2.4", b"GET * HTTP/1.1", "an asterisk for GET"),
    _line("9112 §3.2.2", b"GET http://u@a/ HTTP/1.1", "an absolute target with a user"),
    _line("9112 §3.2.2", b"GET ftp://a/ HTTP/1.1", "an absolute target of another scheme"),
    _line("9112 §3.2.2", b"GET http:///x HTTP/1.1", "an absolute target without a host"),
    _line("9112 §3.2.2", b"GET http://a:b/ HTTP/1.1", "an absolute target with a wrong port"),
    _line("9112 §3.2.2", b"GET http://a/x#y HTTP/1.1", "an absolute target with a fragment"),
    _line("9110 §9.1", b"G(T / HTTP/1.1", "a method that is no token"),
    _line("9110 §9.1", b"G\xe9T / HTTP/1.1", "a method beyond ASCII"),
    _line("9113 §3.4", b"PRI / HTTP/1.1", "PRI for a method"),
    _line("9112 §2.3", b"LIST / RTSP/1.0", "an unknown method of RTSP"),
    _line("9112 §3.2", b"LIST a:80 HTTP/1.1", "a host and port for an unknown method"),
    _line("9112 §3.2.4", b"LIST * HTTP/1.1", "an asterisk for an unknown method"),
    _line("9112 §3", b"LIST HTTP/1.1", "no target for an unknown method"),
    _line("9112 §3", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1", "a PROXY header that is not due"),
    _refused("9112 §3", b"LIST /\r\n\r\n", "HTTP/0.9 with an unknown method", 505),
    _refused("9110 §9.3.6", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "CONNECT", 501),
    _line("9110 §9.3.8", b"TRACE / HTTP/1.1", "TRACE", 405),
    _refused("9112 §2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n", "a bare LF after the request line"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\rHost: a\r\n\r\n", "a bare CR after the request line"),
    _refused("9112 §2.2", b"\r" + GET, "a bare CR first"),
    _refused("9112 §2.2", b"\r\n\r" + GET, "a bare CR behind an empty line"),
)

HOSTS = (
    _refused("9112 §3.2", b"GET / HTTP/1.1\r\n\r\n", "no host"),
    _refused("9112 §3.2", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "two hosts"),
    _refused("9112 §3.2", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two hosts that differ"),
    _refused("9112 §3.2", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "two hosts in HTTP/1.0"),
    _host("9112 §3.2", b"", "an empty host"),
    _host("9112 §3.2", b" a/b", "a host with a path"),
    _host("9112 §3.2", b" a?b", "a host with a query"),
    _host("9112 §3.2", b" a#b", "a host with a fragment"),
    _host("9112 §3.2", b" a b", "a host with a space"),
    _host("9112 §3.2", b" a\tb", "a host with a tab"),
    _host("9112 §3.2", b" a@b", "a host with a user"),
    _host("9112 §3.2", b" a:b", "a host with a wrong port"),
    _host("9112 §3.2", b" a:80:80", "a host with two ports"),
    _host("9112 §3.2", b" :80", "a port without a host"),
    _host("9112 §3.2", b" http://a", "a URL for a host"),
    _host("9112 §3.2", b" a\\b", "a host with a backslash"),
    _host("9112 §3.2", b' "a"', "a host in quotes"),
    _host("9112 §3.2", b" <a>", "a host in angle brackets"),
    _host("9112 §3.2", b" a\xe9", "a host beyond ASCII"),
    _host("9112 §3.2", b" a%zz", "a host with a percent sign that encodes nothing"),
    _host("9112 §3.2", b" [::1", "an IPv6 host that is not closed"),
    _host("9112 §3.2", b" ::1", "an IPv6 host without brackets"),
    _host("9112 §3.2", b" [a/b]", "an IPv6 host that is none"),
    _host("9112 §5.2", b"\r\n a", "a folded host"),
    _refused("9112 §3.2", b"GET http://b/ HTTP/1.1\r\n\r\n", "an absolute target and no host"),
    _refused("9112 §3.2", b"GET http://b/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "an absolute target and two hosts"),
    _refused("9112 §3.2", b"GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", "an absolute target and an invalid host"),
    _refused("9112 §3.2.2", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "a URL with another host"),
    _refused("9112 §3.2.2", b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "a URL with a port that Host lacks"),
    _refused("9112 §3.2.2", b"GET http://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n", "a host with a port that the URL lacks"),
    _refused("9112 §3.2.2", b"GET http://a.b/ HTTP/1.0\r\nHost: a\r\n\r\n", "a URL with another host in HTTP/1.0"),
    _refused("9112 §3.2", b"OPTIONS * HTTP/1.1\r\nHost: a b\r\n\r\n", "an asterisk and an invalid host"),
)

FIELDS = (
    _field("9112 §5.2", b"X: a\r\n b\r\n", "a folded field"),
    _field("9112 §5.2", b"X: a\r\n\tb\r\n", "a field folded with a tab"),
    _field("9112 §5.2", b"X:\r\n b\r\n", "a field folded before its value"),
    _field("9112 §5.2", b"X: a\r\n \r\n", "a field folded to nothing"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "a folded field at the beginning"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n", "a space before the first field"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n", "a line of a space first"),
    _field("9112 §2.2", b"X: a\rb\r\n", "a bare CR in a value"),
    _field("9112 §2.2", b"X: a\r\r\n", "a bare CR at the end of a value"),
    _field("9112 §2.2", b"X\r: a\r\n", "a bare CR in a name"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "a bare LF after a field"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n", "a bare LF at the end of the head"),
    _refused("9112 §2.2", b"GET / HTTP/1.1\nHost: a\n\n", "bare LFs alone"),
    _field("9110 §5.5", b"X: a\0b\r\n", "a NUL in a value"),
    _field("9110 §5.5", b"X: a\x01b\r\n", "a control character in a value"),
    _field("9110 §5.5", b"X: a\x7fb\r\n", "a DEL in a value"),
    _refused("9112 §5.1", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "a space before the colon"),
    _field("9112 §5.1", b"X : b\r\n", "a space before the colon of another field"),
    _field("9112 §5.1", b"X\t: b\r\n", "a tab before the colon"),
    _field("9110 §5.1", b"X Y: b\r\n", "a space in a name"),
    _field("9110 §5.1", b"X\0: b\r\n", "a NUL in a name"),
    _field("9110 §5.1", b"X\x01: b\r\n", "a control character in a name"),
    _field("9110 §5.1", b"X\xe9: b\r\n", "a name beyond ASCII"),
    _field("9110 §5.1", b"X(: b\r\n", "a name with a parenthesis"),
    _field("9110 §5.1", b'"X": b\r\n', "a name in quotes"),
    _field("9110 §5.1", b"[X]: b\r\n", "a name in brackets"),
    _field("9110 §5.1", b"X@Y: b\r\n", "a name with an at sign"),
    _field("9110 §5.1", b": b\r\n", "an empty name"),
    _field("9112 §5", b"X\r\n", "a field without a colon"),
)

FRAMING = (
    _length(b"", "an empty length", b""),
    Case("two lengths", "9112 §6.3", POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    Case("two lengths that differ", "9112 §6.3", POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400),
    Case("a length and a 0", "9112 §6.3", POST + b"Content-Length: 1\r\nContent-Length: 0\r\n\r\nx", 400),
    Case("a 0 and a length", "9112 §6.3", POST + b"Content-Length: 0\r\nContent-Length: 1\r\n\r\nx", 400),
    _length(b" 1, 1", "a list of lengths"),
    _length(b" 1, 2", "a list of lengths that differ"),
    _length(b" 1 1", "a length with a space inside"),
    _length(b" +1", "a signed length"),
    _length(b" -1", "a negative length"),
    _length(b" -0", "a negative length of 0", b""),
    _length(b" 0x1", "a length in hexadecimal"),
    _length(b" 1_0", "a length with an underscore", b"0123456789"),
    _length(b" 1.0", "a length with a fraction"),
    _length(b" 1e1", "a length with an exponent", b"0123456789"),
    _length(b" 1x", "a length with a letter behind it"),
    _length(b" \x0b1", "a vertical tab before the length"),
    _length(b" 99999999999999999999", "a length beyond 64 bits"),
    _length(b" 18446744073709551617", "a length of 2 to the 64th and 1"),
    _length(b" 18446744073709551611", "a length of 2 to the 64th less 5"),
    _length(b" 0001000000000000000000", "a length of nineteen digits behind zeros"),
    _length(b"\r\n 1", "a folded length"),
    Case("a length with a space before the colon", "9112 §5.1", POST + b"Content-Length : 1\r\n\r\nx", 400),
    _refused(
        "9112 §6.3",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a length and chunks",
    ),
    _refused(
        "9112 §6.3",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "chunks and a length",
    ),
    _refused(
        "9112 §6.3",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        "chunks and a length of 0",
    ),
    _refused(
        "9112 §6.1",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunks in HTTP/1.0",
    ),
    # This would be sound (RFC 9110 section 5.5), but the parser does not think so.
    _coding(b" chunked \t", "white space after a coding"),
    _coding(b" chunked, chunked", "chunks twice", "9112 §7.1"),
    _refused(
        "9112 §7.1",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunks in two fields",
    ),
    _coding(b" chunked, gzip", "chunks that are not last", "9112 §6.3"),
    _refused(
        "9112 §6.3",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "chunks, and another coding in a second field",
    ),
    _coding(b" gzip, chunked", "another coding before the chunks"),
    _refused("9112 §6.3", POST + b"Transfer-Encoding: identity\r\n\r\n", "another coding"),
    _coding(b" xchunked", "a coding that ends like chunked"),
    _coding(b" chunkedx", "a coding that begins like chunked"),
    _coding(b' "chunked"', "chunked in quotes"),
    _coding(b" chunked;q=1", "chunked with a parameter"),
    _coding(b" \x0bchunked", "a vertical tab in the coding"),
    _coding(b" chunked\x0b", "a vertical tab behind the coding"),
    _coding(b" chunked\xa0", "a no-break space behind the coding"),
    _coding(b" chunked\0", "a NUL behind the coding"),
    _coding(b" chun ked", "a space in the coding"),
    _coding(b"", "an empty coding"),
    _coding(b"\r\n chunked", "a folded coding", "9112 §5.2"),
    Case(
        "a coding with a space before the colon",
        "9112 §5.1",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    Case(
        "a coding with a bare LF before it",
        "9112 §2.2",
        POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    Case(
        "a coding with a bare CR before it",
        "9112 §2.2",
        POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
)

CHUNKS = (
    _chunks(b"x\r\nabc\r\n0\r\n\r\n", "a size that is none"),
    _chunks(b"3x\r\nabc\r\n0\r\n\r\n", "a size with a letter behind it"),
    _chunks(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", "a size beyond 64 bits"),
    _chunks(b"FFFFFFFFFFFFFFFB\r\nabc\r\n0\r\n\r\n", "a size of sixteen digits"),
    _chunks(b"10000000000000003\r\nabc\r\n0\r\n\r\n", "a size of 2 to the 64th and 3"),
    _chunks(b"+3\r\nabc\r\n0\r\n\r\n", "a signed size"),
    _chunks(b"-3\r\nabc\r\n0\r\n\r\n", "a negative size"),
    _chunks(b"0x3\r\nabc\r\n0\r\n\r\n", "a size with a prefix"),
    _chunks(b"0_3\r\nabc\r\n0\r\n\r\n", "a size with an underscore"),
    _chunks(b"\r\nabc\r\n0\r\n\r\n", "an empty size"),
    _chunks(b" 3\r\nabc\r\n0\r\n\r\n", "a space before the size"),
    _chunks(b"3 \r\nabc\r\n0\r\n\r\n", "a space after the size"),
    _chunks(b"3\t\r\nabc\r\n0\r\n\r\n", "a tab after the size"),
    _chunks(b"3\0\r\nabc\r\n0\r\n\r\n", "a NUL after the size"),
    _chunks(b"2\r\nabc\r\n0\r\n\r\n", "more than the size"),
    _chunks(b"4\r\nabc\r\n0\r\n\r\n", "less than the size"),
    _chunks(b"3\nabc\r\n0\r\n\r\n", "a bare LF after the size"),
    _chunks(b"3\rabc\r\n0\r\n\r\n", "a bare CR after the size"),
    _chunks(b"3\r\nabc\n0\r\n\r\n", "a bare LF after the data"),
    _chunks(b"3\r\nabc\r0\r\n\r\n", "a bare CR after the data"),
    _chunks(b"3\r\nabc0\r\n\r\n", "no line break after the data"),
    _chunks(b"3\r\nabc\r\n0\n\r\n", "a bare LF after the last size"),
    _chunks(b"3\r\nabc\r\n0\r\n\n", "a bare LF at the end"),
    _chunks(b"3\r\nabc\r\n0\r\n", "no line break at the end"),
    _chunks(b"0" * 12 * HEAD_MAX + b"3\r\nabc\r\n0\r\n\r\n", "a size with zeros without bound"),
    _chunks(b"3;a\nb\r\nabc\r\n0\r\n\r\n", "a bare LF in an extension", "9112 §7.1.1"),
    _chunks(b"3;\nabc\r\n0\r\n\r\n", "a bare LF that ends an extension", "9112 §7.1.1"),
    _chunks(b"3;a\rb\r\nabc\r\n0\r\n\r\n", "a bare CR in an extension", "9112 §7.1.1"),
    _chunks(b"3;a\0\r\nabc\r\n0\r\n\r\n", "a NUL in an extension", "9112 §7.1.1"),
    _chunks(b'3;a="\x01"\r\nabc\r\n0\r\n\r\n', "a control character in an extension", "9112 §7.1.1"),
    _chunks(b'3;a="b\r\nabc\r\n0\r\n\r\n', "an extension in quotes that do not end", "9112 §7.1.1"),
    _chunks(b"3;\r\nabc\r\n0\r\n\r\n", "an extension without a name", "9112 §7.1.1"),
    Case("an extension without end", "9112 §7.1.1", CHUNKED + b"3;" + b"a" * 2 * HEAD_MAX, 400, in_body=True,
         unfinished=True),
    _chunks(b"1;" + b"a" * 1024 + b"\r\nx\r\n" + (b"1;" + b"a" * 1024 + b"\r\nx\r\n") * 511 + b"0\r\n\r\n",
            "an extension of 1 KiB for each of 512 bytes", "9112 §7.1.1"),
)  # fmt: skip

TRAILERS = (
    _chunks(b"0\r\nX: a\r\n b\r\n\r\n", "a folded trailer", "9112 §5.2"),
    _chunks(b"0\r\nX: a\nY: b\r\n\r\n", "a bare LF after a trailer", "9112 §2.2"),
    _chunks(b"0\r\nX: a\rb\r\n\r\n", "a bare CR in a trailer", "9112 §2.2"),
    _chunks(b"0\r\nX: a\0b\r\n\r\n", "a NUL in a trailer", "9110 §5.5"),
    _chunks(b"0\r\nX: a\x01b\r\n\r\n", "a control character in a trailer", "9110 §5.5"),
    _chunks(b"0\r\nX : b\r\n\r\n", "a space before the colon of a trailer", "9112 §5.1"),
    _chunks(b"0\r\nX\r\n\r\n", "a trailer without a colon", "9112 §5"),
    _chunks(b"0\r\nX(: b\r\n\r\n", "a trailer whose name is no token", "9110 §5.1"),
    _chunks(b"0\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n", "a request in place of the trailers", "9112 §7.1.2"),
    _chunks(b"0\r\nContent-Length: 9\r\n\r\n", "a length in the trailers", "9110 §6.5.1"),
    _chunks(b"0\r\nTransfer-Encoding: gzip\r\n\r\n", "a coding in the trailers", "9110 §6.5.1"),
    Case("a trailer without end", "9112 §7.1.2", CHUNKED + b"0\r\nX: " + b"a" * 2 * HEAD_MAX, 400, in_body=True,
         unfinished=True),
    _chunks(b"0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", "20,000 trailers", "9112 §7.1.2"),
)  # fmt: skip

SIZES = (
    _refused("bounded", b"X" * 2 * HEAD_MAX + b" / HTTP/1.1\r\nHost: a\r\n\r\n", "a long method", 431),
    _refused("bounded", b"GET /" + b"x" * TARGET_MAX + b" HTTP/1.1\r\nHost: a\r\n\r\n", "a long target", 414),
    _refused("bounded", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * FIELDS_MAX + b"\r\n", "many fields", 431),
    _refused(
        "bounded",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 40 + b"\r\n",
        "a large head",
        431,
    ),
    _unfinished(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 2 * HEAD_MAX, "a field without end"),
    _unfinished(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 2 * HEAD_MAX, "a name without end"),
    _unfinished(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 12_000, "fields without end"),
    _unfinished(b"X" * 2 * HEAD_MAX, "a method without end"),
    _unfinished(b"GET /" + b"y" * 2 * HEAD_MAX, "a target without end"),
    _unfinished(b"\r\n" * 2 * HEAD_MAX, "empty lines without end"),
    _unfinished(b"GET / " + b" " * 2 * HEAD_MAX, "spaces without end"),
)

PASSED = (
    _passes("9110 §9.3.7", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n",
            "an asterisk for OPTIONS"),
    _passes("9112 §3.2.4", b"OPTIONS http://b HTTP/1.1\r\nHost: b\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: b\r\n",
            "a URL without a path for OPTIONS"),
    _passes("9112 §3.2.2", b"GET http://b:81/x?y HTTP/1.1\r\nHost: b:81\r\n\r\n",
            b"GET /x?y HTTP/1.1\r\nhost: b:81\r\n", "a URL"),
    _passes("9112 §3.2.2", b"GET http://b?y HTTP/1.1\r\nHost: b\r\n\r\n", b"GET /?y HTTP/1.1\r\nhost: b\r\n",
            "a URL without a path"),
    _passes("9110 §4.2.3", b"GET http://b:80/ HTTP/1.1\r\nHost: B\r\n\r\n", b"GET / HTTP/1.1\r\nhost: b:80\r\n",
            "a URL with the port of its scheme"),
    _passes("9110 §4.2.1", b"GET HTTP://b/ HTTP/1.1\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\nhost: b\r\n",
            "a URL in upper case"),
    _passes("9112 §3.2.1", b"GET /a%2Fb/../c//d?x=%20&y HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a%2Fb/../c//d?x=%20&y HTTP/1.1\r\n", "a path that could be normalised"),
    _passes("9112 §3.2.1", b"GET /foo? HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /foo? HTTP/1.1\r\nhost: a\r\n",
            "an empty query"),
    _passes("9110 §7.2", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"GET / HTTP/1.1\r\nhost: [::1]:80\r\n",
            "an IPv6 host"),
    _passes("9110 §7.2", b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a:\r\n",
            "a host with an empty port"),
    _passes("9110 §7.2", b"GET / HTTP/1.1\r\nHost: a_b.example\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a_b.example\r\n",
            "a host with an underscore"),
    _passes("9112 §3.2", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.1\r\n",
            "HTTP/1.0 without a host"),
    _passes("9110 §9.1", b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROPFIND / HTTP/1.1\r\nhost: a\r\n",
            "an uncommon method"),
    _passes("9110 §9.1", b"LIST /v1/secret HTTP/1.1\r\nHost: a\r\n\r\n", b"LIST /v1/secret HTTP/1.1\r\nhost: a\r\n",
            "an unknown method"),
    _passes("9110 §9.1", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", b"get / HTTP/1.1\r\nhost: a\r\n",
            "a method in lower case"),
    _passes("9110 §9.1", b"GETS / HTTP/1.1\r\nHost: a\r\n\r\n", b"GETS / HTTP/1.1\r\nhost: a\r\n",
            "a method that begins like another"),
    _passes("9110 §9.1", b"!#$%&'*+-.^_`|~1a / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"!#$%&'*+-.^_`|~1a / HTTP/1.1\r\nhost: a\r\n", "a method of every mark that a token may have"),
    _passes("9110 §9.1", b"PLAY / HTTP/1.1\r\nHost: a\r\n\r\n", b"PLAY / HTTP/1.1\r\nhost: a\r\n",
            "a method of RTSP in HTTP"),
    _passes("9110 §9.1", b"LIST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            b"content-length: 3\r\n", "an unknown method with a body"),
    _passes("9110 §5.5", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\tb\r\n\r\n", b"host: a\r\nx: \xff\tb\r\n", "obs-text"),
    _passes("9110 §5.5", b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", b"host: a\r\nx: \r\n", "an empty value"),
    _passes("9110 §5.5", b"GET / HTTP/1.1\r\nHost:a\r\nX:\t b \t\r\n\r\n", b"host: a\r\nx: b\r\n",
            "white space around a value"),
    _passes("9110 §5.5", b"GET / HTTP/1.1\r\nHost: b \t\r\n\r\n", b"\r\nhost: b\r\n", "white space after a host"),
    _passes("9110 §5.5", POST + b"Content-Length: 3 \t\r\n\r\nabc", b"content-length: 3\r\n",
            "white space after a length"),
    _passes("9110 §5.1", b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: b\r\n\r\n",
            b"host: a\r\n!#$%&'*+-.^_`|~: b\r\n", "a name of every mark that a token may have"),
    _passes("9110 §5.3", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nX: 3\r\n\r\n",
            b"host: a\r\nx: 1\r\ny: 2\r\nx: 3\r\n", "a field that is repeated"),
    _passes("9112 §2.2", b"\r\n" + GET, b"GET / HTTP/1.1\r\nhost: a\r\n", "an empty line first"),
    # Section 2.2 lets a server take a bare LF for a line's end, and section 3 any white space between the words of a
    # request line. What is passed on is written anew, so that nobody behind can read it in another way.
    _passes("9112 §2.2", b"\n" + GET, b"GET / HTTP/1.1\r\nhost: a\r\n", "a bare LF first"),
    _passes("9112 §3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n",
            "two spaces in the request line"),
    _passes("9112 §3", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n",
            "two spaces before the version"),
    _passes("9110 §7.6.1", POST + b"Connection: content-length, host\r\nContent-Length: 3\r\n\r\nabc",
            b"host: a\r\ncontent-length: 3\r\n", "a Connection that names Host and Content-Length"),
    _passes("9110 §7.8",
            POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
            b"Content-Length: 3\r\n\r\nabc",
            b"content-length: 3\r\n", "an upgrade that no member offers"),
    _passes("9110 §7.8",
            POST + b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 3\r\n\r\nabc",
            b"connection: upgrade\r\nupgrade: tcp\r\n", "an upgrade with a body"),
    _passes("9110 §9.3.1", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"content-length: 3\r\n",
            "a GET with a body"),
    _passes("9110 §8.6", POST + b"Content-Length: 003\r\n\r\nabc", b"content-length: 003\r\n",
            "a length with zeros"),
    _passes("9112 §2.2", POST + b"Content-Length: 3\r\n\r\nabc\r\n", b"content-length: 3\r\n",
            "an empty line behind a body"),
    _passes("9112 §7", POST + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "Chunked in mixed case"),
    _body_passes(b"03\r\nabc\r\n00\r\n\r\n", "a size with zeros"),
    _body_passes(b"3;a=\r\nabc\r\n0\r\n\r\n", "an extension without a value", "9112 §7.1.1"),
    _body_passes(b"3;a=b;c\r\nabc\r\n0;d=\"e\"\r\n\r\n", "extensions", "9112 §7.1.1"),
    Case("a trailer", "9112 §7.1.2", CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n",
         arrives=b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n"),
    _body_passes(b"3\r\nabc\r\n0\r\nHost: b\r\n\r\n", "a host in the trailers", "9110 §6.5.1"),
    _passes("bounded", b"GET /" + b"x" * (TARGET_MAX - 1) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /" + b"x" * (TARGET_MAX - 1) + b" HTTP/1.1\r\nhost: a\r\n", "the longest target"),
    _passes("bounded", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * (FIELDS_MAX - 1) + b"\r\n",
            b"host: a\r\n" + b"x: y\r\n" * (FIELDS_MAX - 1), "as many fields as may be"),
    _passes("bounded", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 32 + b"\r\n",
            b"host: a\r\n" + b"x: %b\r\n" % (b"y" * 1000) * 32, "a head of nearly 32 KiB"),
)  # fmt: skip

# The tables of docs/reference/strictness.md, in its order.
REQUESTS: dict[str, tuple[Case, ...]] = {
    "Request line": REQUEST_LINES,
    "Host": HOSTS,
    "Fields": FIELDS,
    "Length and coding": FRAMING,
    "Chunks": CHUNKS,
    "Trailers": TRAILERS,
    "Size of a head": SIZES,
    "Sound": PASSED,
}
CASES = [case for cases in REQUESTS.values() for case in cases]

# What the balancer does not do as it should yet. Each leaves this list with its cure: its test then fails until it has.
OPEN: frozenset[str] = frozenset()
