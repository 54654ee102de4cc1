"""What docs/ says of the metrics is so: the table, the dashboard for Grafana, the alert rules for Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from promql_parser import parse_duration

from balancer.admin.metric_specs import METRICS
from balancer.admin.prometheus import STATES
from balancer.errors import LOG_ONLY, REASONS, TOKENS
from balancer.members.health import TRANSITIONS, HealthEvent, State
from balancer.telemetry.client_limits import LIMITS
from tests.support.explained import CASES
from tests.support.metrics import known
from tests.support.paths import ROOT
from tests.support.promql import TARGET, Query, Wrong

DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "docs" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
TABLE = (ROOT / "docs" / "reference" / "metrics.md").read_text()

# Those of prometheus_client's ProcessCollector.
PROCESS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
KNOWN = known() | {name: frozenset[str]() for name in PROCESS}

MEMBER_STATES = frozenset(map(str, STATES))
CODES = frozenset(f"{number}xx" for number in range(1, 6))
VALUES = {
    ("balancer_errors_total", "error"): TOKENS | LOG_ONLY,
    ("balancer_failed_attempts_total", "reason"): REASONS,
    ("balancer_member_failed_attempts_total", "reason"): REASONS,
    ("balancer_requests_total", "code"): CODES,
    ("balancer_member_requests_total", "code"): CODES,
    ("balancer_members", "state"): MEMBER_STATES,
    ("balancer_member_state", "state"): MEMBER_STATES,
    ("balancer_member_state_changes_total", "state"): frozenset(map(str, State)),
    ("balancer_state_changes_total", "state"): frozenset(map(str, State)),
    ("balancer_state_changes_total", "event"): frozenset(it.name.lower() for it in HealthEvent),
    ("balancer_upstream_connections", "state"): frozenset({"active", "idle"}),
    ("balancer_client_limits_total", "limit"): LIMITS,
}


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def query(text: str) -> Query:
    """Grafana's variables for lengths of time are durations to Prometheus."""
    return Query(text.replace("$__rate_interval", "1m").replace("$__interval", "15s"), KNOWN, VALUES)


# The table.


