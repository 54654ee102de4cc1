from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from balancer.watch.loop import MAX_NAME, Loop, judge, plain
from balancer.watch.render import picture
from balancer.watch.tally import (
    HISTORY,
    LAST_FAILURES,
    MAX_HOSTS,
    MAX_KINDS,
    OTHERS,
    RECENT,
    ROTATION,
    Result,
    Tally,
    entry,
)
from balancer.watch.words import NONE, clock

# Noon somewhere, so that times of day are told apart from clock readings.
NOON = 1_800_000_000.0
ESCAPE = "\N{REPLACEMENT CHARACTER}"


def answer(who: str, ended: float, seconds: float = 0.01) -> Result:
    return Result(seconds, who, status=200, ended=ended, at=NOON + ended)


def failure(why: str, ended: float, seconds: float = 0.01) -> Result:
    return Result(seconds, failure=why, ended=ended, at=NOON + ended)


def tally(*results: Result) -> Tally:
    total = Tally()
    for result in results:
        total.add(result)
    return total


def turns(*hosts: str, rate: float, start: float, end: float) -> Iterator[Result]:
    """``rate`` answers a second, by these hosts in turn."""
    for number in range(round((end - start) * rate)):
        yield answer(hosts[number % len(hosts)], start + number / rate)


def workers(count: int) -> list[str]:
    return [f"worker-{number:02}" for number in range(1, count + 1)]


