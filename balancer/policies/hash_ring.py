"""Consistent hashing: the member that owns the key of a request."""

from __future__ import annotations

from array import array
from bisect import bisect, bisect_left, insort
from collections.abc import Callable, Collection, Container, Sequence
from hashlib import blake2b
from itertools import islice
from struct import Struct

from mypy_extensions import mypyc_attr

from balancer.http.request import AnyRequest
from balancer.members.member import Member
from balancer.members.outcome import Outcome
from balancer.policies.base import Policy
from balancer.policies.load_bound import LoadBound
from balancer.policies.weights import WEIGHT_STEPS, Shares

# Points of a member of full weight on the hash ring: a member's share of the keys is then within 8 % (one
# standard deviation) of its due.
RING_POINTS = 160
# A point on the ring is 40 bits of a hash, and the number of its member. These are small integers, 800,000 of them with
# 5,000 members. The ring is cut so that a piece has no more than PIECE_MAX points, on average.
NUMBER_BITS = 20
NUMBER = (1 << NUMBER_BITS) - 1
PLACE_BITS = 40 + NUMBER_BITS
CUT = 64 - 40
PIECE_MAX = 64
# Points that are checked in search of a member that is not excluded.
WALK_MAX = 2000
_EIGHT = Struct(">8Q")
_SALTS = [number.to_bytes(8) for number in range((RING_POINTS + 7) // 8)]
# Returns the key of a request, empty if it has none.
Key = Callable[[AnyRequest], bytes | str]


@mypyc_attr(allow_interpreted_subclasses=True)
class HashRing(Policy):
    """Gives the same key to the same member; a member that comes or goes moves no keys but its own.

    A consistent hash ring (Karger et al. 1997): every member owns the arcs that end at its points, 160 for a member of
    full weight. The ring is cut into equal pieces of some hundred points. A choice looks into one of them, and the
    points of a member come and go without a move of the others. A point is the number of its place on the ring, and
    in its last bits the number of its member.

    Args:
        key: Function of a request that returns its key as text or bytes, empty if it has none.
        fallback: Chooses where there is no key, and where 2,000 points in a row are of excluded members.
        balance_factor: Percentage of its part of the requests in flight that a member gets at most, above 100. What is
            more goes to the next member on the ring. 0 for no bound.
    """

    def __init__(self, key: Key, fallback: Policy, balance_factor: int = 0) -> None:
        self._key = key
        self._fallback = fallback
        self._shift = PLACE_BITS
        # Not lists: of 800,000 points these take a quarter of the memory, and the garbage collector leaves them alone.
        self._pieces: list[array[int]] = [array("Q")]
        self._size = 0
        # Members by number; numbers of those that are gone are used again.
        self._members: list[Member] = []
        self._free: list[int] = []
        # Each member's number, and its number of points.
        self._numbers: dict[Member, int] = {}
        self._counts: dict[Member, int] = {}
        self._shares = Shares()
        self._full = 0.0
        self._bound = LoadBound(balance_factor, self._shares) if balance_factor else None

    def build(self, members: Sequence[Member]) -> None:
        self._fallback.build(members)
        self._shares.build(members)
        wanted = dict.fromkeys(members)
        self._change(members, [member for member in self._counts if member not in wanted], members)

    def update(self, members: Sequence[Member], added: Collection[Member], removed: Collection[Member]) -> None:
        self._fallback.update(members, added, removed)
        self._shares.update(added, removed)
        self._change(members, removed, added)

    def _change(self, members: Sequence[Member], removed: Collection[Member], added: Collection[Member]) -> None:
        if self._bound:
            self._bound.update(members)
        full, self._full = self._full, self._shares.heaviest
        self._take_out(removed)
        # If the heaviest member is another one, so is the share of each.
        counts = ((member, self._count(member)) for member in (added if full == self._full else members))
        changed = [(member, count) for member, count in counts if self._counts.get(member) != count]
        self._resize(self._size + sum(count - self._counts.get(member, 0) for member, count in changed))
        many = len(changed) > len(self._pieces)
        for member, count in changed:
            self._set(member, count, in_order=not many)
        if many:
            self._pieces = [array("Q", sorted(piece)) for piece in self._pieces]

    def _count(self, member: Member) -> int:
        floor = self._full / WEIGHT_STEPS or 1.0
        return max(1, round(RING_POINTS * max(floor, member.weight) / (self._full or 1.0)))

    def _set(self, member: Member, count: int, in_order: bool) -> None:
        """Give a member ``count`` points; unless ``in_order``, new ones are left to be sorted in."""
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

    def _take_out(self, removed: Collection[Member]) -> None:
        present = [member for member in removed if member in self._counts]
        if len(present) == len(self._counts):
            self._pieces, self._shift, self._size = [array("Q")], PLACE_BITS, 0
            self._members, self._free, self._numbers, self._counts = [], [], {}, {}
            return
        few = 8 * len(present) < len(self._counts)
        for member in present:
            if few:
                self._set(member, 0, in_order=True)
            self._size -= self._counts.pop(member)
        numbers = [self._numbers.pop(member) for member in present]
        self._free += numbers
        if not few:
            taken = frozenset(numbers)
            left = ((point for point in piece if point & NUMBER not in taken) for piece in self._pieces)
            self._pieces = [array("Q", points) for points in left]

    def _resize(self, size: int) -> None:
        """Have as many pieces as ``size`` points need: twice or half as many at a time."""
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
        number = place >> self._shift
        piece = self._pieces[number]
        at = bisect(piece, place)
        busy = self._bound.excluding(exclude) if self._bound else exclude
        if at < len(piece):
            member = self._members[piece[at] & NUMBER]
            if not busy or member not in busy:
                return member
        found = self._walk(number, at, busy)
        if found is None and self._bound:
            # A member with more than its part is better than none.
            found = self._walk(number, at, exclude)
        return found or self._fallback.choose(request, exclude)

    def finished(self, member: Member, outcome: Outcome) -> None:
        self._fallback.finished(member, outcome)

    @property
    def learns(self) -> bool:
        return self._fallback.learns or type(self).finished is not HashRing.finished

    def _walk(self, number: int, at: int, exclude: Container[Member]) -> Member | None:
        """Return the owner of the next point from the one at ``at`` of a piece on."""
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


def _points(member: Member, count: int, number: int) -> list[int]:
    """Return the first ``count`` of a member's points. Their places depend on its address alone."""
    name = str(member.address).encode()
    wide = (blake2b(name, digest_size=64, salt=salt).digest() for salt in _SALTS[: (count + 7) // 8])
    return [point >> CUT << NUMBER_BITS | number for data in wide for point in _EIGHT.unpack(data)][:count]
