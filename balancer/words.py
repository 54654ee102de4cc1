"""Words that several packages use in what they say to people."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 request``, ``0 requests``. ``plural``: the noun with an ``s`` unless given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
