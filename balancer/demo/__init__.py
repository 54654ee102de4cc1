"""The whole system without Docker: DNS, Redis, workers and the balancer on loopback."""
