"""The seam between the balancer and its connections to members.

An upstream sends one request to one member and returns the response as it arrives. It is independent of choice,
retries and clients, and raises the errors of ``balancer.errors``.

Its classes are base classes, which cost a request less than Protocols once they are compiled. Coroutines of
subclasses are declared here by their type, so that this module has none.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from mypy_extensions import mypyc_attr

from balancer.config.settings import Settings
from balancer.http.headers import NO_FIELDS, Headers, MessageHeaders, Spelling
from balancer.http.request import Body, Request
from balancer.types import Address


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of time at members, in seconds.

    Attributes:
        connect: To connect to a member.
        response: To the first byte of the response.
        idle: Of silence in mid-body.
        hung: Of a member that sends no byte, not even to probes, while requests that may be repeated wait.
    """

    connect: float
    response: float
    idle: float
    hung: float = inf

    @classmethod
    def of(cls, settings: Settings) -> Timeouts:
        """Return the limits of the settings."""
        limits = (settings.connect_timeout, settings.response_timeout, settings.stream_idle_timeout)
        return cls(*limits, settings.hung_timeout or inf)


class Connections(NamedTuple):
    """Numbers of connections to members: in use, idle, and opened so far.

    ``requests``: sent on them so far.
    """

    active: int
    idle: int
    opened: int
    requests: int


@dataclass(slots=True)
class UpstreamRequest:
    """A request as a member gets it. ``target``: the request target as the client wrote it.

    ``headers`` say how the body is framed: by Content-Length, or (``chunked``) by ``Transfer-Encoding``.
    ``fresh``: do not use a connection that was used before. ``repeatable``: it may be sent to another
    member after ``Timeouts.hung``. ``upgrade``: the protocol that ``headers`` ask to switch to, or b"".
    ``expects``: the body waits for the member's 100 (Continue). ``on_interim`` is called with status and fields of each
    interim response (RFC 9110 section 15.2). ``on_connect``: called with True when a connection has to be made for it,
    and with False when that has ended.
    """

    method: str
    target: bytes
    headers: Headers
    body: Body | None = None
    chunked: bool = False
    fresh: bool = False
    repeatable: bool = False
    upgrade: bytes = b""
    expects: bool = False
    on_interim: Callable[[int, Headers], None] | None = None
    on_connect: Callable[[bool], None] | None = None
    spelling: Spelling = field(default_factory=dict)


@mypyc_attr(allow_interpreted_subclasses=True)
class UpstreamResponse(MessageHeaders):
    """A member's response, from its head on. Headers of this hop are left out.

    ``lines`` begin with the status line. ``reason``: the phrase of that, or b"" for the usual one. ``closes``: the
    member ends the connection with this response. ``trailers``: complete once all has been read. After status 101 the
    bytes are not a body but those of the protocol ``upgrade``: ``read`` returns them as they come, and ``write`` sends
    some.
    """

    status: int = 0
    reason: bytes = b""
    closes: bool = False
    trailers: Headers = NO_FIELDS
    upgrade: bytes = b""

    def read(self) -> Coroutine[Any, Any, tuple[bytes, bool]]:
        """Return the next piece of the body and whether more follows. Raises TruncatedResponse if it ends early."""
        raise NotImplementedError

    def wait_for_body(self, within: float) -> Coroutine[Any, Any, None]:
        """Wait until a piece of the body or its end is there, ``within`` seconds at most.

        Raises ConnectionDied or ProtocolViolation if the body fails first: nothing has been passed on yet.
        """
        raise NotImplementedError

    def write(self, data: bytes) -> Coroutine[Any, Any, None]:
        """Send bytes of the protocol switched to; waits while the member cannot take more. Raises TruncatedResponse."""
        raise NotImplementedError

    def write_eof(self) -> Coroutine[Any, Any, None]:
        """End the bytes of the protocol switched to."""
        raise NotImplementedError

    def close(self) -> Coroutine[Any, Any, None]:
        """Release the response; unless it was read to its end, its connection is closed."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class PendingResponse(UpstreamResponse):
    """A response that is still to come. ``listener``: called at each progress.

    ``started``: its head is there. ``complete``: all of it is there; ``take`` returns the body, or the part since the
    last call.
    """

    listener: Callable[[], None] | None = None
    complete: bool = False
    started: bool = False

    @property
    def is_flowing(self) -> bool:
        """Whether ``take`` returns a part of the body, or the end of it, and nothing has to be waited for or undone."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Return the part of the body that has come since the last call."""
        raise NotImplementedError

    def wait_for_head(self) -> Coroutine[Any, Any, None]:
        """Wait for the head. Raises the errors of ``Upstream.send``."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Upstream:
    """Sends requests to members."""

    def send_nowait(
        self,
        address: Address,
        request: Request,
        head: bytes,
        body: bytes,
        repeatable: bool,
        on_interim: Callable[[int, Headers], None],
    ) -> PendingResponse | None:
        """Send a request and all of its body, if an idle connection takes them without waiting.

        Return None otherwise. ``repeatable``: it may be sent to another member after that. ``request`` is the client's.
        ``head`` is the request head for members, which is valid: it comes from one that was parsed as HTTP/1.1. For
        ``on_interim`` see ``UpstreamRequest``.
        """
        raise NotImplementedError

    def send(self, address: Address, request: UpstreamRequest) -> Coroutine[Any, Any, UpstreamResponse]:
        """Send the request and wait for the response head.

        Raises UpstreamError if the member fails, ClientGone if the request body's source does, and
        Refusal if the request cannot be put on the wire.
        """
        raise NotImplementedError

    def forget(self, address: Address) -> None:
        """Close the idle connections of a member that has left; those in use end with their exchange."""
        raise NotImplementedError

    def on_member_answered(self, address: Address) -> None:
        """Note that the member has answered a probe: it does not hang."""
        raise NotImplementedError

    def check_network(self, address: Address) -> None:
        """Have the network checked soon: no connection to the member can be made, or DNS names it no more.

        Requests that can go elsewhere do so where the network is silent. A member that is merely busy keeps its
        requests, for its kernel answers.
        """
        raise NotImplementedError

    def close(self) -> Coroutine[Any, Any, None]:
        """Close everything."""
        raise NotImplementedError
