"""``python -m balancer.cli.healthcheck``: exit status 0 if the balancer in this container is at work.

It sends a request to the admin listener; where that is off, it only connects to the data listener.
"""

import http.client
import os
import socket
import sys

from balancer.config.own_address import own_address
from balancer.config.settings import Settings, SettingsError
from balancer.types import Address, UnixSocket

LIMIT_SECONDS = 2


def reachable(address: Address) -> tuple[str, int]:
    """Return the address of a listener from within its own container. Raises OSError if its name has none."""
    host, port = own_address(address)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def main() -> int:
    """Check the balancer; return the exit status."""
    try:
        settings = Settings.load(os.environ)
        if settings.admin_bind is None:
            if isinstance(settings.bind, UnixSocket):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(LIMIT_SECONDS)
                    sock.connect(settings.bind.path)
            else:
                socket.create_connection(reachable(settings.bind), LIMIT_SECONDS).close()
            return 0
        connection = http.client.HTTPConnection(*reachable(settings.admin_bind), timeout=LIMIT_SECONDS)
        connection.request("GET", "/healthz")
        return int(connection.getresponse().status != 200)
    except SettingsError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"the balancer does not answer: {error}", file=sys.stderr)
    except http.client.HTTPException as error:
        print(f"what answers is not HTTP: {repr(error)[:200]}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
