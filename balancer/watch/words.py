"""Times and figures of a tally, for people and for scripts. No I/O, no clock."""

from __future__ import annotations

from datetime import UTC, datetime

# What stands in the place of a figure that there is none of.
NONE = "\N{EN DASH}"


def clock(at: float) -> str:
    """Return the local time of day."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def iso(at: float) -> str:
    """Return a time in ISO 8601, in UTC. ``at``: seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def times(count: int) -> str:
    """Return a count in words: ``once``, ``3 times``."""
    return "once" if count == 1 else f"{count} times"


def span(first_at: float, last_at: float) -> str:
    """Return two times of day, first to last, or the one that both are."""
    first, last = clock(first_at), clock(last_at)
    return f"at {first}" if first == last else f"{first} to {last}"


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds, or a dash for None."""
    return NONE if seconds is None else f"{seconds * 1000:.1f} ms"


def in_milliseconds(seconds: float | None) -> float | None:
    """Return a duration in milliseconds as a number of two decimals."""
    return None if seconds is None else round(seconds * 1000, 2)
