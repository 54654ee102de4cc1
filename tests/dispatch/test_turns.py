"""How clients share the queue and the slots: turns, tiers, and who gives way where the queue is full."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.dispatch.queue import PendingQueue, QueuedRequest
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.members.member import Member
from tests.dispatch.test_admission import REQUEST, System
from tests.support.virtual import VirtualLoop

ANY = Request("GET", b"/", [], "192.0.2.1")


class Crowd:
    """A queue, the requests in it by client, and those that have been refused or had to give way."""

    def __init__(self, limit: int = 20, bytes_limit: int = 0, share: float = 0.1) -> None:
        self.queue = PendingQueue(limit, bytes_limit, share)
        self.waiting: dict[str, list[QueuedRequest]] = {}
        self.refused: list[str] = []
        self.gave_way: list[tuple[str, Refusal]] = []

    def push(self, client: str, count: int = 1, in_hand: int = 0) -> None:
        for _ in range(count):
            queued = QueuedRequest(ANY, client=client, in_hand=in_hand)
            queued.refuse = self._gives_way(queued)
            try:
                self.queue.push(queued, 10.0, moving=False)
            except Refusal:
                self.refused.append(client)
            else:
                self.waiting.setdefault(client, []).append(queued)

    def _gives_way(self, queued: QueuedRequest) -> Callable[[Refusal], None]:
        def refuse(refusal: Refusal) -> None:
            self.waiting[queued.client].remove(queued)
            self.gave_way.append((queued.client, refusal))

        return refuse

    def serve(self) -> str:
        """Give a slot to the one whose turn it is, and return its client."""
        queued = self.queue.head()
        assert queued
        self.queue.discard(queued)
        self.queue.take_turn(queued)
        assert self.waiting[queued.client].pop(0) is queued, "a client's requests keep their order"
        return queued.client

    def held(self) -> Counter[str]:
        return Counter({client: len(requests) for client, requests in self.waiting.items()})


# Turns.


def test_clients_take_turns_and_requests_of_one_keep_their_order() -> None:
    crowd = Crowd()
    crowd.push("a", 5)
    crowd.push("b", 2)
    crowd.push("c", 1)
    assert "".join(crowd.serve() for _ in range(8)) == "abcabaaa"
    assert crowd.queue.head() is None


def test_without_shares_the_queue_is_first_come_first_served() -> None:
    queue = PendingQueue(10, 0, 1.0)
    requests = [QueuedRequest(ANY, client=client) for client in "aaabca"]
    for queued in requests:
        queue.push(queued, 10.0, moving=False)
    for queued in requests:
        assert queue.head() is queued
        queue.discard(queued)
        queue.take_turn(queued)


def test_client_that_leaves_the_queue_does_not_cost_its_others_their_turn() -> None:
    crowd = Crowd()
    crowd.push("a", 2)
    crowd.push("b", 1)
    crowd.queue.discard(crowd.waiting["a"].pop(0))
    assert "".join(crowd.serve() for _ in range(2)) == "ab"


def test_slot_goes_to_a_client_below_its_share_first() -> None:
    crowd = Crowd()
    crowd.queue.turns.slots = 20.0  # A share is two of them.
    crowd.push("a", 10)
    assert [crowd.serve() for _ in range(2)] == ["a", "a"]
    crowd.push("b", 3)
    # Two for each, then they take turns again, and each gets a second share.
    assert "".join(crowd.serve() for _ in range(7)) == "bbabaaa"


@pytest.mark.parametrize("given_back", [False, True])
def test_slot_given_back_counts_no_more(given_back: bool) -> None:
    crowd = Crowd()
    crowd.queue.turns.slots = 10.0  # A share is one of them.
    crowd.push("a", 4)
    first = crowd.queue.head()
    assert first
    assert [crowd.serve() for _ in range(2)] == ["a", "a"]
    if given_back:
        crowd.queue.end_turn(first)
        crowd.queue.end_turn(first)  # Only once.
    crowd.push("b", 3)
    assert "".join(crowd.serve() for _ in range(4)) == ("baba" if given_back else "bbab")


def test_client_alone_gets_every_slot_and_every_place() -> None:
    """One address is all clients where Docker's proxy, or a NAT, stands before them."""
    crowd = Crowd(limit=100, bytes_limit=1000)
    crowd.queue.turns.slots = 10.0
    crowd.push("172.18.0.1", 100, in_hand=10)
    assert crowd.held() == {"172.18.0.1": 100}
    crowd.push("172.18.0.1")
    assert (crowd.refused, crowd.gave_way) == (["172.18.0.1"], [])
    for _ in range(100):
        crowd.serve()


