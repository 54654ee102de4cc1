from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.members.health import CLOSES_TO_SUSPECT, HealthEvent, State
from balancer.members.member import Member
from balancer.members.membership import EMPTY_POLLS, Change, Membership
from balancer.members.slow_start import WARMED_PER_STEP
from balancer.types import Address

NXDOMAIN = Answer("A", Outcome.EMPTY, rcode="NXDOMAIN")
SERVFAIL = Answer("A", Outcome.UNKNOWN, rcode="SERVFAIL")


def at(number: int, priority: int = 0, weight: int = 1) -> Endpoint:
    return Endpoint(Address(f"10.0.0.{number}", 80), priority, weight)


def found(*endpoints: Endpoint | int, record: str = "A") -> Answer:
    return Answer(record, Outcome.FOUND, frozenset(at(it) if isinstance(it, int) else it for it in endpoints))


def learn(membership: Membership, *answers: Answer, now: float = 0.0) -> Change:
    return membership.reconcile(Snapshot(answers, now))


def all_up(*endpoints: Endpoint | int, slow_start: float = 0.0) -> tuple[Membership, list[Member]]:
    """A membership of these endpoints, each of which was probed with success."""
    membership = Membership(slow_start=slow_start)
    joined = list(learn(membership, found(*endpoints)).joined)
    for member in joined:
        membership.observe(member, HealthEvent.PROBE_OK, 0.0)
    return membership, joined


def test_new_member_is_not_available_before_a_probe_succeeds() -> None:
    membership = Membership()
    (member,) = learn(membership, found(1), now=5.0).joined
    assert (member.state, member.since, membership.available) == (State.JOINING, 5.0, ())
    membership.observe(member, HealthEvent.PROBE_OK, 6.0)
    assert (member.state, member.since, membership.available) == (State.UP, 6.0, (member,))


def test_same_answer_again_changes_nothing() -> None:
    membership, _ = all_up(1, 2)
    generation = membership.generation
    assert not learn(membership, found(2, 1))
    assert membership.generation == generation


def test_address_that_leaves_dns_leaves_at_once_while_others_stay() -> None:
    membership, (one, two) = all_up(1, 2)
    change = learn(membership, found(2), now=9.0)
    assert (change.joined, change.left) == ([], [one])
    assert (one.state, one.since, one.reason) == (State.LEAVING, 9.0, "address left DNS")
    assert membership.available == (two,)


def test_address_that_returns_is_a_new_member() -> None:
    membership, (one, _) = all_up(1, 2)
    learn(membership, found(2))
    (again,) = learn(membership, found(1, 2)).joined
    assert again is not one
    assert (again.address, again.state, one.state) == (one.address, State.JOINING, State.LEAVING)


def test_nxdomain_drops_the_last_members_only_after_three_polls() -> None:
    membership, (one,) = all_up(1)
    assert [len(learn(membership, NXDOMAIN).left) for _ in range(4)] == [0, 0, 1, 0]
    assert EMPTY_POLLS == 3
    assert one.state is State.LEAVING


def test_good_answer_starts_the_count_of_empty_polls_again() -> None:
    membership, _ = all_up(1)
    for answer in (NXDOMAIN, NXDOMAIN, found(1), NXDOMAIN, NXDOMAIN):
        assert not learn(membership, answer)


def test_failing_dns_server_never_drops_a_member() -> None:
    membership, members = all_up(1, 2)
    assert not any(learn(membership, SERVFAIL) for _ in range(50))
    assert membership.available == tuple(members)


def test_empty_aaaa_answer_does_not_void_the_a_answer() -> None:
    membership, members = all_up(1, 2)
    for _ in range(10):
        learn(membership, found(1, 2), Answer("AAAA", Outcome.EMPTY))
    assert membership.available == tuple(members)


def test_record_types_lose_their_answers_one_by_one() -> None:
    membership = Membership()
    learn(membership, found(1), found(6, record="AAAA"))
    for _ in range(EMPTY_POLLS):
        learn(membership, NXDOMAIN, found(6, record="AAAA"))
    assert membership.members.keys() == {at(6).address}


def test_suspects_are_available_only_while_no_member_is_up() -> None:
    membership, (one, two) = all_up(1, 2)
    membership.observe(one, HealthEvent.PROBE_FAILED, 1.0)
    assert list(membership.available) == [two]
    membership.observe(two, HealthEvent.PROBE_FAILED, 1.0)
    assert list(membership.available) == [one, two]
    membership.observe(one, HealthEvent.PROBE_OK, 2.0)
    assert list(membership.available) == [one]


