"""Answers as they are on the wire, read here and by dnspython."""

from __future__ import annotations

import socket
import struct
from collections import defaultdict

import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.discovery.dns_message import HOPS_MAX, Reply, Service, unpack

A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
NAMES = ["apps.", "w1.apps.", "w2.apps.", "W1.Apps.", "db.other.example.", "x."]
names = st.sampled_from(NAMES)
ipv4 = st.integers(1, 2**32 - 1).map(lambda it: socket.inet_ntop(socket.AF_INET, struct.pack("!I", it)))
ipv6 = st.integers(1, 2**128 - 1).map(lambda it: socket.inet_ntop(socket.AF_INET6, it.to_bytes(16)))
records = st.one_of(
    st.tuples(names, st.just("A"), ipv4),
    st.tuples(names, st.just("AAAA"), ipv6),
    st.tuples(names, st.just("CNAME"), names),
    st.tuples(names, st.just("TXT"), st.just('"text"')),
    st.tuples(
        names, st.just("SRV"), st.tuples(*[st.integers(0, 65535)] * 3, names).map(lambda it: " ".join(map(str, it)))
    ),
)


def on_wire(name: str) -> bytes:
    wire = dns.name.from_text(name).to_wire()
    assert wire
    return wire


def message(
    record: str,
    answer: list[tuple[str, str, str]],
    additional: list[tuple[str, str, str]] = [],  # noqa: B006
) -> dns.message.Message:
    response = dns.message.make_response(dns.message.make_query("apps.", record, use_edns=0))
    response.answer += [dns.rrset.from_text(name, 600, "IN", kind, data) for name, kind, data in answer]
    response.additional += [dns.rrset.from_text(name, 600, "IN", kind, data) for name, kind, data in additional]
    return response


@given(st.lists(records, max_size=8))
def test_addresses_are_those_that_dnspython_finds(answer: list[tuple[str, str, str]]) -> None:
    reply = Reply(message("A", answer).to_wire(), over_tcp=True)
    for record in (A, AAAA):
        wanted = [data for _, kind, data in answer if kind == dns.rdatatype.to_text(record)]
        assert list(map(unpack, reply.packed(record))) == wanted


@pytest.mark.parametrize(("record", "first"), [("A", "10.0.0.1"), ("AAAA", "fd00::1")])
def test_short_way_for_many_addresses_finds_what_the_long_way_does(record: str, first: str) -> None:
    many = [("apps.", record, first)] * 50
    family = dns.rdatatype.from_text(record)
    assert len(Reply(message(record, many).to_wire(max_size=65535), True).packed(family)) == 50
    for odd in (("apps.", "TXT", '"one of another type"'), ("w1.", record, first)):
        for place in (0, 25, 50):
            answer = [*many[:place], odd, *many[place:]]
            assert len(Reply(message(record, answer).to_wire(max_size=65535), True).packed(family)) == 50 + (
                odd[1] == record
            )


@given(st.lists(records, max_size=8), st.lists(records, max_size=8))
def test_services_are_those_that_dnspython_finds(
    answer: list[tuple[str, str, str]], additional: list[tuple[str, str, str]]
) -> None:
    found, given_addresses = Reply(message("SRV", answer, additional).to_wire(), True).services()
    wanted = []
    for _, kind, data in answer:
        if kind == "SRV":
            priority, weight, port, target = data.split()
            wanted.append(Service(int(priority), int(weight), int(port), on_wire(target.lower())))
    assert found == wanted
    hosts: dict[bytes, list[str]] = defaultdict(list)
    for name, kind, data in additional:
        wire = on_wire(name.lower())
        if kind in ("A", "AAAA") and wire in {it.target for it in wanted}:
            hosts[wire].append(data)
    assert given_addresses == {name: tuple(sorted(them)) for name, them in hosts.items()}


HEADER = struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0) + b"\x04apps\0\0\x21\0\1"


def service(target: bytes) -> bytes:
    return HEADER + b"\xc0\x0c\0\x21\0\1\0\0\2\x58" + struct.pack("!4H", 6 + len(target), 0, 0, 80) + target


def test_compressed_targets_are_read_although_the_rfc_forbids_them() -> None:
    found, _ = Reply(service(b"\2w1\xc0\x0c"), True).services()
    assert found == [Service(0, 0, 80, b"\2w1\4apps\0")]


@pytest.mark.parametrize(
    "target",
    [
        b"\xc0\x2e",  # points at itself
        b"\xc0\x40",  # forward
        b"\3abc\xc0\x2e",  # a circle
        b"\x41a\0",  # a kind of label that there is not
        b"\3ab",  # goes beyond the end
        b"\xc0",
        (b"\x3f" + b"a" * 63) * 5 + b"\0",  # too long
    ],
)
def test_targets_that_are_no_names_are_refused(target: bytes) -> None:
    with pytest.raises(OSError, match="malformed answer"):
        Reply(service(target), True).services()


def chain(hops: int) -> bytes:
    """An answer whose SRV record has a target of that many pointers, in the data of a record before it."""
    begin = len(HEADER)
    data = begin + 12
    pointers = b"\xc0\x0c" + b"".join((0xC000 + data + 2 * at).to_bytes(2) for at in range(hops - 2))
    first = b"\xc0\x0c\0\x10\0\1\0\0\2\x58" + len(pointers).to_bytes(2) + pointers
    target = (0xC000 + data + 2 * (hops - 2)).to_bytes(2)
    second = b"\xc0\x0c\0\x21\0\1\0\0\2\x58" + struct.pack("!4H", 6 + len(target), 0, 0, 80) + target
    return HEADER[:6] + b"\0\2" + HEADER[8:] + first + second


def test_target_of_a_few_pointers_is_read_and_one_of_many_is_refused() -> None:
    found, _ = Reply(chain(HOPS_MAX), True).services()
    assert found == [Service(0, 0, 80, b"\4apps\0")]
    with pytest.raises(OSError, match=f"a name of more than {HOPS_MAX} pointers"):
        Reply(chain(HOPS_MAX + 1), True).services()


def test_target_that_is_too_long_by_the_name_it_points_at_is_refused() -> None:
    label, begin = b"\x3f" + b"a" * 63, len(HEADER)
    first = service(label * 3 + b"\xc0\x0c")[begin:]
    second = service(label * 3 + (0xC000 + begin + 18).to_bytes(2))[begin:]
    two = HEADER[:6] + b"\0\2" + HEADER[8:]
    assert len(Reply(two + first + first, True).services()[0][0].target) == 3 * 64 + 6
    with pytest.raises(OSError, match="a name of more than 255 bytes"):
        Reply(two + first + second, True).services()


@given(st.data())
def test_dns_message_of_any_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = message(
        "SRV", [("apps.", "SRV", f"0 1 80 w{it}.apps.") for it in range(3)], [("w1.apps.", "A", "10.0.0.1")]
    ).to_wire()
    wire = bytearray(whole[: data.draw(st.integers(12, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    reply = Reply(bytes(wire), True)
    for read in (reply.services, lambda: reply.packed(A), lambda: reply.packed(AAAA)):
        try:
            read()
        except OSError as error:
            assert "malformed" in str(error)
