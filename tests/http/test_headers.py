from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.http.headers import HOP_BY_HOP, Headers, announces_close, has_body, host, response_headers
from balancer.http.request_headers import RequestHeaders

HOST = (b"host", b"shop.example")
FORWARDING = {b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}

trusting = RequestHeaders((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))

end_to_end = st.lists(
    st.tuples(st.sampled_from([b"accept", b"cookie", b"x-a", b"x-b", b"content-length"]), st.binary(max_size=4))
)
hop_by_hop = st.lists(st.tuples(st.sampled_from(sorted(HOP_BY_HOP - {b"connection"})), st.just(b"x")))


def sent(headers: Headers, client: str = "192.0.2.1", scheme: str = "http") -> dict[bytes, list[bytes]]:
    """What a member gets, as values by name."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in trusting(headers, client, scheme, host(headers)):
        values.setdefault(name, []).append(value)
    return values


@given(kept=end_to_end, dropped=hop_by_hop, data=st.data())
def test_end_to_end_fields_cross_in_order_with_duplicates_and_hop_by_hop_ones_do_not(
    kept: Headers, dropped: Headers, data: st.DataObject
) -> None:
    mixed = list(kept)
    for pair in dropped:
        mixed.insert(data.draw(st.integers(0, len(mixed))), pair)
    assert response_headers(mixed) == kept
    assert [it for it in trusting(mixed, "192.0.2.1", "http", b"") if it[0] not in FORWARDING] == kept


@pytest.mark.parametrize("value", [b"x-hop", b"close, X-Hop", b"X-HOP ,keep-alive", b", x-hop,"])
def test_fields_that_connection_names_do_not_cross(value: bytes) -> None:
    headers = [(b"x-hop", b"1"), (b"connection", value), (b"x-end", b"2"), (b"x-hop", b"3")]
    assert response_headers(headers) == [(b"x-end", b"2")]
    assert b"x-hop" not in sent(headers)


def test_fields_that_any_of_many_connection_fields_names_do_not_cross() -> None:
    count = 2000
    named = [(b"x-%d" % number, b"1") for number in range(count)]
    options = [(b"connection", b"x-%d" % number) for number in range(count)]
    assert response_headers([*options, (b"x-end", b"2"), *named]) == [(b"x-end", b"2")]
    assert response_headers([(b"connection", b", ".join(name for name, _ in named)), *named]) == []
    assert not sent([*options[:32], *named[:32]]).keys() & dict(named).keys()


@pytest.mark.parametrize("name", [b"host", b"content-length", b"content-type", b"content-encoding"])
def test_connection_cannot_take_away_what_the_message_needs(name: bytes) -> None:
    headers = [(b"connection", b"close, " + name), (name, b"1")]
    assert response_headers(headers) == [(name, b"1")]
    assert sent(headers)[name] == [b"1"]


def test_connection_cannot_take_away_the_forwarding_fields() -> None:
    assert sent([HOST, (b"connection", b"x-forwarded-for, forwarded")]).keys() >= FORWARDING


def test_member_learns_who_the_client_is_and_what_it_asked_for() -> None:
    assert sent([HOST], "192.0.2.1", "https") == {
        b"host": [b"shop.example"],
        b"x-forwarded-for": [b"192.0.2.1"],
        b"x-forwarded-proto": [b"https"],
        b"x-forwarded-host": [b"shop.example"],
        b"forwarded": [b'for=192.0.2.1;host="shop.example";proto=https'],
    }


@pytest.mark.parametrize(
    ("client", "host", "element"),
    [
        ("2001:db8::1", b"[::1]:8080", b'for="[2001:db8::1]";host="[::1]:8080";proto=http'),
        ("", b"a", b'for=unknown;host="a";proto=http'),
        ("192.0.2.1", b'a";for="evil', b"for=192.0.2.1;proto=http"),
        ("192.0.2.1", b"a, for=evil", b"for=192.0.2.1;proto=http"),
    ],
)
def test_forwarded_element_is_well_formed_whatever_the_host(client: str, host: bytes, element: bytes) -> None:
    assert sent([(b"host", host)], client)[b"forwarded"] == [element]


@pytest.mark.parametrize("client", ["192.0.2.1", "::ffff:192.0.2.1", "", "not an address"])
def test_forwarding_headers_of_a_stranger_are_replaced(client: str) -> None:
    claims = [(name, b"claim") for name in (*sorted(FORWARDING), b"x-forwarded-port")]
    assert sent([HOST, *claims], client) == sent([HOST], client)


@pytest.mark.parametrize("client", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"])
def test_forwarding_headers_of_a_trusted_proxy_are_kept_and_extended(client: str) -> None:
    said = [
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-for", b"192.0.2.2"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-port", b"443"),
        (b"forwarded", b"for=192.0.2.1"),
    ]
    values = sent([HOST, *said], client)
    assert values[b"x-forwarded-for"] == [b"192.0.2.1, 192.0.2.2, " + client.encode()]
    assert values[b"x-forwarded-proto"] == [b"https"]
    assert values[b"x-forwarded-port"] == [b"443"]
    assert values[b"x-forwarded-host"] == [b"shop.example"]
    assert values[b"forwarded"][0].startswith(b"for=192.0.2.1, for=")


def test_proxy_is_not_trusted_unless_a_network_is_named() -> None:
    assert not RequestHeaders().trusts("127.0.0.1")


def test_body_of_unknown_length_goes_on_in_chunks() -> None:
    headers = trusting([HOST, (b"transfer-encoding", b"gzip")], "", "http", b"", chunked=True)
    assert [value for name, value in headers if name == b"transfer-encoding"] == [b"chunked"]


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ([(b"connection", b"close")], True),
        ([(b"connection", b"x-a, Close")], True),
        ([(b"connection", b"x-a"), (b"connection", b"close")], True),
        ([(b"connection", b"keep-alive")], False),
        ([(b"x-connection", b"close")], False),
        ([], False),
    ],
)
def test_announced_close_is_seen(headers: Headers, closes: bool) -> None:
    assert announces_close(headers) is closes


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"content-length", b"5")], True),
        ([(b"transfer-encoding", b"chunked")], True),
        ([(b"content-length", b"0")], False),
        ([(b"content-type", b"text/plain")], False),
    ],
)
def test_request_has_a_body_if_its_framing_says_so(headers: Headers, body: bool) -> None:
    assert has_body(headers) is body
