"""The files of deploy/kubernetes: each is valid, kustomize builds them, and they fit each other and the programs."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import balancer
from balancer.config.display import variable
from balancer.config.settings import Settings
from tests.support.guide import files
from tests.support.paths import ROOT
from worker import drain

FILES = ROOT / "deploy" / "kubernetes"

# The oldest release whose schema is checked, and the newest that the validator knows.
RELEASES = ["1.30", kubernetes_validate.latest_version()]
NO_KUBECTL = "there is no kubectl (Debian has it in the package kubernetes-client)"
# For how long the cluster's DNS may go on giving an answer, in seconds.
DNS_TTL = 30

Object = dict[str, Any]


def load(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


KUSTOMIZATION = load(FILES / "kustomization.yaml")[0]
OBJECTS: list[Object] = [it for name in KUSTOMIZATION["resources"] for it in load(FILES / name)]


def named(kind: str, name: str) -> Object:
    return next(it for it in OBJECTS if (it["kind"], it["metadata"]["name"]) == (kind, name))


def of(kind: str) -> list[Object]:
    found = [it for it in OBJECTS if it["kind"] == kind]
    assert found
    return found


PODS: dict[str, Object] = {
    it["metadata"]["name"]: it["spec"]["template"] for it in OBJECTS if it["kind"] in ("Deployment", "StatefulSet")
}


def pod_spec(name: str) -> Object:
    spec: Object = PODS[name]["spec"]
    return spec


def container(name: str) -> Object:
    (only,) = pod_spec(name)["containers"]
    assert only["name"] == name
    return dict(only)


def environment() -> dict[str, str]:
    """What the balancer's pods get from the ConfigMap."""
    (config,) = KUSTOMIZATION["configMapGenerator"]
    assert container("balancer")["envFrom"] == [{"configMapRef": {"name": config["name"]}}]
    return dict(it.split("=", 1) for it in config["literals"])


SETTINGS = Settings.load(environment())


def ports(name: str) -> dict[str, int]:
    return {it["name"]: it["containerPort"] for it in container(name)["ports"]}


def selected(selector: Object) -> set[str]:
    """The pods that a selector takes."""
    wanted = selector.get("matchLabels", {})
    found = {name for name, pod in PODS.items() if wanted.items() <= pod["metadata"]["labels"].items()}
    for it in selector.get("matchExpressions", []):
        assert it["operator"] == "In"
        found &= {name for name in PODS if PODS[name]["metadata"]["labels"].get(it["key"]) in it["values"]}
    return found


def test_kustomization_names_every_file() -> None:
    assert {it.name for it in FILES.iterdir()} == {"kustomization.yaml", *KUSTOMIZATION["resources"]}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("thing", OBJECTS, ids=lambda it: f"{it['kind']}-{it['metadata']['name']}")
def test_every_object_is_valid(thing: Object, release: str) -> None:
    kubernetes_validate.validate(thing, release, strict=True)


def test_validator_sees_a_field_that_is_none() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


