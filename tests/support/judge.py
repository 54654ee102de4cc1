"""What must not have happened in a world, whatever its clients and members did: ``judge`` finds it."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field

import httptools

from balancer.dispatch.retry import IDEMPOTENT
from balancer.http.headers import announces_close
from tests.support.reader import Fields, Message, Requests, Responses
from tests.support.world import RESPONSE_TIMEOUT, Client, Link, World

# Fields of a request, and of a response, that the balancer writes itself.
_WRITTEN = {
    b"host", b"connection", b"upgrade", b"te", b"transfer-encoding", b"forwarded", b"x-forwarded-for",
    b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"cdn-loop",
}  # fmt: skip
_WRITTEN_BACK = {b"connection", b"transfer-encoding", b"upgrade"}


class Violation(AssertionError):
    """The balancer did what it must never do."""


def finish(world: World) -> list[str]:
    """Bring a world to its end. Everything that must not be, in words."""
    found: list[str] = []
    world.peace()
    _let_all_be_answered(world)
    for client in world.clients:
        if unanswered := _unanswered(client):
            found.append(f"{client.host}: a request has no answer and the connection is open: {unanswered}")
    world.leave()
    found += leaks(world)
    world.close()
    found += world.trouble
    seen = requests_seen(world, found)
    if any("is not HTTP" in it for it in found):
        return found  # What its client got cannot be told from this.
    for client in world.clients:
        found += _judge_client(client, seen, world)
    return found


def check(world: World) -> None:
    """As ``finish``, but raises Violation."""
    if found := finish(world):
        raise Violation("\n".join(found))


def _let_all_be_answered(world: World) -> None:
    """Wait as long as there is something that a limit may still end; not so long that connections end of idleness."""
    for _ in range(4):
        if not any(map(_unanswered, world.clients)):
            return
        world.loop.wait(2 * RESPONSE_TIMEOUT + 1)


def _unanswered(client: Client) -> Message | None:
    """The first request that the client still waits to have answered."""
    if client.left or client.pipe.ended:
        return None
    got = client.got
    if got.tunnel is not None:
        return None
    whole, done = client.asked.whole, sum(it.complete for it in got.messages)
    return whole[done] if done < len(whole) else None


def leaks(world: World) -> list[str]:
    """What is left in a world that everybody has left, in words."""
    balancer = world.balancer
    members = balancer.membership.members.values()
    counts = {
        "requests in progress": balancer.proxy.active,
        "connections to members in use": balancer.upstream.active,  # type: ignore[attr-defined]
        "requests in flight": sum(it.in_flight for it in members),
        "requests held": len(balancer.dispatcher.queue),
        "client connections": len(world.front.connections),
    }
    return [f"{count} {what} when everything is over" for what, count in counts.items() if count]


@dataclass
class Seen:
    """A request that a member saw, and what came back for it."""

    request: Message
    link: Link
    stamp: int
    answer: Responses
    wire: bytes  # that answer as it came
    # What followed on the connection after a switch of protocols.
    after: bytes = b""

    @property
    def answered(self) -> bool:
        return bool(self.answer.messages and self.answer.messages[-1].complete)

    @property
    def sound(self) -> bool:
        """Whether httptools by itself finds a whole response in what came back, and nothing else, as h11 does."""
        if not self.answered or self.answer.error or self.request.method == b"HEAD":
            return False
        whole: list[None] = []
        return self._parses(whole) and len(whole) == 1

    @property
    def garbled(self) -> bool:
        """Whether httptools by itself finds something else than HTTP, or a switch of protocols unasked."""
        return not self._parses([], bool(self.request.values(b"upgrade")))

    def _parses(self, whole: list[None], may_switch: bool = False) -> bool:
        parser = httptools.HttpResponseParser(_Complete(whole))
        try:
            parser.feed_data(self.wire)
        except httptools.HttpParserUpgrade:
            return may_switch
        except httptools.HttpParserError:
            return False
        # Both parsers take chunks in HTTP/1.0, whose framing is faulty (RFC 9112 section 6.1).
        chunked = any(message.values(b"transfer-encoding") for message in self.answer.messages)
        return not (chunked and parser.get_http_version() == "1.0")


class _Complete:
    def __init__(self, whole: list[None]) -> None:
        self.on_message_complete = lambda: whole.append(None)


def requests_seen(world: World, found: list[str]) -> list[Seen]:
    """All requests that members saw, in the order in which they began."""
    everything: list[Seen] = []
    for link in world.links:
        everything += _seen_on(link, found)
    return sorted(everything, key=lambda it: it.stamp)


def _seen_on(link: Link, found: list[str]) -> list[Seen]:
    # What a member has never read it may have answered: that counts as seen.
    pipe, requests = link.pipe, Requests()
    written = bytes(pipe.received) + pipe.unread
    requests.feed(written)
    messages = requests.messages
    offsets = [it[0] for it in pipe.writes]
    starts = [pipe.writes[bisect_right(offsets, it.offset) - 1] for it in messages]
    seen: list[Seen] = []
    for index, request in enumerate(messages):
        last = index + 1 == len(messages)
        _, begin, stamp = starts[index]
        answer = Responses(lambda _, method=request.method: method)  # type: ignore[misc]
        wire = bytes(pipe.delivered[begin : None if last else starts[index + 1][1]])
        answer.feed(wire)
        it = Seen(request, link, stamp, answer, wire)
        seen.append(it)
        if answer.tunnel is not None:
            if b"upgrade" not in dict(request.fields) and not last:
                found.append("a connection was used again after a 101")
            answer.feed(b"" if last else bytes(pipe.delivered[starts[index + 1][1] :]))
            it.after = written[request.end :]
            return seen
        if answer.error and request.values(b"upgrade"):
            return seen  # It may be a tunnel, whose 101 the reference parser did not take for one.
        if last:
            if pipe.eof_delivered:
                answer.end()
        elif not answer.error:
            if len(answer.messages) != 1 or not answer.messages[0].complete or answer.begun:
                found.append(f"a member got {messages[index + 1]} while its answer was {answer.messages}")
            elif announces_close(answer.messages[0].fields):
                found.append(f"a member got {messages[index + 1]} on a connection that it had said it closes")
    if requests.error:
        found.append(f"a member got what is not HTTP ({requests.error}): {written!r}")
    elif requests.half_head:
        found.append(f"a member got bytes that belong to no request: {requests.half_head!r}")
    return seen


def _delivered(client: Client) -> Requests:
    """What reached the balancer: as a rule, everything that was sent."""
    if len(client.sent) == len(client.pipe.delivered):
        return client.asked
    asked = Requests()
    asked.feed(bytes(client.pipe.delivered))
    return asked


@dataclass
class _Client:
    """What can be said of one client: what it asked, what of that members saw, what it got."""

    client: Client
    asked: list[Message]
    # The balancer may have ended streams of events.
    going_away: bool = False
    attempts: dict[int, list[Seen]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def says(self, words: str) -> None:
        self.found.append(f"{self.client.host}: {words}")


def _judge_client(client: Client, everything: list[Seen], world: World) -> list[str]:
    reference = _delivered(client)
    it = _Client(client, reference.messages, world.going_away)
    seen = [it for it in everything if it.request.values(b"x-forwarded-for") == [client.host.encode()]]
    _match(it, seen)
    got = client.got
    if got.messages and _is_own(got.messages[-1]) and client.method(len(got.messages) - 1) == b"HEAD" and got.begun:
        it.says("a refusal of HEAD has a body")
    elif got.error:
        it.says(f"got what is not HTTP ({got.error}): {bytes(client.pipe.received)!r}")
    else:
        if got.half_head:
            it.says(f"got bytes that belong to no response: {got.half_head!r}")
        if client.pipe.ended == "eof":
            got.end()
        for index, response in enumerate(got.messages):
            _judge_response(it, index, response, got)
    return it.found


def _match(it: _Client, seen: list[Seen]) -> None:
    """Every request that a member saw is the one that was asked, or the next; or a repeat of an idempotent one."""
    index = -1
    for one in seen:
        later = [n for n in range(index + 1, len(it.asked)) if _same(it.asked[n], one.request)]
        before = it.attempts[index][-1] if index >= 0 else None
        again = before and _same(it.asked[index], one.request) and (before.garbled or not before.answered)
        # Of two requests in a row that are the same, a second attempt is the second one's, if the first must not be
        # repeated.
        possible = [index, *later] if again and (_repeatable(it.asked[index]) or not later) else later
        if not possible:
            it.says(f"a member got {one.request} that was not asked for there; {it.asked}")
            return
        fitting = [n for n in possible if not _beyond(one.request.fields, it.asked[n].fields, _WRITTEN)]
        index = (fitting or possible)[0]
        it.attempts.setdefault(index, []).append(one)
        asked = it.asked[index]
        if len(it.attempts[index]) > 1 and not _repeatable(asked):
            it.says(f"a request was sent twice: {asked}")
        if _is_websocket(asked):
            continue  # Its handshake is made anew.
        if extra := _beyond(one.request.fields, asked.fields, _WRITTEN):
            it.says(f"a member got fields that the client did not send: {extra}; {asked}")
        if len(one.request.values(b"host")) != 1:
            it.says(f"a member got a request without one Host: {one.request}")


def _repeatable(asked: Message) -> bool:
    return asked.method.decode() in IDEMPOTENT


def _same(asked: Message, seen: Message) -> bool:
    if asked.method != seen.method or _path(asked.target) != seen.target:
        return False
    if seen.complete:
        return asked.complete and asked.body == seen.body
    return asked.body.startswith(seen.body)


def _alike(one: Message, other: Message) -> bool:
    return (one.method, _path(one.target), one.complete, one.body) == (
        other.method, _path(other.target), other.complete, other.body,
    )  # fmt: skip


def _path(target: bytes) -> bytes:
    if url := re.fullmatch(rb"https?://[^/?#]+([/?].*)?", target, re.IGNORECASE | re.DOTALL):
        path = url[1] or b"/"
        return path if path.startswith(b"/") else b"/" + path
    return target


def _beyond(fields: Fields, known: Fields, written: set[bytes]) -> Fields:
    """The fields that are not among the known ones."""
    left = list(known)
    extra = []
    for one in fields:
        if one in left:
            left.remove(one)
        elif one[0] not in written:
            extra.append(one)
    return extra


def _judge_response(it: _Client, index: int, response: Message, got: Responses) -> None:
    client = it.client
    last = index + 1 == len(got.messages)
    if announces_close(response.fields) and (not last or got.begun):
        it.says(f"got more after the response that said close: {got.messages}")
    attempts = it.attempts.get(index)
    if not response.complete and not client.left and attempts and attempts[-1].sound:
        it.says(f"a response was not completed: {response}")
    if _is_own(response):
        if index > len(it.asked):
            it.says(f"got {len(got.messages)} responses to {len(it.asked)} requests")
        return
    # Of requests that are the same nobody can tell which one was answered by a member and which one by the balancer.
    alike = [n for n, asked in enumerate(it.asked) if _alike(asked, it.asked[index])] if index < len(it.asked) else []
    possible = [one for n in alike for one in it.attempts.get(n, ())] if len(alike) > 1 else (attempts or [])[-1:]
    faults = [_faults(it, index, response, one) for one in possible]
    if not possible and index < len(it.asked) and _is_websocket(it.asked[index]):
        return  # uvicorn refuses some by itself.
    if not possible:
        it.says(f"got a response to what no member saw: {response}; {it.asked}")
    elif all(faults):
        it.found += [f"{client.host}: {words}" for words in faults[0]]


def _faults(it: _Client, index: int, response: Message, seen: Seen) -> list[str]:
    """What is wrong with a response as the one to what a member saw, and answered."""
    answer, got = seen.answer, it.client.got
    if answer.tunnel is not None and response.status == 101:
        return _tunnel_faults(it, it.asked[index], seen, got)
    if not answer.messages:
        return [] if answer.error else [f"got a response that no member gave: {response}"]
    given = answer.messages[0]
    if response.status != given.status or not given.body.startswith(response.body):
        return [f"got {response} for {given}"]
    if answer.error:
        return []  # The reference parser is stricter there.
    if it.going_away and any(value.startswith(b"text/event-stream") for value in given.values(b"content-type")):
        return []
    if response.complete and not given.complete and not it.client.left:
        return [f"a response that its member did not complete looks complete: {response} for {given}"]
    if response.complete and response.body != given.body:
        return [f"a body was cut: {response} for {given}"]
    extra = _beyond(response.fields, given.fields, _WRITTEN_BACK)
    if extra and not _is_websocket(it.asked[index]):
        return [f"got fields that the member did not send: {extra}; {given}"]
    return []


def _tunnel_faults(it: _Client, asked: Message, seen: Seen, got: Responses) -> list[str]:
    if not asked.values(b"upgrade"):
        return ["protocols were switched unasked"]
    if _is_websocket(asked):
        return []  # Its frames are read and written anew.
    if not (seen.answer.tunnel or b"").startswith(got.tunnel or b""):
        return [f"a tunnel gave {got.tunnel!r} of {seen.answer.tunnel!r}"]
    if not bytes(it.client.pipe.delivered[asked.end :]).startswith(seen.after):
        return [f"a tunnel took {seen.after!r}"]
    return []


def _is_own(response: Message) -> bool:
    return bool(response.values(b"x-balancer-error"))


def _is_websocket(asked: Message) -> bool:
    return any(value.lower() == b"websocket" for value in asked.values(b"upgrade"))
