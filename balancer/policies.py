"""Which member gets a request. No I/O.

The cost of a choice does not grow with the members (for ``hash`` and for unequal weights with their
logarithm), except that members which may not be chosen have to be passed over.

All policies give each member a share in proportion to ``Member.weight``, which comes from SRV
(RFC 2782) and, while a member is new, from SLOW_START.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Container, Sequence
from hashlib import blake2b
from itertools import accumulate
from random import Random

from balancer.headers import NO_FIELDS, Headers, RequestHeaders, cookie
from balancer.membership import Member
from balancer.request import Request
from balancer.settings import Settings

# A weight's share is kept to one part in so many, so that SRV's 65535 does not make a long round; and to
# fewer parts where a round of all members would have more than ROUND_MAX turns.
WEIGHT_STEPS = 100
ROUND_MAX = 20_000

# Points of a member of full weight on the hash ring: a member's share of the keys is then within 8 % (one
# standard deviation) of its due.
RING_POINTS = 160

# What a request is told apart by, or b"" if it has no such thing.
Key = Callable[[Request], bytes]


def make_policy(settings: Settings, rng: Random, plug_in: Policy | None = None) -> Policy:
    """The policy that the settings ask for; ``plug_in``: what takes the place of the ones here."""
    policy: Policy
    match settings.policy:
        case _ if plug_in:
            policy = plug_in
        case "least_requests":
            policy = LeastRequests(rng)
        case "random":
            policy = RandomChoice(rng)
        case "hash":
            policy = HashRing(_make_key(settings), RoundRobin())
        case "round_robin":
            policy = RoundRobin()
        case name:
            raise ValueError(f"{name} is not one of the policies here")
    return Sticky(settings.sticky_cookie, policy) if settings.sticky_cookie else policy


def _make_key(settings: Settings) -> Key:
    source, text = settings.hash_key
    name = text.lower().encode("ascii")
    match source:
        case "header":
            return lambda request: next((value for field, value in request.headers if field == name), b"")
        case "cookie":
            return lambda request: cookie(request.headers, text.encode("ascii"))
    origin = RequestHeaders(settings.trusted_proxies).origin
    return lambda request: origin(request.headers, request.client).encode()


class Policy:
    """Chooses among the members that it was last built with.

    It is called in the event loop, in the middle of a request: it must be quick, must not wait for anything, and
    must change neither members nor requests, which others share.
    """

    def build(self, members: Sequence[Member]) -> None:
        """Take over the members that may be chosen from now on, in order of address."""
        raise NotImplementedError

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        """A member for one request; none of ``exclude``; None where nobody is left.

        A plug-in may also return None to leave the choice to round robin.
        """
        raise NotImplementedError

    def mark(self, request: Request, member: Member) -> Headers:
        """Fields to add to the response with which ``member`` answers the request."""
        return NO_FIELDS


class RoundRobin(Policy):
    """One after the other, per request. A member of weight 3 stands three times in a round, spread over it."""

    def __init__(self) -> None:
        self._round: Sequence[Member] = ()
        self._next = 0

    def build(self, members: Sequence[Member]) -> None:
        self._round = members if _equal(members) else _weighted_round(members)

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        size = len(self._round)
        if not size:
            return None
        start = self._next % size
        if not exclude:
            self._next = start + 1
            return self._round[start]
        for step in range(size):
            member = self._round[(start + step) % size]
            if member not in exclude:
                self._next = start + step + 1
                return member
        return None


class RandomChoice(Policy):
    """Any member, by weight."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._members: Sequence[Member] = ()
        self._cumulated: list[float] | None = None

    def build(self, members: Sequence[Member]) -> None:
        self._members = members
        self._cumulated = None if _equal(members) else list(accumulate(_weights(members)))

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        if not self._members:
            return None
        member = self._draw()
        if exclude and member in exclude:
            # The others keep their proportions to each other.
            left = [it for it in self._members if it not in exclude]
            return self._rng.choices(left, _weights(left))[0] if left else None
        return member

    def _draw(self) -> Member:
        if self._cumulated is None:
            return self._members[int(self._rng.random() * len(self._members))]
        at = bisect(self._cumulated, self._rng.random() * self._cumulated[-1])
        return self._members[min(at, len(self._members) - 1)]


class LeastRequests(RandomChoice):
    """Of two members drawn at random, the one that has less to do for its weight.

    Two draws suffice: to look for the very least of all would cost more with every member, and
    would send everybody's next request to the same one (Mitzenmacher, "The Power of Two Choices").
    """

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        one = super().choose(request, exclude)
        if one is None:
            return None
        other = self._draw()
        if other is one or (exclude and other in exclude):
            return one
        return one if one.in_flight * other.weight <= other.in_flight * one.weight else other


