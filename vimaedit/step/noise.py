"""Noise: every draw is keyed by (seed, step), so nothing depends on batch, shard, actor or order of draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

START = -1  # the "step" of the start noise, the eps of x_T


class NoiseSource(Protocol):
    """Standard normal noise of a batch. `draw(step)` gives (B, C, h, w) float32 on the CPU, the same at every call."""

    def draw(self, step: int) -> Tensor: ...


class SeededNoise:
    """Noise from one counter-based generator (Philox) per request and step, keyed by (seed, step)."""

    def __init__(self, seeds: Sequence[int], shape_Chw: tuple[int, int, int]) -> None:
        self.seeds = tuple(seeds)
        self.shape_Chw = shape_Chw

    def draw(self, step: int) -> Tensor:
        noise_BChw = np.empty((len(self.seeds), *self.shape_Chw), dtype=np.float32)
        for row, seed in zip(noise_BChw, self.seeds, strict=True):
            key = np.array([seed, step - START], dtype=np.uint64)
            np.random.Generator(np.random.Philox(key=key)).standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(noise_BChw)
