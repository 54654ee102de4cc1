"""A request through ``HookedDispatcher`` leaves nothing behind that only the garbage collector would find."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Sequence
from random import Random

import pytest

from balancer.config.settings import Settings
from balancer.dispatch.context import RequestContext
from balancer.dispatch.dispatcher import Dispatcher
from balancer.dispatch.interfaces import Sink
from balancer.hooks import HookRequest, Hooks, Refusal
from balancer.http.headers import NO_FIELDS, Headers
from balancer.http.request import Request
from balancer.loadbalancer import LoadBalancer
from balancer.members.member import Member
from balancer.members.membership import Membership
from balancer.plugins import loader
from balancer.plugins.hooked_dispatcher import HookedDispatcher
from balancer.policies import Policy, RoundRobin
from balancer.upstream.base import Timeouts, UpstreamResponse
from balancer.upstream.httpx_adapter import HttpxUpstream


class Recorded(Sink):
    status = 0

    def send_interim(self, status: int, headers: Headers) -> None: ...

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        self.status = status

    async def write(self, data: bytes, more: bool, trailers: Headers = NO_FIELDS) -> None: ...

    async def switch(self, response: UpstreamResponse, headers: Headers, count: Callable[[int], None]) -> None: ...


class Refusing(Hooks):
    def on_request(self, request: HookRequest) -> None:
        if request.target != "/":
            raise KeyError("what is raised here is let go as well")
        raise Refusal(403, "closed", "closed")


class Turns(Policy):
    """Leaves every choice to round robin."""

    def build(self, members: Sequence[Member]) -> None: ...

    def choose(self, request: HookRequest, exclude: Container[Member] = ()) -> None: ...


@pytest.fixture
def dispatcher() -> HookedDispatcher:
    settings = Settings(queue_timeout=0)
    chain = loader.load(settings, Random(0), None, [Refusing()]).hooks
    return HookedDispatcher(chain, settings, Membership(), RoundRobin(Random(0)), HttpxUpstream(Timeouts(1, 1, 1)))


def test_request_is_its_own(dispatcher: HookedDispatcher) -> None:
    shared = Request("GET", b"/x", [(b"host", b"a")], "192.0.2.1", "https", host=b"a")
    own = dispatcher.begin(shared).request
    assert own is not shared
    assert own.headers == shared.headers
    assert (own.method, own.target, own.host, own.client) == (shared.method, shared.target, shared.host, shared.client)


async def test_requests_that_are_equal_stay_one_without_hooks_for_requests() -> None:
    dispatcher = LoadBalancer("apps", resolver="127.0.0.1", policy=Turns()).dispatcher
    shared = Request("GET", b"/x", [(b"host", b"a")], "192.0.2.1")
    one, other = dispatcher.begin(shared), dispatcher.begin(shared)
    assert one.request is other.request is shared
    assert one.hook_request and other.hook_request and one.hook_request is not other.hook_request
    assert one.hook_request.id != other.hook_request.id and one.hook_request.notes is not other.hook_request.notes


async def test_objects_for_plug_ins_are_not_made_without_plug_ins() -> None:
    dispatcher = LoadBalancer("apps", resolver="127.0.0.1").dispatcher
    assert type(dispatcher) is Dispatcher
    assert dispatcher.begin(Request("GET", b"/x", [], "192.0.2.1")).hook_request is None


@pytest.mark.parametrize(("target", "status"), [(b"/", 403), (b"/x", 503)])
async def test_request_leaves_nothing_behind(target: bytes, status: int, dispatcher: HookedDispatcher) -> None:
    async def left_after(requests: int) -> int:
        for _ in range(requests):
            sink = Recorded()
            await dispatcher.handle(Request("GET", target, [(b"host", b"a")], "192.0.2.1"), sink)
            assert sink.status == status
        return sum(issubclass(type(it), RequestContext | HookRequest) for it in gc.get_objects())

    gc.disable()
    try:
        # What the log line of the first has in hand, and what waits for the next turn of the loop, does not count.
        before = await left_after(10)
        assert await left_after(20) == before
    finally:
        gc.enable()