def test_worse_srv_priority_is_available_only_while_the_better_one_is_out() -> None:
    membership, (best, worse) = all_up(at(1, priority=10), at(2, priority=20))
    assert membership.available == (best,)
    membership.observe(best, HealthEvent.UNREACHABLE, 1.0)
    assert membership.available == (worse,)


def test_address_that_srv_names_twice_has_its_best_priority() -> None:
    _, (member,) = all_up(at(1, priority=20), at(1, priority=10))
    assert member.endpoint.priority == 10


def test_new_weight_reaches_the_policy_and_keeps_the_member() -> None:
    membership, (one,) = all_up(1)
    generation = membership.generation
    assert not learn(membership, found(at(1, weight=5)))
    assert (membership.available, one.endpoint.weight) == ((one,), 5)
    assert membership.generation > generation


def test_member_that_came_up_warms_up_in_tenths() -> None:
    membership, (old,) = all_up(1, slow_start=10.0)
    membership.warm_up(50.0)
    (new,) = learn(membership, found(1, at(2, weight=4))).joined
    membership.observe(new, HealthEvent.PROBE_OK, 100.0)
    weights = []
    for now in (100.0, 101.0, 102.5, 105.0, 109.9, 110.0, 200.0):
        generation = membership.generation
        membership.warm_up(now)
        weights.append(new.weight)
        assert (membership.generation > generation) is (len(weights) > 1 and weights[-1] != weights[-2])
    assert weights == pytest.approx([0.4, 0.4, 0.8, 2.0, 3.6, 4.0, 4.0])
    assert old.weight == 1


@pytest.mark.parametrize(
    ("events", "starts_anew"),
    [
        ([HealthEvent.PROBE_FAILED, HealthEvent.PROBE_OK], False),
        ([HealthEvent.PROBE_DRAINING, HealthEvent.PROBE_OK], False),
        ([HealthEvent.REFUSED, HealthEvent.PROBE_OK], True),
    ],
)
def test_only_a_member_that_was_down_starts_slowly_again(events: list[HealthEvent], starts_anew: bool) -> None:
    membership, (member,) = all_up(1, slow_start=10.0)
    membership.warm_up(20.0)
    for event in events:
        membership.observe(member, event, 50.0)
        learn(membership, found(1), now=50.0)
    assert member.weight == (0.1 if starts_anew else 1)


def test_member_is_accused_by_requests_until_a_probe_has_looked() -> None:
    membership, (a, b) = all_up(1, 2)
    membership.observe(a, HealthEvent.REFUSED, 1.0, by_request=True)
    membership.observe(b, HealthEvent.REFUSED, 1.0)
    assert list(membership.down_by_requests()) == [a]
    membership.observe(a, HealthEvent.REFUSED, 2.0)
    assert list(membership.down_by_requests()) == []


def test_members_can_be_asked_whether_they_are_available() -> None:
    membership, (a, b) = all_up(1, 2)
    membership.observe(b, HealthEvent.PROBE_FAILED, 1.0)
    assert (membership.is_available(a), membership.is_available(b)) == (True, False)
    membership.observe(a, HealthEvent.REFUSED, 1.0)
    assert (membership.is_available(a), membership.is_available(b)) == (False, True)


@pytest.mark.parametrize("failure", [HealthEvent.REFUSED, HealthEvent.UNREACHABLE, HealthEvent.PROBES_FAILED])
@pytest.mark.parametrize("sign", [HealthEvent.PROBE_OK, HealthEvent.PROBE_DRAINING])
def test_member_that_was_down_comes_back_once_dns_has_named_it_since(failure: HealthEvent, sign: HealthEvent) -> None:
    asked: list[bool] = []
    membership, (member,) = all_up(1)
    membership.on_unnamed = lambda: asked.append(True)
    membership.observe(member, failure, 5.0)
    learn(membership, found(1), now=4.9)  # an answer that was on its way
    for when in (6.0, 7.0):
        membership.observe(member, sign, when, "GET /: 200")
        learn(membership, SERVFAIL, now=when)
    assert member.state is State.DOWN
    assert member.reason == "GET /: 200, and DNS has not named it since it failed"
    assert asked == [True]  # one urgent question, not one for each probe
    learn(membership, found(1, 2), now=8.0)
    assert (member.state, member.since) == (State.UP if sign is HealthEvent.PROBE_OK else State.DRAINING, 8.0)


