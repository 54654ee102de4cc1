"""Hooks made of functions, and requests whose answers show what hooks did."""

from __future__ import annotations

from collections.abc import Callable

from balancer.hooks import HookRequest, HookResponse, Hooks
from tests.support.messages import GET
from tests.support.wire import Connection


def request_hook(act: Callable[[HookRequest], object]) -> Hooks:
    class Made(Hooks):
        def on_request(self, request: HookRequest) -> None:
            act(request)

    return Made()


def response_hook(act: Callable[[HookRequest, HookResponse], object]) -> Hooks:
    class Made(Hooks):
        def on_response(self, request: HookRequest, response: HookResponse) -> None:
            act(request, response)

    return Made()


class Counting(Hooks):
    """Numbers requests for members, and responses for clients."""

    def __init__(self) -> None:
        self.requests = self.responses = 0

    def on_request(self, request: HookRequest) -> None:
        self.requests += 1
        request.headers.set("X-Number", str(self.requests))
        request.notes["number"] = self.requests

    def on_response(self, request: HookRequest, response: HookResponse) -> None:
        self.responses += 1
        response.headers.set("X-Request-ID", request.id)
        response.headers.set("X-Answer", f"{request.notes['number']}/{self.responses}")
        response.headers.remove("server")


def fields_of(head: bytes, name: bytes) -> list[bytes]:
    lines = [it.partition(b": ") for it in head.split(b"\r\n")]
    return [value for key, _, value in lines if key.lower() == name]


async def ask(client: Connection, request: bytes = GET) -> bytes:
    """The head of the response; its body is "ok"."""
    await client.send(request)
    head = await client.head()
    await client.exactly(2)
    return head


async def answer_like_nginx(connection: Connection) -> None:
    """With the same bytes each time."""
    while True:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 2\r\n\r\nok")
