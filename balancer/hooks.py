"""What hooks are made of: the public names of ``balancer.plugins.hooks``."""

from balancer.plugins.hooks import Fields, HookRequest, HookResponse, Hooks, Member, Refusal, State

__all__ = ["Fields", "HookRequest", "HookResponse", "Hooks", "Member", "Refusal", "State"]
