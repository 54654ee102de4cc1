"""The tests. Connections check the changes of their phases while they run, also in the processes that they start."""

import os

os.environ.setdefault("BALANCER_CHECK_STATES", "1")
