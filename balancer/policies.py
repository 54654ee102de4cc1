"""Which member gets a request. No I/O.

The cost of a choice does not grow with the members, except that members which may not be chosen have to be passed
over. Nor does the cost of following a change of one member, but for copying a list: thousands may change within a
second, one by one, while requests go on.

All policies give each member a share in proportion to ``Member.weight``, which comes from SRV
(RFC 2782) and, while a member is new, from SLOW_START.
"""

from __future__ import annotations

from array import array
from bisect import bisect, bisect_left, insort
from collections.abc import Callable, Collection, Container, Sequence
from functools import partial
from hashlib import blake2b
from itertools import accumulate, islice
from operator import attrgetter
from random import Random
from struct import Struct

from balancer.config.settings import Settings
from balancer.http.headers import NO_FIELDS, Headers, RequestHeaders
from balancer.http.request import AnyRequest, Request, header_pairs
from balancer.members.member import Member

# A weight's share is kept to one part in so many, so that SRV's 65535 does not make a long round.
WEIGHT_STEPS = 100
# Unequal members up to this number are kept in a table, which is made anew for every change; more are kept in groups of
# equals, which cost a choice a little more and a change next to nothing.
TABLE_MAX = 64
# Draws that may hit an excluded member before all others are looked at.
DRAWS = 16
# Turns that are this part of a round apart (the golden ratio's) are spread evenly over it, however many there have been
# (Knuth, The Art of Computer Programming, section 6.4, on Fibonacci hashing).
GOLDEN = 0.6180339887498949

# Points of a member of full weight on the hash ring: a member's share of the keys is then within 8 % (one
# standard deviation) of its due.
RING_POINTS = 160

# A point on the ring is 40 bits of a hash, and the number of its member: small integers, and there are 800,000 of them
# with 5,000 members. The ring is cut so that a piece has no more than PIECE_MAX points, on average.
NUMBER_BITS = 20
NUMBER = (1 << NUMBER_BITS) - 1
PLACE_BITS = 40 + NUMBER_BITS
CUT = 64 - 40
PIECE_MAX = 64
# Points that are looked at in search of a member that is not excluded.
WALK_MAX = 2000

