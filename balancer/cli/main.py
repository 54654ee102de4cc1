"""The commands: ``serve``, ``reload``, ``wait``, ``demo``, ``watch``, ``check``.

Modules for one command alone are imported by that command, so that ``serve`` listens as early as it can.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from importlib.util import find_spec
from random import Random
from typing import TYPE_CHECKING

from balancer import build
from balancer.cli import flags
from balancer.cli.output import Output, command_output
from balancer.config.cpu import usable_cores
from balancer.config.display import variable, without_userinfo
from balancer.config.misspelt import misspelt
from balancer.config.parts import part
from balancer.config.settings import Settings, SettingsError
from balancer.config.token_file import with_token
from balancer.errors import FAILED, UNUSABLE
from balancer.process.sockets import CannotListen, listening
from balancer.routing.parse import describe, read
from balancer.types import Address
from balancer.version import __version__

if TYPE_CHECKING:
    from balancer.frontend.tls import Certificate


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    with command_output() as output:
        try:
            return output.status(_run(argv, output))
        except SystemExit as end:  # of --help, --version, and arguments that cannot be used
            raise SystemExit(output.status(int(end.code or 0))) from None
        except OSError as error:
            if error is not output.error:
                raise
            return output.status(0)


def _run(argv: Sequence[str] | None, output: Output) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.run in (_demo, _watch):
        output.never_wait()
    try:
        return int(arguments.run(arguments))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(prog="balancer", description="HTTP load balancer with DNS discovery.")
    parser.add_argument("--version", action="version", version=f"{__version__} ({build.describe()})")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, add_flags, text in (
        ("serve", _serve, flags.add_settings, "run the load balancer"),
        (
            "check",
            _check,
            flags.add_settings,
            "print the settings in effect, one DNS answer and a probe of each member; exit 0 if one is up",
        ),
        (
            "reload",
            _reload,
            flags.add_reload,
            "have a running balancer replaced by the code and the files that are there now, without losing a request",
        ),
        (
            "wait",
            _wait,
            flags.add_wait,
            "wait until so many members of a running balancer are up; exit 0 once they are, 1 if not in time",
        ),
        ("demo", _demo, flags.add_demo, "run the whole system without Docker and watch it scale"),
        ("watch", _watch, flags.add_watch, "send requests in a loop and show who answers; exit 1 if any failed"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        add_flags(command)
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    flags_given = {
        field.name: value for field in fields(Settings) if (value := getattr(arguments, field.name)) is not None
    }
    _report_misspelt()
    settings = with_token(Settings.load(os.environ, flags_given))
    if settings.otel_endpoint and not find_spec("opentelemetry"):
        name = variable("otel_endpoint")
        raise SettingsError(
            [f"{name}={without_userinfo(settings.otel_endpoint)} cannot be used: install balancer[otel]"]
        )
    return settings


def _report_misspelt() -> None:
    for line in misspelt(os.environ):
        print(line, file=sys.stderr)


def _certificate(settings: Settings) -> Certificate | None:
    if not settings.tls_cert:
        return None
    from balancer.frontend.tls import Certificate

    return Certificate.of(settings)


@contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """Block this signal, unless it is unblocked in the meantime."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(arguments: argparse.Namespace) -> int:
    from balancer.process.handover import TRIAL, Handover
    from balancer.process.supervisor import Supervisor
    from balancer.telemetry import log_output

    log_output.install()
    before = Handover.received(os.environ)
    with ExitStack() as stack:
        stack.callback(log_output.finish)
        # A file that changes from here on is read again once a process can.
        stack.enter_context(held_back(signal.SIGHUP))
        settings = _settings(arguments)
        certificate = _certificate(settings)
        routes = read(settings)
        processes = before.processes or _processes(settings)
        for pool in [settings, *(routes.pools.values() if routes else ())]:
            part(pool, 0, processes)
        if os.environ.pop(TRIAL, None):
            # A trial for a reload: find out before anything changes whether all of the code is there.
            from balancer.plugins import loader
            from balancer.process import worker

            loader.load(settings, Random())
            return 0
        try:
            data = stack.enter_context(listening(variable("bind"), settings.bind, processes, before.data))
            admin = []
            if settings.admin_bind:
                admin = stack.enter_context(listening(variable("admin_bind"), settings.admin_bind, 1, before.admin))
                # A name or a network is one address by now, which says whether the listener is on loopback.
                settings = replace(settings, admin_bind=Address(*admin[0].getsockname()[:2]))
        except CannotListen as error:
            print(error, file=sys.stderr)
            return FAILED
        from balancer.process import worker
        from balancer.process.log_setup import configure_logging

        configure_logging()
        if certificate:
            certificate.log_start()
        specs = worker.worker_specs(settings, data, admin[0] if admin else None, certificate, routes, processes)
        worker.prepare()
        return Supervisor(specs, processes, data, admin, before).run()


