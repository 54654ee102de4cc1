"""Hypothesis without its deadline, which reads the real clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None)
settings.load_profile("core")
