"""Requests, responses and members as plug-ins see them. No I/O.

Rules:
* A hook reads and changes fields through ``HeaderFields``. That takes none that frames a message, routes it, ends its
  connection or would break out of its line. Whatever a hook does, the next server in the row reads the message as it
  was meant.
* A hook's changes are for one request alone, although the balancer may share what many requests have in common:
  ``HeaderFields`` never changes the list that it was made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from balancer.errors import Refusal
from balancer.http.headers import HOP_BY_HOP, Headers
from balancer.http.request import Request
from balancer.members.health import State
from balancer.members.member import Member
from balancer.types import Address

__all__ = ["HeaderFields", "HookRequest", "HookResponse", "Hooks", "Member", "Refusal", "State"]

# Headers that the balancer alone writes: a message's framing, destination and origin, and the handshake of a
# WebSocket, which either side would find broken.
_OURS = HOP_BY_HOP | {b"content-length", b"host", b"expect", b"forwarded", b"cdn-loop"}
_OURS_BEGIN = (b"x-forwarded-", b"sec-websocket-")

# RFC 9110 sections 5.1 and 5.5.
_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class HeaderFields:
    """Headers of one message, in order, with duplicates; iteration gives pairs (name, value) of text.

    Names match in any case (RFC 9110 section 5.1) and come out in lower case. Text stands for bytes of Latin-1.
    All headers can be read. A change of one that the balancer sets itself raises ValueError: the hop-by-hop headers
    (RFC 9110 section 7.6.1), ``Content-Length``, ``Host``, ``Expect``, ``Forwarded``, ``X-Forwarded-*``,
    ``Sec-WebSocket-*`` and, of a request, ``X-Request-ID``.
    """

    __slots__ = ("_fixed", "_frozen", "_pairs")

    def __init__(self, pairs: Headers, fixed: bytes = b"") -> None:
        self._pairs = pairs
        # One more name that is the balancer's own.
        self._fixed = fixed
        self._frozen = False

    def freeze(self) -> None:
        """Raise ValueError for every change from now on."""
        self._frozen = True

    @property
    def pairs(self) -> Headers:
        """The headers as raw pairs (name, value) of bytes, names in lower case; the list must not be changed."""
        return self._pairs

    def restore(self, pairs: Headers) -> None:
        """Undo what has changed since ``pairs`` was read.

        Args:
            pairs: The value that ``pairs`` had then.
        """
        self._pairs = pairs

    def get(self, name: str, default: str = "") -> str:
        """Return the value of the first header of a name.

        Args:
            name: The name, in any case.
            default: Value to return if there is no such header.
        """
        key = name.lower().encode("latin-1", "replace")
        for field_name, value in self._pairs:
            if field_name == key:
                return value.decode("latin-1")
        return default

    def all(self, name: str) -> list[str]:
        """Return the values of all headers of a name, in order."""
        key = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for field_name, value in self._pairs if field_name == key]

    def add(self, name: str | bytes, value: str | bytes) -> None:
        """Append a header.

        Args:
            name: A token (RFC 9110 section 5.1), in any case.
            value: Text of Latin-1, or bytes, without control characters but tab (RFC 9110 section 5.5).

        Raises:
            ValueError: The name or the value is not valid, the balancer sets this header itself, or the request
                has passed ``on_request``.
        """
        self._pairs = [*self._pairs, self._field(name, value)]

    def set(self, name: str | bytes, value: str | bytes) -> None:
        """Replace all headers of a name by one, at the end; arguments and errors are those of ``add``."""
        field = self._field(name, value)
        self._pairs = [*(pair for pair in self._pairs if pair[0] != field[0]), field]

    def remove(self, name: str | bytes) -> None:
        """Remove all headers of a name; without one, nothing changes. Raises ValueError as ``add`` does."""
        key = self._name(name)
        self._pairs = [pair for pair in self._pairs if pair[0] != key]

    def __contains__(self, name: str) -> bool:
        key = name.lower().encode("latin-1", "replace")
        return any(field_name == key for field_name, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def _name(self, name: str | bytes) -> bytes:
        if self._frozen:
            raise ValueError("only on_request may change the fields of a request")
        data = (name.encode("latin-1", "replace") if isinstance(name, str) else bytes(name)).lower()
        if not _NAME.fullmatch(data):
            raise ValueError(f"{name!r} is not the name of a field")
        if data in _OURS or data.startswith(_OURS_BEGIN) or data == self._fixed:
            raise ValueError(f"the field {data.decode()} is the balancer's own")
        return data

    def _field(self, name: str | bytes, value: str | bytes) -> tuple[bytes, bytes]:
        data = value.encode("latin-1") if isinstance(value, str) else bytes(value)
        if not _VALUE.fullmatch(data):
            raise ValueError(f"{value!r} is not the value of a field")
        return self._name(name), data.strip(b" \t")


class HookRequest:
    """A request as hooks and policies that are plug-ins see it: one object for all of them, from first to last.

    Attributes:
        notes (dict[str, object]): Values of plug-ins, by name, from ``on_request`` to ``choose`` and ``on_response``.
    """

    __slots__ = ("_headers", "_id", "_request", "notes")

    def __init__(self, request: Request, id: bytes = b"") -> None:
        self._request = request
        self._id = id
        # The log has the id that the client gave.
        self._headers = HeaderFields(request.headers, b"x-request-id")
        self.notes: dict[str, object] = {}

    @property
    def headers(self) -> HeaderFields:
        """The client's headers. ``on_request`` may change them for policies and members; later it is a ValueError."""
        return self._headers

    @property
    def method(self) -> str:
        """The method as the client wrote it, such as ``GET`` (RFC 9110 section 9.1)."""
        return self._request.method

    @property
    def target(self) -> str:
        """The request-target as the client wrote it (RFC 9112 section 3.2): mostly path and query."""
        return self._request.target.decode("latin-1")

    @property
    def id(self) -> str:
        """The value of ``X-Request-ID`` that members and the log get, the client's or one of the balancer's own."""
        return self._id.decode("latin-1")

    @property
    def host(self) -> str:
        """The value of ``Host``."""
        return self._request.host.decode("latin-1")

    @property
    def client(self) -> str:
        """The peer's IP address, or "" on a Unix socket."""
        return self._request.client

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return self._request.scheme

    @property
    def upgrade(self) -> str:
        """The protocol that the request names to switch to, such as ``websocket``, or ""."""
        return self._request.upgrade.decode("latin-1").lower()


