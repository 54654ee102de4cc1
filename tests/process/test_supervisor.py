"""Several processes on one port, and their replacement by others: real processes, real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from balancer.demo.dns_server import DnsServer, Zone
from balancer.demo.system import free_port
from tests.support.admin import check
from tests.support.messages import GET
from tests.support.metrics import Scrape
from tests.support.wire import LIMIT, OK, Connection, Member


class Fleet:
    """``balancer serve`` with several processes."""

    def __init__(self, process: Process, port: int, admin: httpx.AsyncClient, zone: Zone) -> None:
        self.process = process
        self.port = port
        self.admin = admin
        self.zone = zone

    async def status(self) -> dict[str, Any]:
        found = await self._status()
        check("Status", found)
        return found

    async def _status(self) -> dict[str, Any]:
        response = await self.admin.get("/api/status")
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        return found

    async def until(self, wanted: Callable[[dict[str, Any]], object], limit: float = LIMIT) -> dict[str, Any]:
        """The status, once it is as wanted."""
        async with asyncio.timeout(limit):
            while True:
                try:
                    status = await self._status()
                except httpx.TransportError:
                    continue  # The admin listener is being replaced.
                if wanted(status):
                    check("Status", status)
                    return status
                await asyncio.sleep(0.02)

    async def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.admin.get("/api/events")).json()["events"]
        return found

    async def reloaded(self, generation: int, processes: int) -> dict[str, Any]:
        """The status, once so many processes of that generation serve."""
        return await self.until(
            lambda it: it["generation"] == generation and len(it["processes"]) == processes, 3 * LIMIT
        )

    async def pids(self) -> list[int]:
        return [it["pid"] for it in (await self.status())["processes"]]

    async def open(self) -> Connection:
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port))

    async def get(self) -> bytes:
        """One request on a connection of its own; the answer, or b"" if there was none."""
        connection = await self.open()
        try:
            await connection.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            return await connection.to_end()
        except OSError:
            return b""
        finally:
            connection.close()

    async def stop(self) -> tuple[int | None, str]:
        """Exit status and standard error, after SIGTERM."""
        self.process.terminate()
        async with asyncio.timeout(2 * LIMIT):
            _, err = await self.process.communicate()
        return self.process.returncode, err.decode()


def name_containers(zone: Zone, *names: str) -> None:
    """Say whose 127.0.0.1, 127.0.0.2 and so on are."""
    for number, name in enumerate(names, 1):
        zone.records[f"{number}.0.0.127.in-addr.arpa"] = [("PTR", f"{name}.shop_backend.")]


@asynccontextmanager
async def fleet(
    *members: Member, processes: int = 2, ready: bool = True, bind: str = "", **settings: str
) -> AsyncIterator[Fleet]:
    zone = Zone()
    zone.records["apps"] = [("A", it.address.host) for it in members]
    name_containers(zone, *(f"worker-{number}" for number, _ in enumerate(members, 1)))
    port, admin_port = free_port(), free_port()
    environ = {f"BALANCER_{name.upper()}": value for name, value in settings.items()}
    async with DnsServer(zone) as dns, httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}") as admin:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "balancer", "serve",
            f"--bind={bind or f'127.0.0.1:{port}'}", f"--admin-bind=127.0.0.1:{admin_port}",
            f"--upstream-port={members[0].address.port}", f"--resolver={dns.address}", f"--processes={processes}",
            env=os.environ | {"BALANCER_ACCESS_LOG": "off"} | environ, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        found = Fleet(process, port, admin, zone)
        try:
            if ready:
                await found.until(
                    lambda it: len(it["processes"]) == processes and it["pools"][0]["available"] == len(members),
                )
            yield found
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


def named(name: bytes) -> Any:
    """A member that answers with its name."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.head()
            await connection.send(OK.replace(b"ok", name))

    return script


