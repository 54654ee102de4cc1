"""TLS with clients: what is spoken, what is refused, and how certificates change."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from websockets.asyncio.client import connect

from balancer.cli.main import main
from balancer.config.settings import SettingsError
from balancer.frontend import client_connection, client_registry
from balancer.frontend.tls import Certificate
from tests.support.messages import GET
from tests.support.processes import serving
from tests.support.tls import authority, issue, trusting
from tests.support.websocket import member as websocket_member
from tests.support.wire import LIMIT, OK, Connection, Member, Running, balance, eventually

SIZE = 20_000_000


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return issue(tmp_path)


@asynccontextmanager
async def httpx_client(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=trusting(), base_url=running.url, trust_env=False) as client:
        yield client


async def test_https_is_served_and_the_member_told(files: dict[str, Any]) -> None:
    async with Member() as member, balance(member, **files) as running, httpx_client(running) as client:
        response = await client.get("/a?b")
        assert (response.status_code, response.http_version, response.text) == (200, "HTTP/1.1", "ok")
        (received,) = member.received
        assert received.startswith(b"GET /a?b HTTP/1.1\r\n")
        assert b"\r\nx-forwarded-proto: https\r\n" in received
        assert b";proto=https\r\n" in received
        assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in received


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), ([], None), (["spdy/3"], None)],
)
async def test_clients_without_http2_speak_http_1_1(
    offered: list[str], chosen: str | None, files: dict[str, Any]
) -> None:
    async with Member() as member, balance(member, **files) as running, running.client(trusting(*offered)) as client:
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(version: ssl.TLSVersion, files: dict[str, Any]) -> None:
    tls = trusting()
    tls.minimum_version = tls.maximum_version = version
    async with Member() as member, balance(member, **files) as running, running.client(tls) as client:
        assert client.writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
        await client.send(GET)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_1_is_not_spoken(files: dict[str, Any]) -> None:
    tls = trusting()
    tls.set_ciphers("DEFAULT@SECLEVEL=0")
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
    async with Member() as member, balance(member, **files) as running:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with running.client(tls):
                pass


async def test_large_body_crosses_each_way(files: dict[str, Any]) -> None:
    async def swallow(connection: Connection) -> None:
        while True:
            head = await connection.head()
            if head.startswith(b"POST"):
                await connection.exactly(SIZE)
                connection.received = b""
                await connection.send(OK)
            else:
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                for _ in range(SIZE // 100_000):
                    await connection.send(bytes(100_000))

    async with Member(swallow) as member, balance(member, **files) as running, httpx_client(running) as client:
        assert (await client.post("/", content=bytes(SIZE))).text == "ok"
        response = await client.get("/")
        assert response.content == bytes(SIZE)


async def test_websocket_is_served_over_tls(files: dict[str, Any]) -> None:
    async with (
        websocket_member() as address,
        balance(address, **files) as running,
        connect(running.url.replace("https", "wss"), ssl=trusting(), proxy=None) as websocket,
    ):
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\xff\xff" + bytes(100), bytes(1000), b"\x80\x2e\x01\x00\x02" + bytes(100)],
    ids=["a record too long", "zeros", "SSL 2"],
)
async def test_connection_that_speaks_neither_tls_nor_http_is_closed_with_a_word_in_the_log_alone(
    garbage: bytes, files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with Member() as member, balance(member, **files) as running:
        answer = await running.exchange(garbage)
        assert not answer.startswith(b"HTTP")
        assert member.received == []
        async with running.client(trusting()) as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
    (line,) = (it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING)
    assert line.startswith("a client at 127.0.0.1 fails in its TLS handshake, and is closed: ")


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01"])
async def test_handshake_that_does_not_end_is_cut(begun: bytes, files: dict[str, Any]) -> None:
    async with Member() as member, balance(member, header_timeout=0.3, **files) as running, running.client() as client:
        await client.send(begun)
        assert await client.to_end() == b""


async def test_client_that_closes_its_side_has_left(files: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.head()
        asked.set()
        await connection.to_end()

    async with Member(silent) as member, balance(member, **files) as running:
        # asyncio closes both sides at once, so this client blocks, in a thread of its own.
        def ask_and_end() -> None:
            with (
                socket.create_connection(running.address, LIMIT) as sock,
                trusting().wrap_socket(sock, server_hostname="127.0.0.1") as tls,
            ):
                tls.sendall(GET)
                asyncio.run_coroutine_threadsafe(asked.wait(), loop).result(LIMIT)
                tls.unwrap().close()

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(ask_and_end)
        await eventually(lambda: len(running.records) == 1)
        assert running.records[0].error == "client_gone"
    assert not [it for it in caplog.records if it.name == "asyncio"]


async def test_refusal_in_the_middle_of_an_upload_is_read_by_the_client(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "DISCARD_SILENCE", 0.5)
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)

    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    async with Member(refuse) as member, balance(member, **files) as running, running.client(trusting()) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
        assert (await client.to_end()).endswith(b"\r\n\r\nno")


async def test_client_that_does_not_read_is_waited_for_with_little_in_memory(files: dict[str, Any]) -> None:
    sent = 0

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * SIZE))
        while True:
            await connection.send(bytes(100_000))
            sent += 100_000

    async with Member(flood) as member, balance(member, **files) as running, running.client(trusting()) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        # What the kernels hold on loopback is most of it.
        assert sent < 40_000_000
        client.writer.transport.abort()
        await running.idle()


def names(connection: Connection) -> list[str]:
    certificate = connection.writer.get_extra_info("peercert")
    return [name for _, name in certificate["subjectAltName"]]


async def test_new_certificate_is_for_new_connections(files: dict[str, Any], tmp_path: Path) -> None:
    async with Member() as member, balance(member, **files) as running, running.client(trusting()) as old:
        assert running.certificate
        issue(tmp_path, "127.0.0.1", "renewed")
        running.certificate.reload()
        async with running.client(trusting()) as new:
            assert "renewed" not in names(old)
            assert "renewed" in names(new)
            for client in (old, new):
                await client.send(GET)
                assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_bad_pair_changes_nothing(
    files: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Member() as member, balance(member, **files) as running:
        assert running.certificate
        (tmp_path / "key.pem").write_bytes(authority().issue_cert("other").private_key_pem.bytes())
        running.certificate.reload()
        (message,) = (it.getMessage() for it in caplog.records if it.name == "balancer.frontend.tls")
        assert message.startswith("the certificate stays as it was: BALANCER_TLS_KEY=")
        async with running.client(trusting()) as client:
            await client.send(GET)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_sighup_renews_the_certificate(files: dict[str, Any], tmp_path: Path) -> None:
    async with Member() as member, serving(member, **files) as serve, serve.client(trusting()) as old:
        await serve.logged("up: accepts connections")
        issue(tmp_path, "127.0.0.1", "renewed")
        serve.process.send_signal(signal.SIGHUP)
        await serve.logged("renewed, by O=trustme")
        async with serve.client(trusting()) as new:
            assert ("renewed" in names(old), "renewed" in names(new)) == (False, True)
        (tmp_path / "key.pem").write_text("nothing")
        serve.process.send_signal(signal.SIGHUP)
        await serve.logged("it is not a PEM file of its kind")
        await old.send(GET)
        assert (await old.head()).startswith(b"HTTP/1.1 200 ")


async def test_log_says_which_certificate_is_served_and_whether_sighup_has_changed_it(files: dict[str, Any]) -> None:
    async with Member() as member, serving(member, **files) as serve:
        place = files["tls_cert"]
        await serve.logged(f"INFO the certificate is that in {place}: O=trustme")
        serve.process.send_signal(signal.SIGHUP)
        await serve.logged(f"INFO the certificate in {place} is unchanged: O=trustme")


async def test_log_warns_of_a_certificate_that_has_expired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    files = issue(tmp_path, "shop.example", ends=ended)
    Certificate(files["tls_cert"], files["tls_key"], False).log_start()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "for shop.example, by O=trustme" in record.getMessage()
    assert record.getMessage().endswith("valid until 2020-01-02 03:04:05 UTC; it has expired")


def test_check_names_the_certificate(files: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--tls-cert", files["tls_cert"], "--tls-key", files["tls_key"], "--resolver", "127.0.0.1:9"])
    assert "\nCertificate: O=trustme" in capsys.readouterr().out


async def test_stop_does_not_wait_for_clients_that_do_not_read(files: dict[str, Any]) -> None:
    async with Member() as member, serving(member, **files) as serve, serve.client(trusting()) as client:
        await client.send(GET)
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        began = asyncio.get_running_loop().time()
        status, out, err = await serve.stop()
        assert asyncio.get_running_loop().time() - began < 5
    assert (status, "Traceback" in err) == (0, False)
    assert json.loads(out)["status"] == 200


def cannot(files: dict[str, Any], http2: bool = False) -> str:
    with pytest.raises(SettingsError) as caught:
        Certificate(files["tls_cert"], files["tls_key"], http2)
    (line,) = caught.value.problems
    return line


def test_files_that_cannot_be_used_are_named(files: dict[str, Any], tmp_path: Path) -> None:
    certificate, key = files["tls_cert"], files["tls_key"]
    missing = str(tmp_path / "missing.pem")
    assert cannot(files | {"tls_cert": missing}) == (
        f"BALANCER_TLS_CERT={missing} cannot be used: No such file or directory"
    )
    assert cannot(files | {"tls_key": str(tmp_path)}) == f"BALANCER_TLS_KEY={tmp_path} cannot be used: Is a directory"
    assert cannot(files | {"tls_cert": key}).startswith(f"BALANCER_TLS_CERT={key} cannot be used: it is not a PEM file")
    assert cannot(files | {"tls_key": certificate}).startswith(f"BALANCER_TLS_KEY={certificate} cannot be used: it is")
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert cannot(files | {"tls_key": str(other)}) == (
        f"BALANCER_TLS_KEY={other} cannot be used: it is not the key of {certificate}"
    )
    other.write_text("-----BEGIN PRIVATE KEY-----\nbm90aGluZw==\n-----END PRIVATE KEY-----\n")
    assert cannot(files | {"tls_key": str(other)}).startswith(f"BALANCER_TLS_KEY={other} cannot be used: OpenSSL")


@pytest.mark.parametrize("setting", ["tls_cert", "tls_key"])
def test_file_with_a_byte_order_mark_is_read(setting: str, files: dict[str, Any], tmp_path: Path) -> None:
    marked = tmp_path / "marked.pem"
    marked.write_bytes(b"\xef\xbb\xbf" + Path(files[setting]).read_bytes().replace(b"\n", b"\r\n"))
    pair = files | {setting: str(marked)}
    assert Certificate(pair["tls_cert"], pair["tls_key"], http2=False)


def test_check_tells_of_files_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"]) == 2
    assert capsys.readouterr() == ("", "BALANCER_TLS_CERT=/nowhere cannot be used: No such file or directory\n")


async def test_key_that_cannot_be_used_stops_the_start_with_one_line(files: dict[str, Any]) -> None:
    async with Member() as member:
        with pytest.raises(AssertionError, match=r"^it ended: BALANCER_TLS_KEY=/nowhere cannot be used: No such file"):
            async with serving(member, **files | {"tls_key": "/nowhere"}):
                pass


def test_http2_without_its_package_is_refused(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.frontend.tls.find_spec", lambda name: None)
    assert cannot(files, http2=True) == (
        "BALANCER_HTTP2=on cannot be used: the package zttp is missing; install balancer[http2]"
    )


def test_key_with_a_password_is_refused_rather_than_asked_for(files: dict[str, Any]) -> None:
    key = load_pem_private_key(Path(files["tls_key"]).read_bytes(), None)
    Path(files["tls_key"]).write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    assert "it is encrypted" in cannot(files)


async def test_health_check_finds_a_listener_that_speaks_tls(files: dict[str, Any]) -> None:
    async with Member() as member, serving(member, **files) as serve:
        for environ in ({"BALANCER_ADMIN_BIND": "off"}, {"BALANCER_ADMIN_BIND": serve.bind}):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "balancer.cli.healthcheck",
                env=os.environ | {"BALANCER_BIND": serve.bind} | environ,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            await process.communicate()
            # The admin listener is never on TLS; where it is asked for at the wrong place, nothing answers.
            assert process.returncode == (0 if environ["BALANCER_ADMIN_BIND"] == "off" else 1)
        _, _, err = await serve.stop()
    assert "Traceback" not in err
