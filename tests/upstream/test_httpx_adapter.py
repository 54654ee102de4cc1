"""The balancer over respx: membership appears, changes, vanishes, and DNS fails; no socket is opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import respx

from balancer.config.settings import Settings
from balancer.errors import ConnectFailed, ConnectionDied, ProtocolViolation, Refusal, ResponseTimeout, UpstreamError
from balancer.loadbalancer import LoadBalancer
from balancer.members.health import State
from balancer.types import Address
from balancer.upstream.base import Timeouts, UpstreamRequest
from balancer.upstream.httpx_adapter import HttpxUpstream
from balancer.upstream.httpx_library import WORDS_MAX
from tests.support.scripted import ScriptedProbe, ScriptedResolver
from tests.support.wire import eventually

ONE, TWO, THREE = (Address(f"10.0.0.{number}", 80) for number in (1, 2, 3))
TIMEOUTS = Timeouts(connect=1, response=1, idle=1)


@asynccontextmanager
async def balanced(
    router: respx.Router, resolver: ScriptedResolver, probe: ScriptedProbe | None = None, queue_timeout: float = 5
) -> AsyncIterator[tuple[LoadBalancer, httpx.AsyncClient]]:
    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(router.async_handler))
    settings = Settings(queue_timeout=queue_timeout, resolve_interval=0.1)
    balancer = LoadBalancer(settings, upstream=upstream, resolve=resolver, probe=probe or ScriptedProbe())
    async with (
        balancer,
        httpx.AsyncClient(transport=httpx.ASGITransport(balancer), base_url="http://shop.example") as client,
    ):
        yield balancer, client


@pytest.fixture
def router() -> respx.Router:
    """Every member answers with its own address."""
    router = respx.Router(assert_all_called=False)
    for address in (ONE, TWO, THREE):
        router.route(host=address.host).respond(text=address.host)
    return router


async def answers(client: httpx.AsyncClient, count: int) -> list[str]:
    return [(await client.get("/")).text for _ in range(count)]


async def size(balancer: LoadBalancer, count: int) -> None:
    await eventually(lambda: len(balancer.membership.available) == count)


async def test_members_take_turns(router: respx.Router) -> None:
    async with balanced(router, ScriptedResolver(ONE, TWO, THREE)) as (balancer, client):
        await size(balancer, 3)
        first, second = await answers(client, 3), await answers(client, 3)
        assert sorted(first) == [ONE.host, TWO.host, THREE.host]
        assert second == first


async def test_new_member_takes_its_share(router: respx.Router) -> None:
    resolver = ScriptedResolver(ONE)
    async with balanced(router, resolver) as (balancer, client):
        await size(balancer, 1)
        assert set(await answers(client, 3)) == {ONE.host}
        resolver.found(ONE, TWO)
        await size(balancer, 2)
        assert sorted(await answers(client, 4)) == [ONE.host] * 2 + [TWO.host] * 2


async def test_member_that_left_gets_nothing_more(router: respx.Router) -> None:
    resolver = ScriptedResolver(ONE, TWO)
    async with balanced(router, resolver) as (balancer, client):
        await size(balancer, 2)
        resolver.found(TWO)
        await size(balancer, 1)
        assert set(await answers(client, 3)) == {TWO.host}


async def test_member_gets_no_request_before_its_first_successful_probe(router: respx.Router) -> None:
    probe = ScriptedProbe(down=[TWO])
    async with balanced(router, ScriptedResolver(ONE, TWO), probe) as (balancer, client):
        await size(balancer, 1)
        assert set(await answers(client, 4)) == {ONE.host}
        probe.down.clear()
        await size(balancer, 2)
        assert set(await answers(client, 4)) == {ONE.host, TWO.host}


async def test_broken_dns_changes_nothing(router: respx.Router) -> None:
    resolver = ScriptedResolver(ONE, TWO)
    async with balanced(router, resolver) as (balancer, client):
        await size(balancer, 2)
        resolver.broken()
        asked = resolver.calls
        await eventually(lambda: resolver.calls > asked + 4)
        assert set(await answers(client, 4)) == {ONE.host, TWO.host}


async def test_request_waits_for_the_next_member_when_all_have_vanished(router: respx.Router) -> None:
    resolver = ScriptedResolver(ONE)
    async with balanced(router, resolver) as (balancer, client):
        await size(balancer, 1)
        resolver.names_none()
        await size(balancer, 0)
        waiting = asyncio.create_task(client.get("/"))
        await eventually(lambda: len(balancer.dispatcher.queue) == 1)
        resolver.found(TWO)
        assert (await waiting).text == TWO.host


async def test_first_member_back_gets_no_more_than_its_share_until_the_others_have_had_their_time() -> None:
    asked: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        await asyncio.sleep(5)
        raise AssertionError("nobody waits so long")

    router = respx.Router()
    router.route().mock(side_effect=answer)
    probe = ScriptedProbe(down=[ONE, TWO, THREE])
    resolver = ScriptedResolver(ONE, TWO, THREE)
    async with balanced(router, resolver, probe) as (balancer, client), asyncio.TaskGroup() as group:
        waiting = [group.create_task(client.get("/")) for _ in range(60)]
        await eventually(lambda: balancer.queued == 60)
        probe.down.discard(ONE)
        await eventually(lambda: len(asked) == 20)
        assert balancer.queued == 40
        await eventually(lambda: len(asked) == 60)
        assert {it.url.host for it in asked} == {ONE.host}
        for it in waiting:
            it.cancel()


async def test_wait_that_is_too_long_ends_with_the_reason(router: respx.Router) -> None:
    async with balanced(router, ScriptedResolver(), queue_timeout=0.05) as (_, client):
        response = await client.get("/")
    assert response.status_code == 503
    assert response.headers["X-Balancer-Error"] == "no_member"
    assert response.headers["Retry-After"] == "1"
    assert response.text.startswith("503 no member became available")


async def test_refused_connection_moves_any_request_to_another_member(router: respx.Router) -> None:
    router.routes.clear()
    router.route(host=ONE.host).mock(side_effect=httpx.ConnectError("connection refused"))
    router.route(host=TWO.host).respond(text=TWO.host)
    async with balanced(router, ScriptedResolver(ONE, TWO), ScriptedProbe()) as (balancer, client):
        await size(balancer, 2)
        assert (await client.post("/", content=b"once")).text == TWO.host
        assert router.calls.last.request.content == b"once"


async def test_attempt_that_began_before_a_member_came_up_says_nothing_of_it(router: respx.Router) -> None:
    """A container's address is given to the next one at once, while connections to the first still time out."""
    attempts: list[asyncio.Future[httpx.Response]] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        attempts.append(asyncio.get_running_loop().create_future())
        return await attempts[-1]

    router.routes.clear()
    router.route().mock(side_effect=answer)
    probe = ScriptedProbe()
    async with balanced(router, ScriptedResolver(ONE), probe) as (balancer, client):
        await size(balancer, 1)
        waiting = asyncio.create_task(client.post("/", content=b"once"))
        await eventually(lambda: len(attempts) == 1)
        probe.down.add(ONE)
        await size(balancer, 0)
        probe.down.clear()
        await size(balancer, 1)
        (member,) = balancer.membership.available
        up_since = member.since
        attempts[0].set_exception(httpx.ConnectTimeout("no connection within 1 s"))
        await eventually(lambda: len(attempts) == 2)
        assert (member.state, member.since) == (State.UP, up_since)
        attempts[1].set_result(httpx.Response(200))
        assert (await waiting).status_code == 200


