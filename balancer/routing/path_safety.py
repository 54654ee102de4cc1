"""Paths that could be read in two ways, and the most permissive reading of each. No I/O."""

from __future__ import annotations

import re
from itertools import product

from balancer.http.validation import malformed

# Paths without any of these have one reading.
UNCLEAR = re.compile(rb"[%\\;]|//|/\.")
# End of a segment for a program with parameters, or one that searches the end of the path in resolved escapes.
_SEGMENT_END = re.compile(rb"[;?#\0]")
# A whole segment with a character that servers read in different ways. Nothing is looked at twice.
_UNCLEAR_SEGMENT = re.compile(rb"(?<![^/])[^/%\\;?#\0]*+[%\\;?#\0][^/]*+")
# Segments of a path with such a character: each costs 2 us, and a path has few.
UNCLEAR_MAX = 256
_ESCAPE = re.compile(rb"(%[0-9A-Fa-f]{2})")
_DIGITS = "0123456789ABCDEFabcdef"
_CHARACTERS = {f"%{a}{b}".encode(): bytes((int(a + b, 16),)) for a, b in product(_DIGITS, repeat=2)}
# Characters that would separate, and so change their meaning once they are resolved, stay escaped.
_HARMLESS = {escape: escape if byte in b"/\\;%?#\0" else byte for escape, byte in _CHARACTERS.items()}


def resolve_harmless(path: bytes) -> bytes:
    """Return a path with the characters of its escapes, but for those that would separate."""
    return _resolve(path, _HARMLESS)


def _resolve(path: bytes, characters: dict[bytes, bytes]) -> bytes:
    # Without a call for each escape: a path may have thousands.
    parts = _ESCAPE.split(path)
    parts[1::2] = map(characters.__getitem__, parts[1::2])
    return b"".join(parts)


def most_permissive(path: bytes) -> bytes:
    """Return the most permissive reading of a path: a separator is wherever some server sees one.

    Raises Refusal where that depends on the order of steps: for ``.`` and ``..``, for a parameter of nothing, and for
    one with a separator in it.
    """
    text, count = _UNCLEAR_SEGMENT.subn(_read, path, UNCLEAR_MAX + 1)
    if count > UNCLEAR_MAX:
        raise malformed(f"the path has more than {UNCLEAR_MAX} segments with escapes or parameters")
    segments = text.split(b"/")
    if b"." in segments or b".." in segments:
        raise malformed("the path has a segment . or .., which could be read in two ways")
    return b"/" + b"/".join(filter(None, segments))


def _read(segment: re.Match[bytes]) -> bytes:
    """Return the most permissive reading of a segment with a character that servers read in different ways."""
    text = _resolve(_resolve(segment[0], _CHARACTERS), _CHARACTERS).replace(b"\\", b"/")
    if end := _SEGMENT_END.search(text):
        if b"/" in text[end.end() :] or text[: end.start()].endswith(b"/") or not end.start():
            raise malformed("the path has a parameter that could be read in two ways")
        text = text[: end.start()]
    return text
