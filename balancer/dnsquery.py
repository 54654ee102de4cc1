"""Asks one name server one question: over UDP with EDNS, over TCP where the answer would not fit.

dnspython writes the query and reads the answer, with one exception: the addresses of A and AAAA
records are read off the wire here. dnspython makes several objects of each record, 22 µs apiece;
at a thousand members, once a second, that alone is 2 % of a core.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from balancer.settings import Address

# Docker's DNS cuts an answer to the size asked for: without EDNS to 512 bytes, some 24 addresses.
EDNS_PAYLOAD = 4096
# Limit for one query, in seconds: Docker forwards unknown names and may take that long to give up.
QUERY_TIMEOUT = 5.0

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _TRUNCATED, _RCODE = 0x8000, 0x0200, 0x000F
_FAMILIES = {dns.rdatatype.A: socket.AF_INET, dns.rdatatype.AAAA: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer on the wire, and whether it took TCP to get it."""

    wire: bytes
    over_tcp: bool

    @property
    def rcode(self) -> int:
        return int.from_bytes(self.wire[2:4]) & _RCODE

    def message(self) -> dns.message.Message:
        return dns.message.from_wire(self.wire)

    def addresses(self, record: dns.rdatatype.RdataType) -> list[str]:
        """The addresses in the answer section's A or AAAA records, whatever name they belong to. Raises OSError."""
        family = _FAMILIES[record]
        found = []
        wire = self.wire
        try:
            _, _, questions, answers, _, _ = _HEADER.unpack_from(wire)
            at = _HEADER.size
            for _ in range(questions):
                at = _after_name(wire, at) + 4
            for _ in range(answers):
                at = _after_name(wire, at)
                kind, _, _, size = _RECORD.unpack_from(wire, at)
                at += _RECORD.size + size
                if kind == record:
                    found.append(socket.inet_ntop(family, wire[at - size : at]))
        except (struct.error, IndexError, ValueError) as error:
            raise OSError(f"malformed answer: {error}") from error
        return found


def _after_name(wire: bytes, at: int) -> int:
    """Where a name that begins at ``at`` ends (RFC 1035 section 4.1.4)."""
    while length := wire[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


async def ask(server: Address, name: dns.name.Name, record: str, by_tcp: bool = False) -> Reply:
    """The server's reply. ``by_tcp``: do not try UDP first.

    Raises TimeoutError after QUERY_TIMEOUT seconds, OSError if the server cannot be asked or makes no sense.
    """
    query = dns.message.make_query(name, record, use_edns=0, payload=EDNS_PAYLOAD).to_wire()
    async with asyncio.timeout(QUERY_TIMEOUT):
        if not by_tcp:
            wire = await _over_udp(server, query)
            if not int.from_bytes(wire[2:4]) & _TRUNCATED:
                return Reply(wire, over_tcp=False)
        return Reply(await _over_tcp(server, query), over_tcp=True)


def _answers(wire: bytes, query: bytes) -> bool:
    """Whether this is the response to the query: same number, same question."""
    question_end = _after_name(query, _HEADER.size) + 4
    return (
        len(wire) >= _HEADER.size
        and wire[:2] == query[:2]
        and bool(int.from_bytes(wire[2:4]) & _RESPONSE)
        and wire[_HEADER.size : question_end].lower() == query[_HEADER.size : question_end].lower()
    )


class _Datagrams(asyncio.DatagramProtocol):
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
        """Also where the transport is yet to come: who waited for it has given up."""
        self._closed = True
        if self._transport:
            self._transport.close()

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        # Anything else is a stray or forged packet: go on waiting.
        if _answers(data, self._query) and not self.reply.done():
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
    if not _answers(wire, query):
        raise OSError("the name server answered another question")
    return wire
