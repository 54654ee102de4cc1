"""The choice of a member for each request. No I/O.

The cost of a choice does not grow with the members, except that members which may not be chosen have to be passed over.
Nor does the cost of a change of one member, but for copying a list. Thousands may change within a second, one by one,
while requests go on.

All policies give each member a share in proportion to ``Member.weight``, which comes from SRV
(RFC 2782) and, while a member is new, from SLOW_START.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Protocol

from mypy_extensions import mypyc_attr

from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.outcome import Outcome


class PolicyLike(Protocol):
    """Whatever a program or a plug-in may give as a policy: a ``Policy``, or any object with these two methods.

    A ``response_headers`` or ``finished`` such as that of ``Policy`` is called, too, where there is one. A guard stands
    between these objects and requests, and is itself a ``Policy``.
    """

    def build(self, members: Sequence[Member], /) -> None:
        """Take over the members that may be chosen from now on; see ``Policy.build``."""

    def choose(self, request: AnyRequest, exclude: Container[Member], /) -> Member | None:
        """Choose a member for one request; see ``Policy.choose``."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy:
    """Base class of policies: chooses among the members that it was last built with.

    A policy runs in the event loop, in the middle of a request: it must be quick and must not wait. It must change
    neither members nor requests, which others share. A plug-in gets each request as a ``HookRequest``, and so does a
    policy of this package that it extends.
    """

    def build(self, members: Sequence[Member]) -> None:
        """Take over the members that may be chosen from now on.

        Args:
            members: In order of address, perhaps none. Each has a share in proportion to its ``weight``.
        """
        raise NotImplementedError

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        """Take over a change of few members; by default, ``build`` does it.

        A ring of 1,000 members took 270 ms to build anew (docs/decisions/policies.md), hence this.

        Args:
            members: All that may be chosen from now on, in order of address.
            added: New members, and those with another weight.
            removed: Members that may not be chosen any more; some may never have been there.
        """
        self.build(members)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        """Choose a member for one request.

        Args:
            request: The request; for a plug-in a ``HookRequest``.
            exclude: Members that failed this request before, or have their limit of requests. It supports ``in``, and
                cannot be iterated.

        Returns:
            A member that is not in ``exclude``, or None where none is left. A plug-in returns None to leave the choice
            to round robin.
        """
        raise NotImplementedError

    def response_headers(self, request: AnyRequest, member: Member) -> Headers:
        """Return headers to add to a response, such as a cookie.

        Args:
            request: The request that is answered.
            member: The member that answers it.

        Returns:
            Pairs (name, value), by default none: of bytes, or of text from a plug-in.
        """
        return NO_FIELDS

    def finished(self, member: Member, outcome: Outcome) -> None:
        """Take note of the outcome of an attempt at a member; called only where ``learns``.

        Args:
            member: The member, whose ``in_flight`` no longer counts the attempt. It may have left since.
            outcome: What came of it: status, failure, and times in seconds. It may be shared, and must not be changed.
        """

    @property
    def learns(self) -> bool:
        """Whether outcomes go to ``finished``: by default, where a class defines it. Read once, at the start."""
        return type(self).finished is not Policy.finished
