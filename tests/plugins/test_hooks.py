"""What hooks can say with fields, and what they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.hooks import HeaderFields, HookRequest, HookResponse
from balancer.http.headers import HOP_BY_HOP, Headers, as_lines
from balancer.http.request import Request
from balancer.http.serialize import request_head
from balancer.types import Address

OWN_HEADERS = sorted(
    {it.decode() for it in HOP_BY_HOP}
    | {
        "content-length",
        "host",
        "expect",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-x",
        "cdn-loop",
    }
    | {"sec-websocket-key", "sec-websocket-accept", "sec-websocket-protocol"}
)

CHANGES: list[Callable[[HeaderFields, str, str], None]] = [
    HeaderFields.add,
    HeaderFields.set,
    lambda found, name, _: found.remove(name),
]


def fields() -> HeaderFields:
    return HeaderFields([(b"host", b"a"), (b"accept", b"x"), (b"cookie", b"a=1"), (b"accept", b"y")])


def test_fields_are_read_in_any_case() -> None:
    found = fields()
    assert found.get("Accept") == "x"
    assert found.all("ACCEPT") == ["x", "y"]
    assert found.get("x-none") == "" and found.get("x-none", "-") == "-" and found.all("x-none") == []
    assert "Cookie" in found and "x-none" not in found
    assert "\u20ac" not in found and found.get("\u20ac") == ""
    assert list(found) == [("host", "a"), ("accept", "x"), ("cookie", "a=1"), ("accept", "y")]
    assert len(found) == 4


def test_fields_are_changed_without_touching_what_they_came_from() -> None:
    pairs: Headers = [(b"accept", b"x"), (b"accept", b"y")]
    found = HeaderFields(pairs)
    found.add("X-One", "1")
    found.add(b"x-one", b"2")
    assert found.all("x-one") == ["1", "2"]
    found.set("Accept", " z ")
    assert found.all("accept") == ["z"]
    found.remove("X-ONE")
    found.remove("x-none")
    assert found.pairs == [(b"accept", b"z")]
    assert pairs == [(b"accept", b"x"), (b"accept", b"y")]


@pytest.mark.parametrize("name", OWN_HEADERS)
def test_headers_that_frame_and_route_a_message_are_out_of_reach(name: str) -> None:
    found = HeaderFields([(name.encode(), b"1")])
    for change in CHANGES:
        with pytest.raises(ValueError, match="the balancer's own"):
            change(found, name, "2")
    assert found.get(name) == "1"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "a\nb", "\u20ac", "a\0", " a", "a\t", "(a)", "\xe9"])
def test_name_that_is_none_is_refused(name: str) -> None:
    for change in CHANGES:
        with pytest.raises(ValueError, match="not the name of a field"):
            change(fields(), name, "2")


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\n", "\r", "\0", "\x7f", "\x1b", b"\n"])
def test_value_that_would_break_out_of_its_line_is_refused(value: str) -> None:
    for change in (HeaderFields.add, HeaderFields.set):
        with pytest.raises(ValueError, match="not the value of a field"):
            change(fields(), "x", value)


def test_value_beyond_latin_1_is_refused() -> None:
    with pytest.raises(ValueError, match="latin-1"):
        fields().add("x", "\u20ac")


@given(st.lists(st.tuples(st.one_of(st.text(), st.binary()), st.one_of(st.text(), st.binary()))))
def test_responses_of_hooks_make_one_line_a_header(said: list[tuple[str | bytes, str | bytes]]) -> None:
    found = fields()
    before = len(found)
    added = 0
    for name, value in said:
        try:
            found.add(name, value)
            added += 1
        except ValueError:
            pass
    head = request_head("GET", b"/", as_lines(found.pairs))
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == 2 + before + added


def test_request_is_shown_as_the_client_sent_it() -> None:
    request = Request(
        "GET", b"/caf\xe9?x", [(b"host", b"a")], "192.0.2.1", "https", upgrade=b"WebSocket", host=b"a"
    )  # fmt: skip
    seen = HookRequest(request, b"one")
    assert seen.id == "one"
    with pytest.raises(ValueError, match="the balancer's own"):
        seen.headers.set("X-Request-ID", "two")
    assert (seen.method, seen.target, seen.host, seen.client) == ("GET", "/caf\xe9?x", "a", "192.0.2.1")
    assert (seen.scheme, seen.upgrade, list(seen.headers)) == ("https", "websocket", [("host", "a")])
    for name in ("method", "fields", "target"):
        with pytest.raises(AttributeError):
            setattr(seen, name, "x")


def test_fields_that_are_frozen_are_read_and_not_changed() -> None:
    found = fields()
    found.freeze()
    for change in CHANGES:
        with pytest.raises(ValueError, match="only on_request may change the fields of a request"):
            change(found, "accept", "2")
    assert found.all("accept") == ["x", "y"]


def test_status_of_a_response_is_what_it_is() -> None:
    response = HookResponse(204, [], Address("10.0.0.1", 80))
    assert (response.status, str(response.member)) == (204, "10.0.0.1:80")
    response.headers.set("X-Request-ID", "one")
    with pytest.raises(AttributeError):
        response.status = 200  # type: ignore[misc]
