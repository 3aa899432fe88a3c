"""Time grids and step rules. All arithmetic in float32 on tensors, with the grid's numbers as float64 scalars.

At a level x = alpha x0 + sigma n. Marked by ' is the next level (sigma 0 after the last step), x0 is the clean prediction, `a` the
cumulative alpha of a training level, alpha^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError

CONSISTENCY_LEVELS = 50  # that a consistency model is distilled for
ROUNDING = 1e-9  # (1 - 0.24) * 50 is one of 38 steps, not of 37


@dataclass(frozen=True)
class Level:
    """A noise level, x = alpha x0 + sigma n. `signal` and `variance`: the squares of alpha and sigma, which some models are given by.

    `is_flow`: what the denoiser predicts is the velocity v = n - x0, else it is the noise n.
    """

    alpha: float
    sigma: float
    signal: float
    variance: float
    is_flow: bool = False

    @classmethod
    def of_noise(cls, a: float) -> Level:
        """Return the level of a cumulative alpha: alpha = sqrt(a), sigma = sqrt(1 - a)."""
        return cls(math.sqrt(a), math.sqrt(1 - a), a, 1 - a)

    @classmethod
    def of_flow(cls, sigma: float) -> Level:
        """Return a level of a rectified flow: alpha = 1 - sigma."""
        return cls(1 - sigma, sigma, (1 - sigma) ** 2, sigma**2, is_flow=True)

    @property
    def log_snr(self) -> float:
        """Return log(alpha / sigma), -infinity for pure noise."""
        return 0.5 * math.log(self.signal / self.variance) if self.signal else -math.inf


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a run visits, noisiest first: timesteps t, the level at t, and the one that the step goes to."""

    timesteps: tuple[float, ...]
    levels: tuple[Level, ...]
    next_levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.timesteps)

    def after(self, first: int) -> Schedule:
        """Leave out the first steps."""
        return Schedule(self.timesteps[first:], self.levels[first:], self.next_levels[first:])


def noise_schedule(timesteps: Sequence[int], alphas: Sequence[float], next_alphas: Sequence[float]) -> Schedule:
    """Build a schedule from the cumulative alphas of its levels."""
    return Schedule(tuple(timesteps), tuple(map(Level.of_noise, alphas)), tuple(map(Level.of_noise, next_alphas)))


def flow_schedule(timesteps: Sequence[float], sigmas: Sequence[float]) -> Schedule:
    """Build a schedule of a rectified flow from its N timesteps and N + 1 sigmas, the last the end."""
    levels = tuple(map(Level.of_flow, sigmas))
    return Schedule(tuple(timesteps), levels[:-1], levels[1:])


def ddim_schedule(alphas_cumprod: np.ndarray, steps: int, last_alpha: float = 1.0) -> Schedule:
    """Build the leading grid with offset 1: t = k (T // N) + 1, next level t - T // N, a' = `last_alpha` after the last step."""
    num_levels = len(alphas_cumprod)
    stride = num_levels // steps if steps <= num_levels else 0
    if stride == 0 or (steps - 1) * stride + 1 >= num_levels:
        raise ConfigError(f"steps: got {steps} with solver=ddim; allowed: 1 to {num_levels - 1}")
    timesteps = [k * stride + 1 for k in reversed(range(steps))]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    next_alphas = [float(alphas_cumprod[t - stride]) for t in timesteps[:-1]]
    return noise_schedule(timesteps, alphas, (*next_alphas, last_alpha))


def trailing_schedule(alphas_cumprod: np.ndarray, steps: int, last_alpha: float = 1.0) -> Schedule:
    """Build the grid that begins at the last level, t = round(T - k T / N) - 1, of models distilled for few steps."""
    num_levels = len(alphas_cumprod)
    if not 1 <= steps <= num_levels:
        raise ConfigError(f"steps: got {steps} with spacing=trailing; allowed: 1 to {num_levels}")
    timesteps = [round(num_levels - k * num_levels / steps) - 1 for k in range(steps)]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return noise_schedule(timesteps, alphas, (*alphas[1:], last_alpha))