def drawn(total: Tally, now: float = 10.0, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(picture("GET http://localhost/", total, now, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def line(lines: Sequence[str], start: str) -> str:
    found = [it for it in lines if it.startswith(start)]
    assert len(found) == 1, (start, lines)
    return found[0]


@pytest.mark.parametrize(
    ("status", "text", "headers", "who", "failure", "token"),
    [
        (200, "Hello World I am 3f2a! 7 times.\n", {}, "3f2a", "", ""),
        (200, "<h1>Shop</h1>\nWelcome", {}, "<h1>Shop</h1>", "", ""),
        (200, "x" * 100, {}, "x" * MAX_NAME, "", ""),
        (200, f"I am {'x' * 100}!", {}, "x" * MAX_NAME, "", ""),
        (204, "", {}, "(empty answer)", "", ""),
        (302, "", {}, "(empty answer)", "", ""),
        (404, "Not Found\n", {}, "", "404 Not Found", ""),
        (500, "", {}, "", "500", ""),
        (503, "503 nobody\n", {"X-Balancer-Error": "no_member"}, "", "503 no_member", "no_member"),
        (503, "I am 3f2a!", {}, "", "503 I am 3f2a!", ""),
        (200, "I am \x1b[2Jme!", {}, f"{ESCAPE}[2Jme", "", ""),
        (500, "\x1b]0;owned\x07", {}, "", f"500 {ESCAPE}]0;owned{ESCAPE}", ""),
    ],
)
def test_answer_is_judged(status: int, text: str, headers: dict[str, str], who: str, failure: str, token: str) -> None:
    response = httpx.Response(status, text=text, headers=headers)
    assert judge(response) == Result(0.0, who, failure, status, token)


@given(st.text())
def test_text_of_a_server_is_no_command_to_a_terminal(text: str) -> None:
    assert plain(text).isprintable()


def test_title_keeps_a_password_to_itself() -> None:
    assert Loop("http://me:secret@localhost/a?b=c", 1, method="HEAD").title == "HEAD http://localhost/a?b=c"


def test_tally_counts_answers_by_worker_and_failures_by_cause() -> None:
    total = tally(answer("a", 1), answer("b", 2), failure("502 member_failed", 5, 3.0), answer("a", 6))
    assert (total.requests, total.answered, total.failed) == (4, 3, 1)
    assert total.shares == {"a": 2, "b": 1}
    assert total.failures == {"502 member_failed": 1}
    assert list(total.rotation) == ["a", "b", "a"]
    assert total.longest == 3.0


def test_failure_does_not_count_as_a_latency() -> None:
    assert tally(answer("a", 1, 0.2), failure("late", 31, 30.0)).percentile(1.0) == pytest.approx(0.2, rel=0.01)


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=50))
def test_no_percentile_is_above_the_slowest_answer(seconds: list[float]) -> None:
    answers = [answer("a", 100.0 + number, it) for number, it in enumerate(seconds)]
    assert tally(*answers, failure("late", 300, 200.0)).percentile(1.0) <= max(seconds)


@given(st.lists(st.floats(1e-6, 100), max_size=50), st.floats(0, 1))
def test_percentile_is_to_one_per_cent_a_latency_that_its_share_of_answers_did_not_exceed(
    seconds: list[float], share: float
) -> None:
    percentile = tally(*(answer("a", 100.0 + number, it) for number, it in enumerate(seconds))).percentile(share)
    assert sum(it <= percentile * (1 + 1e-9) for it in seconds) >= share * len(seconds)
    assert any(it == pytest.approx(percentile, rel=0.011) for it in seconds or [0.0])


@settings(max_examples=10)
@given(st.integers(0, 3 * MAX_HOSTS))
def test_tally_of_a_long_watch_stays_small(requests: int) -> None:
    total = tally(*(answer(str(it), float(it)) for it in range(requests)))
    assert list(total.rotation) == [str(it) for it in range(requests)][-ROTATION:]
    assert list(total.hosts) == [str(it) for it in range(requests)][-MAX_HOSTS:]
    assert total.shares[OTHERS] == max(0, requests - MAX_HOSTS)
    assert total.shares.total() == total.requests == requests
    assert sum(it is not None for it in total.seconds(float(requests), 10**6)) <= HISTORY


def test_kinds_of_failures_are_told_apart_up_to_a_limit() -> None:
    total = tally(*(failure(f"500 at {it}", float(it)) for it in range(2 * MAX_KINDS)), failure("500 at 0", 999))
    assert len(total.failures) == MAX_KINDS + 1
    assert total.failures["500 at 0"] == 2
    assert total.failures[OTHERS] == MAX_KINDS
    assert [it.failure for it in total.last_failures][-2:] == [f"500 at {2 * MAX_KINDS - 1}", "500 at 0"]
    assert len(total.last_failures) == LAST_FAILURES


def test_recent_share_is_that_of_the_last_seconds() -> None:
    total = tally(*turns("a", rate=10, start=100, end=120), *turns("a", "b", rate=10, start=120, end=125))
    assert total.recent(124.9) == {"a": 75, "b": 25}
    assert total.recent(128.0) == {"a": 35, "b": 25}
    assert total.recent(129.0 + RECENT) == {}
    assert total.shares == {"a": 225, "b": 25}


@pytest.mark.parametrize(("now", "rate"), [(100.5, 5), (102.0, 10), (105.5, 10), (120.0, 10), (125.0, 5), (140.0, 0)])
def test_requests_a_second_are_those_of_the_last_whole_seconds(now: float, rate: float) -> None:
    results = [it for it in turns("a", rate=10, start=100.01, end=120.01) if it.ended <= now]
    assert tally(*results).rate(now) == pytest.approx(rate, rel=0.06)


def test_latencies_are_known_by_the_second() -> None:
    total = tally(
        answer("a", 1.1, 0.1), answer("a", 1.2, 0.3), answer("a", 1.9, 0.2), failure("x", 3.1), answer("a", 5, 1)
    )
    found = [it and (it.median, it.worst, it.answered, it.failed) for it in total.seconds(5.5, 6)]
    assert found == [None, (0.2, 0.3, 3, 0), None, (0.0, 0.0, 0, 1), None, (1.0, 1.0, 1, 0)]


def test_host_is_silent_soon_after_the_others_go_on_without_it() -> None:
    total = tally(*turns("a", "b", "c", rate=20, start=100, end=110))
    assert total.silent(110) == frozenset()
    gone_for = []
    for result in turns("a", "b", rate=20, start=110, end=120):
        total.add(result)
        if "c" in total.silent(result.ended):
            gone_for.append(result.ended - 110)
    assert total.silent(120) == {"c"}
    assert 1.5 < min(gone_for) < 3


def test_hosts_are_silent_once_stopped_and_not_between_their_turns() -> None:
    total = Tally()
    for result in turns(*workers(60), rate=5, start=100, end=160):
        total.add(result)
        assert not total.silent(result.ended)
    for result in turns("worker-01", "worker-02", rate=5, start=160, end=170):
        total.add(result)
    assert total.silent(170) == set(workers(60)) - {"worker-01", "worker-02"}


def test_hosts_are_not_silent_while_none_answers_but_when_everything_fails() -> None:
    total = tally(*turns("a", "b", rate=10, start=100, end=110))
    assert total.silent(200) == frozenset()
    for number in range(30):
        total.add(failure("refused", 110 + number / 10))
    assert total.silent(113) == {"a", "b"}


def test_stall_is_the_time_in_which_requests_wait_and_none_is_answered() -> None:
    total = Tally()
    for now in (10.0, 10.2, 10.4):
        total.sent(now)
    assert total.stall(12.0) == 2.0
    total.add(answer("a", 13.0, 2.8))
    assert total.longest_stall(13.0, NOON) == (3.0, NOON + 13)
    assert total.stall(13.5) == 0.5, "two are still waiting"
    total.add(answer("a", 13.6, 3.6))
    total.add(answer("a", 13.7, 3.3))
    assert total.stall(20.0) == 0.0, "nobody waits"
    assert total.longest_stall(20.0, NOON + 20) == (3.0, NOON + 13)


def test_stall_goes_on_while_requests_fail_and_counts_before_it_has_ended() -> None:
    total = Tally()
    for now in (10.0, 11.0, 12.0):
        total.sent(now)
        total.add(failure("refused", now + 0.01))
    assert total.longest_stall(14.0, NOON + 14) == (4.0, NOON + 14)
    total.sent(15.0)
    total.add(answer("a", 15.5, 0.5))
    assert total.longest_stall(20.0, NOON + 20) == (5.5, NOON + 15.5)


def test_pauses_of_a_slow_loop_are_no_stalls() -> None:
    total = Tally()
    for now in (10.0, 20.0, 30.0):
        total.sent(now)
        total.add(answer("a", now + 0.25, 0.25))
    assert total.longest_stall(40.0, NOON) == (0.25, NOON + 10.25)


def test_results_whose_sending_was_not_told_are_summed_up_as_well() -> None:
    assert tally(answer("a", 10.0, 2.0), answer("b", 10.5, 2.5)).longest_stall(11, NOON) == (2.0, NOON + 10)


def test_summary_has_a_line_for_each_worker_and_each_cause() -> None:
    answers = turns("b", "b", "b", "a", rate=4, start=100.01, end=102.01)
    total = tally(*answers, failure("502 member_failed", 104, 2.0), *turns("b", rate=10, start=104, end=107.5))
    at = NOON + 107.5
    assert total.summary(107.5, at) == [
        "44 requests, 1 failed, median 10.0 ms, p99 10.0 ms, longest 2000.0 ms",
        f"  in 7.5 s, 5.9 a second; longest time without an answer 2.0 s, until {clock(NOON + 104)}",
        f"  a: 2 (4.7%), last seen {clock(NOON + 101.76)}",
        "  b: 41 (95.3%)",
        f"  failed once: 502 member_failed, at {clock(NOON + 104)}",
    ]
    total.add(failure("502 member_failed", 109))
    assert total.summary(110, NOON + 110)[-1].endswith(
        f"failed 2 times: 502 member_failed, {clock(NOON + 104)} to {clock(NOON + 109)}"
    )


def test_report_for_scripts_says_the_same() -> None:
    total = tally(*turns("a", "b", rate=4, start=100.01, end=102.01), failure("refused", 103, 1.0))
    report = total.report(104, NOON + 104)
    assert json.loads(json.dumps(report)) == report
    assert report == {
        "requests": 9,
        "answered": 8,
        "failed": 1,
        "seconds": 4.0,
        "per_second": 2.25,
        "median_ms": 10.0,
        "p99_ms": 10.0,
        "longest_ms": 1000.0,
        "longest_stall_ms": 2000.0,
        "longest_stall_end": iso(NOON + 104),
        "workers": [
            {"worker": "a", "requests": 4, "share": 0.5, "last": iso(NOON + 101.51), "silent": False},
            {"worker": "b", "requests": 4, "share": 0.5, "last": iso(NOON + 101.76), "silent": False},
        ],
        "failures": [{"failure": "refused", "requests": 1, "first": iso(NOON + 103), "last": iso(NOON + 103)}],
    }


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def test_report_counts_hosts_that_are_not_told_apart() -> None:
    total = tally(*(answer(str(it), 100 + it / 10) for it in range(MAX_HOSTS + 7)))
    (others,) = (it for it in total.report(300, NOON)["workers"] if it["worker"] == OTHERS)  # type: ignore[attr-defined]
    assert others == {"worker": OTHERS, "requests": 7, "share": 0.007, "last": None, "silent": False}


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        (answer("a", 1.5), {"worker": "a", "status": 200}),
        (Result(0.01, failure="503 no_member", status=503, token="no_member", at=NOON + 1.5),
         {"status": 503, "error": "no_member", "failure": "503 no_member"}),
        (failure("refused", 1.5), {"failure": "refused"}),
    ],
)  # fmt: skip
def test_request_is_one_object_for_scripts(result: Result, fields: dict[str, object]) -> None:
    nothing = {"worker": None, "status": None, "error": None, "failure": None}
    assert entry(result) == nothing | {"time": iso(NOON + 1.5), "duration_ms": 10.0} | fields
    assert list(entry(result)) == ["time", "worker", "status", "duration_ms", "error", "failure"]


