"""Keeps the processes that serve: starts them, restarts those that die, and replaces them all by new code.

The supervisor has the listening sockets and serves no client itself, so that little in it can fail. It
has no event loop: only so can it fork at any time.

Rules:
* A process that dies is forked anew with everything already imported, which takes some milliseconds. Connections in
  the queue of its socket wait for the new one, because the socket is the supervisor's. After a process that did not
  live for LIVED seconds, the next one starts RESTART_SECONDS later.
* A process that ends before the first time all of them serve ends the start: its status is the supervisor's.
* SIGTERM and SIGINT: all stop. SIGHUP: all read their files again.
* SIGUSR2: a trial of the new code, as a process of its own that serves no client, comes first. Then the supervisor
  becomes the new code by exec: same process id, same sockets, and those that serve are still its children. They go on
  until all of the new ones are ready, and get the signal REPLACED then. If the new ones fail, they go and the
    old ones stay.
  * If the supervisor is killed, the processes read the end of a pipe, and stop.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from balancer.errors import FAILED
from balancer.process.drains import make_file
from balancer.process.handover import HANDOVER, REPLACED, TRIAL, Handover, WorkerContext, WorkerSpec
from balancer.process.supervisor_mark import make_mark
from balancer.telemetry import log_output

log = logging.getLogger(__name__)

# Seconds before a process that ended early is started again, and the age in seconds that is not early.
RESTART_SECONDS = 0.5
LIVED = 1.0
# Seconds in which all new processes have to be ready; else the old ones stay.
RELOAD_LIMIT = 30.0


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


@dataclass
class _Process:
    spec: WorkerSpec
    started: float
    # Readable once it is ready, or has ended.
    ready_pipe: int
    ready: bool = False


class Supervisor:
    """Runs a process for each of ``specs``, of which ``count`` serve. ``data``, ``admin``: all listening sockets."""

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        count: int,
        data: Sequence[socket.socket],
        admin: Sequence[socket.socket],
        before: Handover,
    ) -> None:
        self._specs = specs
        self._count = count
        self._data = data
        self._admin = admin
        self._before = before
        self._lifeline = before.lifeline or list(os.pipe())
        self._drains = before.drains or [make_file()]
        self._mark = before.mark
        self._identity = before.identity or secrets.token_hex(8)
        self._processes: dict[int, _Process] = {}
        # Processes of the code before: by name while they serve, and those that leave.
        self._old = dict(before.serving)
        self._leaving = set(before.leaving)
        self._due: list[tuple[float, WorkerSpec]] = []
        self._deadline = time.monotonic() + RELOAD_LIMIT if self._old else float("inf")
        self._settled = False
        self._stopping = False
        self._failed = 0
        self._trial: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run until all processes have ended; return the exit status."""
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)
        # Before this, SIGUSR2 would have ended this process.
        self._mark = self._mark or make_mark()
        for spec in self._specs:
            self._start(spec)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._reap()  # Some may have ended while signals were not handled.
        while self._processes or self._old or self._leaving or self._due:
            for key, _ in self._selector.select(self._next_timeout()):
                if key.fileobj is woken:
                    self._signalled(woken)
                else:
                    self._on_ready(key.data)
            self._on_time()
        return self._failed

    def _next_timeout(self) -> float | None:
        """Return the seconds until the next thing that is due by time."""
        now = time.monotonic()
        waits = [now + log_output.TICK_SECONDS] if log_output.tick() else []
        soonest = min([self._deadline, *(when for when, _ in self._due), *waits])
        return None if soonest == float("inf") else max(0.0, soonest - now)

    def _on_time(self) -> None:
        now = time.monotonic()
        due, self._due = self._due, [entry for entry in self._due if entry[0] > now]
        for when, spec in due:
            if when <= now:
                self._start(spec)
        if now >= self._deadline:
            self._give_up_reload(f"not all new processes were ready within {RELOAD_LIMIT:g} s")

    # Processes.

    def _start(self, spec: WorkerSpec) -> None:
        ready_pipe, ready_end = os.pipe()
        sys.stdout.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._child_main(spec, ready_end)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(ready_end)
        self._processes[pid] = process = _Process(spec, time.monotonic(), ready_pipe)
        self._selector.register(ready_pipe, selectors.EVENT_READ, process)

    def _child_main(self, spec: WorkerSpec, ready_end: int) -> NoReturn:
        """Run a new process to its end. The child unblocks signals once handlers are installed."""
        status = FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            # A Ctrl-C reaches all processes at the terminal; the supervisor alone acts on it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._selector.close()
            for descriptor in (self._lifeline[1], *self._mark):
                os.close(descriptor)
            for sock in {*self._data, *self._admin} - {*spec.sockets}:
                sock.close()

            def ready() -> None:
                os.write(ready_end, b"!")
                os.close(ready_end)

            context = WorkerContext(
                self._lifeline[0], self._drains[0], ready, bool(self._old), self._before.generation, os.getppid(),
                self._identity,
            )  # fmt: skip
            spec.run(context)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else FAILED
        except BaseException:
            sys.stderr.write(traceback.format_exc())  # All of its lines at once.
        finally:
            # An ordinary exit would run the supervisor's own clean-up here.
            log_output.finish()
            os._exit(status)

    # Reports of processes.

    def _on_ready(self, process: _Process) -> None:
        self._selector.unregister(process.ready_pipe)
        process.ready = bool(os.read(process.ready_pipe, 1))
        os.close(process.ready_pipe)
        if all(process.ready for process in self._processes.values()) and len(self._processes) == len(self._specs):
            self._settled = True
            if self._old:
                log.info("reloaded: the processes before leave")
                self._dismiss(self._old.values(), REPLACED)

    def _dismiss(self, old: Iterable[int], number: signal.Signals) -> None:
        pids = list(old)
        self._leaving.update(pids)
        self._old = {}
        self._deadline = float("inf")
        _kill(pids, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if self._trial and pid == self._trial.pid:
                self._trial_ended(self._trial, code)
            elif pid in self._processes:
                self._ended(self._processes.pop(pid), pid, code)
            else:
                # A process of the code before; or, where this is the first process of a container, an orphan.
                self._leaving.discard(pid)
                self._old = {name: number for name, number in self._old.items() if number != pid}

    def _ended(self, process: _Process, pid: int, code: int) -> None:
        if self._stopping:
            self._failed = self._failed or (code and FAILED)
            return
        how = f"was killed ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
        if self._settled:
            soon = time.monotonic() - process.started < LIVED
            log.error("process %s (%d) %s and is started again", process.spec.name, pid, how)
            self._due.append((time.monotonic() + RESTART_SECONDS * soon, process.spec))
        elif self._old:
            self._give_up_reload(f"process {process.spec.name} {how}")
        else:
            self._failed = code if code > 0 else FAILED
            self._stop()

    # Signals.

    def _signalled(self, woken: socket.socket) -> None:
        numbers = set(woken.recv(4096))
        if signal.SIGCHLD in numbers:
            self._reap()
        if {signal.SIGTERM, signal.SIGINT} & numbers:
            self._stop()
        if self._stopping:
            return
        if signal.SIGHUP in numbers:
            _kill([*self._processes, *self._old.values()], signal.SIGHUP)
        if signal.SIGUSR2 in numbers:
            self._start_trial()

    def _stop(self) -> None:
        self._stopping = True
        self._due.clear()
        self._deadline = float("inf")
        if self._trial:
            self._trial.kill()
        # No client is to wait for an answer that does not come any more.
        for sock in self._data:
            sock.close()
        _kill([*self._processes, *self._old.values(), *self._leaving], signal.SIGTERM)

    # Reload.

    def _start_trial(self) -> None:
        if self._trial or not self._settled:
            log.error("SIGUSR2: the processes are still being replaced; nothing changes")
            return
        log.info("SIGUSR2: trying the new code")
        try:
            self._trial = subprocess.Popen(_command(), env=os.environ | {TRIAL: "1"})
        except OSError as error:
            log.error("the new code cannot be run: %s; nothing changes", error)

    def _trial_ended(self, trial: subprocess.Popen[bytes], code: int) -> None:
        trial.returncode = code  # The process cannot be waited for a second time.
        self._trial = None
        if self._stopping:
            return
        if code:
            log.error("the new code cannot be run (status %d); nothing changes", code)
            return
        handover = Handover(
            processes=self._count,
            data=[sock.fileno() for sock in self._data],
            admin=[sock.fileno() for sock in self._admin],
            lifeline=self._lifeline,
            drains=self._drains,
            mark=self._mark,
            serving={process.spec.name: pid for pid, process in self._processes.items()},
            leaving=list(self._leaving),
            generation=self._before.generation + 1,
            identity=self._identity,
        )
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, True)
        log_output.finish()
        # Signals that come in between wait for the new code.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            os.execve(sys.executable, _command(), os.environ | {HANDOVER: json.dumps(asdict(handover))})
        except OSError as error:
            log.error("the new code cannot be run: %s; nothing changes", error)
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _give_up_reload(self, why: str) -> None:
        log.error("the reload failed: %s; the processes before go on", why)
        new = list(self._processes)
        # The processes before take the places of the new ones again.
        specs = {spec.name: spec for spec in self._specs}
        self._processes = {
            pid: _Process(specs[name], time.monotonic(), -1, ready=True)
            for name, pid in self._old.items()
            if name in specs
        }
        self._old = {}
        self._settled = True
        self._dismiss(new, signal.SIGTERM)


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _kill(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # It has ended; SIGCHLD follows.
