"""Which name is asked for, when an alias may stand for several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.discovery.search_list import LOOK_ROUNDS, RECHECK_ROUNDS, SearchList, candidates
from balancer.discovery.snapshot import Outcome

FOUND, NOBODY, UNKNOWN = Outcome.FOUND, Outcome.EMPTY, Outcome.UNKNOWN
CLUSTER = ["default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."]


@pytest.mark.parametrize(
    ("alias", "ndots", "names"),
    [
        ("worker", 5, ["worker." + it for it in CLUSTER] + ["worker."]),
        ("_http._tcp.worker", 5, ["_http._tcp.worker." + it for it in CLUSTER] + ["_http._tcp.worker."]),
        ("worker.default.svc.cluster.local.", 5, ["worker.default.svc.cluster.local."]),
        (
            "a.default.svc.cluster.local",
            4,
            ["a.default.svc.cluster.local.", *("a.default.svc.cluster.local." + it for it in CLUSTER)],
        ),
        ("apps", 1, ["apps." + it for it in CLUSTER] + ["apps."]),
        ("apps", 0, ["apps.", *("apps." + it for it in CLUSTER)]),
    ],
)
def test_names_are_in_the_order_of_resolv_conf(alias: str, ndots: int, names: list[str]) -> None:
    assert candidates(alias, CLUSTER, ndots) == names


def test_names_without_a_search_list_are_the_alias_alone() -> None:
    assert candidates("apps", [], 1) == ["apps."]


def test_root_in_a_search_list_is_the_alias_as_it_is() -> None:
    assert candidates("apps", [".", "x.example"], 5) == ["apps.", "apps.x.example."]


def test_name_that_is_too_long_is_none() -> None:
    alias = ".".join(["a" * 60] * 4)
    assert candidates(alias, ["b" * 20], 5) == [alias + "."]


class Dns:
    """What each name has, and a search that asks; a round as in ``DnsResolver``."""

    def __init__(self, *says: Outcome) -> None:
        self.says = list(says)
        self.search = SearchList(len(says))
        self.asked: list[list[int]] = []

    def round(self) -> Outcome:
        self.asked.append([])
        in_use = UNKNOWN
        for name in self.search.begin():
            self.asked[-1].append(name)
            self.search.on_outcome(name, self.says[name])
            if self.says[name] is FOUND:
                return FOUND
            if name == self.search.in_use:
                in_use = self.says[name]
        return in_use if self.search.is_empty() else UNKNOWN

    def rounds(self, number: int) -> list[Outcome]:
        return [self.round() for _ in range(number)]


def test_first_name_that_has_addresses_costs_one_query_a_round() -> None:
    dns = Dns(FOUND, NOBODY, NOBODY)
    assert set(dns.rounds(100)) == {FOUND}
    assert dns.asked == [[0]] * 100


def test_later_name_is_found_in_the_first_round_and_asked_for_alone_thereafter() -> None:
    dns = Dns(NOBODY, NOBODY, FOUND)
    assert set(dns.rounds(1 + 2 * RECHECK_ROUNDS)) == {FOUND}
    assert dns.asked == [[0, 1, 2], *[*[[2]] * (RECHECK_ROUNDS - 1), [0, 1, 2]] * 2]


def test_failure_leads_on_to_the_next_name_where_nothing_was_found_yet() -> None:
    assert Dns(UNKNOWN, FOUND).round() is FOUND


def test_name_that_would_have_been_preferred_is_noticed() -> None:
    dns = Dns(NOBODY, FOUND)
    dns.round()
    dns.says[0] = FOUND
    dns.rounds(RECHECK_ROUNDS)
    assert dns.search.in_use == 0
    assert dns.asked[-1] == [0]


def test_emptiness_is_said_once_all_names_have_been_asked_since() -> None:
    dns = Dns(FOUND, NOBODY, NOBODY)
    dns.rounds(5)
    dns.says[0] = NOBODY
    assert dns.rounds(3) == [UNKNOWN, NOBODY, NOBODY]
    assert dns.asked[5:] == [[0], [0, 1, 2], [0]]


def test_answers_before_the_name_in_use_answered_do_not_count() -> None:
    dns = Dns(NOBODY, FOUND)
    dns.rounds(2)
    dns.says = [UNKNOWN, NOBODY]
    assert set(dns.rounds(3 * LOOK_ROUNDS)) == {UNKNOWN}


def test_addresses_that_move_to_another_name_are_found_in_the_next_round() -> None:
    dns = Dns(NOBODY, NOBODY, FOUND)
    dns.rounds(2)
    dns.says = [NOBODY, FOUND, NOBODY]
    assert dns.rounds(2) == [UNKNOWN, FOUND]


def test_other_names_while_there_are_no_members_are_asked_for_now_and_then() -> None:
    dns = Dns(NOBODY, NOBODY, NOBODY)
    assert set(dns.rounds(2 * LOOK_ROUNDS)) == {NOBODY}
    assert dns.asked == [[0, 1, 2], *[[0]] * (LOOK_ROUNDS - 1)] * 2


def test_failure_of_the_name_in_use_is_no_news_and_leads_nowhere() -> None:
    """The cluster's zone fails, and a wildcard in the company's domain would answer."""
    dns = Dns(FOUND, FOUND)
    dns.round()
    dns.says[0] = UNKNOWN
    assert set(dns.rounds(RECHECK_ROUNDS - 2)) == {UNKNOWN}
    assert dns.search.in_use == 0
    assert all(it == [0] for it in dns.asked)


def test_name_that_could_not_be_asked_for_may_have_members() -> None:
    dns = Dns(NOBODY, UNKNOWN)
    assert set(dns.rounds(2 * LOOK_ROUNDS)) == {UNKNOWN}


def test_name_that_was_never_answered_does_not_hide_emptiness() -> None:
    """A cluster without a way out: the alias as it is has always failed."""
    dns = Dns(FOUND, NOBODY, UNKNOWN)
    dns.round()
    dns.says[0] = NOBODY
    assert dns.rounds(3) == [UNKNOWN, NOBODY, NOBODY]


def test_name_that_was_answered_once_and_fails_now_may_have_members() -> None:
    dns = Dns(NOBODY, FOUND)
    dns.rounds(1)
    dns.says = [FOUND, NOBODY]
    dns.rounds(RECHECK_ROUNDS)
    assert dns.search.in_use == 0
    dns.says = [NOBODY, UNKNOWN]
    assert set(dns.rounds(3)) == {UNKNOWN}


def test_late_answer_of_a_name_behind_the_one_in_use_changes_nothing() -> None:
    search = SearchList(3)
    search.begin()
    search.on_outcome(0, FOUND)
    search.on_outcome(2, FOUND)
    search.on_outcome(1, NOBODY)
    assert (search.in_use, search.begin()) == (0, [0])


OUTCOMES = st.sampled_from([FOUND, NOBODY, UNKNOWN])


@given(st.lists(st.lists(OUTCOMES, min_size=3, max_size=3), max_size=60))
def test_emptiness_is_never_said_while_an_answered_name_has_addresses(history: list[list[Outcome]]) -> None:
    """Whatever happened before: once things stay as they are, what is there is found, and only then."""
    dns = Dns(NOBODY, NOBODY, NOBODY)
    for says in history:
        dns.says = says
        said = dns.round()
        assert (said is FOUND) == any(says[it] is FOUND for it in dns.asked[-1])
        if said is NOBODY:
            assert all(says[it] is not FOUND for it in dns.asked[-1])
    final = dns.says
    settled = dns.rounds(RECHECK_ROUNDS + LOOK_ROUNDS + 2)[-1]
    if FOUND in final and dns.says[dns.search.in_use] is not UNKNOWN:
        assert settled is FOUND
    if set(final) == {NOBODY}:
        assert settled is NOBODY
    if settled is NOBODY:
        assert FOUND not in final
