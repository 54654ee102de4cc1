"""Metrics for Prometheus: read from figures that the balancer keeps anyway, at the time of a scrape.

Nothing here is on the path of a request, and there is no global state: every admin application has a registry of its
own. Names and units follow Prometheus' conventions; ``docs/reference/metrics.md`` has a row for each.

Rules:
* Series by member go when the member goes, so that there are no more of them than living members need. Counts of
  members that are gone stay in the figures of their pool, which therefore never fall.
* No label has a value that clients or members can make up.
* Latencies by member are a sum and a count; the histogram, with twenty series, is by pool.
* A scrape has the figures of one moment. They are rendered a piece at a time, because a thousand lines
  take longer than a request should wait.
"""

from __future__ import annotations

import asyncio
import math
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.responses import Response

from balancer import build
from balancer.admin.metric_specs import METRICS, Spec
from balancer.admin.pool_view import Usage, View, by_name
from balancer.errors import LOG_ONLY, REASONS, TOKENS
from balancer.members.ejection import EjectionKind
from balancer.members.health import State
from balancer.members.member import Member
from balancer.telemetry.client_limits import ClientLimits
from balancer.telemetry.latencies import cumulated
from balancer.telemetry.stats import Stats, Tally, by_class
from balancer.version import __version__

# A member that is leaving is no member any more.
STATES = tuple(state for state in State if state is not State.LEAVING)
# Upper bounds of the histograms' buckets, in seconds: those of the classes that are 1, 2.5 or 5 in their decade.
BUCKETS = tuple(round(step * 10.0**power, 7) for power in range(-4, 2) for step in (1, 2.5, 5))
# Lines that are made in one turn of the event loop; each takes 5 to 9 us.
BATCH = 100
# End of a body in the OpenMetrics format.
EOF = b"# EOF\n"

Labels = dict[str, str]