@pytest.mark.parametrize("clients", [1, 2, 9, 30])
def test_honest_client_waits_for_no_more_services_than_there_are_clients(clients: int) -> None:
    crowd = Crowd(limit=1000)
    crowd.queue.turns.slots = 50.0
    running: deque[QueuedRequest] = deque()
    for number in range(clients):
        crowd.push(f"attacker {number}", 1000 // clients)
    for _ in range(50):
        crowd.push("honest")
        for _service in range(clients + 1):
            for number in range(clients):
                crowd.push(f"attacker {number}")
            queued = crowd.queue.head()
            assert queued
            running.append(queued)
            served = crowd.serve()
            if len(running) > 50:
                crowd.queue.end_turn(running.popleft())
            if served == "honest":
                break
        else:
            pytest.fail(f"it still waits after {clients + 1} services")
    assert "honest" not in crowd.refused
    assert "honest" not in [client for client, _ in crowd.gave_way]


# Places and bytes.


def test_client_above_its_share_gives_way_to_others_and_not_to_itself() -> None:
    crowd = Crowd(limit=20)
    crowd.push("a", 25)
    assert (len(crowd.queue), crowd.refused) == (20, ["a"] * 5)
    latest = crowd.waiting["a"][-1]
    crowd.push("b", 3)
    assert crowd.held() == {"a": 18, "b": 2}
    assert crowd.refused == ["a"] * 5 + ["b"]
    assert latest not in crowd.waiting["a"]
    (_, refusal), _ = crowd.gave_way
    assert (refusal.status, refusal.token, refusal.retry_after) == (503, "queue_full", 1)
    assert str(refusal) == (
        "the queue is full, and a client within its share of it comes first: "
        "20 of its 20 requests were yours, whose share is 2"
    )


def test_client_beyond_its_share_is_told_so_where_others_wait_too() -> None:
    crowd = Crowd(limit=20)
    crowd.push("a", 19)
    crowd.push("b", 1)
    with pytest.raises(Refusal) as caught:
        crowd.queue.push(QueuedRequest(ANY, client="a"), 10.0, moving=False)
    assert str(caught.value) == "20 requests wait for a member already, 19 of them yours, whose share is 2"
    crowd.push("b", 1)
    with pytest.raises(Refusal, match="already, 2 of them yours, whose share is 2"):
        crowd.queue.push(QueuedRequest(ANY, client="b"), 10.0, moving=False)


def test_queue_that_others_fill_within_their_shares_is_full() -> None:
    crowd = Crowd(limit=20)
    for client in "abcdefghij":
        crowd.push(client, 2)
    crowd.push("k")
    assert (crowd.refused, crowd.gave_way) == (["k"], [])


def test_client_that_holds_most_gives_way_first() -> None:
    crowd = Crowd(limit=20)
    crowd.push("a", 8)
    crowd.push("b", 12)
    for client in "cdefgh":
        crowd.push(client)
    assert [client for client, _ in crowd.gave_way[:4]] == ["b"] * 4
    assert max(crowd.held().values()) == 7


def test_smallest_queue_has_a_place_for_a_client_with_none() -> None:
    crowd = Crowd(limit=2)
    crowd.push("a", 2)
    crowd.push("b", 2)
    assert (crowd.held(), crowd.refused) == ({"a": 1, "b": 1}, ["b"])
    crowd.push("c")
    assert crowd.refused == ["b", "c"]


def test_bytes_give_way_as_places_do() -> None:
    crowd = Crowd(limit=1000, bytes_limit=1000)
    crowd.push("a", 10, in_hand=100)
    crowd.push("a", 5)
    crowd.push("b", in_hand=60)
    assert crowd.held() == {"a": 14, "b": 1}, "one with a body gave way, the latest of those"
    (_, refusal), *_ = crowd.gave_way
    assert "1000 of its 1000 bytes were yours, whose share is 100" in str(refusal)
    crowd.push("b", in_hand=60)  # That would be more than its share.
    crowd.push("a", in_hand=60)
    assert crowd.refused == ["b", "a"]


def test_first_request_of_a_client_does_not_give_way_whatever_it_holds() -> None:
    crowd = Crowd(limit=10, bytes_limit=101)
    crowd.push("a", in_hand=100)
    crowd.push("a", in_hand=1)
    crowd.push("b", in_hand=50)
    assert (crowd.held(), crowd.refused, crowd.gave_way) == ({"a": 2}, ["b"], [])
    crowd.push("b", in_hand=1)
    assert crowd.held() == {"a": 1, "b": 1}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abcdefghijklm"), st.integers(0, 30)),
        st.tuples(st.just("serve"), st.just(""), st.just(0)),
        st.tuples(st.just("leave"), st.sampled_from("abcdefghijklm"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("slots"), st.just(""), st.integers(0, 40)),
    ),
    max_size=200,
)


