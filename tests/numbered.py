"""Batches to train on that are numbers alone; other processes that draw them import nothing else for it."""

from __future__ import annotations

import numpy as np


class NumberDraw:
    """The number of the first scene, as the one thing that a batch of two shows."""

    def __call__(self, first: int) -> tuple[np.ndarray]:
        return (np.array([first]),)
