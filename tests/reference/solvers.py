"""The grids of noise levels and the two step rules, with variance inside a mask only.

`a` is the cumulative alpha of a level: z = sqrt(a) x0 + sqrt(1 - a) noise. Latents are (2, C, h, w), source and target; one noise
(C, h, w) serves both. `where` (h, w) float is 1 where variance is injected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Timesteps in sampling order, and the alphas of their N + 1 levels; the last is 1."""

    timesteps: list[int]
    alphas: list[float]


def build_grid(solver: str, alphas_cumprod: np.ndarray, num_steps: int) -> Grid:
    """Return DDIM's grid (leading spacing, offset 1) or DPM-Solver++'s (linspace spacing)."""
    num_levels = len(alphas_cumprod)
    if solver == "ddim":
        stride = num_levels // num_steps
        timesteps = [stride * n + 1 for n in reversed(range(num_steps))]
        levels = [*timesteps, timesteps[-1] - stride]
    else:
        levels = [round(t) for t in np.linspace(0, num_levels - 1, num_steps + 1)[::-1]]
        timesteps = levels[:-1]
        levels = [*timesteps, -1]
    return Grid(timesteps, [float(alphas_cumprod[t]) if t >= 0 else 1.0 for t in levels])


def predict_clean(latents: Tensor, noise_pred: Tensor, alpha: float, x_0: Tensor) -> Tensor:
    """Return the coupled clean predictions: x_0 for the source, and x_0 shifted by the branches' difference for the target."""
    predicted = (latents - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)
    return x_0 + (predicted - predicted[:1])


def ddim_step(latents: Tensor, clean: Tensor, a: float, a_prev: float, eta: float, where: Tensor, noise: Tensor) -> Tensor:
    """Take one DDIM step: sigma = eta sqrt((1 - a_prev) / (1 - a) (1 - a / a_prev)) inside `where`, 0 outside."""
    sigma = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)) * where
    b = ((1 - a_prev - sigma**2).clamp_min(0) / (1 - a)).sqrt()
    return (math.sqrt(a_prev) - math.sqrt(a) * b) * clean + b * latents + sigma * noise


def dpm_step(
    latents: Tensor, clean: Tensor, clean_before: Tensor | None, alphas: list[float], i: int, where: Tensor, noise: Tensor
) -> Tensor:
    """Take step i of DPM-Solver++(2M) (arXiv 2211.01095): the SDE update inside `where`, the ODE update outside.

    First order at the first step and at the last. lambda = log(sqrt(a / (1 - a))), h = lambda_next - lambda.
    """
    a, a_next = alphas[i], alphas[i + 1]
    if a_next == 1.0:  # h is infinite: both updates end at the clean prediction
        return clean
    h = _half_log_snr(a_next) - _half_log_snr(a)
    slope = 0.0
    if clean_before is not None:
        h_before = _half_log_snr(a) - _half_log_snr(alphas[i - 1])
        slope = (clean - clean_before) * (h / h_before)
    signal, spread, ratio = math.sqrt(a_next), math.sqrt(1 - a_next), math.sqrt((1 - a_next) / (1 - a))
    ode_share = -math.expm1(-h)
    ode = ratio * latents + signal * ode_share * (clean + 0.5 * slope)
    sde_share = -math.expm1(-2 * h)
    sde = ratio * math.exp(-h) * latents + signal * sde_share * (clean + 0.5 * slope) + spread * math.sqrt(sde_share) * noise
    return where * sde + (1 - where) * ode


def _half_log_snr(a: float) -> float:
    return 0.5 * math.log(a / (1 - a))
