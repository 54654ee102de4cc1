"""What /metrics says, from balancers that were told what happened to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.routing import Route

from balancer.admin.metric_specs import METRICS
from balancer.admin.pool_view import by_name
from balancer.admin.prometheus import PoolCollector, metrics_endpoint
from balancer.config.settings import Settings
from balancer.discovery.snapshot import Answer, Endpoint, Outcome, Snapshot
from balancer.dispatch.context import Attempt, RequestRecord
from balancer.errors import (
    REASONS,
    TOKENS,
    ConnectFailed,
    ConnectionDied,
    ProtocolViolation,
    ResponseTimeout,
    RetriedStatus,
)
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.members.ejection import Ejection, EjectionKind
from balancer.members.health import HealthEvent
from balancer.telemetry.stats import Stats
from balancer.types import Address
from tests.support.metrics import Scrape, known, lint, values
from tests.support.paths import ERRORS

ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pool(LoadBalancer):
    """A balancer that nobody runs: it is told what DNS, probes and requests bring."""

    def __init__(self, alias: str = "apps", **settings: Any) -> None:
        self.time = Clock()
        super().__init__(Settings(alias=alias, **settings), stats=Stats(), clock=self.time)

    def answer(self, *addresses: Address, outcome: Outcome | None = None, **known: Any) -> None:
        outcome = outcome or (Outcome.FOUND if addresses else Outcome.EMPTY)
        self._deliver(Snapshot((Answer("A", outcome, frozenset(map(Endpoint, addresses)), **known),), self.time()))

    def see(self, address: Address, event: HealthEvent) -> None:
        self.membership.observe(self.membership.members[address], event, self.time())

    def serve(self, member: Address | None = ONE, method: str = "GET", status: int = 200, **known: Any) -> None:
        record = RequestRecord(Request(method, b"/", [], "192.0.2.1"), 0.0, b"id")
        record.status, record.member = status, member
        for name, value in {"attempt_duration": known.get("duration", 0.0), **known}.items():
            setattr(record, name, value)
        assert self.stats
        self.stats.done(record)


def busy(alias: str = "apps") -> Pool:
    """A pool to which everything has happened."""
    pool = Pool(alias)
    pool.answer(ONE, TWO, over_tcp=True)
    pool.see(ONE, HealthEvent.PROBE_OK)
    pool.see(TWO, HealthEvent.PROBE_OK)
    pool.serve(ONE, duration=0.004, body_bytes=10)
    pool.serve(ONE, "POST", 201, duration=0.2, received=5)
    pool.serve(
        TWO, status=404, duration=0.001, queued=0.3, retries=1, attempts=[Attempt(ONE, "refused", "connection refused")]
    )
    pool.serve(None, "BREW", 503, duration=10.0, queued=10.0, error="no_member")
    pool.see(TWO, HealthEvent.REFUSED)
    pool.members[ONE].limit = 8.0
    return pool


async def scrape(*pools: LoadBalancer, accept: str = "") -> httpx.Response:
    app = Starlette(routes=[Route("/metrics", metrics_endpoint(lambda: pools))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        response = await client.get("http://admin/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    return response


def read(pools: Sequence[LoadBalancer]) -> Scrape:
    encode, _ = choose_encoder("")
    registry = CollectorRegistry()
    registry.register(PoolCollector(lambda: pools))
    return Scrape(encode(registry).decode())


async def test_requests_are_counted_by_member_method_and_class_of_status() -> None:
    it = Scrape((await scrape(busy())).text)
    one, two = str(ONE), str(TWO)
    assert it.get("balancer_member_requests_total", pool="apps", member=one, method="GET", code="2xx") == 1
    assert it.get("balancer_member_requests_total", pool="apps", member=one, method="POST", code="2xx") == 1
    assert it.get("balancer_member_requests_total", pool="apps", member=two, method="GET", code="4xx") == 1
    assert it.get("balancer_requests_total", pool="apps", method="OTHER", code="5xx") == 1
    assert it.sum("balancer_requests_total", pool="apps") == 4
    assert it.get("balancer_request_duration_seconds_bucket", pool="apps", le="0.005") == 2
    assert it.get("balancer_request_duration_seconds_count", pool="apps") == 4
    assert it.get("balancer_member_request_duration_seconds_sum", pool="apps", member=one) == pytest.approx(0.204)
    assert it.get("balancer_response_body_bytes_total", pool="apps") == 10
    assert it.get("balancer_member_request_body_bytes_total", pool="apps", member=one) == 5


async def test_failures_and_waits_are_counted_with_their_reasons() -> None:
    it = Scrape((await scrape(busy())).text)
    assert it.get("balancer_errors_total", pool="apps", error="no_member") == 1
    assert it.get("balancer_errors_total", pool="apps", error="member_failed") == 0
    assert it.labels("balancer_errors_total", "error") > TOKENS
    assert it.get("balancer_failed_attempts_total", pool="apps", reason="refused") == 1
    assert it.labels("balancer_failed_attempts_total", "reason") == REASONS
    assert it.get("balancer_retries_total", pool="apps") == 1
    assert it.get("balancer_member_failed_attempts_total", pool="apps", member=str(ONE), reason="refused") == 1
    assert it.get("balancer_queue_duration_seconds_count", pool="apps") == 2
    assert it.get("balancer_queue_duration_seconds_bucket", pool="apps", le="0.5") == 1
    assert it.get("balancer_queue_duration_seconds_sum", pool="apps") == pytest.approx(10.3)


async def test_members_have_one_state_each() -> None:
    pool = busy()
    pool.drain(pool.membership.members[ONE])
    it = Scrape((await scrape(pool)).text)
    assert it.get("balancer_member_state", pool="apps", member=str(ONE), state="up") == 1
    assert it.get("balancer_member_state", pool="apps", member=str(TWO), state="down") == 1
    assert [it.sum("balancer_member_state", member=str(member)) for member in (ONE, TWO)] == [1, 1]
    assert it.get("balancer_members", pool="apps", state="up") == 1
    assert it.get("balancer_members", pool="apps", state="joining") == 0
    assert it.get("balancer_members_available", pool="apps") == 0
    assert it.get("balancer_member_drained", pool="apps", member=str(ONE)) == 1
    assert it.get("balancer_state_changes_total", pool="apps", state="down", event="refused") == 1
    assert it.get("balancer_member_state_changes_total", pool="apps", member=str(TWO), state="down") == 1


async def test_ejections_are_counted_by_kind() -> None:
    pool = busy()
    assert (balancer := Scrape((await scrape(pool)).text)).get(
        "balancer_ejections_total", pool="apps", kind="manual"
    ) == 0
    assert balancer.get("balancer_member_ejected", pool="apps", member=str(ONE)) == 0
    member, stats = pool.membership.members[ONE], pool.stats
    assert stats
    member.ejection = Ejection(EjectionKind.FAILURES, "5xx: 9 of 9, others 0 of 20", 0.0, 10.0)
    stats.ejected(member)
    it = Scrape((await scrape(pool)).text)
    assert it.get("balancer_ejections_total", pool="apps", kind="failures") == 1
    assert it.get("balancer_member_ejected", pool="apps", member=str(ONE)) == 1
    assert it.get("balancer_member_on_trial", pool="apps", member=str(ONE)) == 0
    member.ejection.on_trial = True
    stats.ejected(member)
    it = Scrape((await scrape(pool)).text)
    assert it.get("balancer_ejections_total", pool="apps", kind="failures") == 1
    assert it.get("balancer_member_ejected", pool="apps", member=str(ONE)) == 0
    assert it.get("balancer_member_on_trial", pool="apps", member=str(ONE)) == 1


async def test_dns_answers_are_counted_and_silence_makes_the_last_one_old() -> None:
    pool = Pool()
    assert Scrape((await scrape(pool)).text).get("balancer_dns_answer_age_seconds", pool="apps", record="A") == float(
        "inf"
    )
    pool.answer(ONE, over_tcp=True)
    for rcode in ("SERVFAIL", "timeout", "[Errno 111] Connection refused"):
        pool.time.now += 10
        pool.answer(outcome=Outcome.UNKNOWN, rcode=rcode)
    it = Scrape((await scrape(pool)).text)
    assert it.get("balancer_dns_answer_age_seconds", pool="apps", record="A") == 30
    assert it.labels("balancer_dns_answers_total", "outcome") == {"NOERROR", "SERVFAIL", "timeout", "error"}
    assert it.get("balancer_dns_truncated_answers_total", pool="apps", record="A") == 1
    assert it.get("balancer_dns_changes_total", pool="apps") == 1
    pool.answer(rcode="NXDOMAIN")
    pool.answer()
    it = Scrape((await scrape(pool)).text)
    assert it.get("balancer_dns_answer_age_seconds", pool="apps", record="A") == 0
    assert it.labels("balancer_dns_answers_total", "outcome") >= {"NXDOMAIN", "empty"}


async def test_series_after_1000_members_are_those_of_the_living() -> None:
    pool = busy()
    before = read([pool])
    for number in range(1000):
        address = Address(f"10.1.{number // 250}.{number % 250}", 80)
        pool.answer(ONE, TWO, address)
        pool.see(address, HealthEvent.PROBE_OK)
        pool.serve(address, attempts=[Attempt(address, "refused", "connection refused")])
        assert len(read([pool])) > len(before) if number % 100 == 0 else True
        pool.answer(ONE, TWO)
        pool.serve(address)  # It was in flight when its member left.
    after = read([pool])
    left_dns = {("state", "leaving"), ("event", "left_dns")}
    # That members leave, without TCP for the answer, had not happened before.
    assert {key for key in after.values if key not in before.values} == {
        ("balancer_state_changes_total", frozenset({("pool", "apps"), *left_dns})),
    }
    assert after.sum("balancer_requests_total") == before.sum("balancer_requests_total") + 2000
    assert after.sum("balancer_failed_attempts_total") == before.sum("balancer_failed_attempts_total") + 1000
    fallen = [key for key, value in before.values.items() if key[0].endswith("_total") and after.values[key] < value]
    assert fallen == []


async def test_series_are_not_made_of_what_others_make_up() -> None:
    pool = busy()
    before = len(read([pool]))
    for number in range(1000):
        pool.serve(ONE, f"X{number}")
        pool.serve(ONE, error=f"Cancelled by cancel scope {number:x}")
        pool.serve(ONE, error=f"e{number}")
        pool.answer(outcome=Outcome.UNKNOWN, rcode=f"The DNS operation timed out after {number} s")
    # One method, one outcome, "other", and what room there is for tokens.
    assert len(read([pool])) <= before + 2 + 1 + 1 + 100


# What another scrape, a moment later, may say otherwise.
CHANGING = ("process_", "balancer_process_")


async def test_both_formats_say_the_same_and_both_parse() -> None:
    pools = busy(), busy("two")
    plain = await scrape(*pools)
    openmetrics = await scrape(*pools, accept=OPENMETRICS)
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    one, two = Scrape(plain.text).values, Scrape(openmetrics.text).values
    assert one.keys() == two.keys()
    assert {key for key in one if one[key] != two[key] and not key[0].startswith(CHANGING)} == set()


@pytest.mark.parametrize("accept", ["text/plain;version=abc", "application/openmetrics-text;version=x.y", "*/*", ",;="])
async def test_metrics_in_an_unknown_format_are_sent_in_the_default_one(accept: str) -> None:
    response = await scrape(busy(), accept=accept)
    assert Scrape(response.text).sum("balancer_requests_total") == 4


async def test_scrape_in_pieces_is_the_same_as_in_one() -> None:
    pool = Pool()
    addresses = [Address(f"10.0.0.{number}", 80) for number in range(1, 131)]
    pool.answer(*addresses)
    registry = CollectorRegistry()
    registry.register(PoolCollector(lambda: [pool], processes=list))
    for accept in ("", OPENMETRICS):
        whole = choose_encoder(accept)[0](registry).decode()
        text = (await scrape(pool, accept=accept)).text
        ours = "".join(
            line for line in text.splitlines(keepends=True) if not line.removeprefix("# HELP ").startswith("process_")
        )
        ours = re.sub(r"^balancer_(process|log_lines|client_limits)_.*\n", "", ours, flags=re.MULTILINE)
        body, end = whole.removesuffix("# EOF\n"), whole.endswith("# EOF\n")
        assert ours.startswith(body)
        assert ours.endswith("# EOF\n") == end
        assert text.count("# HELP balancer_member_state ") == 1
        assert len([it for it in text.splitlines() if it.startswith("balancer_member_state{")]) == 5 * 130


async def test_promtool_would_have_nothing_to_say() -> None:
    assert lint((await scrape(busy(), busy("two"))).text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# TYPE a gauge\na 1\n", "HELP or TYPE"),
        ("# HELP a b\n# TYPE a counter\na 1\n", "_total"),
        ("# HELP a_total b\n# TYPE a_total gauge\na_total 1\n", "_total"),
        ("# HELP a_ms b\n# TYPE a_ms gauge\na_ms 1\n", "base unit"),
        ("# HELP a:b c\n# TYPE a:b gauge\na:b 1\n", "only lower case"),
        ('# HELP a b\n# TYPE a gauge\na{Pool="x"} 1\n', "label Pool"),
        ('# HELP a b\n# TYPE a gauge\na{le="1"} 1\n', "label le"),
        ("b 1\n", "without TYPE"),
    ],
)
def test_lint_finds(text: str, problem: str) -> None:
    assert problem in "; ".join(lint(text))


def test_series_that_comes_twice_is_found() -> None:
    family = Metric("a", "b", "gauge")
    family.add_sample("a", {"c": "d"}, 1)
    family.add_sample("a", {"c": "d"}, 2)
    with pytest.raises(AssertionError, match="twice"):
        values([family])


def test_every_metric_has_the_name_the_type_and_the_labels_that_it_is_said_to_have() -> None:
    found = list(PoolCollector(lambda: [busy()]).collect())
    promised = known()
    labels = {sample.name: frozenset(sample.labels) for family in found for sample in family.samples}
    # Whose connections are counted, and whom no route leads anywhere, is the front end's business; see the wire tests.
    elsewhere = {"balancer_client_connections", "balancer_unrouted_requests_total"}
    assert labels == {name: has for name, has in promised.items() if name not in elsewhere}
    assert [family.type for family in found] == [it.kind for it in METRICS]
    assert all(family.documentation for family in found)


def test_pools_are_told_apart_even_if_they_have_one_alias() -> None:
    one, two, three = Pool(), Pool(upstream_port=8000), Pool(upstream_port=8000)
    assert by_name([one, two, three, one]) == {"apps": one, "apps:8000": two, "apps:8000/2": three}
    assert read([one, two, three, one]).labels("balancer_members", "pool") == {"apps", "apps:8000", "apps:8000/2"}


def test_pool_without_stats_still_says_how_it_is() -> None:
    it = read([LoadBalancer(Settings())])
    assert it.get("balancer_members_available", pool="apps") == 0
    assert ("balancer_queued_requests", frozenset({("pool", "apps")})) in it.values
    assert it.labels("balancer_errors_total", "error") == set()


def test_every_token_and_reason_that_there_is_has_a_series_from_the_start() -> None:
    explained = {line.split("`")[1] for line in ERRORS.splitlines() if line.startswith(("| 4", "| 5")) and "`" in line}
    assert explained == TOKENS
    faults = ConnectionDied, ResponseTimeout, ProtocolViolation, RetriedStatus
    assert {it.reason for it in faults} | {
        ConnectFailed("", refused=refused).reason for refused in (True, False)
    } == REASONS - {"truncated", "silent"}
