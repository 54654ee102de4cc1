"""``python -m worker``: serve until SIGTERM, then drain."""

import signal
import sys

# A container's first process ignores SIGTERM until it installs a handler. A stop that arrives while modules are still
# being imported would otherwise last until SIGKILL.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import os  # noqa: E402
import socket  # noqa: E402

from . import drain  # noqa: E402
from .app import make_app  # noqa: E402
from .counter import Counter  # noqa: E402
from .log import Log  # noqa: E402


def main() -> int:
    """Serve by the environment's settings; return the exit status."""
    ports = {}
    for name, default in (("PORT", "80"), ("PORT_REDIS", "6379")):
        text = os.environ.get(name) or default
        if not (text.isdecimal() and 1 <= int(text) <= 65535):
            print(f"{name}={text!r} cannot be used: it takes a port from 1 to 65535", file=sys.stderr)
            return 2
        ports[name] = int(text)
    counter = Counter(os.environ.get("HOST_REDIS") or "redis", ports["PORT_REDIS"])
    hostname = os.environ.get("HOSTNAME") or socket.gethostname()
    app = make_app(counter, hostname)
    log = Log()
    host = os.environ.get("HOST") or "0.0.0.0"
    # uvicorn's lines go the way of all others.
    status = drain.run(app, host=host, port=ports["PORT"], ws="websockets-sansio", log_config=None)
    log.finish()
    return status


if __name__ == "__main__":
    status = main()
    # Nothing is buffered: lines of standard error leave as they come. Python's own end takes 50 ms. While all workers
    # are replaced together, clients wait for that.
    os._exit(status)
