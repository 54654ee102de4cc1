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
        "connections",  # MAX_CONNECTIONS
        "connections_per_client",  # MAX_CONNECTIONS_PER_CLIENT
        "header_timeout",  # HEADER_TIMEOUT, without a byte of a request
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
