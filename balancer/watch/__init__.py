"""``balancer watch``: the curl loop. Sends requests at a steady rate and shows answers by worker, times and failures.

``loop.py`` sends, ``tally.py`` counts (no I/O), ``render.py`` draws, ``command.py`` puts them together.
"""

from balancer.watch.command import Options, on_terminal, run
from balancer.watch.loop import Loop, first, interruptible
from balancer.watch.render import drawing, picture
from balancer.watch.tally import Result, Tally

__all__ = ["Loop", "Options", "Result", "Tally", "drawing", "first", "interruptible", "on_terminal", "picture", "run"]
