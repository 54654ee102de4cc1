"""A balancer that takes PROXY headers, and one such header."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from tests.support.wire import Member, balance

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"


LOOPBACK = (ip_network("127.0.0.0/8"),)


def announced(*members: Member, **settings: Any) -> Any:
    return balance(*members, proxy_protocol=True, **{"trusted_proxies": LOOPBACK} | settings)
