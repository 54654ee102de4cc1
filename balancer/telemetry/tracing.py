"""Spans for OpenTelemetry (the extra ``otel``): the balancer's part of a trace, exported with OTLP over HTTP.

A span begins when a request comes and ends with the last byte of its response. The trace is the client's, where it
sends a ``traceparent`` (W3C Trace Context). Members get the balancer's span in its place, so that theirs are its
children. Whether a trace is sampled is the client's choice, where it made one. OpenTelemetry's own variables set the
rest: the service's name (``OTEL_SERVICE_NAME``, "balancer" by default), the sampler, headers, batch sizes.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from balancer.dispatch.context import RequestRecord, Span
from balancer.http.headers import Headers
from balancer.telemetry.observer import Observer
from balancer.version import __version__

# Path at a collector, if the endpoint has none (OTLP specification, "Endpoint URLs for OTLP/HTTP").
DEFAULT_PATH = "/v1/traces"

# Bytes of a client's value that go into a span: thousands of spans may wait for the collector.
VALUE_MAX = 1024

_context = TraceContextTextMapPropagator()


class RequestSpan(Span):
    """A request's part of a trace, as a span of OpenTelemetry."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        carrier: dict[str, str] = {}
        _context.inject(carrier, trace.set_span_in_context(span))
        self.fields: Headers = [(b"traceparent", carrier["traceparent"].encode())]


class Tracing(Observer):
    """Begins a span for each request and ends it when the request is done; ``close`` sends those that wait."""

    def __init__(self, exporter: SpanExporter) -> None:
        names = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "balancer"})
        self._provider = TracerProvider(resource=names, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("balancer", __version__)

    @classmethod
    def to(cls, endpoint: str) -> Tracing:
        """Export to a collector's URL."""
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + DEFAULT_PATH
        return cls(OTLPSpanExporter(endpoint))

    def begin(self, record: RequestRecord) -> RequestSpan | None:
        """Begin the span of a new request."""
        request = record.request
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in request.headers
            if name in (b"traceparent", b"tracestate")
        }
        # Names and attributes by the semantic conventions for HTTP servers.
        span = self._tracer.start_span(
            request.method[:VALUE_MAX],
            _context.extract(carrier),
            trace.SpanKind.SERVER,
            {
                "http.request.method": request.method[:VALUE_MAX],
                "url.path": request.target.partition(b"?")[0][:VALUE_MAX].decode("latin-1"),
                "url.scheme": request.scheme,
                "client.address": request.client,
                "http.request.header.x-request-id": [record.id[:VALUE_MAX].decode("latin-1")],
            },
        )
        return RequestSpan(span)

    def done(self, record: RequestRecord) -> None:
        request_span = getattr(record, "span", None)
        if not isinstance(request_span, RequestSpan):
            return  # It was refused before it was a request.
        span = request_span.span
        span.set_attribute("http.response.status_code", record.status)
        span.set_attribute("http.response.body.size", record.body_bytes)
        if record.member:
            span.set_attribute("network.peer.address", record.member.host)
            span.set_attribute("network.peer.port", record.member.port)
        for attempt in record.attempts:
            span.add_event("try failed", {"member": str(attempt.member), "reason": attempt.words})
        if record.queued:
            span.set_attribute("balancer.queued_seconds", record.queued)
        if record.error:
            span.set_attribute("error.type", record.error)
        if record.status >= 500 or record.error == "truncated":
            span.set_status(trace.StatusCode.ERROR, record.reason or record.error)
        span.end()

    def close(self) -> None:
        """Send the spans that wait; takes as long as the collector lets it, 10 s at most by default."""
        self._provider.shutdown()
