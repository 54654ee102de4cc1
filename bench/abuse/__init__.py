"""Attacks on nginx, HAProxy and the balancer, with honest clients beside them: ``make abuse``."""
