"""The answer to a request for a member's readiness path, and what it says of the member. No I/O.

Rules:
* The status decides: one of HEALTH_STATUS is well, 503 is draining unless it is one of these, the rest is a failure.
* With HEALTH_BODY a member that is well has that text in the first BODY_MAX_BYTES of the body, chunked or not.
* The answer is read to its end all the same, up to ANSWER_MAX_BYTES: programs whose answer is cut off log a failure.
"""

from __future__ import annotations

import httptools

from balancer.config.display import ranges
from balancer.config.settings import Settings
from balancer.members.health import HealthEvent

ANSWER_MAX_BYTES = 2**20
BODY_MAX_BYTES = 2**16
# Status of a member that is draining.
DRAINING = 503


class _Body:
    """The beginning of a body, which httptools writes. It knows no parser, so that reference counts free both."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_complete = False

    def on_body(self, data: bytes) -> None:
        if len(self.data) <= BODY_MAX_BYTES:
            self.data += data

    def on_message_complete(self) -> None:
        self.is_complete = True


class ProbeAnswer:
    """An answer as it arrives. ``status_line``: what it began with; ``is_over``: no more of it is read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._body = _Body()
        self._parser = httptools.HttpResponseParser(self._body)
        self._left = ANSWER_MAX_BYTES
        self.status_line = b""
        self.is_over = False

    def begin(self, status_line: bytes) -> None:
        """Take the first line, as far as it has come before the end of the connection."""
        self.status_line = status_line
        if status_line.startswith(b"HTTP/1."):
            self.feed(status_line)
        else:
            self.is_over = True

    def feed(self, data: bytes) -> None:
        """Take more of the answer. What is no HTTP ends it."""
        self._left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_over = True
        self.is_over |= self._body.is_complete or self._left <= 0

    def judge(self, timed_out: bool = False) -> tuple[HealthEvent, str]:
        """Return the event of the member, and words for it. ``timed_out``: HEALTH_TIMEOUT was over before its end."""
        path, accepted = self._settings.health_path, self._settings.health_status
        parts = self.status_line.split(maxsplit=2)
        if not parts:
            return HealthEvent.PROBE_FAILED, f"GET {path}: the connection was closed without an answer"
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            return HealthEvent.PROBE_FAILED, f"GET {path}: not an HTTP answer"
        status = int(parts[1])
        words = f"GET {path}: {status}"
        if status in accepted:
            lack = self._lack(timed_out)
            return (HealthEvent.PROBE_FAILED, words + lack) if lack else (HealthEvent.PROBE_OK, words)
        if status == DRAINING:
            return HealthEvent.PROBE_DRAINING, words
        return HealthEvent.PROBE_FAILED, f"{words} is none of {','.join(ranges(accepted | {DRAINING}))}"

    def _lack(self, timed_out: bool) -> str:
        """Return words for the text that the body should have and lacks, or ""."""
        text, body = self._settings.health_body, self._body.data
        if text is None or text.encode() in body[:BODY_MAX_BYTES]:
            return ""
        extent = f" after {self._settings.health_timeout:g} s" if timed_out else ""
        if len(body) > BODY_MAX_BYTES:
            extent = f" in its first {BODY_MAX_BYTES // 1024} KiB"
        return f", but the body lacks {text!r}{extent}"