@asynccontextmanager
async def pair_of_members() -> AsyncIterator[tuple[Member, Member]]:
    async with Member(named(b"m1")) as one, Member(named(b"m2"), "127.0.0.2", one.address.port) as two:
        yield one, two


async def test_round_robin_stays_even_over_processes_and_one_admin_port_shows_the_sum() -> None:
    async with pair_of_members() as members, fleet(*members) as it:
        got: Counter[bytes] = Counter()

        async def client(requests: int) -> None:
            connection = await it.open()
            for _ in range(requests):
                await connection.send(GET)
                head = await connection.head()
                assert b"200 OK" in head
                got[await connection.exactly(2)] += 1
            connection.close()

        await asyncio.gather(*(client(200) for _ in range(20)))
        assert sum(got.values()) == 4000
        assert all(abs(number - 2000) <= 100 for number in got.values()), got
        status = await it.until(lambda status: status["pools"][0]["requests"] == 4000)
        assert sum(member["requests"] for member in status["pools"][0]["members"]) == 4000
        scrape = Scrape((await it.admin.get("/metrics")).text)
        assert scrape.sum("balancer_requests_total") == 4000
        assert scrape.labels("balancer_process_cpu_seconds_total", "process") == {"0", "1"}
        # Both have had their part.
        assert all(scrape.get("balancer_process_cpu_seconds_total", process=number) > 0.02 for number in "01")
        joined = [event["text"] for event in await it.events() if event["kind"] == "joined"]
        assert len(joined) == 1, joined
        assert (await it.stop())[0] == 0


async def test_killed_process_takes_only_its_own_connections_with_it_and_is_replaced() -> None:
    async with pair_of_members() as members, fleet(*members, processes=4) as it:
        before = await it.pids()
        connections = [await it.open() for _ in range(40)]
        for connection in connections:
            await connection.send(GET)
            await connection.head()
            await connection.exactly(2)
        await it.until(lambda status: status["pools"][0]["requests"] == 40)
        os.kill(before[2], signal.SIGKILL)
        answers = await asyncio.gather(*(it.get() for _ in range(50)))
        assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers), answers
        after = await it.until(lambda status: len({it["pid"] for it in status["processes"]} - set(before)) == 1)
        assert [now["pid"] for now in after["processes"] if now["pid"] in before] == before[:2] + before[3:]
        kept = 0
        for connection in connections:
            try:
                await connection.send(GET)
                await connection.head()
                kept += 1
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            connection.close()
        assert 15 <= kept < 40
        # What the killed one had counted, and had reported, is still counted; what came later, too.
        await it.until(lambda status: status["pools"][0]["requests"] >= 90 + kept)
        status, err = await it.stop()
        assert status == 0
        assert "was killed (Killed) and is started again" in err


async def test_drain_is_for_all_processes_and_for_those_that_come_later() -> None:
    async with pair_of_members() as members, fleet(*members) as it:
        one, _ = members
        path = f"/api/members/{one.address}/drain"
        response = await it.admin.post(path, headers={"content-type": "application/json"})
        assert response.status_code == 200, response.text
        await it.until(lambda status: status["pools"][0]["available"] == 1)
        pids = await it.pids()
        os.kill(pids[0], signal.SIGKILL)
        await it.until(
            lambda status: (
                pids[0] not in [now["pid"] for now in status["processes"]] and status["pools"][0]["available"] == 1
            )
        )
        answers = [await it.get() for _ in range(20)]
        assert all(answer.endswith(b"m2") for answer in answers), answers
        drained = [event["text"] for event in await it.events() if event["kind"] == "drained"]
        assert drained[0] == f"{one.address} drained by hand"


