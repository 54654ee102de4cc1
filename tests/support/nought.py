"""What is drawn, without chance."""

from __future__ import annotations

from random import Random


class Nought(Random):
    """Draws nothing but 0: turns begin with the first member."""

    def random(self) -> float:
        return 0.0

    def getrandbits(self, k: int) -> int:
        return 0