def build(folder: Path) -> list[Object]:
    """What ``kubectl kustomize`` makes of a folder."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        if os.environ.get("CI"):
            pytest.fail(
                "CI has to build the kustomization, but there is no kubectl (Debian's package kubernetes-client)"
            )
        pytest.skip("there is no kubectl (Debian's package kubernetes-client)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [it for it in yaml.safe_load_all(done.stdout) if it]


@pytest.fixture(scope="session")
def built() -> list[Object]:
    return build(FILES)


def test_worker_gets_a_signal_before_it_has_a_handler() -> None:
    """A container's first process does not; the balancer's comes after a hook."""
    assert pod_spec("worker")["shareProcessNamespace"]
    (container,) = pod_spec("balancer")["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]


def test_kustomize_builds_valid_objects_for_any_namespace(built: list[Object]) -> None:
    assert len(built) == len(OBJECTS) + len(KUSTOMIZATION["configMapGenerator"])
    for thing in built:
        kubernetes_validate.validate(thing, RELEASES[-1], strict=True)
        assert thing["kind"] != "Namespace" and "namespace" not in thing["metadata"]


def test_guide_s_overlay_builds(tmp_path: Path) -> None:
    """Names the images and a namespace, and finds members by SRV."""
    base = os.path.relpath(FILES, tmp_path)
    text = files("guides/kubernetes.md")["kustomization.yaml"].replace("../balancer/deploy/kubernetes", base)
    overlay = tmp_path / "kustomization.yaml"
    overlay.write_text(text)
    try:
        objects = build(tmp_path)
    except AssertionError as error:
        # Before kubectl 1.21 (Debian 12 has 1.20) a folder was called a base.
        if "must be a file" not in str(error):
            raise
        overlay.write_text(text.replace("resources:", "bases:"))
        objects = build(tmp_path)
    assert len(objects) == len(OBJECTS) + len(KUSTOMIZATION["configMapGenerator"])
    for thing in objects:
        kubernetes_validate.validate(thing, RELEASES[-1], strict=True)
        assert thing["metadata"]["namespace"] == "shop"
    (config,) = [it for it in objects if it["kind"] == "ConfigMap"]
    settings = Settings.load(config["data"])
    assert (settings.dns_record, settings.upstream_port) == ("srv", SETTINGS.upstream_port)
    (port,) = named("Service", "worker")["spec"]["ports"]
    assert settings.alias == f"_{port['name']}._tcp.worker"
    images = {
        pod["image"]
        for it in objects
        if "template" in it.get("spec", {})
        for pod in it["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example/balancer:0.1.1", "registry.example/balancer-worker:0.1.1", "redis:8-alpine"}


def test_kustomize_puts_in_the_settings_and_the_images(built: list[Object]) -> None:
    (config,) = [it for it in built if it["kind"] == "ConfigMap"]
    assert config["data"] == environment()
    specs = {it["metadata"]["name"]: it["spec"]["template"]["spec"] for it in built if "template" in it.get("spec", {})}
    (used,) = specs["balancer"]["containers"][0]["envFrom"]
    assert used["configMapRef"]["name"] == config["metadata"]["name"] != "balancer"
    images = {name: spec["containers"][0]["image"] for name, spec in specs.items()}
    release = balancer.__version__
    assert images == {
        "balancer": f"balancer:{release}",
        "worker": f"balancer-worker:{release}",
        "redis": "redis:8-alpine",
    }


def test_every_setting_is_one() -> None:
    known = {variable(it.name) for it in fields(Settings)}
    assert set(environment()) <= known


def test_balancer_finds_the_workers() -> None:
    service = named("Service", SETTINGS.alias)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    # SRV has the service's port: for a headless Service that has to be the pods' own.
    assert (port["name"], port["port"]) == ("http", SETTINGS.upstream_port)
    assert ports("worker")["http"] == SETTINGS.upstream_port
    assert SETTINGS.health_path == container("worker")["readinessProbe"]["httpGet"]["path"]


def test_workers_get_what_they_read() -> None:
    given = {it["name"]: it["value"] for it in container("worker")["env"]}
    assert int(given["PORT"]) == ports("worker")["http"]
    redis = named("Service", given["HOST_REDIS"])
    assert int(given["PORT_REDIS"]) == redis["spec"]["ports"][0]["port"] == ports("redis")["redis"]
    source = (ROOT / "worker" / "__main__.py").read_text()
    assert all(f'"{name}"' in source for name in given)


def test_redis_runs_as_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["redis"]
    assert compose["image"] == f"${{REDIS_IMAGE:-{container('redis')['image']}}}"
    assert container("redis")["args"] == compose["command"]
    assert container("redis")["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    (claim,) = named("StatefulSet", "redis")["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"


def test_selectors_find_their_pods() -> None:
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        for it in of(kind):
            assert selected(it["spec"]["selector"]) == {it["metadata"]["name"]}
    for it in of("Service"):
        assert selected({"matchLabels": it["spec"]["selector"]}) == {it["metadata"]["name"]}
    for name in ("balancer", "worker"):
        (spread,) = pod_spec(name)["topologySpreadConstraints"]
        assert selected(spread["labelSelector"]) == {name}
    assert {it["metadata"]["name"] for it in of("PodDisruptionBudget")} == {"balancer", "worker"}
    assert named("StatefulSet", "redis")["spec"]["serviceName"] == named("Service", "redis")["metadata"]["name"]


def named_ports(thing: Any) -> Iterator[str]:
    """What probes and hooks of a container call a port."""
    if isinstance(thing, dict):
        for key, value in thing.items():
            if key == "port":
                yield value
            else:
                yield from named_ports(value)


@pytest.mark.parametrize("name", PODS)
def test_probes_and_services_use_ports_that_the_container_has(name: str) -> None:
    has = ports(name)
    probed = [it for kind in ("readinessProbe", "livenessProbe") for it in named_ports(container(name)[kind])]
    assert set(probed) <= set(has)
    assert all(it["targetPort"] in has for it in named("Service", name)["spec"]["ports"])
    # Without privileges nothing else can be listened on everywhere.
    assert min(has.values()) >= 1024


def test_balancer_listens_where_it_is_reached() -> None:
    assert str(SETTINGS.bind) == f"0.0.0.0:{ports('balancer')['http']}"
    assert str(SETTINGS.admin_bind) == f"0.0.0.0:{ports('balancer')['admin']}"
    it = container("balancer")
    paths = {kind: it[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")}
    assert paths == {"readiness": "/readyz", "liveness": "/healthz"}
    assert all(f'Route("{path}"' in (ROOT / "balancer/admin/app.py").read_text() for path in paths.values())


def test_requests_are_held_for_longer_than_it_takes_to_take_the_balancer_out() -> None:
    probe = container("balancer")["readinessProbe"]
    assert (probe["failureThreshold"] - 1) * probe["periodSeconds"] >= SETTINGS.queue_timeout


def test_grace_periods_add_up() -> None:
    command, sleep = container("balancer")["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    # ClientRegistry that do not read are cut off a second after the requests (balancer/process/worker.py).
    needs = int(sleep) + math.ceil(SETTINGS.shutdown_delay + SETTINGS.shutdown_timeout) + 1
    assert needs + 2 <= pod_spec("balancer")["terminationGracePeriodSeconds"] <= needs + 10
    assert "lifecycle" not in container("worker")
    needs = math.ceil(drain.LIMIT_SECONDS + 2 * drain.NOTICE_SECONDS)
    assert needs + 2 <= pod_spec("worker")["terminationGracePeriodSeconds"] <= needs + 10
    probe = container("worker")["livenessProbe"]
    assert (probe["failureThreshold"] - 1) * probe["periodSeconds"] > needs


def test_rollouts_take_no_pod_away_before_another_is_there() -> None:
    for it in of("Deployment"):
        assert it["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        }
    known = DNS_TTL + SETTINGS.resolve_interval + SETTINGS.health_interval
    assert named("Deployment", "worker")["spec"]["minReadySeconds"] >= known
    assert named("Deployment", "balancer")["spec"]["replicas"] == 2


def test_deployment_that_is_scaled_has_no_number_of_its_own() -> None:
    (scaler,) = of("HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    deployment = named(target["kind"], target["name"])
    assert target["apiVersion"] == deployment["apiVersion"]
    assert "replicas" not in deployment["spec"]
    assert 2 <= scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    # A utilization is one of what was requested.
    assert "cpu" in container(target["name"])["resources"]["requests"]


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_privileges(name: str) -> None:
    spec = pod_spec(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    context = spec["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert context["runAsUser"] > 0 and context["runAsGroup"] > 0
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    resources = container(name)["resources"]
    assert {"cpu", "memory"} == set(resources["requests"]) and "memory" in resources["limits"]


@pytest.mark.parametrize(("name", "dockerfile"), [("balancer", "balancer"), ("worker", "worker")])
def test_pods_run_as_the_user_of_the_image(name: str, dockerfile: str) -> None:
    context = pod_spec(name)["securityContext"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / dockerfile / "Dockerfile").read_text(), re.MULTILINE)
    assert user and (int(user[1]), int(user[2])) == (context["runAsUser"], context["runAsGroup"])


def allowed(direction: str, name: str) -> set[tuple[str, int, str]]:
    """What the policies let a pod receive from, or send to: who (``*`` for anybody), port and protocol."""
    peer, found = {"Ingress": "from", "Egress": "to"}[direction], set()
    for policy in of("NetworkPolicy"):
        spec = policy["spec"]
        if name not in selected(spec["podSelector"]) or direction not in spec["policyTypes"]:
            continue
        for rule in spec.get(direction.lower(), []):
            whom: set[str] = set()
            for it in rule.get(peer, []):
                if "namespaceSelector" in it:
                    assert it["namespaceSelector"] == {}
                    whom |= {f"{key}={value}" for key, value in it["podSelector"]["matchLabels"].items()}
                else:
                    whom |= selected(it["podSelector"])
            found |= {
                (who, port["port"], port.get("protocol", "TCP")) for who in whom or {"*"} for port in rule["ports"]
            }
    return found


def test_only_who_has_to_may_talk_to_a_pod() -> None:
    for direction in ("Ingress", "Egress"):
        # Whoever is selected by a policy of a direction may do no more than the policies say.
        ruled = [it["spec"] for it in of("NetworkPolicy") if direction in it["spec"]["policyTypes"]]
        assert {name for it in ruled for name in selected(it["podSelector"])} == set(PODS)
    # An empty selector would be every pod of the namespace, whoever's it is.
    assert all(it["spec"]["podSelector"] for it in of("NetworkPolicy"))
    http, redis = ports("worker")["http"], ports("redis")["redis"]
    admin = ports("balancer")["admin"]
    assert allowed("Ingress", "balancer") == {
        ("*", ports("balancer")["http"], "TCP"),
        ("balancer/metrics=scraper", admin, "TCP"),
    }
    assert allowed("Ingress", "worker") == {("balancer", http, "TCP")}
    assert allowed("Ingress", "redis") == {("worker", redis, "TCP")}
    dns = {("*", 53, "UDP"), ("*", 53, "TCP")}
    assert allowed("Egress", "balancer") == dns | {("worker", http, "TCP")}
    assert allowed("Egress", "worker") == dns | {("redis", redis, "TCP")}
    assert allowed("Egress", "redis") == set()
