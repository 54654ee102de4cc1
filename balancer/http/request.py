"""A client's request, from any front end. No I/O."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, Protocol

from balancer.http.headers import Headers, MessageHeaders

# The extension of an ASGI scope with which a front end of this program hands over the target as its client wrote it.
# The scope itself cannot say that a query is empty: that of /foo? is the same as that of /foo.
TARGET_EXTENSION = "balancer.target"


class Body(Protocol):
    """A request body as it arrives from the client. ``trailers``: complete once it has ended."""

    @property
    def ended(self) -> bool:
        """Whether all of it has been read. May be false until a read has returned b""."""

    @property
    def trailers(self) -> Headers:
        """Fields that came after the last chunk (RFC 9112 section 7.1.2)."""

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return the next piece, or b"" at the end. Raises ClientGone if the client left before that."""


END_OF_HEAD: Final = b"\r\n\r\n"


class HeaderBlock:
    """What the header lines of a simple request say (``balancer.http.simple_heads``). Immutable: requests share it.

    ``lines``: as they came, with a line break before each and the end of the head. ``passed``: those that go on as they
    are. ``host``, ``id``: as those of the request. ``length``: bytes of its body. ``forwarding``: values of
    ``Forwarded`` and ``X-Forwarded-*`` by name.
    """

    __slots__ = ("forwarding", "host", "id", "length", "lines", "passed")

    def __init__(
        self, lines: bytes, passed: bytes, host: bytes, id: bytes, length: int, forwarding: dict[bytes, list[bytes]]
    ) -> None:
        self.lines = lines
        self.passed = passed
        self.host = host
        self.id = id
        self.length = length
        self.forwarding = forwarding


class Request(MessageHeaders):
    """A client's request.

    ``headers``: pairs, or None where ``lines`` has them. ``client``: the peer's IP address, or "" where there is none.
    ``chunked``: the body's length is not announced, so it goes on in chunks. ``upgrade``: the
    protocol that it names to switch to (RFC 9110 section 7.8), or b"". ``expects``: its body waits for 100
    (Continue) (RFC 9110 section 10.1.1). ``host``: the value of its Host, or b"". ``id``: the client's X-Request-ID, or
    b"". ``stripped``: the target as members get it, if that is another one, and ``prefix`` what it lacks.

    Of a simple head alone: ``block``: what its lines say, or None; ``head_bytes``: all of it.
    """

    block: HeaderBlock | None = None
    head_bytes = 0
    prefix = b""
    stripped = b""

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers | None,
        client: str,
        scheme: str = "http",
        body: Body | None = None,
        chunked: bool = False,
        upgrade: bytes = b"",
        expects: bool = False,
        host: bytes = b"",
        id: bytes = b"",
    ) -> None:
        self.method = method
        self.target = target
        self._headers = headers
        self.client = client
        self.scheme = scheme
        self.body = body
        self.chunked = chunked
        self.upgrade = upgrade
        self.expects = expects
        self.host = host
        self.id = id


# A request for a policy: a ``Request`` or, where there are plug-ins, the ``HookRequest`` of hooks that is
# made of it. It is Any so that a plug-in may declare the second alone, whichever policy it extends.
AnyRequest = Any


def header_pairs(request: AnyRequest) -> Headers:
    """Return the header fields of a request as they came, or as hooks have changed them."""
    pairs: Headers = request.headers if isinstance(request, Request) else request.headers.pairs
    return pairs
