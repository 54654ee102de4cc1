"""How each candidate is configured for a row: the bench's, with the row's limits and time-outs, and its own log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import configs, peers
from bench.abuse.rows import Row
from bench.candidates import balancer
from bench.configs import POOL, Command, Site
from bench.doors import Certificate, Door
from bench.processes import Address
from bench.upstreams import ALIAS, MANY_ALIAS, Upstreams, open_files

BALANCER = "ours"
TOKEN = "0123456789abcdef"


@dataclass(frozen=True)
class Setup:
    """``admin``: where the balancer's admin port is."""

    site: Site
    row: Row
    admin: Address


def site_of(row: Row, listen: Address, upstreams: Upstreams, directory: Path, certificate: Certificate) -> Site:
    """Where a candidate listens, at the row's door."""
    if row.protocol in ("tls", "h2"):
        return Site(listen, upstreams, directory, door=Door(tls=True, http2=True), certificate=certificate)
    return Site(listen, upstreams, directory)


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
    }
    return balancer(setup.site, *(f"--{name}={value}" for name, value in flags.items() if value is not None))


NGINX_HTTP = """error_log {directory}/error.log error;
    proxy_max_temp_file_size 0;
    client_header_timeout 10s;
    keepalive_requests 1000000000;
    upstream members {{ {servers} keepalive {pool}; keepalive_requests 1000000000; }}"""
NGINX_SERVER = """
        location /api { proxy_pass http://members; }
        location / {
            proxy_pass http://members;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }"""


def nginx(setup: Setup) -> Command:
    row, site = setup.row, setup.site
    limit = f" max_conns={row.member_limit}" if row.member_limit else ""
    servers = " ".join(f"server {member}{limit};" for member in site.members)
    http = NGINX_HTTP.format(directory=site.directory, servers=servers, pool=POOL)
    server, door = NGINX_SERVER, ""
    if row.connections:
        http += " limit_conn_zone $server_name zone=all:1m;"
        server += f" limit_conn all {row.connections};"
    if row.idle_timeout:
        server += f" send_timeout {row.idle_timeout}s; client_body_timeout {row.idle_timeout}s;"
    if row.routed:
        # A head that the balancer takes, and by default nginx and HAProxy refuse.
        server += " large_client_header_buffers 4 64k;"
    if row.protocol == "proxy":
        door = " proxy_protocol"
        server += " set_real_ip_from 127.0.0.0/8; real_ip_header proxy_protocol;"
    return configs.nginx(peers.debian_nginx(), site, http, server, door, log=f"{site.directory}/access.log")


HAPROXY_DEFAULTS = """log global
    option httplog
    timeout http-request 10s
    timeout queue 10s"""


def haproxy(setup: Setup) -> Command:
    row, site = setup.row, setup.site
    servers = configs.haproxy_servers(site)
    if row.member_limit:
        servers = [f"{server} maxconn {row.member_limit}" for server in servers]
    if row.routed:
        servers = [f"{server} cookie member{number}" for number, server in enumerate(servers)]
    return configs.haproxy_with(
        site,
        servers,
        in_global="log stdout format raw local0 info" + ("\n    tune.bufsize 65536" if row.routed else ""),
        defaults=HAPROXY_DEFAULTS,
        frontend=f"maxconn {row.connections or open_files() // 2 - 100}"
        + ("\n    use_backend api if { path_beg /api }" if row.routed else ""),
        backend="cookie member insert indirect nocache" if row.routed else "",
        more="\n".join(["backend api", "    balance roundrobin", *servers]),
        door=" accept-proxy" if row.protocol == "proxy" else "",
        client_timeout=row.idle_timeout or 75,
    )


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
