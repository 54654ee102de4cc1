"""Probes of a readiness path, over sockets: what a member sees of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from balancer.config.settings import Settings
from balancer.http.chunked import chunk, last_chunk
from balancer.members import probe_answer
from balancer.members.health import HealthEvent
from balancer.members.probe import make_probe
from tests.support.wire import LIMIT, Connection, Member

BODY = b"x" * 200_000
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\nX-A: b\r\n\r\n" % len(BODY)
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


class Answering(Member):
    """A member that sends ``answer``, and then closes its side or, with ``stays``, leaves it open."""

    def __init__(self, answer: bytes, stays: bool = False) -> None:
        super().__init__(self._answer)
        self._bytes = answer
        self._stays = stays
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def _answer(self, connection: Connection) -> None:
        await connection.head()
        try:
            await connection.send(self._bytes)
            if not self._stays:
                connection.writer.write_eof()
            await connection.exactly(1)
        except asyncio.IncompleteReadError:
            self.ended.set_result("closed")
        except ConnectionError:
            self.ended.set_result("reset")

    async def verdict(self, **settings: Any) -> tuple[HealthEvent | None, str]:
        """What a probe with these settings says of it."""
        probe = make_probe(Settings.of(upstream_port=self.address.port, health_path="/healthz", **settings))
        return await probe(self.address)

    async def probed(self, timeout: float = LIMIT) -> tuple[HealthEvent | None, str]:
        """The event of a probe, and how the member saw its connection end."""
        event, _ = await self.verdict(health_timeout=timeout)
        async with asyncio.timeout(LIMIT):
            return event, await self.ended


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("answer", [LENGTH + BODY, CHUNKS], ids=["length", "chunks"])
async def test_probe_of_a_long_answer_reads_it_to_its_end(answer: bytes, stays: bool) -> None:
    async with Answering(answer, stays) as member:
        assert await member.probed() == (HealthEvent.PROBE_OK, "closed")


@pytest.mark.parametrize("status", [b"200", b"503", b"500"])
async def test_probe_of_an_answer_that_ends_with_its_connection_reads_it_to_its_end(status: bytes) -> None:
    async with Answering(b"HTTP/1.1 %s A\r\n\r\n%s" % (status, BODY)) as member:
        expected = {b"200": HealthEvent.PROBE_OK, b"503": HealthEvent.PROBE_DRAINING}.get(
            status, HealthEvent.PROBE_FAILED
        )
        assert await member.probed() == (expected, "closed")


async def test_probe_of_an_answer_over_the_bound_closes_with_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_answer, "ANSWER_MAX_BYTES", 1000)
    async with Answering(LENGTH + BODY) as member:
        assert await member.probed() == (HealthEvent.PROBE_OK, "reset")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nX-A: ", LENGTH + b"part", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_probe_of_an_answer_without_end_takes_no_longer_than_its_time_out(answer: bytes) -> None:
    async with Answering(answer, stays=True) as member:
        assert await member.probed(timeout=0.2) == (HealthEvent.PROBE_OK, "closed")


@pytest.mark.parametrize("rest", [b"", b"X-A", b"X-A: %s\r\n" % (b"a" * 100_000), b"Content-Length: 9\r\n\r\npart"])
async def test_probe_of_an_answer_that_breaks_off_goes_by_its_status(rest: bytes) -> None:
    async with Answering(b"HTTP/1.1 200 OK\r\n" + rest) as member:
        assert (await member.probed())[0] is HealthEvent.PROBE_OK


@pytest.mark.parametrize(
    ("accepted", "status", "event", "words"),
    [
        ("200-399,401", 401, HealthEvent.PROBE_OK, "401"),
        ("200-399,401", 302, HealthEvent.PROBE_OK, "302"),
        ("200-399,401", 404, HealthEvent.PROBE_FAILED, "404 is none of 200-399,401,503"),
        ("204", 200, HealthEvent.PROBE_FAILED, "200 is none of 204,503"),
        ("204", 503, HealthEvent.PROBE_DRAINING, "503"),
        ("200,503", 503, HealthEvent.PROBE_OK, "503"),
        ("200,503", 502, HealthEvent.PROBE_FAILED, "502 is none of 200,503"),
    ],
)
async def test_status_of_a_member_that_is_well_is_one_of_the_settings(
    accepted: str, status: int, event: HealthEvent, words: str
) -> None:
    async with Answering(b"HTTP/1.1 %d A\r\nContent-Length: 0\r\n\r\n" % status) as member:
        assert await member.verdict(health_status=accepted) == (event, f"GET /healthz: {words}")


KIB_64 = 2**16
HEAD = b"HTTP/1.1 200 OK\r\n"


def length(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunks(*pieces: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunk, pieces)) + last_chunk([])


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("answer", "lacks"),
    [
        (length(b"state: ready, 3 shards"), ""),
        (length(b"state: starting"), ", but the body lacks 'ready'"),
        (length(b""), ", but the body lacks 'ready'"),
        (HEAD.replace(b"200 OK", b"204 No Content") + b"\r\n", ", but the body lacks 'ready'"),
        (chunks(b"re", b"a", b"dy"), ""),
        (chunks(b"READY", b"rea"), ", but the body lacks 'ready'"),
        (length(b"x" * (KIB_64 - 5) + b"ready"), ""),
        (length(b"x" * (KIB_64 - 4) + b"ready"), ", but the body lacks 'ready' in its first 64 KiB"),
        (chunks(b"x" * KIB_64, b"ready"), ", but the body lacks 'ready' in its first 64 KiB"),
    ],
    ids=lambda it: "" if isinstance(it, str) else f"{it[-10:]!r}",
)
async def test_body_has_to_contain_the_text(answer: bytes, lacks: str, stays: bool) -> None:
    status = answer.split()[1].decode()
    async with Answering(answer, stays) as member:
        event = HealthEvent.PROBE_FAILED if lacks else HealthEvent.PROBE_OK
        assert await member.verdict(health_body="ready") == (event, f"GET /healthz: {status}{lacks}")
        async with asyncio.timeout(LIMIT):
            assert await member.ended == "closed"


@pytest.mark.parametrize(
    ("status", "event"), [(b"503", HealthEvent.PROBE_DRAINING), (b"500", HealthEvent.PROBE_FAILED)]
)
async def test_text_of_another_status_does_not_matter(status: bytes, event: HealthEvent) -> None:
    async with Answering(length(b"ready").replace(b"200", status)) as member:
        assert (await member.verdict(health_body="ready"))[0] is event
    async with Answering(length(b"busy").replace(b"200", status)) as member:
        assert (await member.verdict(health_body="ready", health_status=status.decode()))[0] is HealthEvent.PROBE_FAILED


@pytest.mark.parametrize("text", ["bereit für €", 'status":"ok'])
async def test_text_is_utf_8(text: str) -> None:
    async with Answering(length(f"<{text}>".encode())) as member:
        assert (await member.verdict(health_body=text))[0] is HealthEvent.PROBE_OK


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 99\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize(("body", "lacks"), [(b"4\r\nwell\r\n", ""), (b"4\r\nill.\r\n", ", but the body lacks 'well'")])
async def test_body_without_end_is_judged_as_far_as_it_has_come(framing: bytes, body: bytes, lacks: str) -> None:
    event = HealthEvent.PROBE_FAILED if lacks else HealthEvent.PROBE_OK
    after = lacks and f"{lacks} after 0.2 s"
    async with Answering(HEAD + framing + b"\r\n" + body, stays=True) as member:
        verdict = await member.verdict(health_body="well", health_timeout=0.2)
        assert verdict == (event, f"GET /healthz: 200{after}")
    async with Answering(HEAD + framing + b"\r\n" + body) as member:
        assert await member.verdict(health_body="well") == (event, f"GET /healthz: 200{lacks}")


async def test_text_over_two_reads_is_found() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        for piece in (HEAD, b"Transfer-Encoding: chun", b"ked\r\n\r\n2\r", b"\nre\r\n3", b"\r\nad", b"y\r\n0\r\n\r\n"):
            await connection.send(piece)
            await asyncio.sleep(0.01)

    async with Member(script) as member:
        probe = make_probe(Settings(health_path="/healthz", health_body="ready"))
        assert await probe(member.address) == (HealthEvent.PROBE_OK, "GET /healthz: 200")


async def test_body_that_trickles_ends_with_the_time_out() -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.send(HEAD + b"\r\n")
        while True:
            await connection.send(b".")
            await asyncio.sleep(0.01)

    async with Member(script) as member:
        probe = make_probe(Settings(health_path="/healthz", health_body="ready", health_timeout=0.3))
        async with asyncio.timeout(LIMIT):
            verdict = await probe(member.address)
        assert verdict == (HealthEvent.PROBE_FAILED, "GET /healthz: 200, but the body lacks 'ready' after 0.3 s")
