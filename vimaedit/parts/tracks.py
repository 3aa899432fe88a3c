"""Where the source's latents come from: noised, inverted, reconstructed or looked up, and how the target keeps to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.control import AttentionControl, plain_control
from vimaedit.config import EditConfig
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.parts.midpoint import Midpoint, invert_midway
from vimaedit.parts.null_text import fit_null_text
from vimaedit.parts.pix2pix_zero import invert_as_noise
from vimaedit.step.noise import START, NoiseSource
from vimaedit.step.rows import SOURCE
from vimaedit.step.solvers import Level, Schedule, add_noise, move


@dataclass(frozen=True, eq=False)
class SourceTrack:
    """The source's way down.

    Shapes: `start` (branches, B, C, h, w); `levels`, the source's latents before every step and, where they are known, after the
    last one, (B, C, h, w) each, or None where the source is sampled; `free_texts` (S, B, T, E), what unconditional rows read at
    every step, or None. `redrawn`: the source's latents of every step with other noise, (B, C, h, w) each, over which predictions
    are averaged. `midpoint`: the rule of the steps down, with what the way up has kept.
    """

    start: Tensor
    levels: Sequence[Tensor] | None = None
    free_texts: Tensor | None = None
    redrawn: Sequence[Sequence[Tensor]] = ()
    midpoint: Midpoint | None = None


def begin_track(
    backbone: Backbone, x0: Tensor, inversion: Conditioning | None, free: Conditioning, config: EditConfig, schedule: Schedule,
    noise: NoiseSource,
) -> SourceTrack:  # fmt: skip
    """Prepare the source of a batch of clean latents (B, C, h, w); `inversion` and `free` have B rows."""
    parts, device = config.parts, x0.device
    branches = 3 if parts.has_auxiliary else 2
    if parts.track == "shared":
        start_noise = noise.draw(START).to(device)
        start = start_noise if config.start == "noise" else add_noise(x0, start_noise, schedule.levels[0])
        return SourceTrack(torch.stack([start] * branches))
    if parts.track == "independent":
        return _independent_track(x0, branches, config, schedule, noise)
    if config.start == "noise":
        return SourceTrack(torch.stack([noise.draw(START).to(device)] * branches))
    assert inversion is not None
    if parts.inverts == "midpoint":
        levels, rule = invert_midway(backbone, x0, inversion, config, schedule)
        return SourceTrack(torch.stack([levels[0]] * branches), midpoint=rule)
    if parts.regularises:
        levels = invert_as_noise(backbone, x0, inversion, schedule, noise, config)
    else:
        levels = (invert_corrected if parts.inverts == "corrected" else invert)(backbone, x0, inversion, schedule)
    if parts.track == "sampled":
        texts = None
        if parts.optimises_text:
            texts = fit_null_text(backbone, levels, inversion, free, config, schedule)
        return SourceTrack(torch.stack([levels[0]] * branches), free_texts=texts)
    if parts.reconstructs:
        levels = reconstruct(backbone, levels[0], inversion, schedule)
        if "pnp-shift" in config.quirks:
            levels = [*levels[1:], levels[-1]]
    return SourceTrack(torch.stack([levels[0]] * branches), levels)


def _independent_track(x0: Tensor, branches: int, config: EditConfig, schedule: Schedule, noise: NoiseSource) -> SourceTrack:
    """Noise the picture anew at every level, `flowedit.draws` times where steps inject nothing.

    There the picture itself ends the track, so that the last step too counts by its difference alone; where steps inject noise the
    last one ends as it falls.
    """
    draws = config.flowedit.draws if config.parts.spread == "none" else 1
    noised = [
        [add_noise(x0, noise.draw(i * draws + k).to(x0.device), level) for k in range(draws)]
        for i, level in enumerate(schedule.levels)
    ]
    levels = [each[0] for each in noised]
    if config.parts.spread == "none":
        levels.append(x0)
    redrawn = [each[1:] for each in noised] if draws > 1 else ()
    return SourceTrack(torch.stack([levels[0]] * branches), levels, redrawn=redrawn)


def beside(x: Tensor, source: Tensor) -> Tensor:
    """Put the source elsewhere, the other branches at their distance to it. Shape (branches, B, C, h, w)."""
    return torch.cat([source[None], source + (x[SOURCE + 1 :] - x[SOURCE])])


def invert(
    backbone: Backbone, x0: Tensor, conditioning: Conditioning, schedule: Schedule, control: AttentionControl | None = None
) -> list[Tensor]:
    """Run DDIM backwards from clean latents, without guidance; return the latents of all levels, noisiest first, the given last.

    The UNet is asked at the level that a step goes to, as all published inversions do. `control`: of its attention, at every step.
    """
    levels = [x0]
    for i in reversed(range(len(schedule))):
        predicted = _predict(backbone, levels[0], schedule.timesteps[i], conditioning, control)
        levels.insert(0, move(levels[0], predicted, schedule.next_levels[i], schedule.levels[i]))
    return levels


def invert_corrected(backbone: Backbone, x0: Tensor, conditioning: Conditioning, schedule: Schedule) -> list[Tensor]:
    """Run a corrected inversion (UniEdit-Flow): every step up is made with the prediction at a guess of where it ends, the guess with
    the prediction before; the first guess with that for the clean picture. Return the latents of all levels as `invert` does.

    The first guess is of the level that the last step of sampling goes to, where that is noisy.
    """
    clean = Level.of_flow(0.0) if schedule.levels[0].is_flow else Level.of_noise(1.0)
    first = schedule.next_levels[-1] if schedule.next_levels[-1].sigma else schedule.levels[-1]
    guess = move(x0, _predict(backbone, x0, 0, conditioning), clean, first)
    levels, level = [x0], clean
    for i in reversed(range(len(schedule))):
        predicted = _predict(backbone, guess, schedule.timesteps[i], conditioning)
        levels.insert(0, move(levels[0], predicted, level, schedule.levels[i]))
        level = schedule.levels[i]
        if i > 0:
            guess = move(levels[0], predicted, level, schedule.levels[i - 1])
    return levels


def reconstruct(backbone: Backbone, x_T: Tensor, conditioning: Conditioning, schedule: Schedule) -> list[Tensor]:
    """Sample from inverted latents with DDIM, without guidance; return the latents of all levels, the given first."""
    levels = [x_T]
    for i, timestep in enumerate(schedule.timesteps):
        predicted = _predict(backbone, levels[-1], timestep, conditioning)
        levels.append(move(levels[-1], predicted, schedule.levels[i], schedule.next_levels[i]))
    return levels


def follow(x: Tensor, track: SourceTrack, i: int, *, couples: bool) -> Tensor:
    """Put the source onto its track after step i; a target that is `coupled` moves by as much. Shape (branches, B, C, h, w)."""
    if track.levels is None or i + 1 >= len(track.levels):
        return x
    source = track.levels[i + 1]
    return beside(x, source) if couples else torch.cat([source[None], x[SOURCE + 1 :]])


def _predict(
    backbone: Backbone, x: Tensor, timestep: float, conditioning: Conditioning, control: AttentionControl | None = None
) -> Tensor:
    control = control or plain_control(torch.zeros(len(x), dtype=backbone.dtype, device=x.device))
    return backbone.predict(x, torch.tensor(timestep, device=x.device), conditioning, control).float()
