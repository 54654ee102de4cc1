"""``compose.yaml`` and the stack of ``deploy/swarm``: who shares a network, and what a container may take."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from balancer.config.settings import Settings
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SWARM = {
    name: yaml.safe_load((ROOT / f"deploy/swarm/{name}.yaml").read_text()) for name in ("stack", "env", "host", "admin")
}
SERVICES = ["balancer", "worker", "redis"]
MIB = 1 << 20


def networks(service: dict[str, Any]) -> set[str]:
    return set(service["networks"])


@pytest.mark.parametrize("file", [COMPOSE, SWARM["stack"]], ids=["compose", "stack"])
def test_balancer_and_workers_share_a_network_without_redis(file: dict[str, Any]) -> None:
    balancer, worker, redis = (networks(file["services"][name]) for name in SERVICES)
    assert balancer & worker == {"backend"}
    assert worker & redis == redis == {"redis"}
    assert balancer & redis == set()
    assert file["networks"]["redis"]["internal"] is True
    assert file["services"]["worker"]["networks"]["backend"]["aliases"] == ["apps"]


def test_admin_port_of_compose_is_on_the_network_of_the_balancer_alone() -> None:
    balancer = COMPOSE["services"]["balancer"]
    admin = Settings.load({"BALANCER_ADMIN_BIND": balancer["environment"]["BALANCER_ADMIN_BIND"]}).admin_bind
    assert admin
    assert balancer["networks"]["admin"]["aliases"] == [admin.host]
    assert [name for name in SERVICES if "admin" in networks(COMPOSE["services"][name])] == ["balancer"]
    assert balancer["ports"] == ["${HTTP_PORT:-80}:80", f"127.0.0.1:${{ADMIN_PORT:-9000}}:{admin.port}"]
    # The engine leads published ports to the first network by name that is not internal.
    assert min(networks(balancer)) == "admin"
    assert not COMPOSE["networks"]["admin"].get("internal")


def test_admin_port_of_the_stack_is_the_task_s_own_or_on_a_network_of_its_own() -> None:
    for name in ("stack", "env"):
        given = SWARM[name]["services"]["balancer"]["environment"]["BALANCER_ADMIN_BIND"]
        assert given == str(Settings().admin_bind) == "127.0.0.1:9000"
    subnet = SWARM["admin"]["networks"]["admin"]["ipam"]["config"][0]["subnet"]
    balancer = SWARM["admin"]["services"]["balancer"]
    assert balancer["environment"] == {"BALANCER_ADMIN_BIND": f"{subnet}:9000"}
    assert balancer["networks"] == ["admin"]
    assert SWARM["admin"]["services"].keys() == {"balancer"}
    # The engine merges files of one version only.
    assert {file["version"] for file in SWARM.values()} == {"3.9"}


def test_image_listens_for_administrators_on_loopback() -> None:
    assert "BALANCER_ADMIN_BIND" not in (ROOT / "balancer" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_container_is_read_only_without_capabilities_and_bounded(name: str) -> None:
    compose, stack = COMPOSE["services"][name], SWARM["stack"]["services"][name]
    assert compose["security_opt"] == ["no-new-privileges:true"]
    for service in (compose, stack):
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    limits = stack["deploy"]["resources"]["limits"]
    assert (compose["mem_limit"].upper(), compose["pids_limit"]) == (limits["memory"], limits["pids"])


def test_redis_is_the_same_everywhere() -> None:
    compose, stack = COMPOSE["services"]["redis"], SWARM["stack"]["services"]["redis"]
    for key in ("image", "user", "command", "volumes"):
        assert compose[key] == stack[key], key
    assert compose["user"] == "redis"


def test_balancer_has_room_for_what_its_settings_let_it_hold() -> None:
    """45 MiB at rest, measured; the bodies of the queue; 10,000 idle clients (bench/RESULTS.md); and as much again."""
    limit = int(COMPOSE["services"]["balancer"]["mem_limit"].removesuffix("m")) * MIB
    assert 2 * (45 * MIB + Settings().queue_max_bytes + 10_000 * 4300) < limit


@pytest.mark.parametrize("name", ["balancer", "worker"])
def test_base_image_is_a_build_argument(name: str) -> None:
    assert COMPOSE["services"][name]["build"]["args"] == {"PYTHON_IMAGE": "${PYTHON_IMAGE:-python:3.13-slim}"}
