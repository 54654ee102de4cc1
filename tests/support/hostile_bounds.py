"""Limits that take time, many clients or several doors to show, each with the test that keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A limit that takes time, many clients or several doors to show. ``test``: the wire test that keeps it."""

    name: str
    promise: str
    test: str


BOUNDS = (
    Bound("a connection without a byte", "closed after 10 s",
          "tests/frontend/test_connection.py::test_idle_connection_is_closed_without_a_word"),
    Bound("a head that stops", "408, 10 s after its first byte",
          "tests/frontend/test_connection.py::test_head_has_to_come_in_time"),
    Bound("a head that trickles in", "408, 10 s after its first byte",
          "tests/frontend/test_connection.py::test_head_that_trickles_in_has_no_more_time"),
    Bound("an idle connection", "closed 75 s after the last response",
          "tests/frontend/test_connection.py::test_idle_connection_is_closed_without_a_word"),
    Bound("a body that stops", "408 after 20 s, or after 60 s if it was fast before",
          "tests/frontend/test_connection.py::test_body_has_to_go_on"),
    Bound("a client that does not read", "closed after 60 s, or sooner if it has taken less than 240 bytes/s",
          "tests/frontend/test_connection.py::test_client_that_does_not_read_is_cut_off"),
    Bound("a body that trickles in", "408 below 240 bytes/s, after 20 s, or after 60 s if it was fast before",
          "tests/frontend/test_limits.py::test_body_that_trickles_in_is_cut_off"),
    Bound("a client that reads a little now and then",
          "closed below 240 bytes/s, after 20 s, or after 60 s if it was fast before",
          "tests/frontend/test_rates.py::test_client_that_reads_a_little_now_and_then_is_cut_off"),
    Bound("a body that waits for 100 (Continue)", "100 after 1 s, where the member says nothing",
          "tests/wire/test_interim.py::"
          "test_client_that_waits_for_a_member_that_never_says_go_on_hears_it_from_the_balancer"),
    Bound("an upload that goes on behind its answer", "read for 30 s more, and for 256 MiB",
          "tests/frontend/test_answer_in_mid_body.py::test_body_is_read_on_within_bounds_of_time_and_bytes"),
    Bound("bytes behind the last answer", "cut off a second after the answer was taken; 64 KiB are read",
          "tests/frontend/test_lingering.py::test_client_with_its_last_answer_is_cut_off"),
    Bound("300 requests ahead of their answers", "101 answered, then closed",
          "tests/frontend/test_limits.py::test_requests_ahead_of_their_answers_are_bounded"),
    Bound("HEAD without a host", "400 without a body",
          "tests/frontend/test_limits.py::test_refusal_of_head_has_no_body"),
    Bound("a body that is announced too large", "413 beyond `MAX_BODY_BYTES`, which is unlimited by default",
          "tests/frontend/test_limits.py::test_body_that_is_announced_too_large_is_refused_before_it_comes"),
    Bound("a body that grows too large", "413 beyond `MAX_BODY_BYTES`; the member does not get its end",
          "tests/frontend/test_limits.py::test_body_that_grows_too_large_is_cut_off"),
    Bound("too many connections", "503 beyond `MAX_CONNECTIONS`, which is unlimited by default",
          "tests/frontend/test_limits.py::test_connections_beyond_the_limit_are_refused_until_one_leaves"),
    Bound("handshakes that stall", "closed after 10 s, PROXY header and first head included",
          "tests/frontend/test_places.py::test_all_that_comes_before_a_request_shares_one_time"),
    Bound("too many handshakes", "closed beyond `MAX_HANDSHAKES` (1024), and beyond a 16th of them for one client",
          "tests/frontend/test_places.py::test_connections_before_http_are_bounded"),
    Bound("too many connections of one client",
          "503 beyond `MAX_CONNECTIONS_PER_CLIENT`, which is unlimited by default",
          "tests/frontend/test_limits.py::test_connections_of_one_client_beyond_its_limit_are_refused_until_one_leaves"),
    Bound("more than 32 options in `Connection`", "400, at every door",
          "tests/wire/test_remembered.py::test_options_of_connection_beyond_the_bound_are_refused_at_every_door"),
)  # fmt: skip
