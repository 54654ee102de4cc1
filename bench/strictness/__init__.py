"""What nginx, HAProxy, Caddy and the balancer do with each case of ``tests/support/hostile.py``."""
