"""Time grids and step rules. All arithmetic in float32 on tensors, with the grid's numbers as float64 scalars.

`a` is the cumulative alpha of the present level, `a'` that of the next one (1 after the last step), x0 the clean prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError

CONSISTENCY_LEVELS = 50  # that a consistency model is distilled for
ROUNDING = 1e-9  # (1 - 0.24) * 50 is one of 38 steps, not of 37


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a run visits, noisiest first: timesteps t, a at t, and a' at the next level."""

    timesteps: tuple[int, ...]
    alphas: tuple[float, ...]
    next_alphas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim_schedule(alphas_cumprod: np.ndarray, steps: int, last_alpha: float = 1.0) -> Schedule:
    """Build the leading grid with offset 1: t = k (T // N) + 1, next level t - T // N, a' = `last_alpha` after the last step."""
    num_levels = len(alphas_cumprod)
    stride = num_levels // steps if steps <= num_levels else 0
    if stride == 0 or (steps - 1) * stride + 1 >= num_levels:
        raise ConfigError(f"steps: got {steps} with solver=ddim; allowed: 1 to {num_levels - 1}")
    timesteps = [k * stride + 1 for k in reversed(range(steps))]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    next_alphas = [float(alphas_cumprod[t - stride]) for t in timesteps[:-1]]
    return Schedule(timesteps=tuple(timesteps), alphas=tuple(alphas), next_alphas=(*next_alphas, last_alpha))


def dpmsolver_schedule(alphas_cumprod: np.ndarray, steps: int) -> Schedule:
    """Build the linspace grid from the last level down, the end (a' = 1) not included in the timesteps."""
    num_levels = len(alphas_cumprod)
    if not 1 <= steps < num_levels:
        raise ConfigError(f"steps: got {steps} with solver=dpmsolver++; allowed: 1 to {num_levels - 1}")
    timesteps = [int(t) for t in np.linspace(0, num_levels - 1, steps + 1).round()[::-1][:-1]]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return Schedule(timesteps=tuple(timesteps), alphas=tuple(alphas), next_alphas=(*alphas[1:], 1.0))


