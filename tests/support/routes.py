"""Tables of routes for tests: places that lead to pools of their own name, and which of them a request finds."""

from __future__ import annotations

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.request import Request
from balancer.routing.table import Route, Table

SETTINGS = Settings()


def request(host: str, target: str) -> Request:
    return Request("GET", target.encode("latin-1"), [(b"host", host.encode())], "", host=host.encode())


def table(*places: str, strip: bool = False) -> Table:
    """Routes at these places, each to a pool of the place's name."""
    routes = []
    for place in places:
        host, slash, path = place.partition("/")
        routes.append(Route(host, (slash + path).rstrip("/"), place, strip and path != ""))
    return Table(routes, dict.fromkeys(places, SETTINGS))


def found(routes: Table, host: str, target: str) -> str:
    """The name of the pool, or the status and token of the refusal."""
    try:
        return routes.find(request(host, target)).name
    except Refusal as refusal:
        return f"{refusal.status} {refusal.token}"
