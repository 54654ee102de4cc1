"""Which variables reach the balancer's container, as Compose and the engine's stacks read the files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from balancer.config.misspelt import misspelt
from tests.support.paths import ROOT

pytestmark = pytest.mark.engine

LISTENERS = {"BALANCER_BIND": "0.0.0.0:80", "BALANCER_ADMIN_BIND": "balancer-admin:9000"}
WORDS = "BALANCER_POLICI is not a setting and is ignored; did you mean BALANCER_POLICY?"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that Compose and a stack read."""
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    shutil.copytree(ROOT / "deploy" / "swarm", tmp_path / "deploy" / "swarm")
    return tmp_path


def environment(project: Path, *command: str, **shell: str) -> dict[str, str]:
    """The variables of the balancer's container that have values. The system's are given as ``shell``."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BALANCER_", "COMPOSE_"))}
    done = subprocess.run(["docker", *command], cwd=project, env=environ | shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]["balancer"]["environment"]
    return {name: value for name, value in found.items() if value is not None}


def test_compose_passes_a_misspelt_name_of_the_env_file_and_not_its_listeners(project: Path) -> None:
    lines = ["BALANCER_POLICI=hash", "BALANCER_QUEUE_MAX=5", "BALANCER_ALIAS=web", "BALANCER_BIND=127.0.0.1:81"]
    (project / ".env").write_text("\n".join(lines))
    found = environment(project, "compose", "config", BALANCER_ALIAS="shop")
    assert found == LISTENERS | {
        "BALANCER_POLICI": "hash",
        "BALANCER_QUEUE_MAX": "5",
        "BALANCER_ALIAS": "shop",
    }
    assert misspelt(found) == [WORDS]


def test_compose_without_an_env_file_passes_the_settings_of_the_shell(project: Path) -> None:
    assert environment(project, "compose", "config", BALANCER_ALIAS="shop") == LISTENERS | {"BALANCER_ALIAS": "shop"}


def test_stack_passes_a_misspelt_name_of_the_env_file(project: Path) -> None:
    (project / ".env").write_text("BALANCER_POLICI=hash\nBALANCER_BIND=127.0.0.1:81\n")
    files = [f"--compose-file=deploy/swarm/{name}.yaml" for name in ("stack", "env")]
    found = environment(project, "stack", "config", *files)
    assert (found["BALANCER_BIND"], found["BALANCER_ADMIN_BIND"]) == ("0.0.0.0:80", "127.0.0.1:9000")
    assert misspelt(found) == [WORDS]


def test_stack_puts_the_admin_port_on_a_network_of_its_own(project: Path) -> None:
    (project / ".env").write_text("BALANCER_ADMIN_BIND=0.0.0.0:9000\n")
    files = [f"--compose-file=deploy/swarm/{name}.yaml" for name in ("stack", "env", "admin")]
    found = environment(project, "stack", "config", *files, ADMIN_SUBNET="10.9.8.0/24")
    assert found["BALANCER_ADMIN_BIND"] == "10.9.8.0/24:9000"
