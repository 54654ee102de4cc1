"""The default upstream: keep-alive connections to members, and nothing else.

``balancer.upstream.connection_pool`` has the connections, and ``balancer.upstream.sending`` what waits. This module has
no coroutine.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from balancer.types import Address
from balancer.upstream import sending
from balancer.upstream.base import Connections, UpstreamRequest
from balancer.upstream.connection_pool import ConnectionPool
from balancer.upstream.exchange import MemberExchange


class NativeUpstream(ConnectionPool):
    """HTTP/1.1 to members. ``active`` and ``idle`` count its connections, ``opened`` all so far.

    ``requests``: sent on them so far.
    """

    def send(self, address: Address, request: UpstreamRequest) -> Coroutine[Any, Any, MemberExchange]:
        return sending.send(self, address, request)

    def counts(self) -> Connections:
        """Return the numbers of connections to members."""
        return Connections(self.active, self.idle, self.opened, self.requests)

    def close(self) -> Coroutine[Any, Any, None]:
        return sending.close(self)
