"""Containers of Compose and Swarm have a first process that passes signals on."""

from __future__ import annotations

import pytest
import yaml

from tests.support.paths import ROOT


@pytest.mark.parametrize("file", ["compose.yaml", "deploy/swarm/stack.yaml"])
def test_every_service_has_an_init(file: str) -> None:
    services = yaml.safe_load((ROOT / file).read_text())["services"]
    assert len(services) == 3
    assert all(service.get("init") is True for service in services.values())
