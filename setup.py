"""Names the packages of the wheel, and compiles part of them on demand; everything else is in pyproject.toml.

The demo starts the worker of the example system. The wheel carries that as ``balancer.demo.worker``,
since a top-level package ``worker`` would collide with packages of that name in the user's environment.

Where the environment has BALANCER_COMPILE=1, mypyc compiles the modules that ``[tool.balancer]`` in pyproject.toml
lists, and the wheel is one of this Python and platform. Otherwise nothing is compiled, and no compiler is needed.
"""

import os
import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

# By its path: the package itself may need what is not there yet.
BUILD = runpy.run_path("balancer/build.py")
NEEDS = Path("balancer/compile-requirements.txt").read_text().split()
MYPY = next(need.removeprefix("mypy==") for need in NEEDS if need.startswith("mypy=="))
COMPILES = os.environ.get("BALANCER_COMPILE") == "1"
# Commands that ask for names and requirements alone.
ASKS = bool({"egg_info", "dist_info", "sdist"} & set(sys.argv[1:]))
WITHOUT = "Without BALANCER_COMPILE=1 the same source runs as pure Python."


def compiled_modules():
    """Return the extensions of the modules that are compiled; ``balancer.build`` reads the name of their library."""
    try:
        from mypy.version import __version__
        from mypyc.build import mypycify
    except ImportError:
        __version__ = ""
    if __version__ != MYPY:
        sys.exit(f"BALANCER_COMPILE=1 needs mypy {MYPY}: pip install mypy=={MYPY}. {WITHOUT}")
    paths = BUILD["sources"]()
    library = f"balancer.{BUILD['PREFIX']}{MYPY.replace('.', '_')}_{BUILD['digest'](paths)}"
    sources = [str(path.relative_to(Path.cwd())) for path in paths]
    # `make types` has checked them; here, what they import need not be installed.
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--no-warn-no-return"]
    return mypycify([*options, *sources], group_name=library, opt_level="3", debug_level="0")


class Build(build_ext):
    """Says in one line what is missing where nothing can be compiled."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except (CCompilerError, ExecError, PlatformError) as error:
            needs = "BALANCER_COMPILE=1 needs a C compiler and the headers of this Python (Debian: gcc, python3-dev)"
            sys.exit(f"{needs}. {WITHOUT} ({error})")


setup(
    packages=[*find_packages(include=["balancer", "balancer.*"]), "balancer.demo.worker"],
    package_dir={"balancer.demo.worker": "worker"},
    ext_modules=compiled_modules() if COMPILES and not ASKS else [],
    setup_requires=NEEDS if COMPILES and ASKS else [],
    cmdclass={"build_ext": Build},
)
