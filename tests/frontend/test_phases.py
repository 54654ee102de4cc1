from __future__ import annotations

from math import inf

import pytest

from balancer.config.settings import Settings
from balancer.frontend.phases import TIMEOUTS, Phase, timeout


def test_every_phase_has_a_time_out_and_all_but_one_end() -> None:
    assert TIMEOUTS.keys() == set(Phase)
    assert [it for it in Phase if timeout(it, Settings()) == inf] == [Phase.ACTIVE]


@pytest.mark.parametrize(
    ("setting", "phases"),
    [
        ("header_timeout", {Phase.HANDSHAKE, Phase.HEAD}),
        ("keepalive_timeout", {Phase.IDLE}),
        ("stream_idle_timeout", {Phase.BODY, Phase.READ}),
    ],
)
def test_a_setting_limits_its_phases(setting: str, phases: set[Phase]) -> None:
    settings = Settings(**{setting: 0.3})  # type: ignore[arg-type]
    assert {it for it in Phase if timeout(it, settings) == 0.3} == phases
