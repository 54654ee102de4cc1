"""Bounds that clients have reached: counts for the metrics, and now and then a line in the log.

Rules:
* A request that is refused has its line in the access log and its token in ``balancer_errors_total``. Whatever else a
  bound ends or refuses, such as a connection without a request, is counted here.
* Clients may reach a bound at any rate, so each kind has a line in the log at most once a minute (``RareLog``).
* No word of a client becomes a kind: ``LIMITS`` has them all, from 0 on.
"""

from __future__ import annotations

import logging
import time

from balancer.telemetry.rare_log import RareLog
from balancer.types import Clock

log = logging.getLogger(__name__)

# What a client has met, by the value of the label ``limit``.
LIMITS = frozenset(
    {
        "admin_pages",  # the places of streams on the admin port
        "admin_request",  # a request that the admin port's front end refuses: it has no access log
        "connections",  # MAX_CONNECTIONS
        "connections_per_client",  # MAX_CONNECTIONS_PER_CLIENT
        "discarding",  # time or bytes behind an answer that came before the end of its request
        "handshake_failed",  # neither TLS nor HTTP on the port of TLS, or no TLS that both sides speak
        "handshake_timeout",  # HEADER_TIMEOUT, in a PROXY header or a TLS handshake
        "handshakes",  # MAX_HANDSHAKES
        "header_timeout",  # HEADER_TIMEOUT, without a byte of a request
        "http2_control",  # frames of HTTP/2 that carry nothing, too many for what the others carry
        "http2_error",  # what ends a connection of HTTP/2 (RFC 9113 section 5.4.1)
        "http2_stream",  # what ends a stream of HTTP/2 (section 5.4.2)
        "lingering",  # a second behind the last answer, in which the client went on sending
        "proxy_header",  # a PROXY header that is missing or malformed
        "unread",  # STREAM_IDLE_TIMEOUT, while bytes waited for the client
        "wrong_protocol",  # TLS on a port without, or the reverse
    }
)


class ClientLimits:
    """The bounds that the clients of a process have reached. ``counts``: by kind."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.counts = dict.fromkeys(sorted(LIMITS), 0)
        self._lines = {limit: RareLog(log, clock) for limit in LIMITS}

    def reached(self, limit: str, peer: str, words: str) -> None:
        """Count a bound of LIMITS. ``peer``: the client's address, or "" on a Unix socket; ``words``: what it does."""
        self.counts[limit] += 1
        self._lines[limit].warning("a client at %s %s", peer or "a Unix socket", words)
