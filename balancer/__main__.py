"""``python -m balancer``: the same as the ``balancer`` command."""

import signal
import sys

# A container's first process ignores SIGTERM until it installs a handler. A stop that arrives while modules are still
# being imported would otherwise last until SIGKILL.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

from balancer.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
