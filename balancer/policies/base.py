"""Which member gets a request. No I/O.

The cost of a choice does not grow with the members, except that members which may not be chosen have to be passed
over. Nor does the cost of following a change of one member, but for copying a list: thousands may change within a
second, one by one, while requests go on.

All policies give each member a share in proportion to ``Member.weight``, which comes from SRV
(RFC 2782) and, while a member is new, from SLOW_START.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import AnyRequest
from balancer.members.member import Member


class Policy:
    """Chooses among the members that it was last built with.

    It is called in the event loop, in the middle of a request: it must be quick, must not wait for anything, and
    must change neither members nor requests, which others share. A plug-in gets each request as hooks do, as a
    ``HookRequest``; so does the policy here that it extends.
    """

    def build(self, members: Sequence[Member]) -> None:
        """Take over the members that may be chosen from now on, in order of address."""
        raise NotImplementedError

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        """As ``build``, where few members have changed. ``added``: new ones, and those with another weight.

        Some of ``removed`` may never have been there. Unless a policy has a quicker way, it builds.
        """
        self.build(members)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        """A member for one request; none of ``exclude``; None where none is left.

        A plug-in may also return None to leave the choice to round robin.
        """
        raise NotImplementedError

    def response_headers(self, request: AnyRequest, member: Member) -> Headers:
        """Headers to add to the response with which ``member`` answers the request."""
        return NO_FIELDS
