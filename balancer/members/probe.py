"""A probe of a member: a TCP connect, or a request for its readiness path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from balancer.config.settings import Settings
from balancer.errors import LOCAL_RESOURCE_ERRNOS, connect_failed
from balancer.loop_time import Limit
from balancer.members.health import HealthEvent
from balancer.members.probe_answer import ProbeAnswer
from balancer.types import Address

# Bytes of an answer that are read at a time.
PIECE_BYTES = 2**16

# An event of the member, or None where the probe shows none, and words for it.
Verdict = tuple[HealthEvent | None, str]
Probe = Callable[[Address], Awaitable[Verdict]]


def make_probe(settings: Settings) -> Probe:
    """Return the probe of the settings: HTTP where HEALTH_PATH is set, else a TCP connect."""
    path, within = settings.health_path, settings.connect_timeout
    request = b"" if path is None else health_request(settings)

    async def probe(address: Address) -> Verdict:
        try:
            async with Limit(within, patient=True):
                reader, writer = await asyncio.open_connection(address.host, address.port)
        except OSError as error:
            if error.errno in LOCAL_RESOURCE_ERRNOS:
                return None, str(error)
            fault = connect_failed(error, within)
            return (HealthEvent.REFUSED if fault.refused else HealthEvent.UNREACHABLE), str(fault)
        try:
            if path is None:
                return HealthEvent.PROBE_OK, "accepts connections"
            writer.write(request)
            return await _read(reader, settings)
        finally:
            writer.transport.abort()  # Close now: nothing is left to flush.

    return probe


def health_request(settings: Settings) -> bytes:
    """Return the request for the readiness path, in the form of a user's request when it reaches the member.

    Frameworks refuse an unknown ``Host``, and redirect requests that did not come by https.
    """
    host = settings.health_host or service_name(settings.alias)
    scheme = "https" if settings.tls_cert else "http"
    return (
        f"GET {settings.health_path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: {scheme}\r\n"
        "User-Agent: balancer\r\nConnection: close\r\n\r\n"
    ).encode()


def service_name(alias: str) -> str:
    """Return an alias as a host: without a final dot, and without the ``_service._proto`` of SRV (RFC 2782)."""
    if ":" in alias:
        return f"[{alias}]"
    return ".".join(label for label in alias.rstrip(".").split(".") if not label.startswith("_")) or alias


async def _read(reader: asyncio.StreamReader, settings: Settings) -> Verdict:
    """Read an answer to its end, as far as it comes within HEALTH_TIMEOUT; return what it says of the member."""
    answer, timed_out = ProbeAnswer(settings), False
    try:
        async with Limit(settings.health_timeout, patient=True):
            answer.begin(await reader.readline())
            while not answer.is_over and (piece := await reader.read(PIECE_BYTES)):
                answer.feed(piece)
    except (OSError, ValueError) as error:
        timed_out = isinstance(error, TimeoutError)
        if not answer.status_line:
            words = f"GET {settings.health_path}: "
            if timed_out:
                return HealthEvent.PROBE_UNANSWERED, f"{words}no answer within {settings.health_timeout:g} s"
            return HealthEvent.PROBE_FAILED, f"{words}{error}"
    return answer.judge(timed_out)
