from __future__ import annotations

import pytest

from balancer.config.settings import Settings
from balancer.errors import Refusal
from balancer.http.validation import OPTIONS_MAX, check, check_passed


@pytest.mark.parametrize(("method", "status"), [(b"CONNECT", 501), (b"TRACE", 405)])
def test_refused_method_leaves_nothing_behind(method: bytes, status: int) -> None:
    refusals = []
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            check(method, b"/", [(b"host", b"a")], "1.1", 0, Settings())
        refusals.append(caught.value)
    assert [it.status for it in refusals] == [status] * 2
    # An exception that is raised again keeps the frames of the time before, and so what they have in hand.
    assert refusals[0] is not refusals[1]


@pytest.mark.parametrize("fields", [1, 3, OPTIONS_MAX])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_connection_has_a_bound_over_all_its_fields(fields: int, version: str) -> None:
    options = [b"x-%d" % number for number in range(OPTIONS_MAX)]
    values = [b",".join(options[number::fields]) for number in range(fields)]
    head = [(b"host", b"a"), *((b"connection", it) for it in values)]
    check(b"GET", b"/", head, version, 0, Settings())
    check_passed(head)
    for judge in (lambda it: check(b"GET", b"/", it, version, 0, Settings()), check_passed):
        with pytest.raises(Refusal, match="Connection has 33 options, and may have 32") as caught:
            judge([*head, (b"connection", b"close")])
        assert (caught.value.status, caught.value.token) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("values", "version", "closes"),
    [
        ([b"Close"], "1.1", True),
        ([b"x", b" close "], "1.1", True),
        ([b"keep-alive"], "1.1", False),
        ([b""], "1.1", False),
        ([], "1.1", False),
        ([b"x, Keep-Alive"], "1.0", False),
        ([b"close"], "1.0", True),
        ([], "1.0", True),
    ],
)
def test_connection_says_whether_the_request_is_the_last(values: list[bytes], version: str, closes: bool) -> None:
    head = [(b"host", b"a"), *((b"connection", it) for it in values)]
    assert check(b"GET", b"/", head, version, 0, Settings())[1] is closes


AGREE = [
    (b"http://a/", b"A"),
    (b"http://A:080/", b"a"),
    (b"http://a:/", b"a:80"),
    (b"https://a/", b"a:443"),
    (b"HTTPS://a:443/", b"a"),
    (b"http://[::A]/", b"[::a]:80"),
    (b"http://a:81/", b"a:81"),
]
DIFFER = [
    (b"http://a/", b"b"),
    (b"http://a/", b"a.b"),
    (b"http://a/", b"a."),
    (b"http://a/", b"a:443"),
    (b"https://a/", b"a:80"),
    (b"http://a:0/", b"a"),
    (b"http://a:81/", b"a"),
    (b"http://[::1]/", b"[::1]:1"),
    (b"http://a:65616/", b"a:80"),
]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(("target", "host"), AGREE)
def test_url_of_the_same_host_is_taken(target: bytes, host: bytes, version: str) -> None:
    request, _ = check(b"GET", target, [(b"host", host)], version, 0, Settings())
    assert request.target == b"/"
    assert request.headers == [(b"host", target.split(b"/")[2])]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(("target", "host"), DIFFER)
def test_url_of_another_host_is_refused(target: bytes, host: bytes, version: str) -> None:
    with pytest.raises(Refusal, match="the request target and Host name different hosts") as caught:
        check(b"GET", target, [(b"host", host)], version, 0, Settings())
    assert (caught.value.status, caught.value.token) == (400, "malformed_request")


def test_url_of_a_request_without_host_counts() -> None:
    request, _ = check(b"GET", b"http://b/", [], "1.0", 0, Settings())
    assert (request.host, request.headers) == (b"b", [(b"host", b"b")])
