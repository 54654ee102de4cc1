"""How long a client may keep a connection in each phase."""

from __future__ import annotations

import asyncio
from math import inf

import pytest

from balancer.config.settings import Settings
from balancer.frontend import client_registry
from balancer.frontend.client_connection import (
    ACTIVE,
    DISCARD_BYTES,
    DISCARDING,
    HEAD,
    IDLE,
    LINGERING,
    NEW,
    TIMEOUTS,
    BodyRate,
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
        self.kept = 0

    @property
    def unread(self) -> int:
        return self.kept

    @property
    def is_waiting(self) -> bool:
        return self.waiting

    def limit_reached(self, limit: str, words: str) -> None:
        self.ends.append(limit)

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
    assert endless == {"AWAIT_CONTINUE", "ACTIVE", "SWITCHING", "DONE", "REJECTED", "CLOSED"}


@pytest.mark.parametrize(
    ("setting", "phases"),
    [
        ("header_timeout", {Phase.HANDSHAKE, Phase.NEW, Phase.HEAD}),
        ("keepalive_timeout", {Phase.IDLE}),
        ("stream_idle_timeout", {Phase.BODY, Phase.TUNNEL}),
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


@pytest.mark.parametrize(("phase", "silence"), [(LINGERING, 1.0), (DISCARDING, 5.0)])
def test_client_that_goes_on_sending_behind_its_answer_lingers_for_half_a_minute(
    it: Connection, phase: Phase, silence: float
) -> None:
    it.phase = IDLE
    it.phase = phase
    it.check(100.0)
    for now in range(101, 131):
        it.body.received += 1
        assert it.check(float(now)) == []
    it.body.received += 1
    assert it.check(130.1) == [f"{phase.value} {silence:g}"]


@pytest.mark.parametrize(("phase", "silence"), [(LINGERING, 1.0), (DISCARDING, 5.0)])
def test_client_that_stops_behind_its_answer_is_closed(it: Connection, phase: Phase, silence: float) -> None:
    it.phase = phase
    it.check(100.0)
    it.body.received += 1
    assert it.check(101.0, 101.0 + silence) == []
    assert it.check(101.1 + silence) == [f"{phase.value} {silence:g}"]


def test_client_that_sends_too_much_behind_its_answer_is_closed(it: Connection) -> None:
    it.phase = DISCARDING
    it.check(100.0)
    it.body.received += DISCARD_BYTES
    assert it.check(101.0) == []
    it.body.received += 1
    assert it.check(101.1) == ["discarding 5"]


@pytest.mark.parametrize("phase", [NEW, IDLE, ACTIVE])
def test_client_that_reads_nothing_is_aborted_in_any_phase(it: Connection, phase: Phase) -> None:
    if phase is not NEW:
        it.phase = phase
    it.kept, it.waiting = 10, False
    assert it.check(1.0, 61.0) == []
    it.kept = 9
    assert it.check(62.0, 122.0) == []
    assert it.check(122.1) == ["unread", "abort"]


def test_body_of_which_no_byte_comes_is_refused() -> None:
    rate = BodyRate()
    limits = Settings(stream_idle_timeout=60, min_body_rate=0)
    assert rate.check(0.0, 100.0, limits) is None
    rate.received = 1
    assert rate.check(50.0, 150.0, limits) is None
    refusal = rate.check(110.1, 210.1, limits)
    assert refusal
    assert (refusal.status, refusal.reason) == (408, "no byte of the body for 60 s")


def test_body_that_is_slower_than_the_least_rate_is_refused() -> None:
    rate, limits = BodyRate(), Settings(min_body_rate=100)
    rate.received = 1000
    assert rate.check(29.9, 129.9, limits) is None
    refusal = rate.check(30.1, 130.1, limits)
    assert refusal
    assert (refusal.status, refusal.reason) == (408, "the body came with less than 100 bytes/s")


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
            await asyncio.sleep(0.6)
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
