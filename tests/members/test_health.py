from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.discovery.pace import URGENT_INTERVAL
from balancer.members.health import JITTER, TRANSITIONS, HealthEvent, State, next_probe, weigh

events = st.sampled_from(HealthEvent)


def run(state: State, *happened: HealthEvent) -> State:
    for event in happened:
        state = TRANSITIONS[state].get(event, state)
    return state


def test_every_state_has_a_row_and_every_living_one_can_leave() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert all(TRANSITIONS[it].get(HealthEvent.LEFT_DNS) is State.LEAVING for it in State if it is not State.LEAVING)


def test_row_names_no_event_that_changes_nothing() -> None:
    assert not [(state, event) for state, row in TRANSITIONS.items() for event, to in row.items() if to is state]


@pytest.mark.parametrize(
    ("state", "happened", "after"),
    [
        (State.JOINING, [HealthEvent.PROBE_FAILED, HealthEvent.UNREACHABLE], State.JOINING),
        (State.JOINING, [HealthEvent.PROBE_OK], State.UP),
        (State.JOINING, [HealthEvent.PROBE_DRAINING], State.DRAINING),
        (State.UP, [HealthEvent.UNREACHABLE], State.DOWN),
        (State.UP, [HealthEvent.PROBE_FAILED], State.SUSPECT),
        (State.UP, [HealthEvent.PROBE_FAILED, HealthEvent.PROBES_FAILED], State.DOWN),
        (State.UP, [HealthEvent.PROBE_UNANSWERED] * 9, State.SUSPECT),
        (State.UP, [HealthEvent.PROBE_UNANSWERED, HealthEvent.PROBE_OK], State.UP),
        (State.UP, [HealthEvent.PROBES_FAILED], State.DOWN),
        (State.DRAINING, [HealthEvent.PROBE_UNANSWERED, HealthEvent.PROBE_FAILED], State.DRAINING),
        (State.UP, [HealthEvent.PROBE_FAILED, HealthEvent.PROBE_OK, HealthEvent.PROBE_FAILED], State.SUSPECT),
        (State.UP, [HealthEvent.CLOSE_ANNOUNCED], State.SUSPECT),
        (State.UP, [HealthEvent.CLOSE_ANNOUNCED, HealthEvent.CLOSE_ANNOUNCED], State.SUSPECT),
        (State.UP, [HealthEvent.CLOSE_ANNOUNCED, HealthEvent.PROBE_DRAINING], State.DRAINING),
        (State.UP, [HealthEvent.CLOSE_ANNOUNCED, HealthEvent.UNREACHABLE], State.DOWN),
        (State.DRAINING, [HealthEvent.CLOSE_ANNOUNCED], State.DRAINING),
        (State.DRAINING, [HealthEvent.UNREACHABLE], State.DOWN),
        (State.DRAINING, [HealthEvent.PROBE_OK], State.UP),
        (State.DOWN, [HealthEvent.PROBE_FAILED, HealthEvent.UNREACHABLE], State.DOWN),
        (State.DOWN, [HealthEvent.PROBE_OK], State.UP),
    ],
)
def test_member_changes_state(state: State, happened: list[HealthEvent], after: State) -> None:
    assert run(state, *happened) is after


@given(st.lists(events), st.lists(events))
def test_member_that_has_left_does_not_come_back(before: list[HealthEvent], after: list[HealthEvent]) -> None:
    assert run(State.JOINING, *before, HealthEvent.LEFT_DNS, *after) is State.LEAVING


@given(st.lists(events))
def test_only_a_successful_probe_makes_a_member_available(happened: list[HealthEvent]) -> None:
    usable = run(State.JOINING, *happened) in (State.UP, State.SUSPECT)
    assert not usable or HealthEvent.PROBE_OK in happened


@pytest.mark.parametrize("event", HealthEvent)
def test_only_the_last_of_so_many_failures_in_a_row_takes_a_member_down(event: HealthEvent) -> None:
    failed = event in (HealthEvent.PROBE_UNANSWERED, HealthEvent.PROBE_FAILED)
    assert [weigh(event, in_row, rise=1, fall=3) for in_row in (1, 2)] == [event] * 2
    assert weigh(event, 3, rise=1, fall=3) is (HealthEvent.PROBES_FAILED if failed else event)


@pytest.mark.parametrize("event", HealthEvent)
def test_only_the_last_of_so_many_successes_in_a_row_counts_as_one(event: HealthEvent) -> None:
    rising = HealthEvent.PROBE_RISING if event is HealthEvent.PROBE_OK else event
    assert [weigh(event, in_row, rise=3, fall=9) for in_row in (1, 2, 3, 4)] == [rising, rising, event, event]


@given(st.sampled_from(State), st.integers(0, 10**6), st.floats(0.1, 3600), st.booleans(), st.randoms())
def test_probe_comes_between_urgent_and_the_interval_or_a_little_early(
    state: State, failures: int, interval: float, urgent: bool, rng: Random
) -> None:
    delay = next_probe(state, failures, interval, urgent, rng)
    assert URGENT_INTERVAL * (1 - JITTER) <= delay <= (URGENT_INTERVAL if urgent else interval)


@given(st.sampled_from(State), st.integers(1, 10**6), st.floats(0.1, 3600), st.integers())
def test_each_failure_makes_the_next_probe_no_sooner(state: State, failures: int, interval: float, seed: int) -> None:
    sooner = next_probe(state, failures, interval, False, Random(seed))
    assert sooner <= next_probe(state, failures + 1, interval, False, Random(seed))


@pytest.mark.parametrize(
    ("state", "failures", "urgent", "delay"),
    [
        (State.UP, 0, False, 5.0),
        (State.UP, 3, False, 5.0),
        (State.DRAINING, 3, False, 5.0),
        (State.DOWN, 1, False, 0.1),
        (State.JOINING, 3, False, 0.1),
        (State.JOINING, 4, False, 0.2),
        (State.DOWN, 1000, False, 5.0),
        (State.DOWN, 1000, True, 0.1),
        (State.UP, 0, True, 0.1),
    ],
)
def test_time_to_the_next_probe(state: State, failures: int, urgent: bool, delay: float) -> None:
    class Latest(Random):
        def random(self) -> float:
            return 0.0

    assert next_probe(state, failures, 5.0, urgent, Latest()) == pytest.approx(delay)
