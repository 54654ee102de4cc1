"""``balancer reload``: has a running balancer replaced by the code, and the files, that are there now."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import time
from typing import Any

from balancer.exits import FAILED
from balancer.healthcheck import reachable
from balancer.settings import Address

# Seconds for a trial, a new supervisor, and new processes that know their members.
LIMIT = 60.0
STEP = 0.1
ANSWER_SECONDS = 5.0


def run(admin: Address | None, pid: int | None) -> int:
    """Tell the supervisor, found by the admin listener unless ``pid`` is given, and wait for what comes of it.

    Returns the exit status: 0 once new processes serve. The log of the balancer says why they do not.
    """
    if admin is None:
        if pid is None:
            print("without an admin listener nobody says who the supervisor is: --pid is needed", file=sys.stderr)
            return FAILED
        return _tell(pid)
    try:
        before = _status(admin)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"the admin listener on {admin} does not answer: {error}", file=sys.stderr)
        return FAILED
    supervisor = pid or before["supervisor"]
    if status := _tell(supervisor):
        return status
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        time.sleep(STEP)
        try:
            now = _status(admin)
        except (OSError, ValueError, http.client.HTTPException):
            continue  # The listener changes hands.
        if now["generation"] > before["generation"] and len(now["processes"]) == len(before["processes"]):
            pids = ", ".join(str(it["pid"]) for it in now["processes"])
            print(f"reloaded: {pids} serve, the processes before leave")
            return 0
    print(f"nothing has changed within {LIMIT:g} s; the log of the balancer says why", file=sys.stderr)
    return FAILED


def _tell(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        print(f"process {pid} cannot be told: {error.strerror}", file=sys.stderr)
        return FAILED
    return 0


def _status(admin: Address) -> dict[str, Any]:
    connection = http.client.HTTPConnection(*reachable(admin), timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/api/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()
