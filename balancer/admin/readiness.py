"""Readiness: whether each pool has a member to give requests to, or so many that are up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from balancer.admin.aggregate import MergedPool
from balancer.admin.pool_view import View, by_name
from balancer.members.health import State
from balancer.words import counted

# Members that may be asked for.
UP_MAX = 1_000_000


def readiness_endpoint(
    pools: Callable[[], Sequence[View]], stopping: Callable[[], bool]
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of ``/readyz``. ``?up=6`` takes six members that are up, ``?pool=shop`` looks at one pool.

    ``stopping``: whether the balancer is about to stop.
    """

    async def readyz(request: Request) -> Response:
        query = request.query_params
        unknown = sorted({*query} - {"up", "pool"})
        if unknown or len(query.multi_items()) > len(query):
            what = f"{unknown[0]!r} is none" if unknown else "one of them is there twice"
            return _say(400, f"the query takes up=<number> and pool=<name>: {what}")
        wanted = query.get("up")
        if wanted is not None and not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:8]) <= UP_MAX):
            return _say(400, f"up={wanted[:100]!r} cannot be used: it takes a whole number from 1 to {UP_MAX}")
        if stopping():
            return _say(503, "the balancer stops")
        found = by_name(pools())
        if (name := query.get("pool")) is not None:
            if found and name not in found:
                return _say(404, f"there is no pool {name[:100]!r}; there is {', '.join(found)}")
            found = {known: pool for known, pool in found.items() if known == name}
        return _enough(found, int(wanted)) if wanted else _any(found)

    return readyz


def _any(pools: dict[str, View]) -> Response:
    """Answer whether each pool has an available member."""
    counts = {name: pool.available for name, pool in pools.items()}
    empty = [name for name, available in counts.items() if not available]
    if empty or not counts:
        where = f" in {', '.join(empty)}" if len(counts) > 1 else ""
        return _say(503, f"no member is available{where}")
    return _say(200, f"{counted(sum(counts.values()), 'member is', 'members are')} available")


def _enough(pools: dict[str, View], wanted: int) -> Response:
    """Answer whether so many members of each pool are up."""
    if not pools:
        return _say(503, f"0 of {wanted} members are up: no process has reported yet")
    lines = []
    for name, pool in pools.items():
        where = f" in {name}" if len(pools) > 1 else ""
        known = f"of {len(pool.members)} that DNS names"
        lines.append(f"{up(pool)} of {wanted} members are up{where}, {known}")
    short = [line for line, pool in zip(lines, pools.values(), strict=True) if up(pool) < wanted]
    return _say(503 if short else 200, "; ".join(short or lines))


def up(pool: View) -> int:
    """Return the members that are up, in all processes, and not drained by hand."""
    ready = [member for member in pool.members.values() if member.state is State.UP and not member.drained]
    if isinstance(pool, MergedPool):
        return sum(member.address in pool.up_everywhere for member in ready)
    return len(ready)


def _say(status: int, words: str) -> Response:
    return PlainTextResponse(f"{words}\n", status)