def _processes(settings: Settings) -> int:
    return usable_cores() if settings.processes == "auto" else int(settings.processes)


def _reload(arguments: argparse.Namespace) -> int:
    from balancer.cli.reload import run

    names = ("admin_bind", "admin_token", "admin_token_file")
    flags_given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    read = {*map(variable, names), variable("admin")}  # The old name has to be noticed.
    environ = {name: value for name, value in os.environ.items() if name in read}
    _report_misspelt()
    settings = with_token(Settings.load(environ, flags_given))
    return run(settings.admin_bind, None if arguments.pid is None else int(arguments.pid), settings.admin_token)


def _wait(arguments: argparse.Namespace) -> int:
    from balancer.cli.wait import run

    read = {*map(variable, ("admin_bind", "admin"))}  # The old name has to be noticed.
    environ = {name: value for name, value in os.environ.items() if name in read}
    flags_given = {} if arguments.admin_bind is None else {"admin_bind": arguments.admin_bind}
    settings = Settings.load(environ, flags_given)
    return run(settings.admin_bind, int(arguments.up), arguments.pool, arguments.timeout)


def _check(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    certificate = _certificate(settings)
    from balancer.plugins import loader

    loader.load(settings, Random())
    routes = read(settings)
    for name, value, _ in settings.rows():
        print(f"{name}={value}")
    if certificate:
        print(f"\nCertificate: {'; '.join(filter(None, certificate.describe()))}")
    if routes:
        print("\nRoutes, each before those that it wins over:")
        for line in describe(routes, settings):
            print(f"  {line}")
    pools = list(routes.pools.values()) if routes else [settings]
    import asyncio

    usable = [asyncio.run(_check_pool(pool)) for pool in pools]
    return 0 if all(usable) else FAILED


async def _check_pool(settings: Settings) -> bool:
    """Print the DNS answers and the result of a probe of each member; return whether any member may get requests."""
    import asyncio

    from balancer.discovery.resolver import make_resolver
    from balancer.members.health import HealthEvent
    from balancer.members.own_addresses import OwnAddresses
    from balancer.members.probe import Verdict, make_probe
    from balancer.members.probe_scheduler import MAX_PROBES

    snapshot = await make_resolver(settings)()
    addresses = sorted({endpoint.address for answer in snapshot.answers for endpoint in answer.endpoints})
    print(f"\nDNS for {settings.alias}: {snapshot.describe()}")
    own, places = OwnAddresses(settings.alias, make_probe(settings), settings.bind), asyncio.Semaphore(MAX_PROBES)
    own.look_at(addresses)

    async def probe_one(address: Address) -> Verdict:
        async with places:
            return await own.probe(address)

    verdicts = await asyncio.gather(*map(probe_one, addresses))
    for address, (event, words) in zip(addresses, verdicts, strict=True):
        hint = ": nothing listens there, or on 127.0.0.1 only" if event is HealthEvent.REFUSED else ""
        print(f"  {address}  {words}{hint}")
    return any(event is HealthEvent.PROBE_OK for event, _ in verdicts)


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
