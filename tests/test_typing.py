"""What the public annotations accept under ``mypy --strict``: what the documents allow, and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

SNIPPET = '''
from collections.abc import Container, Sequence

import httpx
import httpx2

from balancer import BalancedTransport, LoadBalancer
from balancer.hooks import HookRequest, Member
from balancer.policies import Policy, PolicyLike
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream


class First:
    """It extends nothing, as docs/guides/plugins.md allows."""

    def build(self, members: Sequence[Member]) -> None:
        self.members = list(members)

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None:
        return next((member for member in self.members if member not in exclude), None)


class OtherNames:
    def build(self, available: Sequence[Member]) -> None: ...

    def choose(self, asked: HookRequest, failed: Container[Member]) -> Member | None: ...

    def response_headers(self, request: HookRequest, member: Member) -> list[tuple[str, str]]:
        return [("X-Member", str(member.address))]


class Inherits(Policy):
    def build(self, members: Sequence[Member]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> Member | None: ...


class NoPolicy:
    def choose(self, request: HookRequest) -> str:
        return "any"


def named(policy: PolicyLike) -> LoadBalancer:
    return LoadBalancer("apps", policy=policy)


LoadBalancer("apps", policy=First())
LoadBalancer("apps", policy=OtherNames())
LoadBalancer("apps", policy=Inherits())
LoadBalancer("apps", policy="random")
LoadBalancer("apps", policy=NoPolicy())  # refused

# Clients and transports of both libraries.
transport = BalancedTransport("apps", policy=First())
httpx.AsyncClient(transport=transport, mounts={"http://apps": transport})
httpx2.AsyncClient(transport=transport, mounts={"http://apps": transport})
httpx.Client(transport=transport)  # refused
httpx2.Client(transport=transport)  # refused
timeouts = Timeouts(connect=1, response=1, idle=1)
LoadBalancer("apps", upstream=HttpxUpstream(timeouts, lambda: httpx.AsyncHTTPTransport(http2=True)))
LoadBalancer("apps", upstream=HttpxUpstream(timeouts, httpx2.AsyncHTTPTransport))
HttpxUpstream(timeouts, httpx2.AsyncHTTPTransport())  # refused
'''


def check(snippet: str, folder: Path) -> list[str]:
    """The errors of mypy: "line: what it says". Its cache is that of all tests, so that only the first one is slow."""
    path = folder / "snippet.py"
    path.write_text(snippet)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--hide-error-context", "--no-error-summary"]
    command += ["--no-pretty", "--cache-dir", str(ROOT / ".mypy_cache" / "snippets"), str(path)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    return [line.partition("snippet.py:")[2] for line in out.splitlines() if ": error:" in line]


def test_public_annotations_accept_what_the_documents_allow(tmp_path: Path) -> None:
    lines = SNIPPET.splitlines()
    refused = [str(number) for number, line in enumerate(lines, 1) if line.endswith("# refused")]
    assert [error.partition(":")[0] for error in check(SNIPPET, tmp_path)] == refused
