"""A small DNS server on loopback that behaves like Docker's: shuffled answers, TTL 600, cut when they are large."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from balancer.types import Address

TTL = 600
PLAIN_UDP = 512
MAX_TCP = 65535

# Fills in the response to a query.
Answerer = Callable[[dns.message.Message, dns.message.Message], Awaitable[None]]


class Zone:
    """The records by name: ``records["apps"]`` is a list of (type, data) such as ("A", "127.0.1.1")."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[str, str]]] = {}

    async def __call__(self, query: dns.message.Message, response: dns.message.Message) -> None:
        question = query.question[0]
        records = self.records.get(question.name.to_text(omit_final_dot=True).lower())
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return
        record_type = dns.rdatatype.to_text(question.rdtype)
        found = [data for record, data in records if record == record_type]
        if found:
            random.shuffle(found)
            response.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", record_type, found))


class DnsServer:
    """Serves one answerer over UDP and TCP; use it within ``async with``.

    It can also misbehave: ``answerer`` may be replaced, ``stop()`` leaves the port closed until ``start()``, and
    ``refuse_tcp()`` leaves UDP alone there. ``truncates`` sends every answer over UDP empty and marked as cut (TC).
    """

    def __init__(self, answerer: Answerer, host: str = "127.0.0.1", port: int = 0) -> None:
        self.answerer = answerer
        self.truncates = False
        self.address = Address(host, port)
        self.udp_queries = 0
        self.tcp_queries = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> DnsServer:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before if it is not the first time."""
        self._tcp = await asyncio.start_server(self._serve_tcp, *self.address)
        # UDP takes the port that TCP was given.
        self.address = Address(self.address.host, self._tcp.sockets[0].getsockname()[1])
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), local_addr=self.address)

    def refuse_tcp(self) -> None:
        """Accept no more connections."""
        self._tcp.close()

    async def stop(self) -> None:
        """Close both sockets and drop the queries under way."""
        self._udp.close()
        self._tcp.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram(self, transport: asyncio.DatagramTransport, wire: bytes, client: tuple[str, int]) -> None:
        """Answer a query over UDP."""

        async def answer() -> None:
            self.udp_queries += 1
            query = dns.message.from_wire(wire)
            limit = max(PLAIN_UDP, query.payload) if query.edns >= 0 else PLAIN_UDP
            response = await self._answer(query)
            if self.truncates:
                response.flags |= dns.flags.TC
                response.answer.clear()
            transport.sendto(response.to_wire(max_size=limit, prefer_truncation=True), client)

        task = asyncio.get_running_loop().create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        await self.answerer(query, response)
        return response

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                query = dns.message.from_wire(await reader.readexactly(length))
                self.tcp_queries += 1
                wire = (await self._answer(query)).to_wire(max_size=MAX_TCP, prefer_truncation=True)
                writer.write(struct.pack("!H", len(wire)) + wire)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
        self._server.datagram(self._transport, data, client)
