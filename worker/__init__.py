"""The worker of the example system: counts visits in Redis and returns its hostname.

Its modules import each other relatively: it is ``worker`` in its image and ``balancer.demo.worker`` in the wheel.
"""
