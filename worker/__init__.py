"""The worker of the example system: counts visits in Redis and says who it is."""
