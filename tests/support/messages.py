"""Requests as bytes that many tests send."""

from __future__ import annotations

# The connection stays open.
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
# The balancer closes the connection after the response.
LAST_GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
