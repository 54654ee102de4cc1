"""The public names for hooks, from ``balancer.plugins.hook_api``."""

from balancer.plugins.hook_api import HeaderFields, HookRequest, HookResponse, Hooks, Member, Refusal, State

__all__ = ["HeaderFields", "HookRequest", "HookResponse", "Hooks", "Member", "Refusal", "State"]
