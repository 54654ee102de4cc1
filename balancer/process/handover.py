"""What a process has of its supervisor, and what one supervisor leaves to the next."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

# What tells a process that others have taken its place.
LEAVE = signal.SIGUSR2
HANDOVER = "_BALANCER_HANDOVER"
TRIAL = "_BALANCER_TRIAL"


@dataclass(frozen=True)
class WorkerContext:
    """What a process has of its supervisor. ``ready``: to be called once it serves.

    ``lifeline``: a descriptor that becomes readable when the supervisor is no more. ``drains``: that of the file of
    ``process.drains``. ``succeeds``: there are processes that serve until this one is ready. ``generation``: how many
    reloads came before, and ``supervisor``: the process id.
    """

    lifeline: int
    drains: int
    ready: Callable[[], None]
    succeeds: bool
    generation: int
    supervisor: int


@dataclass(frozen=True)
class WorkerSpec:
    """A place for one process. ``run`` is what it does; ``sockets`` are the listening sockets that it needs."""

    name: str
    run: Callable[[WorkerContext], None]
    sockets: Sequence[socket.socket] = ()


@dataclass
class Handover:
    """What the supervisor hands over to the new code: descriptors, and processes by the names of their slots.

    ``processes``: how many serve, which a reload does not change; 0 at a first start.
    """

    processes: int = 0
    data: list[int] = field(default_factory=list)
    admin: list[int] = field(default_factory=list)
    lifeline: list[int] = field(default_factory=list)
    drains: list[int] = field(default_factory=list)
    mark: list[int] = field(default_factory=list)
    serving: dict[str, int] = field(default_factory=dict)
    leaving: list[int] = field(default_factory=list)
    generation: int = 0

    @classmethod
    def received(cls, environ: MutableMapping[str, str]) -> Handover:
        """What the code before has left in the environment; empty at a first start."""
        text = environ.pop(HANDOVER, None)
        handover = cls(**json.loads(text)) if text else cls()
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, False)
        return handover

    @property
    def descriptors(self) -> list[int]:
        return [*self.data, *self.admin, *self.lifeline, *self.drains, *self.mark]
