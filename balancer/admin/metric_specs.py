"""The metrics: names, types, labels and what each is."""

from __future__ import annotations

from typing import NamedTuple


class Spec(NamedTuple):
    """A metric. ``kind``: Prometheus' word for its type; ``labels``: names that distinguish its series."""

    name: str
    kind: str
    labels: tuple[str, ...]
    words: str


POOL = ("pool",)
MEMBER = ("pool", "member")
METRICS = (
    Spec("balancer_build_info", "info", ("version", "python_version", "build"), "What is running; always 1."),
    Spec("balancer_process_cpu_seconds_total", "counter", ("process",), "CPU time of a process that serves."),
    Spec("balancer_process_resident_memory_bytes", "gauge", ("process",), "Memory of a process that serves."),
    Spec(
        "balancer_log_lines_dropped_total",
        "counter",
        ("process", "stream"),
        "Log lines that a process dropped, because the stream was not read or could not be written.",
    ),
    Spec("balancer_client_limits_total", "counter", ("process", "limit"), "Bounds that clients have reached."),
    Spec("balancer_client_connections", "gauge", (), "Connections of clients that are open."),
    Spec("balancer_unrouted_requests_total", "counter", ("method", "code"), "Requests that no route led to a pool."),
    Spec(
        "balancer_requests_total", "counter", (*POOL, "method", "code"), "Requests that are over, by class of status."
    ),
    Spec("balancer_request_duration_seconds", "histogram", POOL, "Time from a request's head to its last byte."),
    Spec("balancer_requests_in_flight", "gauge", POOL, "Requests in progress, with those that wait for a member."),
    Spec("balancer_request_body_bytes_total", "counter", POOL, "Bytes of bodies that came from clients."),
    Spec("balancer_response_body_bytes_total", "counter", POOL, "Bytes of bodies that went to clients."),
    Spec("balancer_errors_total", "counter", (*POOL, "error"), "Requests that ended so: X-Balancer-Error's token."),
    Spec("balancer_retries_total", "counter", POOL, "Attempts after the first, of all requests."),
    Spec("balancer_failed_attempts_total", "counter", (*POOL, "reason"), "Attempts at a member that failed."),
    Spec("balancer_queued_requests", "gauge", POOL, "Requests that wait for a member."),
    Spec("balancer_queued_requests_limit", "gauge", POOL, "How many requests may wait for a member."),
    Spec("balancer_queue_duration_seconds", "histogram", POOL, "How long requests waited that had to."),
    Spec("balancer_members", "gauge", (*POOL, "state"), "Members in this state."),
    Spec("balancer_members_available", "gauge", POOL, "Members that may be given requests."),
    Spec("balancer_state_changes_total", "counter", (*POOL, "state", "event"), "Times members came into this state."),
    Spec("balancer_ejections_total", "counter", (*POOL, "kind"), "Times members were ejected, by what for."),
    Spec("balancer_dns_answers_total", "counter", (*POOL, "record", "outcome"), "Answers to queries for the alias."),
    Spec(
        "balancer_dns_answer_age_seconds",
        "gauge",
        (*POOL, "record"),
        "Seconds since the last conclusive DNS answer; +Inf before it.",
    ),
    Spec("balancer_dns_addresses", "gauge", (*POOL, "record"), "Addresses in the last answer, whatever its outcome."),
    Spec(
        "balancer_dns_truncated_answers_total",
        "counter",
        (*POOL, "record"),
        "Answers that came over TCP, because they did not fit into UDP.",
    ),
    Spec("balancer_dns_changes_total", "counter", POOL, "Answers by which members came or went."),
    Spec("balancer_upstream_connections", "gauge", (*POOL, "state"), "Connections to members that are open."),
    Spec("balancer_upstream_connections_opened_total", "counter", POOL, "Connections to members that there have been."),
    Spec("balancer_upstream_requests_total", "counter", POOL, "Requests sent on connections to members."),
    Spec("balancer_member_state", "gauge", (*MEMBER, "state"), "1 for the state that the member is in, else 0."),
    Spec("balancer_member_drained", "gauge", MEMBER, "1 for a member that is drained by hand, else 0."),
    Spec("balancer_member_ejected", "gauge", MEMBER, "1 for a member that is ejected, else 0."),
    Spec("balancer_member_on_trial", "gauge", MEMBER, "1 for a member on trial after an ejection, else 0."),
    Spec("balancer_member_state_changes_total", "counter", (*MEMBER, "state"), "Times it came into this state."),
    Spec("balancer_member_requests_in_flight", "gauge", MEMBER, "Requests that the member has."),
    Spec(
        "balancer_member_request_limit", "gauge", MEMBER, "Requests that it is given at a time, where there is a limit."
    ),
    Spec(
        "balancer_member_requests_total",
        "counter",
        (*MEMBER, "method", "code"),
        "Requests that it was the last to get.",
    ),
    Spec("balancer_member_request_duration_seconds", "summary", MEMBER, "Durations of the attempts at it."),
    Spec("balancer_member_request_body_bytes_total", "counter", MEMBER, "Bytes of bodies that came from clients."),
    Spec("balancer_member_response_body_bytes_total", "counter", MEMBER, "Bytes of bodies that went to clients."),
    Spec(
        "balancer_member_failed_attempts_total", "counter", (*MEMBER, "reason"), "Attempts at the member that failed."
    ),
)
