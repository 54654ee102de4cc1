"""DNS as pods see it: a headless Service's records, a cache in front of them, and the pods themselves.

The records are those of the Kubernetes DNS specification, section 2.4; names of pods without a hostname, weights and
the additional section are as CoreDNS has them.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from balancer.demo.dns_server import Answerer
from tests.support.wire import OK, Connection, Member

ZONE = "cluster.local."
NAMESPACE = f"default.svc.{ZONE}"
SERVICE = f"worker.{NAMESPACE}"
# What the kubelet writes into resolv.conf: the cluster's domains, then those of the node.
SEARCH = [NAMESPACE, f"svc.{ZONE}", ZONE, "corp.example."]
NDOTS = 5


class Pod(Member):
    """A worker as DESIGN 3.3 has it: SIGTERM (``drain()``) turns ``/healthz`` 503 and announces the end of connections.

    ``ready``: what the kubelet's probe last found. ``served``: requests other than probes.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(self._answer, host, port)
        self.ready = True
        self.draining = False
        self.served = 0
        self.in_work: list[Connection] = []

    def drain(self) -> None:
        self.draining = True

    async def _answer(self, connection: Connection) -> None:
        while True:
            target = (await connection.head()).split()[1]
            if target == b"/healthz":
                status = b"503 Service Unavailable" if self.draining else b"200 OK"
                await connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
                continue
            self.served += 1
            if target == b"/long":
                self.in_work.append(connection)  # The test answers.
            elif self.draining:
                await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                return
            else:
                await connection.send(OK)


@dataclass
class Headless:
    """Answers for the headless Service ``worker`` in the namespace ``default``, with a port called ``http``.

    ``published``: the addresses of its pods. A pod that is not ready is in DNS all the same with
    ``publish_not_ready``. ``glue``: SRV answers bring the addresses of their targets along. ``elsewhere`` answers for
    names outside the cluster's zone. ``asked`` counts queries by name.
    """

    port: int = 8080
    published: list[str] = field(default_factory=list)
    unready: set[str] = field(default_factory=set)
    publish_not_ready: bool = True
    glue: bool = True
    ttl: int = 30
    elsewhere: Answerer | None = None
    asked: Counter[str] = field(default_factory=Counter)

    async def __call__(self, query: dns.message.Message, response: dns.message.Message) -> None:
        question = query.question[0]
        name = question.name.to_text().lower()
        self.asked[name] += 1
        if not name.endswith("." + ZONE):
            if self.elsewhere:
                await self.elsewhere(query, response)
            else:
                response.set_rcode(dns.rcode.NXDOMAIN)
            return
        hosts = [it for it in self.published if self.publish_not_ready or it not in self.unready]
        pods = {f"{it.replace('.', '-')}.{SERVICE}": it for it in hosts}
        addresses = pods.values() if name == SERVICE else [pods[name]] if name in pods else []
        if name == f"_http._tcp.{SERVICE}" and pods:
            if question.rdtype == dns.rdatatype.SRV:
                weight = max(1, 100 // len(pods))
                services = [f"0 {weight} {self.port} {it}" for it in pods]
                response.answer.append(dns.rrset.from_text_list(name, self.ttl, "IN", "SRV", services))
                if self.glue:
                    response.additional += [
                        dns.rrset.from_text(target, self.ttl, "IN", "A", host) for target, host in pods.items()
                    ]
        elif addresses:
            if question.rdtype == dns.rdatatype.A:
                response.answer.append(dns.rrset.from_text_list(name, self.ttl, "IN", "A", list(addresses)))
        else:
            response.set_rcode(dns.rcode.NXDOMAIN)


class Cache:
    """What NodeLocal DNSCache and CoreDNS's cache do: answers are those of up to a TTL ago.

    ``second``: what a second of a TTL lasts here. ``denial``: for how many of them a negative answer is kept.
    """

    def __init__(self, answerer: Answerer, second: float, denial: int = 5) -> None:
        self._answerer = answerer
        self._second = second
        self._denial = denial
        self._kept: dict[tuple[str, int], tuple[float, dns.message.Message]] = {}

    async def __call__(self, query: dns.message.Message, response: dns.message.Message) -> None:
        question = query.question[0]
        key = question.name.to_text().lower(), int(question.rdtype)
        until, kept = self._kept.get(key, (0.0, response))
        if time.monotonic() >= until:
            kept = dns.message.make_response(query)
            await self._answerer(query, kept)
            ttl = kept.answer[0].ttl if kept.answer else self._denial
            self._kept[key] = time.monotonic() + ttl * self._second, kept
        response.set_rcode(kept.rcode())
        response.answer += kept.answer
        response.additional += kept.additional
