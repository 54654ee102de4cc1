"""A client's request, from any front end. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from balancer.http.headers import Headers

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

    async def read(self) -> bytes:
        """Return the next piece, or b"" at the end. Raises ClientGone if the client left before that."""


@dataclass(slots=True)
class Request:
    """A client's request; several that are the same to the byte may share it.

    ``client``: the peer's IP address, or "" where there is none.
    ``chunked``: the body's length is not announced, so it goes on in chunks. ``upgrade``: the
    protocol that it names to switch to (RFC 9110 section 7.8), or b"". ``expects``: its body waits for 100
    (Continue) (RFC 9110 section 10.1.1). ``host``: the value of its Host, or b"".
    ``stripped``: the target as members get it, if that is another one, and ``prefix`` what it lacks. ``pool``: its
    ``RequestHandler`` of ``balancer.dispatch``, once a route has been found. ``id``: the client's X-Request-ID, or b"".
    Once rendered: ``head``: its head for members, without the end and what is this request's alone; ``entry``: its part
    of the access log.
    """

    method: str
    target: bytes
    headers: Headers
    client: str
    scheme: str = "http"
    body: Body | None = None
    chunked: bool = False
    upgrade: bytes = b""
    expects: bool = False
    host: bytes = b""
    id: bytes = b""
    head: bytes = b""
    entry: str = ""
    prefix: bytes = b""
    stripped: bytes = b""
    pool: Any = None


# A request for a policy: a ``Request`` or, where there are plug-ins, the ``HookRequest`` of hooks that is
# made of it. It is Any so that a plug-in may declare the second alone, whichever policy it extends.
AnyRequest = Any


def header_pairs(request: AnyRequest) -> Headers:
    """Return the header fields of a request as they came, or as hooks have changed them."""
    pairs: Headers = request.headers if isinstance(request, Request) else request.headers.pairs
    return pairs
