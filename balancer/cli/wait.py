"""``balancer wait``: returns once so many members of a running balancer are up, for scripts that deploy.

It asks the admin listener, ``GET /readyz?up=6``. A balancer that does not answer yet is waited for like a member.
"""

from __future__ import annotations

import http.client
import re
import sys
import time
from contextlib import closing
from urllib.parse import urlencode

from balancer.cli.healthcheck import reachable
from balancer.errors import FAILED
from balancer.types import Address
from balancer.words import counted

# Seconds between two questions, and for the answer to one.
STEP = 0.2
ANSWER_SECONDS = 5.0
# Bytes of an answer that are read: a line for each pool.
ANSWER_BYTES = 4096

_ANSWER = re.compile(r"\d+ of \d+ members are up|the balancer stops")


class CannotWait(Exception):
    """Waiting is of no use; the text has the reason, in one line."""


def run(admin: Address | None, wanted: int, pool: str | None, timeout: float) -> int:
    """Wait until ``wanted`` members are up, in the pool or in each; return the exit status.

    Prints what it waits for, whenever that has changed. ``timeout``: seconds to wait at most.
    """
    members = f"{counted(wanted, 'member')} to be up{f' in {pool}' if pool else ''}"
    print(f"waiting for {members}, {timeout:g} s at most", flush=True)
    deadline = time.monotonic() + timeout
    said = ""
    try:
        if admin is None:
            raise CannotWait("without an admin listener nothing says who is up: BALANCER_ADMIN_BIND is off")
        while True:
            is_enough, words = _ask(admin, wanted, pool)
            if is_enough:
                print(words)
                return 0
            if time.monotonic() >= deadline:
                raise CannotWait(f"not within {timeout:g} s: {words}")
            if words != said:
                print(words, flush=True)
                said = words
            time.sleep(STEP)
    except CannotWait as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return FAILED


def _ask(admin: Address, wanted: int, pool: str | None) -> tuple[bool, str]:
    """Return whether so many members are up, and the counts in words. Raises CannotWait where that cannot change."""
    query = urlencode({"up": wanted} | ({"pool": pool} if pool else {}))
    try:
        with closing(http.client.HTTPConnection(*reachable(admin), timeout=ANSWER_SECONDS)) as connection:
            connection.request("GET", f"/readyz?{query}")
            answer = connection.getresponse()
            status, words = answer.status, answer.read(ANSWER_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        return False, f"the balancer does not answer on {admin}: {error.strerror or error}"
    except http.client.HTTPException as error:
        raise CannotWait(f"what answers on {admin} is not HTTP: {repr(error)[:200]}") from None
    if status in (400, 404) and words.isprintable():
        raise CannotWait(words[:500])
    if status not in (200, 503) or not _ANSWER.match(words):
        raise CannotWait(f"what answers on {admin} is no balancer that counts members: {status} {words[:100]!r}")
    return status == 200, words
