"""Names the packages of the wheel; everything else is in pyproject.toml.

The demo starts the worker of the example system. The wheel carries that as ``balancer.demo.worker``,
since a top-level package ``worker`` would collide with packages of that name in the user's environment.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["balancer", "balancer.*"]), "balancer.demo.worker"],
    package_dir={"balancer.demo.worker": "worker"},
)
