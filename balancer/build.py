"""Which build runs: pure Python, or the same source with part of its modules compiled by mypyc.

Compiled modules share one library in this package. ``setup.py`` puts the version of mypyc and a digest of the sources
into its name. Where it lies beside the sources of a checkout, it must come from these very sources: Python prefers a
compiled module to its source, however old it is.

``balancer/__init__.py`` imports this module before everything else, so it imports little itself.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PREFIX = "compiled_"
_PACKAGE = Path(__file__).absolute().parent
_PROJECT = _PACKAGE.parent / "pyproject.toml"
_END = f"__mypyc{EXTENSION_SUFFIXES[0]}"


def describe() -> str:
    """Return the build and its Python in words, such as "compiled by mypyc 2.4.1, Python 3.13.1"."""
    return f"{kind()}, Python {sys.version.split()[0]}"


def kind() -> str:
    """Return the build in words: "pure Python", or "compiled by mypyc" with its version."""
    version = library().removeprefix(PREFIX).rpartition("_")[0].replace("_", ".")
    return f"compiled by mypyc {version}" if version else "pure Python"


def check_fresh() -> None:
    """Raise ImportError in a checkout whose sources have changed since they were compiled."""
    if _PROJECT.exists() and (compiled := library()) and not compiled.endswith(f"_{digest(sources())}"):
        raise ImportError("balancer: its sources have changed since `make compile`: run that again, or `make pure`")


def sources() -> list[Path]:
    """Return the sources of the modules that are compiled. Only a checkout, or an sdist, has the list of these."""
    import tomllib

    names = tomllib.loads(_PROJECT.read_text())["tool"]["balancer"]["compiled"]
    return [_PROJECT.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names]


def digest(paths: list[Path]) -> str:
    """Return the digest of sources, as it stands in the name of their library."""
    import hashlib

    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def library() -> str:
    """Return the name of the library of compiled modules for this Python, or "" where there is none."""
    return next((path.name.removesuffix(_END) for path in _PACKAGE.glob(f"{PREFIX}*{_END}")), "")