@pytest.mark.parametrize("processes", [1, 2])
async def test_containers_that_swap_addresses_take_their_names_along_and_leave_drains_behind(processes: int) -> None:
    async with pair_of_members() as members, fleet(*members, processes=processes, health_interval="0.1") as it:

        def named(*names: str) -> Callable[[dict[str, Any]], bool]:
            return lambda status: [member["name"] for member in status["pools"][0]["members"]] == [*names]

        await it.until(named("worker-1", "worker-2"))
        path, headers = f"/api/members/{members[0].address}/drain", {"content-type": "application/json"}
        response = await it.admin.post(path, headers=headers, content='{"name": "worker-1"}')
        assert response.status_code == 200, response.text
        await it.until(lambda status: status["pools"][0]["available"] == 1)
        for member in members:
            await member.stop()
        await it.until(lambda status: all(it["state"] == "down" for it in status["pools"][0]["members"]))
        name_containers(it.zone, "worker-2", "worker-1")
        for member in members:
            await member.start_again()
        await it.until(named("worker-2", "worker-1"))
        status = await it.until(lambda status: status["pools"][0]["available"] == 2)
        assert not any(member["drained"] for member in status["pools"][0]["members"])
        one = str(members[0].address)
        told = [(event["kind"], event["level"], event["name"]) for event in await it.events() if event["member"] == one]
        assert ("drained", "warning", "worker-1") in told
        assert ("state", "bad", "worker-1") in told
        assert told[-1] == ("drained", "good", "worker-2")
        assert {(await it.get())[-2:] for _ in range(10)} == {b"m1", b"m2"}
        response = await it.admin.post(path, headers=headers, content='{"name": "worker-1"}')
        assert (response.status_code, response.json()["error"]) == (409, "another_name")


@pytest.mark.parametrize("processes", [1, 2])
async def test_drain_by_hand_outlives_a_reload_and_a_crash(processes: int) -> None:
    async with pair_of_members() as members, fleet(*members, processes=processes) as it:
        one, _ = members

        async def by_hand(action: str) -> None:
            path = f"/api/members/{one.address}/{action}"
            response = await it.admin.post(path, headers={"content-type": "application/json"})
            assert response.status_code == 200, response.text

        async def answers() -> set[bytes]:
            return {(await it.get())[-2:] for _ in range(10)}

        await by_hand("drain")
        await it.until(lambda status: status["pools"][0]["available"] == 1)
        it.process.send_signal(signal.SIGUSR2)
        status = await it.reloaded(1, processes)
        assert [member["drained"] for member in status["pools"][0]["members"]] == [True, False]
        assert await answers() == {b"m2"}
        for pid in await it.pids():
            os.kill(pid, signal.SIGKILL)
        known = [now["pid"] for now in status["processes"]]
        await it.until(
            lambda status: (
                not {now["pid"] for now in status["processes"]} & set(known) and status["pools"][0]["available"] == 1
            )
        )
        assert await answers() == {b"m2"}
        await by_hand("undrain")
        await it.until(lambda status: status["pools"][0]["available"] == 2)
        it.process.send_signal(signal.SIGUSR2)
        await it.reloaded(2, processes)
        assert await answers() == {b"m1", b"m2"}


async def test_unix_socket_is_shared_by_all_processes_through_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "balancer.sock"
    async with Member() as member, fleet(member, bind=f"unix:{path}") as it:
        it.process.send_signal(signal.SIGUSR2)
        await it.reloaded(1, 2)
        reader, writer = await asyncio.open_unix_connection(path)
        connection = Connection(reader, writer)
        await connection.send(GET)
        assert b"200 OK" in await connection.head()
        connection.close()
        status, err = await it.stop()
        assert (status, path.exists()) == (0, False), err


