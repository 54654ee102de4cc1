"""Spans: what a collector gets, and what members are told of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from balancer.telemetry.tracing import VALUE_MAX, Tracing
from tests.support.wire import Connection, Member, Running, balance

pytestmark = pytest.mark.usefixtures("each_way")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


class Traced:
    """Spans in memory. ``spans``: those that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)

    def spans(self) -> list[ReadableSpan]:
        self.tracing.close()
        return list(self.exporter.get_finished_spans())


async def ask(running: Running, *fields: str) -> bytes:
    lines = ["GET /a?b HTTP/1.1", "Host: a", "Connection: close", *fields]
    return await running.exchange("".join(f"{it}\r\n" for it in lines).encode() + b"\r\n")


def told(member: Member) -> list[str]:
    return [it.decode() for it in re.findall(rb"(?i)\r\ntraceparent: (.*)\r\n", b"".join(member.received))]


async def test_request_is_a_span_of_the_clients_trace_and_the_members_parent() -> None:
    it = Traced()
    async with Member() as member, balance(member, observers=[it.tracing], trace=it.tracing.begin) as running:
        for _ in range(3):
            assert (await ask(running, f"Traceparent: {PARENT}", "Tracestate: x=y", "X-Request-ID: r1")).endswith(b"ok")
        await running.idle()
    spans = it.spans()
    assert len(spans) == len({span.context.span_id for span in spans if span.context}) == 3
    assert told(member) == [f"00-{TRACE}-{span.context.span_id:016x}-01" for span in spans if span.context]
    assert all(b"tracestate: x=y" in received.lower() for received in member.received)
    span = spans[0]
    assert span.parent and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.attributes and span.name == "GET"
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "url.path": "/a",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "http.request.header.x-request-id": ("r1",),
        "http.response.status_code": 200,
        "http.response.body.size": 2,
        "network.peer.address": member.address.host,
        "network.peer.port": member.address.port,
    }
    assert span.start_time and span.end_time and span.start_time < span.end_time


async def test_long_values_are_cut_in_a_span() -> None:
    it = Traced()
    async with Member() as member, balance(member, observers=[it.tracing], trace=it.tracing.begin) as running:
        long = "a" * 10_000
        await running.exchange(
            f"GET /{long} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: {long}\r\n\r\n".encode()
        )
        await running.idle()
    (span,) = it.spans()
    assert span.attributes
    assert span.attributes["url.path"] == "/" + long[: VALUE_MAX - 1]
    assert span.attributes["http.request.header.x-request-id"] == (long[:VALUE_MAX],)


async def test_request_without_a_trace_begins_one() -> None:
    it = Traced()
    async with Member() as member, balance(member, observers=[it.tracing], trace=it.tracing.begin) as running:
        await ask(running)
        await running.idle()
    (span,) = it.spans()
    assert span.parent is None and span.context
    flags = f"{span.context.trace_flags:02x}"
    assert told(member) == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{flags}"]


async def test_client_that_does_not_sample_its_trace_is_obeyed() -> None:
    it = Traced()
    async with Member() as member, balance(member, observers=[it.tracing], trace=it.tracing.begin) as running:
        await ask(running, f"Traceparent: {UNSAMPLED}")
        await running.idle()
    assert it.spans() == []
    assert told(member)[0].startswith(f"00-{TRACE}-") and told(member)[0].endswith("-00")


async def test_nonsense_for_a_trace_begins_one() -> None:
    it = Traced()
    async with Member() as member, balance(member, observers=[it.tracing], trace=it.tracing.begin) as running:
        await ask(running, "Traceparent: 00-zz-\xe9-01")
        await running.idle()
    (span,) = it.spans()
    assert span.parent is None and len(told(member)) == 1


async def test_failures_are_events_of_the_span_and_its_error() -> None:
    async def hang_up(connection: Connection) -> None:
        await connection.head()

    it = Traced()
    async with Member(hang_up) as bad, balance(bad, observers=[it.tracing], trace=it.tracing.begin) as running:
        assert b" 502 " in await ask(running)
        await running.idle()
    (span,) = it.spans()
    assert span.attributes and span.attributes["error.type"] == "member_failed"
    assert not span.status.is_ok
    assert {event.name for event in span.events} == {"try failed"}
    assert all(event.attributes and event.attributes["member"] == str(bad.address) for event in span.events)


class _Collector(BaseHTTPRequestHandler):
    bodies: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    _Collector.bodies = []
    server = HTTPServer(("127.0.0.1", 0), _Collector)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["", "/", "/otlp/v1/traces"])
async def test_collector_gets_spans_over_http(path: str, collector: HTTPServer) -> None:
    tracing = Tracing.to(f"http://127.0.0.1:{collector.server_port}{path}")
    async with Member() as member, balance(member, observers=[tracing], trace=tracing.begin) as running:
        await ask(running)
        await running.idle()
    tracing.close()
    ((asked, body),) = _Collector.bodies
    assert asked == (path if len(path) > 1 else "/v1/traces")
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert [it.value.string_value for it in resource.resource.attributes if it.key == "service.name"] == ["balancer"]
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET"]
