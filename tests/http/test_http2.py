"""HTTP/2 without frames: the server's settings, and cookies that were split."""

from __future__ import annotations

import pytest

from balancer.http.http2 import join_cookies, server_settings, with_status

MAX_HEADER_BYTES = 16_384


def test_settings_say_the_header_limit_and_no_connect_protocol() -> None:
    frame = b"\0\0\x0c\x04\0\0\0\0\0" + b"\0\x06\0\x01\0\0" + b"\0\x08\0\0\0\x01"
    ours = b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x06" + MAX_HEADER_BYTES.to_bytes(4)
    assert server_settings(frame + b"rest", MAX_HEADER_BYTES) == ours + b"rest"


def test_settings_of_another_first_frame_are_left_alone() -> None:
    assert server_settings(b"\0\0\0\x07rest_", MAX_HEADER_BYTES) == b"\0\0\0\x07rest_"


def test_cookies_of_a_split_field_become_one() -> None:
    assert join_cookies([(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]) == [
        (b"x", b"y"),
        (b"cookie", b"a=1; b=2"),
    ]


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 4]) + stream.to_bytes(4) + payload


def test_status_is_replaced_in_the_head_of_its_stream_alone() -> None:
    def frames(status: bytes) -> bytes:
        head = b"\x08\x03599\x00\x01x\x05\x08\x03599"
        mine = frame(1, 3, b"\x08\x03" + status + head[5:])
        return frame(0, 3, head) + frame(1, 1, head) + mine + frame(1, 3, head) + frame(0, 1, b"")

    assert with_status(frames(b"599"), 3, 999) == frames(b"999")


@pytest.mark.parametrize(
    "data", [b"", frame(1, 1, b"\x08\x03599"), frame(1, 3, b"\x48\x03599"), frame(0, 3, b"\x08\x03599")]
)
def test_status_that_is_not_found_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="999"):
        with_status(data, 3, 999)
