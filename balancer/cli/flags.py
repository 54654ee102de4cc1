"""The flags of each command, and the parsers of their values."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NoReturn
from urllib.parse import urlsplit

from balancer.config.display import flag, show, variable
from balancer.config.settings import RENAMED, Settings

# The setting with which each group of ``balancer serve --help`` begins: groups follow the order of the settings.
GROUPS = {
    "alias": "members and DNS",
    "bind": "listeners",
    "policy": "choice of a member",
    "health_path": "health of members",
    "queue_timeout": "queue",
    "connect_timeout": "time-outs and limits",
    "trusted_proxies": "proxies in front",
    "tls_cert": "TLS and HTTP/2",
    "hooks": "hooks, logs and traces",
    "processes": "processes, stop and reload",
}


class Parser(argparse.ArgumentParser):
    """A parser of arguments that names the flag, or the command, that one which does not exist may stand for."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Return the values of all arguments, and none that are left; end the program if there are any."""
        known, left = super().parse_known_args(args, namespace)
        if left:
            names = [name for action in self._actions for name in action.option_strings]
            hints = [_hint(text.partition("=")[0], names) for text in left if text.startswith("-")]
            self.error("; ".join([f"unrecognized arguments: {' '.join(left)}", *filter(None, hints)]))
        return known, left

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong."""
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            hint = _hint(wrong[1], re.findall(r"\w+", wrong[2]))
            message = "; ".join(filter(None, [message, hint]))
        super().error(message)


def _hint(name: str, known: Iterable[str]) -> str:
    """Return words about the name that may be meant, or "" where none comes near."""
    for old, new in RENAMED.items():
        if name == flag(old) and flag(new) in known:
            return f"{name} is {flag(new)} now"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else ""


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add a flag for each setting."""
    group: argparse._ActionsContainer = command
    for item in fields(Settings):
        if item.name in GROUPS:
            group = command.add_argument_group(GROUPS[item.name])
        default = show(item.default, item.metadata["kind"])
        words = f"{item.metadata['meaning']} (default {default}; {variable(item.name)})"
        group.add_argument(flag(item.name), metavar="VALUE", help=words.replace("%", "%%"))


def add_demo(demo: argparse.ArgumentParser) -> None:
    """Add the flags of ``balancer demo``."""
    demo.add_argument("--workers", type=_number(int, 1, 100), default=3, help="workers at the peak (default 3)")
    demo.add_argument(
        "--seconds",
        type=_number(float, 0, 86400),
        default=20.0,
        help="length of a round (default 20); 0: until Ctrl-C",
    )
    demo.add_argument("--port", type=_number(int, 1, 65535), default=8080, help="the balancer's port (default 8080)")


def add_watch(watch: argparse.ArgumentParser) -> None:
    """Add the flags of ``balancer watch``."""
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


def add_reload(reload: argparse.ArgumentParser) -> None:
    """Add the flags of ``balancer reload``."""
    reload.add_argument(
        "--admin-bind", metavar="VALUE", help="where its admin listener is (default as for serve; BALANCER_ADMIN_BIND)"
    )
    reload.add_argument(
        "--admin-token",
        metavar="VALUE",
        help="what its admin listener has to prove to know (default as for serve; BALANCER_ADMIN_TOKEN)",
    )
    reload.add_argument(
        "--admin-token-file",
        metavar="VALUE",
        help="file with that token (default as for serve; BALANCER_ADMIN_TOKEN_FILE)",
    )
    reload.add_argument(
        "--pid", type=_number(int, 1, 2**31 - 1), help="process id of its supervisor, where there is no admin listener"
    )


def add_wait(wait: argparse.ArgumentParser) -> None:
    """Add the flags of ``balancer wait``."""
    wait.add_argument(
        "--up", type=_number(int, 1, 1_000_000), default=1, help="members that are up at the same time (default 1)"
    )
    wait.add_argument("--pool", metavar="NAME", help="the pool, where there are routes (default: each of them)")
    wait.add_argument(
        "--timeout", type=_number(float, 0, 86400), default=60.0, help="seconds to wait at most (default 60)"
    )
    wait.add_argument(
        "--admin-bind", metavar="VALUE", help="where its admin listener is (default as for serve; BALANCER_ADMIN_BIND)"
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
    # CONNECT is for a tunnel, not for an answer.
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
