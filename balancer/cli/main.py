"""The commands: ``serve``, ``reload``, ``demo``, ``watch``, ``check``.

What a command alone needs it imports itself, so that ``serve`` listens as early as it can.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from balancer.config.cpu import usable_cores
from balancer.config.display import flag, show, variable
from balancer.config.settings import Settings, SettingsError, misspelt
from balancer.frontend.sockets import CannotListen, listening
from balancer.process.exit_codes import FAILED, UNUSABLE
from balancer.routing.parse import describe, read
from balancer.types import Address
from balancer.version import __version__

if TYPE_CHECKING:
    from balancer.frontend.tls import Certificate


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="balancer", description="HTTP load balancer with DNS discovery.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, run, text in (
        ("serve", _serve, "run the load balancer"),
        (
            "check",
            _check,
            "print the settings in effect, one DNS answer and a probe of each member; exit 0 if one is up",
        ),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        for item in fields(Settings):
            default = show(item.default, item.metadata["kind"])
            command.add_argument(
                flag(item.name),
                metavar="VALUE",
                help=f"{item.metadata['meaning']} (default {default}; {variable(item.name)})".replace("%", "%%"),
            )

    text = "have a running balancer replaced by the code and the files that are there now, without losing a request"
    reload = commands.add_parser("reload", help=text, description=text, allow_abbrev=False)
    reload.set_defaults(run=_reload)
    _add_reload_flags(reload)

    demo = commands.add_parser("demo", help="run the whole system without Docker and watch it scale")
    demo.set_defaults(run=_demo)
    demo.add_argument("--workers", type=_number(int, 1, 100), default=3, help="workers at the peak (default 3)")
    demo.add_argument(
        "--seconds",
        type=_number(float, 0, 86400),
        default=20.0,
        help="length of a round (default 20); 0: until Ctrl-C",
    )
    demo.add_argument("--port", type=_number(int, 1, 65535), default=8080, help="the balancer's port (default 8080)")

    watch = commands.add_parser("watch", help="send requests in a loop and show who answers; exit 1 if any failed")
    watch.set_defaults(run=_watch)
    watch.add_argument("url", metavar="URL", type=_url)
    watch.add_argument("--rate", type=_number(float, 0.1, 1000), default=5.0, help="requests a second (default 5)")
    watch.add_argument(
        "--count", type=_number(int, 0, 10**9), default=0, help="stop after so many requests (default 0: at Ctrl-C)"
    )
    watch.add_argument(
        "--timeout", type=_number(float, 0.1, 3600), default=30.0, help="seconds to wait for an answer (default 30)"
    )
    watch.add_argument("--method", type=_method, default="GET", help="the method of the requests (default GET)")
    watch.add_argument(
        "--header",
        metavar="NAME:VALUE",
        type=_header,
        action="append",
        default=[],
        help="a header field of the requests; may be given several times",
    )
    watch.add_argument("--keepalive", action="store_true", help="use connections again; otherwise each request has one")
    watch.add_argument("--json", action="store_true", help="print a JSON object for each request, and one that sums up")
    return parser


def _add_reload_flags(reload: argparse.ArgumentParser) -> None:
    reload.add_argument(
        "--admin-bind", metavar="VALUE", help="where its admin listener is (default as for serve; BALANCER_ADMIN_BIND)"
    )
    reload.add_argument(
        "--admin-token",
        metavar="VALUE",
        help="what its admin listener has to prove to know (default as for serve; BALANCER_ADMIN_TOKEN)",
    )
    reload.add_argument(
        "--pid", type=_number(int, 1, 2**31 - 1), help="process id of its supervisor, where there is no admin listener"
    )


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(low - 1)
        if not low <= number <= high:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} cannot be used: it takes {words} from {low} to {high}")
        return number

    return parse


def _url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        whole = url.isprintable() and " " not in url
        usable = whole and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: it takes a URL such as http://localhost:8080/")
    return url


def _method(text: str) -> str:
    # CONNECT asks for a tunnel, not for an answer.
    if not (text.isascii() and text.isalpha()) or text.upper() == "CONNECT":
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: it takes a method such as GET, HEAD or POST")
    return text.upper()


def _header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+", name):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: it takes NAME:VALUE, such as X-Tenant:a")
    if name.lower() in ("content-length", "transfer-encoding"):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: requests are sent without a body")
    value = value.strip(" \t")
    if not value.replace("\t", " ").isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: its value has a control character")
    return name.encode(), value.encode()


def _settings(arguments: argparse.Namespace) -> Settings:
    flags = {it.name: value for it in fields(Settings) if (value := getattr(arguments, it.name)) is not None}
    for line in misspelt(os.environ):
        print(line, file=sys.stderr)
    settings = Settings.load(os.environ, flags)
    if settings.otel_endpoint and not find_spec("opentelemetry"):
        name = variable("otel_endpoint")
        raise SettingsError([f"{name}={settings.otel_endpoint} cannot be used: install balancer[otel]"])
    return settings


def _certificate(settings: Settings) -> Certificate | None:
    if not settings.tls_cert:
        return None
    from balancer.frontend.tls import Certificate

    return Certificate.of(settings)


@contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """This signal has to wait, unless it is unblocked in the meantime."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(arguments: argparse.Namespace) -> int:
    from balancer.process.handover import TRIAL, Handover
    from balancer.process.supervisor import Supervisor

    before = Handover.received(os.environ)
    with ExitStack() as stack:
        # A file that changes from here on is read again once a process can.
        stack.enter_context(held_back(signal.SIGHUP))
        settings = _settings(arguments)
        certificate = _certificate(settings)
        routes = read(settings)
        processes = before.processes or _processes(settings)
        for pool in [settings, *(routes.pools.values() if routes else ())]:
            pool.part(0, processes)
        if os.environ.pop(TRIAL, None):
            # What a reload has to know before anything changes: whether all of it is there.
            from balancer.plugins import loader
            from balancer.process import worker

            loader.load(settings, Random())
            return 0
        try:
            data = stack.enter_context(listening(variable("bind"), settings.bind, processes, before.data))
            admin = []
            if settings.admin_bind:
                admin = stack.enter_context(listening(variable("admin_bind"), settings.admin_bind, 1, before.admin))
        except CannotListen as error:
            print(error, file=sys.stderr)
            return FAILED
        from balancer.process import worker
        from balancer.process.log_setup import configure_logging

        configure_logging()
        slots = worker.slots(settings, data, admin[0] if admin else None, certificate, routes, processes)
        worker.prepare()
        return Supervisor(slots, processes, data, admin, before).run()


