"""A certificate in words for the log: subject, names, issuer, validity. No I/O.

Reads the DER of X.509 (RFC 5280 section 4.1) as far as that takes: the standard library decodes no certificate
that a program has as its own. Nothing is verified, because OpenSSL has loaded the same bytes before.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

# Names that a line holds.
NAMES_SHOWN = 10

# Tags of DER (X.690 section 8).
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _BMP_STRING = 0x30, 0x17, 0x18, 0x1E
_VERSION, _EXTENSIONS, _DNS_NAME, _IP_ADDRESS = 0xA0, 0xA3, 0x82, 0x87
# Parts of a name that are shown (RFC 4519), in this order.
_PARTS = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O", b"\x55\x04\x0b": "OU"}
_SUBJECT_ALT_NAME = b"\x55\x1d\x11"


class CertificateSummary(NamedTuple):
    """What a certificate says. ``names``: hosts and addresses that it is for; ``begins``, ``ends``: its validity."""

    subject: str
    names: tuple[str, ...]
    issuer: str
    begins: datetime
    ends: datetime

    def __str__(self) -> str:
        shown = ", ".join(self.names[:NAMES_SHOWN])
        more = len(self.names) - NAMES_SHOWN
        parts = [
            self.subject or "without a subject",
            *([f"for {shown}" + (f" and {more} more" if more > 0 else "")] if shown else []),
            f"by {self.issuer or 'an issuer without a name'}",
            f"valid until {_moment(self.ends)}",
        ]
        return ", ".join(parts)

    def fault(self, now: datetime) -> str:
        """Return why clients refuse it at this time, or ""."""
        if now > self.ends:
            return "it has expired"
        return f"it is not valid before {_moment(self.begins)}" if now < self.begins else ""


def summarize(certificate: bytes) -> CertificateSummary:
    """Return what a certificate in DER says. Raises ValueError where it is none."""
    try:
        fields = list(_items(_first(_first(certificate))))
        if fields[0][0] == _VERSION:
            del fields[0]
        # Serial number, algorithm, issuer, validity, subject, public key, and more.
        issuer, validity, subject = (value for _, value in fields[2:5])
        begins, ends = (_time(tag, value) for tag, value in _items(validity))
        extensions = next((value for tag, value in fields[6:] if tag == _EXTENSIONS), b"")
        names = tuple(_alternative_names(extensions)) if extensions else ()
        return CertificateSummary(_name(subject), names, _name(issuer), begins, ends)
    except (IndexError, StopIteration, RuntimeError, OverflowError) as error:
        raise ValueError("the certificate breaks off, or is none") from error


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and contents of each element."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count])
            at += count
        if at + size > len(data):
            raise ValueError("an element is longer than what it stands in")
        yield tag, data[at : at + size]
        at += size


def _first(data: bytes) -> bytes:
    tag, value = next(_items(data))
    if tag != _SEQUENCE:
        raise ValueError("a sequence is missing")
    return value


def _name(data: bytes) -> str:
    """Return a distinguished name: those of its parts that _PARTS has."""
    found: dict[bytes, str] = {}
    for _, part in _items(data):
        for _, pair in _items(part):
            (_, kind), (tag, value) = _items(pair)
            found.setdefault(kind, _text(value, "utf-16-be" if tag == _BMP_STRING else "utf-8"))
    return ", ".join(f"{word}={found[kind]}" for kind, word in _PARTS.items() if kind in found)


def _alternative_names(extensions: bytes) -> Iterator[str]:
    for _, extension in _items(_first(extensions)):
        kind, *rest = (value for _, value in _items(extension))
        if kind != _SUBJECT_ALT_NAME:
            continue
        for tag, value in _items(_first(rest[-1])):
            if tag == _DNS_NAME:
                yield _text(value, "ascii")
            elif tag == _IP_ADDRESS:
                yield str(ipaddress.ip_address(value))


def _text(value: bytes, encoding: str) -> str:
    text = value.decode(encoding, "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # Two digits of the year: those from 50 on are of the century before (RFC 5280 4.1.2.5.1).
        text = ("19" if text >= "5" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a time is missing")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
