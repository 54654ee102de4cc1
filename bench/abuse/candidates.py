"""How each candidate is configured for a row: the same door, members, limits and time-outs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import peers
from bench.abuse.rows import Row
from bench.candidates import POOL, Command, Site, balancer
from bench.processes import Address
from bench.upstreams import ALIAS, MANY_ALIAS, nginx_user, open_files

BALANCER = "ours"
TOKEN = "0123456789abcdef"


@dataclass(frozen=True)
class Setup:
    """``admin``: where the balancer's admin port is. ``certificate`` and ``key``: PEM files."""

    site: Site
    row: Row
    admin: Address
    certificate: Path
    key: Path

    @property
    def tls(self) -> bool:
        return self.row.protocol in ("tls", "h2")


def ours(setup: Setup) -> Command:
    row = setup.row
    flags = {
        "admin-bind": str(setup.admin),
        "admin-token": TOKEN,
        "access-log": "on",
        "max-requests-per-member": row.member_limit or None,
        "max-connections": row.connections or None,
        "stream-idle-timeout": row.idle_timeout or None,
        "routes": f"/api={MANY_ALIAS},={ALIAS};sticky_cookie=member" if row.routed else None,
        "proxy-protocol": "on" if row.protocol == "proxy" else None,
        "trusted-proxies": "127.0.0.0/8" if row.protocol == "proxy" else None,
        "tls-cert": setup.certificate if setup.tls else None,
        "tls-key": setup.key if setup.tls else None,
        "http2": "on" if setup.tls else None,
    }
    return balancer(setup.site, *(f"--{name}={value}" for name, value in flags.items() if value is not None))


NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections {connections}; }}
http {{
    access_log {directory}/access.log;
    client_max_body_size 0;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/answers;
    proxy_max_temp_file_size 0;
    client_header_timeout 10s;
    keepalive_requests 1000000000;
    {http}
    upstream members {{ {servers} keepalive {pool}; keepalive_requests 1000000000; }}
    server {{
        listen {listen} backlog=4096{door};
        {server}
        location /api {{ proxy_pass http://members; }}
        location / {{
            proxy_pass http://members;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


def nginx(setup: Setup) -> Command:
    row, site = setup.row, setup.site
    limit = f" max_conns={row.member_limit}" if row.member_limit else ""
    http, server, door = "", "", ""
    if row.connections:
        http = "limit_conn_zone $server_name zone=all:1m;"
        server = f"limit_conn all {row.connections};"
    if row.idle_timeout:
        server += f" send_timeout {row.idle_timeout}s; client_body_timeout {row.idle_timeout}s;"
    if row.routed:
        # A head that the balancer takes, and by default nginx and HAProxy refuse.
        server += " large_client_header_buffers 4 64k;"
    if setup.tls:
        door = " ssl http2"
        server += f" ssl_certificate {setup.certificate}; ssl_certificate_key {setup.key};"
    if row.protocol == "proxy":
        door = " proxy_protocol"
        server += " set_real_ip_from 127.0.0.0/8; real_ip_header proxy_protocol;"
    config = NGINX.format(
        user=nginx_user(),
        directory=site.directory,
        files=open_files(),
        connections=open_files() - 100,
        servers=" ".join(f"server {member}{limit};" for member in site.members),
        pool=POOL,
        listen=site.listen,
        door=door,
        http=http,
        server=server,
    )
    return Command([peers.debian_nginx(), "-p", str(site.directory), "-c", site.write("nginx.conf", config)])


HAPROXY = """
global
    nbthread 1
    maxconn {maxconn}
    {buffers}
    log stdout format raw local0 info
defaults
    mode http
    log global
    option httplog
    timeout connect 1s
    timeout client {client}s
    timeout server 60s
    timeout http-request 10s
    timeout queue 10s
    http-reuse always
frontend data
    bind {listen} backlog 4096{door}
    maxconn {connections}
    {routes}
    default_backend members
backend members
    balance roundrobin
    {cookie}
{servers}
backend api
    balance roundrobin
{servers}
"""


def haproxy(setup: Setup) -> Command:
    row, site = setup.row, setup.site
    limit = f" maxconn {row.member_limit}" if row.member_limit else ""
    cookie = "cookie member insert indirect nocache" if row.routed else ""
    door = " accept-proxy" if row.protocol == "proxy" else ""
    if setup.tls:
        both = setup.certificate.read_text() + setup.key.read_text()
        door = f" ssl crt {site.write('both.pem', both)} alpn h2,http/1.1"
    config = HAPROXY.format(
        maxconn=open_files() // 2 - 100,
        connections=row.connections or open_files() // 2 - 100,
        client=row.idle_timeout or 75,
        listen=site.listen,
        door=door,
        cookie=cookie,
        buffers="tune.bufsize 65536" if row.routed else "",
        routes="use_backend api if { path_beg /api }" if row.routed else "",
        servers="\n".join(
            f"    server member{number} {member}{limit}{f' cookie member{number}' if cookie else ''}"
            for number, member in enumerate(site.members)
        ),
    )
    return Command([peers.program("haproxy"), "-db", "-f", site.write("haproxy.cfg", config)])


COMMANDS: Mapping[str, Callable[[Setup], Command]] = {BALANCER: ours, "nginx": nginx, "haproxy": haproxy}
TITLES: Mapping[str, str] = {BALANCER: "balancer", "nginx": "nginx", "haproxy": "HAProxy"}


def version(name: str) -> str:
    if name == BALANCER:
        from balancer import __version__

        return __version__
    return peers.first_version(*((peers.debian_nginx(), "-v") if name == "nginx" else (peers.program("haproxy"), "-v")))


def takes_part(name: str, row: Row) -> bool:
    """Whether the candidate has the door that is attacked."""
    return name == BALANCER or row.door != "admin"
