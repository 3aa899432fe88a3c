"""The denoising loop, top to bottom as in the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vimaedit.attention.plan import InjectionPlan, MapBuffers, TextEdit
from vimaedit.backbone import Backbone, Conditioning
from vimaedit.config import EditConfig, Windows
from vimaedit.grounding import (
    Masks,
    blend_latents,
    given_masks,
    masks_from_sum,
    no_masks,
    refine_map,
    variance_region,
)
from vimaedit.guidance import combine_guidance
from vimaedit.noise import START, NoiseSource
from vimaedit.rows import SOURCE, TARGET, RowLayout
from vimaedit.solvers import Schedule, add_noise, build_schedule, ddim_step, dpmsolver_step, predict_x0


@dataclass(frozen=True, kw_only=True, eq=False)
class EditBatch:
    """B edits as tensors: all that the loop needs to know of them.

    Shapes: `x0` (B, C, h, w) float32; `conditioning` for R rows; `target_guidance`, `edit_threshold`, `critical_threshold` (B,)
    float32; `given_mask` (B, h, w) bool with `grounding=given`, else None. `windows`, `image_strength`:
    one per request.
    """

    layout: RowLayout
    x0: Tensor
    conditioning: Conditioning
    text_edit: TextEdit
    windows: tuple[Windows, ...]
    image_strength: tuple[float, ...]
    target_guidance: Tensor
    edit_threshold: Tensor
    critical_threshold: Tensor
    given_mask: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class StepState:
    """The state after one step, for callbacks and as the loop's result.

    Shapes: `latents` (2, B, C, h, w), `clean` its prediction x0 likewise, source first; `map_sum` (2 B, N), sources first, None
    before grounding starts.
    """

    step: int
    timestep: int
    latents: Tensor
    clean: Tensor
    map_sum: Tensor | None
    masks: Masks


Callback = Callable[[StepState], None]


@torch.inference_mode()
def denoise(
    backbone: Backbone, batch: EditBatch, config: EditConfig, noise: NoiseSource, callback: Callback | None = None
) -> StepState:
    """Run the edit: source and target side by side from the same noise, coupled through the clean prediction."""
    schedule = build_schedule(config.solver, backbone.alphas_cumprod, config.steps)
    latent_hw = (batch.x0.shape[-2], batch.x0.shape[-1])
    device = batch.x0.device
    plan = InjectionPlan(
        layout=batch.layout,
        steps=config.steps,
        windows=batch.windows,
        image_strength=batch.image_strength,
        text_edit=batch.text_edit,
        device=device,
        dtype=backbone.dtype,
    )
    # All at once and before the loop: a copy to the device inside it would make the host wait for every step.
    timesteps = torch.tensor(schedule.timesteps, device=device)
    noise_SBChw = torch.stack([noise.draw(i) for i in range(config.steps)]).to(device)
    start = add_noise(batch.x0, noise.draw(START).to(device), schedule.alphas[0])
    x = torch.stack([start, start])
    buffers = backbone.allocate_maps(batch.layout.num_requests, latent_hw) if config.reads_words else None
    map_sum: Tensor | None = None
    masks = no_masks(batch.layout.num_requests, latent_hw, device)
    if batch.given_mask is not None:
        masks = given_masks(batch.given_mask)
    previous_x0: Tensor | None = None

    for i, timestep in enumerate(schedule.timesteps):
        grounds = buffers is not None and i + 1 >= int(config.grounding_start * config.steps)
        control = plan.control(i, buffers if grounds else None)
        eps_R = backbone.predict(batch.layout.expand(x), timesteps[i], batch.conditioning, control)
        eps = combine_guidance(eps_R, batch.layout, config.source_guidance, batch.target_guidance)
        if buffers is not None and grounds:
            step_map = collect_map(buffers, backbone.map_sizes(latent_hw), config)
            map_sum = step_map if map_sum is None else map_sum + step_map
            map_hw = backbone.map_sizes(latent_hw)[1]
            masks = masks_from_sum(map_sum, map_hw, latent_hw, batch.edit_threshold, batch.critical_threshold)
        x0 = anchor(predict_x0(x, eps, schedule.alphas[i]), batch.x0)
        region = variance_region(masks, config.variance)
        x = take_step(x, x0, previous_x0, schedule, i, region, noise_SBChw[i], config)
        x = blend_latents(x, masks)
        previous_x0 = x0
        state = StepState(step=i, timestep=timestep, latents=x, clean=x0, map_sum=map_sum, masks=masks)
        if callback is not None:
            callback(state)
    return state


def anchor(predicted: Tensor, x0_source: Tensor) -> Tensor:
    """Couple the branches: x0 = x0_src + x0_hat - x0_hat[source], which for the source is exactly x0_src. Shape (2, B, C, h, w)."""
    return torch.stack([x0_source, x0_source + (predicted[TARGET] - predicted[SOURCE])])


def collect_map(buffers: MapBuffers, sizes: tuple[tuple[int, int], tuple[int, int]], config: EditConfig) -> Tensor:
    """Turn the recorded weights of one step into its grounding map, (2 B, N)."""
    return refine_map(buffers.word_map(), buffers.self_map(), sizes, config.grounding_rounds, config.grounding_decay)


def take_step(
    x: Tensor,
    x0: Tensor,
    previous_x0: Tensor | None,
    schedule: Schedule,
    i: int,
    region: Tensor,
    noise: Tensor,
    config: EditConfig,
) -> Tensor:
    """Take one step of the configured solver in both branches, with the same noise."""
    if config.solver == "ddim":
        return ddim_step(x, x0, schedule, i, region, noise, config.eta)
    return dpmsolver_step(x, x0, previous_x0, schedule, i, region, noise)