async def test_post_that_may_have_arrived_is_not_sent_again(router: respx.Router) -> None:
    router.routes.clear()
    router.route().mock(side_effect=httpx.ReadError("reset"))
    async with balanced(router, ScriptedResolver(ONE, TWO)) as (balancer, client):
        await size(balancer, 2)
        response = await client.post("/", content=b"once")
        assert (response.status_code, response.headers["X-Balancer-Error"]) == (502, "member_failed")
        assert router.calls.call_count == 1


async def test_get_whose_connection_died_is_sent_once_more_elsewhere(router: respx.Router) -> None:
    router.routes.clear()
    router.route(host=ONE.host).mock(side_effect=httpx.ReadError("reset"))
    router.route(host=TWO.host).respond(text=TWO.host)
    async with balanced(router, ScriptedResolver(ONE, TWO)) as (balancer, client):
        await size(balancer, 2)
        assert (await client.get("/")).text == TWO.host


@pytest.mark.parametrize(
    ("error", "fault", "sent"),
    [
        (httpx.ConnectError("refused"), ConnectFailed, False),
        (httpx.ConnectTimeout("slow"), ConnectFailed, False),
        (httpx.PoolTimeout("full"), ConnectFailed, False),
        (httpx.ReadTimeout("silent"), ResponseTimeout, True),
        (httpx.WriteTimeout("deaf"), ResponseTimeout, True),
        (httpx.ReadError("reset"), ConnectionDied, True),
        (httpx.WriteError("reset"), ConnectionDied, True),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), ConnectionDied, True),
        (httpx.RemoteProtocolError("illegal status line"), ProtocolViolation, True),
    ],
)
async def test_httpx_errors_become_typed_faults(error: Exception, fault: type[UpstreamError], sent: bool) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(fail))
    with pytest.raises(fault) as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", []))
    assert caught.value.sent is sent
    await upstream.close()


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/greeting?name=a%20b", "/greeting", b"name=a%20b"),
        (b"/a%2Fb/../c", None, b""),
        (b"//x", "//x", b""),
        # They have no place in a URL of httpx.
        (b"*", "/", b""),
        (b"http://shop.example/x", "/", b""),
        (b"/\xff", "/", b""),
        (b"/" + b"x" * 70_000, "/", b""),
    ],
    ids=lambda it: str(it)[:20],
)
async def test_transport_sees_the_path_in_the_url_and_the_target_as_it_came(
    target: bytes, path: str | None, query: bytes
) -> None:
    """Mocks route by the URL, and so do transports that are not made of httpcore."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(answer))
    response = await upstream.send(ONE, UpstreamRequest("GET", target, [(b"host", b"apps")]))
    await response.close()
    await upstream.close()
    (request,) = seen
    assert request.extensions["target"] == target
    assert (request.url.host, request.url.query) == (ONE.host, query)
    assert path is None or request.url.path == path


@pytest.mark.parametrize("error", [httpx.RemoteProtocolError, httpx.ConnectError, httpx.ReadTimeout])
async def test_quote_of_what_a_member_has_sent_is_one_line(error: type[httpx.TransportError]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error("illegal status line: " + "x" * 100_000)

    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(fail))
    with pytest.raises(UpstreamError, match="illegal status line: xxx") as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", []))
    assert len(str(caught.value)) == WORDS_MAX
    await upstream.close()


async def test_exception_that_is_the_cause_of_its_own_context_is_seen_through() -> None:
    error, other = httpx.ConnectTimeout("too slow"), httpx.ConnectError("refused")
    error.__cause__, other.__cause__ = other, error
    router = respx.Router()
    router.route().mock(side_effect=error)
    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(router.async_handler))
    with pytest.raises(ConnectFailed, match="too slow"):
        await upstream.send(ONE, UpstreamRequest("GET", b"/", [], None))
    await upstream.close()


async def test_white_space_around_a_value_of_a_transports_response_is_left_out() -> None:
    def padded(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=[(b"X-A", b"\t a \t"), (b"X-B", b" ")])

    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(padded))
    response = await upstream.send(ONE, UpstreamRequest("GET", b"/", [(b"host", b"a")]))
    assert {(b"x-a", b"a"), (b"x-b", b"")} <= set(response.headers)
    await response.close()
    await upstream.close()


async def test_request_that_cannot_be_written_is_the_clients_fault() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("Illegal header value")

    upstream = HttpxUpstream(TIMEOUTS, lambda: httpx.MockTransport(fail))
    with pytest.raises(Refusal) as caught:
        await upstream.send(ONE, UpstreamRequest("GET", b"/", []))
    assert (caught.value.status, caught.value.token) == (400, "malformed_request")
    await upstream.close()


async def test_forgotten_members_transport_closes_after_its_last_exchange() -> None:
    class Closable(httpx.MockTransport):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    transport = Closable(lambda request: httpx.Response(200, text="late"))
    upstream = HttpxUpstream(TIMEOUTS, lambda: transport)
    response = await upstream.send(ONE, UpstreamRequest("GET", b"/", []))
    upstream.forget(ONE)
    assert not transport.closed
    assert await response.read() == (b"late", True)
    assert await response.read() == (b"", False)
    await response.close()
    await upstream.close()
    assert transport.closed
