"""How an answer of the admin listener shows that its sender knows the token, without saying it (RFC 2104)."""

from __future__ import annotations

import hmac
import re
from functools import cache
from hashlib import pbkdf2_hmac

# What is to be proved anew each time: 32 random bytes.
CHALLENGE = re.compile("[0-9a-f]{64}")

# 0.1 s, once a process: anybody who reads the status could try tokens against a proof.
_ROUNDS = 200_000


def prove(token: str, challenge: str, supervisor: int, generation: int) -> str:
    """The proof that belongs to an answer with this supervisor and generation."""
    said = f"{challenge} {supervisor} {generation}"
    return hmac.new(_key(token), said.encode(), "sha256").hexdigest()


@cache
def _key(token: str) -> bytes:
    return pbkdf2_hmac("sha256", token.encode(), b"balancer proof", _ROUNDS)
