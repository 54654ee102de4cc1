"""Why a file that a setting names cannot be read."""

from __future__ import annotations

import os
from pathlib import Path


def why_unreadable(path: str, error: OSError) -> str:
    """Return the reason in words; where permission is missing, as whom, and what gives it."""
    reason = error.strerror or type(error).__name__
    if not isinstance(error, PermissionError):
        return reason
    user = os.geteuid()
    closed = next((it for it in reversed(Path(path).absolute().parents) if not _may_enter(it)), None)
    if closed:
        return f"{reason} as uid {user}: it may not enter the folder {closed} (chown {user}, or chmod o+x)"
    return f"{reason} as uid {user}: the file has to be readable for that user (chown {user}, or chmod o+r)"


def _may_enter(folder: Path) -> bool:
    by_effective_user = os.access in os.supports_effective_ids
    return os.access(folder, os.X_OK, effective_ids=by_effective_user)
