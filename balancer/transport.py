"""An ``httpx`` transport that balances a client's own calls over the members behind an alias.

A call goes the way of every request: ``balancer.dispatch`` chooses a member, queues the call while none is available,
and repeats it at another where that is safe. Members get the fields as httpx made them: the call is its sender's own,
so there is no client to name in ``X-Forwarded-*``.

Rules:
* An answer in the balancer's own name (502, 503, 504) is a response here as well, with ``X-Balancer-Error``. Code that
  works behind ``balancer serve`` works here. A failure that no response can carry is an exception of httpx.
* A body is read from the member no faster than it is read here, by one piece. A response that is left before its end
  ends the exchange with it: closed, cancelled, timed out, no longer iterated, or dropped unread.
* httpx's time-outs count beside the balancer's: whichever is over first. ``balancer.calls.patience`` has their rules
  until the response begins; ``read`` then is for each piece of its body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Any, NoReturn

from balancer.calls.local_call import LocalCall
from balancer.config.settings import Settings
from balancer.forks import abandon, renew_in_child
from balancer.loadbalancer import LoadBalancer
from balancer.upstream.httpx_library import EITHER, library_of

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Transport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]
        """For type checkers: clients of both libraries take it."""

else:
    _Transport = object  # Clients look at methods alone, and neither library has to be there.

_SYNCHRONOUS = (
    "BalancedTransport is for an AsyncClient: it runs in the event loop of asyncio. In synchronous code, call through"
    " `balancer serve`"
)


class BalancedTransport(_Transport):
    """An httpx transport that gives each call to a member: ``httpx.AsyncClient(transport=BalancedTransport("apps"))``.

    It serves clients of httpx and of httpx2, also both at a time; responses and exceptions are of the client's library.
    ``response.extensions["balancer"]`` is the ``RequestRecord`` of the call. A body that ends early raises
    ``httpx.RemoteProtocolError``, or ``httpx.ReadTimeout`` where the member fell silent.

    Args:
        target: The alias, or a ``Settings``. Or a ``LoadBalancer`` of the caller, perhaps mounted at the same time: its
            members are shared, and it is not closed with the client.
        hosts: The hosts of URLs that it takes, one or several; a call to another raises ``httpx.UnsupportedProtocol``.
            None takes any: members get it as ``Host``.
        **settings: Settings by their names, if ``target`` is the alias.

    Raises:
        SettingsError: A value cannot be used.
        TypeError: A keyword is not the name of a setting, or ``target`` has its settings already.
    """

    def __init__(
        self, target: str | Settings | LoadBalancer, *, hosts: str | Collection[str] | None = None, **settings: Any
    ) -> None:
        if isinstance(target, LoadBalancer):
            if settings:
                raise TypeError(f"a LoadBalancer has its settings already: {', '.join(settings)}")
            self.balancer = target
        else:
            self.balancer = LoadBalancer(target, **settings)
        self._owned = self.balancer is not target
        self._hosts = None if hosts is None else sorted(map(str.lower, [hosts] if isinstance(hosts, str) else hosts))
        self._calls: set[LocalCall] = set()
        renew_in_child(self, BalancedTransport._begin_anew)

    def _begin_anew(self) -> None:
        """Leave the calls under way to the process before this one."""
        abandon(self._calls)
        self._calls = set()

    async def handle_async_request(self, request: Any) -> Any:
        """Send a call to a member; httpx calls this.

        Raises:
            httpx.UnsupportedProtocol: The URL is not ``http://`` or not of one of ``hosts``, or the call asks to switch
                to another protocol (``Upgrade``).
            httpx.LocalProtocolError: The call cannot be put into HTTP (RFC 9110, RFC 9112).
            httpx.TimeoutException: A time-out of httpx is over.
            httpx.ReadError: The transport was closed.
            RuntimeError: No event loop of asyncio runs.
            TypeError: The request is of neither library.
        """
        library = library_of(request)
        if library is None:
            raise TypeError(f"BalancedTransport takes requests of {EITHER}, not {type(request).__qualname__}")
        if self._hosts is not None and (host := request.url.host) not in self._hosts:
            words = f"{host!r} is not a host of this transport, which takes {', '.join(self._hosts) or 'none'}"
            raise library.httpx.UnsupportedProtocol(words)
        self.balancer.start()
        dispatcher = self.balancer.dispatcher
        call = LocalCall(request, library, dispatcher.begin, self.balancer.proxy)
        self._calls.add(call)
        call.running.add_done_callback(lambda _: self._calls.discard(call))
        try:
            await call.wait_for_head()
        except BaseException:
            await call.aclose()
            raise
        extensions: dict[str, Any] = {"http_version": b"HTTP/1.1", "balancer": call.context}
        if call.reason:
            extensions["reason_phrase"] = call.reason
        body = library.stream_class(_Body)(call)
        return library.httpx.Response(call.status, headers=call.fields, stream=body, extensions=extensions)

    async def __aenter__(self) -> BalancedTransport:
        self.balancer.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Break off the calls under way, and close the ``LoadBalancer`` unless it is the caller's."""
        for call in list(self._calls):
            call.end()
        for call in list(self._calls):
            await call.aclose()
        if self._owned:
            await self.balancer.aclose()

    # What a synchronous client calls.

    def __enter__(self) -> NoReturn:
        raise TypeError(_SYNCHRONOUS)

    def __exit__(self, *raised: object) -> None:
        """Do nothing: ``__enter__`` raises."""

    def handle_request(self, request: object) -> NoReturn:
        """Raise TypeError: the balancer runs in an event loop."""
        raise TypeError(_SYNCHRONOUS)

    def close(self) -> None:
        """Do nothing: there is nothing to close of a client that could not begin. An AsyncClient calls ``aclose``."""


class _Body:
    """The body of a response, in its caller's hands. The call does not refer to it, and ends when it is freed."""

    def __init__(self, call: LocalCall) -> None:
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while piece := await self._call.next_piece():
                yield piece
        finally:
            self._call.end()

    async def aclose(self) -> None:
        await self._call.aclose()

    def __del__(self) -> None:
        self._call.end_threadsafe()
