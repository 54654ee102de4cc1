"""What was found and is not mended yet. Whoever mends it takes its line out: ``test_cases.py`` fails until then."""

from __future__ import annotations

import re

# The case's file in ``cases``, how the judge says it, and what is wrong.
OPEN: dict[str, tuple[str, str]] = {}


def unknown(found: list[str]) -> list[str]:
    """Without what is known."""
    return [it for it in found if not any(re.search(words, it) for words, _ in OPEN.values())]
