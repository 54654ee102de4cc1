from __future__ import annotations

import pytest

from balancer.errors import Refusal
from balancer.settings import Settings
from balancer.strict import check


@pytest.mark.parametrize(("method", "status"), [(b"CONNECT", 501), (b"TRACE", 405)])
def test_a_refused_method_leaves_nothing_behind(method: bytes, status: int) -> None:
    refusals = []
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            check(method, b"/", [(b"host", b"a")], "1.1", 0, Settings())
        refusals.append(caught.value)
    assert [it.status for it in refusals] == [status] * 2
    # An exception that is raised again keeps the frames of the time before, and so what they have in hand.
    assert refusals[0] is not refusals[1]
