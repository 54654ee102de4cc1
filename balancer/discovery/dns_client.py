"""Sends one question to one name server: over UDP with EDNS, over TCP where the answer would not fit.

``balancer.discovery.dns_message`` parses the answer.
"""

from __future__ import annotations

import asyncio

import dns.message
import dns.name

from balancer.discovery.dns_message import Reply, answers, is_truncated
from balancer.loop_time import Limit
from balancer.types import Address

# Docker's DNS cuts an answer to the size in the query: without EDNS to 512 bytes, some 24 addresses.
EDNS_PAYLOAD = 4096
# Limit of a length in two bytes (RFC 1035 section 4.2.2).
MAX_MESSAGE = 65535
# Seconds for one query: Docker forwards unknown names and may take that long to give up.
QUERY_TIMEOUT = 5.0


async def ask(server: Address, name: dns.name.Name, record: str, by_tcp: bool = False) -> Reply:
    """Send a query, and return the server's reply. ``by_tcp``: do not try UDP first.

    Raises TimeoutError after QUERY_TIMEOUT seconds, OSError if the server cannot be reached or answers nonsense.
    """
    query = dns.message.make_query(name, record, use_edns=0, payload=EDNS_PAYLOAD).to_wire()
    async with Limit(QUERY_TIMEOUT):
        if not by_tcp:
            wire = await _over_udp(server, query)
            if not is_truncated(wire):
                return Reply(wire, over_tcp=False)
        wire = await _over_tcp(server, query)
        if is_truncated(wire):
            # A member that is missing from it would count as gone.
            raise OSError(f"the answer is cut short even over TCP, where {MAX_MESSAGE} bytes are the limit")
        return Reply(wire, over_tcp=True)


class _Datagrams(asyncio.DatagramProtocol):
    """The datagrams of one query. ``reply``: the first that answers it."""

    def __init__(self, query: bytes) -> None:
        self._query = query
        self._transport: asyncio.BaseTransport | None = None
        self._closed = False
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._closed:
            transport.close()

    def close(self) -> None:
        """Close, now or as soon as there is a transport."""
        self._closed = True
        if self._transport:
            self._transport.close()

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        # Any other packet is stray or forged: go on waiting.
        if answers(data, self._query) and not self.reply.done():
            self.reply.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


async def _over_udp(server: Address, query: bytes) -> bytes:
    protocol = _Datagrams(query)
    try:
        # When cancelled, uvloop leaves the socket open here, and then waits for it for ever when the loop is closed.
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, remote_addr=server)
        transport.sendto(query)
        return await protocol.reply
    finally:
        protocol.close()


async def _over_tcp(server: Address, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(query).to_bytes(2) + query)
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
    except asyncio.IncompleteReadError as error:
        raise OSError("the name server closed the connection") from error
    finally:
        writer.close()
    if not answers(wire, query):
        raise OSError("the name server answered another question")
    return wire