class Steps(Crowd):
    """A crowd that takes any steps, and checks each."""

    served: list[QueuedRequest]

    def push_checked(self, client: str, in_hand: int) -> None:
        """Add a request; whoever is refused or gives way for it has to be above its share."""
        before = {name: [it.in_hand for it in requests] for name, requests in self.waiting.items()}
        gone, refused = len(self.gave_way), len(self.refused)
        self.push(client, in_hand=in_hand)
        own = before.get(client, [])
        places, volume = self.queue._places.share, self.queue._bytes.share
        if len(self.refused) > refused and not in_hand:
            others = [len(held) for name, held in before.items() if name != client]
            assert sum(map(len, before.values())) == self.queue._places.limit
            assert len(own) >= places or max(others, default=0) <= places, "another should have given way"
        for name, _ in self.gave_way[gone:]:
            assert name != client
            assert len(before[name]) > 1
            assert len(before[name]) > places or sum(before[name]) > volume
            assert not own or len(own) < places or sum(own) + in_hand <= volume

    def step(self, step: str, client: str, number: int) -> None:
        if step == "push":
            self.push_checked(client, number)
        elif step == "serve" and (head := self.queue.head()):
            self.serve()
            self.served.append(head)
        elif step == "leave" and (requests := self.waiting.get(client)):
            self.queue.discard(requests.pop(number % len(requests)))
        elif step == "end" and self.served:
            self.queue.end_turn(self.served.pop(number % len(self.served)))
        elif step == "slots":
            self.queue.turns.slots = number or inf


@given(steps, st.integers(0, 12), st.integers(0, 100), st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.99]))
def test_bounds_hold_and_none_within_its_share_gives_way(
    course: list[tuple[str, str, int]], limit: int, bytes_limit: int, share: float
) -> None:
    crowd = Steps(limit, bytes_limit, share)
    crowd.served = []
    for step in course:
        crowd.step(*step)
        waiting = [it for requests in crowd.waiting.values() for it in requests]
        assert set(waiting) == set(crowd.queue.waiting)
        assert len(waiting) <= limit
        assert sum(it.in_hand for it in waiting) <= bytes_limit
        assert bool(waiting) is (crowd.queue.head() is not None)
    for queued in list(crowd.queue.waiting):
        crowd.queue.discard(queued)
    for queued in crowd.served:
        crowd.queue.end_turn(queued)
    assert not crowd.queue.turns._clients, "nothing is kept of clients that have gone"
    assert not crowd.queue._places._held
    assert not crowd.queue._bytes._requests


# What a newcomer's wait will be.


def test_wait_is_promised_by_turns_and_not_by_the_length_of_the_queue() -> None:
    crowd = Crowd(limit=1000)
    crowd.push("a", 500)
    tenth = crowd.waiting["a"][9]
    for _ in range(10):
        crowd.serve()
    crowd.queue.record_wait(tenth, waited=9.0)  # A second for each of the nine before it.
    assert crowd.queue.turns.in_front("a") == 490
    with pytest.raises(Refusal, match=r"the wait would be 490\.0 s"):
        crowd.queue.push(QueuedRequest(ANY, client="a"), 10.0, moving=True)
    crowd.queue.push(QueuedRequest(ANY, client="b"), 10.0, moving=True)


def test_one_that_others_pass_does_not_spoil_the_promise() -> None:
    crowd = Crowd(limit=1000)
    crowd.queue.turns.slots = 10.0
    crowd.push("a", 2)
    crowd.serve()
    passed = crowd.waiting["a"][0]
    for number in range(40):
        crowd.push(f"b{number}", 1)
    for _ in range(40):
        assert crowd.serve() != "a"
    crowd.push("b", 5)
    crowd.serve()
    assert crowd.serve() == "a"
    crowd.queue.record_wait(passed, waited=9.0)  # Forty have been before it: 0.2 s for each.
    crowd.queue.push(QueuedRequest(ANY, client="c"), 10.0, moving=True)


