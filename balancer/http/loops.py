"""Marks of the pools that a request has passed through, by which one finds a request that has come back. No I/O.

Rules:
* The marks are in ``CDN-Loop`` (RFC 8586), a list to which each pool appends its own, whomever it trusts. So a loop
  through several balancers is found as well.
* ``Via`` (RFC 9110 section 7.6.3) would do the same, but nginx and others do not compress for a request that has it.
* A mark is that of one pool of one balancer: a worker may call another pool through the balancer that called it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2s

from balancer.errors import Refusal

FIELD = b"cdn-loop"


def mark_of(identity: str, pool: str) -> bytes:
    """Return the mark of a pool. ``identity``: random text that the processes of one balancer share."""
    return b"balancer-" + blake2s(f"{identity} {pool}".encode(), digest_size=6).hexdigest().encode()


def marked(values: Sequence[bytes], mark: bytes) -> bytes:
    """Return the value of the field for members, which has the marks of pools before. Raises Refusal with ``mark``."""
    for value in values:
        if mark in value:
            raise Refusal(508, "loop_detected", "the request has come back: it has been through this balancer's pool")
    return b", ".join([*values, mark])