def test_member_that_fails_again_after_dns_named_it_has_to_be_named_again() -> None:
    membership, (member,) = all_up(1)
    membership.observe(member, HealthEvent.REFUSED, 5.0)
    learn(membership, found(1), now=6.0)
    membership.observe(member, HealthEvent.REFUSED, 7.0)
    membership.observe(member, HealthEvent.PROBE_OK, 8.0)
    assert member.state is State.DOWN
    membership.observe(member, HealthEvent.REFUSED, 8.5)  # what answered a moment ago is gone
    learn(membership, found(1), now=9.0)
    assert member.state is State.DOWN


def test_new_member_that_has_failed_is_up_once_dns_has_named_it_again() -> None:
    membership = Membership()
    (member,) = learn(membership, found(1)).joined
    membership.observe(member, HealthEvent.REFUSED, 1.0)
    membership.observe(member, HealthEvent.PROBE_OK, 2.0)
    learn(membership, Answer("AAAA", Outcome.EMPTY), now=3.0)
    assert not membership.available
    learn(membership, found(1), now=3.0)
    assert membership.available == (member,)


def test_member_that_is_up_stays_up_while_dns_fails() -> None:
    membership, (member,) = all_up(1)
    learn(membership, SERVFAIL, now=1.0)
    for event in (HealthEvent.PROBE_UNANSWERED, HealthEvent.PROBE_OK, HealthEvent.PROBE_FAILED, HealthEvent.PROBE_OK):
        membership.observe(member, event, 2.0)
    assert member.state is State.UP


def test_answer_counts_from_when_it_was_asked_for() -> None:
    membership, (member,) = all_up(1)
    membership.observe(member, HealthEvent.REFUSED, 5.0)
    membership.observe(member, HealthEvent.PROBE_OK, 5.5)
    membership.reconcile(Snapshot((found(1),), when=6.0, asked=4.0))
    assert not membership.available
    membership.reconcile(Snapshot((found(1),), when=6.0, asked=5.5))
    assert membership.available == (member,)


def test_member_that_is_not_up_has_the_last_probes_word_for_a_reason() -> None:
    told: list[str] = []
    membership = Membership(on_reason=lambda member: told.append(member.reason))
    (member,) = learn(membership, found(1)).joined
    for words in ("connection refused", "connection refused", "GET /: 301 is none of 200-299,503"):
        membership.observe(member, HealthEvent.REFUSED, 1.0, words)
        assert member.reason == words
    assert told == ["connection refused", "GET /: 301 is none of 200-299,503"]
    learn(membership, found(1), now=2.0)
    membership.observe(member, HealthEvent.PROBE_OK, 3.0, "GET /: 200")
    membership.observe(member, HealthEvent.PROBE_OK, 4.0, "GET /: 204")
    assert (member.reason, len(told)) == ("GET /: 200", 2)


def test_shortage_names_the_first_members_and_counts_the_others() -> None:
    membership = Membership()
    assert membership.shortage() == "DNS has not answered yet"
    learn(membership, NXDOMAIN)
    assert membership.shortage() == "no member, DNS says A: NXDOMAIN, 0 endpoints"
    one, *_ = learn(membership, found(1, 2, 3, 4, 5), now=1.0).joined
    membership.observe(one, HealthEvent.REFUSED, 2.0, "connection refused")
    assert membership.shortage() == (
        "5 members, 10.0.0.1:80: connection refused; 10.0.0.2:80: found in DNS; 10.0.0.3:80: found in DNS; 2 more"
    )
    learn(membership, found(1), now=3.0)
    membership.drain(one)
    assert membership.shortage() == "1 member, 10.0.0.1:80: drained by hand"


def test_only_a_change_of_state_is_told() -> None:
    flips: list[tuple[State, State, str]] = []
    membership = Membership(on_flip=lambda member, before, event: flips.append((before, member.state, member.reason)))
    (member,) = learn(membership, found(1)).joined
    for event, reason in (
        (HealthEvent.PROBE_FAILED, ""),
        (HealthEvent.PROBE_OK, ""),
        (HealthEvent.PROBE_OK, ""),
        (HealthEvent.UNREACHABLE, "connection refused"),
        (HealthEvent.PROBE_FAILED, ""),
    ):
        membership.observe(member, event, 0.0, reason)
    assert flips == [
        (State.JOINING, State.UP, "probe succeeded"),
        (State.UP, State.DOWN, "connection refused"),
    ]


