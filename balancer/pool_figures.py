"""What a pool shows of itself: its members, and how much it has to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from balancer.asgi.app import Proxy
from balancer.dispatch.dispatcher import Dispatcher
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.types import Address
from balancer.upstream.base import Connections, Upstream
from balancer.upstream.native import NativeUpstream


class PoolFigures:
    """The figures of one pool. ``listener``: the front end of its requests, where that is another's."""

    membership: Membership
    upstream: Upstream
    dispatcher: Dispatcher
    proxy: Proxy
    listener: Proxy | None

    @property
    def members(self) -> Mapping[Address, Member]:
        """All members by address, whatever their state."""
        return self.membership.members

    @property
    def available(self) -> int:
        """Number of members that may be given requests."""
        return len(self.membership.available)

    @property
    def queued(self) -> int:
        """Number of requests that wait for a member."""
        return len(self.dispatcher.queue)

    @property
    def active(self) -> int:
        """Number of requests in progress, with those that wait."""
        return self.proxy.active

    @property
    def clients(self) -> Collection[object] | None:
        """The open connections of clients; None where they are not counted."""
        return (self.listener or self.proxy).connections

    @property
    def connections(self) -> Connections | None:
        """The connections to members; None where the upstream does not count them."""
        return self.upstream.counts() if isinstance(self.upstream, NativeUpstream) else None
