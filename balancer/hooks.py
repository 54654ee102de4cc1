"""What hooks are made of: the public names of ``balancer.plugins.hooks``."""

from balancer.plugins.hooks import HeaderFields, HookRequest, HookResponse, Hooks, Member, Refusal, State

__all__ = ["HeaderFields", "HookRequest", "HookResponse", "Hooks", "Member", "Refusal", "State"]