class HookResponse:
    """A member's response as hooks see it, before its body."""

    __slots__ = ("_headers", "_member", "_status")

    def __init__(self, status: int, headers: Headers, member: Address) -> None:
        self._status = status
        self._member = member
        self._headers = HeaderFields(headers)

    @property
    def headers(self) -> HeaderFields:
        """The member's headers; clients get what hooks make of them."""
        return self._headers

    @property
    def status(self) -> int:
        """The status code, from 200 on, or 101 where the member has switched to another protocol."""
        return self._status

    @property
    def member(self) -> Address:
        """The address of the member that has answered."""
        return self._member


class Hooks:
    """Base class of hooks: a subclass overrides what it needs, and what it does not override costs nothing.

    Hooks run in the event loop, between the bytes of all requests: they must be quick and must not wait.
    A hook that raises, or returns anything but None, is logged once for each kind of failure, and its changes are
    undone. Then the request goes on, or it fails, by ``fail_closed``.

    Attributes:
        fail_closed (bool): Whether a failure of the hook becomes a 503 ``hook_failed`` for the client. A hook that
            guards sets it to True: with False, the default, a request passes at which the guard fails.
    """

    fail_closed = False

    def on_request(self, request: HookRequest) -> None:
        """Look at a request before a member is chosen, once for each request.

        Args:
            request: The request; ``request.headers`` may be changed.

        Raises:
            Refusal: The balancer answers in place of a member: with a status from 400 to 599, or with 301, 302, 303,
                307 or 308 and a ``Location`` among its headers.
        """

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        """Look at a member's response before its body, and not at what the balancer itself answers.

        Args:
            request: The request, which cannot be changed any more.
            response: The response; ``response.headers`` may be changed.
        """

    def on_member_added(self, member: Member) -> None:
        """Take note of a member that has come into DNS; it gets requests once it is up."""

    def on_member_removed(self, member: Member) -> None:
        """Take note of a member that has left DNS; it gets no more requests."""

    def on_member_state_changed(self, member: Member, before: State) -> None:
        """Take note of a change of state of a member in DNS.

        Args:
            member: The member, in its new state; ``member.reason`` has the cause.
            before: The state that it had.
        """


# Each method, with the number of its arguments.
METHODS = {
    "on_request": 1,
    "on_response": 2,
    "on_member_added": 1,
    "on_member_removed": 1,
    "on_member_state_changed": 2,
}

# Earlier names of methods, with their present ones: a hook that has one would never be called.
RENAMED = {"on_joined": "on_member_added", "on_left": "on_member_removed", "on_state": "on_member_state_changed"}


def overrides(hooks: Hooks, method: str) -> bool:
    """Whether a hook handles that event."""
    return getattr(type(hooks), method) is not getattr(Hooks, method)
