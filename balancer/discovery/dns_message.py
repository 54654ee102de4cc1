"""A DNS answer, parsed (RFC 1035 section 4, RFC 2782). No I/O.

dnspython makes several objects of each record, 22 µs apiece. At a thousand members, once a second, that alone is 2 % of
a core. So the records that name members are read here, and only rare ones go to dnspython.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import dns.message
import dns.rdatatype

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _TRUNCATED, _RCODE = 0x8000, 0x0200, 0x000F
_SERVICE = struct.Struct("!HHH")
# Pointers of one name. Name servers write one; thousands of records with chains of them would stop the event loop.
HOPS_MAX = 16
# Bytes of a name (RFC 1035 section 2.3.4). Names that begin with one another would grow with their number.
NAME_MAX = 255
_TOO_LONG = f"a name of more than {NAME_MAX} bytes"
ADDRESS_SIZES: dict[int, int] = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 16}


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer on the wire. ``over_tcp``: it took TCP to get it."""

    wire: bytes
    over_tcp: bool

    @property
    def rcode(self) -> int:
        """Response code (RFC 1035 section 4.1.1)."""
        return int.from_bytes(self.wire[2:4]) & _RCODE

    def message(self) -> dns.message.Message:
        """Return the answer as dnspython parses it. Raises DNSException if it is malformed."""
        return dns.message.from_wire(self.wire)

    def packed(self, record: dns.rdatatype.RdataType) -> list[bytes]:
        """Return the addresses in A or AAAA records of the answer section, whatever their names. Raises OSError."""
        wire, size = self.wire, ADDRESS_SIZES[record]
        try:
            answers, at = self._sections()
            found = _uniform(wire, at, answers[0], record, size)
            if found is None:
                records = _records(wire, at, answers[0])
                found = [wire[start : start + length] for _, kind, start, length in records if kind == record]
        except (struct.error, IndexError, ValueError) as error:
            raise OSError(f"malformed answer: {error}") from error
        if any(len(data) != size for data in found):
            raise OSError("malformed answer: an address of another length")
        return found

    def services(self) -> tuple[list[Service], dict[bytes, tuple[str, ...]]]:
        """Return the SRV records of the answer section, and the addresses of their targets in the additional one.

        Raises OSError.
        """
        wire = self.wire
        names: dict[int, bytes] = {}
        found: list[Service] = []
        glue: dict[bytes, list[str]] = {}
        try:
            counts, at = self._sections()
            last = counts[0] + counts[1]
            for number, (name, kind, start, length) in enumerate(_records(wire, at, sum(counts))):
                if number < counts[0] and kind == dns.rdatatype.SRV:
                    priority, weight, port = _SERVICE.unpack_from(wire, start)
                    found.append(Service(priority, weight, port, _name(wire, start + _SERVICE.size, names)))
                elif number >= last and ADDRESS_SIZES.get(kind) == length:
                    glue.setdefault(_name(wire, name, names), []).append(unpack(wire[start : start + length]))
        except (struct.error, IndexError, ValueError) as error:
            raise OSError(f"malformed answer: {error}") from error
        targets = {service.target for service in found}
        return found, {name: tuple(sorted(hosts)) for name, hosts in glue.items() if name in targets}

    def _sections(self) -> tuple[tuple[int, int, int], int]:
        """Return the numbers of answer, authority and additional records, and where the first one begins."""
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
    """Return the text of an address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _records(wire: bytes, at: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield where the name of each record begins, its type, where its data begin, and their length."""
    for _ in range(count):
        name, at = at, _after_name(wire, at)
        kind, _, _, length = _RECORD.unpack_from(wire, at)
        at += _RECORD.size
        yield name, kind, at, length
        at += length
        if at > len(wire):
            raise IndexError("a record goes beyond the end")


def _uniform(wire: bytes, at: int, count: int, record: int, size: int) -> list[bytes] | None:
    """Return the data of all records, if each has a name of two bytes (a pointer), this type and data of this size.

    The records of an answer with thousands do, as a rule.
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
    """Return where a name that begins at ``at`` ends (RFC 1035 section 4.1.4)."""
    while length := wire[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


def _name(wire: bytes, at: int, known: dict[int, bytes]) -> bytes:
    """Return the name that begins at ``at``, in lower case and whole. ``known``: names read before, by their place.

    Raises ValueError or IndexError where there is none.
    """
    begin, pieces, size, hops = at, [], 0, 0
    while begin not in known:
        length = wire[at]
        if length >= 0xC0:
            hops += 1
            if hops > HOPS_MAX:
                raise ValueError(f"a name of more than {HOPS_MAX} pointers")
            place = (length & 0x3F) << 8 | wire[at + 1]
            if place >= at:
                raise ValueError("a name points at what comes after it")  # So that it has an end.
            if place in known:
                pieces.append(known[place])
                if size + len(known[place]) > NAME_MAX:
                    raise ValueError(_TOO_LONG)
                known[begin] = b"".join(pieces)
            at = place
        elif length >= 0x40:
            raise ValueError("a label of an unknown kind")
        else:
            pieces.append(wire[at : at + 1 + length].lower())
            at += 1 + length
            size += 1 + length
            if size > NAME_MAX:
                raise ValueError(_TOO_LONG)
            if not length:
                known[begin] = b"".join(pieces)
    return known[begin]


def is_truncated(wire: bytes) -> bool:
    """Whether the answer is cut short (TC, RFC 1035 section 4.1.1)."""
    return bool(int.from_bytes(wire[2:4]) & _TRUNCATED)


def answers(wire: bytes, query: bytes) -> bool:
    """Whether this is the response to the query: same number, same question (RFC 5452 section 9.1)."""
    question_end = _after_name(query, _HEADER.size) + 4
    return (
        len(wire) >= _HEADER.size
        and wire[:2] == query[:2]
        and bool(int.from_bytes(wire[2:4]) & _RESPONSE)
        and wire[_HEADER.size : question_end].lower() == query[_HEADER.size : question_end].lower()
    )
