"""How long a client may keep a connection in each phase."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf

import pytest

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.frontend import client_registry
from balancer.frontend.client_connection import (
    ACTIVE,
    BODY,
    DISCARD_BYTES,
    DISCARDING,
    DONE,
    HEAD,
    IDLE,
    LINGER_BYTES,
    LINGERING,
    NEW,
    REJECTED,
    TIMEOUTS,
    ClientConnection,
    Phase,
    timeout,
    unread_timeout,
)
from tests.support import wire
from tests.support.messages import GET
from tests.support.wire import OK, Member, answer_all, balance, eventually

LIMITS = Settings(header_timeout=10, keepalive_timeout=75, stream_idle_timeout=60)


class Connection(ClientConnection):
    """A connection that notes its end. ``waiting``: the balancer waits for its client."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.ends: list[str] = []
        self.waiting = True
        self.closing = False
        self.kept = 0
        self.read = 0

    @property
    def unread(self) -> int:
        return self.kept

    @property
    def taken(self) -> int:
        return self.read

    @property
    def is_waiting(self) -> bool:
        return self.waiting

    def limit_reached(self, limit: str, words: str) -> None:
        self.ends.append(limit)

    def reject(self, refusal: Refusal) -> None:
        self.ends.append(refusal.reason)

    @property
    def is_closing(self) -> bool:
        return self.closing

    def pause(self) -> None:
        self.ends.append("pause")

    def abort(self) -> None:
        self.ends.append("abort")

    def time_out(self, limit: float) -> None:
        self.ends.append(f"{self.phase.value} {limit:g}")

    def check(self, *clock: float) -> list[str]:
        for now in clock:
            self.check_timeouts(now)
        return self.ends


@pytest.fixture
def it() -> Connection:
    connection = Connection()
    connection.begin_checks(0.0)
    return connection


def test_every_phase_has_a_time_out() -> None:
    assert TIMEOUTS.keys() == set(Phase)


def test_phases_in_which_the_client_owes_something_end() -> None:
    endless = {phase.name for phase in Phase if timeout(phase, Settings()) == inf}
    assert endless == {"AWAIT_CONTINUE", "ACTIVE", "SWITCHING", "TUNNEL", "DONE", "REJECTED", "CLOSED"}


@pytest.mark.parametrize(
    ("setting", "phases"),
    [
        ("header_timeout", {Phase.HANDSHAKE, Phase.NEW, Phase.HEAD}),
        ("keepalive_timeout", {Phase.IDLE}),
        ("stream_idle_timeout", {Phase.BODY}),
    ],
)
def test_setting_limits_its_phases(setting: str, phases: set[Phase]) -> None:
    settings = Settings(**{setting: 0.3})  # type: ignore[arg-type]
    assert {phase for phase in Phase if timeout(phase, settings) == 0.3} == phases


def test_stream_idle_timeout_limits_what_is_not_read() -> None:
    assert unread_timeout(Settings(stream_idle_timeout=0.3)) == 0.3


def test_new_connection_has_its_time_from_the_first_moment_on(it: Connection) -> None:
    assert it.check(1.0, 9.9) == []
    assert it.check(10.1) == ["header_timeout", "new 10"]


def test_first_head_has_the_time_of_the_new_connection(it: Connection) -> None:
    it.check(5.0)
    it.phase = HEAD
    assert it.check(6.0, 9.9) == []
    assert it.check(10.1) == ["head 10"]


def test_later_phase_has_its_time_from_the_check_that_found_it(it: Connection) -> None:
    it.phase = IDLE
    assert it.check(100.0, 174.9) == []
    assert it.check(175.1) == ["idle 75"]


def test_same_phase_with_another_message_begins_anew(it: Connection) -> None:
    it.phase = IDLE
    it.check(100.0)
    it.messages += 1
    assert it.check(170.0, 244.9) == []
    assert it.check(245.1) == ["idle 75"]


def test_time_in_which_the_client_is_not_waited_for_does_not_count(it: Connection) -> None:
    it.phase = IDLE
    it.check(100.0)
    it.waiting = False
    it.check(500.0)
    it.waiting = True
    assert it.check(501.0, 575.9) == []
    assert it.check(576.1) == ["idle 75"]


def test_active_connection_is_not_ended(it: Connection) -> None:
    it.phase = ACTIVE
    assert it.check(1.0, 1e6) == []


def test_lingering_connection_has_a_second(it: Connection) -> None:
    it.phase = LINGERING
    assert it.check(1.0, 2.0) == []
    assert it.check(2.1) == ["lingering 1"]


def test_lingering_connection_is_gone_a_second_after_its_last_byte_was_taken(it: Connection) -> None:
    it.phase = LINGERING
    it.kept = 10
    assert it.check(100.0, 105.0) == []
    it.kept = 5
    assert it.check(106.0, 115.0) == []
    it.kept = 0
    assert it.check(116.0, 117.0) == []
    it.drop(1)
    assert it.check(117.1) == ["lingering", "lingering 1"]


def test_lingering_connection_of_which_nothing_is_taken_ends(it: Connection) -> None:
    it.limits = replace(LIMITS, min_body_rate=0)
    it.phase = LINGERING
    it.kept = 10
    assert it.check(100.0, 130.0) == []
    assert it.check(130.1) == ["lingering 1"]


