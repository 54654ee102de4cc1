"""An HTTP load balancer for Docker Compose that finds its members through DNS.

As a library: ``LoadBalancer`` is an ASGI application to mount in one's own, ``BalancedTransport`` balances the calls of
an ``httpx.AsyncClient``; see docs/guides/library.md. Both are imported at their first use, because
``balancer serve`` listens before it imports anything heavy.
"""

from balancer.build import check_fresh
from balancer.version import __version__

check_fresh()

__all__ = ["BalancedTransport", "LoadBalancer", "Settings", "SettingsError", "__version__"]

# Type checkers recognize it by its name; ``typing`` itself takes a while to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from balancer.config.settings import Settings as Settings
    from balancer.config.settings import SettingsError as SettingsError
    from balancer.loadbalancer import LoadBalancer as LoadBalancer
    from balancer.transport import BalancedTransport as BalancedTransport
else:
    # Names that are imported at their first use, with their modules.
    _LAZY = {
        "BalancedTransport": "balancer.transport",
        "LoadBalancer": "balancer.loadbalancer",
        "Settings": "balancer.config.settings",
        "SettingsError": "balancer.config.settings",
    }

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