@pytest.mark.parametrize("results", [(), (failure("refused", 1.0, 1.0),)])
def test_watch_without_an_answer_can_be_summed_up_and_drawn(results: tuple[Result, ...]) -> None:
    total = tally(*results)
    counts = "1 request, 1 failed" if results else "0 requests, 0 failed"
    figures = f"median {NONE}, p99 {NONE}, longest {'1000.0 ms' if results else NONE}"
    assert total.summary(1, NOON)[0] == f"{counts}, {figures}"
    assert line(drawn(total), counts)
    assert line(drawn(total), figures.replace("1000.0 ms", "1.00 s"))
    report = total.report(1, NOON)
    assert (report["median_ms"], report["p99_ms"], report["longest_ms"]) == (None, None, 1000.0 if results else None)


def test_picture_shows_rotation_shares_and_failures() -> None:
    total = tally(*turns("b", "b", "b", "a", rate=4, start=100.01, end=102.01), failure("503 no_member", 103, 1.0))
    lines = drawn(total, 103.5)
    assert lines[0] == "GET http://localhost/"
    assert lines[1].count("●") == 8
    assert re.fullmatch(r"a +2 +25\.0% █+ +2 +25\.0%", line(lines, "a "))
    assert re.fullmatch(r"b +6 +75\.0% █{21} +6 +75\.0%", line(lines, "b "))
    assert line(lines, "9 requests, 1 failed (11.11%), 2.7 a second")
    assert line(lines, "longest time without an answer 1.5 s; none for 1.5 s now")
    assert line(lines, f"failed once, at {clock(NOON + 103)}: 503 no_member")
    assert line(lines, f"  {clock(NOON + 103)}  503 no_member, after 1.00 s")


