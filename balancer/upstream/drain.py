"""The end of a response that no client gets."""

from __future__ import annotations

from balancer.errors import TruncatedResponse
from balancer.loop_time import Limit
from balancer.upstream.base import UpstreamResponse

# The bytes up to which the rest of a response is read, and the seconds in which they have to be there: servers write
# them right behind the head.
DRAIN_MAX = 64 * 1024
DRAIN_SECONDS = 0.01


async def drain(response: UpstreamResponse) -> None:
    """Close a response, and read it before that if it is short, so that its connection can be used again."""
    size, more = 0, True
    try:
        async with Limit(DRAIN_SECONDS):
            while more and size < DRAIN_MAX:
                piece, more = await response.read()
                size += len(piece)
    except (TimeoutError, TruncatedResponse):
        pass  # Its connection is closed.
    finally:
        await response.close()
