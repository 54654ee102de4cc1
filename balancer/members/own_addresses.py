"""Members that are the balancer itself: its own container has the alias as well.

Rules:
* An address of this host with the port of the balancer's listener is the balancer. A request that it got would come
  back, and so would a probe of the readiness path. So it is not probed, stays ``joining``, and gets no request.
* Requests wait for other members, if there were any before. A balancer that has seen no other refuses at once.
* A listener of another program at such an address cannot be: it would have taken the port.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from balancer.config.own_address import is_own
from balancer.errors import Refusal
from balancer.members.health import HealthEvent
from balancer.members.probe import Probe, Verdict
from balancer.types import Address, UnixSocket

log = logging.getLogger(__name__)

_ALL = {"0.0.0.0", "::"}


class OwnAddresses:
    """The addresses of the balancer itself among those of its members.

    ``listener``: where it accepts clients; None where another server does, whose address is not known.
    """

    def __init__(self, alias: str, probe: Probe, listener: Address | UnixSocket | None = None) -> None:
        self.listener = listener
        self._alias = alias
        self._probe = probe
        self._own: set[Address] = set()
        self._others_seen = False
        self._warned = False

    def look_at(self, joined: Collection[Address]) -> None:
        """Find the balancer among members that have joined; the first time, a line in the log says so."""
        own = find_own(joined, self.listener)
        self._own = (self._own - set(joined)) | own
        self._others_seen |= len(own) < len(joined)
        if own and not self._warned:
            self._warned = True
            log.warning(
                "%s is this balancer itself, which gets none of its own requests: take the alias %s from its service",
                ", ".join(map(str, sorted(own))),
                self._alias,
            )

    async def probe(self, address: Address) -> Verdict:
        """Probe a member, unless it is the balancer itself."""
        if address in self._own:
            return HealthEvent.PROBE_FAILED, "this is the balancer itself, whose requests would come back"
        return await self._probe(address)

    def refuse_if_alone(self, members: Collection[Address]) -> None:
        """Raise Refusal if DNS names the balancer itself, and has never named another member."""
        if members and not self._others_seen and all(address in self._own for address in members):
            words = f"the balancer itself is all that DNS names for {self._alias}: take the alias from its service"
            raise Refusal(508, "loop_detected", words)


def find_own(addresses: Iterable[Address], listener: Address | UnixSocket | None) -> set[Address]:
    """Return those addresses where ``listener`` accepts clients."""
    if not isinstance(listener, Address):
        return set()
    found = (address for address in addresses if address.port == listener.port)
    if listener.host in _ALL:
        return {address for address in found if is_own(address.host)}
    return {address for address in found if address.host == listener.host}
