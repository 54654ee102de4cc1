from __future__ import annotations

import pytest

from balancer.errors import Refusal
from balancer.settings import Settings
from balancer.strict import check


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
def test_a_refusal_is_made_anew(method: bytes) -> None:
    """One that is raised again keeps the frames of every time, and in them what was refused."""
    caught = []
    for _ in range(2):
        with pytest.raises(Refusal) as refusal:
            check(method, b"/", [(b"host", b"a")], "1.1", 10, Settings())
        caught.append(refusal.value)
    assert caught[0] is not caught[1]
