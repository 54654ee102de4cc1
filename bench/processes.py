"""Processes of a run: started on one core, ended whatever happens, and their CPU time and memory."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 5.0

_libc = ctypes.CDLL(None, use_errno=True)
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something that a run needs is not there or does not work; the text says what."""


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def cores() -> tuple[int, int]:
    """(core of the proxy, core of everything else)."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError("two cores are needed: one for the proxy, one for load and upstreams")
    return allowed[0], allowed[1]


def pinned(core: int, argv: Sequence[str]) -> list[str]:
    """The command line on one core; the process is told to end when the harness dies, even if that is killed."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(core), *argv]


class Server:
    """A long-running process group; use it within ``with``. Its output goes to ``log``."""

    def __init__(
        self, name: str, argv: Sequence[str], core: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.core = core
        self._argv = pinned(core, argv)
        self._log = log
        self._env = {**os.environ, **(env or {})}

    def __enter__(self) -> Server:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._log.parent,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signal_group(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def wait_for_answer(self, address: Address, path: str = "/", tls: bool = False) -> None:
        """Return once ``GET path`` is answered 200; BenchError with the end of the log if that does not come."""
        deadline = time.monotonic() + START_SECONDS
        last = "nothing"
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                status, _ = fetch(address, "GET", path, timeout=2, tls=tls)
            except (OSError, http.client.HTTPException) as error:
                last = str(error)
            else:
                if status == 200:
                    return
                last = f"status {status}"
            time.sleep(0.05)
        tail = self._log.read_text(errors="replace")[-1500:]
        raise BenchError(f"{self.name} does not answer on {address} ({last}); its log ends:\n{tail}")

    def alive(self) -> bool:
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """CPU time that the process and its descendants, also those that have ended, have used."""
        return sum(_cpu_seconds(pid) for pid in self.pids())

    def memory_kib(self) -> int:
        """Resident memory of the tree now. What its processes share counts once (PSS, proc(5))."""
        return sum(_kib(pid, "smaps_rollup", "Pss") for pid in self.pids())

    def peak_kib(self) -> int:
        """The sum of the peaks of the tree's processes, less what they share now."""
        peaks, resident = (sum(_kib(pid, "status", field) for pid in self.pids()) for field in ("VmHWM", "VmRSS"))
        return peaks - (resident - self.memory_kib())

    def pids(self) -> list[int]:
        """The processes of the tree, parents before children."""
        parents: dict[int, list[int]] = {}
        for pid, parent in _processes():
            parents.setdefault(parent, []).append(pid)
        found = [self._process.pid]
        for pid in found:
            found.extend(parents.get(pid, ()))
        return found


def _processes() -> Iterator[tuple[int, int]]:
    """(process, its parent) of all processes."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), int(_stat(int(entry.name))[1])
            except OSError:
                continue


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold blanks and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    # utime and stime in /proc/PID/stat are the same account in ticks of 10 ms; this clock has nanoseconds.
    clock = ctypes.c_int()
    try:
        if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
            return 0.0
        cutime, cstime = _stat(pid)[13:15]
        return time.clock_gettime(clock.value) + (int(cutime) + int(cstime)) / _TICKS
    except OSError:
        return 0.0


def _kib(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)


def busy_seconds(core: int) -> float:
    """CPU time that everybody has used on a core, time stolen by a hypervisor included."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def fetch(
    address: Address, method: str, path: str, body: bytes | None = None, timeout: float = 30, tls: bool = False
) -> tuple[int, int]:
    """(status, length of the body) of one request on a connection of its own; any certificate will do."""
    connection = (
        http.client.HTTPSConnection(*address, timeout=timeout, context=unverified())
        if tls
        else http.client.HTTPConnection(*address, timeout=timeout)
    )
    try:
        connection.request(method, path, body=body)
        response = connection.getresponse()
        return response.status, len(response.read())
    finally:
        connection.close()


def unverified() -> ssl.SSLContext:
    """A client's context that takes any certificate, as the load generators do."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextmanager
def undisturbed(*servers: Server) -> Iterator[bool]:
    """Put this process, those that it starts, and running servers into the real-time class, before all others.

    Yields whether the system lets it. Nice values do not help: Linux weighs them within one session (autogroup in
    sched(7)), so that a neighbour in another session has half of the core. A candidate that needs more than the other
    half waits for it, milliseconds each time, and one that needs less does not.
    """
    try:
        for pid in (0, *(pid for server in servers for pid in server.pids())):
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        for pid in (0, *(pid for server in servers for pid in server.pids())):
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the run through every ``with`` block; a second one does not cut that short."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        for ended_by in numbers:
            signal.signal(ended_by, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