@pytest.mark.parametrize("processes", [1, 2])
async def test_reload_loses_no_request_and_lets_what_is_under_way_finish(processes: int) -> None:
    release = asyncio.Event()

    async def slow(connection: Connection) -> None:
        while True:
            if b"/slow" in await connection.head():
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
                await release.wait()
                await connection.send(b"cd")
            else:
                await connection.send(OK)

    async with Member(slow) as member, fleet(member, processes=processes) as it:
        before = await it.pids()
        long = await it.open()
        await long.send(GET.replace(b"GET /", b"GET /slow"))
        await long.until(b"ab")
        answers: list[bytes] = []
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                answers.append(await it.get())
                await asyncio.sleep(0.01)  # Clients that take both cores would hold up the processes that start.

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        for generation in (1, 2):
            it.process.send_signal(signal.SIGUSR2)
            status = await it.reloaded(generation, processes)
            assert status["supervisor"] == it.process.pid
            assert not {now["pid"] for now in status["processes"]} & set(before)
            before = [now["pid"] for now in status["processes"]]
        done.set()
        await asyncio.gather(*clients)
        assert len(answers) > 50
        assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers), [it for it in answers if not it]
        # Of the first generation, through both.
        release.set()
        assert await long.exactly(2) == b"cd"
        long.close()
        status_code, err = await it.stop()
        assert status_code == 0, err
        assert err.count("reloaded: the processes before leave") == 2


async def test_connections_that_are_idle_at_a_reload_get_one_more_answer() -> None:
    async with Member() as member, fleet(member, processes=1) as it:
        connections = [await it.open() for _ in range(20)]
        for connection in connections[:10]:
            await connection.send(GET)
            await connection.head()
            await connection.exactly(2)
        it.process.send_signal(signal.SIGUSR2)
        await it.reloaded(1, 1)
        for connection in connections:
            await connection.send(GET)
            assert (await connection.to_end()).endswith(b"ok")
            assert b"onnection: close" in connection.received
            connection.close()


async def reload(*arguments: str) -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error of ``balancer reload``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "balancer", "reload", *arguments, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_command_reload_waits_until_new_processes_serve() -> None:
    async with pair_of_members() as members, fleet(*members) as it:
        before = await it.pids()
        status, out, err = await reload(f"--admin-bind={it.admin.base_url.netloc.decode()}")
        assert (status, err) == (0, "")
        after = await it.pids()
        assert out == f"reloaded: {after[0]}, {after[1]} serve, the processes before leave\n"
        assert not {*before} & {*after}


async def test_new_code_that_cannot_run_changes_nothing(tmp_path: Any) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('[one]\nalias = "apps"\npath = "/"\n')
    async with pair_of_members() as members, fleet(*members, routes=str(routes)) as it:
        before = await it.pids()
        routes.write_text("this is no table")
        it.process.send_signal(signal.SIGUSR2)
        assert it.process.stderr
        async with asyncio.timeout(LIMIT):
            while b"cannot be run (status 2); nothing changes" not in await it.process.stderr.readline():
                pass
        assert await it.pids() == before
        assert (await it.get()).startswith(b"HTTP/1.1 200 OK")


async def test_processes_end_with_a_supervisor_that_is_killed() -> None:
    async with pair_of_members() as members, fleet(*members) as it:
        it.process.kill()
        await it.process.communicate()  # Until the last of them has closed standard error.
        with pytest.raises(ConnectionRefusedError):
            await it.open()


async def test_start_that_fails_in_a_process_ends_with_its_status() -> None:
    async with pair_of_members() as members, fleet(*members, ready=False, policy="no_such_policy:Policy") as it:
        async with asyncio.timeout(LIMIT):
            _, err = await it.process.communicate()
        assert it.process.returncode == 2, err
        assert "BALANCER_POLICY" in err.decode()
        assert "Traceback" not in err.decode()


async def test_limit_that_cannot_be_shared_out_is_refused() -> None:
    async with pair_of_members() as members, fleet(*members, ready=False, max_requests_per_member="1") as it:
        _, err = await it.process.communicate()
        assert it.process.returncode == 2
        assert err.decode().startswith(
            "BALANCER_MAX_REQUESTS_PER_MEMBER=1 cannot be used with 2 processes: it is shared out among them, so it "
            "takes 0 or at least 2"
        )
