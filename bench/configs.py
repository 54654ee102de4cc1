"""How each candidate is configured and started. One worker, one thread, no access log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import peers
from bench.doors import PLAIN, TRUSTED, Certificate, Door
from bench.processes import Address
from bench.upstreams import ALIAS, Upstreams, nginx_user, open_files

# Idle connections that a candidate may keep to a member: more than the largest load has.
POOL = 512


@dataclass(frozen=True)
class Site:
    """What a candidate is given: where to listen and at which door, what to balance over, a directory for its files.

    ``certificate`` is there where the door has TLS.
    """

    listen: Address
    upstreams: Upstreams
    directory: Path
    count: int = 2
    door: Door = PLAIN
    certificate: Certificate | None = None

    @property
    def members(self) -> Sequence[Address]:
        return self.upstreams.members[: self.count]

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True)
class Command:
    """``scraped``: an admin port that is asked for its metrics meanwhile."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    scraped: Address | None = None


NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log {log};
    client_max_body_size 0;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/answers;
    {http}
    server {{
        listen {listen} backlog=4096{door};
        {server}
    }}
}}
"""


def nginx(program: str, site: Site, http: str, server: str, door: str = "", log: str = "off") -> Command:
    """``door``: what ``listen`` says besides what the site's door asks for."""
    if site.certificate:
        door += " ssl http2" if site.door.http2 else " ssl"
        server += f" ssl_certificate {site.certificate.chain}; ssl_certificate_key {site.certificate.key};"
        # As all others have by default.
        server += " ssl_protocols TLSv1.2 TLSv1.3;"
    if site.door.trusted:
        server += f" set_real_ip_from {TRUSTED}; real_ip_header X-Forwarded-For;"
    config = NGINX.format(
        user=nginx_user(),
        directory=site.directory,
        files=open_files(),
        connections=open_files() - 100,
        listen=site.listen,
        door=door,
        log=log,
        http=http,
        server=server,
    )
    return Command([program, "-p", str(site.directory), "-c", site.write("nginx.conf", config)])


def _forwarded(site: Site) -> str:
    """What a proxy says of the client that another proxy has told it, with that one's address."""
    if not site.door.trusted:
        return ""
    return 'proxy_set_header X-Forwarded-For "$http_x_forwarded_for, $realip_remote_addr";'


def nginx_seed(site: Site) -> Command:
    """The configuration that this project replaces; it takes the port with the name, as ours is not 80."""
    return nginx(
        peers.debian_nginx(),
        site,
        http=f"resolver {site.upstreams.resolver} valid=1s;",
        server=f"""set $alias "{ALIAS}";
        location / {{ proxy_pass http://$alias:{site.members[0].port}; {_forwarded(site)} }}""",
    )


# A response of 64 KiB fits; with nginx's own 8 buffers of 4 KiB browser-32 cost it 21 and 42 % more in two runs.
_BUFFERS = "proxy_buffer_size 32k; proxy_buffers 8 32k; proxy_busy_buffers_size 64k;"


def _kept(site: Site) -> str:
    return f"""keepalive_requests 1000000000;
        {_BUFFERS}
        location / {{
            proxy_pass http://members;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            {_forwarded(site)}
        }}"""


def nginx_keepalive(site: Site) -> Command:
    servers = " ".join(f"server {member};" for member in site.members)
    return nginx(
        peers.debian_nginx(),
        site,
        http=f"upstream members {{ {servers} keepalive {max(POOL, 2 * site.count)}; keepalive_requests 1000000000; }}",
        server=_kept(site),
    )


def nginx_resolve(site: Site) -> Command:
    return nginx(
        peers.wheel_nginx(),
        site,
        http=f"""resolver {site.upstreams.resolver} valid=1s;
    upstream members {{
        zone members 1m;
        server {ALIAS}:{site.members[0].port} resolve;
        keepalive {POOL};
        keepalive_requests 1000000000;
    }}""",
        server=_kept(site),
    )


HAPROXY = """
global
    nbthread 1
    maxconn {most}
    {in_global}
defaults
    mode http
    timeout connect 1s
    timeout client {client_timeout}s
    timeout server 60s
    http-reuse always
    {defaults}
frontend data
    bind {listen} backlog 4096{door}
    {frontend}
    default_backend members
backend members
    balance roundrobin
    {backend}
{servers}
{more}
"""


def haproxy(site: Site) -> Command:
    frontend = ""
    if site.door.trusted:
        said = "%[req.fhdr(X-Forwarded-For)], %[src]"
        frontend = f'http-request set-header X-Forwarded-For "{said}" if {{ src {TRUSTED} }}'
    return haproxy_with(site, haproxy_servers(site), frontend=frontend)


def haproxy_servers(site: Site) -> list[str]:
    return [f"    server member{number} {member}" for number, member in enumerate(site.members)]


def haproxy_with(
    site: Site,
    servers: Sequence[str],
    *,
    in_global: str = "",
    defaults: str = "",
    frontend: str = "",
    backend: str = "",
    more: str = "",
    door: str = "",
    client_timeout: int = 75,
) -> Command:
    """``defaults`` and so on: lines that these sections have besides; ``more``: sections."""
    if site.certificate:
        door += f" ssl crt {site.write('both.pem', site.certificate.both)}"
        door += " alpn h2,http/1.1" if site.door.http2 else ""
    config = HAPROXY.format(
        most=open_files() // 2 - 100,
        in_global=in_global,
        client_timeout=client_timeout,
        defaults=defaults,
        listen=site.listen,
        door=door,
        frontend=frontend,
        backend=backend,
        servers="\n".join(servers),
        more=more,
    )
    return Command([peers.program("haproxy"), "-db", "-f", site.write("haproxy.cfg", config)])


def caddy(site: Site) -> Command:
    certificate = site.certificate
    tls = f"tls {certificate.chain} {certificate.key}" if certificate else ""
    versions = "protocols h1 h2" if site.door.http2 else "protocols h1"
    trusted = f"trusted_proxies static {TRUSTED}/32" if site.door.trusted else ""
    config = f"""{{
    admin off
    auto_https {"disable_redirects" if certificate else "off"}
    persist_config off
    servers {{
        {versions if certificate else ""}
        {trusted}
    }}
}}
{"https" if certificate else "http"}://{site.listen} {{
    bind {site.listen.host}
    {tls}
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
    flags = []
    if site.certificate:
        flags.append("--entrypoints.data.http.tls=true")
        config += f"""
tls:
  certificates:
    - certFile: {site.certificate.chain}
      keyFile: {site.certificate.key}
  stores:
    default:
      defaultCertificate:
        certFile: {site.certificate.chain}
        keyFile: {site.certificate.key}
"""
    if site.door.trusted:
        flags.append(f"--entrypoints.data.forwardedheaders.trustedips={TRUSTED}/32")
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
            *flags,
        ],
        {"GOMAXPROCS": "1"},
    )


def _python_module(*arguments: str) -> Command:
    return Command([sys.executable, "-m", *arguments])


def starlette_httpx(site: Site) -> Command:
    return _python_module("bench.starlette_httpx", str(site.listen.port), *map(str, site.members))


def starlette_aiohttp(site: Site) -> Command:
    return _python_module("bench.starlette_aiohttp", str(site.listen.port), *map(str, site.members))
