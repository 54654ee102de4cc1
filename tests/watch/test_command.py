"""``balancer watch`` as a user runs it, against servers that fail in known ways."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from balancer.demo.system import free_port
from tests.support.terminal import Terminal, screen
from tests.support.wire import LIMIT, OK, Connection, Member, balance, eventually, keep_answering


async def watch(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error. Raises TimeoutError if it goes on and on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balancer", "watch", *arguments, env=os.environ | environ, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


async def objects(*arguments: str) -> tuple[int | None, list[dict[str, Any]], dict[str, Any]]:
    """Exit status, and what ``--json`` says of each request and in all."""
    status, out, err = await watch(*arguments, "--json")
    assert err == ""
    *requests, last = [json.loads(line) for line in out.splitlines()]
    assert list(last) == ["summary"]
    return status, requests, last["summary"]


def url(member: Member) -> str:
    return f"http://{member.address}/"


def answer(text: str, status: str = "200 OK", *fields: str) -> bytes:
    head = "".join(f"{it}\r\n" for it in fields)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{head}\r\n{text}".encode()


def in_turn(*answers: bytes | None) -> Callable[[Connection], Any]:
    """A script that gives each request the next of these answers, over and over; None resets the connection."""
    turns: Iterator[bytes | None] = itertools.cycle(answers)

    async def script(connection: Connection) -> None:
        await connection.head()
        piece = next(turns)
        if piece is None:
            connection.reset()
        else:
            await connection.send(piece)

    return script


async def test_scripts_get_an_object_for_each_request_and_one_that_sums_up() -> None:
    turns = in_turn(
        answer("Hello World I am a! 1 times.\n"),
        answer("503 nobody\n", "503 Service Unavailable", "X-Balancer-Error: no_member"),
        answer("broken\n", "500 Internal Server Error"),
        answer("Hello World I am b! 2 times.\n"),
        None,
    )
    async with Member(turns) as member:
        status, requests, summary = await objects(url(member), "--rate", "50", "--count", "10")
    assert status == 1
    fields = ("worker", "status", "error", "failure")
    assert all(list(it) == ["time", "worker", "status", "duration_ms", "error", "failure"] for it in requests)
    reset = "Connection reset by peer"
    assert Counter(tuple(it[name] for name in fields) for it in requests) == {
        ("a", 200, None, None): 2,
        ("b", 200, None, None): 2,
        (None, 503, "no_member", "503 no_member"): 2,
        (None, 500, None, "500 broken"): 2,
        (None, None, None, reset): 2,
    }
    assert [it["time"] for it in requests] == sorted(it["time"] for it in requests)
    assert all(datetime.fromisoformat(it["time"]).utcoffset() == timedelta() for it in requests)
    assert {it: summary[it] for it in ("requests", "answered", "failed")} == {
        "requests": 10,
        "answered": 4,
        "failed": 6,
    }
    assert summary["longest_ms"] == max(it["duration_ms"] for it in requests)
    assert [(it["worker"], it["requests"], it["share"]) for it in summary["workers"]] == [("a", 2, 0.5), ("b", 2, 0.5)]
    assert {it["failure"]: it["requests"] for it in summary["failures"]} == {
        "503 no_member": 2,
        "500 broken": 2,
        reset: 2,
    }


async def test_scripts_get_nothing_else_when_all_is_well() -> None:
    async with Member() as member, balance(member) as running:
        status, requests, summary = await objects(running.url, "--rate", "50", "--count", "3")
    assert (status, len(requests), summary["failed"], summary["failures"]) == (0, 3, 0, [])


async def test_stall_is_reported_with_its_length() -> None:
    async def late(connection: Connection) -> None:
        await connection.head()
        await asyncio.sleep(0.5)
        await connection.send(OK)

    async with Member(late) as member:
        status, requests, summary = await objects(url(member), "--rate", "20", "--count", "4")
    assert status == 0
    assert summary["longest_stall_ms"] >= 500
    assert summary["longest_stall_ms"] == pytest.approx(max(it["duration_ms"] for it in requests), abs=100)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_answer_that_trickles_is_given_up_like_one_that_does_not_come(sent: bytes) -> None:
    async def trickling(connection: Connection) -> None:
        await connection.head()
        await connection.send(sent)
        while True:
            await connection.send(b"X: y\r\n" if sent else b"")
            await asyncio.sleep(0.05)

    async with Member(trickling) as member:
        status, out, err = await watch(url(member), "--count", "1", "--timeout", "0.3")
    assert (status, err) == (1, "")
    assert "failed once: no complete answer within 0.3 s" in out


async def test_watch_of_an_address_without_a_server_counts_a_failure() -> None:
    status, (request,), summary = await objects(f"http://127.0.0.1:{free_port()}/", "--count", "1")
    assert status == 1
    assert request["failure"].startswith("Connect")
    assert "attempts" not in request["failure"]
    assert summary["longest_stall_ms"] > 0


async def test_method_and_headers_are_sent_as_given() -> None:
    given = ["X-Tenant: ä:b", "Host:shop.example", "X-Twice:1", "X-Twice:2", "User-Agent:me"]
    flags = [it for header in given for it in ("--header", header)]

    async def as_it_came(connection: Connection) -> None:
        await connection.until(b"\r\n\r\n")
        await connection.send(OK)

    async with Member(as_it_came) as member:
        status, _, _ = await watch(url(member), "--count", "1", "--method", "post", *flags)
    assert status == 0
    (head,) = member.received
    request, *fields = head.decode().split("\r\n")
    assert request == "POST / HTTP/1.1"
    wanted = {"X-Tenant: ä:b", "Host: shop.example", "X-Twice: 1", "X-Twice: 2", "User-Agent: me"}
    assert {it for it in fields if it.lower().startswith(("x-", "host:", "user-agent:"))} == wanted
    assert sum(it in wanted for it in fields) == len(wanted)


async def test_head_has_an_answer_without_a_body() -> None:
    async def without_body(connection: Connection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")

    async with Member(without_body) as member:
        status, (request,), _ = await objects(url(member), "--count", "1", "--method", "HEAD")
    assert (status, request["worker"]) == (0, "(empty answer)")


async def test_each_request_has_a_connection_of_its_own_unless_they_are_kept() -> None:
    async with Member() as member:
        status, _, _ = await watch(url(member), "--count", "5", "--rate", "10")
        assert (status, len(member.connections)) == (0, 5)
    async with Member() as member:
        status, _, _ = await watch(url(member), "--count", "5", "--rate", "10", "--keepalive")
        # One, unless this machine was so busy that a request met the next.
        assert (status, len(member.connections) < 5) == (0, True)
        assert b"".join(member.received).count(b"GET / HTTP/1.1\r\n") == 5


async def test_cookies_are_not_kept() -> None:
    async with Member(in_turn(answer("ok", "200 OK", "Set-Cookie: member=a; Path=/"))) as member:
        await watch(url(member), "--count", "3", "--rate", "10")
    assert len(member.received) == 3
    assert not [it for it in member.received if b"cookie" in it.lower()]


async def test_long_answer_is_kept_to_its_beginning() -> None:
    body = b"I am a!\n" + b"x" * 10_000_000
    async with Member(in_turn(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)) as member:
        status, (request,), _ = await objects(url(member), "--count", "1")
    assert (status, request["worker"]) == (0, "a")


async def test_compressed_answer_is_read() -> None:
    body = gzip.compress(b"I am a!")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with Member(in_turn(head + body)) as member:
        _, (request,), _ = await objects(url(member), "--count", "1")
    assert request["worker"] == "a"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_it_with_the_summary(number: signal.Signals, arguments: list[str]) -> None:
    async with Member() as member:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "balancer", "watch", url(member), *arguments, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout
        await process.stdout.readline()
        process.send_signal(number)
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert (b'{"summary":{"requests":' if arguments else b" failed, median ") in out


@pytest.mark.parametrize("arguments", ["", "--json"])
async def test_reader_that_leaves_ends_it_without_a_complaint(arguments: str) -> None:
    async with Member() as member:
        command = f'"$0" -m balancer watch {url(member)} --rate 50 {arguments} | head -n 2'
        process = await asyncio.create_subprocess_exec("sh", "-c", command, sys.executable, stdout=PIPE, stderr=PIPE)
        out, err = await asyncio.wait_for(process.communicate(), 10)
    assert (len(out.splitlines()), err) == (2, b"")


async def test_url_that_only_looks_like_one_is_refused() -> None:
    status, out, err = await watch("http://999.1.1.1/")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"'http://999\.1\.1\.1/' cannot be used: .*\n", err)


async def test_forced_colours_do_not_make_a_picture_of_lines() -> None:
    async with Member() as member:
        status, out, _ = await watch(url(member), "--count", "1", FORCE_COLOR="1", TTY_COMPATIBLE="1")
    assert status == 0
    assert re.match(r" +\d+\.\d ms  ok\n1 request, 0 failed, ", out)
    assert "\x1b" not in out


async def test_sixty_workers_and_failures_are_drawn_on_a_terminal_without_scrolling_it() -> None:
    names = [f"worker-{number:02}" for number in range(1, 61)]
    refusal = answer("503 nobody\n", "503 Service Unavailable", "X-Balancer-Error: no_member")
    answers = [answer(f"I am {name}!") for name in names]
    async with (
        Member(in_turn(*answers, refusal)) as member,
        Terminal.running("watch", url(member), "--rate", "200") as terminal,
    ):
        text = await terminal.shows(lambda text: "60 workers;" in text and "failed 2 times" in text)
        assert text.startswith(f"GET {url(member)}\n● ●")
        shown = set(names) & set(text.split())
        assert len(shown) >= 39
        assert f"… {60 - len(shown)} more" in text
        assert re.search(r"median +[▁▂▃▄▅▆▇█]+ +≤ [\d.]+ ms\n", text)
        assert re.search(r"failed 2 times, .*: 503 no_member\n +\d\d:\d\d:\d\d  503 no_member, after [\d.]+ ms\n", text)
        assert {screen(it, 80, 24)[1] for it in terminal.pictures} == {0}
        terminal.resize(50, 12)
        await eventually(lambda: screen(terminal.pictures[-1], 50, 12)[1] == 0)
        smaller = len(terminal.pictures)
        await eventually(lambda: len(terminal.pictures) >= smaller + 3)
        assert {screen(it, 50, 12)[1] for it in terminal.pictures[smaller:]} == {0}
        text, _ = screen(terminal.pictures[-1], 50, 12)
        assert re.search(r"… \d+ more\n", text)
        assert re.search(r"\d+ requests, \d+ failed", text)
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 1
    assert "\x1b[?1049l" in terminal.rest, "the screen is as it was before"
    assert "\x1b[?25h" in terminal.rest, "and so is the cursor"
    assert re.search(r"\d+ requests, \d+ failed, median [^\n]*\r\n  in [^\n]*\r\n  worker-01: ", terminal.rest)
    assert re.search(r"  failed \d+ times: 503 no_member, ", terminal.rest)


async def test_worker_that_leaves_and_one_that_comes_are_seen_as_it_happens() -> None:
    script = in_turn(answer("I am a!"), answer("I am b!"))

    async def whatever_script_says(connection: Connection) -> None:
        await script(connection)

    async with (
        Member(whatever_script_says) as member,
        Terminal.running("watch", url(member), "--rate", "50") as terminal,
    ):
        await terminal.shows(lambda text: re.search(r"^a .* 50\.0%$.*^b .* 50\.0%$", text, re.M | re.S))
        script = in_turn(answer("I am b!"), answer("I am c!"))
        await terminal.shows(lambda text: re.search(r"^b .*^c .*^a .* last seen \d\d:\d\d:\d\d$", text, re.M | re.S))
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 0
    assert re.search(r"\n  a: \d+ \([\d.]+%\), last seen \d\d:\d\d:\d\d\r\n", terminal.rest)


async def test_stall_is_seen_while_it_lasts() -> None:
    script = keep_answering

    async def whatever_script_says(connection: Connection) -> None:
        await script(connection)

    async def silent(connection: Connection) -> None:
        await connection.reader.read()

    async with (
        Member(whatever_script_says) as member,
        Terminal.running("watch", url(member), "--rate", "20") as terminal,
    ):
        await terminal.shows(lambda text: re.search("^ok ", text, re.M))
        script = silent
        await terminal.shows(lambda text: re.search(r"; none for [1-9]\.\d s now$", text, re.M))


async def test_demo_is_drawn_on_a_terminal_and_leaves_its_summary() -> None:
    async with Terminal.running("demo", "--seconds", "3", "--port", str(free_port())) as terminal:
        await terminal.shows(lambda text: "workers wanted" in text and "worker-2" in text)
        assert await terminal.ended() == 0
    assert {screen(it, 80, 24)[1] for it in terminal.pictures} == {0}
    assert re.search(r"\d+ requests, 0 failed, .*\r\n.*\r\n  worker-1: ", terminal.rest)
