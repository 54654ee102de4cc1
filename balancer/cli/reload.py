"""``balancer reload``: replaces a running balancer by the code, and the files, that are there now.

Rules, because any program may answer on the address of the admin listener:
* A process is signalled only if it is a supervisor of this user's, whatever names it
  (``balancer.process.supervisor_mark``).
* With a token, an answer counts only with a proof made with it. The token itself is not sent.
* An answer is bounded, in bytes and in seconds, and has the types that it should have.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass

import httpx

from balancer.admin.auth import prove
from balancer.cli.healthcheck import reachable
from balancer.config.display import variable
from balancer.errors import FAILED
from balancer.process.supervisor_mark import objection
from balancer.types import Address

# Seconds for a trial, a new supervisor, and new processes that have found their members.
LIMIT = 60.0
STEP = 0.1
# Seconds and bytes that one answer may take: that of 5000 members has 2 MB.
ANSWER_SECONDS = 5.0
ANSWER_BYTES = 32 * 2**20
# Characters of an answer that a message quotes.
QUOTED = 200

_MAX = 2**31 - 1


class CannotReload(Exception):
    """A reload is not possible; the text has the reason, in one line."""


@dataclass(frozen=True)
class Status:
    """The part of a status that a reload needs. ``serving``: the processes that serve."""

    supervisor: int
    generation: int
    serving: list[int]


def run(admin: Address | None, pid: int | None, token: str | None) -> int:
    """Signal the supervisor, found by the admin listener unless ``pid`` is given, and wait for the outcome.

    Returns the exit status: 0 once new processes serve. The log of the balancer has the reason for any other.
    """
    try:
        if admin:
            _reload(admin, pid, token)
        elif pid:
            _signal(pid)
        else:
            raise CannotReload("without an admin listener nothing names the supervisor: --pid is needed")
    except CannotReload as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


def _reload(admin: Address, pid: int | None, token: str | None) -> None:
    before = _fetch_status(admin, token)
    _signal(pid or before.supervisor)
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        time.sleep(STEP)
        try:
            now = _fetch_status(admin, token)
        except CannotReload:
            continue  # The listener changes hands.
        if now.generation > before.generation and len(now.serving) == len(before.serving):
            print(f"reloaded: {', '.join(map(str, now.serving))} serve, the processes before leave")
            return
    raise CannotReload(f"nothing has changed within {LIMIT:g} s; the log of the balancer says why")


def _signal(pid: int) -> None:
    if why := objection(pid):
        accepted = "a supervisor of the same user, and in a container the command runs there"
        raise CannotReload(f"{why}, and is not signalled: a reload takes {accepted}")
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        raise CannotReload(f"process {pid} cannot be signalled: {error.strerror}") from None


def _fetch_status(admin: Address, token: str | None) -> Status:
    """Return the status from the admin listener. Raises CannotReload unless a balancer with the token answers."""
    challenge = secrets.token_hex(32)
    try:
        text = asyncio.run(_fetch(f"http://{Address(*reachable(admin))}/api/status?challenge={challenge}"))
    except TimeoutError:
        raise CannotReload(f"the admin listener on {admin} has not answered within {ANSWER_SECONDS:g} s") from None
    except (OSError, httpx.HTTPError) as error:
        why = str(error)[:QUOTED] or type(error).__name__
        raise CannotReload(f"the admin listener on {admin} does not answer: {why}") from None
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("processes"), list):
            raise ValueError("it takes a JSON object with a list of processes")
        serving = [_number(process, "pid", 1) for process in found["processes"]]
        status = Status(_number(found, "supervisor", 1), _number(found, "generation", 0), serving)
        proof = str(found.get("proof")).encode()
    except (ValueError, RecursionError) as error:
        raise CannotReload(f"what answers on {admin} is no balancer: {error}") from None
    if token and not hmac.compare_digest(proof, prove(token, challenge, status.supervisor, status.generation).encode()):
        wanted = f"the balancer with this {variable('admin_token')}"
        raise CannotReload(f"what answers on {admin} does not prove that it is {wanted}; nothing is signalled")
    return status


async def _fetch(url: str) -> bytes:
    """Return the body as it comes: a compressed one could become large."""
    async with (
        asyncio.timeout(ANSWER_SECONDS),
        httpx.AsyncClient(trust_env=False, timeout=None) as client,
        client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
    ):
        if response.status_code != 200:
            raise httpx.HTTPError(f"it says {response.status_code}, and should say 200")
        found = bytearray()
        async for piece in response.aiter_raw():
            found += piece
            if len(found) > ANSWER_BYTES:
                raise httpx.HTTPError(f"its answer has more than {ANSWER_BYTES} bytes")
        return bytes(found)


def _number(found: object, name: str, low: int) -> int:
    value = found.get(name) if isinstance(found, dict) else None
    if type(value) is not int or not low <= value <= _MAX:
        raise ValueError(f"{name} is {repr(value)[:QUOTED]}, and takes a whole number from {low} to {_MAX}")
    return value
