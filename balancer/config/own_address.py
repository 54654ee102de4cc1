"""The address of this machine that a listener's setting means, where it has a host name or a network.

A container on several networks has an address on each, given by the engine at its start. A setting can only name the
network, or a name that means this container there.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from balancer.types import Address


def is_own(host: str) -> bool:
    """Whether an IP address belongs to this machine: the kernel sends to it from itself. No packet is sent."""
    return _source(host) == host


def own_address(address: Address) -> Address:
    """Return this machine's address for a host name, or for a network in CIDR notation; an IP address as it is.

    Asks DNS for a host name. IPv4 comes first, because Docker's published ports lead to it. Raises OSError with the
    reason if no address of this machine is among those of the name, or in the network.
    """
    host, port = address
    if "/" in host:
        network = ipaddress.ip_network(host)
        source = _source(str(next(iter(network.hosts()))))
        if source and ipaddress.ip_address(source) in network:
            return Address(source, port)
        raise OSError(errno.EADDRNOTAVAIL, "this machine has no address in that network")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return Address(_of_name(host), port)
    return address


def _of_name(host: str) -> str:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [str(place[0]) for _, _, _, _, place in sorted(found, key=lambda it: it[0] != socket.AF_INET)]
    for candidate in addresses:
        # Debian gives a host 127.0.1.1, to which the kernel sends from 127.0.0.1.
        if is_own(candidate) or ipaddress.ip_address(candidate).is_loopback:
            return candidate
    raise OSError(errno.EADDRNOTAVAIL, f"{', '.join(addresses)} is no address of this machine")


def _source(host: str) -> str | None:
    """Return the address from which this machine sends to ``host``; None if there is no way to it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))  # any port: a connected UDP socket has sent nothing
            source: str = sock.getsockname()[0]
    except OSError:
        return None
    return source
