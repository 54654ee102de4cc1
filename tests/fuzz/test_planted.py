"""The judges of the newer targets: each finds a fault that is put where it looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

import balancer.admin.actions
import balancer.admin.app
import balancer.admin.responses
import balancer.discovery.dns_message
import balancer.frontend.http2_connection
import tests.fuzz.proxy
from balancer.admin.auth import TOKEN as TOKEN_NAME
from balancer.discovery.dns_message import Reply
from balancer.dispatch.replay import ReplayableBody
from balancer.frontend.http2_connection import Http2Connection
from balancer.frontend.http2_stream import Http2Stream
from balancer.http.proxy_protocol import Header, parse
from tests.fuzz import http2
from tests.fuzz.targets import load
from tests.support.http2_reader import ServerFrames, frame

Patch = Callable[[pytest.MonkeyPatch], None]


def is_found(target: str, words: str) -> bool:
    """Whether one of the seeds is enough to find it."""
    module = load(target)
    play = module.player()
    return any(words in found for seed in module.seeds() for found in play(seed))


def header_that_is_too_long(patch: pytest.MonkeyPatch) -> None:
    def longer(data: bytes) -> Header | None:
        found = parse(data)
        return found and Header(found.source, found.size + 1)

    patch.setattr(tests.fuzz.proxy, "parse", longer)


def source_that_is_another(patch: pytest.MonkeyPatch) -> None:
    def other(data: bytes) -> Header | None:
        found = parse(data)
        return found and Header("192.0.2.1", found.size)

    patch.setattr(tests.fuzz.proxy, "parse", other)


def address_that_is_left_out(patch: pytest.MonkeyPatch) -> None:
    packed = Reply.packed
    patch.setattr(Reply, "packed", lambda self, record: packed(self, record)[1:])


def exception_of_another_kind(patch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Any:
        raise RuntimeError("a bug")

    patch.setattr(balancer.discovery.dns_message, "_records", fail)


def action_of_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balancer.admin.actions, "deny", lambda settings, headers: None)


def action_under_any_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balancer.admin.responses, "deny_host", lambda settings, host: None)


def problem_in_words(patch: pytest.MonkeyPatch) -> None:
    def words(status: int, *arguments: object) -> Any:
        return PlainTextResponse("no", status)

    patch.setattr(balancer.admin.app, "problem", words)


def setting_with_its_secret(patch: pytest.MonkeyPatch) -> None:
    rows = [("BALANCER_OTEL_ENDPOINT", f"http://user:{load('admin').PASSWORD}@collector/", TOKEN_NAME)]
    patch.setattr("balancer.config.settings.Settings.rows", lambda self: rows)


def request_that_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balancer.frontend.http2_connection, "check_http2", lambda *arguments: None)


def exception_that_escapes(patch: pytest.MonkeyPatch) -> None:
    def fail(self: Http2Connection, event: object) -> None:
        raise RuntimeError("a bug")

    patch.setattr(Http2Connection, "handle_rst_stream", fail)


def answer_of_another(patch: pytest.MonkeyPatch) -> None:
    send = Http2Stream.send

    async def other(self: Http2Stream, message: Any) -> None:
        await send(self, {**message, "body": b"x" * len(message["body"])} if message.get("body") else message)

    patch.setattr(Http2Stream, "send", other)


def answer_that_never_comes(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Http2Stream, *arguments: object) -> None:
        await asyncio.Event().wait()

    patch.setattr(Http2Stream, "serve", wait)


def body_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplayableBody, "length", property(lambda self: None, lambda self, length: None))


PLANTED: list[tuple[str, Patch, str]] = [
    ("proxy", header_that_is_too_long, "it is no header"),
    ("proxy", source_that_is_another, "another source"),
    ("dns", address_that_is_left_out, "other addresses than those of dnspython"),
    ("admin", action_of_anybody, "an action without a token"),
    ("admin", action_of_anybody, "an action from another machine"),
    ("admin", action_of_anybody, "an action from another site"),
    ("admin", action_under_any_host, "an action under a foreign host"),
    ("admin", problem_in_words, "a problem that is not JSON"),
    ("admin", setting_with_its_secret, "a secret is told"),
    ("http2", request_that_is_not_checked, "raised"),
    ("http2", exception_that_escapes, "Http2Connection: raised: RuntimeError('a bug')"),
    ("http2", answer_that_never_comes, "a request has no answer and no end"),
    ("http2", body_that_is_not_counted, "a member got bytes that belong to no request"),
    ("http2", answer_of_another, "got another response than its member gave"),
]


@pytest.mark.parametrize(("target", "fault", "words"), PLANTED, ids=[f"{it[0]}-{it[1].__name__}" for it in PLANTED])
def test_judge_finds_what_must_not_be(target: str, fault: Patch, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert is_found(target, words)


def test_exceptions_of_the_dns_reader_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exception_of_another_kind(monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        is_found("dns", "")


def test_frames_of_a_server_are_read_strictly() -> None:
    frames = ServerFrames()
    frames.asked.add(1)
    settings, ended = frame(4, 0, 0), frame(1, 0x5, 1, b"\x88")
    frames.feed(settings + frame(1, 0x4, 1, b"\x88") + frame(0, 1, 1, b"ok"))
    assert frames.faults == []
    assert (frames.responses[1].status, frames.responses[1].body, frames.responses[1].ended) == (200, b"ok", True)
    for wrong in (
        frame(6, 0, 0, bytes(8)),
        settings + frame(0, 0, 3, b"x"),
        settings + frame(0, 0, 1, b"x"),
        settings + ended + frame(0, 1, 1, b"x"),
        settings + frame(1, 0x4, 1, b"\x88") * 2,
        settings + frame(1, 0x5, 1, b"\0\1x\1y"),
        settings + frame(1, 0x5, 1, b"\x88\0\x0aconnection\5close"),
        settings + frame(1, 0, 1, b"\x88") + frame(0, 0, 1),
        settings + frame(5, 0, 1, b"x"),
        settings + frame(8, 0, 1, bytes(4)),
    ):
        again = ServerFrames()
        again.asked.add(1)
        again.feed(wrong)
        assert again.faults, wrong


def test_fields_of_a_case_are_lines() -> None:
    assert http2.fields(b":method: GET\nx:y\n:\nz") == [(b":method", b"GET"), (b"x", b"y"), (b":", b""), (b"z", b"")]
