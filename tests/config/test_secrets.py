"""Passwords in settings: never shown, in errors neither."""

from __future__ import annotations

import pytest

from balancer.config.settings import Settings, SettingsError

URL = "http://user:secret-word@collector:4318"


def test_setting_that_is_a_url_is_shown_without_its_password() -> None:
    settings = Settings.load({"BALANCER_OTEL_ENDPOINT": URL})
    assert settings.otel_endpoint == URL
    shown = {name: value for name, value, _ in settings.rows()}
    assert shown["BALANCER_OTEL_ENDPOINT"] == "http://(not shown)@collector:4318"
    assert Settings.of(otel_endpoint=URL).otel_endpoint == URL


@pytest.mark.parametrize("text", [f"{URL}:x", f"ftp{URL}", f"{URL} "])
def test_error_shows_no_password_of_a_url(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.load({"BALANCER_OTEL_ENDPOINT": text, "BALANCER_BIND": "nowhere"})
    assert "secret-word" not in str(raised.value)


def test_token_that_is_given_by_name_is_kept_and_not_shown() -> None:
    assert Settings.of(admin_token="correct-horse").admin_token == "correct-horse"
    with pytest.raises(SettingsError) as raised:
        Settings.of(admin_token="correct horse")
    assert "correct horse" not in str(raised.value)
