"""Where an event ends in a stream of server-sent events, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.drain import end_of_event


@pytest.mark.parametrize(
    ("sent", "body", "end"),
    [
        (b"\n\n", b"", 0),
        (b"\n\n", b"data: 1", 0),
        (b"ta: 1", b"", None),
        (b"ta: 1", b"23", None),
        (b"ta: 1", b"23\n", None),
        (b"ta: 1", b"23\n\ndata: 4", 4),
        (b"ta: 1", b"23\r\n\r\ndata: 4", 6),
        (b"ta: 1", b"23\r\rdata: 4", 4),
        (b"ta: 1", b"23\r\nid: 4\r\n", None),
        (b"a: 1\n", b"\ndata", 1),
        (b"a: 1\r", b"\ndata", None),
        (b"a: 1\r", b"\n\r\n", 3),
        (b": 1\r\n", b"\r\n", 2),
        (b"\n\nid", b": 1\n\n", 5),
        (b"\n\n\n", b"data", 0),
    ],
)
def test_event_ends_with_an_empty_line(sent: bytes, body: bytes, end: int | None) -> None:
    assert end_of_event(sent, body) == end


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r\n"])), st.data())
def test_stream_is_read_however_it_is_cut_and_its_lines_end(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"x" + b"".join(lines)
    cut = data.draw(st.integers(1, len(stream)))
    plain = stream.replace(b"\r\n", b"\n")
    end = end_of_event(stream[:cut][-4:], stream[cut:])
    if end is None:
        assert not plain.endswith(b"\n\n")
    else:
        assert stream[: cut + end].replace(b"\r\n", b"\n").endswith(b"\n\n")
