"""Variables that look like a setting and are none. No I/O."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields

from balancer.config.display import PREFIX, variable
from balancer.config.settings import Settings


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each ``BALANCER_*`` variable that is no setting and looks like one.

    Others are left alone: orchestrators inject names such as ``BALANCER_SERVICE_HOST`` on their own.
    """
    known = [variable(field.name) for field in fields(Settings)]
    lines = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                lines.append(f"{name} is not a setting and is ignored; did you mean {close[0]}?")
    return lines
