"""Parts of HTTP/2 beside frames, which a library reads and writes (RFC 9113). No I/O."""

from __future__ import annotations

import re

from balancer.config.settings import Settings
from balancer.http.headers import Headers
from balancer.http.validation import TOKEN, check, malformed

# Settings (section 6.5.2, RFC 8441 section 3), and the type of their frame and the length of a frame's header.
_MAX_HEADER_LIST_SIZE, _ENABLE_CONNECT_PROTOCOL = 0x6, 0x8
_HEADERS, _SETTINGS, _FRAME_HEADER = 0x1, 0x4, 9

# The highest status that zttp sends. It writes each as a literal of three digits that is not indexed (RFC 7541
# section 6.2.2): the name is that of entry 8 of the static table.
STATUS_MAX = 599
_STATUS = b"\x08\x03%d"

# Error codes (section 7), and those of them that blame the other side for a reset.
NO_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0x0, 0x8, 0xB
FAULTS = {
    0x1: "PROTOCOL_ERROR",
    0x3: "FLOW_CONTROL_ERROR",
    0x5: "STREAM_CLOSED",
    0x6: "FRAME_SIZE_ERROR",
    0x7: "REFUSED_STREAM",
    0x9: "COMPRESSION_ERROR",
    0xB: "ENHANCE_YOUR_CALM",
}

# Bytes that may come beside payload: for each frame that has some, for each byte of it, and in a second. A client may
# acknowledge each frame of one byte with two of WINDOW_UPDATE and a PING (43 bytes).
FRAME_WORTH, BYTE_WORTH, SECOND_WORTH = 64, 16, 64 * 1024
# Bytes beyond all that: how many are too many, and up to how many nearly all frames have carried something. A PING has
# 17 bytes and costs 0.3 us.
OVERHEAD_MAX, OVERHEAD_SMALL = 1024 * 1024, 16 * 1024

_ASCII = re.compile(rb"[\x21-\x7e]+")


class Overhead:
    """What a connection receives beside payload: PING, SETTINGS, empty frames and others (section 10.5).

    Payload of both directions makes up for it, and so does time.
    """

    __slots__ = ("_bytes", "_renewed_at")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._renewed_at = 0.0

    @property
    def is_too_much(self) -> bool:
        """Whether the connection should end."""
        return self._bytes > OVERHEAD_MAX

    @property
    def is_small(self) -> bool:
        """Whether nearly all frames have carried something."""
        return self._bytes <= OVERHEAD_SMALL

    def receive(self, size: int) -> None:
        """Count bytes, whatever they are."""
        self._bytes += size

    def carry_head(self, size: int) -> None:
        """Count the head of a request. Compressed, it is no larger; and its bytes are worth no others."""
        self._bytes = max(0.0, self._bytes - FRAME_WORTH - size)

    def carry(self, payload: int) -> None:
        """Count a frame of DATA with payload, or a message of a response."""
        self._bytes = max(0.0, self._bytes - FRAME_WORTH - BYTE_WORTH * payload)

    def renew(self, now: float) -> None:
        """Count time. ``now``: a reading in seconds."""
        self._bytes = max(0.0, self._bytes - SECOND_WORTH * (now - self._renewed_at))
        self._renewed_at = now


def server_settings(data: bytes, max_header_bytes: int) -> bytes:
    """Return the first bytes for a client, with zttp's settings (section 6.5) made those of this server."""
    length = int.from_bytes(data[:3])
    if data[3] != _SETTINGS:
        return data
    settings = data[_FRAME_HEADER : _FRAME_HEADER + length]
    own_settings = b""
    for index in range(0, length, 6):
        number = int.from_bytes(settings[index : index + 2])
        if number == _MAX_HEADER_LIST_SIZE:
            own_settings += number.to_bytes(2) + max_header_bytes.to_bytes(4)
        elif number != _ENABLE_CONNECT_PROTOCOL:
            own_settings += settings[index : index + 6]
    return len(own_settings).to_bytes(3) + data[3:_FRAME_HEADER] + own_settings + data[_FRAME_HEADER + length :]


def with_status(data: bytes, stream: int, status: int) -> bytes:
    """Return frames with ``status`` in place of STATUS_MAX in the first head of a stream among them.

    Raises ValueError if there is none, or its status is written otherwise.
    """
    at = 0
    while at < len(data):
        block = at + _FRAME_HEADER
        end = block + int.from_bytes(data[at : at + 3])
        if data[at + 3] == _HEADERS and int.from_bytes(data[at + 5 : block]) == stream:
            written = _STATUS % STATUS_MAX
            if not data.startswith(written, block, end):
                break
            return data[:block] + _STATUS % status + data[block + len(written) :]
        at = end
    raise ValueError(f"zttp has not written a head that could be given the status {status}")


def check_http2(method: bytes, target: bytes, fields: Headers, limits: Settings) -> None:
    """Raise Refusal for a request that would be refused over HTTP/1.1, or that HTTP/1.1 cannot carry."""
    if not TOKEN.fullmatch(method):
        raise malformed("the method is not one")
    check(method, target, fields.copy(), "1.1", limits.max_header_bytes + 1, limits)
    if not target.startswith(b"/") and target != b"*":
        raise malformed("the request target is not a path")
    if not _ASCII.fullmatch(target):
        raise malformed("the request target has characters that have to be percent-encoded")
    if sum(name == b"content-length" for name, _ in fields) > 1:
        raise malformed("a request has one Content-Length")


def join_cookies(fields: Headers) -> Headers:
    """Join the cookies that HTTP/2 may have split for compression into one field (section 8.2.3)."""
    cookies = [value for name, value in fields if name == b"cookie"]
    if len(cookies) < 2:
        return fields
    return [pair for pair in fields if pair[0] != b"cookie"] + [(b"cookie", b"; ".join(cookies))]
