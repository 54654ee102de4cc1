"""Messages of every shape, sound and malformed: what clients send, and what members do."""

from __future__ import annotations

_POST = b"POST /p HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n"

# What is sound. Each is answered as often as it has requests.
REQUESTS = {
    "GET": b"GET /g?x=%20y HTTP/1.1\r\nHost: a.example:81\r\nAccept: */*\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n",
    "HEAD": b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS of the server": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://b.example:8080/x?y HTTP/1.1\r\nHost: b.example:8080\r\n\r\n",
    "absolute form without a path": b"GET http://b?y HTTP/1.1\r\nHost: b\r\n\r\n",
    "empty lines before": b"\r\n\r\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n",
    "no value, and spaces around one": b"GET /s HTTP/1.1\r\nHost: a\r\nX-None:\r\nX-Some: \t y z \t\r\n\r\n",
    "hop-by-hop fields": (
        b"GET /n HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Gone\r\nX-Gone: 1\r\nTE: trailers\r\n\r\n"
    ),
    "forwarded by nobody in particular": (
        b"GET /f HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\r\n"
    ),
    "POST with a length": _POST + b"Content-Length: 11\r\n\r\nhello world",
    "POST with a length of 0": _POST + b"Content-Length: 0\r\n\r\n",
    "a body that looks like a request": _POST + b"Content-Length: 29\r\n\r\nGET /x HTTP/1.1\r\nHost: evil\r\n\r\n",
    "POST in chunks": _CHUNKED + b"\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "chunks in hexadecimal, with leading zeros": _CHUNKED
    + b"\r\n00A\r\n0123456789\r\n000b\r\n0123456789a\r\n00\r\n\r\n",
    "chunks with extensions": _CHUNKED + b'\r\n5;a\r\nhello\r\n6;a=b;c="d"\r\n world\r\n0;last\r\n\r\n',
    "chunks with trailers": _CHUNKED + b"Trailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    "a trailer named as a field of the head": _CHUNKED + b"\r\n5\r\nhello\r\n0\r\nHost: evil\r\n\r\n",
    "no chunk but the last": _CHUNKED + b"\r\n0\r\n\r\n",
    "GET with a body": b"GET /g HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "DELETE": b"DELETE /d HTTP/1.1\r\nHost: a\r\n\r\n",
    "PROPFIND": b"PROPFIND /d HTTP/1.1\r\nHost: a\r\nDepth: 1\r\n\r\n",
    "an unknown method": b"LIST /d HTTP/1.1\r\nHost: a\r\nX: y \r\n\r\nget /e HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method with chunks, and others behind it": (
        b"\r\nGETS /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        b"GET /e HTTP/1.1\r\nHost: a\r\n\r\nPLAY /f HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "Expect": _POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "Expect, in chunks": _CHUNKED + b"Expect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "pipelined": (
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"HEAD /3 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"PUT /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        b"GET /5 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "the last of its connection, and one more": (
        b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "HTTP/1.0": b"GET /0 HTTP/1.0\r\nHost: a\r\n\r\n",
    "HTTP/1.0 that stays": (
        b"GET /0 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /1 HTTP/1.0\r\nHost: a\r\n\r\n"
    ),
    "HTTP/1.0 with a body": b"POST /0 HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "an upgrade that nobody grants": (
        b"GET /u HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "an upgrade with a body": (
        _POST + b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "an upgrade with chunks": (
        _CHUNKED + b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "Upgrade without Connection": b"GET /u HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
}

# What is not. None of it reaches a member as a whole request, and its connection ends with a 4xx or 5xx.
MALFORMED = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a bare CR before the request line": b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a bare CR behind an empty line": b"\r\n\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a bare CR between two requests": b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\rGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a URL with another host": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a folded field": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "a bare CR": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "a bare LF": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "two lengths": _POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
    "a signed length": _POST + b"Content-Length: +1\r\n\r\nx",
    "a list of lengths": _POST + b"Content-Length: 1, 1\r\n\r\nx",
    "a length beyond 64 bits": _POST + b"Content-Length: 18446744073709551617\r\n\r\nx",
    "a length that is negative in 64 bits": _POST + b"Content-Length: 18446744073709551611\r\n\r\nx",
    "a length and chunks": _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": _CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": _POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks in two fields": _CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding with a tab": _POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": _CHUNKED + b"\r\nx\r\nabc\r\n0\r\n\r\n",
    "a signed chunk size": _CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": _CHUNKED + b"\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a chunk size of sixteen digits": _CHUNKED + b"\r\nFFFFFFFFFFFFFFFB\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than its size": _CHUNKED + b"\r\n2\r\nabc\r\n0\r\n\r\n",
    "a chunk shorter than its size": _CHUNKED + b"\r\n4\r\nabc\r\n0\r\n\r\n",
    "a bare LF after a chunk size": _CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "a bare LF in a chunk extension": _CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a trailer that is none": _CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX Y: 1\r\n\r\n",
    "a length in a trailer": _CHUNKED + b"\r\n5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    "a coding in a trailer": _CHUNKED + b"\r\n5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method and two hosts": b"LIST / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a request behind half a preface": b"PRI * HTTP/2.0\r\n\r\nSM / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a PROXY header": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "sound, then malformed": b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
    "sound, then malformed, then sound": (
        b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost : a\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
}

_OK = b"HTTP/1.1 200 OK\r\n"

# What members send, and whether they close the connection after it.
RESPONSES = {
    "a length": (_OK + b"Content-Length: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello", False),
    "a length of 0": (_OK + b"Content-Length: 0\r\n\r\n", False),
    "a length, then close": (_OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", True),
    "a length, and a close that is only said": (_OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", False),
    "chunks": (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", False),
    "chunks with extensions and trailers": (
        _OK + b'Transfer-Encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n0;c\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n',
        False,
    ),
    "a length in a trailer": (
        _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
        False,
    ),
    "until close": (_OK + b"X-A: b\r\n\r\nhello", True),
    "HTTP/1.0 until close": (b"HTTP/1.0 200 OK\r\n\r\nhello", True),
    "HTTP/1.0 that stays": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", False),
    "no reason": (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", False),
    "an unknown status": (b"HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\nok", False),
    "a reason of its own, and spaces around a value": (
        b"HTTP/1.1 401 Token+timed+out\r\nX-A: \t b \t\r\nContent-Length: 2\r\n\r\nok",
        False,
    ),
    "a status of 999": (b"HTTP/1.1 999 \r\nContent-Length: 2\r\n\r\nok", False),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", False),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "304": (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 9\r\n\r\n', False),
    "a body that looks like a response": (
        _OK + b"Content-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok..",
        False,
    ),
    "100 before": (b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 2\r\n\r\nok", False),
    "103 and 102 before": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        + _OK
        + b"Content-Length: 2\r\n\r\nok",
        False,
    ),
    "101 that nobody asked for": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        False,
    ),
    "bytes after the end": (
        _OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        False,
    ),
    "cut in the head": (_OK + b"Content-Le", True),
    "cut in the body": (_OK + b"Content-Length: 5\r\n\r\nhel", True),
    "cut in a chunk": (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", True),
    "cut before the last chunk": (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", True),
    "nothing": (b"", True),
    "not HTTP": (b"220 mail.example ESMTP\r\n", True),
    "two lengths": (_OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok?", False),
    "a length that is none": (_OK + b"Content-Length: x\r\n\r\nok", True),
    "another coding": (_OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", True),
    "a chunk size that is none": (_OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\nhello\r\n0\r\n\r\n", False),
    "a field that is none": (_OK + b"X Y: z\r\nContent-Length: 2\r\n\r\nok", False),
    "a folded field": (_OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", False),
}
