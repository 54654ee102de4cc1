"""An HTTP load balancer for Docker Compose that finds its members through DNS."""

__version__ = "0.1.0"