def test_picture_says_who_is_new_and_who_was_last_seen_when() -> None:
    total = tally(
        *turns("old", "stays", rate=10, start=100, end=110), *turns("stays", "young", rate=10, start=110, end=115)
    )
    lines = drawn(total, 115)
    assert line(lines, "old ").endswith(f"last seen {clock(NOON + 109.8)}")
    assert line(lines, "young ").endswith("new")
    assert line(lines, "stays ").endswith("%")
    assert [it.split()[0] for it in lines[3:6]] == ["stays", "young", "old"], "who is silent goes down"


def test_chart_has_a_column_for_each_second_and_a_gap_where_nothing_was_answered() -> None:
    total = tally(
        *(answer("a", 100.5 + second, 0.1 * (second + 1)) for second in range(8)),
        failure("refused", 109.5), *[failure("refused", 111.5)] * 12, answer("a", 112.5, 0.1),
    )  # fmt: skip
    lines = drawn(total, 112.9)
    assert line(lines, "median  ") == "median " + " " * 47 + "▂▃▄▅▆▇██    ▂ ≤ 800.0 ms"
    assert line(lines, "worst ") == "worst  " + " " * 47 + "▂▃▄▅▆▇██    ▂ ≤ 800.0 ms"
    assert line(lines, "failed  ") == "failed " + " " * 56 + "1 +"


