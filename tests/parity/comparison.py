"""What a replayed case comes to: the errors, the verdict and the line of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from vimaedit.step.noise import START

LATENT_TOLERANCE = 5e-4
BASELINE_TOLERANCE = 1e-3
DECIDED_MARGIN = 1e-5  # a mask pixel whose recorded map is nearer to its threshold may fall either way
BASELINE_MARGIN = 1e-4
BASELINE_MAP_TOLERANCE = 3e-4  # of maps over their maximum


@dataclass
class Comparison:
    """What one case came to. `misses` empty: it holds; `undecided` names the step from which it cannot be judged.

    `cpu_s`, `memory_mb`: CPU seconds, and the most memory above what was held before; nan where the system does not tell.
    """

    case: str
    tolerance: float = LATENT_TOLERANCE
    margin: float = DECIDED_MARGIN
    errors: dict[str, float] = field(default_factory=dict)
    mask_pixels: int = 0
    undecided: int | None = None
    misses: list[str] = field(default_factory=list)
    saved: dict[str, np.ndarray] = field(default_factory=dict)
    cpu_s: float = math.nan
    memory_mb: float = math.nan

    def check(self, name: str, error: float, tolerance: float) -> None:
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error <= tolerance:
            self.misses.append(f"{name} {error:.2e} > {tolerance:.0e}")

    def judges(self, step: int) -> bool:
        """Whether a step's latents can be judged."""
        return self.undecided is None or step < self.undecided

    def latents(self, step: int, own: torch.Tensor | np.ndarray, recorded: np.ndarray, name: str = "latents") -> None:
        """Compare latents after a step, unless a mask before it could fall either way."""
        if self.judges(step):
            self.check(name, max_error(np.asarray(own), recorded), self.tolerance)

    def mask(self, step: int, own: np.ndarray, recorded: np.ndarray, margin: float | None) -> None:
        """Compare a step's mask pixel by pixel; different ones within the margin make the case undecided from there."""
        if not self.judges(step):
            return
        different = int((own.astype(bool) != recorded.astype(bool)).sum())
        if different and margin is not None and margin < self.margin:
            self.undecided = step
            return
        self.mask_pixels += different
        if different:
            self.misses.append(f"step {step}: {different} mask pixels different")


class RecordedNoise:
    """The recorded noise as a `NoiseSource`. Shapes: `start_BChw` (B, C, h, w); `steps_SBChw` (S, B, C, h, w)."""

    def __init__(self, start_BChw: torch.Tensor, steps_SBChw: torch.Tensor) -> None:
        self.start_BChw = start_BChw
        self.steps_SBChw = steps_SBChw

    def draw(self, step: int) -> torch.Tensor:
        return self.start_BChw if step == START else self.steps_SBChw[step]


def max_error(own: np.ndarray, recorded: np.ndarray) -> float:
    """Return the largest absolute difference, in double precision."""
    return float(np.abs(own.reshape(recorded.shape).astype(np.float64) - recorded).max())


def print_row(outcome: Comparison | tuple[str, str]) -> None:
    """Print one case's line of the table; a tuple (name, reason) stands for a case that was not replayed."""
    if isinstance(outcome, tuple):
        print(f"{outcome[0]:32s} {outcome[1]}", flush=True)
        return
    latent = max(outcome.errors.get("latents", float("nan")), outcome.errors.get("final", 0.0))
    verdict = "MISS: " + "; ".join(outcome.misses) if outcome.misses else "holds"
    if outcome.undecided is not None:
        verdict += f", undecided from step {outcome.undecided} (margin under {outcome.margin:.0e})"
    numbers = [f"{outcome.errors.get(key, float('nan')):9.1e}" for key in ("embedding", "x_T", "map")]
    used = f"{outcome.cpu_s:6.1f} {outcome.memory_mb:6.0f}"
    print(f"{outcome.case:32s} {latent:9.1e} {outcome.mask_pixels:6d} {' '.join(numbers)} {used}  {verdict}", flush=True)