# With members.


class Course:
    """Members at work in virtual time; each client asks again as soon as it has its answer.

    ``counts_all``: slots count that a client got while none waited, too.
    """

    def __init__(self, members: int, limit: int, share: float, counts_all: bool = False) -> None:
        self.queue = PendingQueue(1000, 0, share)
        self.admission = System(members, limit, self.queue).admission
        self.loop = VirtualLoop()
        self.waits: dict[str, list[float]] = {}
        self.served = 0
        self._counts_all = counts_all

    def ask(self, client: str, service: Callable[[], float]) -> None:
        queued = QueuedRequest(REQUEST, client=client)
        asked = self.loop.time()

        def begin(member: Member) -> bool:
            self.waits.setdefault(client, []).append(self.loop.time() - asked)
            self.loop.call_later(service(), end, member)
            return True

        def end(member: Member) -> None:
            self.admission.release(member, queued)
            self.served += 1
            self.ask(client, service)

        if member := self.admission.acquire(REQUEST, ()):
            if self._counts_all:
                self.queue.take_turn(queued)
            begin(member)
            return
        queued.give = begin
        queued.refuse = lambda refusal: self.loop.call_later(0.1, self.ask, client, service)
        try:
            self.admission.wait(queued, inf)
        except Refusal as refusal:
            queued.refuse(refusal)

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def office_under_attack(self) -> tuple[float, float]:
        """Ten people of an office ask for 20 ms each, and an attacker has 1000 requests of 5 s outstanding.

        Returns the answers that the office gets in a second, and the p99 of its waits.
        """
        rng = Random(1)
        for _ in range(10):
            self.loop.call_later(0.0, self.ask, "office", lambda: rng.expovariate(50))
        for _ in range(1000):
            self.loop.call_later(2.0, self.ask, "attacker", lambda: rng.expovariate(0.2))
        self.run(10.0)
        self.waits.clear()
        self.run(20.0)
        self.loop.close()
        waits = sorted(self.waits.get("office", [inf]))
        return len(waits) / 20, waits[int(len(waits) * 0.99)]


def test_attacker_with_long_requests_leaves_others_their_slots_and_throughput() -> None:
    """The table of docs/decisions/queue.md: with 20 slots, a tenth of them for each client, and a queue of 1000."""
    first_come = Course(10, 2, 1.0)
    turns_alone = Course(10, 2, 0.1)
    turns_alone.queue.turns._tiers = [OrderedDict()]  # One for all.
    ours, all_count = Course(10, 2, 0.1), Course(10, 2, 0.1, counts_all=True)
    figures = [it.office_under_attack() for it in (first_come, turns_alone, ours, all_count)]
    (shut_out, _), (slow, _), (count, p99), (reference, reference_p99) = figures
    assert shut_out < 1
    assert slow < 10
    assert count > 300
    assert p99 < 0.05
    assert count > 0.8 * reference
    assert p99 < 2 * reference_p99


def test_shares_cost_no_throughput() -> None:
    def served(share: float) -> int:
        rng = Random(2)
        course = Course(5, 2, share)
        for number in range(300):
            course.loop.call_later(0.0, course.ask, f"{number % 7}", lambda: rng.expovariate(50))
        course.run(20.0)
        course.loop.close()
        return course.served

    assert served(0.1) == pytest.approx(served(1.0), rel=0.03)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 3), st.randoms())
def test_no_slot_is_idle_while_a_request_waits_and_every_request_is_served(
    clients: list[str], members: int, limit: int, rng: Random
) -> None:
    system = System(members, limit, PendingQueue(100, 0, 0.1))
    running: list[tuple[QueuedRequest, Member]] = []
    order: dict[str, list[int]] = {}
    for number, client in enumerate(clients):
        queued = QueuedRequest(REQUEST, client=client)

        def give(member: Member, queued: QueuedRequest = queued, number: int = number) -> bool:
            running.append((queued, member))
            order.setdefault(queued.client, []).append(number)
            return True

        if member := system.admission.acquire(REQUEST, ()):
            give(member)
        else:
            queued.give = give
            system.admission.wait(queued, 10.0)
    while running:
        assert len(running) == members * limit or not len(system.queue)
        ended, member = running.pop(rng.randrange(len(running)))
        system.admission.release(member, ended)
    assert sum(map(len, order.values())) == len(clients)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert sum(system.in_flight) == 0
