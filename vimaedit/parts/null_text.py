"""Null-text inversion's prelude (arXiv 2211.09794): the one part of the engine that needs gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vimaedit.attention.control import plain_control
from vimaedit.config import EditConfig
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.step.solvers import Schedule, move

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's own
LEARNING_RATE, STOP_GROWTH = 1e-2, 2e-5


def fit_null_text(
    backbone: Backbone,
    levels: Sequence[Tensor],
    inversion: Conditioning,
    free: Conditioning,
    config: EditConfig,
    schedule: Schedule,
) -> Tensor:
    """Fit the unconditional embedding of every step so that guided sampling follows the inverted latents, (S, B, T, E).

    From the noisiest step on, each starting from the embedding before: minimise the mean squared distance between one guided
    DDIM step and the inverted latents at its end, with Adam, lr = 0.01 (1 - i/100); stop after `null_text.steps` updates, or
    when the loss before an update was below `null_text.stop` + 2e-5 i. Then the latents move on by the fitted embedding.
    Requests are fitted side by side and stop one by one. Only the states that attention reads are fitted.

    Shapes: `levels` S + 1 times (B, C, h, w), noisiest first.
    """
    with torch.inference_mode(False):
        # Latents and texts come out of inference mode, whose tensors no gradient can go through.
        levels, inversion, free = [level.clone() for level in levels], inversion.each(torch.clone), free.each(torch.clone)
        x, u_BTE, fitted = levels[0], free["text"].float(), []
        for i in range(len(schedule)):
            with torch.no_grad():
                eps_cond = _predict(backbone, x, schedule.timesteps[i], inversion)
            u_BTE = _fit_step(backbone, x, levels[i + 1], free, u_BTE, eps_cond, config, schedule, i)
            fitted.append(u_BTE)
            with torch.no_grad():
                x = _guided_step(backbone, x, free.having(text=u_BTE), eps_cond, config.source_guidance, schedule, i)
        return torch.stack(fitted)


def _fit_step(
    backbone: Backbone, x: Tensor, goal: Tensor, free: Conditioning, u_BTE: Tensor, eps_cond: Tensor, config: EditConfig,
    schedule: Schedule, i: int,
) -> Tensor:  # fmt: skip
    mean, square = torch.zeros_like(u_BTE), torch.zeros_like(u_BTE)
    active_B = torch.ones(len(u_BTE), dtype=torch.bool, device=u_BTE.device)
    rate = LEARNING_RATE * (1 - i / 100)
    for update in range(1, config.null_text.steps + 1):
        with torch.enable_grad():
            u_BTE.requires_grad_(True)
            reached = _guided_step(backbone, x, free.having(text=u_BTE), eps_cond, config.source_guidance, schedule, i)
            loss_B = (reached - goal).square().flatten(1).mean(dim=1)
            (gradient,) = torch.autograd.grad(loss_B.sum(), u_BTE)
        u_BTE = u_BTE.detach()
        mean = BETA_1 * mean + (1 - BETA_1) * gradient
        square = BETA_2 * square + (1 - BETA_2) * gradient.square()
        corrected = square.sqrt() / math.sqrt(1 - BETA_2**update) + EPSILON
        change = rate / (1 - BETA_1**update) * mean / corrected
        u_BTE = torch.where(active_B[:, None, None], u_BTE - change, u_BTE)
        active_B = active_B & (loss_B.detach() >= config.null_text.stop + STOP_GROWTH * i)
        if not bool(active_B.any()):
            break
    return u_BTE


def _guided_step(
    backbone: Backbone, x: Tensor, free: Conditioning, eps_cond: Tensor, scale: float, schedule: Schedule, i: int
) -> Tensor:
    eps_free = _predict(backbone, x, schedule.timesteps[i], free)
    eps = eps_free + scale * (eps_cond - eps_free)
    return move(x, eps, schedule.levels[i], schedule.next_levels[i])


def _predict(backbone: Backbone, x: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
    control = plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device))
    timestep_tensor = torch.tensor(timestep, device=x.device)
    conditioning = conditioning.each(lambda tensor: tensor.to(backbone.dtype))
    return backbone.predict_noise(x, timestep_tensor, conditioning, control).float()
