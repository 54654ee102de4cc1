"""Probes of a readiness path, over sockets: what a member sees of them."""

from __future__ import annotations

import asyncio

import pytest

from balancer.config.settings import Settings
from balancer.members import probe
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

    async def probed(self, timeout: float = LIMIT) -> tuple[HealthEvent | None, str]:
        """The verdict of a probe, and how the member saw its connection end."""
        settings = Settings(upstream_port=self.address.port, health_path="/healthz", health_timeout=timeout)
        event, _ = await make_probe(settings)(self.address)
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
    monkeypatch.setattr(probe, "ANSWER_MAX_BYTES", 1000)
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
