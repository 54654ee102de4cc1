"""Asks one name server one question: over UDP with EDNS, over TCP where the answer would not fit.

dnspython writes the query. Answers are read off the wire here: dnspython makes several objects of each
record, 22 µs apiece; at a thousand members, once a second, that alone is 2 % of a core.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import dns.message
import dns.name
import dns.rdatatype

from balancer.types import Address

# Docker's DNS cuts an answer to the size asked for: without EDNS to 512 bytes, some 24 addresses.
EDNS_PAYLOAD = 4096
# What two bytes of length can say (RFC 1035 section 4.2.2).
MAX_MESSAGE = 65535
# Limit for one query, in seconds: Docker forwards unknown names and may take that long to give up.
QUERY_TIMEOUT = 5.0

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _TRUNCATED, _RCODE = 0x8000, 0x0200, 0x000F
_SERVICE = struct.Struct("!HHH")
ADDRESS_SIZES: dict[int, int] = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 16}


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

    def packed(self, record: dns.rdatatype.RdataType) -> list[bytes]:
        """The addresses in the answer section's A or AAAA records, whatever name they belong to. Raises OSError."""
        wire, size = self.wire, ADDRESS_SIZES[record]
        try:
            answers, at = self._sections()
            found = _uniform(wire, at, answers[0], record, size)
            if found is None:
                records = _records(wire, at, answers[0])
                found = [wire[start : start + length] for _, kind, start, length in records if kind == record]
        except (struct.error, IndexError, ValueError) as error:
            raise OSError(f"malformed answer: {error}") from error
        if any(len(it) != size for it in found):
            raise OSError("malformed answer: an address of another length")
        return found

    def services(self) -> tuple[list[Service], dict[bytes, tuple[str, ...]]]:
        """The SRV records of the answer section, and the addresses of their targets in the additional one.

        Raises OSError.
        """
        wire = self.wire
        names: dict[int, bytes] = {}
        found: list[Service] = []
        given: dict[bytes, list[str]] = {}
        try:
            counts, at = self._sections()
            last = counts[0] + counts[1]
            for number, (name, kind, start, length) in enumerate(_records(wire, at, sum(counts))):
                if number < counts[0] and kind == dns.rdatatype.SRV:
                    priority, weight, port = _SERVICE.unpack_from(wire, start)
                    found.append(Service(priority, weight, port, _name(wire, start + _SERVICE.size, names)))
                elif number >= last and ADDRESS_SIZES.get(kind) == length:
                    given.setdefault(_name(wire, name, names), []).append(unpack(wire[start : start + length]))
        except (struct.error, IndexError, ValueError) as error:
            raise OSError(f"malformed answer: {error}") from error
        targets = {it.target for it in found}
        return found, {name: tuple(sorted(hosts)) for name, hosts in given.items() if name in targets}

    def _sections(self) -> tuple[tuple[int, int, int], int]:
        """How many records answer, authority and additional section have, and where the first one begins."""
        _, _, questions, *counts = _HEADER.unpack_from(self.wire)
        at = _HEADER.size
        for _ in range(questions):
            at = _after_name(self.wire, at) + 4
        return (counts[0], counts[1], counts[2]), at


class Service(NamedTuple):
    """An SRV record (RFC 2782). ``target``: the name as on the wire, in lower case, without compression."""

    priority: int
    weight: int
    port: int
    target: bytes


def unpack(address: bytes) -> str:
    """The text of an address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _records(wire: bytes, at: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Where the name of each record begins, its type, where its data begin, and their length."""
    for _ in range(count):
        name, at = at, _after_name(wire, at)
        kind, _, _, length = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        yield name, kind, at, length
        at += length
        if at > len(wire):
            raise IndexError("a record goes beyond the end")


def _uniform(wire: bytes, at: int, count: int, record: int, size: int) -> list[bytes] | None:
    """The data of all records, if each has a name of two bytes (a pointer), this type and data of this size.

    So have the records of an answer with thousands, unless there is something special about it.
    """
    step = 12 + size
    end = at + step * count
    if end > len(wire) or not count:
        return None
    alike = wire[at + 2 : at + 4] == record.to_bytes(2) and wire[at + 10 : at + 12] == size.to_bytes(2)
    if not alike or wire[at] < 0xC0:
        return None
    for place in (0, 1, 2, 3, 10, 11):
        if wire[at + place : end : step] != wire[at + place : at + place + 1] * count:
            return None
    return [wire[start : start + size] for start in range(at + 12, end, step)]


def _after_name(wire: bytes, at: int) -> int:
    """Where a name that begins at ``at`` ends (RFC 1035 section 4.1.4)."""
    while length := wire[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


def _name(wire: bytes, at: int, known: dict[int, bytes]) -> bytes:
    """The name that begins at ``at``, in lower case and whole. ``known``: those that were read before, by their place.

    Raises ValueError or IndexError where it is none.
    """
    begin, pieces, size = at, [], 0
    while begin not in known:
        length = wire[at]
        if length >= 0xC0:
            place = (length & 0x3F) << 8 | wire[at + 1]
            if place >= at:
                raise ValueError("a name points at what comes after it")  # So that it has an end.
            if place in known:
                pieces.append(known[place])
                known[begin] = b"".join(pieces)
            at = place
        elif length >= 0x40:
            raise ValueError("a label of an unknown kind")
        else:
            pieces.append(wire[at : at + 1 + length].lower())
            at += 1 + length
            size += 1 + length
            if size > 255:
                raise ValueError("a name of more than 255 bytes")
            if not length:
                known[begin] = b"".join(pieces)
    return known[begin]


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
        wire = await _over_tcp(server, query)
        if int.from_bytes(wire[2:4]) & _TRUNCATED:
            # Who is missing from it would be taken for gone.
            raise OSError(f"the answer is cut short even over TCP, where {MAX_MESSAGE} bytes are the limit")
        return Reply(wire, over_tcp=True)


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
