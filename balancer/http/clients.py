"""Which addresses are one client, wherever clients are counted or limited. No I/O.

Rules:
* An IPv4 address is a client, also where it is mapped to IPv6 (RFC 4291 section 2.5.5.2).
* IPv6 addresses with the same prefix are one. A site gets a /64 at least (RFC 6177), and each of its machines has any
  address in it.
* All peers without an address are one client: those of a Unix socket without a PROXY header, and this program itself.
* A proxy may name a port beside the address, which does not count. Text that is no address is a client of its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from balancer.http.value_cache import cached

# An address with a port: 192.0.2.7:4711 or [2001:db8::7]:4711. Brackets alone count as well.
_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]+|\[(?P<v6>[0-9A-Fa-f:.]+)\](:[0-9]+)?")
# Characters of a text that is no address.
_TEXT_MAX = 64


def client_key(address: str, prefix_v6: int) -> str:
    """Return the text that the addresses of one client share.

    ``address``: text of an IP address, "" where there is none. ``prefix_v6``: bits of IPv6 addresses that count.
    """
    if match := _WITH_PORT.fullmatch(address):
        address = match["v4"] or match["v6"]
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:_TEXT_MAX]
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), prefix_v6), strict=False))


def client_keys(prefix_v6: int) -> Callable[[str], str]:
    """Return ``client_key`` for one prefix, with a bounded cache."""
    return cached(1024)(lambda address: client_key(address, prefix_v6))
