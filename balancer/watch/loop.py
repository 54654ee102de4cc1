"""Requests to one URL at a steady rate, and the workers that answer them."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import anyio.lowlevel
import httpx

from balancer.watch.tally import Result

# The hostname in an answer of the example worker. Any other answer goes by its first line.
_HOSTNAME = re.compile(r"\bI am ([^\s!]+)!")
# Requests that may wait at the same time, so that they do not pile up without end at a stalled server.
MAX_WAITING = 100
# Bytes of a body that are examined; the rest is read and dropped.
MAX_BODY_BYTES = 65536
MAX_NAME = 60


def judge(response: httpx.Response) -> Result:
    """Return a result without its time: the worker, or the reason of a failure, which a status of 400 or more is."""
    text = response.text
    first_line = plain(text.strip().partition("\n")[0][:MAX_NAME])
    status = response.status_code
    token = plain(response.headers.get("X-Balancer-Error", ""))
    if response.is_error:
        return Result(0.0, failure=f"{status} {token or first_line}".strip(), status=status, token=token)
    match = _HOSTNAME.search(text)
    worker = plain(match[1][:MAX_NAME]) if match else first_line or "(empty answer)"
    return Result(0.0, worker=worker, status=status)


def plain(text: str) -> str:
    """Return one line without what a terminal would obey: servers must not write to it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text.strip())


def reason(error: BaseException) -> str:
    """Return the system's words for an error, where there are any, rather than httpx's own."""
    link = error
    while cause := link.__cause__ or link.__context__:
        link = cause
        if isinstance(link, BaseExceptionGroup):
            link = link.exceptions[0]
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    return str(error) or type(error).__name__


class Loop:
    """Requests to one URL, each on a connection of its own unless ``keepalive``, as a loop of curls would send them.

    ``rate`` is in requests a second, ``timeout`` in seconds from the start to the last byte of an answer. ``sending``
    is called with the time, on the clock of ``Result.ended``, as each request is sent. Raises httpx.InvalidURL.
    """

    def __init__(
        self,
        url: str,
        rate: float,
        count: int = 0,
        timeout: float = 30.0,
        *,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        keepalive: bool = False,
        sending: Callable[[float], None] = lambda now: None,
    ) -> None:
        self._url = httpx.URL(url)
        self._rate = rate
        self._count = count
        self._timeout = timeout
        self._method = method
        self._headers = list(headers)
        self._keepalive = keepalive
        self._sending = sending

    @property
    def title(self) -> str:
        """Method and URL, without a password that the URL may have."""
        return f"{self._method} {plain(str(self._url.copy_with(userinfo=b'')))}"

    async def results(self) -> AsyncIterator[Result]:
        """Yield the results as they come; ends after ``count`` requests, or never where it is 0."""
        done: asyncio.Queue[Result] = asyncio.Queue()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_WAITING if self._keepalive else 0)
        # httpx loads the rest of anyio with its first request, which would be measured.
        await anyio.lowlevel.checkpoint()
        # Without cookies: those of a balancer or a session would keep every request at one worker.
        nothing_kept = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False, cookies=nothing_kept) as client:
            sender = asyncio.create_task(self._send(client, done))
            try:
                received = 0
                while not self._count or received < self._count:
                    yield await done.get()
                    received += 1
            finally:
                sender.cancel()
                with suppress(asyncio.CancelledError):
                    await sender

    async def _send(self, client: httpx.AsyncClient, done: asyncio.Queue[Result]) -> None:
        places = asyncio.Semaphore(MAX_WAITING)
        due = time.monotonic()

        async def send_one() -> None:
            try:
                await done.put(await self._request(client))
            finally:
                places.release()

        async with asyncio.TaskGroup() as requests:
            sent = 0
            while not self._count or sent < self._count:
                await places.acquire()
                self._sending(time.monotonic())
                requests.create_task(send_one())
                sent += 1
                due = max(due + 1 / self._rate, time.monotonic() - 1)
                await asyncio.sleep(due - time.monotonic())

    async def _request(self, client: httpx.AsyncClient) -> Result:
        began = time.monotonic()
        try:
            # httpx would limit each step, and a body that trickles go on for ever.
            async with asyncio.timeout(self._timeout):
                result = judge(await self._response(client))
        except TimeoutError:
            result = Result(0.0, failure=f"no complete answer within {self._timeout:g} s")
        except (httpx.HTTPError, OSError) as error:
            result = Result(0.0, failure=plain(reason(error)))
        except Exception as error:
            # An unexpected error of a library is a failure as well; without the sender, results would be awaited for
            # ever.
            result = Result(0.0, failure=plain(f"{type(error).__name__}: {error}"))
        ended = time.monotonic()
        return replace(result, seconds=ended - began, ended=ended, at=time.time())

    async def _response(self, client: httpx.AsyncClient) -> httpx.Response:
        """Return the response with the beginning of its body, once all of it has come."""
        async with client.stream(self._method, self._url, headers=self._headers) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece[: MAX_BODY_BYTES - len(body)]
        # The body is decoded already, and must not be decoded again.
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx.Response(response.status_code, headers=headers, content=bytes(body))


@asynccontextmanager
async def interruptible() -> AsyncIterator[asyncio.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, while the context lasts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def first(*awaitables: Awaitable[object]) -> None:
    """Return when the first awaitable has ended, with the others cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
