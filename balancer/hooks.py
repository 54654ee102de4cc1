"""What hooks are made of: the public names of ``balancer.plugins.hook_api``."""

from balancer.plugins.hook_api import HeaderFields, HookRequest, HookResponse, Hooks, Member, Refusal, State

__all__ = ["HeaderFields", "HookRequest", "HookResponse", "Hooks", "Member", "Refusal", "State"]
