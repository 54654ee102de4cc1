"""The part of one process in the limits that all processes of a balancer keep together. No I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from balancer.config.display import variable
from balancer.config.settings import Settings, SettingsError

# Limits that are shared out, each with the least that a process can do with.
_SHARED = (("max_requests_per_member", 1), ("max_connections", 1), ("queue_max", 0), ("queue_max_bytes", 0))


def part(settings: Settings, number: int, processes: int) -> Settings:
    """Return the settings of process ``number`` (from 0): its part of each limit for all of them together.

    Raises SettingsError where a limit cannot be shared out.
    """
    if processes == 1:
        return settings
    parts: dict[str, Any] = {"processes": processes}
    problems = []
    for name, least in _SHARED:
        limit = getattr(settings, name)
        if limit == "auto":
            continue
        if 0 < limit < least * processes:
            problems.append(
                f"{variable(name)}={limit} cannot be used with {processes} processes: it is shared out among them, "
                f"so it takes 0 or at least {processes}"
            )
        parts[name] = limit // processes + (number < limit % processes)
    if problems:
        raise SettingsError(problems)
    return replace(settings, **parts)
