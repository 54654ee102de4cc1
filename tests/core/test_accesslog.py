from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.accesslog import entry
from balancer.record import Record, Try
from balancer.request import Request
from balancer.settings import Address


def record(target: bytes = b"/a?b=1", **known: Any) -> Record:
    request = Request("GET", target, [(b"host", b"shop.example")], "192.0.2.1")
    made = Record(request, 100.0)
    made.status, made.body_bytes, made.member, made.duration = 200, 43, Address("10.0.0.2", 80), 0.0123456
    for name, value in known.items():
        setattr(made, name, value)
    return made


def test_an_entry_says_who_asked_for_what_and_what_came_of_it() -> None:
    assert entry(record(), 1_700_000_000.25) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/a?b=1",
        "status": 200,
        "bytes": 43,
        "duration_ms": 12.35,
        "member": "10.0.0.2:80",
    }


@pytest.mark.parametrize(
    ("name", "value", "field", "logged"),
    [
        ("tries", [Try(Address("10.0.0.3", 80), "refused", "refused")], "tries", ["10.0.0.3:80: refused"]),
        ("held", 1.2345678, "held_ms", 1234.57),
        ("error", "no_member", "error", "no_member"),
    ],
)
def test_an_entry_names_trouble_only_where_there_was_some(name: str, value: Any, field: str, logged: object) -> None:
    assert field not in entry(record(), 0.0)
    assert entry(record(b"/", **{name: value}), 0.0)[field] == logged


@pytest.mark.parametrize("target", [b"/\xff\xfe", b'/"\n\x00', "/ü".encode()])
def test_an_entry_is_one_line_of_json_whatever_the_target(target: bytes) -> None:
    line = json.dumps(entry(record(target), 0.0))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["target"].encode("latin-1") == target
