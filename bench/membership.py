"""What thousands of members cost: ``python -m bench.membership [--members N] [--json]``.

Choices by policy with 2, 1000 and N members in one run, a member that comes or goes, all members replaced at once under
load, an answer of DNS that says nothing new, and a second of probing. CPU times are of the balancer's process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from statistics import median
from typing import Any

import dns.exception
import dns.message
import dns.rrset
import httpx
import uvloop

from balancer.config.settings import Settings
from balancer.discovery.resolver import DnsResolver
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.admission import Admission
from balancer.dispatch.queue import PendingQueue
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import HealthEvent
from balancer.members.membership import Membership
from balancer.members.probe import Verdict, make_probe
from balancer.policies import make_policy
from balancer.telemetry.stats import Stats
from balancer.transport import BalancedTransport
from balancer.types import Address

POLICIES = {
    "round_robin": Settings(),
    "least_requests": Settings(policy="least_requests"),
    "random": Settings(policy="random"),
    "hash": Settings(policy="hash"),
    "sticky cookie": Settings(sticky_cookie="member"),
}
CHOICES = 20_000
ROUNDS = 15


def endpoints(count: int, first: str = "127.1.0.0", port: int = 80, weights: int = 1) -> frozenset[Endpoint]:
    """``count`` consecutive addresses, with weights from 1 to ``weights`` in turn."""
    start = int(ipaddress.ip_address(first))
    return frozenset(
        Endpoint(Address(str(ipaddress.ip_address(start + offset)), port), weight=1 + offset % weights)
        for offset in range(count)
    )


class Pool:
    """Members that are up, and who chooses among them."""

    def __init__(self, settings: Settings, count: int, weights: int = 1) -> None:
        self.membership = Membership()
        self.membership.reconcile(Snapshot((Answer("A", Outcome.FOUND, endpoints(count, weights=weights)),), 0.0))
        self.admission = Admission(
            self.membership, make_policy(settings, Random(1), time.monotonic), PendingQueue(0, 0)
        )
        for member in self.membership.members.values():
            self.membership.observe(member, HealthEvent.PROBE_OK, 0.0)
        # ClientRegistry that differ, so that a hash is asked for different places.
        self.requests = [Request("GET", b"/", [], f"192.0.2.{number}") for number in range(256)]
        self.choose(CHOICES)

    def choose(self, count: int) -> float:
        """Seconds of CPU time for a choice."""
        acquire, release = self.admission.acquire, self.admission.release
        requests = self.requests * (count // len(self.requests))
        began = time.process_time()
        for request in requests:
            member = acquire(request, ())
            assert member
            release(member)
        return (time.process_time() - began) / len(requests)

    def flip(self) -> tuple[float, float]:
        """Seconds of CPU time to follow one member that goes down, and one that comes up, to the next choice."""
        member = Random(time.perf_counter_ns()).choice(self.membership.available)
        times = []
        for event in (HealthEvent.REFUSED, HealthEvent.PROBE_OK):
            began = time.process_time()
            self.membership.observe(member, event, 0.0)
            self.admission.assign_queued()
            taken = self.admission.acquire(self.requests[0], ())
            times.append(time.process_time() - began)
            assert taken
            self.admission.release(taken)
        return times[0], times[1]


def choices(sizes: list[int]) -> dict[str, dict[str, list[float]]]:
    """By policy: us for a choice with each number of members, us for a flip with the largest; medians of rounds.

    The sizes alternate within a round, and what is before a policy chooses (the queue, the books) is the same for all.
    """
    found = {}
    kinds = {name: (settings, 1) for name, settings in POLICIES.items()}
    kinds |= {f"{policy}, five weights": (POLICIES[policy], 5) for policy in ("round_robin", "random", "hash")}
    for name, (settings, weights) in kinds.items():
        pools = [Pool(settings, size, weights) for size in sizes]
        gc.collect()
        gc.freeze()
        rounds = [[pool.choose(CHOICES) for pool in pools] for _ in range(ROUNDS)]
        flips = [pools[-1].flip() for _ in range(50)]
        found[name] = {
            "choice": [1e6 * median(times) for times in zip(*rounds, strict=True)],
            "flip": [1e6 * median(times) for times in zip(*flips, strict=True)],
        }
        gc.unfreeze()
    return found


class Resolver:
    def __init__(self, found: frozenset[Endpoint]) -> None:
        self.found = found

    async def __call__(self) -> Snapshot:
        return Snapshot((Answer("A", Outcome.FOUND, self.found),), time.monotonic())


# A process that accepts on every address of loopback: at PORT it closes connections (probes), or answers requests.
MEMBER = """
import asyncio, socket, uvloop
OK = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"
class Serve(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(OK * data.count(b"\\r\\n\\r\\n"))
async def main():
    sock = socket.create_server(("", 0), backlog=4096)
    server = await asyncio.get_running_loop().create_server(Serve, sock=sock, backlog=4096)
    print(sock.getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


@contextmanager
def everybody() -> Iterator[int]:
    """The port of a process that plays every member."""
    process = subprocess.Popen([sys.executable, "-c", MEMBER], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        yield int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


class Pauses:
    """How long the event loop was kept from everybody, in seconds: how late a timer of a millisecond comes."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)

    async def end(self) -> float:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.longest


async def replaced(count: int, port: int, policy: str, clients: int = 30) -> dict[str, float]:
    """All members replaced at once while clients send requests one after the other; times in ms."""
    resolver = Resolver(endpoints(count, "127.1.0.0", port))
    stats = Stats()
    # DNS is asked by hand here, so that the moment of its answer is known.
    balancer = LoadBalancer(Settings(policy=policy, resolve_interval=3600), resolve=resolver, stats=stats)
    transport = BalancedTransport(balancer)
    worst = held = 0.0
    attempts = 0
    stop = False

    async def client(number: int) -> None:
        nonlocal worst, held, attempts
        request = httpx.Request("GET", "http://apps/")
        while not stop:
            began = time.perf_counter()
            answer = await transport.handle_async_request(request)
            await answer.aread()
            assert answer.status_code == 200
            took = time.perf_counter() - began
            record = answer.extensions["balancer"]
            held, attempts = max(held, record.queued), attempts + len(record.attempts)
            worst = max(worst, took)
            await asyncio.sleep(0.01)

    async with balancer:
        while len(balancer.membership.available) < count:
            await asyncio.sleep(0.05)
        gc.collect()
        gc.freeze()
        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        await asyncio.sleep(3.0)
        kept = balancer.upstream.idle  # type: ignore[attr-defined]
        before, worst, held, attempts = worst, 0.0, 0.0, 0
        pauses = Pauses()
        old = resolver.found
        resolver.found = endpoints(count, "127.2.0.0", port)
        began = time.perf_counter()
        balancer._deliver(await resolver())
        applied = time.perf_counter() - began
        while not balancer.membership.has_available:
            await asyncio.sleep(0)
        first = time.perf_counter() - began
        while len(balancer.membership.available) < count:
            await asyncio.sleep(0.01)
        everybody_up = time.perf_counter() - began
        longest = await pauses.end()
        stop = True
        await asyncio.gather(*tasks)
        assert old != resolver.found and not stats.errors, stats.errors
        gc.unfreeze()
    return {
        "connections to members before": kept,
        "applied": 1e3 * applied,
        "first member up after": 1e3 * first,
        "all members up after": 1e3 * everybody_up,
        "longest pause of the event loop": 1e3 * longest,
        "longest request before": 1e3 * before,
        "longest request": 1e3 * worst,
        "of that queued, at most": 1e3 * held,
        "attempts that failed": attempts,
    }


def rendered(name: str, record: str, data: list[str], glue: list[tuple[str, str]]) -> list[bytes]:
    """The same answer in several orders, as it is on the wire."""
    rng = Random(1)
    found = []
    for _ in range(8):
        query = dns.message.make_query(name, record, use_edns=0)
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text_list(name, 600, "IN", record, rng.sample(data, len(data))))
        for target, address in rng.sample(glue, len(glue)):
            response.additional.append(dns.rrset.from_text(target, 600, "IN", "A", address))
        found.append(response.to_wire(max_size=65535))
    return found


def largest(name: str, record: str, data: Callable[[int], str], glue: Callable[[int], tuple[str, str]] | None) -> int:
    """How many records fit into a message over TCP."""
    low, high = 1, 5000
    while low < high:
        middle = (low + high + 1) // 2
        try:
            texts = [data(number) for number in range(middle)]
            query = dns.message.make_query(name, record, use_edns=0)
            response = dns.message.make_response(query)
            response.answer.append(dns.rrset.from_text_list(name, 600, "IN", record, texts))
            for number in range(middle if glue else 0):
                assert glue
                target, address = glue(number)
                response.additional.append(dns.rrset.from_text(target, 600, "IN", "A", address))
            response.to_wire(max_size=65535)
            low = middle
        except dns.exception.TooBig:
            high = middle - 1
    return low


def address(number: int) -> str:
    return f"10.1.{number // 250}.{number % 250 + 1}"


SRV_NAME = "_http._tcp.apps."
ANSWERS: dict[str, tuple[str, str, Callable[[int], str], Callable[[int], tuple[str, str]] | None]] = {
    "A": ("apps.", "A", address, None),
    "SRV, short targets, with their addresses": (
        SRV_NAME, "SRV", lambda number: f"0 1 80 w{number}.", lambda number: (f"w{number}.", address(number)),
    ),
    "SRV, targets as Kubernetes names them, with their addresses": (
        SRV_NAME, "SRV",
        lambda number: f"0 1 80 {address(number).replace('.', '-')}.apps.default.svc.cluster.local.",
        lambda number: (f"{address(number).replace('.', '-')}.apps.default.svc.cluster.local.", address(number)),
    ),
    "SRV, short targets, without addresses": (SRV_NAME, "SRV", lambda number: f"0 1 80 w{number}.", None),
}  # fmt: skip


async def serve_dns(kind: str) -> None:
    """A name server of its own process that knows one name, and an address for every other."""
    name, record, data, glue = ANSWERS[kind]
    count = largest(*ANSWERS[kind])
    wires = rendered(
        name,
        record,
        [data(number) for number in range(count)],
        [glue(number) for number in range(count)] if glue else [],
    )
    rng = Random(2)

    def answer(query: bytes) -> bytes:
        asked = dns.message.from_wire(query)
        if str(asked.question[0].name) == name:
            return query[:2] + rng.choice(wires)[2:]
        response = dns.message.make_response(asked)
        number = int(asked.question[0].name.labels[0][1:])
        response.answer.append(dns.rrset.from_text(asked.question[0].name, 600, "IN", "A", address(number)))
        return response.to_wire()

    class Udp(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
            wire = answer(data)
            if len(wire) > 4096:
                wire = data[:2] + b"\x83\x80" + data[4:]
            self.transport.sendto(wire, sender)

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = answer(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))
        writer.write(len(wire).to_bytes(2) + wire)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(tcp, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.get_running_loop().create_datagram_endpoint(Udp, local_addr=("127.0.0.1", port))
    print(port, count, flush=True)
    await server.serve_forever()


async def resolutions(kind: str) -> dict[str, float]:
    """CPU time in ms of the first resolution, and of one that says nothing new (in another order)."""
    command = [sys.executable, "-m", "bench.membership", "--serve-dns", kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert process.stdout
        port, count = map(int, process.stdout.readline().split())
        name, record, *_ = ANSWERS[kind]
        settings = Settings(alias=name.rstrip("."), dns_record=record.lower(), resolver=Address("127.0.0.1", port))
        resolve = DnsResolver(settings)
        membership = Membership()
        times = []
        pauses = Pauses()
        for _ in range(12):
            before = time.process_time()
            began = time.perf_counter()
            snapshot = await resolve()
            membership.reconcile(snapshot)
            times.append((time.process_time() - before, time.perf_counter() - began))
            assert len(membership.members) == count, snapshot.describe()
        longest = await pauses.end()
        return {
            "members": count,
            "first": 1e3 * times[0][0],
            "first, by the clock": 1e3 * times[0][1],
            "unchanged": 1e3 * median(cpu for cpu, _ in times[2:]),
            "longest pause of the event loop": 1e3 * longest,
        }
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


async def probing(count: int, port: int, seconds: float = 10.0) -> dict[str, float]:
    """The balancer without requests: CPU in percent of a core, probes a second, and the most under way at once."""
    probe = make_probe(Settings())
    begun = 0
    under_way = most = 0

    async def counted(address: Address) -> Verdict:
        nonlocal begun, under_way, most
        begun += 1
        under_way += 1
        most = max(most, under_way)
        try:
            return await probe(address)
        finally:
            under_way -= 1

    resolver = Resolver(endpoints(count, port=port))
    balancer = LoadBalancer(Settings(), resolve=resolver, probe=counted, stats=Stats())
    async with balancer:
        start = time.process_time(), time.perf_counter()
        while len(balancer.membership.available) < count:
            await asyncio.sleep(0.01)
        up = time.process_time() - start[0], time.perf_counter() - start[1]
        most_joining, most = most, 0
        await asyncio.sleep(2.0)
        begun = 0
        pauses = Pauses()
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - began
        longest = await pauses.end()
    # The watch for pauses takes some of it itself: see ``watching``.
    return {
        "all up after (s)": up[1],
        "CPU until then (s)": up[0],
        "most at once, joining": most_joining,
        "probes a second": begun / elapsed,
        "most at once": most,
        "percent of a core": 100 * cpu / elapsed,
        "longest pause of the event loop (ms)": 1e3 * longest,
    }


async def watching(seconds: float = 3.0) -> float:
    """What the watch for pauses takes alone, in percent of a core."""
    pauses = Pauses()
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - began
    await pauses.end()
    return 100 * cpu / elapsed


def measure(members: int, only: str) -> dict[str, Any]:
    """Everything, or the part of that name."""
    found: dict[str, Any] = {}
    if only in ("", "choices"):
        found["choices"] = choices([2, 1000, members])
    if only in ("", "resolutions"):
        found["resolutions"] = {kind: uvloop.run(resolutions(kind)) for kind in ANSWERS}
    with everybody() as port:
        if only in ("", "replaced"):
            found["replaced"] = {
                policy: uvloop.run(replaced(members, port, policy)) for policy in ("round_robin", "hash")
            }
        if only in ("", "probing"):
            watch = uvloop.run(watching())
            found["probing"] = {count: uvloop.run(probing(count, port)) for count in (2, 1000, members)}
            for one in found["probing"].values():
                one["percent of a core"] -= watch
    return found


def say(members: int, found: dict[str, Any]) -> None:
    """For people."""
    if "choices" in found:
        sizes = [2, 1000, members]
        print(f"a choice, us of CPU: {', '.join(map(str, sizes))} members; {members}:2; to follow one that goes, comes")
        for name, one in found["choices"].items():
            times = one["choice"]
            cells = (
                [f"{time:.3f}" for time in times]
                + [f"{times[-1] / times[0]:.2f}"]
                + [f"{flip:.0f}" for flip in one["flip"]]
            )
            print(f"  {name:28} {'  '.join(cells)}")
    for part in ("resolutions", "replaced", "probing"):
        for name, figures in found.get(part, {}).items():
            print(f"{part}: {name}")
            for what, value in figures.items():
                print(f"  {what:40} {value:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.membership", description=__doc__)
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--only", default="", choices=["choices", "resolutions", "replaced", "probing"])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--serve-dns", metavar="KIND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    gc.set_threshold(50_000, 20, 20)
    # As in ``balancer serve``, too: what is logged is written, to a file that nobody reads here.
    logging.basicConfig(level=logging.INFO, filename=os.devnull)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments.serve_dns:
        asyncio.run(serve_dns(arguments.serve_dns))
        return
    found = measure(arguments.members, arguments.only)
    print(json.dumps(found, indent=2)) if arguments.json else say(arguments.members, found)


if __name__ == "__main__":
    main()
