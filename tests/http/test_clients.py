"""Which addresses count as one client."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.http.clients import client_key, client_keys


@pytest.mark.parametrize(
    ("prefix", "one", "other", "same"),
    [
        (64, "2001:db8:0:1::7", "2001:db8:0:1:ffff::1", True),
        (64, "2001:db8:0:1::7", "2001:db8:0:2::7", False),
        (56, "2001:db8:0:100::7", "2001:db8:0:1ff::7", True),
        (128, "2001:db8::7", "2001:db8::8", False),
        (1, "2001:db8::7", "7fff::", True),
        (64, "2001:DB8:0::7", "2001:db8::7", True),
        (64, "fe80::1%eth0", "fe80::2%eth0", True),
        (64, "192.0.2.7", "192.0.2.8", False),
        (1, "192.0.2.7", "192.0.2.8", False),
        (1, "::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        (64, "::ffff:192.0.2.7", "192.0.2.7", True),
        (64, "::ffff:c000:207", "192.0.2.7", True),
        (64, "192.0.2.7:4711", "192.0.2.7:4712", True),
        (64, "[2001:db8::7]:4711", "2001:db8::8", True),
        (64, "[2001:db8::7]", "2001:db8::8", True),
        (64, "", "", True),
        (64, "", "unknown", False),
        (64, "unknown", "192.0.2.7", False),
    ],
)
def test_addresses_are_one_client_by_their_prefix(prefix: int, one: str, other: str, same: bool) -> None:
    keys = client_keys(prefix)
    assert (keys(one) == keys(other)) is same
    assert (keys(one), keys(other)) == (client_key(one, prefix), client_key(other, prefix))


@given(st.integers(1, 128), st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_ipv6_addresses_are_one_client_just_if_they_share_the_bits(
    prefix: int, one: IPv6Address, other: IPv6Address
) -> None:
    if one.ipv4_mapped or other.ipv4_mapped:
        return
    same = int(one) >> (128 - prefix) == int(other) >> (128 - prefix)
    assert (client_key(str(one), prefix) == client_key(str(other), prefix)) is same


@given(st.integers(1, 128), st.ip_addresses(v=4))
def test_ipv4_address_is_its_own_key(prefix: int, address: IPv4Address) -> None:
    assert client_key(str(address), prefix) == str(address)
    assert client_key(f"::ffff:{address}", prefix) == str(address)


@given(st.text())
def test_any_text_has_a_short_key(text: str) -> None:
    assert len(client_key(text, 64)) <= 64
