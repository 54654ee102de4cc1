"""One case to one candidate, and what was seen of it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import suppress

from bench.processes import Address, BenchError
from bench.strictness.member import Member, Request
from tests.support.hostile import NEXT, Case
from tests.support.hostile_answers import ANSWERS, CUT, PASSES, Answer

# Nobody needs that long to answer what it has whole; who has not by then is waiting for more.
PATIENCE = 2.0
# And for a response without end.
ENDLESS_PATIENCE = 5.0
# What is kept of a response, in bytes: more than any sound one has.
KEPT = 256 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_AFTER_COLON = re.compile(rb"^([^ :]+):[ \t]*", re.MULTILINE)
_SOUND = Counter((b"get / http/1.1", b"post / http/1.1", b"host: a", b"transfer-encoding: chunked"))
_PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
_AFTER = b"GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Client:
    """A connection to a candidate. ``received``: what came, up to KEPT; ``ended``: the candidate has closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""
        self.ended = False

    @classmethod
    async def connect(cls, address: Address) -> Client:
        return cls(*await asyncio.open_connection(*address))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    @property
    def broken(self) -> bool:
        """Whether nothing more can be sent: the connection was reset."""
        return self._writer.transport.is_closing()

    async def more(self, patience: float) -> bool:
        """Wait for something. False if it did not come, or nothing will."""
        try:
            async with asyncio.timeout(patience):
                data = await self._reader.read(65536)
        except TimeoutError:
            return False
        except ConnectionError:
            data = b""
        if len(self.received) < KEPT:
            self.received += data
        self.ended = not data
        return bool(data)

    def close(self) -> None:
        with suppress(ConnectionError):
            self._writer.transport.abort()


async def settle(address: Address, member: Member) -> None:
    """Leave nothing of the case before: new connections, and a candidate that answers."""
    await member.reset()
    for _ in range(200):
        client = await Client.connect(address)
        client.send(_PROBE)
        while await client.more(PATIENCE):
            pass
        client.close()
        if any(request.path == b"/probe" for request in member.requests):
            member.requests.clear()
            return
        await asyncio.sleep(0.05)
    raise BenchError(f"{address} does not answer any more: {client.received[:200]!r}")


async def request_case(address: Address, member: Member, case: Case) -> str:
    """What a candidate did with a request, in the words of the table."""
    client = await Client.connect(address)
    client.send(case.request + (b"" if case.unfinished else NEXT))
    while await client.more(PATIENCE):
        pass
    client.close()
    statuses = [int(status) for status in _STATUS.findall(client.received) if not status.startswith(b"1")]
    mine = [request for request in member.requests if request.path != b"/next"]
    status = statuses[0] if statuses else 0
    refusal = str(status) if status >= 300 else "closes" if client.ended else "waits"
    if not mine:
        # It may have been taken for the beginning of what followed, or for nothing.
        return f"{refusal}, goes on" if member.requests and status >= 300 else refusal
    if not mine[0].complete:
        return f"{refusal}, in part"
    if len(mine) > 1:
        return f"passed as {len(mine)} requests"
    passed = "passed" if kept(case, mine[0]) else "passed, repaired" if case.status else "passed, changed"
    return passed if status == 200 else f"{passed}, answered {status}" if status else f"{passed}, {refusal}"


def kept(case: Case, request: Request) -> bool:
    """Whether what makes the case came through as it was: every line of its head, and a chunked body byte for byte.

    What is sound has to come through in the form that the case says. Upper or lower case makes no difference.
    """
    head, _, body = (case.arrives or case.request).partition(b"\r\n\r\n")
    arrived = b"\r\n" + request.head
    if case.arrives:
        head, arrived = _AFTER_COLON.sub(rb"\1: ", head), _AFTER_COLON.sub(rb"\1: ", arrived)
    lines = Counter(line.lower() for line in head.split(b"\r\n") if line) - _SOUND
    arrived = arrived.lower()
    exact = Counter(arrived.split(b"\r\n"))
    for line, count in lines.items():
        # A line with a bare LF is none to whoever takes that for the end of a line.
        if (arrived.count(b"\r\n" + line) if b"\n" in line else exact[line]) < count:
            return False
    return b"chunked" not in head.lower() or body.lower() == request.raw_body.lower()