def dpmsolver_schedule(alphas_cumprod: np.ndarray, steps: int) -> Schedule:
    """Build the linspace grid from the last level down, the end (a' = 1) not included in the timesteps."""
    num_levels = len(alphas_cumprod)
    if not 1 <= steps < num_levels:
        raise ConfigError(f"steps: got {steps} with solver=dpmsolver++; allowed: 1 to {num_levels - 1}")
    timesteps = [int(t) for t in np.linspace(0, num_levels - 1, steps + 1).round()[::-1][:-1]]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return noise_schedule(timesteps, alphas, (*alphas[1:], 1.0))


def consistency_schedule(alphas_cumprod: np.ndarray, steps: int) -> Schedule:
    """Build the grid of consistency models: every (50 / N)-th of 50 levels from the noisiest down, a' = a at the last step."""
    num_levels = len(alphas_cumprod)
    origins = min(CONSISTENCY_LEVELS, num_levels)
    if not 1 <= steps <= origins:
        raise ConfigError(f"steps: got {steps} on a consistency grid; allowed: 1 to {origins}")
    levels = [(k + 1) * (num_levels // origins) - 1 for k in reversed(range(origins))]
    timesteps = [levels[origins * k // steps] for k in range(steps)]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return noise_schedule(timesteps, alphas, (*alphas[1:], alphas[-1]))


def leading_schedule(alphas_cumprod: np.ndarray, steps: int, skip: float) -> Schedule:
    """Build LEDITS++'s grid: n = int(N (1 + skip)) levels k (T // (n + 1)) + 1, the N lowest but one stride, a' = 1 at the end."""
    num_levels = len(alphas_cumprod)
    count = int(steps * (1 + skip))
    stride = num_levels // (count + 1)
    if steps < 1 or stride == 0:
        raise ConfigError(f"steps: got {steps} with skip={skip}; allowed: less than {num_levels} levels with those skipped")
    timesteps = [k * stride + 1 for k in range(count, 0, -1)][-steps:]
    alphas = [float(alphas_cumprod[t]) for t in timesteps]
    return noise_schedule(timesteps, alphas, (*alphas[1:], 1.0))


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
    last_alpha = float(alphas_cumprod[0]) if grid == "training" else 1.0
    if grid == "consistency":
        schedule = consistency_schedule(alphas_cumprod, config.steps)
    elif config.spacing == "trailing":
        schedule = trailing_schedule(alphas_cumprod, config.steps, last_alpha)
    elif grid == "training":
        schedule = ddim_schedule(alphas_cumprod, config.steps, last_alpha)
    else:
        schedule = build_schedule(config.solver, alphas_cumprod, config.steps)
    return schedule.after(num_skipped(config))


def num_skipped(config: EditConfig) -> int:
    """Return how many steps of the full grid are left out at its noisy end."""
    if config.parts.grid == "leading":
        return 0
    return config.steps - max(1, math.floor((1 - config.skip) * config.steps + ROUNDING))


def add_noise(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Noise a clean latent: alpha x0 + sigma n."""
    return level.alpha * x0 + level.sigma * noise


def predict_x0(x: Tensor, predicted: Tensor, level: Level) -> Tensor:
    """Predict the clean latent: (x - sigma n) / alpha from the noise, x - sigma v from a flow's velocity."""
    if level.is_flow:
        return x - level.sigma * predicted
    return (x - level.sigma * predicted) / level.alpha


def move(x: Tensor, predicted: Tensor, level: Level, next_level: Level) -> Tensor:
    """Bring a latent to another level along a prediction, the step of DDIM and of Euler: alpha' x0 + sigma' n."""
    if level.is_flow:
        return x + (next_level.sigma - level.sigma) * predicted
    return add_noise(predict_x0(x, predicted, level), predicted, next_level)


def ddim_step(x: Tensor, x0: Tensor, schedule: Schedule, i: int, variance_mask: Tensor, noise: Tensor, eta: float) -> Tensor:
    """Take one DDIM step with a standard deviation per latent pixel (ViMAEdit, spatially adaptive variance): `spread_step` with
    s^2 = eta^2 C V.

    Shapes: as `spread_step`; `variance_mask` C broadcastable, float 0 or 1.
    """
    return spread_step(x, x0, schedule, i, posterior_variance(schedule, i, eta) * variance_mask, noise)


def posterior_variance(schedule: Schedule, i: int, eta: float) -> float:
    """Return eta^2 V with V = sigma'^2 (1 - (alpha sigma' / (alpha' sigma))^2), the variance of a DDPM step.

    In the form that gives (1 - a')/(1 - a) (1 - a/a') to the last bit where alpha^2 + sigma^2 = 1.
    """
    level, after = schedule.levels[i], schedule.next_levels[i]
    size, next_size = level.signal + level.variance, after.signal + after.variance
    return eta**2 * after.variance / level.variance * (size - level.signal / after.signal * next_size)


def spread_step(x: Tensor, x0: Tensor, schedule: Schedule, i: int, variance: Tensor, noise: Tensor) -> Tensor:
    """Take one step of any first-order solver: which one it is follows from the variance s^2.

    b = sqrt(sigma'^2 - s^2) / sigma, x <- (alpha' - alpha b) x0 + b x + s n. DDIM and Euler have s = 0, DDPM s^2 = V, a consistency
    model s = sigma'.

    Shapes: `x`, `x0` (..., C, h, w); `variance`, `noise` broadcastable.
    """
    level, after = schedule.levels[i], schedule.next_levels[i]
    direction = torch.sqrt((after.variance - variance).clamp(min=0) / level.variance)
    mean = (after.alpha - level.alpha * direction) * x0 + direction * x
    return mean + torch.sqrt(variance) * noise


def second_order_term(x0: Tensor, previous_x0: Tensor | None, schedule: Schedule, i: int) -> Tensor:
    """Return what the second-order SDE solver adds to the DDPM mean: alpha' (1 - e^-2h) (x0 - previous_x0) h / (2 h_previous).

    h is the step in log-SNR. Nothing at the first step and at the last, where h is infinite.

    Shapes: `x0`, `previous_x0` (..., C, h, w).
    """
    level, after = schedule.levels[i], schedule.next_levels[i]
    if previous_x0 is None or after.sigma == 0:
        return torch.zeros_like(x0)
    h = after.log_snr - level.log_snr
    previous_h = level.log_snr - schedule.levels[i - 1].log_snr
    return (0.5 * after.alpha * -math.expm1(-2 * h) * h / previous_h) * (x0 - previous_x0)


def dpmsolver_step(
    x: Tensor, x0: Tensor, previous_x0: Tensor | None, schedule: Schedule, i: int, variance_mask: Tensor, noise: Tensor
) -> Tensor:
    """Take one DPM-Solver++(2M) step, the ODE update outside the mask and its SDE variant inside, from the same history.

    With lambda = log(alpha/sigma), h = lambda' - lambda and D = x0 + (x0 - previous_x0) h / (2 h_previous)
    (D = x0 at the first and the last step, and after one from pure noise, whose lambda is infinite):
    ODE: (sigma'/sigma) x + alpha' (1 - e^-h) D; SDE: (sigma'/sigma) e^-h x + alpha' (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) n.

    Shapes: as `ddim_step`; `previous_x0` like `x0`, None at the first step.
    """
    level, after = schedule.levels[i], schedule.next_levels[i]
    if after.sigma == 0:  # h infinite: both updates reduce to the clean prediction
        return x0
    h = after.log_snr - level.log_snr
    blended = x0
    if previous_x0 is not None:
        previous_h = level.log_snr - schedule.levels[i - 1].log_snr
        blended = x0 + (x0 - previous_x0) * (0.5 * h / previous_h)
    ode = (after.sigma / level.sigma) * x - after.alpha * math.expm1(-h) * blended
    decay = -math.expm1(-2 * h)
    sde = (after.sigma / level.sigma * math.exp(-h)) * x + (after.alpha * decay) * blended
    sde = sde + (after.sigma * math.sqrt(decay)) * noise
    return torch.where(variance_mask > 0, sde, ode)
