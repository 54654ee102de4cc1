"""Heads of requests and of responses, which both lanes read. A case is the bytes of a head, of either kind."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fuzz.play import Play
from tests.support.corpus import MALFORMED, REQUESTS, RESPONSES
from tests.support.lanes import END, compare_request, compare_response

SIZE_MAX = 2048


def player() -> Play:
    return run


def run(data: bytes) -> list[str]:
    """Read a head in both lanes; where they differ, in words."""
    head = data.partition(END)[0] + END
    found = []
    for compare in (compare_request, compare_response):
        try:
            compare(head)
        except AssertionError as error:
            found.append(f"the lanes differ: {error}")
    return found


def seeds() -> Iterator[bytes]:
    for message in (*REQUESTS.values(), *MALFORMED.values(), *(response for response, _ in RESPONSES.values())):
        yield message.partition(END)[0]
