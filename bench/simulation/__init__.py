"""The balancer's own code between simulated clients and members, on a virtual clock.

See docs/performance/simulation.md.
"""
