"""Bounds that clients reach: counted by kind, and logged now and then."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from balancer.telemetry.client_limits import LIMITS, ClientLimits

ERRORS = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"


def test_each_kind_is_counted_from_zero_and_has_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    limits = ClientLimits(lambda: now)
    assert limits.counts == dict.fromkeys(LIMITS, 0)
    for _ in range(3):
        limits.reached("unread", "192.0.2.7", "has read nothing; it is cut off")
    limits.reached("connections", "", "is refused a connection")
    now = 61.0
    limits.reached("unread", "192.0.2.8", "has read nothing; it is cut off")
    assert {name: count for name, count in limits.counts.items() if count} == {"unread": 4, "connections": 1}
    assert caplog.messages == [
        "a client at 192.0.2.7 has read nothing; it is cut off",
        "a client at a Unix socket is refused a connection",
        "a client at 192.0.2.8 has read nothing; it is cut off (and 2 times since the last line)",
    ]


def test_unknown_kind_is_an_error_of_the_program() -> None:
    with pytest.raises(KeyError):
        ClientLimits().reached("patience", "", "has none")


def test_page_of_errors_explains_every_kind_and_no_other() -> None:
    section = ERRORS.read_text().partition("## Bounds that clients reach\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == LIMITS
