"""Typed errors: what failed, on which side, and whether the member may have received the request.

``UpstreamError`` and its subclasses are raised by an upstream (``balancer.upstream.base``) and never reach a
client: ``balancer.dispatch.retry`` decides what follows. ``Refusal`` goes to the client in place
of a member's answer. ``ClientGone`` ends a request whose client has left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

# Exit statuses of the commands: of a command line or a setting that cannot be used, and of all other failures.
UNUSABLE = 2
FAILED = 1

# Shortages of the balancer itself: descriptors, memory, local ports. These are no evidence against a member.
LOCAL_RESOURCE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

# The tokens of ``X-Balancer-Error``, and those of the log alone, for ends that no client receives.
TOKENS = frozenset(
    {
        "malformed_request", "method_not_allowed", "request_timeout", "body_too_large", "uri_too_long",
        "headers_too_large", "version_not_supported", "member_failed", "bad_response", "no_member", "queue_full",
        "overloaded", "shutting_down", "too_many_connections", "response_timeout", "no_route", "hook_failed",
        "loop_detected",
    }
)  # fmt: skip
LOG_ONLY = frozenset({"client_gone", "truncated"})


class UpstreamError(Exception):
    """An exchange with one member ended, and nothing of its response was passed on.

    ``reason``: one word for figures. ``sent``: whether any byte of the request may have reached the member. Only
    while it is false may a request that is not idempotent be given to another member.
    """

    reason = "failed"

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectFailed(UpstreamError):
    """No connection: ``refused`` (no process listens), unreachable, or not accepted within CONNECT_TIMEOUT."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message, sent=False)
        self.refused = refused
        self.reason = "refused" if refused else "unreachable"


def connect_failed(error: OSError, within: float) -> ConnectFailed:
    """Return the error of a failed connection, which raised ``error``, or TimeoutError after ``within`` seconds."""
    if isinstance(error, ConnectionRefusedError):
        return ConnectFailed("connection refused", refused=True)
    if error.errno is None and isinstance(error, TimeoutError):
        return ConnectFailed(f"no connection within {within:g} s")
    return ConnectFailed(os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__)


class ConnectionDied(UpstreamError):
    """The connection broke or was closed while nothing of the response had been passed on."""

    reason = "died"


class ResponseTimeout(UpstreamError):
    """No response head within RESPONSE_TIMEOUT, or the member stopped reading the request."""

    reason = "timeout"


class ProtocolViolation(UpstreamError):
    """The member answered with something that is not HTTP."""

    reason = "not_http"


class RetriedStatus(UpstreamError):
    """The member answered with a status of RETRY_STATUS, and its response was dropped."""

    reason = "status"

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}", sent=True)


class TruncatedResponse(Exception):
    """A response body ended early: the client's connection must not be ended cleanly."""

    reason = "truncated"


class SilentResponse(TruncatedResponse):
    """A response body ended early because the member sent nothing more of it within STREAM_IDLE_TIMEOUT."""

    reason = "silent"


# Values of the ``reason`` of an UpstreamError, or of a response that broke off.
REASONS = frozenset({"refused", "unreachable", "died", "timeout", "not_http", "status", "truncated", "silent"})


class ClientGone(Exception):
    """The client closed its connection before its response was complete."""


class Refusal(Exception):
    """A refusal in the balancer's own name: short plain text, with the header ``X-Balancer-Error``.

    Args:
        status: The status code.
        token: The value of ``X-Balancer-Error``: a fixed word in lower case, since it is counted and logged.
        reason: The text of the body.
        retry_after: Seconds for the header ``Retry-After`` (RFC 9110 section 10.2.3), or None to leave it out.
        headers: More headers by name, such as the ``WWW-Authenticate`` that a 401 needs (RFC 9110 section 15.5.2).
    """

    def __init__(
        self,
        status: int,
        token: str,
        reason: str,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.token = token
        self.reason = reason
        self.retry_after = retry_after
        self.headers = headers


SHUTTING_DOWN = Refusal(503, "shutting_down", "the balancer is shutting down", retry_after=1)