def consistency_schedule(alphas_cumprod: np.ndarray, steps: int) -> Schedule:
    """Build the grid of consistency models: every (50 / N)-th of 50 levels from the noisiest down, a' = a at the last step."""
    num_levels = len(alphas_cumprod)
    origins = min(CONSISTENCY_LEVELS, num_levels)
    if not 1 <= steps <= origins:
        raise ConfigError(f"steps: got {steps} on a consistency grid; allowed: 1 to {origins}")
    levels = [(k + 1) * (num_levels // origins) - 1 for k in reversed(range(origins))]
    timesteps = [levels[origins * k // steps] for k in range(steps)]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return Schedule(timesteps=tuple(timesteps), alphas=tuple(alphas), next_alphas=(*alphas[1:], alphas[-1]))


def leading_schedule(alphas_cumprod: np.ndarray, steps: int, skip: float) -> Schedule:
    """Build LEDITS++'s grid: n = int(N (1 + skip)) levels k (T // (n + 1)) + 1, the N lowest but one stride, a' = 1 at the end."""
    num_levels = len(alphas_cumprod)
    count = int(steps * (1 + skip))
    stride = num_levels // (count + 1)
    if steps < 1 or stride == 0:
        raise ConfigError(f"steps: got {steps} with skip={skip}; allowed: less than {num_levels} levels with those skipped")
    timesteps = [k * stride + 1 for k in range(count, 0, -1)][-steps:]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return Schedule(timesteps=tuple(timesteps), alphas=tuple(alphas), next_alphas=(*alphas[1:], 1.0))


def build_schedule(solver: str, alphas_cumprod: np.ndarray, steps: int) -> Schedule:
    """Build the grid that belongs to a solver."""
    build = {"ddim": ddim_schedule, "dpmsolver++": dpmsolver_schedule}[solver]
    return build(alphas_cumprod, steps)


def method_schedule(config: EditConfig, alphas_cumprod: np.ndarray) -> Schedule:
    """Build the grid of a configuration's method, the skipped steps left out.

    Raises: ConfigError for steps that the model's levels cannot give.
    """
    grid = config.parts.grid
    if grid == "leading":
        return leading_schedule(alphas_cumprod, config.steps, config.skip)
    if grid == "training":
        schedule = ddim_schedule(alphas_cumprod, config.steps, float(alphas_cumprod[0]))
    elif grid == "consistency":
        schedule = consistency_schedule(alphas_cumprod, config.steps)
    else:
        schedule = build_schedule(config.solver, alphas_cumprod, config.steps)
    first = num_skipped(config)
    return Schedule(schedule.timesteps[first:], schedule.alphas[first:], schedule.next_alphas[first:])


def num_skipped(config: EditConfig) -> int:
    """Return how many steps of the full grid are left out at its noisy end."""
    if config.parts.grid == "leading":
        return 0
    return config.steps - max(1, math.floor((1 - config.skip) * config.steps + ROUNDING))


def add_noise(x0: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """Noise a clean latent: sqrt(a) x0 + sqrt(1 - a) n."""
    return math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * noise


def predict_x0(x: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """Predict the clean latent from the noise prediction: (x - sqrt(1 - a) eps) / sqrt(a)."""
    return (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)


def ddim_step(x: Tensor, x0: Tensor, schedule: Schedule, i: int, variance_mask: Tensor, noise: Tensor, eta: float) -> Tensor:
    """Take one DDIM step with a standard deviation per latent pixel (ViMAEdit, spatially adaptive variance): `spread_step` with
    sigma^2 = eta^2 C V.

    Shapes: as `spread_step`; `variance_mask` C broadcastable, float 0 or 1.
    """
    return spread_step(x, x0, schedule, i, posterior_variance(schedule, i, eta) * variance_mask, noise)


def posterior_variance(schedule: Schedule, i: int, eta: float) -> float:
    """Return eta^2 V with V = (1 - a')/(1 - a) (1 - a/a'), the variance of a DDPM step."""
    alpha, next_alpha = schedule.alphas[i], schedule.next_alphas[i]
    return eta**2 * (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)


def spread_step(x: Tensor, x0: Tensor, schedule: Schedule, i: int, variance: Tensor, noise: Tensor) -> Tensor:
    """Take one step of any first-order solver: which one it is follows from the variance sigma^2.

    b = sqrt((1 - a' - sigma^2)/(1 - a)), x <- (sqrt(a') - sqrt(a) b) x0 + b x + sigma n. DDIM has sigma = 0, DDPM sigma^2 = V,
    a consistency model sigma^2 = 1 - a'.

    Shapes: `x`, `x0` (..., C, h, w); `variance`, `noise` broadcastable.
    """
    alpha, next_alpha = schedule.alphas[i], schedule.next_alphas[i]
    direction = torch.sqrt((1 - next_alpha - variance).clamp(min=0) / (1 - alpha))
    mean = (math.sqrt(next_alpha) - math.sqrt(alpha) * direction) * x0 + direction * x
    return mean + torch.sqrt(variance) * noise


def second_order_term(x0: Tensor, previous_x0: Tensor | None, schedule: Schedule, i: int) -> Tensor:
    """Return what the second-order SDE solver adds to the DDPM mean: sqrt(a') (1 - e^-2h) (x0 - previous_x0) h / (2 h_previous).

    h is the step in log-SNR. Nothing at the first step and at the last, where h is infinite.

    Shapes: `x0`, `previous_x0` (..., C, h, w).
    """
    alpha, next_alpha = schedule.alphas[i], schedule.next_alphas[i]
    if previous_x0 is None or next_alpha == 1.0:
        return torch.zeros_like(x0)
    h = _log_snr(next_alpha) - _log_snr(alpha)
    previous_h = _log_snr(alpha) - _log_snr(schedule.alphas[i - 1])
    return (0.5 * math.sqrt(next_alpha) * -math.expm1(-2 * h) * h / previous_h) * (x0 - previous_x0)


def dpmsolver_step(
    x: Tensor, x0: Tensor, previous_x0: Tensor | None, schedule: Schedule, i: int, variance_mask: Tensor, noise: Tensor
) -> Tensor:
    """Take one DPM-Solver++(2M) step, the ODE update outside the mask and its SDE variant inside, from the same history.

    With lambda = log(sqrt(a)/sqrt(1 - a)), h = lambda' - lambda and D = x0 + (x0 - previous_x0) h / (2 h_previous)
    (D = x0 at the first and the last step):
    ODE: (s'/s) x + sqrt(a') (1 - e^-h) D; SDE: (s'/s) e^-h x + sqrt(a') (1 - e^-2h) D + s' sqrt(1 - e^-2h) n, s = sqrt(1 - a).

    Shapes: as `ddim_step`; `previous_x0` like `x0`, None at the first step.
    """
    alpha, next_alpha = schedule.alphas[i], schedule.next_alphas[i]
    if next_alpha == 1.0:  # s' = 0 and h infinite: both updates reduce to the clean prediction
        return x0
    h = _log_snr(next_alpha) - _log_snr(alpha)
    blended = x0
    if previous_x0 is not None:
        previous_h = _log_snr(alpha) - _log_snr(schedule.alphas[i - 1])
        blended = x0 + (x0 - previous_x0) * (0.5 * h / previous_h)
    sigma, next_sigma = math.sqrt(1 - alpha), math.sqrt(1 - next_alpha)
    ode = (next_sigma / sigma) * x - math.sqrt(next_alpha) * math.expm1(-h) * blended
    decay = -math.expm1(-2 * h)
    sde = (next_sigma / sigma * math.exp(-h)) * x + (math.sqrt(next_alpha) * decay) * blended
    sde = sde + (next_sigma * math.sqrt(decay)) * noise
    return torch.where(variance_mask > 0, sde, ode)


def _log_snr(alpha: float) -> float:
    return 0.5 * math.log(alpha / (1 - alpha))