def test_table_has_every_metric_with_its_type_and_its_labels() -> None:
    rows = re.findall(r"^\| `(balancer_\w+)` \| (\w+) \| (.*?) \| ", TABLE, re.MULTILINE)
    said = [(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]
    assert said == [(it.name, it.kind, it.labels) for it in METRICS]


def test_documents_name_only_metrics_that_exist() -> None:
    for name in ("reference/metrics.md", "reference/errors.md"):
        named = re.findall(r"\b(?:balancer|process)_[a-z_]+[a-z]\b(?!/|\.)", (ROOT / "docs" / name).read_text())
        assert named
        assert set(named) <= KNOWN.keys() | {it.name for it in METRICS}


def test_every_value_that_the_docs_give_a_label_is_one_that_it_can_have() -> None:
    for name in ("reference/metrics.md", "reference/errors.md"):
        for expression in re.findall(r"`(\w+\{[^`]+\})`", (ROOT / "docs" / name).read_text()):
            query(expression)


# The dashboard.


def test_dashboard_is_a_model_that_grafana_10_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 38
    assert DASHBOARD["title"] and DASHBOARD["uid"]
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    identifiers = [panel["id"] for panel in panels()]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels():
        assert panel["type"] in ("row", "stat", "timeseries", "state-timeline")
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
            references = [it["refId"] for it in panel["targets"]]
            assert len(set(references)) == len(references)


def test_panels_neither_overlap_nor_stick_out() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    # Nothing leaves a gap that is as wide as the page.
    assert {y for _, y in taken} == set(range(max(y for _, y in taken) + 1))


def test_dashboard_asks_for_its_data_source_and_its_pools() -> None:
    variables = {it["name"]: it for it in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["pool"]["query"]["query"])
    assert asked and asked[2] in KNOWN[asked[1]]
    sources = [it["datasource"] for panel in panels() if panel["type"] != "row" for it in (panel, *panel["targets"])]
    assert all(it == {"type": "prometheus", "uid": "${datasource}"} for it in sources)


TARGETS = [
    pytest.param(target, id=f"{panel['title']}-{target['refId']}")
    for panel in panels()
    for target in panel.get("targets", [])
]


@pytest.mark.parametrize("target", TARGETS)
def test_every_query_of_the_dashboard_finds_what_it_asks_for(target: dict[str, Any]) -> None:
    asked = query(target["expr"])
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert shown <= (asked.labels or set())
    # Otherwise two lines would have one name.
    assert (asked.labels or set()) - TARGET - {"state"} <= shown
    assert target["expr"].count("$pool") == sum(
        target["expr"].count(f"{name}{{") for name in asked.names if "pool" in KNOWN[name]
    )


def test_queries_of_the_annotations_find_what_they_ask_for() -> None:
    asked = [it for it in DASHBOARD["annotations"]["list"] if "expr" in it]
    assert [query(it["expr"]).labels for it in asked] == [frozenset({"pool"})]


@pytest.mark.parametrize(
    "topic",
    [
        "balancer_member_requests_total",
        "balancer_request_duration_seconds_bucket",
        "balancer_queued_requests",
        "balancer_retries_total",
        "balancer_member_state",
        "balancer_dns_answer_age_seconds",
        "balancer_dns_answers_total",
        "balancer_upstream_connections_opened_total",
        "balancer_response_body_bytes_total",
    ],
)
def test_dashboard_shows(topic: str) -> None:
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    assert any(topic in query(it).names for it in asked)


# The alerts.


@pytest.mark.parametrize("rule", [pytest.param(it, id=it["alert"]) for it in RULES])
def test_every_alert_can_fire_and_says_what_it_is_about(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    asked = query(rule["expr"])
    assert asked.names
    assert parse_duration(rule.get("for", "1m")).total_seconds() > 0
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    words = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", words)) <= (asked.labels or set())
    assert (
        words.count("{{")
        == words.count("}}")
        == len(re.findall(r"\{\{ \$(?:value|labels\.\w+)(?: \| \w+)? \}\}", words))
    )
    assert set(re.findall(r"\bbalancer_[a-z_]+\b", words)) <= KNOWN.keys()
    assert set(re.findall(r"\b(?:50[234]) (\w+)", words)) <= TOKENS


def test_alerts_have_names_of_their_own() -> None:
    names = [it["alert"] for it in RULES]
    assert len(set(names)) == len(names)


# What checks all this.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("balancer_request_total", "there is no"),
        ('balancer_requests_total{status="5xx"}', "no label"),
        ('balancer_requests_total{code="500"}', "never '500'"),
        ('balancer_errors_total{error=~"nobody|none"}', "never"),
        ("sum by (member) (balancer_requests_total)", "no label"),
        ("rate(balancer_queued_requests[1m])", "no counter"),
        ("histogram_quantile(0.9, sum by (pool) (rate(balancer_request_duration_seconds_bucket[1m])))", "no label"),
        ("balancer_members_available / balancer_requests_total", "never match"),
        ("balancer_members_available * on (member) balancer_members_available", "no label"),
        ("balancer_members * on (pool) balancer_member_state", "many to one"),
    ],
)
def test_query_that_can_find_nothing_is_found_out(text: str, problem: str) -> None:
    with pytest.raises(Wrong, match=problem):
        query(text)


def test_expression_that_is_no_promql_is_found_out() -> None:
    with pytest.raises(ValueError, match="invalid promql"):
        query("sum by (pool (x))")


# The failures.

FAILURES = (ROOT / "docs" / "reference" / "errors.md").read_text()


def test_every_failure_is_explained_as_it_happens() -> None:
    row = re.compile(r"^\| `(\w+)` \| (\d{3}) \| (yes|no) \| (.+?) \| (yes|no) \| ", re.MULTILINE)
    said = {
        token: (int(status), member == "yes", tuple(re.findall(r"\w+", attempts)), held == "yes")
        for token, status, member, attempts, held in row.findall(FAILURES)
    }
    assert said == {token: (it.status, it.member, it.attempts, it.queued) for token, it in CASES.items()}


def test_every_reason_is_explained() -> None:
    table = FAILURES.partition("## Why a try failed")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == REASONS


def test_every_state_is_explained_with_the_events_that_lead_there() -> None:
    table = FAILURES.partition("## Members: states and reasons")[2].partition("\n## ")[0]
    said = set(re.findall(r"^\| `(\w+)` \| (?:`(\w+)`|.) \|", table, re.MULTILINE))
    possible = {
        (after.value, event.name.lower()) for changes in TRANSITIONS.values() for event, after in changes.items()
    }
    assert said == possible | {("joining", "")}
