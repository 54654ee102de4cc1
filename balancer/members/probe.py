"""A probe of a member: a TCP connect, or a request for its readiness path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from balancer.config.settings import Settings
from balancer.errors import LOCAL_RESOURCE_ERRNOS, connect_failed
from balancer.loop_time import Limit, loop_time
from balancer.members.health import HealthEvent
from balancer.types import Address

# Bytes of an answer that are read; a longer one is cut off. Programs whose answer is cut off log a failure.
ANSWER_MAX_BYTES = 2**20

# An event of the member, or None where the probe shows none, and words for it.
Verdict = tuple[HealthEvent | None, str]
Probe = Callable[[Address], Awaitable[Verdict]]


def make_probe(settings: Settings) -> Probe:
    """Return the probe of the settings: HTTP where HEALTH_PATH is set, else a TCP connect."""
    path, within, limit = settings.health_path, settings.connect_timeout, settings.health_timeout
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
            clock = loop_time()
            deadline = clock.time() + limit
            async with Limit(limit, patient=True):
                writer.write(request)
                status_line = await reader.readline()
            if status_line.startswith(b"HTTP/1."):
                await _read_rest(reader, deadline - clock.time())
            return _judge(path, status_line)
        except TimeoutError:
            return HealthEvent.PROBE_UNANSWERED, f"GET {path}: no answer within {limit:g} s"
        except (OSError, ValueError) as error:
            return HealthEvent.PROBE_FAILED, f"GET {path}: {error}"
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


async def _read_rest(reader: asyncio.StreamReader, seconds: float) -> None:
    """Read headers and body until their end, for ``seconds`` at most, up to ANSWER_MAX_BYTES.

    What comes of it does not matter any more: the verdict is the status line's.
    """
    left, length, tail, is_chunked = ANSWER_MAX_BYTES, ANSWER_MAX_BYTES, b"", False
    try:
        async with Limit(seconds):
            while left > 0 and (line := await reader.readline()).strip():
                left -= len(line)
                name, _, value = line.lower().partition(b":")
                if name == b"content-length" and value.strip().isdigit():
                    length = int(value)
                is_chunked = is_chunked or (name == b"transfer-encoding" and b"chunked" in value)
            # A member that does not close the connection still has an answer that ends.
            left = min(left, length)
            while left > 0 and (piece := await reader.read(left)):
                left -= len(piece)
                tail = (tail + piece)[-5:]
                if is_chunked and tail == b"0\r\n\r\n":
                    return
    except (TimeoutError, OSError, ValueError):
        pass


def _judge(path: str, status_line: bytes) -> Verdict:
    """Judge a member's answer to ``GET path``: 2xx is up, 503 is draining, the rest is a failure."""
    parts = status_line.split(maxsplit=2)
    if not parts:
        return HealthEvent.PROBE_FAILED, f"GET {path}: the connection was closed without an answer"
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return HealthEvent.PROBE_FAILED, f"GET {path}: not an HTTP answer"
    status = int(parts[1])
    words = f"GET {path}: {status}"
    if 200 <= status <= 299:
        return HealthEvent.PROBE_OK, words
    if status == 503:
        return HealthEvent.PROBE_DRAINING, words
    return HealthEvent.PROBE_FAILED, f"{words} is neither 2xx nor 503"
