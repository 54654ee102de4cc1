"""What the balancer's candidates run: which sources, pure or compiled, and on which Python.

Everything that is made here is kept in ``bench/.cache``, under the Python and the sources that it was made from.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.processes import ROOT, BenchError

CACHE = ROOT / "bench" / ".cache"
# What the balancer needs of other distributions, with HTTP/2, and what it is compiled with.
REQUIREMENTS = ("balancer/requirements.txt", "balancer/http2-requirements.txt")
COMPILED_WITH = "balancer/compile-requirements.txt"
# Parts of a checkout from which it is compiled.
PARTS = ("balancer", "worker", "pyproject.toml", "setup.py", "README.md")

# Debian's interpreters are made with profiles (debian/rules: ``profile-opt``), and do not say so.
_DESCRIBE = """
import os, platform, sys, sysconfig
said = " ".join(str(sysconfig.get_config_var(name)) for name in ("CONFIG_ARGS", "PY_CFLAGS", "PY_CFLAGS_NODIST"))
pgo = "--enable-optimizations" in said or "-fprofile-use" in said
debian = sys.base_prefix == "/usr" and os.path.exists("/etc/debian_version")
print(platform.python_version(), "with PGO" if pgo else "of Debian, with PGO" if debian else "without PGO")
"""


@dataclass(frozen=True)
class Build:
    """``sources`` has a ``balancer/``; ``origin``: which commit, or which directory."""

    python: str
    sources: Path
    origin: str

    @property
    def env(self) -> Mapping[str, str]:
        """Modules of the bench come from where the harness has them."""
        return {"PYTHONPATH": os.pathsep.join([str(self.sources), os.environ.get("PYTHONPATH", str(ROOT))])}

    def spelled(self, argv: Sequence[str]) -> list[str]:
        """A command line with the flags that these sources know: ``--admin-bind`` was ``--admin`` once."""
        if "--admin-bind" in _asked(self, "serve", "--help"):
            return list(argv)
        return [argument.replace("--admin-bind=", "--admin=") for argument in argv]

    def version(self) -> str:
        said = _asked(self, "--version")
        return f"{said.removeprefix('balancer').strip()}, {self.origin}, Python {describe_python(self.python)}"


@cache
def _asked(build: Build, *arguments: str) -> str:
    """What its command says."""
    # In that directory, which Python looks into first.
    argv = [build.python, "-m", "balancer", *arguments]
    return _must(argv, build.sources, {**os.environ, **build.env}).strip()


class Builds:
    """What a run can measure: this checkout, the same compiled, and another one beside it; made on first use."""

    def __init__(self, python: str = "", beside: str = "") -> None:
        """``python``: an interpreter instead of the bench's own. ``beside``: a commit, or a directory."""
        self._python = python
        self._beside = beside
        self._made: dict[str, Build] = {}

    def pure(self) -> Build:
        return self._once("pure", lambda: Build(self._interpreter(), sources_of_the_run(), origin()))

    def compiled(self) -> Build:
        return self._once("compiled", lambda: Build(self._interpreter(), compiled(self._interpreter()), origin()))

    def beside(self) -> Build:
        return self._once("beside", self._make_beside)

    def _once(self, name: str, make: Callable[[], Build]) -> Build:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _interpreter(self) -> str:
        return environment(self._python) if self._python else sys.executable

    def _make_beside(self) -> Build:
        if not self._beside:
            raise BenchError("--beside says which commit or directory is measured beside this one")
        path = Path(self._beside).resolve()
        if (path / "balancer").is_dir():
            return Build(self._interpreter(), path, f"of {path.name}, {origin(path)}")
        commit = _said(["git", "-C", str(ROOT), "rev-parse", "--verify", f"{self._beside}^{{commit}}"])
        return Build(self._interpreter(), checkout(commit), f"commit {commit[:7]}")


@cache
def describe_python(python: str) -> str:
    """Its version, and whether it was optimised with profiles, which makes interpreted code faster."""
    return _said([python, "-c", _DESCRIBE])


def sources_of_the_run() -> Path:
    """The copy that the run made of them, if it did."""
    return Path(os.environ.get("PYTHONPATH", str(ROOT)).split(os.pathsep)[0])


def origin(root: Path = ROOT) -> str:
    if shutil.which("git") is None:
        return "no commit"
    done = _run(["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"])
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit"


def environment(python: str, *more: str) -> str:
    """The interpreter of a virtual environment of ``python`` with what the balancer needs, and ``more`` files name."""
    needs = [*REQUIREMENTS, *more]
    stated = "".join((ROOT / name).read_text() for name in needs)
    key = _digest([os.path.realpath(python), describe_python(python), stated, (ROOT / "constraints.txt").read_text()])
    place = CACHE / f"python-{key}"
    made = str(place / "bin" / "python")
    if (place / ".ready").exists():
        return made
    print(f"an environment of {python} in {place.relative_to(ROOT)} …", flush=True)
    _must([python, "-m", "venv", "--clear", str(place)])
    wanted = [part for name in needs for part in ("-r", name)]
    _must([made, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", *wanted])
    (place / ".ready").touch()
    return made


def compiled(python: str) -> Path:
    """A directory with the balancer of this checkout, compiled in place for that interpreter."""
    if not (ROOT / COMPILED_WITH).exists():
        raise BenchError("this checkout cannot be compiled")
    tag = _said([python, "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))"])
    place = CACHE / f"compiled-{_digest([tag, describe_python(python)])}"
    sources = _digest(path.read_bytes() for path in _source_files())
    stamp = place / ".built"
    if stamp.exists() and stamp.read_text() == sources:
        return place
    print(f"compiling the balancer in {place.relative_to(ROOT)} …", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in _source_files():
        target = place / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    by = environment(python, COMPILED_WITH)
    _must([by, "setup.py", "-q", "build_ext", "--inplace"], place, {**os.environ, "BALANCER_COMPILE": "1"})
    stamp.write_text(sources)
    return place


def checkout(commit: str) -> Path:
    """``balancer/`` as it was at a commit."""
    place = CACHE / f"commit-{commit[:12]}"
    if not (place / "balancer").exists():
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "balancer"], capture_output=True)
        if archive.returncode:
            raise BenchError(f"git has no balancer/ at {commit}: {archive.stderr.decode()[-300:]}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(place, filter="data")
    return place


def _source_files() -> list[Path]:
    found = []
    for part in PARTS:
        path = ROOT / part
        found += [path] if path.is_file() else sorted(it for it in path.rglob("*") if it.is_file())
    return [path for path in found if "__pycache__" not in path.parts and path.suffix not in (".so", ".pyc")]


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()[:12]


def _run(
    argv: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True)


def _must(argv: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    done = _run(argv, cwd, env)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


def _said(argv: Sequence[str]) -> str:
    return _must(argv).strip()
