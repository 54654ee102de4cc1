from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from balancer.admin.auth import access, deny, deny_host
from balancer.config.settings import Settings
from balancer.types import Address

TOKEN = "correct-horse"
JSON = {"content-type": "application/json", "host": "localhost:9000"}
LOOPBACK = Settings(admin_bind=Address("127.0.0.1", 9000))
ANYWHERE = Settings(admin_bind=Address("0.0.0.0", 9000))
WITH_TOKEN = Settings(admin_bind=Address("0.0.0.0", 9000), admin_token=TOKEN)


def denied(settings: Settings, **headers: str | None) -> str:
    """The word of the denial, or "" if there is none."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {name: value for name, value in (JSON | named).items() if value is not None}
    denial = deny_host(settings, given.get("host")) or deny(settings, given)
    return denial.error if denial else ""


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1:9000", "127.8.8.8", "[::1]:9000", "LOCALHOST"]
)
def test_request_to_loopback_that_names_loopback_may_act(host: str) -> None:
    assert denied(LOOPBACK, host=host) == ""


@pytest.mark.parametrize(
    "host", ["rebound.example:9000", "127.0.0.1.example", "", "[::1", "10.0.0.1", "localhost@evil.example"]
)
def test_request_to_loopback_under_another_name_is_refused(host: str) -> None:
    assert denied(LOOPBACK, host=host) == "foreign_host"
    assert denied(Settings(admin_bind=LOOPBACK.admin_bind, admin_token=TOKEN), host=host) == "foreign_host"


def test_request_to_loopback_without_a_host_is_no_browsers() -> None:
    assert denied(LOOPBACK, host=None) == ""


def test_request_beyond_loopback_may_not_act_unless_a_token_is_set() -> None:
    denial = deny(ANYWHERE, JSON)
    assert denial
    assert (denial.status, denial.error) == (403, "no_token_set")
    assert denial.reason == "0.0.0.0:9000 is not on loopback, so this needs BALANCER_ADMIN_TOKEN, and it is not set"


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN}"])
def test_request_with_the_token_may_act_under_any_host(given: str) -> None:
    assert denied(WITH_TOKEN, authorization=given, host="balancer.example") == ""


@pytest.mark.parametrize("given", [None, "", TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é"])
def test_request_without_the_token_may_not_act(given: str | None) -> None:
    denial = deny(WITH_TOKEN, {**JSON, **({"authorization": given} if given is not None else {})})
    assert denial
    assert (denial.status, denial.error) == (401, "token_needed")
    assert TOKEN not in denial.reason


def test_token_is_asked_for_on_loopback_too() -> None:
    assert denied(Settings(admin_bind=LOOPBACK.admin_bind, admin_token=TOKEN)) == "token_needed"


@pytest.mark.parametrize("settings", [LOOPBACK, WITH_TOKEN], ids=["loopback", "token"])
@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none", "origin": "http://evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:9001"},
        {"origin": "http://localhost"},
        {"origin": "null"},
        {"origin": ""},
    ],
)
def test_another_site_may_not_act(settings: Settings, headers: dict[str, str]) -> None:
    assert denied(settings, authorization=f"Bearer {TOKEN}", **headers) == "cross_site"


@pytest.mark.parametrize(
    "headers", [{"sec_fetch_site": "same-origin", "origin": "http://localhost:9000"}, {"sec_fetch_site": "none"}]
)
def test_our_own_page_may(headers: dict[str, str]) -> None:
    assert denied(LOOPBACK, **headers) == ""


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]
)
def test_request_that_a_form_can_send_is_refused(kind: str | None) -> None:
    assert denied(LOOPBACK, content_type=kind) == "not_json"


def test_content_type_may_have_parameters() -> None:
    assert denied(LOOPBACK, content_type="Application/JSON; charset=utf-8") == ""


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        (LOOPBACK, "open"),
        (Settings(admin_bind=Address("::1", 9000)), "open"),
        (ANYWHERE, "refused"),
        (Settings(admin_bind=Address("::", 9000)), "refused"),
        (WITH_TOKEN, "token"),
    ],
)
def test_page_is_told_what_actions_need(settings: Settings, needs: str) -> None:
    assert access(settings) == needs


def test_host_that_a_client_names_is_not_remembered() -> None:
    before = urlsplit.cache_info()  # type: ignore[attr-defined]
    long = "a" * 10_000
    assert denied(LOOPBACK, host=long, origin=f"http://{long}") == "foreign_host"
    assert denied(LOOPBACK, origin=f"http://{long}") == "cross_site"
    assert urlsplit.cache_info() == before  # type: ignore[attr-defined]