async def answer_case(address: Address, member: Member, number: int) -> str:
    """What a candidate did with a response, in the words of the table."""
    answer = ANSWERS[number]
    client = await Client.connect(address)
    client.send(b"GET /answer/%d HTTP/1.1\r\nHost: a\r\n%b\r\n" % (number, answer.asked))
    await _take(client, answer, ENDLESS_PATIENCE if answer.forever else PATIENCE)
    waited = not (client.ended or answer.forever or _whole(client.received, answer))
    if waited:
        # Some take what they do not understand for a body that lasts until the connection ends.
        member.hang_up()
        await _take(client, answer, PATIENCE)
    got, ended = client.received, client.ended
    reused, poisoned = await _after(address, member, client)
    cell = ("waits, then " if waited else "") + _outcome(answer, got, ended)
    if poisoned:
        return f"{cell}, answers the next request with it"
    if reused and (answer.becomes != PASSES or answer.spoilt):
        return f"{cell}, connection used again"
    return cell


async def _take(client: Client, answer: Answer, patience: float) -> None:
    while (answer.forever or not _whole(client.received, answer)) and await client.more(patience):
        pass


def _outcome(answer: Answer, got: bytes, ended: bool) -> str:
    statuses = [status for status in _STATUS.findall(got) if not status.startswith(b"1") or status == b"101"]
    if statuses and b"500" <= statuses[0] < b"600":
        return str(int(statuses[0]))
    if got and not got.startswith(b"HTTP/"):
        return "passed"
    if answer.forever or not _whole(got, answer):
        return ("cut off" if got else "closes") if ended else "takes it all" if answer.forever else "nothing"
    if answer.becomes == PASSES or _unchanged(answer, got):
        return "passed"
    return "passed, repaired"


def _whole(got: bytes, answer: Answer) -> bool:
    """Whether the client has a complete response."""
    while True:
        head, end, body = got.partition(b"\r\n\r\n")
        if not end:
            return False
        status = _STATUS.match(head)
        if not (status and status[1].startswith(b"1") and status[1] != b"101"):
            break
        got = body
    if status and status[1] == b"101":
        return body.endswith(b"ok") or not answer.asked
    lines = head.lower().split(b"\r\n")
    if any(line.startswith(b"transfer-encoding:") for line in lines):
        return body.endswith((b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\nX: y\r\n\r\n"))
    if status and status[1] in (b"204", b"304"):
        return True
    lengths = [line.partition(b":")[2].strip() for line in lines if line.startswith(b"content-length:")]
    if lengths and lengths[0].isdigit():
        return len(body) >= int(lengths[0])
    return body.endswith(b"ok")  # It lasts until the connection ends.


def _unchanged(answer: Answer, got: bytes) -> bool:
    """Whether the lines that make the case reached the client as they were."""
    head, _, body = answer.response.partition(b"\r\n\r\n")
    if answer.becomes == CUT:
        return body in got
    lines = Counter(line.lower() for line in head.split(b"\r\n")) - Counter((b"http/1.1 200 ok",))
    arrived = b"\r\n" + got.lower()
    return all(arrived.count(b"\r\n" + line) >= count for line, count in lines.items())


async def _after(address: Address, member: Member, client: Client) -> tuple[bool, bool]:
    """Ask once more: whether the same connection to the member served it, and whether the answer was another's."""
    before = {request.connection for request in member.requests}
    known = len(member.requests)
    if client.ended:
        client.close()
        client = await Client.connect(address)
    client.received = b""
    client.send(_AFTER)
    while await client.more(PATIENCE):
        pass
    client.close()
    after = [request for request in member.requests[known:] if request.path == b"/after"]
    return any(request.connection in before for request in after), b"poison" in client.received