def _processes(settings: Settings) -> int:
    return usable_cores() if settings.processes == "auto" else int(settings.processes)


def _reload(arguments: argparse.Namespace) -> int:
    from balancer.cli.reload import run

    names = ("admin_bind", "admin_token")
    flags = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    read = {*map(variable, names), variable("admin")}  # The old name has to be noticed.
    environ = {name: value for name, value in os.environ.items() if name in read}
    settings = Settings.load(environ, flags)
    return run(settings.admin_bind, None if arguments.pid is None else int(arguments.pid), settings.admin_token)


def _check(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    _certificate(settings)
    from balancer.plugins import loader

    loader.load(settings, Random())
    routes = read(settings)
    for name, value, _ in settings.rows():
        print(f"{name}={value}")
    if routes:
        print("\nRoutes, each before those that it wins over:")
        for line in describe(routes, settings):
            print(f"  {line}")
    pools = list(routes.pools.values()) if routes else [settings]
    import asyncio

    usable = [asyncio.run(_look(pool)) for pool in pools]
    return 0 if all(usable) else FAILED


async def _look(settings: Settings) -> bool:
    """Print what DNS answers and what a probe of each member comes to; whether any of them may be given requests."""
    import asyncio

    from balancer.discovery.resolver import DnsResolver
    from balancer.members.health import Event
    from balancer.members.probe import Verdict, make_probe
    from balancer.members.probe_scheduler import PROBES_AT_ONCE

    snapshot = await DnsResolver(settings)()
    addresses = sorted({it.address for answer in snapshot.answers for it in answer.endpoints})
    print(f"\nDNS for {settings.alias}: {snapshot.describe()}")
    probe, places = make_probe(settings), asyncio.Semaphore(PROBES_AT_ONCE)

    async def ask(address: Address) -> Verdict:
        async with places:
            return await probe(address)

    verdicts = await asyncio.gather(*map(ask, addresses))
    for address, (event, words) in zip(addresses, verdicts, strict=True):
        hint = ": nothing listens there, or on 127.0.0.1 only" if event is Event.REFUSED else ""
        print(f"  {address}  {words}{hint}")
    return any(event is Event.PROBE_OK for event, _ in verdicts)


def _demo(arguments: argparse.Namespace) -> int:
    from balancer.demo.show import run

    return run(arguments.workers, arguments.seconds, arguments.port)


def _watch(arguments: argparse.Namespace) -> int:
    from balancer.watch import Options, run

    return run(
        Options(
            arguments.url,
            rate=arguments.rate,
            count=int(arguments.count),
            timeout=arguments.timeout,
            method=arguments.method,
            headers=tuple(arguments.header),
            keepalive=arguments.keepalive,
            json=arguments.json,
        )
    )
