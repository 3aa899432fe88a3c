"""Random choices by integer arithmetic on Philox's raw output: the same on every machine and with every numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

CHUNK = 64

T = TypeVar("T")


class Draws:
    """A stream of random choices, decided by `seed` (0 .. 2**64-1) and the stream's number alone."""

    def __init__(self, seed: int, stream: int) -> None:
        self._bits = np.random.Philox(key=seed + (stream << 64))
        self._words: list[int] = []

    def below(self, count: int) -> int:
        """Return an integer from 0 to `count` - 1."""
        if not self._words:
            self._words = self._bits.random_raw(CHUNK).tolist()
        return self._words.pop() % count

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """Return True in `percent` of all cases."""
        return self.below(100) < percent

    def choose(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return the options in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in options]