def test_picture_shows_an_answer_verbatim_even_if_it_looks_like_markup() -> None:
    assert line(drawn(tally(answer("[red]a[/]", 1.0))), "[red]a[/]")


def test_sixty_workers_are_all_seen_on_the_smallest_usual_terminal() -> None:
    total = tally(*turns(*workers(60), rate=60, start=100.01, end=110.01))
    lines = drawn(total, 109.999)
    assert len(lines) <= 24
    text = "\n".join(lines)
    assert set(re.findall(r"worker-\d\d", text)) == set(workers(60))
    assert text.count(" 1.7%") == 60
    assert line(lines, "600 requests, 0 failed, 60.0 a second")
    assert line(lines, "median  ")


def test_workers_without_room_are_counted_in_a_line() -> None:
    text = "\n".join(drawn(tally(*turns(*workers(400), rate=400, start=100, end=102)), 102))
    shown = set(re.findall(r"worker-\d\d+", text))
    assert f"… {400 - len(shown)} more" in text
    assert len(shown) > 50


def test_workers_long_gone_do_not_change_the_lines_of_those_at_work() -> None:
    total = tally(
        *turns(*workers(60), rate=60, start=100, end=110), *turns("worker-01", "worker-02", rate=60, start=110, end=130)
    )
    lines = drawn(total, 130)
    assert len(lines) <= 24
    assert "50.0%" in line(lines, "worker-01") and "█" in line(lines, "worker-02")
    (more,) = re.findall(r"… and (\d+) more that are silent", "\n".join(lines))
    assert sum("last seen" in it for it in lines) == 58 - int(more)


def test_small_terminal_shows_the_hosts_and_the_figures_first() -> None:
    total = tally(*turns("a", "b", rate=10, start=100, end=110), failure("502 member_failed", 110))
    lines = drawn(total, 110.5, width=60, height=10)
    assert len(lines) <= 10
    assert [it[:6].rstrip() for it in lines[2:5]] == ["worker", "a", "b"]
    assert line(lines, "101 requests")
    assert line(lines, "failed once")


NAMES = st.sampled_from(["a", "worker-1", "b28352eebbb5", "x" * 60, "日本語のページ" * 8, "e\u0301" * 30])
RESULTS = st.lists(
    st.tuples(NAMES, st.integers(0, 300), st.floats(0, 3), st.floats(0, 40), st.booleans()), max_size=120
)


@settings(max_examples=200, deadline=None)
@given(RESULTS, st.integers(20, 250), st.integers(4, 70), st.floats(0, 100))
def test_picture_always_fits(
    results: list[tuple[str, int, float, float, bool]], width: int, height: int, after: float
) -> None:
    total, now = Tally(), 1000.0
    for name, number, pause, seconds, failed in results:
        now += pause
        who = f"{name}{number}"
        total.add(failure(who, now, seconds) if failed else answer(who, now, seconds))
    lines = drawn(total, now + after, width, height)
    assert len(lines) <= height
    assert max(cell_len(it) for it in lines) <= width
