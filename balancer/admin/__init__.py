"""What the balancer says of itself, on a port of its own: the data port belongs to the workers."""
