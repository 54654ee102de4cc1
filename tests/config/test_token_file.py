"""The token of the admin port in a file, such as a secret that an orchestrator mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.config.settings import Settings, SettingsError
from balancer.config.token_file import with_token

TOKEN, OTHER_TOKEN = "correct-horse-battery", "another-horse-battery"


def test_token_comes_from_its_file_without_white_space_around_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"\n {TOKEN}\r\n")
    settings = with_token(Settings.load({"BALANCER_ADMIN_TOKEN_FILE": str(file)}))
    assert settings.admin_token == TOKEN
    shown = {name: value for name, value, _ in settings.rows()}
    assert shown["BALANCER_ADMIN_TOKEN_FILE"] == str(file)
    assert shown["BALANCER_ADMIN_TOKEN"] == "(set)"


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (None, {}, "cannot be read: No such file or directory"),
        (b" \n", {}, "cannot be used: the file is empty"),
        (b"short", {}, "has no token: what is in the file cannot be used: it takes 8 to 256 letters"),
        (b"two secret\nsecret lines", {}, "has no token: what is in the file cannot be used: it takes 8 to 256"),
        (b"\xff" * 20, {}, "has no token: what is in the file cannot be used: it takes 8 to 256"),
        (TOKEN.encode(), {"BALANCER_ADMIN_TOKEN": OTHER_TOKEN}, "cannot be used beside BALANCER_ADMIN_TOKEN"),
    ],
    ids=["none", "empty", "short", "lines", "bytes", "both"],
)
def test_file_without_a_token_stops_the_start(
    content: bytes | None, more: dict[str, str], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        with_token(Settings.load({"BALANCER_ADMIN_TOKEN_FILE": str(file), **more}))
    (problem,) = raised.value.problems
    assert problem.startswith(f"BALANCER_ADMIN_TOKEN_FILE={str(file)!r} {words}")
    assert "secret" not in problem
    assert TOKEN not in problem
