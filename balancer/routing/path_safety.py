"""Paths that could be read in two ways, and the most permissive reading of each. No I/O."""

from __future__ import annotations

import re

from balancer.http.validation import malformed

# Paths without any of these have one reading.
UNCLEAR = re.compile(rb"[%\\;]|//|/\.")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# End of a segment for a program with parameters, or one that searches the end of the path in resolved escapes.
_SEGMENT_END = re.compile(rb"[;?#\0]")
# Characters that change their meaning once they are resolved, because they would separate.
_KEPT = frozenset(b"/\\;%?#\0")


def _resolve(escape: re.Match[bytes]) -> bytes:
    return bytes((int(escape[1], 16),))


def resolve_harmless(escape: re.Match[bytes]) -> bytes:
    """Return the character of an escape, or the escape itself where the character would separate."""
    byte = int(escape[1], 16)
    return escape[0] if byte in _KEPT else bytes((byte,))


def most_permissive(path: bytes) -> bytes:
    """Return the most permissive reading of a path: a separator is wherever some server sees one.

    Raises Refusal where that depends on the order of steps: for ``.`` and ``..``, for a parameter of nothing, and for
    one with a separator in it.
    """
    segments = []
    for segment in path.split(b"/"):
        text = ESCAPE.sub(_resolve, ESCAPE.sub(_resolve, segment)).replace(b"\\", b"/")
        if end := _SEGMENT_END.search(text):
            if b"/" in text[end.end() :] or text[: end.start()].endswith(b"/") or not end.start():
                raise malformed("the path has a parameter that could be read in two ways")
            text = text[: end.start()]
        segments += text.split(b"/")
    if b"." in segments or b".." in segments:
        raise malformed("the path has a segment . or .., which could be read in two ways")
    return b"/" + b"/".join(filter(None, segments))
