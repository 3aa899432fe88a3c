"""The levels of flow models, as the scheduler of diffusers that comes with a model gives them; no torch until it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Levels = tuple[list[float], list[float]]  # N timesteps, 0 to 1000, and N + 1 sigmas down to 0
Grid = Callable[[Any, int, int], Levels]


def own_grid(scheduler: Any, steps: int, tokens: int) -> Levels:
    """Return the scheduler's own grid: from its largest to its smallest sigma, shifted. Where these are shifted already, the smallest
    is shifted twice, so that the last but one level is the same for every N. `tokens` of the picture."""
    return _levels(scheduler, tokens, num_inference_steps=steps)


def even_grid(scheduler: Any, steps: int, tokens: int) -> Levels:
    """Return the grid of 1, (N - 1)/N, ... 1/N, shifted."""
    return _levels(scheduler, tokens, sigmas=[1 - i / steps for i in range(steps)])


def _levels(scheduler: Any, tokens: int, **grid: Any) -> Levels:
    """Ask a scheduler; where its shift is dynamic it is linear in the number of tokens."""
    fresh = type(scheduler).from_config(scheduler.config)  # it keeps the grid that it was last asked for
    config = fresh.config
    if config.use_dynamic_shifting:
        share = (tokens - config.base_image_seq_len) / (config.max_image_seq_len - config.base_image_seq_len)
        grid["mu"] = config.base_shift + share * (config.max_shift - config.base_shift)
    fresh.set_timesteps(**grid)
    return fresh.timesteps.tolist(), fresh.sigmas.tolist()
