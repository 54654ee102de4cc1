"""Responses in the balancer's own name."""

from __future__ import annotations

from balancer.dispatch.context import ID_MAX, RequestRecord
from balancer.dispatch.interfaces import PENDING, Sink
from balancer.errors import Refusal
from balancer.http.headers import Headers
from balancer.words import counted


def too_large(limit: float) -> Refusal:
    """Return the refusal of a body with more than ``limit`` bytes."""
    return Refusal(413, "body_too_large", f"the body of a request may have {counted(round(limit), 'byte')}")


def overloaded() -> Refusal:
    """Return the refusal of a request that waited in vain for a slot at a member."""
    return Refusal(503, "overloaded", "every member was busy all the time", retry_after=1)


def refusal_response(refusal: Refusal, id: bytes) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a refusal: short plain text with the reason, and the request's id.

    The log has the request by its id, or by as much of it as the text has.
    """
    text = f"{refusal.status} {refusal.reason}\nrequest id: {id[:ID_MAX].decode('latin-1')}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        (b"x-balancer-error", refusal.token.encode()),
        (b"x-request-id", id),
        (b"cache-control", b"no-store"),
    ]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.headers:
        headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in refusal.headers.items()]
    return refusal.status, headers, text


async def refuse(refusal: Refusal, sink: Sink, record: RequestRecord) -> None:
    """Send a refusal as the response, and note it on the record.

    Raises ClientGone where a response has begun. The record then keeps the status of that one.
    """
    status, headers, text = refusal_response(refusal, record.id)
    if sink.state is PENDING:
        record.status, record.body_bytes = status, len(text)
    await send_refusal(status, headers, text, sink)


async def refuse_unrecorded(refusal: Refusal, sink: Sink, id: bytes) -> None:
    """Send a refusal as the response of a request whose record is complete."""
    await send_refusal(*refusal_response(refusal, id), sink)


async def send_refusal(status: int, headers: Headers, text: bytes, sink: Sink) -> None:
    """Send what ``refusal_response`` has returned."""
    await sink.start(status, headers)
    await sink.write(text, False)
