"""Keeps the processes that serve: starts them, replaces those that die, and replaces them all by new code.

The supervisor has the listening sockets and serves no client itself, so that there is little in it that could fail. It
has no event loop: only so can it fork at any time.

Rules:
* A process that dies is forked anew with everything already imported, which takes some milliseconds. What waits in
  the queue of its socket waits for the new one, because the socket is the supervisor's. One that did not live for
  LIVED seconds is given RESTART_SECONDS.
* A process that ends before the first time all of them serve ends the start: its status is the supervisor's.
* SIGTERM and SIGINT: all stop (DESIGN 3.3). SIGHUP: all read their files again.
* SIGUSR2: a trial of the new code, as a process of its own that serves no client, comes first. Then the supervisor
  becomes the new code by exec: same process id, same sockets, and those that serve are still its children. They go on
  until all of the new ones are ready, and are told to leave (LEAVE) then. If that does not come to pass, the new ones
  go and the old ones stay.
* Should the supervisor be killed, the others see the end of a pipe, and stop.
"""

from __future__ import annotations

import json
import logging
import os
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

from balancer.exit_codes import FAILED
from balancer.process.drains import make_notes
from balancer.process.handover import HANDOVER, LEAVE, TRIAL, Handover, WorkerContext, WorkerSpec
from balancer.process.supervisor_mark import make_mark

log = logging.getLogger(__name__)

# Seconds before a process is started again that ended so soon, and how soon that is.
RESTART_SECONDS = 0.5
LIVED = 1.0
# Seconds in which all new processes have to be ready, or the old ones stay.
RELOAD_LIMIT = 30.0


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


@dataclass
class _Process:
    slot: WorkerSpec
    started: float
    # Readable once it is ready, or has ended.
    news: int
    ready: bool = False


class Supervisor:
    """Runs a process in each of ``slots``, of which ``count`` serve. ``data``, ``admin``: all listening sockets."""

    def __init__(
        self,
        slots: Sequence[WorkerSpec],
        count: int,
        data: Sequence[socket.socket],
        admin: Sequence[socket.socket],
        before: Handover,
    ) -> None:
        self._slots = slots
        self._count = count
        self._data = data
        self._admin = admin
        self._before = before
        self._lifeline = before.lifeline or list(os.pipe())
        self._drains = before.drains or [make_notes()]
        self._mark = before.mark
        self._processes: dict[int, _Process] = {}
        # Those of the code before: by slot while they serve, and those that leave.
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
        """Until all processes have ended; returns the exit status."""
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)
        # Only now does SIGUSR2 not end it.
        self._mark = self._mark or make_mark()
        for slot in self._slots:
            self._start(slot)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._reap()  # Some may have ended while signals were not handled.
        while self._processes or self._old or self._leaving or self._due:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is woken:
                    self._signalled(woken)
                else:
                    self._on_ready(key.data)
            self._on_time()
        return self._failed

    def _patience(self) -> float | None:
        """Seconds until the next thing that is due by time."""
        soonest = min([self._deadline, *(when for when, _ in self._due)])
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())

    def _on_time(self) -> None:
        now = time.monotonic()
        due, self._due = self._due, [it for it in self._due if it[0] > now]
        for when, slot in due:
            if when <= now:
                self._start(slot)
        if now >= self._deadline:
            self._give_up_reload(f"not all new processes were ready within {RELOAD_LIMIT:g} s")

    # What a process does.

    def _start(self, slot: WorkerSpec) -> None:
        news, tell = os.pipe()
        sys.stdout.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._child_main(slot, tell)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(tell)
        self._processes[pid] = process = _Process(slot, time.monotonic(), news)
        self._selector.register(news, selectors.EVENT_READ, process)

    def _child_main(self, slot: WorkerSpec, tell: int) -> NoReturn:
        """The life of a new process. The child unblocks signals once handlers are installed."""
        status = FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            # A Ctrl-C reaches everybody at the terminal; the supervisor says what comes of it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._selector.close()
            for descriptor in (self._lifeline[1], *self._mark):
                os.close(descriptor)
            for sock in {*self._data, *self._admin} - {*slot.sockets}:
                sock.close()

            def ready() -> None:
                os.write(tell, b"!")
                os.close(tell)

            lifeline, generation = self._lifeline[0], self._before.generation
            slot.run(WorkerContext(lifeline, self._drains[0], ready, bool(self._old), generation, os.getppid()))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else FAILED
        except BaseException:
            traceback.print_exc()
        finally:
            # What the supervisor has open and would close at its end, is none of this process's business.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    # What is heard of processes.

    def _on_ready(self, process: _Process) -> None:
        self._selector.unregister(process.news)
        process.ready = bool(os.read(process.news, 1))
        os.close(process.news)
        if all(it.ready for it in self._processes.values()) and len(self._processes) == len(self._slots):
            self._settled = True
            if self._old:
                log.info("reloaded: the processes before leave")
                self._dismiss(self._old.values(), LEAVE)

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
                # One of the code before; or, where this is the first process of a container, an orphan.
                self._leaving.discard(pid)
                self._old = {name: it for name, it in self._old.items() if it != pid}

    def _ended(self, process: _Process, pid: int, code: int) -> None:
        if self._stopping:
            self._failed = self._failed or (code and FAILED)
            return
        how = f"was killed ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
        if self._settled:
            soon = time.monotonic() - process.started < LIVED
            log.error("process %s (%d) %s and is started again", process.slot.name, pid, how)
            self._due.append((time.monotonic() + RESTART_SECONDS * soon, process.slot))
        elif self._old:
            self._give_up_reload(f"process {process.slot.name} {how}")
        else:
            self._failed = code if code > 0 else FAILED
            self._stop()

    # What is asked for.

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
        # No command is to wait for an answer that does not come any more.
        for sock in self._data:
            sock.close()
        _kill([*self._processes, *self._old.values(), *self._leaving], signal.SIGTERM)

    # What becomes of a reload.

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
            data=[it.fileno() for it in self._data],
            admin=[it.fileno() for it in self._admin],
            lifeline=self._lifeline,
            drains=self._drains,
            mark=self._mark,
            serving={it.slot.name: pid for pid, it in self._processes.items()},
            leaving=list(self._leaving),
            generation=self._before.generation + 1,
        )
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, True)
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
        # They are as good as ours, but for what they run.
        slots = {it.name: it for it in self._slots}
        self._processes = {
            pid: _Process(slots[name], time.monotonic(), -1, ready=True)
            for name, pid in self._old.items()
            if name in slots
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
            pass  # It has ended; SIGCHLD says so.