def metrics_endpoint(
    pools: Callable[[], Sequence[View]],
    unrouted: Callable[[], Stats | None] = lambda: None,
    processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
    limits: ClientLimits | None = None,
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of ``/metrics``, which answers in Prometheus' text format or OpenMetrics, by the request.

    ``pools``: those that get requests now. ``unrouted``: figures of requests that no route led to a pool. ``limits``:
    those that clients of the admin port have reached.
    """
    registry = CollectorRegistry()
    registry.register(PoolCollector(pools, unrouted, processes, limits))
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(",".join(request.headers.getlist("accept")))
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return Response(await _render(encode, list(registry.collect())), headers={"content-type": content_type})

    return metrics


async def _render(encode: Callable[[Collector], bytes], families: Iterable[Metric]) -> bytes:
    """Render the families in a format, in pieces, so that the event loop goes on between them."""
    parts = []
    end = b""
    for family in families:
        header = len(_encode(encode, family, []))
        for first in range(0, max(len(family.samples), 1), BATCH):
            text = encode(_Family(_with(family, family.samples[first : first + BATCH])))
            end = EOF if text.endswith(EOF) else b""
            parts.append(text.removesuffix(EOF)[header if first else 0 :])
            await asyncio.sleep(0)
    return b"".join(parts) + end


def _encode(encode: Callable[[Collector], bytes], family: Metric, samples: Sequence[Sample]) -> bytes:
    return encode(_Family(_with(family, samples))).removesuffix(EOF)


def _with(family: Metric, samples: Sequence[Sample]) -> Metric:
    part = Metric(family.name, family.documentation, family.type, family.unit)
    part.samples = list(samples)
    return part


class _Family(Collector):
    """A family in the form that encoders take."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class PoolCollector(Collector):
    """Reads the figures of the pools."""

    def __init__(
        self,
        pools: Callable[[], Sequence[View]],
        unrouted: Callable[[], Stats | None] = lambda: None,
        processes: Callable[[], Sequence[Usage]] = lambda: [Usage.own()],
        limits: ClientLimits | None = None,
    ) -> None:
        self._pools = pools
        self._unrouted = unrouted
        self._processes = processes
        self._limits = limits

    def describe(self) -> Iterable[Metric]:
        """Return all metrics without samples."""
        return _Families()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics with the samples of this moment."""
        found = _Families()
        found.add(
            "balancer_build_info",
            {"version": __version__, "python_version": platform.python_version(), "build": build.kind()},
            1,
        )
        for usage in self._processes():
            of_process = {"process": str(usage.number)}
            found.add("balancer_process_cpu_seconds_total", of_process, usage.cpu)
            found.add("balancer_process_resident_memory_bytes", of_process, usage.memory)
            for stream, number in usage.log_lines_dropped.items():
                found.add("balancer_log_lines_dropped_total", {**of_process, "stream": stream}, number)
            for limit, number in usage.client_limits.items():
                found.add("balancer_client_limits_total", {**of_process, "limit": limit}, number)
        for limit, number in self._limits.counts.items() if self._limits else ():
            found.add("balancer_client_limits_total", {"process": "admin", "limit": limit}, number)
        pools = by_name(self._pools())
        # Pools may have one listener, and its clients, in common.
        known = {id(clients): len(clients) for pool in pools.values() if (clients := pool.clients) is not None}
        if known:
            found.add("balancer_client_connections", {}, sum(known.values()))
        if unrouted := self._unrouted():
            for (method, code), number in by_class(unrouted.total.requests).items():
                found.add("balancer_unrouted_requests_total", {"method": method, "code": code}, number)
        for name, pool in pools.items():
            _add_pool(found, {"pool": name}, pool)
        return found


class _Families:
    """The metrics of METRICS, in that order, to be filled in."""

    def __init__(self) -> None:
        self._families = {metric.name: _empty(metric) for metric in METRICS}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def add(self, name: str, labels: Labels, value: float, suffix: str = "") -> None:
        self._families[name].samples.append(Sample(name + suffix, labels, value))

    def add_histogram(self, name: str, labels: Labels, classes: Mapping[int, int], seconds: float) -> None:
        for bound, number in cumulated(classes, BUCKETS):
            self.add(name, {**labels, "le": str(bound)}, number, "_bucket")
        total = sum(classes.values())
        self.add(name, {**labels, "le": "+Inf"}, total, "_bucket")
        self.add(name, labels, total, "_count")
        self.add(name, labels, seconds, "_sum")


def _empty(spec: Spec) -> Metric:
    name = spec.name.removesuffix("_total").removesuffix("_info")
    unit = name.rpartition("_")[2]
    return Metric(name, spec.words, spec.kind, unit if unit in ("seconds", "bytes") else "")


def _add_pool(found: _Families, labels: Labels, pool: View) -> None:
    members = pool.members
    states = Counter(member.state for member in members.values())
    for state in STATES:
        found.add("balancer_members", {**labels, "state": state}, states[state])
    found.add("balancer_members_available", labels, pool.available)
    found.add("balancer_requests_in_flight", labels, pool.active)
    found.add("balancer_queued_requests", labels, pool.queued)
    found.add("balancer_queued_requests_limit", labels, pool.settings.queue_max)
    for answer in pool.snapshot.answers if pool.snapshot else ():
        found.add("balancer_dns_addresses", {**labels, "record": answer.record}, len(answer.endpoints))
    if pool.connections:
        active, idle, opened, requests = pool.connections
        found.add("balancer_upstream_connections", {**labels, "state": "active"}, active)
        found.add("balancer_upstream_connections", {**labels, "state": "idle"}, idle)
        found.add("balancer_upstream_connections_opened_total", labels, opened)
        found.add("balancer_upstream_requests_total", labels, requests)
    if pool.stats:
        _add_stats(found, labels, pool.stats)
        _add_dns(found, labels, pool, pool.stats)
    for address in sorted(members):
        of_member = {**labels, "member": str(address)}
        _add_member(found, of_member, members[address])
        if pool.stats and (tally := pool.stats.members.get(address)):
            _add_tally(found, of_member, tally)


def _add_stats(found: _Families, labels: Labels, stats: Stats) -> None:
    total = stats.total
    for (method, code), number in by_class(total.requests).items():
        found.add("balancer_requests_total", {**labels, "method": method, "code": code}, number)
    found.add_histogram("balancer_request_duration_seconds", labels, total.classes, total.seconds)
    found.add("balancer_request_body_bytes_total", labels, total.received)
    found.add("balancer_response_body_bytes_total", labels, total.sent)
    # Errors that have not happened yet are there as 0, so that the first one is an increase.
    for error in sorted(TOKENS | LOG_ONLY | stats.errors.keys()):
        found.add("balancer_errors_total", {**labels, "error": error}, stats.errors[error])
    found.add("balancer_retries_total", labels, stats.retries)
    for reason in sorted(REASONS | total.failed_attempts.keys()):
        found.add("balancer_failed_attempts_total", {**labels, "reason": reason}, total.failed_attempts[reason])
    found.add_histogram("balancer_queue_duration_seconds", labels, stats.queued_classes, stats.queued_seconds)
    for (state, event), number in sorted(stats.flips.items()):
        found.add("balancer_state_changes_total", {**labels, "state": state, "event": event.name.lower()}, number)
    for kind in EjectionKind:
        found.add("balancer_ejections_total", {**labels, "kind": kind.value}, stats.ejections[kind])


def _add_dns(found: _Families, labels: Labels, pool: View, stats: Stats) -> None:
    now = pool.clock()
    for (record, outcome), number in sorted(stats.dns.items()):
        found.add("balancer_dns_answers_total", {**labels, "record": record, "outcome": outcome}, number)
    for record in pool.settings.dns_record.upper().split("+"):
        of_record = {**labels, "record": record}
        answered = stats.answered.get(record, -math.inf)
        found.add("balancer_dns_answer_age_seconds", of_record, now - answered)
        found.add("balancer_dns_truncated_answers_total", of_record, stats.truncated[record])
    found.add("balancer_dns_changes_total", labels, stats.changes)


def _add_member(found: _Families, labels: Labels, member: Member) -> None:
    for state in STATES:
        found.add("balancer_member_state", {**labels, "state": state}, member.state is state)
    found.add("balancer_member_drained", labels, member.drained)
    found.add("balancer_member_ejected", labels, member.ejection is not None and not member.ejection.on_trial)
    found.add("balancer_member_on_trial", labels, member.ejection is not None and member.ejection.on_trial)
    found.add("balancer_member_requests_in_flight", labels, member.in_flight)
    if member.limit < math.inf:
        found.add("balancer_member_request_limit", labels, member.limit)


def _add_tally(found: _Families, labels: Labels, tally: Tally) -> None:
    for (method, code), number in by_class(tally.requests).items():
        found.add("balancer_member_requests_total", {**labels, "method": method, "code": code}, number)
    found.add("balancer_member_request_duration_seconds", labels, sum(tally.classes.values()), "_count")
    found.add("balancer_member_request_duration_seconds", labels, tally.seconds, "_sum")
    found.add("balancer_member_request_body_bytes_total", labels, tally.received)
    found.add("balancer_member_response_body_bytes_total", labels, tally.sent)
    for reason, number in tally.failed_attempts.items():
        found.add("balancer_member_failed_attempts_total", {**labels, "reason": reason}, number)
    for state, number in tally.flips.items():
        found.add("balancer_member_state_changes_total", {**labels, "state": state}, number)
