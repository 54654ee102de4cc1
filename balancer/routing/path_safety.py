"""Paths that could be read in two ways, and the most permissive reading of each. No I/O."""

from __future__ import annotations

import re

from balancer.http.validation import malformed

# Paths without any of these are read alike by everybody.
UNCLEAR = re.compile(rb"[%\\;]|//|/\.")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# Where a segment ends for a program that knows parameters, or that looks for the end of the path in resolved escapes.
_SEGMENT_END = re.compile(rb"[;?#\0]")
# What is not the same once it is resolved, because it would separate.
_KEPT = frozenset(b"/\\;%?#\0")


def _resolve(escape: re.Match[bytes]) -> bytes:
    return bytes((int(escape[1], 16),))


def resolve_harmless(escape: re.Match[bytes]) -> bytes:
    byte = int(escape[1], 16)
    return escape[0] if byte in _KEPT else bytes((byte,))


def most_permissive(path: bytes) -> bytes:
    """The most permissive reading of a path: a separator is wherever some server sees one.

    Raises Refusal where that depends on what one does first: for ``.`` and ``..``, for a parameter of nothing, and for
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
