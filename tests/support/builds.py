"""The build that the tests run, and what they can do with one of them alone."""

from __future__ import annotations

import pytest

from balancer import build

COMPILED = build.library() != ""

# For tests that put another function in the place of one that compiled code calls directly.
patches_functions = pytest.mark.skipif(COMPILED, reason="a compiled module calls its own functions, patched or not")
# For tests of what only pure Python can do: put a descriptor around an attribute, as ``balancer.phase_checks`` does.
checks_states = pytest.mark.skipif(COMPILED, reason="the phases of compiled classes are not checked")
