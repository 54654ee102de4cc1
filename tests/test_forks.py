"""A program that makes its LoadBalancer first and forks then, as gunicorn --preload does: each process has its own."""

from __future__ import annotations

import json
import subprocess
import sys

# Three processes of one application, each with ten calls. What it prints: ids and members, a line for each process.
PROGRAM = """
import asyncio, json, os, sys
from random import Random
import httpx
from balancer import BalancedTransport, LoadBalancer
from balancer.types import Address
from balancer.upstream.base import Timeouts
from balancer.upstream.httpx_adapter import HttpxUpstream
from tests.support.scripted import ScriptedProbe, ScriptedResolver

seen = []

def answer(request):
    seen.append((request.headers["x-request-id"], request.url.host))
    return httpx.Response(200)

def make(policy, **more):
    upstream = HttpxUpstream(Timeouts(1, 1, 1), lambda: httpx.MockTransport(answer))
    addresses = [Address(f"10.0.0.{number}", 80) for number in range(1, 101)]
    return LoadBalancer(
        "apps", upstream=upstream, resolve=ScriptedResolver(*addresses), probe=ScriptedProbe(), policy=policy, **more
    )

async def call(balancer):
    async with balancer, httpx.AsyncClient(transport=httpx.ASGITransport(balancer), base_url="http://a") as client:
        await balancer.ready(10)
        for _ in range(10):
            await client.get("/")

def run(balancer):
    asyncio.run(call(balancer))
    print(json.dumps(seen), flush=True)

def fork(work):
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
    else:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
"""


def processes(program: str) -> list[list[tuple[str, str]]]:
    """Requests that members got from each process: their ids, and who got them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [[(id, host) for id, host in json.loads(line)] for line in done.stdout.splitlines()]


def apart(found: list[list[tuple[str, str]]]) -> None:
    """No two requests have an id in common, and no two processes an order of members."""
    ids = [id for requests in found for id, _ in requests]
    assert len(set(ids)) == len(ids) == 10 * len(found)
    orders = {tuple(host for _, host in requests) for requests in found}
    assert len(orders) == len(found)


def test_processes_forked_before_the_first_request_have_ids_and_choices_of_their_own() -> None:
    apart(processes("balancer = make('random')\nfor _ in range(3): fork(lambda: run(balancer))"))


def test_processes_forked_before_the_first_request_begin_at_members_of_their_own() -> None:
    found = processes("balancer = make('round_robin')\nfor _ in range(4): fork(lambda: run(balancer))")
    # The first of a hundred members: four that all draw the same one are rarer than one in a million.
    assert len({requests[0][1] for requests in found}) > 1
    assert len({requests[0][0] for requests in found}) == 4


def test_process_forked_after_requests_begins_anew() -> None:
    """As with multiprocessing, whose parent may be in the middle of something: its event loop does not go on here."""
    program = """
balancer = make('random')

async def call_inside():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(balancer), base_url="http://a") as client:
        await balancer.ready(10)
        for _ in range(10):
            await client.get("/")

def work():
    seen.clear()
    asyncio.events._set_running_loop(None)  # as multiprocessing has it
    run(balancer)

async def both():
    async with balancer:
        await call_inside()
        print(json.dumps(seen), flush=True)
        fork(work)

asyncio.run(both())
"""
    apart(processes(program))


def test_call_under_way_is_the_parents_alone() -> None:
    """A process that ends its client does not wait for calls of the one before it, and uses none of its connections."""
    program = """
gate = None

async def hang(request):
    seen.append((request.headers["x-request-id"], request.url.host))
    await gate.wait()
    return httpx.Response(200)

upstream = HttpxUpstream(Timeouts(1, 9, 9), lambda: httpx.MockTransport(hang))
addresses = [Address(f"10.0.0.{number}", 80) for number in range(1, 101)]
transport = BalancedTransport("apps", upstream=upstream, resolve=ScriptedResolver(*addresses), probe=ScriptedProbe())

async def calls(work):
    global gate
    gate = asyncio.Event()
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        tasks = [asyncio.create_task(client.get("/")) for _ in range(10)]
        while len(seen) < 10:
            await asyncio.sleep(0.01)
        print(json.dumps(seen), flush=True)
        work()
        gate.set()
        assert [task.result().status_code for task in tasks if await task] == [200] * 10

def child():
    seen.clear()
    asyncio.events._set_running_loop(None)
    assert not upstream._members
    asyncio.run(calls(lambda: None))

asyncio.run(calls(lambda: fork(child)))
"""
    apart(processes(program))


def test_random_choices_of_the_callers_own_are_left_alone() -> None:
    """A seed is given so that the choices are known."""
    program = "balancer = make('random', rng=Random(7))\nfor _ in range(2): fork(lambda: run(balancer))"
    one, two = processes(program)
    assert [host for _, host in one] == [host for _, host in two]
    assert not {id for id, _ in one} & {id for id, _ in two}
