"""The reader of DNS answers. A case is an answer as it is on the wire, to a question about ``apps.``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from balancer.discovery.container_names import display_name
from balancer.discovery.dns_message import ADDRESS_SIZES, HOPS_MAX, NAME_MAX, Reply, Service, answers, is_truncated
from tests.fuzz.play import Play, bounded

# As far as pointers reach (RFC 1035 section 4.1.4).
SIZE_MAX = 16_384
# Seconds of CPU time for each byte: a record of twelve bytes takes dnspython twenty microseconds.
SECONDS_PER_BYTE = 40e-6

QUERIES = [dns.message.make_query("apps.", record, use_edns=False, id=1).to_wire() for record in ("A", "AAAA", "SRV")]


def player() -> Play:
    return run


def run(data: bytes) -> list[str]:
    """Read an answer as each record that is asked for; everything that must not have happened, in words."""
    data = data[:SIZE_MAX]
    found: list[str] = []
    reply = Reply(data, over_tcp=True)
    with bounded(found, data.__len__, SECONDS_PER_BYTE):
        for query in QUERIES:
            if answers(data, query) and len(data) < len(query):
                found.append("an answer is shorter than its question")
        is_truncated(data)
        if not 0 <= reply.rcode < 16:
            found.append(f"a response code that there is not: {reply.rcode}")
        packed = {record: _read(reply.packed, dns.rdatatype.RdataType(record)) for record in ADDRESS_SIZES}
        services = _read(reply.services)
    for record, addresses in packed.items():
        if any(len(it) != ADDRESS_SIZES[record] for it in addresses or ()):
            found.append(f"an address of another length; {addresses}")
    if services:
        found += _faults(*services)
    with bounded(found, data.__len__, SECONDS_PER_BYTE):
        message = _message(reply)
    if message:
        found += _differences(message, packed, services)
    return found


def _read(read: Callable[..., Any], *arguments: object) -> Any:
    """What is read; None where it is refused."""
    try:
        return read(*arguments)
    except OSError:
        return None


def _message(reply: Reply) -> dns.message.Message | None:
    """The answer as dnspython reads it, which the names of containers are looked for in."""
    try:
        message = reply.message()
    except (dns.exception.DNSException, OSError):
        return None
    for rrset in message.answer:
        if rrset.rdtype == dns.rdatatype.PTR:
            display_name(rrset[0].target)
    return message


def _faults(services: Sequence[Service], glue: Mapping[bytes, Sequence[str]]) -> list[str]:
    found: list[str] = []
    for name in {*glue, *(it.target for it in services)}:
        try:
            if dns.name.from_wire(name, 0)[1] != len(name):
                found.append(f"a target goes on behind its end; {name!r}")
        except (dns.exception.DNSException, ValueError) as error:
            found.append(f"a target is no name: {type(error).__name__}; {name!r}")
        if len(name) > NAME_MAX or name != name.lower():
            found.append(f"a target is too long, or not in lower case; {name!r}")
    return found


def _differences(message: dns.message.Message, packed: Mapping[int, Any], services: Any) -> list[str]:
    """What dnspython reads otherwise, of what it reads at all. It drops records that are the same."""
    if any(it.rdclass != dns.rdataclass.IN for it in message.answer):
        return []
    found = []
    for record, ours in packed.items():
        theirs = {it.to_wire() for rrset in message.answer if rrset.rdtype == record for it in rrset}
        if ours is None and not _long_chains(message):
            found.append("addresses are refused that dnspython reads")
        elif ours is not None and set(ours) != theirs:
            found.append(f"other addresses than those of dnspython: {ours} for {theirs}")
    targets = {
        (it.priority, it.weight, it.port, it.target.canonicalize().to_wire())
        for rrset in message.answer if rrset.rdtype == dns.rdatatype.SRV for it in rrset
    }  # fmt: skip
    if services is not None and set(services[0]) != targets:
        found.append(f"other services than those of dnspython: {services[0]} for {targets}")
    return found


def _long_chains(message: dns.message.Message) -> bool:
    return message.wire is not None and message.wire.count(b"\xc0") > HOPS_MAX


def _answer(record: str, lines: Sequence[str], additional: Sequence[str] = ()) -> bytes:
    query = dns.message.make_query("apps.", record, use_edns=False, id=1)
    response = dns.message.make_response(query)
    for section, texts in ((response.answer, lines), (response.additional, additional)):
        for line in texts:
            name, kind, data = line.split(" ", 2)
            section.append(dns.rrset.from_text(name, 600, "IN", kind, data))
    return response.to_wire(max_size=65535)


def seeds() -> Iterator[bytes]:
    yield _answer("A", [])
    yield _answer("A", ["apps. A 10.0.0.1", "apps. A 10.0.0.2", "apps. A 10.0.0.2"])
    yield _answer("A", ["apps. CNAME x.y.", "x.y. A 10.0.0.1", 'x.y. TXT "text"', "x.y. AAAA fd00::1"])
    yield _answer("AAAA", [f"apps. AAAA fd00::{number:x}" for number in range(20)])
    services = [f"apps. SRV {number} 1 80 w{number}.Apps." for number in range(5)]
    yield _answer("SRV", services, [f"w{number}.apps. A 10.0.0.{number}" for number in range(5)])
    yield _answer("SRV", services[:1], ["w0.apps. AAAA fd00::1", "other. A 10.0.0.9"])
    yield _answer("A", ["9.0.0.10.in-addr.arpa. PTR shop-worker-1.shop_backend.", "x. PTR y."])
    for wire in (_answer("A", ["apps. A 10.0.0.1"]), _answer("SRV", services)):
        yield wire[:2] + b"\x83\x83" + wire[4:]
        yield wire[: len(wire) // 2]
    # Compressed targets, and chains of pointers.
    head = struct.pack("!6H", 1, 0x8180, 1, 2, 0, 1) + b"\x04apps\0\0\x21\0\1"
    record = b"\xc0\x0c\0\x21\0\1\0\0\2\x58"
    chain = b"".join(struct.pack("!H", 0xC000 | len(head) + 12 + max(0, 2 * at - 2)) for at in range(20))
    yield head + (record + b"\0\x0b\0\0\0\0\0\x50\2w1\xc0\x0c") * 2 + b"\2w1\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x0a\0\0\1"
    yield (
        head
        + b"\0\xff\0\0\1\0\0\0\0"
        + struct.pack("!H", len(chain))
        + chain
        + record
        + b"\0\x08\0\0\0\0\0\x50"
        + chain[-2:]
    )
    long = b"\x3f" + b"a" * 63
    yield head + (record + struct.pack("!4H", 6 + 64 * 3 + 2, 0, 0, 80) + long * 3 + b"\xc0\x0c") * 2
