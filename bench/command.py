"""What the commands of the bench have in common: their frame, and how they read names."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.processes import BenchError, ended_by_signals


def framed(name: str, run: Callable[[Path], int]) -> int:
    """The exit status of a run with a directory of its own; what went wrong is printed in one line."""
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix=f"{name}-") as directory:
            return run(Path(directory))
    except BenchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130


def names(known: Iterable[str], short: Mapping[str, str] | None = None) -> Callable[[str], list[str]]:
    """What reads names with commas between them, in the order of those known; ``short`` has other names for some."""
    all_names = list(known)

    def parse(text: str) -> list[str]:
        wanted = [(short or {}).get(name, name) for name in text.split(",")]
        unknown = [name for name in wanted if name not in all_names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} unknown; known are {', '.join(all_names)}")
        return [name for name in all_names if name in wanted]

    return parse


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def raise_file_limit() -> None:
    """Open as many files as the system lets this process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
