"""Set-up of the balancer's own log."""

from __future__ import annotations

import logging
import sys

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def configure_logging() -> None:
    """Send log lines to standard error: standard output belongs to the access log."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(logging.WARNING)
    uvicorn_log.addFilter(_expected)


def _expected(record: logging.LogRecord) -> bool:
    """Return False for reports of uvicorn on what the balancer does on purpose or cannot help."""
    return not record.getMessage().startswith(
        (
            "ASGI callable returned without completing response",  # how a broken response is broken for the client
            "Unsupported upgrade request",
            "No supported WebSocket library",
            "Invalid HTTP request received",
            "Invalid HTTP/2 frame received",
        )
    )
