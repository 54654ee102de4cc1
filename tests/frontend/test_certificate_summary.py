"""What the log says of a certificate, read from its bytes."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from balancer.frontend.certificate_summary import NAMES_SHOWN, CertificateSummary, summarize

BEGINS = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
ENDS = datetime.datetime(2026, 4, 2, 3, 4, 5, tzinfo=datetime.UTC)
SUBJECT = [(NameOID.COMMON_NAME, "shop.example"), (NameOID.COUNTRY_NAME, "BR")]
ISSUER = [(NameOID.ORGANIZATION_NAME, "Autoridade São Paulo"), (NameOID.COMMON_NAME, "R11")]
KEY = ec.generate_private_key(ec.SECP256R1())


def der(
    subject: list[tuple[x509.ObjectIdentifier, str]] = SUBJECT,
    names: Sequence[x509.GeneralName] = (),
    ends: datetime.datetime = ENDS,
) -> bytes:
    def name(parts: list[tuple[x509.ObjectIdentifier, str]]) -> x509.Name:
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])

    builder = x509.CertificateBuilder(name(ISSUER), name(subject), KEY.public_key(), 5, BEGINS, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


WHOLE = der(names=[x509.DNSName("shop.example"), x509.IPAddress(ipaddress.ip_address("192.0.2.7"))])


def test_summary_has_subject_names_issuer_and_validity() -> None:
    names = [
        x509.DNSName("shop.example"), x509.DNSName("*.shop.example"), x509.RFC822Name("a@shop.example"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.7")), x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
    ]  # fmt: skip
    found = summarize(der(names=names))
    shown = ("shop.example", "*.shop.example", "192.0.2.7", "2001:db8::7")
    assert found == CertificateSummary("CN=shop.example", shown, "CN=R11, O=Autoridade São Paulo", BEGINS, ENDS)
    assert str(found) == (
        "CN=shop.example, for shop.example, *.shop.example, 192.0.2.7, 2001:db8::7, by CN=R11, O=Autoridade São Paulo, "
        "valid until 2026-04-02 03:04:05 UTC"
    )


def test_summary_of_a_certificate_without_names_says_so() -> None:
    assert str(summarize(der(subject=[]))) == (
        "without a subject, by CN=R11, O=Autoridade São Paulo, valid until 2026-04-02 03:04:05 UTC"
    )


def test_summary_of_very_many_names_has_the_first() -> None:
    many = [x509.DNSName(f"{number}.example") for number in range(100)]
    assert f" {NAMES_SHOWN - 1}.example and {100 - NAMES_SHOWN} more, by " in str(summarize(der(names=many)))


def test_summary_has_a_time_after_2049() -> None:
    ends = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert summarize(der(ends=ends)).ends == ends


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (BEGINS - datetime.timedelta(seconds=1), "it is not valid before 2026-01-02 03:04:05 UTC"),
        (BEGINS, ""),
        (ENDS, ""),
        (ENDS + datetime.timedelta(seconds=1), "it has expired"),
    ],
)
def test_fault_of_a_certificate_is_known_by_the_time(now: datetime.datetime, fault: str) -> None:
    assert summarize(der()).fault(now) == fault


def test_summary_has_nothing_that_moves_a_cursor() -> None:
    assert str(summarize(der(subject=[(NameOID.COMMON_NAME, "a\x1b[2J\nb")]))).isprintable()


def test_summary_agrees_with_another_reader() -> None:
    pem = trustme.CA().issue_cert("localhost", "127.0.0.1").cert_chain_pems[0].bytes()
    found, other = summarize(ssl.PEM_cert_to_DER_cert(pem.decode())), x509.load_pem_x509_certificate(pem)
    assert (found.begins, found.ends) == (other.not_valid_before_utc, other.not_valid_after_utc)
    assert found.names == ("localhost", "127.0.0.1")


@given(st.data())
def test_bytes_that_are_no_certificate_are_a_value_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(WHOLE) - 1))
    damaged = WHOLE[:at] + data.draw(st.binary(max_size=5)) + WHOLE[at + data.draw(st.integers(0, 5)) :]
    try:
        str(summarize(damaged))
    except ValueError:
        pass
