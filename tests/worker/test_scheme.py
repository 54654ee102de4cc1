"""What a worker takes for the scheme and for its client behind a balancer with TLS, as the guides say."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from balancer.demo.system import free_port
from balancer.types import Address
from tests.support.paths import DOCS, ROOT
from tests.support.tls import issue, trusting
from tests.support.wire import balance
from tests.support.workers import running

APP = """
from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/")
async def hello(request: Request) -> list[str]:
    return [str(request.url_for("hello")), request.client.host]
"""
DRAINED = """
import sys

from app import app
from worker import drain

drain.run(app, host="127.0.0.1", port=int(sys.argv[1]))
"""
UVICORN = ("-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", "PORT")
# The balancer's address is 127.0.0.1 here, which uvicorn believes unless it is set otherwise.
OTHER = "192.0.2.1"
# What a proxy on loopback says of its client.
CLIENT = "203.0.113.9"
TOLD = ["https://shop.example/", CLIENT]


@pytest.mark.parametrize(
    ("command", "allowed", "seen"),
    [
        (UVICORN, OTHER, ["http://shop.example/", "127.0.0.1"]),
        (UVICORN, "*", TOLD),
        ((*UVICORN, "--proxy-headers", "--forwarded-allow-ips=*"), OTHER, TOLD),
        (("drained.py", "PORT"), OTHER, ["http://shop.example/", "127.0.0.1"]),
        (("drained.py", "PORT"), "*", TOLD),
    ],
)
async def test_worker_behind_tls_knows_scheme_and_client_once_it_is_allowed_to(
    command: tuple[str, ...], allowed: str, seen: list[str], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "drained.py").write_text(DRAINED)
    port = free_port()
    arguments = [str(port) if word == "PORT" else word for word in command]
    environ = {"FORWARDED_ALLOW_IPS": allowed, "PYTHONPATH": str(ROOT)}
    settings = issue(tmp_path) | {"trusted_proxies": (ip_network("127.0.0.1"),)}
    async with (
        running(port, *arguments, environ=environ, cwd=tmp_path),
        balance(Address("127.0.0.1", port), **settings) as balancer,
        httpx.AsyncClient(verify=trusting(), trust_env=False) as client,
    ):
        headers = {"Host": "shop.example", "X-Forwarded-For": CLIENT}
        assert (await client.get(balancer.url, headers=headers)).json() == seen


@pytest.mark.parametrize("page", ["bring-your-own-worker", "from-the-nginx-trick", "tls-certificates"])
def test_guide_to_tls_or_workers_says_how_to_believe_the_scheme(page: str) -> None:
    text = (DOCS / "guides" / f"{page}.md").read_text()
    for words in ("FORWARDED_ALLOW_IPS", "ProxyFix", "SECURE_PROXY_SSL_HEADER"):
        assert words in text