class HashRing(Policy):
    """The same key to the same member; a member that comes or goes moves no keys but its own.

    A consistent hash ring (Karger et al. 1997): every member owns the arcs that end at its points.
    Without a key, and for nobody else, ``fallback`` chooses.
    """

    def __init__(self, key: Key, fallback: Policy) -> None:
        self._key = key
        self._fallback = fallback
        self._points: list[int] = []
        self._owners: list[Member] = []

    def build(self, members: Sequence[Member]) -> None:
        self._fallback.build(members)
        weights = _weights(members)
        full = max(weights, default=1.0)
        ring = sorted(
            (point, rank)
            for rank, (member, weight) in enumerate(zip(members, weights, strict=True))
            for point in _points(member, max(1, round(RING_POINTS * weight / full)))
        )
        self._points = [point for point, _ in ring]
        self._owners = [members[rank] for _, rank in ring]

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        key = self._key(request)
        if not key:
            return self._fallback.choose(request, exclude)
        size = len(self._owners)
        start = bisect(self._points, int.from_bytes(blake2b(key, digest_size=8).digest()))
        for step in range(size):
            member = self._owners[(start + step) % size]
            if not exclude or member not in exclude:
                return member
        return None


class Sticky(Policy):
    """A client's requests to the member that a cookie names; for those without, and for new clients, ``inner`` chooses.

    The cookie carries a digest of the member's address, so that it survives a restart of the
    balancer and tells nobody the address. While its member is busy or has just failed, a request goes
    elsewhere and the cookie stays; once the member is gone, the client gets a new one.
    """

    def __init__(self, name: str, inner: Policy) -> None:
        self._name = name.encode("ascii")
        self._inner = inner
        self._members: dict[bytes, Member] = {}

    def build(self, members: Sequence[Member]) -> None:
        self._inner.build(members)
        self._members = {_digest(it): it for it in members}

    def choose(self, request: Request, exclude: Container[Member] = ()) -> Member | None:
        member = self._members.get(cookie(request.headers, self._name))
        if member is None or member in exclude:
            return self._inner.choose(request, exclude)
        return member

    def mark(self, request: Request, member: Member) -> Headers:
        fields = self._inner.mark(request, member)
        if cookie(request.headers, self._name) in self._members:
            return fields
        secure = b"; Secure" if request.scheme == "https" else b""
        value = b"%b=%b; Path=/; HttpOnly; SameSite=Lax%b" % (self._name, _digest(member), secure)
        return [*fields, (b"set-cookie", value)]


def _digest(member: Member) -> bytes:
    return blake2b(str(member.address).encode(), digest_size=8).hexdigest().encode()


def _points(member: Member, count: int) -> list[int]:
    """The first ``count`` of a member's points, which depend on its address alone."""
    name = str(member.address).encode()
    wide = (blake2b(name, digest_size=64, salt=number.to_bytes(8)).digest() for number in range((count + 7) // 8))
    data = b"".join(wide)
    return [int.from_bytes(data[at : at + 8]) for at in range(0, 8 * count, 8)]


def _equal(members: Sequence[Member]) -> bool:
    return len({it.weight for it in members}) <= 1


def _weights(members: Sequence[Member]) -> list[float]:
    """Weights, none below 1 / WEIGHT_STEPS of the largest: RFC 2782 asks for little where it is 0, not for none."""
    floor = max((it.weight for it in members), default=0.0) / WEIGHT_STEPS or 1.0
    return [max(floor, it.weight) for it in members]


def _weighted_round(members: Sequence[Member]) -> list[Member]:
    steps = min(WEIGHT_STEPS, max(10, ROUND_MAX // len(members)))
    top = max(it.weight for it in members)
    whole = all(float(it.weight).is_integer() for it in members)
    scale = 1.0 if whole and top <= steps else steps / top
    equals: dict[int, list[Member]] = {}
    for member in members:
        equals.setdefault(max(1, round(member.weight * scale)), []).append(member)
    # Time of each turn within the round, from 0 to 1: those of equal share take theirs one after the other.
    turns = [
        ((turn + (rank + 0.5) / len(group)) / share, -share, rank, member)
        for share, group in equals.items()
        for rank, member in enumerate(group)
        for turn in range(share)
    ]
    return [member for *_, member in sorted(turns, key=lambda turn: turn[:3])]
