"""The two libraries that a client or a transport may belong to: httpx, and httpx2, its continuation.

They are alike but for their names, and neither takes an object of the other. So what the balancer hands out or catches
comes from the library of the object that it was given. Neither is imported before such an object is there:
``balancer serve`` needs none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from balancer.errors import (
    LOCAL_RESOURCE_ERRNOS,
    ConnectFailed,
    ConnectionDied,
    ProtocolViolation,
    Refusal,
    ResponseTimeout,
    UpstreamError,
)

# The libraries, in the order of preference where either will do, and the engine of each.
_ENGINES = {"httpx": "httpcore", "httpx2": "httpcore2"}

# What takes objects of neither says so in these words.
EITHER = " or ".join(_ENGINES)

# Characters kept of an exception's text: it may quote all that the member has sent.
WORDS_MAX = 200

# h11's words for an end of file where a response head, or a body, was due.
_CLOSED_SILENTLY = ("Server disconnected", "peer closed connection")


class HttpxLibrary:
    """One of the libraries. ``httpx``: its module."""

    def __init__(self, name: str) -> None:
        self.httpx: Any = import_module(name)
        self._name = name
        self._streams: dict[type, Any] = {}

    @property
    def httpcore(self) -> Any:
        """The module of its engine: importing it takes too long for the first call, which does without."""
        return import_module(_ENGINES[self._name])

    def stream_class(self, base: type) -> Any:
        """Return ``base`` as a subclass of the library's ``AsyncByteStream``."""
        if base not in self._streams:
            self._streams[base] = type(base.__name__, (base, self.httpx.AsyncByteStream), {})
        return self._streams[base]


_library = cache(HttpxLibrary)


def library_of(thing: object) -> HttpxLibrary | None:
    """Return the library that an object's class or one of its bases comes from; None for objects of neither."""
    kind: Any = type(thing)
    return _library_of(kind)


@cache
def _library_of(kind: type) -> HttpxLibrary | None:
    for base in kind.__mro__:
        if (package := base.__module__.partition(".")[0]) in _ENGINES:
            return _library(package)
    return None


def any_library() -> HttpxLibrary:
    """Return a library that is installed, at best one that is in use. Raises ImportError where there is none."""
    for name in sorted(_ENGINES, key=lambda name: name not in sys.modules):
        if find_spec(name):
            return _library(name)
    raise ImportError(f"this needs {EITHER}, and neither is installed")


@contextmanager
def faults(httpx: Any) -> Iterator[None]:
    """Turn the exceptions of ``httpx``, which is either library, into the balancer's."""
    try:
        yield
    except httpx.LocalProtocolError as error:
        raise Refusal(400, "malformed_request", f"the request cannot be passed on: {error}") from error
    except httpx.TransportError as error:
        number = _errno(error)
        if number in LOCAL_RESOURCE_ERRNOS:
            words = f"the balancer cannot open another connection: {os.strerror(number)}"
            raise Refusal(503, "overloaded", words, retry_after=1) from error
        raise fault_of(error, httpx) from error


def _errno(error: BaseException | None) -> int:
    """Return the error number of the operating system at the bottom of an exception, or 0."""
    number = 0
    seen = set[int]()
    while error and id(error) not in seen:  # One that was raised twice may be its own context's cause.
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            number = error.errno
        error = error.__cause__ or error.__context__
    return number


def fault_of(error: Exception, httpx: Any) -> UpstreamError:
    """Return a TransportError of ``httpx``, which is either library, as an error of the balancer."""
    text = words_of(error)
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return ConnectFailed(text, refused="refused" in text.lower())
    if isinstance(error, httpx.TimeoutException):
        return ResponseTimeout(text, sent=True)
    if isinstance(error, httpx.RemoteProtocolError) and not text.startswith(_CLOSED_SILENTLY):
        return ProtocolViolation(text, sent=True)
    return ConnectionDied(text, sent=True)


def words_of(error: Exception) -> str:
    """Return the beginning of an exception's text, or the name of its class where it has none."""
    return str(error)[:WORDS_MAX] or type(error).__name__
