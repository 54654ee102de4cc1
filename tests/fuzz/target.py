"""The fuzzer's own process: libFuzzer by atheris, which brings bytes, and a target, which judges what they do.

A finding does not end the run: the shortest case of each kind is kept in a file, and the run goes on.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

from tests.fuzz.play import Play
from tests.fuzz.targets import load

# The name of the target comes first, because its imports are what is measured.
with atheris.instrument_imports(include=["balancer"]):
    MODULE = load(sys.argv[1])

# What differs between two findings of one kind: bytes, numbers, and everything that is told in detail.
_DETAIL = re.compile(r"b'.*|b\".*|bytearray.*|Message\(.*|\[.*|\d+|; .*", re.DOTALL)


def kind(finding: str) -> str:
    """The name of what was found, for a file."""
    return re.sub(r"[^a-z]+", "-", _DETAIL.sub("", finding).lower()).strip("-")[:80] or "finding"


class Target:
    """Plays cases. ``directory``: where findings go, a file for each kind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kinds: set[str] = set()
        self._play: Play = MODULE.player()

    def __call__(self, data: bytes) -> None:
        try:
            found = self._play(data)
        except Exception:
            found = [f"an exception: {traceback.format_exc()}"]
        if found:
            self._play = MODULE.player()  # Whatever is left on the old loop must not play on.
            for finding in found:
                self._keep(finding, data)

    def _keep(self, finding: str, data: bytes) -> None:
        name = kind(finding)
        path = self._directory / name
        if name not in self._kinds:
            # What an earlier run left there under this name may be mended by now.
            self._kinds.add(name)
            print(f"finding: {name}", file=sys.stderr, flush=True)
            path.write_bytes(data)
        elif len(data) < path.stat().st_size:
            path.write_bytes(data)


def main(arguments: list[str]) -> None:
    directory, options = Path(arguments[1]), arguments[2:]
    target: Callable[[bytes], None] = Target(directory)
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
