from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.dispatch.context import ID_MAX, Attempt, RequestRecord
from balancer.http.request import Request
from balancer.telemetry.access_log import WAITING_MAX, AccessLog, as_json, as_text
from balancer.types import Address

FAILED = Attempt(Address("10.0.0.3", 80), "refused", "connection refused")


def record(target: bytes = b"/a?b=1", id: bytes = b"abc-1", client: str = "192.0.2.1", **known: Any) -> RequestRecord:
    request = Request("GET", target, [(b"host", b"shop.example")], client)
    made = RequestRecord(request, 100.0, id)
    made.status, made.body_bytes, made.member, made.duration = 200, 43, Address("10.0.0.2", 80), 0.0123456
    for name, value in known.items():
        setattr(made, name, value)
    return made


def test_entry_says_who_asked_for_what_and_what_came_of_it() -> None:
    assert json.loads(as_json(record(), 1_700_000_000.25)) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/a?b=1",
        "status": 200,
        "bytes": 43,
        "duration_ms": 12.35,
        "member": "10.0.0.2:80",
        "request_id": "abc-1",
    }


@pytest.mark.parametrize(
    ("name", "value", "field", "logged"),
    [
        ("attempts", [FAILED], "attempts", ["10.0.0.3:80: connection refused"]),
        ("queued", 1.2345678, "queued_ms", 1234.57),
        ("error", "no_member", "error", "no_member"),
        ("reason", 'no member "x"', "reason", 'no member "x"'),
    ],
)
def test_entry_names_trouble_only_where_there_was_some(name: str, value: Any, field: str, logged: object) -> None:
    assert field not in json.loads(as_json(record(), 0.0))
    assert json.loads(as_json(record(b"/", **{name: value}), 0.0))[field] == logged


def test_access_log_of_a_request_without_an_answer_says_so() -> None:
    assert json.loads(as_json(record(member=None), 0.0))["member"] == ""


async def test_lines_wait_for_each_other_until_there_is_much_of_them() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    log.done(record())
    assert stream.getvalue() == ""
    for _ in range(100):
        log.done(record(b"/" + b"\xff" * 16_000))
        written = stream.tell()
        assert sum(map(len, log._lines)) <= WAITING_MAX
    assert written
    log.flush()
    assert stream.getvalue().count("\n") == 101


@given(target=st.binary(), id=st.binary(max_size=2 * ID_MAX), client=st.text(), reason=st.text())
def test_entry_is_one_line_of_json_whatever_the_client_sends(
    target: bytes, id: bytes, client: str, reason: str
) -> None:
    line = as_json(record(target, id, client, reason=reason), 0.0)
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert read["target"].encode("latin-1") == target
    assert read["request_id"].encode("latin-1") == id[:ID_MAX]
    assert (read["client"], read.get("reason", "")) == (client, reason)


def test_line_for_people_tells_the_same() -> None:
    line = as_text(record(attempts=[FAILED], queued=0.5, error="member_failed", reason="it died", status=502), 0.0)
    assert line.endswith(
        "502 GET /a?b=1 12.3 ms, 43 bytes from 10.0.0.2:80 to 192.0.2.1, queued 500 ms, member_failed: it died "
        "(failed: 10.0.0.3:80: connection refused)"
    )
    assert "\x1b" not in line


def test_line_for_people_is_coloured_by_the_class_of_its_status() -> None:
    assert " \x1b[32m200\x1b[0m GET " in as_text(record(), 0.0, coloured=True)
    assert " \x1b[31m503\x1b[0m GET " in as_text(record(status=503), 0.0, coloured=True)


@given(target=st.binary())
def test_line_for_people_has_nothing_in_it_that_moves_a_cursor(target: bytes) -> None:
    assert as_text(record(target), 0.0).isprintable()
