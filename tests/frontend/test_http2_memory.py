"""A connection of HTTP/2 that has ended is freed at once: the garbage collector runs seldom (``process.worker``)."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("zttp", reason="HTTP/2 needs the extra http2")

from balancer.frontend.client_registry import ClientRegistry, RegisteredConnection
from tests.support.http2_door import HEAD, Spoken, reset, spoken
from tests.support.wire import Member, eventually


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def answered(here: Spoken) -> None:
    async with here.client() as client:
        assert (await client.get("/")).status == 200


async def resets(here: Spoken) -> None:
    """Rapid reset, until the connection is broken off."""
    async with here.client() as client:
        for _ in range(300):
            if client.ended:
                break
            await reset(client, await client.ask_raw(HEAD))
        await client.until(lambda: False)


async def silent(here: Spoken) -> None:
    async with here.client():
        pass


async def breaks_off(here: Spoken) -> None:
    """A frame on a stream that only a server may open."""
    async with here.client() as client:
        await client.connection.send(b"\x00\x00\x01\x00\x00\x00\x00\x00\x02x")
        await client.until(lambda: False)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("use", [silent, answered, resets, breaks_off])
async def test_connection_that_has_ended_is_freed_without_the_collector(
    use: Callable[[Spoken], Awaitable[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[weakref.ref[object]] = []
    admit = ClientRegistry.admit

    def noted(registry: ClientRegistry, connection: RegisteredConnection) -> None:
        seen.append(weakref.ref(connection))
        admit(registry, connection)

    monkeypatch.setattr(ClientRegistry, "admit", noted)
    async with Member() as member, spoken(tmp_path, member) as here:
        await use(here)
        await eventually(lambda: bool(seen) and not any(it() for it in seen))
    assert [it.getMessage() for it in caplog.records if it.levelno >= logging.ERROR] == []
