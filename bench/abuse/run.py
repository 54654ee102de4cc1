"""One candidate under one attack: what its honest clients wait, what its memory does, and what it says of it."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from balancer.demo.system import free_port
from bench.abuse.attack import SOURCE, Tally
from bench.abuse.candidates import BALANCER, COMMANDS, TOKEN, Setup, site_of
from bench.abuse.honest import PATIENCE, START_SECONDS, Latency, Plan
from bench.abuse.rows import Row
from bench.abuse.verdict import Figures
from bench.doors import Certificate
from bench.processes import Address, BenchError, Server, pinned
from bench.upstreams import Upstreams

# Honest requests a second, and between two looks at the memory, in seconds.
RATE = 60.0
SAMPLE_SECONDS = 0.25
# When the balancer's memory is looked at again.
AFTER_SECONDS = 10.0
ATTACK_START_SECONDS = 20.0

# Counters of /metrics: refusals, changes of members' states, lines that are lost.
_REFUSALS = ("balancer_client_limits_total", "balancer_errors_total")
# A client that left by itself was not refused.
_GONE = 'error="client_gone"'
_CHANGES = "balancer_state_changes_total"
_LOST = "balancer_log_lines_dropped_total"


class Talker:
    """A process that says ``ready``, and a line of JSON at its end."""

    def __init__(self, core: int, log: Path, module: str, *arguments: str) -> None:
        self._name = module
        self._log = log
        self._errors = log.open("wb")
        self.process = subprocess.Popen(
            pinned(core, [sys.executable, "-m", module, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
        )

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def line(self, seconds: float) -> str:
        """The next line; BenchError if it does not come."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        said = self.process.stdout.readline().decode() if ready else ""
        if not said:
            raise BenchError(f"{self._name} said nothing in {seconds:.0f} s: {self._log.read_text()[-500:]}")
        return said

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"go\n")


class Run:
    """``begin``, ``finish``, and ``settle``, which waits and may do so in a thread; ``close`` in any case."""

    def __init__(self, name: str, row: Row, upstreams: Upstreams, directory: Path, cores: tuple[int, int]) -> None:
        self.name = name
        self.row = row
        self._directory = directory / f"{row.name}-{name}"
        self._directory.mkdir()
        self._cores = cores
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._peak = 0
        self._operator = True
        certificate = Certificate(directory / "certificate.pem", directory / "key.pem")
        listen, admin = Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())
        self._setup = Setup(site_of(row, listen, upstreams, self._directory, certificate), row, admin)
        self._member_log = directory / "members.log"

    def begin(self, seconds: float) -> None:
        """Start the candidate and its honest clients, then the attack, and have the clients begin."""
        row, listen = self.row, self._setup.site.listen
        self._seconds = row.seconds or seconds
        command = COMMANDS[self.name](self._setup)
        core, other = self._cores
        log = self._directory / "output.log"
        self._server = self._stack.enter_context(Server(self.name, command.argv, core, log, command.env))
        plan = Plan(
            listen.host,
            listen.port,
            row.protocol,
            RATE,
            self._seconds,
            row.grace,
            not row.connections,
        )
        self._honest = self._talker(other, "honest", json.dumps(asdict(plan)))
        try:
            self._honest.line(START_SECONDS + 10)
        except BenchError as error:
            raise BenchError(f"{error}; {self.name}: {log.read_text(errors='replace')[-500:]}") from None
        self._before = self._server.memory_kib()
        self._log_size = log.stat().st_size
        self._reached = self._member_requests()
        self._counters = self._metrics()
        door = self._setup.admin if row.door == "admin" else listen
        lasts = self._seconds + PATIENCE + ATTACK_START_SECONDS
        self._attack = self._talker(
            other, "attack", row.attack, door.host, str(door.port), f"{lasts:.0f}", str(row.count)
        )
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self._attack.line(ATTACK_START_SECONDS)
        self._honest.go()

    def finish(self) -> None:
        """Wait for the honest clients, and end the attack."""
        if self.row.operator and self.name == BALANCER:
            time.sleep(self._seconds / 2)
            self._operator = self._operator_gets_in()
        self._latency = Latency(**json.loads(self._honest.line(self._seconds + 4 * PATIENCE)))
        self._attack.process.terminate()
        self._tally = Tally(**json.loads(self._attack.line(ATTACK_START_SECONDS)))
        self._ended = time.monotonic()
        self._stop.set()
        self._sampler.join()
        self._reached = self._member_requests() - self._reached

    def settle(self) -> Figures:
        """The figures; the balancer's only some seconds after the attack."""
        try:
            if self.name != BALANCER:
                return self._figures(0, {})
            time.sleep(max(0.0, self._ended + AFTER_SECONDS - time.monotonic()))
            return self._figures(self._server.memory_kib(), self._metrics())
        finally:
            self.close()

    def close(self) -> None:
        self._stop.set()
        self._stack.close()

    def _talker(self, core: int, module: str, *arguments: str) -> Talker:
        talker = Talker(core, self._directory / f"{module}.log", f"bench.abuse.{module}", *arguments)
        return self._stack.enter_context(talker)

    def _figures(self, after_kib: int, counters: dict[str, float]) -> Figures:
        risen = {name: rise for name, value in counters.items() if (rise := value - self._counters.get(name, 0.0)) > 0}
        with (self._directory / "output.log").open("rb") as log:
            log.seek(self._log_size)
            lines = Counter((SOURCE.encode() in line, line.startswith(b"Traceback ")) for line in log)
        return Figures(
            self._latency,
            self._tally,
            self._before,
            max(self._peak, self._before),
            after_kib,
            changes=int(sum(rise for name, rise in risen.items() if name.startswith(_CHANGES))),
            counted={name: rise for name, rise in risen.items() if name.startswith(_REFUSALS) and _GONE not in name},
            logged=lines[True, False],
            tracebacks=lines[False, True],
            lost=int(sum(rise for name, rise in risen.items() if name.startswith(_LOST))),
            operator=self._operator,
            reached=self._reached,
            alive=self._server.alive(),
        )

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._server.memory_kib())

    def _member_requests(self) -> int:
        """Requests of smuggling that members have had."""
        return self._member_log.read_bytes().count(b"\n") if self._member_log.exists() else 0

    def _metrics(self) -> dict[str, float]:
        if self.name != BALANCER:
            return {}
        try:
            with urllib.request.urlopen(f"http://{self._setup.admin}/metrics", timeout=30) as response:
                return samples(response.read().decode())
        except OSError as error:
            raise BenchError(f"the admin port does not answer: {error}") from None

    def _operator_gets_in(self) -> bool:
        asked = urllib.request.Request(
            f"http://{self._setup.admin}/api/stream", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def samples(text: str) -> dict[str, float]:
    """The counters of Prometheus's text format that say what became of an attack, by name with labels."""
    wanted = (*_REFUSALS, _CHANGES, _LOST)
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(wanted))
    return {name: float(value) for name, _, value in lines}
