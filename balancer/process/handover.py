"""State that a process gets from its supervisor, and that a supervisor leaves to its successor."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

# Signal to a process whose successors serve.
REPLACED = signal.SIGUSR2
HANDOVER = "_BALANCER_HANDOVER"
TRIAL = "_BALANCER_TRIAL"


@dataclass(frozen=True)
class WorkerContext:
    """State from the supervisor, for one process. ``ready``: to be called once it serves.

    ``lifeline``: a descriptor that becomes readable when the supervisor ends. ``drains``: that of the file of
    ``process.drains``. ``succeeds``: other processes serve until this one is ready. ``generation``: number of
    reloads before, and ``supervisor``: the process id. ``identity``: random text that all processes of a balancer
    share, also those of a reload.
    """

    lifeline: int
    drains: int
    ready: Callable[[], None]
    succeeds: bool
    generation: int
    supervisor: int
    identity: str


@dataclass(frozen=True)
class WorkerSpec:
    """A place for one process. ``run``: its function; ``sockets``: the listening sockets that it needs."""

    name: str
    run: Callable[[WorkerContext], None]
    sockets: Sequence[socket.socket] = ()


@dataclass
class Handover:
    """State for the new code: descriptors, and processes by the names of their specs.

    ``processes``: number of those that serve, which a reload does not change; 0 at a first start.
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
    identity: str = ""

    @classmethod
    def received(cls, environ: MutableMapping[str, str]) -> Handover:
        """Return the state that the code before has left in the environment; empty at a first start."""
        text = environ.pop(HANDOVER, None)
        handover = cls(**json.loads(text)) if text else cls()
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, False)
        return handover

    @property
    def descriptors(self) -> list[int]:
        """All descriptors that the new code inherits."""
        return [*self.data, *self.admin, *self.lifeline, *self.drains, *self.mark]
