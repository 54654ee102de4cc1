"""``Retry-After``: the time after which a server will do better (RFC 9110 section 10.2.3). No I/O."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import inf

from balancer.http.headers import Headers

# More seconds than any wait, and no number that takes long to read.
_SECONDS = re.compile(rb"[0-9]{1,9}")


def retry_after(headers: Headers, wall_clock: float) -> float:
    """Return the seconds to wait, 0 for a moment that has passed; infinite without a value that can be read.

    ``wall_clock``: the time in seconds since 1970. A date (RFC 9110 section 5.6.7) has whole seconds.
    """
    value = dict(headers).get(b"retry-after", b"")
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value.decode("latin-1"))
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - wall_clock)
    except (ValueError, OverflowError):
        return inf
