"""Progress of one direction of a request: what is too silent, what is too slow, and what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.settings import Settings
from balancer.frontend.progress import RATE_SECONDS, Progress, Slowness, body_refusal, unread_words

LIMITS = Settings(stream_idle_timeout=60, min_body_rate=240)
RATELESS = Settings(stream_idle_timeout=60, min_body_rate=0)


class Watched:
    """A progress that is checked once a second."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        self.limits = limits
        self.now = 1000.0
        self.progress = Progress()
        self.progress.check(self.now, limits)

    def goes_on(self, seconds: int, rate: float = 0, answered: int | None = None) -> Slowness | None:
        """Let it go on at a rate, in bytes a second, until a rule is broken."""
        for _ in range(seconds):
            self.now += 1
            self.progress.received += int(rate)
            if found := self.progress.check(self.now, self.limits, answered):
                return found
        return None

    def bursts(self, times: int, size: int, every: int) -> Slowness | None:
        """Let so many bytes come at once, so many times, with silence between."""
        for _ in range(times):
            self.progress.received += size
            if found := self.goes_on(every):
                return found
        return None

    def rests(self, seconds: int) -> None:
        self.now += seconds
        self.progress.rest()


@pytest.fixture
def it() -> Watched:
    return Watched()


def test_silence_from_the_beginning_is_too_slow_after_rate_seconds(it: Watched) -> None:
    assert it.goes_on(20) is None
    assert it.goes_on(1) is Slowness.SLOW


def test_silence_behind_a_fast_beginning_is_too_long_after_stream_idle_timeout(it: Watched) -> None:
    assert it.goes_on(1, rate=100_000) is None
    assert it.goes_on(60) is None
    assert it.goes_on(1) is Slowness.SILENT


def test_silence_alone_counts_without_a_least_rate() -> None:
    it = Watched(RATELESS)
    assert it.bursts(100, 1, every=60) is None
    assert it.goes_on(2) is Slowness.SILENT


@pytest.mark.parametrize("rate", [240, 2000])
def test_least_rate_is_enough_for_ever(rate: int, it: Watched) -> None:
    assert it.goes_on(100_000, rate=rate) is None


def test_less_than_the_least_rate_ends(it: Watched) -> None:
    assert it.goes_on(4801, rate=239) is Slowness.SLOW


def test_burst_pays_for_stream_idle_timeout_and_no_more(it: Watched) -> None:
    assert it.goes_on(1, rate=10_000_000) is None
    assert it.goes_on(60, rate=1) is None
    assert it.goes_on(2, rate=1) is Slowness.SLOW


@pytest.mark.parametrize(
    ("size", "every"), [(64_000, 50), (12_000, 50), (1_000_000, 59)], ids=["player", "least", "long pauses"]
)
def test_player_that_pauses_for_less_than_stream_idle_timeout_goes_on(size: int, every: int, it: Watched) -> None:
    assert it.bursts(1000, size, every) is None


def test_player_that_takes_little_between_its_pauses_ends(it: Watched) -> None:
    assert it.bursts(10, 11_000, every=50) is Slowness.SLOW


def test_time_of_a_rest_does_not_count(it: Watched) -> None:
    assert it.goes_on(19) is None
    it.rests(1000)
    assert it.goes_on(21) is None
    assert it.goes_on(1) is Slowness.SLOW


def test_rest_takes_nothing_from_a_full_account(it: Watched) -> None:
    it.goes_on(1, rate=100_000)
    it.rests(1000)
    assert it.goes_on(60) is None


def test_slow_events_that_are_taken_at_once_are_never_too_slow(it: Watched) -> None:
    for _ in range(1000):
        it.progress.received += 10
        it.rests(100)
        assert it.goes_on(1) is None


def test_application_sets_the_pace_once_the_other_direction_has_begun(it: Watched) -> None:
    for answered in range(100):
        assert it.goes_on(60, answered=answered) is None
    assert it.goes_on(2, answered=99) is Slowness.SILENT


def test_next_request_begins_with_what_the_account_holds(it: Watched) -> None:
    it.progress.received += 100_000
    it.progress.begin(it.now, LIMITS)
    assert it.progress.received == 0
    assert it.goes_on(60) is None
    it.progress.begin(it.now, LIMITS)
    assert it.goes_on(20) is None
    assert it.goes_on(1) is Slowness.SLOW


def test_figure_that_falls_takes_nothing_away(it: Watched) -> None:
    it.progress.received += 20_000
    it.goes_on(1)
    it.progress.received -= 50_000
    assert it.goes_on(58) is None
    it.progress.received += 240
    assert it.goes_on(2) is None


@pytest.mark.parametrize(
    ("slowness", "refusal", "words"),
    [
        (Slowness.SILENT, "no byte of the body for 60 s", "has read nothing for 60 s; it is cut off"),
        (
            Slowness.SLOW,
            "the body came with less than 240 bytes/s",
            "has read less than 240 bytes/s of what it is sent; it is cut off",
        ),
    ],
)
def test_rule_has_its_words(slowness: Slowness, refusal: str, words: str) -> None:
    assert (body_refusal(slowness, LIMITS).status, body_refusal(slowness, LIMITS).reason) == (408, refusal)
    assert unread_words(slowness, LIMITS) == words


STEPS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20_000)), min_size=1, max_size=50)


@given(steps=STEPS)
def test_verdict_is_that_of_every_span_of_time(steps: list[tuple[int, int]]) -> None:
    """A client is too slow if it has missed the rate over a span, less an allowance: one from the start, one later."""
    it = Progress()
    it.check(0.0, LIMITS)
    now, silent, spans = 0, 0, {0: RATE_SECONDS * 240}
    for seconds, size in steps:
        now += seconds
        silent = 0 if size else silent + seconds
        spans = {start: left - 240 * seconds + size for start, left in spans.items()}
        spans[now] = 60 * 240
        it.received += size
        found = it.check(float(now), LIMITS)
        if silent > 60:
            assert found is Slowness.SILENT
            return
        if min(spans.values()) < 0:
            assert found is Slowness.SLOW
            return
        assert found is None


@given(steps=STEPS, rested=st.lists(st.booleans(), min_size=50, max_size=50))
def test_rests_never_make_a_client_slower(steps: list[tuple[int, int]], rested: list[bool]) -> None:
    strict, lenient = Progress(), Progress()
    now = 0.0
    for (seconds, size), rests in zip(steps, rested, strict=False):
        now += seconds
        strict.received += size
        lenient.received += size
        if rests:
            lenient.rest()
        if lenient.check(now, LIMITS):
            assert strict.check(now, LIMITS)
            return
        if strict.check(now, LIMITS):
            return