@pytest.mark.parametrize(
    ("closes", "state"),
    [
        ([True] * 9, State.UP),
        ([False, True], State.UP),
        ([False, True, False, True, False], State.UP),
        ([False, True, True], State.SUSPECT),
        ([True, False, True, True], State.SUSPECT),
    ],
)
def test_member_that_starts_to_close_its_connections_is_suspect(closes: list[bool], state: State) -> None:
    assert CLOSES_TO_SUSPECT == 2
    membership, (member,) = all_up(1)
    for close in closes:
        membership.record_response(member, 200, close, 1.0)
    assert member.state is state


def test_suspect_that_a_probe_clears_has_to_close_twice_again() -> None:
    membership, (member,) = all_up(1)
    for close in (False, True, True):
        membership.record_response(member, 200, close, 1.0)
    membership.observe(member, HealthEvent.PROBE_OK, 2.0)
    membership.record_response(member, 200, True, 3.0)
    assert member.state is State.UP


def test_snapshot_describes_itself_in_a_line() -> None:
    tcp = Answer("AAAA", Outcome.FOUND, frozenset({at(1)}), over_tcp=True)
    text = Snapshot((NXDOMAIN, tcp), 0.0).describe()
    assert text == "A: NXDOMAIN, 0 endpoints; AAAA: NOERROR, 1 endpoint, over TCP"


answers = st.builds(
    Answer,
    record=st.sampled_from(["A", "AAAA", "SRV"]),
    outcome=st.just(Outcome.FOUND),
    endpoints=st.frozensets(st.builds(at, st.integers(1, 4), priority=st.integers(0, 2)), min_size=1, max_size=4),
) | st.builds(
    Answer, record=st.sampled_from(["A", "AAAA", "SRV"]), outcome=st.sampled_from([Outcome.EMPTY, Outcome.UNKNOWN])
)
polls = st.lists(answers, min_size=1, max_size=2, unique_by=lambda it: it.record)
observations = st.tuples(
    st.integers(0, 20), st.sampled_from([it for it in HealthEvent if it is not HealthEvent.LEFT_DNS])
)


def remember(known: dict[str, frozenset[Endpoint]], empty: dict[str, int], answer: Answer) -> None:
    """The rules in the plainest words: what a record type's last good answer is."""
    if answer.outcome is Outcome.FOUND:
        known[answer.record], empty[answer.record] = answer.endpoints, 0
    elif answer.outcome is Outcome.EMPTY:
        empty[answer.record] += 1
        if empty[answer.record] >= EMPTY_POLLS:
            known[answer.record] = frozenset()


@given(st.lists(polls | observations, max_size=40))
def test_any_schedule_of_answers_and_events_keeps_the_invariants(
    schedule: list[list[Answer] | tuple[int, HealthEvent]],
) -> None:
    membership = Membership()
    known: dict[str, frozenset[Endpoint]] = defaultdict(frozenset)
    empty: dict[str, int] = defaultdict(int)
    seen: list[Member] = []
    for now, step in enumerate(schedule):
        before, generation = dict(membership.members), membership.generation
        choice = [(it, it.endpoint) for it in membership.available]
        if isinstance(step, list):
            change = learn(membership, *step, now=float(now))
            for answer in step:
                remember(known, empty, answer)
            assert not [it for it in change.joined if any(it is old for old in seen)]
            assert all(it.state is State.JOINING for it in change.joined)
            assert {it.address for it in change.left} == before.keys() - membership.members.keys()
            seen += change.joined
        elif seen:
            membership.observe(seen[step[0] % len(seen)], step[1], float(now))

        members = membership.members
        endpoints = frozenset[Endpoint]().union(*known.values())
        assert members.keys() == {it.address for it in endpoints}
        assert all(members[it] is before[it] for it in members.keys() & before.keys())
        for member in seen:
            assert (member.state is State.LEAVING) is (members.get(member.address) is not member)
        for address, member in members.items():
            assert member.endpoint.priority == min(it.priority for it in endpoints if it.address == address)

        states = {it.state for it in members.values()}
        wanted = State.UP if State.UP in states else State.SUSPECT
        fit = [it for it in members.values() if it.state is wanted]
        best = min((it.endpoint.priority for it in fit), default=0)
        assert set(membership.available) == {it for it in fit if it.endpoint.priority == best}
        if choice != [(it, it.endpoint) for it in membership.available]:
            assert membership.generation > generation


