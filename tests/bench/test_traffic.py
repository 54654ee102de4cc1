"""Requests of the bench's loads vary as those of clients do."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from pathlib import Path
from random import Random

import pytest

from bench import traffic
from bench.upstreams import BODIES

BENCH = Path(traffic.__file__).parent


def sent(kind: str, count: int = 5000) -> list[bytes]:
    return list(itertools.islice(traffic.requests(kind, "127.0.0.1:80", traffic.FIRST), count))


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("kind", list(traffic.KINDS))
def test_no_two_requests_are_alike(kind: str) -> None:
    requests = sent(kind)
    assert len(set(requests)) == len(requests)


def test_every_measurement_begins_with_numbers_of_its_own_and_with_the_same_template() -> None:
    first, second = traffic.start(), traffic.start()
    assert second - first == traffic.STRIDE
    assert first % traffic.TEMPLATES == second % traffic.TEMPLATES == 0


@pytest.mark.parametrize("varied", ["Referer", "Cookie"])
def test_a_browser_s_request_has_ten_headers_of_which_these_differ_each_time(varied: str) -> None:
    found = [headers_of(request) for request in sent("browser")]
    assert {len(headers) for headers in found} == {10}
    assert len({headers[varied] for headers in found}) == len(found)


def test_browsers_ask_for_bodies_of_all_sizes_by_turns_under_other_targets_each_time() -> None:
    targets = [request.split(b" ", 2)[1].decode() for request in sent("browser")]
    sizes = [target.split("/")[2] for target in targets]
    assert sizes[:3] == list(BODIES)
    assert all(sizes[at] == sizes[at % 3] for at in range(len(sizes)))
    assert len(set(targets)) == len(targets)


def test_a_post_of_an_api_is_json_of_300_bytes_with_a_token_of_its_own() -> None:
    requests = sent("api")
    bodies = [request.partition(b"\r\n\r\n")[2] for request in requests]
    assert {len(body) for body in bodies} == {traffic.API_BODY}
    assert len({json.loads(body)["id"] for body in bodies}) == len(bodies)
    headers = [headers_of(request) for request in requests]
    assert {one["Content-Length"] for one in headers} == {str(traffic.API_BODY)}
    assert len({one["Authorization"] for one in headers}) == len(requests)


def test_a_proxy_in_front_says_for_whom_it_asks() -> None:
    found = [headers_of(request) for request in sent("proxied")]
    assert len({headers["X-Forwarded-For"] for headers in found}) > traffic.TEMPLATES / 2
    assert len({headers["X-Request-ID"] for headers in found}) == len(found)
    assert {headers["X-Forwarded-Proto"] for headers in found} == {"https"}
    assert {len(headers["X-Request-ID"]) for headers in found} == {32}


@pytest.mark.parametrize("kind", list(traffic.KINDS))
def test_the_length_of_a_template_is_that_of_its_requests(kind: str) -> None:
    template = traffic.KINDS[kind](Random(2), "h", 0)
    assert traffic.length(template) == len(template.replace(traffic.NUMBER, str(traffic.FIRST)))


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("kind", list(traffic.KINDS))
def test_wrk_sends_what_the_pacer_sends(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        file = tmp_path / "templates"
        file.write_bytes(traffic.written(traffic.templates(kind, host)))
        arguments = ["GET", "0", "templates", str(file), str(traffic.FIRST)]
        wrk = ["wrk", "--threads=1", "--connections=1", "--duration=1s", f"--script={BENCH / 'wrk.lua'}"]
        with subprocess.Popen([*wrk, f"http://{host}/", "--", *arguments], stdout=subprocess.DEVNULL) as process:
            listener.settimeout(10)
            received = first_requests(listener, 5)
            process.wait(10)
    # wrk makes the first one itself, to look at it.
    expected = itertools.islice(traffic.requests(kind, host, traffic.FIRST), 1, 6)
    assert received == list(expected)


def first_requests(listener: socket.socket, count: int) -> list[bytes]:
    """So many requests of the connection that sends some: wrk tries one before it starts."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            found: list[bytes] = []
            while len(found) < count and (data := connection.recv(65536)):
                found.append(data)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            if found:
                return found
