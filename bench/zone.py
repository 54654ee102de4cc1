"""The DNS server of a run, a process of its own: ``python -m bench.zone PORT NAME=FIRST+COUNT …``.

It is the one of ``balancer demo``, which answers as Docker's does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys

from balancer.demo.dns_server import DnsServer, Zone


async def serve(port: int, names: dict[str, list[str]]) -> None:
    zone = Zone()
    for name, addresses in names.items():
        zone.records[name] = [("A", address) for address in addresses]
    async with DnsServer(zone, port=port):
        await asyncio.Event().wait()


def addresses(first: str, count: int) -> list[str]:
    """``count`` consecutive addresses."""
    start = ipaddress.ip_address(first)
    return [str(start + number) for number in range(count)]


def main() -> None:
    names = {}
    for argument in sys.argv[2:]:
        name, _, members = argument.partition("=")
        first, _, count = members.partition("+")
        names[name] = addresses(first, int(count))
    asyncio.run(serve(int(sys.argv[1]), names))


if __name__ == "__main__":
    main()