def test_member_drained_by_hand_is_not_available_whatever_its_probes_say() -> None:
    membership, (one, two) = all_up(1, 2)
    membership.drain(one)
    membership.observe(one, HealthEvent.PROBE_OK, 1.0)
    assert (membership.available, one.state) == ((two,), State.UP)
    generation = membership.generation
    membership.drain(one)
    assert membership.generation == generation, "nothing has changed"
    membership.drain(one, drained=False)
    assert membership.available == (one, two)


def test_suspects_stand_in_for_members_that_are_drained() -> None:
    membership, (one, two) = all_up(1, 2)
    membership.observe(two, HealthEvent.PROBE_FAILED, 1.0)
    membership.drain(one)
    assert membership.available == (two,)


def test_drained_member_is_no_last_resort() -> None:
    membership, (one,) = all_up(1)
    membership.observe(one, HealthEvent.REFUSED, 1.0, by_request=True)
    membership.drain(one)
    assert list(membership.down_by_requests()) == []


def test_address_that_returns_is_not_drained_any_more() -> None:
    membership, (one, two) = all_up(1, 2)
    membership.drain(one)
    learn(membership, found(2))
    (again,) = learn(membership, found(1, 2)).joined
    membership.observe(again, HealthEvent.PROBE_OK, 2.0)
    assert membership.available == (again, two)


def thousands(count: int, first: int = 0) -> list[Endpoint]:
    return [Endpoint(Address(f"10.1.{it // 250}.{it % 250}", 80)) for it in range(first, first + count)]


def test_observer_of_a_departure_sees_no_member_that_left_with_it() -> None:
    membership, members = all_up(1, 2, 3)
    seen: list[tuple[Member, ...]] = []
    membership.on_flip = lambda member, before, event: seen.append(membership.available)
    learn(membership, found(3))
    assert seen == [(members[2],)] * 2


def test_changes_are_told_one_by_one_and_those_of_most_members_as_a_whole() -> None:
    membership, members = all_up(*thousands(1000))
    membership.pop_changes()
    one, two, three = members[5], members[6], members[7]
    membership.observe(one, HealthEvent.REFUSED, 1.0)
    membership.drain(two)
    learn(membership, found(*(it.endpoint for it in members if it is not three)))
    changed = membership.pop_changes()
    assert changed is not None
    assert set(changed) == {one, two, three}
    assert not any(map(membership.is_available, changed))
    assert membership.pop_changes() == {}
    learn(membership, found(*(it.endpoint for it in members[:300] if it is not three)))
    assert membership.much_changed
    assert membership.pop_changes() is None
    assert len(membership.available) == 297


def test_members_that_may_be_chosen_by_another_rule_are_told_as_a_whole() -> None:
    membership, (best, worse) = all_up(at(1, priority=10), at(2, priority=20))
    membership.pop_changes()
    membership.observe(worse, HealthEvent.PROBE_FAILED, 1.0)
    assert membership.pop_changes() == {}, "nobody who may be chosen has changed"
    membership.observe(best, HealthEvent.PROBE_FAILED, 1.0)
    assert membership.pop_changes() is None
    assert membership.available == (best,)


def test_many_members_warm_up_in_small_steps() -> None:
    membership = Membership(slow_start=10.0)
    for member in learn(membership, found(*thousands(1000))).joined:
        membership.observe(member, HealthEvent.PROBE_OK, 0.0)
    assert membership.warms_at() == pytest.approx(2.0)
    membership.warm_up(2.0)
    weights = [it.weight for it in membership.available]
    assert weights.count(0.2) == WARMED_PER_STEP
    for _ in range(1000 // WARMED_PER_STEP):
        membership.warm_up(3.0)
    assert {it.weight for it in membership.available} <= {0.2, 0.3}
    while membership.warms_at() < 100:
        membership.warm_up(membership.warms_at())
    assert {it.weight for it in membership.available} == {1.0}


def test_member_that_goes_down_while_it_warms_up_begins_anew() -> None:
    membership = Membership(slow_start=10.0)
    (member,) = learn(membership, found(1)).joined
    membership.observe(member, HealthEvent.PROBE_OK, 0.0)
    membership.observe(member, HealthEvent.REFUSED, 1.5)
    learn(membership, found(1), now=1.6)
    membership.observe(member, HealthEvent.PROBE_OK, 1.8)
    membership.warm_up(2.5)
    assert member.weight == pytest.approx(0.1)
    membership.warm_up(3.9)
    assert member.weight == pytest.approx(0.2)
