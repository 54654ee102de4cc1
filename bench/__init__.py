"""The benchmark of ``make bench``: the balancer beside its peers, on loopback. See bench/README.md."""
