"""HTTP/2 without frames: the server's settings, and cookies that were split."""

from __future__ import annotations

from balancer.http.http2 import join_cookies, server_settings

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