@pytest.mark.parametrize("phase", [IDLE, ACTIVE, LINGERING])
def test_connection_that_closes_is_cut_off_a_second_after_its_last_byte_was_taken(phase: Phase, it: Connection) -> None:
    it.limits = replace(LIMITS, min_body_rate=0)
    """TLS waits for the client to end it, too."""
    it.phase = phase
    it.closing, it.kept = True, 10
    assert it.check(100.0, 150.0) == []
    it.kept = 0
    assert it.check(151.0, 152.0) == []
    assert it.check(152.1) == ["abort"]


def test_connection_that_closes_and_whose_client_takes_nothing_is_cut_off(it: Connection) -> None:
    it.limits = replace(LIMITS, min_body_rate=0)
    it.phase = LINGERING
    it.closing, it.kept = True, 10
    assert it.check(100.0, 160.0) == []
    assert it.check(160.1) == ["unread", "abort"]


@pytest.mark.parametrize("phase", [DONE, REJECTED, LINGERING])
def test_little_is_read_behind_the_last_request(phase: Phase, it: Connection) -> None:
    it.phase = phase
    it.drop(LINGER_BYTES)
    assert it.ends == []
    it.drop(1)
    assert it.ends == ["pause"]


def test_upload_that_goes_on_behind_its_answer_is_read_for_half_a_minute(it: Connection) -> None:
    it.phase = IDLE
    it.phase = DISCARDING
    it.check(100.0)
    for now in range(101, 131):
        it.drop(1)
        assert it.check(float(now)) == []
    it.drop(1)
    assert it.check(130.1) == ["discarding", "discarding 5"]


def test_upload_that_stops_behind_its_answer_is_closed(it: Connection) -> None:
    it.phase = DISCARDING
    it.check(100.0)
    it.drop(1)
    assert it.check(101.0, 106.0) == []
    assert it.check(106.1) == ["discarding", "discarding 5"]


def test_upload_that_is_too_much_behind_its_answer_is_closed_at_once(it: Connection) -> None:
    it.phase = DISCARDING
    it.drop(DISCARD_BYTES)
    assert it.ends == []
    it.drop(1)
    assert it.ends == ["discarding", "discarding 5"]


@pytest.mark.parametrize("phase", [NEW, IDLE, ACTIVE])
def test_client_that_reads_nothing_is_aborted_in_any_phase(it: Connection, phase: Phase) -> None:
    if phase is not NEW:
        it.phase = phase
    it.kept, it.read, it.waiting = 10, 100_000, False
    assert it.check(1.0, 61.0) == []
    it.read += 100_000
    assert it.check(61.0, 121.0) == []
    assert it.check(121.1) == ["unread", "abort"]


def test_client_that_reads_a_byte_now_and_then_is_aborted(it: Connection) -> None:
    it.kept, it.waiting = 10, False
    for now in range(1, 22):
        it.read += 1
        assert it.check(float(now)) == []
    assert it.check(22.0) == ["unread", "abort"]


def test_client_that_reads_all_now_and_then_may_be_as_slow_as_its_member(it: Connection) -> None:
    it.waiting = False
    for now in range(1, 1000):
        it.kept = now % 2
        assert it.check(float(now)) == []


def test_body_is_checked_from_the_check_that_finds_it(it: Connection) -> None:
    it.phase = HEAD
    it.check(5.0)
    it.phase = BODY
    assert it.check(9.0, 29.0) == []
    assert it.check(29.1) == ["the body came with less than 240 bytes/s"]


def test_bytes_from_before_the_first_check_of_a_body_count(it: Connection) -> None:
    it.phase = HEAD
    it.phase = BODY
    it.body.received += 100_000
    assert it.check(9.0, 30.0, 69.0) == []
    assert it.check(69.1) == ["no byte of the body for 60 s"]


def test_body_that_is_not_read_is_not_refused(it: Connection) -> None:
    it.phase = HEAD
    it.phase = BODY
    it.check(9.0, 28.0)
    it.waiting = False
    assert it.check(100.0) == []
    it.waiting = True
    assert it.check(101.0, 121.0) == []
    assert it.check(121.1) == ["the body came with less than 240 bytes/s"]


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize("between", [b"\r\n", b"\r\n" * 5])
@pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])
async def test_empty_lines_between_requests_are_no_request(
    request_bytes: bytes, between: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clients send one behind a body; a 408 to that would look like the answer to the next request."""
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    async with Member(answer_all) as member, balance(member, header_timeout=0.2) as running, running.client() as client:
        for _ in range(2):
            await client.send(request_bytes)
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"
            await client.send(between)
            await asyncio.sleep(0.4)
        await client.send(request_bytes)
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")


async def test_empty_line_while_the_request_before_it_is_answered_is_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_registry, "SWEEP_SECONDS", 0.05)
    goes_on = asyncio.Event()

    async def wait(connection: wire.Connection) -> None:
        while True:
            await connection.head()
            await connection.exactly(2)
            await goes_on.wait()
            await connection.send(OK)

    async with Member(wait) as member, balance(member, header_timeout=0.2) as running, running.client() as client:
        for _ in range(2):
            goes_on.clear()
            await client.send(POST)
            await eventually(lambda: running.balancer.proxy.active == 1)
            await client.send(b"\r\n")
            await asyncio.sleep(0.6)
            goes_on.set()
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            assert await client.exactly(2) == b"ok"


async def test_bare_cr_between_two_requests_is_refused() -> None:
    async with Member(answer_all) as member, balance(member) as running:
        answer = await running.exchange(POST + b"\r" + GET)
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]
        assert not any(b"GET" in it for it in member.received)
