"""The life of a member as a literal table, and the time of its next probe. No I/O.

Rules:
* A member that just appeared in DNS gets no user request before a probe has succeeded: Docker
  lists a container before its process listens.
* A refused or unreachable connection takes a member out at once: Docker lists a stopping
  container until it is gone, so this, not DNS, shows a departure.
* Busy is not hung, and no time separates them: the answer to a probe queues behind the work of a member with
  few threads. A probe unanswered for LATE_SECONDS makes a member a suspect, and nothing else.
* A member goes down by probes only after HEALTH_FALL of them in a row have failed: by a bad status or body, or by no
  answer within HEALTH_TIMEOUT.
* A member that was up and is down or draining comes up after HEALTH_RISE probes in a row that succeed. A new one, and a
  suspect, which has not gone down, need one.
* A suspect gets requests only while no member is up. A member becomes one by a late or failed probe. So does one that
  used to keep connections open and now announces ``Connection: close`` CLOSES_TO_SUSPECT times in a row, as a draining
  one does. One that always closes, or that closes now and then, does not count. Nor does a refusal of the request
  (REFUSALS), behind which servers close: any client can have one, as often as it likes.
* No state takes away what a member has in flight (``Upstream.check_network`` finds members that the network has lost).
* A member that is new or down comes up only if DNS has named it since contact with it last failed. While DNS does
  not answer, the address may belong to a container of another service by now.
* LEAVING is final: an address that returns to DNS is a new member.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random

from balancer.discovery.pace import URGENT_INTERVAL


class State(StrEnum):
    """The state of a member, which decides whether it gets requests (docs/concepts/members.md).

    ``UP`` gets requests, and ``SUSPECT`` only while no member is up. ``JOINING``, ``DOWN``, ``DRAINING`` and
    ``LEAVING`` get none.
    """

    JOINING = "joining"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"
    DRAINING = "draining"
    LEAVING = "leaving"


class HealthEvent(StrEnum):
    """An observation of a member that may change its state."""

    PROBE_OK = "probe succeeded"
    PROBE_RISING = "probe succeeded, and more have to"
    PROBE_UNANSWERED = "no answer to a probe"
    PROBE_FAILED = "probe failed"
    PROBES_FAILED = "too many probes in a row failed"
    PROBE_DRAINING = "member says that it is draining"
    REFUSED = "connection refused"
    UNREACHABLE = "no connection"
    CLOSE_ANNOUNCED = "member closes its connections"
    LEFT_DNS = "address left DNS"


# Events after which the process at a member's address may be another one.
CONTACT_LOST = frozenset(
    {
        HealthEvent.PROBE_UNANSWERED,
        HealthEvent.PROBE_FAILED,
        HealthEvent.PROBES_FAILED,
        HealthEvent.REFUSED,
        HealthEvent.UNREACHABLE,
    }
)

# Seconds after which an unanswered probe is late.
LATE_SECONDS = 1.0

# Successive responses with ``Connection: close`` after which a member is a suspect.
CLOSES_TO_SUSPECT = 2
# Statuses of a request that a server does not read to its end, or does not trust, and so closes the connection behind.
REFUSALS = frozenset({400, 408, 411, 413, 414, 417, 431, 501, 505})

TRANSITIONS: dict[State, dict[HealthEvent, State]] = {
    State.JOINING: {
        HealthEvent.PROBE_OK: State.UP,
        HealthEvent.PROBE_DRAINING: State.DRAINING,
        HealthEvent.LEFT_DNS: State.LEAVING,
    },
    State.UP: {
        HealthEvent.PROBE_UNANSWERED: State.SUSPECT,
        HealthEvent.PROBE_FAILED: State.SUSPECT,
        HealthEvent.PROBES_FAILED: State.DOWN,
        HealthEvent.PROBE_DRAINING: State.DRAINING,
        HealthEvent.REFUSED: State.DOWN,
        HealthEvent.UNREACHABLE: State.DOWN,
        HealthEvent.CLOSE_ANNOUNCED: State.SUSPECT,
        HealthEvent.LEFT_DNS: State.LEAVING,
    },
    State.SUSPECT: {
        HealthEvent.PROBE_OK: State.UP,
        HealthEvent.PROBES_FAILED: State.DOWN,
        HealthEvent.PROBE_DRAINING: State.DRAINING,
        HealthEvent.REFUSED: State.DOWN,
        HealthEvent.UNREACHABLE: State.DOWN,
        HealthEvent.LEFT_DNS: State.LEAVING,
    },
    State.DOWN: {
        HealthEvent.PROBE_OK: State.UP,
        HealthEvent.PROBE_DRAINING: State.DRAINING,
        HealthEvent.LEFT_DNS: State.LEAVING,
    },
    State.DRAINING: {
        HealthEvent.PROBE_OK: State.UP,
        HealthEvent.PROBES_FAILED: State.DOWN,
        HealthEvent.REFUSED: State.DOWN,
        HealthEvent.UNREACHABLE: State.DOWN,
        HealthEvent.LEFT_DNS: State.LEAVING,
    },
    State.LEAVING: {},
}

# Share by which a probe may come early, so that a thousand members are not probed in one burst.
JITTER = 0.2


def weigh(event: HealthEvent, in_row: int, rise: int, fall: int) -> HealthEvent:
    """Return the event of a probe's outcome.

    A failure is PROBES_FAILED from the ``fall``-th in a row on, and a success is PROBE_RISING before the ``rise``-th.
    ``in_row``: probes that have failed, or succeeded, one after the other, this one included.
    """
    if event in (HealthEvent.PROBE_UNANSWERED, HealthEvent.PROBE_FAILED):
        return HealthEvent.PROBES_FAILED if in_row >= fall else event
    return HealthEvent.PROBE_RISING if event is HealthEvent.PROBE_OK and in_row < rise else event


def next_probe(state: State, failures: int, interval: float, urgent: bool, rng: Random) -> float:
    """Return the seconds until the next probe of a member.

    ``failures``: probes that failed in a row. A member that is new or fails is probed every URGENT_INTERVAL at first
    and ever less often, down to ``interval``; one that is down and well again, every ``interval``. ``urgent``: no
    member is available, so it is always URGENT_INTERVAL.
    """
    if urgent:
        delay = URGENT_INTERVAL
    elif state is State.JOINING or (failures and state not in (State.UP, State.DRAINING)):
        delay = URGENT_INTERVAL * 2 ** min(failures // 4, 16)
    else:
        delay = interval
    return min(delay, interval) * (1 - JITTER * rng.random())
