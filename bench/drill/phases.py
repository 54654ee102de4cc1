"""What the drill does to the workers while the load runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from tests.support.compose import Compose

Act = Callable[[Compose], Awaitable[None]]


@dataclass(frozen=True)
class Phase:
    """``act`` is done under load, which then goes on for ``settle`` seconds.

    ``excuses``: a POST may fail honestly, and may wait as long as the member that has it. ``limit``: how many
    seconds any other request may wait beyond the time when no worker was there at all.
    """

    name: str
    act: Act
    settle: float = 3.0
    excuses: bool = False
    limit: float = 0.5


async def nothing(compose: Compose) -> None:
    await asyncio.sleep(3)


async def up(compose: Compose) -> None:
    await compose.scale(3)


async def one(compose: Compose) -> None:
    await compose.scale(1)


async def four(compose: Compose) -> None:
    await compose.scale(4)


async def recreate(compose: Compose) -> None:
    await compose("up", "--detach", "--force-recreate", "--no-deps", "--scale", "worker=4", "worker")


async def restart(compose: Compose) -> None:
    await compose("restart", "worker")


async def stop_and_start(compose: Compose) -> None:
    await compose("stop", "worker")
    await asyncio.sleep(2)
    await compose("start", "worker")


async def kill(compose: Compose) -> None:
    victim = (await compose.containers("worker"))[0]
    await compose.run("docker", "kill", "--signal", "KILL", victim)
    await asyncio.sleep(2)
    await compose.run("docker", "start", victim)


async def pause(compose: Compose) -> None:
    victim = (await compose.containers("worker"))[0]
    await compose.run("docker", "pause", victim)
    await asyncio.sleep(5)
    await compose.run("docker", "unpause", victim)


async def disconnect(compose: Compose) -> None:
    victim = (await compose.containers("worker"))[0]
    await compose.run("docker", "network", "disconnect", compose.network, victim)
    await asyncio.sleep(5)
    await compose.run("docker", "network", "connect", "--alias", "apps", compose.network, victim)


async def deploy(compose: Compose) -> None:
    """A new image: the label makes it another one."""
    await compose("build", "--build-arg", "RELEASE=next", "worker")
    await compose("up", "--detach", "--no-deps", "--scale", "worker=4", "worker")


async def restart_redis(compose: Compose) -> None:
    await compose("restart", "redis")


async def reload(compose: Compose) -> None:
    """The balancer itself is replaced."""
    await compose("exec", "-T", "balancer", "python", "-m", "balancer", "reload")


PHASES = [
    Phase("steady, 3 workers", nothing, settle=0),
    Phase("scale 3 to 1", one),
    Phase("scale 1 to 4", four),
    Phase("force-recreate", recreate),
    Phase("restart", restart),
    Phase("stop, 2 s, start", stop_and_start),
    Phase("kill -9 of one", kill, excuses=True),
    # A paused worker cannot be told from a busy one: what it has waits until it goes on.
    Phase("pause of one, 5 s", pause, excuses=True, limit=7.0),
    Phase("disconnect of one, 5 s", disconnect, excuses=True, limit=4.0),
    Phase("deploy of a new image", deploy),
    Phase("balancer reload", reload),
    # The workers themselves wait for Redis, two seconds at most for a connection and one for an answer.
    Phase("Redis restart", restart_redis, limit=3.5),
]

# uvicorn as it comes resets connections on which a request arrives just when it is told to stop; a POST on one of
# them may have been carried out. It refuses connections some 0.4 s before its end, from which the gap is counted.
_STOPPING = (one, recreate, restart, stop_and_start, deploy)
PLAIN_PHASES = [
    replace(
        phase,
        excuses=phase.excuses or phase.act in _STOPPING,
        limit=1.0 if phase.act in _STOPPING else phase.limit,
    )
    for phase in PHASES
]
