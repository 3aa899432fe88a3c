"""The two parts of pix2pix-zero (arXiv 2302.03027) that need gradients: an inversion whose noise is kept like noise, and steps of
the target's latents towards the source's text attention. The rest of the engine knows none."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.attention.control import plain_control
from vimaedit.attention.recorder import TextProbe
from vimaedit.config import EditConfig
from vimaedit.methods.options import Pix2PixZero
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning, stack_rows
from vimaedit.step.noise import NoiseSource
from vimaedit.step.rows import SOURCE, TARGET, RowKind, RowLayout
from vimaedit.step.solvers import Level, Schedule, move

ROUNDS, ROLLS = 5, 5  # of regularising one prediction; rolls in each round
LEAST_SIDE = 8  # of the pyramid in which neighbours are compared
EPSILON = 1e-7


def invert_as_noise(
    backbone: Backbone, x0: Tensor, conditioning: Conditioning, schedule: Schedule, noise: NoiseSource, config: EditConfig
) -> list[Tensor]:
    """Run DDIM backwards as `invert` does, every prediction regularised to look like noise; all levels, noisiest first.

    Reference: the published program's levels are those just below the timesteps at which the UNet is asked, and the noisiest is
    the last of training, `quirks=[zero-levels]`: sampling then takes latents that are one stride too noisy.
    """
    levels = [x0]
    for i in reversed(range(len(schedule))):
        control = plain_control(torch.zeros(len(x0), dtype=backbone.dtype, device=x0.device))
        timestep = torch.tensor(schedule.timesteps[i], device=x0.device)
        eps = backbone.predict(levels[0], timestep, conditioning, control).float()
        eps = like_noise(eps, roll_shares(noise.draw(i).to(x0.device)), config.pix2pix_zero)
        level, next_level = schedule.levels[i], schedule.next_levels[i]
        if "zero-levels" in config.quirks:
            alphas = backbone.alphas_cumprod
            below = [Level.of_noise(float(alphas[max(0, int(t) - 1)])) for t in schedule.timesteps]
            level, next_level = below[i - 1] if i else Level.of_noise(float(alphas[-1])), below[i]
        levels.insert(0, move(levels[0], eps, next_level, level))
    return levels


def roll_shares(noise_BChw: Tensor) -> Tensor:
    """Turn a step's noise into the shares of half a side by which pictures are rolled, (ROUNDS, ROLLS, levels, B, C) in 0 to 1."""
    num_levels = len(_sides(noise_BChw.shape[-2]))
    wanted = ROUNDS * ROLLS * num_levels
    uniform_BCN: Tensor = torch.special.ndtr(noise_BChw.flatten(2)[..., :wanted].double()).clamp(0, 1 - EPSILON)
    shares: Tensor = uniform_BCN.permute(2, 0, 1).reshape(ROUNDS, ROLLS, num_levels, *noise_BChw.shape[:2])
    return shares


def like_noise(eps: Tensor, shares: Tensor, options: Pix2PixZero) -> Tensor:
    """Take steps down the correlation of neighbours, and down the divergence from a standard normal distribution, by turns.

    Shapes: `eps` (B, C, h, w); `shares` as from `roll_shares`.
    """
    for rolls in shares:
        for shares_LBC in rolls:
            gradient = _gradient(eps, functools.partial(correlation, shares_LBC=shares_LBC))
            eps = eps - options.correlation / ROLLS * gradient
        eps = eps - options.divergence * _gradient(eps, divergence)
    return eps


def correlation(noise_BChw: Tensor, shares_LBC: Tensor) -> Tensor:
    """Return how far pictures resemble themselves, rolled along either axis: sum of squared mean products over channels and a
    pyramid of halved pictures, summed over the batch."""
    total = noise_BChw.new_zeros(())
    for shares_BC in shares_LBC:
        h, w = noise_BChw.shape[-2:]
        shift_BC = (shares_BC * (h // 2)).long()
        for axis, side in ((2, h), (3, w)):
            place = (torch.arange(side, device=noise_BChw.device) - shift_BC[..., None]) % side
            place = place[..., None] if axis == 2 else place[..., None, :]
            rolled = noise_BChw.gather(axis, place.expand_as(noise_BChw))
            total = total + (noise_BChw * rolled).mean(dim=(2, 3)).square().sum()
        noise_BChw = F.avg_pool2d(noise_BChw, 2) if len(shares_LBC) > 1 else noise_BChw
    return total


def divergence(noise_BChw: Tensor) -> Tensor:
    """Return var + mean^2 - 1 - log var of each request, summed over the batch."""
    flat_BN = noise_BChw.flatten(1)
    var_B = flat_BN.var(dim=1)
    return (var_B + flat_BN.mean(dim=1).square() - 1 - torch.log(var_B + EPSILON)).sum()


def keep_attention(
    backbone: Backbone, x: Tensor, rows: RowLayout, conditioning: Conditioning, timestep: Tensor, config: EditConfig
) -> tuple[Tensor, Tensor]:
    """Move the target's latents so that its text attention comes nearer to the source's, at every layer.

    The two rows of the target have a copy of its latents each; one step down the gradient of the mean over rows and heads of the
    squared differences of all weights. What is denoised on are the unconditional row's latents.

    Shapes: `x` (2, B, C, h, w); `conditioning` of all rows. Returns what every row sees, (R, C, h, w), and the latents.
    """
    free, target = rows.block(RowKind.TARGET_UNCOND), rows.block(RowKind.TARGET_COND)
    with torch.inference_mode(False):
        source_x, target_x, timestep = x[SOURCE].clone(), x[TARGET].clone(), timestep.clone()
        own = _pick(conditioning, [free, target])
        with torch.no_grad():  # the source reads what the target's unconditional row reads
            wanted = _text_weights(backbone, source_x, timestep, _pick(conditioning, [free]))
        with torch.enable_grad():
            copies = torch.cat([target_x, target_x]).requires_grad_(True)
            weights = _text_weights(backbone, copies, timestep, own)
            loss = copies.new_zeros(())
            for layer, reference in zip(weights, wanted, strict=True):
                difference = layer - torch.cat([reference, reference])
                loss = loss + difference.square().sum(dim=(2, 3)).mean(dim=1).sum() / 2
            (gradient,) = torch.autograd.grad(loss, copies)
        moved = copies.detach() - config.pix2pix_zero.rate * gradient
    x_R = rows.expand(x).clone()
    x_R[free], x_R[target] = moved.chunk(2)
    return x_R, torch.stack([x[SOURCE], x_R[free]])


def _text_weights(backbone: Backbone, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> list[Tensor]:
    """Return the text attention of every layer, (R, H, L, T) each."""
    probe = TextProbe([])
    control = replace(plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device)), text_probe=probe)
    backbone.predict_noise(x, timestep, conditioning, control)
    return probe.weights


def _pick(conditioning: Conditioning, blocks: list[slice]) -> Conditioning:
    """Copy some blocks of rows; tensors of inference mode cannot take part in a gradient."""
    return stack_rows([conditioning.rows(block) for block in blocks]).each(torch.clone)


def _gradient(value: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = value.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient


def _sides(side: int) -> list[int]:
    """Return the sides of the pyramid, the whole picture's first."""
    return [side >> level for level in range(max(1, 1 + int(math.log2(max(1, side / LEAST_SIDE)))))]