_EIGHT = Struct(">8Q")
_SALTS = [number.to_bytes(8) for number in range((RING_POINTS + 7) // 8)]
_ADDRESS = attrgetter("endpoint.address")

# What a request is told apart by, empty if it has no such thing.
Key = Callable[[AnyRequest], bytes | str]


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
            policy = HashRing(_make_key(settings), RoundRobin(rng))
        case "round_robin":
            policy = RoundRobin(rng)
        case name:
            raise ValueError(f"{name} is not one of the policies here")
    return Sticky(settings.sticky_cookie, policy) if settings.sticky_cookie else policy


def _make_key(settings: Settings) -> Key:
    source, text = settings.hash_key
    name = text.encode("ascii")
    match source:
        case "header":
            return partial(_header, name.lower())
        case "cookie":
            return partial(_cookie, name)
    origin = RequestHeaders(settings.trusted_proxies).origin
    return lambda request: origin(header_pairs(request), request.client).encode()


def _header(name: bytes, request: AnyRequest) -> bytes:
    """The value of the first header field of that name, or b""."""
    for field, value in header_pairs(request):
        if field == name:
            return value
    return b""


def _cookie(name: bytes, request: AnyRequest) -> bytes:
    """The value of the first cookie of that name (RFC 6265 section 4.2), or b""."""
    # As ``header_pairs`` has it: to call that would make a choice by cookie a tenth slower.
    for field, value in request.headers if type(request) is Request else request.fields.pairs:
        if field == b"cookie" and name in value:
            for pair in value.split(b";"):
                key, _, text = pair.strip().partition(b"=")
                if key == name:
                    return text
    return b""


class Policy:
    """Chooses among the members that it was last built with.

    It is called in the event loop, in the middle of a request: it must be quick, must not wait for anything, and
    must change neither members nor requests, which others share. A plug-in gets each request as hooks do, as a
    ``HookRequest``; so does the policy here that it extends.
    """

    def build(self, members: Sequence[Member]) -> None:
        """Take over the members that may be chosen from now on, in order of address."""
        raise NotImplementedError

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        """As ``build``, by somebody who knows what has changed since: these came or have another weight, those went.

        Some of ``gone`` may never have been there. Unless a policy has a quicker way, it builds.
        """
        self.build(members)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        """A member for one request; none of ``exclude``; None where nobody is left.

        A plug-in may also return None to leave the choice to round robin.
        """
        raise NotImplementedError

    def mark(self, request: AnyRequest, member: Member) -> Headers:
        """Fields to add to the response with which ``member`` answers the request."""
        return NO_FIELDS


class Group:
    """Members of equal weight. ``turn``: how often one of them was chosen in turn."""

    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.turn = 0


class Shares:
    """Members in groups of equal weight, kept member by member. ``equal``: there is one group at most."""

    def __init__(self) -> None:
        self.equal = True
        self._groups: dict[float, Group] = {}
        # Each member's group, by its weight, and its place there.
        self._places: dict[Member, tuple[float, int]] = {}
        self._order: list[Group] = []
        self._ends: list[float] = [0.0]

    def build(self, members: Sequence[Member]) -> None:
        self._groups = {}
        self._places = {}
        self.update(members, ())

    def update(self, come: Collection[Member], gone: Collection[Member]) -> None:
        for member in gone:
            self._take_out(member)
        for member in come:
            known = self._places.get(member)
            if known is None or known[0] != member.weight:
                self._take_out(member)
                group = self._groups.get(member.weight) or self._groups.setdefault(member.weight, Group())
                self._places[member] = member.weight, len(group.members)
                group.members.append(member)
        self.equal = len(self._groups) <= 1
        if not self.equal:
            floor = self.heaviest / WEIGHT_STEPS
            self._order = list(self._groups.values())
            self._ends = list(accumulate(max(floor, it) * len(one.members) for it, one in self._groups.items()))

    def _take_out(self, member: Member) -> None:
        known = self._places.pop(member, None)
        if known:
            weight, place = known
            group = self._groups[weight].members
            last = group.pop()
            if last is not member:
                group[place] = last
                self._places[last] = known
            if not group:
                del self._groups[weight]

    @property
    def heaviest(self) -> float:
        """The largest weight."""
        return max(self._groups, default=0.0)

    def at(self, turn: float) -> tuple[Group, float]:
        """The group that a turn from 0 to 1 falls to by weight, and how far into its share, from 0 to 1."""
        ends = self._ends
        point = turn * ends[-1]
        number = bisect(ends, point, 0, len(ends) - 1)
        start = ends[number - 1] if number else 0.0
        return self._order[number], (point - start) / (ends[number] - start)

    def group_at(self, turn: float) -> Group:
        """The group that a turn from 0 to 1 falls to by weight."""
        ends = self._ends
        return self._order[bisect(ends, turn * ends[-1], 0, len(ends) - 1)]


class RoundRobin(Policy):
    """One after the other, per request. A member of weight 3 stands three times in a round, spread over it.

    Where there are many members of unequal weight, groups of equals take turns by their weights, and in each group its
    members: that needs no round, which would have to be laid out anew for every change.

    It begins at random, so that balancers that start together do not walk on in step: with twenty over 10,000 members
    that more than doubled the median latency (docs/simulation.md).
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._round: Sequence[Member] = ()
        self._start = self._next = 0
        self._shares = Shares()
        # The members, where they take turns by group; then there is no round.
        self._grouped: Sequence[Member] = ()
        self._turn = 0.0

    def build(self, members: Sequence[Member]) -> None:
        self._shares.build(members)
        self._lay_out(members)
        self._start = self._next = self._rng.getrandbits(32)
        self._turn = self._rng.random()

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        in_order = self._shares.equal
        last = self._round[self._next - 1] if 0 < self._next <= len(self._round) else None
        self._shares.update(come, gone)
        self._lay_out(members)
        if last and in_order and self._shares.equal:
            # Whoever came or went in front of the last one must not make a turn come twice, or never.
            self._next = bisect(members, last.address, key=_ADDRESS)

    def _lay_out(self, members: Sequence[Member]) -> None:
        self._grouped = () if self._shares.equal or len(members) <= TABLE_MAX else members
        self._round = () if self._grouped else members if self._shares.equal else _weighted_round(members)

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        size = len(self._round)
        if not size:
            return self._choose_by_group(exclude) if self._grouped else None
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

    def _choose_by_group(self, exclude: Container[Member]) -> Member | None:
        for _ in range(DRAWS):
            self._turn = (self._turn + GOLDEN) % 1.0
            group = self._shares.group_at(self._turn)
            member = group.members[(self._start + group.turn) % len(group.members)]
            group.turn += 1
            if not exclude or member not in exclude:
                return member
        return next((it for it in self._grouped if it not in exclude), None)


class RandomChoice(Policy):
    """Any member, by weight."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._random = rng.random
        self._members: Sequence[Member] = ()
        self._shares = Shares()
        self._equal = True
        # The members' weights, added up one after the other; empty where groups take its place.
        self._cumulated: list[float] = []

    def build(self, members: Sequence[Member]) -> None:
        self._shares.build(members)
        self._lay_out(members)

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        self._shares.update(come, gone)
        self._lay_out(members)

    def _lay_out(self, members: Sequence[Member]) -> None:
        self._members = members
        self._equal = self._shares.equal
        table = not self._equal and len(members) <= TABLE_MAX
        self._cumulated = list(accumulate(_weights(members))) if table else []

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        if not self._members:
            return None
        member = self._draw()
        if exclude and member in exclude:
            return self._choose_other(exclude)
        return member

    def _choose_other(self, exclude: Container[Member]) -> Member | None:
        """The others keep their proportions to each other."""
        for _ in range(DRAWS):
            member = self._draw()
            if member not in exclude:
                return member
        left = [it for it in self._members if it not in exclude]
        return self._rng.choices(left, _weights(left))[0] if left else None

    def _draw(self) -> Member:
        if self._equal:
            return self._members[int(self._random() * len(self._members))]
        if self._cumulated:
            at = bisect(self._cumulated, self._random() * self._cumulated[-1])
            return self._members[min(at, len(self._members) - 1)]
        group, part = self._shares.at(self._random())
        return group.members[min(int(part * len(group.members)), len(group.members) - 1)]


class LeastRequests(RandomChoice):
    """Of two members drawn at random, the one that has less to do for its weight.

    Two draws suffice: to look for the very least of all would cost more with every member, and
    would send everybody's next request to the same one (Mitzenmacher, "The Power of Two Choices").
    Of equal members it draws two different ones, so that of two it is the least busy.
    """

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        size = len(self._members)
        if size > 1 and self._equal and not exclude:
            first, second = int(self._random() * size), int(self._random() * (size - 1))
            this, that = self._members[first], self._members[second if second < first else second + 1]
            return this if this.in_flight <= that.in_flight else that
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
    Without a key ``fallback`` chooses, and where WALK_MAX points in a row are of excluded members.

    The ring is cut into equal pieces, so many that each has some hundred points: a choice looks into one however many
    members there are, and a member's points come and go without the others being moved. A point is the number of its
    place on the ring, and in its last bits the number of its member.
    """

    def __init__(self, key: Key, fallback: Policy) -> None:
        self._key = key
        self._fallback = fallback
        self._shift = PLACE_BITS
        # Not lists: of 800,000 points these take a quarter of the memory, and the garbage collector leaves them alone.
        self._pieces: list[array[int]] = [array("Q")]
        self._size = 0
        # By number; numbers of those that are gone are given again.
        self._members: list[Member] = []
        self._free: list[int] = []
        # Each member's number, and how many points it has.
        self._numbers: dict[Member, int] = {}
        self._counts: dict[Member, int] = {}
        self._shares = Shares()
        self._full = 0.0

    def build(self, members: Sequence[Member]) -> None:
        self._fallback.build(members)
        self._shares.build(members)
        wanted = dict.fromkeys(members)
        self._change(members, [it for it in self._counts if it not in wanted], members)

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        self._fallback.update(members, come, gone)
        self._shares.update(come, gone)
        self._change(members, gone, come)

    def _change(self, members: Sequence[Member], gone: Collection[Member], come: Collection[Member]) -> None:
        full, self._full = self._full, self._shares.heaviest
        self._take_out(gone)
        # If the heaviest is another one, everybody's share of the points is.
        counts = ((it, self._count(it)) for it in (come if full == self._full else members))
        changed = [(it, count) for it, count in counts if self._counts.get(it) != count]
        self._resize(self._size + sum(count - self._counts.get(it, 0) for it, count in changed))
        many = len(changed) > len(self._pieces)
        for member, count in changed:
            self._set(member, count, in_order=not many)
        if many:
            self._pieces = [array("Q", sorted(piece)) for piece in self._pieces]

    def _count(self, member: Member) -> int:
        floor = self._full / WEIGHT_STEPS or 1.0
        return max(1, round(RING_POINTS * max(floor, member.weight) / (self._full or 1.0)))

    def _set(self, member: Member, count: int, in_order: bool) -> None:
        """Give a member so many points; unless ``in_order``, those that it has not had are left to be sorted in."""
        number = self._numbers.get(member)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._members[number] = member
            else:
                number = len(self._members)
                self._members.append(member)
            self._numbers[member] = number
        before, self._counts[member] = self._counts.get(member, 0), count
        self._size += count - before
        pieces, shift = self._pieces, self._shift
        points = _points(member, max(count, before), number)
        if not in_order:
            for point in points[before:count]:
                pieces[point >> shift].append(point)
        else:
            for point in points[before:count]:
                insort(pieces[point >> shift], point)
        for point in points[count:before]:
            piece = pieces[point >> shift]
            if in_order:
                del piece[bisect_left(piece, point)]
            else:
                piece.remove(point)

    def _take_out(self, gone: Collection[Member]) -> None:
        known = [it for it in gone if it in self._counts]
        if len(known) == len(self._counts):
            self._pieces, self._shift, self._size = [array("Q")], PLACE_BITS, 0
            self._members, self._free, self._numbers, self._counts = [], [], {}, {}
            return
        few = 8 * len(known) < len(self._counts)
        for member in known:
            if few:
                self._set(member, 0, in_order=True)
            self._size -= self._counts.pop(member)
        numbers = [self._numbers.pop(it) for it in known]
        self._free += numbers
        if not few:
            taken = frozenset(numbers)
            left = ((it for it in piece if it & NUMBER not in taken) for piece in self._pieces)
            self._pieces = [array("Q", points) for points in left]

    def _resize(self, size: int) -> None:
        """Have as many pieces as so many points need: twice or half as many at a time."""
        while size > PIECE_MAX * len(self._pieces):
            self._shift -= 1
            halves = []
            for number, piece in enumerate(self._pieces):
                middle = bisect_left(piece, (2 * number + 1) << self._shift)
                halves += [piece[:middle], piece[middle:]]
            self._pieces = halves
        while len(self._pieces) > 1 and size < PIECE_MAX * len(self._pieces) // 4:
            self._shift += 1
            self._pieces = [a + b for a, b in zip(self._pieces[::2], self._pieces[1::2], strict=True)]

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        key = self._key(request)
        if not key:
            return self._fallback.choose(request, exclude)
        # Behind all points of the same place.
        data = key.encode() if isinstance(key, str) else key
        place = int.from_bytes(blake2b(data, digest_size=8).digest()) >> CUT << NUMBER_BITS | NUMBER
        piece = self._pieces[place >> self._shift]
        at = bisect(piece, place)
        if at < len(piece):
            member = self._members[piece[at] & NUMBER]
            if not exclude or member not in exclude:
                return member
        return self._walk(place >> self._shift, at, exclude) or self._fallback.choose(request, exclude)

    def _walk(self, number: int, at: int, exclude: Container[Member]) -> Member | None:
        """The owner of the next point from the one at ``at`` of a piece on."""
        pieces = self._pieces
        steps = min(WALK_MAX, self._size)
        for _ in range(len(pieces) + 1):
            piece = pieces[number]
            for point in islice(piece, at, at + steps):
                member = self._members[point & NUMBER]
                if not exclude or member not in exclude:
                    return member
            steps -= max(0, len(piece) - at)
            if steps <= 0:
                return None
            number, at = (number + 1) % len(pieces), 0
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

    def update(self, members: Sequence[Member], come: Collection[Member], gone: Collection[Member]) -> None:
        self._inner.update(members, come, gone)
        for member in gone:
            digest = _digest(member)
            if self._members.get(digest) is member:
                del self._members[digest]
        for member in come:
            self._members[_digest(member)] = member

    def choose(self, request: AnyRequest, exclude: Container[Member] = ()) -> Member | None:
        member = self._members.get(_cookie(self._name, request))
        if member is None or member in exclude:
            return self._inner.choose(request, exclude)
        return member

    def mark(self, request: AnyRequest, member: Member) -> Headers:
        fields = self._inner.mark(request, member)
        if _cookie(self._name, request) in self._members:
            return fields
        secure = b"; Secure" if request.scheme == "https" else b""
        value = b"%b=%b; Path=/; HttpOnly; SameSite=Lax%b" % (self._name, _digest(member), secure)
        return [*fields, (b"set-cookie", value)]


def _digest(member: Member) -> bytes:
    return blake2b(str(member.address).encode(), digest_size=8).hexdigest().encode()


def _points(member: Member, count: int, number: int) -> list[int]:
    """The first ``count`` of a member's points. Their places depend on its address alone."""
    name = str(member.address).encode()
    wide = (blake2b(name, digest_size=64, salt=salt).digest() for salt in _SALTS[: (count + 7) // 8])
    return [it >> CUT << NUMBER_BITS | number for data in wide for it in _EIGHT.unpack(data)][:count]


def _weights(members: Sequence[Member]) -> list[float]:
    """Weights, none below 1 / WEIGHT_STEPS of the largest: RFC 2782 asks for little where it is 0, not for none."""
    floor = max((it.weight for it in members), default=0.0) / WEIGHT_STEPS or 1.0
    return [max(floor, it.weight) for it in members]


def _weighted_round(members: Sequence[Member]) -> list[Member]:
    top = max(it.weight for it in members)
    whole = all(float(it.weight).is_integer() for it in members)
    scale = 1.0 if whole and top <= WEIGHT_STEPS else WEIGHT_STEPS / top
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
