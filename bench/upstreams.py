"""The members that every candidate balances over, and the DNS server that names them."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from balancer.demo.system import free_port
from bench.peers import debian_nginx
from bench.processes import START_SECONDS, Address, BenchError, Server
from bench.zone import addresses

FIRST_MEMBER = "127.1.0.1"
ALIAS = "apps"
MANY_ALIAS = "many"

MIB = 1024 * 1024
ANSWER = "Hello World I am 0123456789ab! 12345 times."
LARGE_MIB = 16
HUGE_MIB = 1024
# Bodies of pages by the name of their size, in bytes.
BODIES = {"43": len(ANSWER), "4k": 4096, "64k": 65536}

# ``/`` answers at once, and so does ``/distinct``, with another head each time. Pages below
# ``/browser/`` have nine headers, of which Date, ETag, X-Request-ID and Set-Cookie differ; head and
# body leave in one piece, as from most application servers. Other paths read the whole request
# body first: ``return`` alone would answer before the body has come, so they hand the head on to a server inside of
# the same process once they have it.
CONFIG = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/upstream.pid;
error_log stderr crit;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    default_type text/plain;
    sendfile on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 17m;
    client_body_temp_path {directory}/upstream-bodies;
    proxy_temp_path {directory}/upstream-answers;
    fastcgi_temp_path {directory}/upstream-unused;
    uwsgi_temp_path {directory}/upstream-unused;
    scgi_temp_path {directory}/upstream-unused;
    {http}
    upstream sink {{ server unix:{directory}/sink.sock; keepalive 256; }}
    server {{
        listen unix:{directory}/sink.sock;
        location / {{ return 200 "{answer}"; }}
    }}
    server {{
        {listens}
        {server}
        location = / {{ return 200 "{answer}"; }}
        location = /distinct {{ add_header X-Request-ID $request_id; return 200 "{answer}"; }}
        location /browser/ {{
            root {directory}/pages;
            sendfile off;
            output_buffers 1 128k;
            etag off;
            max_ranges 0;
            open_file_cache max=16;
            open_file_cache_valid 1h;
            default_type "text/html; charset=utf-8";
            add_header Last-Modified "";
            add_header Cache-Control "private, max-age=0";
            add_header ETag '"$connection-$connection_requests"';
            add_header Set-Cookie "session=$request_id; Path=/; HttpOnly; SameSite=Lax";
            add_header X-Request-ID $request_id;
            {pages}
        }}
        location /api/ {{
            proxy_pass http://sink;
            proxy_method GET;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_pass_request_body off;
            add_header Cache-Control no-store;
            add_header X-Request-ID $request_id;
        }}
        location = /16m {{ alias {directory}/16m; }}
        location = /1g {{ alias {directory}/1g; }}
        location / {{
            proxy_pass http://sink;
            proxy_method GET;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_pass_request_body off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Upstreams:
    """Members that run, in one process, and where DNS names them as ``ALIAS`` (two) and ``MANY_ALIAS`` (all)."""

    members: Sequence[Address]
    resolver: Address
    server: Server


@contextmanager
def running_upstreams(
    directory: Path, core: int, count: int = 2, http: str = "", server: str = ""
) -> Iterator[Upstreams]:
    """``count`` members, all served by one nginx process, and a DNS server, on one core.

    ``http`` and ``server`` are directives that the members have besides.
    """
    hosts = addresses(FIRST_MEMBER, count)
    port = free_port(*hosts)
    resolver = Address("127.0.0.1", free_port())
    (directory / "16m").write_bytes(os.urandom(MIB) * LARGE_MIB)
    with (directory / "1g").open("wb") as file:
        file.truncate(HUGE_MIB * MIB)
    (directory / "pages").mkdir(exist_ok=True)
    for name, size in BODIES.items():
        (directory / "pages" / name).write_bytes((ANSWER * (size // len(ANSWER) + 1)).encode()[:size])
    config = directory / "upstream.conf"
    config.write_text(
        CONFIG.format(
            user=nginx_user(),
            directory=directory,
            files=open_files(),
            connections=open_files() // 2,
            answer=ANSWER,
            pages="\n            ".join(map(_page, BODIES)),
            http=http,
            server=server,
            listens="\n        ".join(f"listen {host}:{port} backlog=4096;" for host in hosts),
        )
    )
    zone = [sys.executable, "-m", "bench.zone", str(resolver.port), f"{ALIAS}={FIRST_MEMBER}+2"]
    with ExitStack() as stack:
        nginx = Server("upstream nginx", [debian_nginx(), "-c", str(config)], core, directory / "upstream.log")
        dns = Server("DNS server", [*zone, f"{MANY_ALIAS}={FIRST_MEMBER}+{count}"], core, directory / "zone.log")
        stack.enter_context(nginx)
        stack.enter_context(dns)
        nginx.wait_for_answer(Address(hosts[-1], port), "/any")
        _wait_for_listener(resolver)
        yield Upstreams([Address(host, port) for host in hosts], resolver, nginx)


def _page(size: str) -> str:
    answer = f'return 200 "{ANSWER}"' if BODIES[size] == len(ANSWER) else f"try_files /{size} =404"
    return f"location /browser/{size}/ {{ {answer}; }}"


def _wait_for_listener(address: Address) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise BenchError(f"nobody listens on {address}")


def nginx_user() -> str:
    """nginx started by root gives its worker to another user, who may not write into our directory."""
    return "user root;" if os.geteuid() == 0 else ""


def open_files() -> int:
    """How many files a process may open; the harness has raised that as far as it may."""
    import resource

    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
