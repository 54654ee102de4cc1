"""The hosts file of this system (hosts(5)), which goes before DNS, as it does for other programs.

Compose writes ``extra_hosts`` into it, such as ``host.docker.internal``, and Kubernetes ``hostAliases``; Docker's DNS
knows neither. The file is read again when it has changed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import defaultdict
from pathlib import Path

HOSTS = Path("/etc/hosts")

# What distinguishes one state of a file from another: device, inode, size and time of change.
_State = tuple[int, int, int, int]


class HostsFile:
    """The addresses of names in the file at ``path``; none if it cannot be read.

    ``own``: the name of this host. Docker names the container itself in the file, by its ``hostname``. A balancer whose
    hostname is the alias would take itself for the only member, so that name, and those below it, are left to DNS.
    """

    def __init__(self, path: Path = HOSTS, own: str | None = None) -> None:
        self._path = path
        self._own = (socket.gethostname() if own is None else own).lower()
        self._state: _State | None = None
        self._addresses: dict[str, list[str]] = {}

    def __str__(self) -> str:
        return str(self._path)

    def addresses(self, name: str) -> list[str]:
        """Return the IP addresses of a name, in the order of the file."""
        self._read_if_changed()
        name = name.lower()
        is_own = name == self._own or name.startswith(self._own + ".")
        return [] if is_own else self._addresses.get(name, [])

    def _read_if_changed(self) -> None:
        try:
            found = self._path.stat()
            state = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            if state != self._state:
                self._addresses = parse(self._path.read_text(encoding="utf-8", errors="replace"))
                self._state = state
        except OSError:
            self._state, self._addresses = None, {}


def parse(text: str) -> dict[str, list[str]]:
    """Return the addresses by name, in lower case. Lines that do not begin with an IP address count for nothing."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for line in text.splitlines():
        words = line.partition("#")[0].lower().split()
        if words and "%" not in words[0] and (address := as_address(words[0])):
            for name in words[1:]:
                found[name][address] = None
    return {name: list(addresses) for name, addresses in found.items()}


def as_address(text: str) -> str | None:
    """Return an IP address in its usual form, or None for what is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
