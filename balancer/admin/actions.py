"""What can be done to a member by hand: drain, undrain, eject, restore."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from balancer.admin.auth import deny
from balancer.admin.history import Pool
from balancer.admin.pool_view import View
from balancer.admin.responses import Unusable, headers_by_name, refusal
from balancer.admin.status_feed import StatusFeed
from balancer.config.settings import Settings
from balancer.members.member import Member

# Bytes that the body of an action may have.
MAX_BODY_BYTES = 4096
# Seconds for which a member is ejected by hand, unless the body says so, and at most.
EJECT_SECONDS = 60
EJECT_SECONDS_MAX = 3600

# What JSON can escape and UTF-8 cannot say: half of a pair of surrogates (RFC 8259 section 8.2).
_HALF = re.compile("[\ud800-\udfff]")


class Action(NamedTuple):
    """The body of an action: the pool, the name that the member's container should have, seconds of an ejection."""

    pool: str | None = None
    name: str | None = None
    seconds: float | None = None


# What is done to a member, and what the answer says of it.
Act = Callable[[View, Member, Action], dict[str, object]]


def _drain(view: View, member: Member, action: Action) -> dict[str, object]:
    view.drain(member, True)
    return {"drained": True}


def _undrain(view: View, member: Member, action: Action) -> dict[str, object]:
    view.drain(member, False)
    return {"drained": False}


def _eject(view: View, member: Member, action: Action) -> dict[str, object]:
    seconds = action.seconds or EJECT_SECONDS
    view.eject(member, seconds)
    return {"ejected": True, "seconds": seconds}


def _restore(view: View, member: Member, action: Action) -> dict[str, object]:
    view.restore(member)
    return {"ejected": False}


ACTIONS: dict[str, Act] = {"drain": _drain, "undrain": _undrain, "eject": _eject, "restore": _restore}


def action_endpoint(settings: Callable[[], Settings], feed: StatusFeed, act: Act) -> Callable[[Request], Any]:
    """Return the endpoint that does something to a member."""

    async def endpoint(request: Request) -> Response:
        if denial := deny(settings(), headers_by_name(request.headers)):
            return refusal(denial)
        action, address = await _read_action(request, takes_seconds=act is _eject), request.path_params["address"]
        if action.name is not None:
            for pool, member in _members(feed.pools(), address, action.pool):
                _check_name(member, action.name, await feed.confirm(pool, member))
        found = _members(feed.pools(), address, action.pool)
        done: dict[str, object] = {}
        for pool, member in found:
            done = act(pool.view, member, action)
        return JSONResponse(
            {
                "address": str(found[0][1].address),
                **done,
                "pools": [pool.name for pool, _ in found],
                "in_flight": sum(member.in_flight for _, member in found),
            }
        )

    return endpoint


async def _read_action(request: Request, takes_seconds: bool) -> Action:
    text = b""
    try:
        async for piece in request.stream():
            text += piece
            if len(text) > MAX_BODY_BYTES:
                raise Unusable(413, "too_large", f"the body may have {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise Unusable(400, "bad_body", "the body did not come whole") from None
    try:
        body = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        body = None
    fields = body if isinstance(body, dict) else {"": body}
    seconds = fields.pop("seconds", None) if takes_seconds else None
    if seconds is not None and (type(seconds) not in (int, float) or not 1 <= seconds <= EJECT_SECONDS_MAX):
        raise Unusable(
            400, "bad_body", f"seconds takes a number from 1 to {EJECT_SECONDS_MAX}, such as {EJECT_SECONDS}"
        )
    if not fields.keys() <= {"pool", "name"} or not all(
        value is None or (isinstance(value, str) and not _HALF.search(value)) for value in fields.values()
    ):
        example = '{"pool": "apps", "name": "shop-worker-1"}'
        takes = f"the body may be empty or a JSON object with the pool, the container's name or both, such as {example}"
        raise Unusable(400, "bad_body", takes)
    return Action(**fields, seconds=seconds)


def _check_name(member: Member, wanted: str, now: str) -> None:
    """Raise Unusable where the address is another container's by now."""
    if now != wanted:
        words = f"{member.address} is {now or 'a container without a known name'} by now, not {wanted}: nothing changes"
        raise Unusable(409, "another_name", words)


def _members(pools: Sequence[Pool], text: str, name: str | None) -> list[tuple[Pool, Member]]:
    """Return the members of an address, in the pool of that name or in all. Raises Unusable if there is none."""
    named = [pool for pool in pools if name in (None, pool.name)]
    if not named:
        known = ", ".join(pool.name for pool in pools)
        raise Unusable(404, "no_such_pool", f"there is no pool {name!r}; there is {known}")
    candidates = [(pool, member) for pool in named for member in pool.view.members.values()]
    found = [(pool, member) for pool, member in candidates if str(member.address) == text]
    if not found:
        some = ", ".join(sorted(str(member.address) for _, member in candidates)[:5]) or "none just now"
        raise Unusable(404, "no_such_member", f"{text!r} is no member; members are named by ip:port: {some}")
    return found
