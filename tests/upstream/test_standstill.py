"""An event loop that stands still while members answer: their time-outs count the time in which it runs.

Members are threads, because the loop is blocked.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from balancer.errors import ResponseTimeout
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.native import NativeUpstream
from tests.support.wire import LIMIT, OK

REQUEST = UpstreamRequest("GET", b"/", [(b"host", b"a")])
TIMEOUT, BEFORE, STANDSTILL = 0.6, 0.2, 1.5


@contextmanager
def member(*pieces: bytes) -> Iterator[Address]:
    """A member that answers in these pieces: the first at once, each other one while the loop stands still."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for number, piece in enumerate(pieces):
                    time.sleep((BEFORE + STANDSTILL / 2) * bool(number))
                    connection.sendall(piece)
                over.wait(LIMIT)

        over = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield Address("127.0.0.1", server.getsockname()[1])
        finally:
            over.set()
            thread.join()


def stand_still() -> None:
    """Block the loop a moment from now."""
    asyncio.get_running_loop().call_later(BEFORE, time.sleep, STANDSTILL)


async def test_response_that_came_while_the_loop_stood_still_is_taken() -> None:
    upstream = NativeUpstream(Timeouts(connect=1, response=TIMEOUT, idle=TIMEOUT))
    with member(b"", OK) as address:
        stand_still()
        response = await upstream.send(address, REQUEST)
        assert (response.status, await response.read()) == (200, (b"ok", False))
    await upstream.close()


async def test_rest_of_a_body_that_came_while_the_loop_stood_still_is_taken() -> None:
    upstream = NativeUpstream(Timeouts(connect=1, response=TIMEOUT, idle=TIMEOUT))
    with member(OK[:-1], OK[-1:]) as address:
        stand_still()
        response = await upstream.send(address, REQUEST)
        assert await response.read() == (b"o", True)
        assert await response.read() == (b"k", False)
    await upstream.close()


async def test_member_that_stays_silent_is_given_up_once_its_time_has_run() -> None:
    upstream = NativeUpstream(Timeouts(connect=1, response=TIMEOUT, idle=TIMEOUT))
    with member(b"") as address:
        stand_still()
        began = time.monotonic()
        with pytest.raises(ResponseTimeout):
            await upstream.send(address, REQUEST)
        assert time.monotonic() - began >= STANDSTILL + TIMEOUT - BEFORE
    await upstream.close()
