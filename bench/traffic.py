"""Requests as clients send them, no two of them alike: one source for wrk.lua and for the pacer.

A load that repeats its bytes measures caches: heads of browsers differ from one request to the next in target, cookie
and referer, and between users in agent and language. A ``Traffic`` is a number of templates, which requests take by
turns; each has places where the number of the request goes. Numbers have ten digits, so that lengths are those of the
template, and go on from one measurement to the next, so that no request of a run comes twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from random import Random

from bench.upstreams import BODIES

# Where the number of a request goes, and what ends a template, in the file that wrk.lua reads.
NUMBER, END = "\0", "\1"
# A multiple of the number of bodies, which come by turns.
TEMPLATES = 240
FIRST = TEMPLATES * 4_200_000
# More requests than a measurement of seconds sends.
STRIDE = TEMPLATES * 5000
API_BODY = 300

AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
    "Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 "
    "Mobile/15E148 Safari/604.1",
)
LANGUAGES = ("en-US,en;q=0.5", "pt-BR,pt;q=0.9,en;q=0.8", "de,en-US;q=0.7,en;q=0.3", "fr-FR,fr;q=0.9", "ja")
ACCEPTED = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    "*/*",
)
SECTIONS = ("articles", "products/shoes", "search", "users", "news/2026", "static/images", "blog/archive")

Headers = list[tuple[str, str]]


def browser(rng: Random, host: str, place: int) -> str:
    """GET with ten headers; another target, cookie and referer each time."""
    target, headers = _browser(rng, host, place)
    return _head("GET", target, headers)


def small(rng: Random, host: str, place: int) -> str:
    """The same for the smallest body alone."""
    target, headers = _browser(rng, host, 0)
    return _head("GET", target, headers)


def proxied(rng: Random, host: str, place: int) -> str:
    """The same from a proxy in front of the balancer, which says on whose behalf it asks, and under which id."""
    target, headers = _browser(rng, host, place)
    address = ".".join(str(rng.randrange(1, 255)) for _ in range(4))
    headers += [
        ("X-Forwarded-For", address),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.example.com"),
        ("X-Request-ID", f"{rng.getrandbits(88):022x}{NUMBER}"),
    ]
    return _head("GET", target, headers)


def _browser(rng: Random, host: str, place: int) -> tuple[str, Headers]:
    size = list(BODIES)[place % len(BODIES)]
    section, came_from = rng.choice(SECTIONS), rng.choice(SECTIONS)
    cookie = f"session={rng.getrandbits(64):016x}{NUMBER}; theme={rng.choice(['dark', 'light'])}; _ga=GA1.1.{NUMBER}"
    return f"/browser/{size}/{section}/{NUMBER}?page={rng.randrange(1, 40)}", [
        ("Host", host),
        ("Connection", "keep-alive"),
        ("User-Agent", rng.choice(AGENTS)),
        ("Accept", rng.choice(ACCEPTED)),
        ("Accept-Language", rng.choice(LANGUAGES)),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Referer", f"https://www.example.com/{came_from}/{NUMBER}"),
        ("Cookie", cookie),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Site", "same-origin"),
    ]


def api(rng: Random, host: str, place: int) -> str:
    """POST of 300 bytes of JSON with a bearer token, each different."""
    token = f"{rng.getrandbits(256):064x}.{rng.getrandbits(256):064x}{NUMBER}"
    item = {"id": 0, "customer": rng.randrange(10**6, 10**7), "items": [rng.randrange(1000) for _ in range(8)]}
    body = json.dumps(item | {"note": ""}).replace('"id": 0', f'"id": {NUMBER}')
    body = body[:-2] + "x" * (API_BODY - length(body)) + body[-2:]
    headers = [
        ("Host", host),
        ("User-Agent", f"orders-client/2.{place % 10}"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "gzip"),
        ("Authorization", f"Bearer {token}"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(API_BODY)),
    ]
    return _head("POST", f"/api/orders/{rng.randrange(100)}", headers) + body


def _head(method: str, target: str, headers: Headers) -> str:
    return f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"


KINDS: dict[str, Callable[[Random, str, int], str]] = {
    "browser": browser,
    "small": small,
    "proxied": proxied,
    "api": api,
}
_measurements = itertools.count()


def templates(kind: str, host: str) -> list[str]:
    """What the requests of a kind are made from; the same in every run."""
    rng = Random(1)
    return [KINDS[kind](rng, host, place) for place in range(TEMPLATES)]


def length(template: str) -> int:
    """Bytes of a request that is made from it."""
    return len(template) + template.count(NUMBER) * (len(str(FIRST)) - len(NUMBER))


def start() -> int:
    """The number of the first request of another measurement."""
    return FIRST + next(_measurements) * STRIDE


def requests(kind: str, host: str, first: int) -> Iterator[bytes]:
    """The requests from the ``first`` on, without end."""
    made = [template.replace("%", "%%").replace(NUMBER, "%(n)d").encode() for template in templates(kind, host)]
    for number in itertools.count(first):
        yield made[number % len(made)] % {b"n": number}


def written(parts: Iterable[str]) -> bytes:
    """Templates as wrk.lua reads them."""
    return "".join(part + END for part in parts).encode()
