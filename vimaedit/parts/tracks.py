"""Where the source's latents come from: noised, inverted, reconstructed or looked up, and how the target keeps to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.control import AttentionControl, plain_control
from vimaedit.config import EditConfig
from vimaedit.models.backbone import Backbone, Conditioning
from vimaedit.parts.null_text import fit_null_text
from vimaedit.parts.pix2pix_zero import invert_as_noise
from vimaedit.step.noise import START, NoiseSource
from vimaedit.step.rows import SOURCE
from vimaedit.step.solvers import Schedule, add_noise, predict_x0


@dataclass(frozen=True, eq=False)
class SourceTrack:
    """The source's way down.

    Shapes: `start` (branches, B, C, h, w); `levels`, the source's latents before every step and, where they are known, after the
    last one, (B, C, h, w) each, or None where the source is sampled; `free_texts` (S, B, T, E), what unconditional rows read at
    every step, or None.
    """

    start: Tensor
    levels: Sequence[Tensor] | None = None
    free_texts: Tensor | None = None


def begin_track(
    backbone: Backbone, x0: Tensor, inversion_text: Tensor | None, free_text: Tensor, config: EditConfig, schedule: Schedule,
    noise: NoiseSource,
) -> SourceTrack:  # fmt: skip
    """Prepare the source of a batch of clean latents (B, C, h, w); texts are (B, T, E)."""
    parts, device = config.parts, x0.device
    branches = 3 if parts.has_auxiliary else 2
    if parts.track == "shared":
        start_noise = noise.draw(START).to(device)
        start = start_noise if config.start == "noise" else add_noise(x0, start_noise, schedule.alphas[0])
        return SourceTrack(torch.stack([start] * branches))
    if parts.track == "independent":
        levels = [add_noise(x0, noise.draw(i).to(device), alpha) for i, alpha in enumerate(schedule.alphas)]
        return SourceTrack(torch.stack([levels[0]] * branches), levels)
    assert inversion_text is not None
    conditioning = backbone.condition(inversion_text, None)
    if parts.regularises:
        levels = invert_as_noise(backbone, x0, conditioning, schedule, noise, config)
    else:
        levels = invert(backbone, x0, conditioning, schedule)
    if parts.track == "sampled":
        texts = None
        if parts.optimises_text:
            texts = fit_null_text(backbone, levels, inversion_text, free_text, config, schedule)
        return SourceTrack(torch.stack([levels[0]] * branches), free_texts=texts)
    if parts.reconstructs:
        levels = reconstruct(backbone, levels[0], conditioning, schedule)
        if "pnp-shift" in config.quirks:
            levels = [*levels[1:], levels[-1]]
    return SourceTrack(torch.stack([levels[0]] * branches), levels)


def invert(
    backbone: Backbone, x0: Tensor, conditioning: Conditioning, schedule: Schedule, control: AttentionControl | None = None
) -> list[Tensor]:
    """Run DDIM backwards from clean latents, without guidance; return the latents of all levels, noisiest first, the given last.

    The UNet is asked at the level that a step goes to, as all published inversions do. `control`: of its attention, at every step.
    """
    levels = [x0]
    for i in reversed(range(len(schedule))):
        eps = _predict(backbone, levels[0], schedule.timesteps[i], conditioning, control)
        levels.insert(0, add_noise(predict_x0(levels[0], eps, schedule.next_alphas[i]), eps, schedule.alphas[i]))
    return levels


def reconstruct(backbone: Backbone, x_T: Tensor, conditioning: Conditioning, schedule: Schedule) -> list[Tensor]:
    """Sample from inverted latents with DDIM, without guidance; return the latents of all levels, the given first."""
    levels = [x_T]
    for i, timestep in enumerate(schedule.timesteps):
        eps = _predict(backbone, levels[-1], timestep, conditioning)
        levels.append(add_noise(predict_x0(levels[-1], eps, schedule.alphas[i]), eps, schedule.next_alphas[i]))
    return levels


def follow(x: Tensor, track: SourceTrack, i: int, *, couples: bool) -> Tensor:
    """Put the source onto its track after step i; a target that is `coupled` moves by as much. Shape (branches, B, C, h, w)."""
    if track.levels is None or i + 1 >= len(track.levels):
        return x
    source = track.levels[i + 1]
    others = source + (x[SOURCE + 1 :] - x[SOURCE]) if couples else x[SOURCE + 1 :]
    return torch.cat([source[None], others])


def _predict(
    backbone: Backbone, x: Tensor, timestep: int, conditioning: Conditioning, control: AttentionControl | None = None
) -> Tensor:
    control = control or plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device))
    return backbone.predict(x, torch.tensor(timestep, device=x.device), conditioning, control).float()
