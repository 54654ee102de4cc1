"""A container that answers 503 to everything, among workers, on a real engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.support.compose import Compose
from tests.support.tls import issue, trusting

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

NOTICED = 10.0

# A stand-in for a worker: it reads what it is sent, and has carried nothing out.
BUSY = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Busy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(503)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"busy")

    do_POST = do_GET

ThreadingHTTPServer(("", 80), Busy).serve_forever()
"""

OVERRIDE = """
services:
  balancer:
    build: {{args: {{COMPILE: "", HTTP2: "on"}}}}
    image: balancer-http2
    volumes: ["{folder}:/tls:ro"]
"""


def override(folder: Path) -> Path:
    """A file for Compose, beside a certificate that the user of the image can read."""
    issue(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)
    written = folder / "compose.override.yaml"
    written.write_text(OVERRIDE.format(folder=folder))
    return written


async def record(client: httpx.AsyncClient, name: str, **headers: str) -> int:
    return (await client.post("/record", content=name, headers=headers)).status_code


async def test_container_that_answers_503_costs_gets_nothing_and_runs_no_post_twice(tmp_path: Path) -> None:
    settings = {
        "BALANCER_TLS_CERT": "/tls/certificate.pem",
        "BALANCER_TLS_KEY": "/tls/key.pem",
        "BALANCER_HTTP2": "on",
        "BALANCER_RETRY_STATUS": "502-504",
        "BALANCER_EJECT": "off",  # It would be out after some ten requests.
        "BALANCER_ROUTES": "/plain=apps;retry_status=;strip_prefix=on,=apps",
    }
    compose = Compose("balancerbusy", files=("compose.yaml", str(override(tmp_path))), **settings)
    url = compose.url.replace("http:", "https:")
    async with compose.running():
        await compose.run(
            "docker", "run", "--detach", "--rm", "--name", "balancerbusy-busy", "--network", compose.network,
            "--network-alias", "apps", "--entrypoint", "python", "balancer-worker", "-c", BUSY,
        )  # fmt: skip
        try:
            for http2 in (False, True):
                verify = trusting("h2" if http2 else "http/1.1")
                async with httpx.AsyncClient(
                    verify=verify, http2=http2, base_url=url, trust_env=False, timeout=30
                ) as client:
                    await check(client, compose, "h2" if http2 else "h1")
        finally:
            await compose.run("docker", "rm", "--force", "balancerbusy-busy")


async def check(client: httpx.AsyncClient, compose: Compose, name: str) -> None:
    # Without statuses of its own, a route shows that the container takes its share.
    plain: Counter[int] = Counter()
    while not {200, 503} <= plain.keys():
        plain[(await client.get("/plain/")).status_code] += 1
        assert sum(plain.values()) < 1000
    assert Counter([(await client.get("/")).status_code for _ in range(20)]) == {200: 20}
    with_key = [f"{name}-key-{number}" for number in range(15)]
    assert {await record(client, it, **{"Idempotency-Key": it}) for it in with_key} == {200}
    without = {f"{name}-{number}": await record(client, f"{name}-{number}") for number in range(20)}
    assert set(without.values()) == {200, 503}
    seen = await compose.records()
    assert {it: seen.get(it, 0) for it in with_key} == dict.fromkeys(with_key, 1)
    assert {it: seen.get(it, 0) for it in without} == {it: int(status == 200) for it, status in without.items()}
