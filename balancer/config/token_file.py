"""The token of the admin port in a file, as orchestrators mount secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from balancer.config.display import variable
from balancer.config.files import why_unreadable
from balancer.config.parsers import SECRET
from balancer.config.settings import Settings, SettingsError

# Bytes read: no token is as long, and a device has no end.
_MAX_BYTES = 4096


def with_token(settings: Settings) -> Settings:
    """Return the settings with the token from its file, if they name one. Raises SettingsError."""
    if not settings.admin_token_file:
        return settings
    if settings.admin_token:
        raise _unusable(settings.admin_token_file, f"cannot be used beside {variable('admin_token')}: only one can be")
    return replace(settings, admin_token=read_token(settings.admin_token_file))


def read_token(path: str) -> str:
    """Return the token in a file, without white space around it. Raises SettingsError, without the content."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES).strip()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {why_unreadable(path, error)}") from error
    if not content:
        raise _unusable(path, "cannot be used: the file is empty")
    try:
        token: str = SECRET.read(content.decode("ascii", "replace"))
    except ValueError as error:
        raise _unusable(path, f"has no token: what is in the file {error}") from None
    return token


def _unusable(path: str, why: str) -> SettingsError:
    return SettingsError([f"{variable('admin_token_file')}={path!r} {why}"])
