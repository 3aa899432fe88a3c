"""The denoising loop, top to bottom as in the paper; every method goes through it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vimaedit.attention.control import ValueBank
from vimaedit.attention.injection import Injection
from vimaedit.config import EditConfig
from vimaedit.engine.batch import Callback, EditBatch, StepState
from vimaedit.engine.grounder import Grounder
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.parts.concepts import concept_guidance
from vimaedit.parts.midpoint import Ask
from vimaedit.parts.pix2pix_zero import keep_attention
from vimaedit.parts.tracks import begin_track, beside, follow
from vimaedit.step.guidance import combine_guidance, difference_guidance, proximal_guidance
from vimaedit.step.masks import Masks, blend_auxiliary, blend_latents, variance_region
from vimaedit.step.noise import NoiseSource
from vimaedit.step.rows import AUXILIARY, SOURCE, RowKind, RowLayout
from vimaedit.step.solvers import (
    Schedule,
    ddim_step,
    dpmsolver_step,
    posterior_variance,
    predict_x0,
    second_order_term,
    spread_step,
)


@torch.inference_mode()
def denoise(
    backbone: Backbone, batch: EditBatch, config: EditConfig, noise: NoiseSource, callback: Callback | None = None
) -> StepState:
    """Run the edit: source and target side by side, from the source's track, coupled as the method says."""
    parts, device = config.parts, batch.x0.device
    schedule = backbone.schedule(config, (batch.x0.shape[-2], batch.x0.shape[-1]))
    injection = Injection(
        layout=batch.layout,
        config=config,
        steps=len(schedule),
        windows=batch.windows,
        image_strength=batch.image_strength,
        text_edit=batch.text_edit,
        concept_words=None if batch.concepts is None else batch.concepts.words,
        device=device,
        dtype=backbone.dtype,
        edits_text=config.parts.edits_text and not backbone.family.kind.is_joint,
    )
    # All at once and before the loop: a copy to the device inside it would make the host wait for every step.
    timesteps = torch.tensor(schedule.timesteps, device=device)
    noise_SBChw = draw_noise(config, schedule, noise, batch.x0)
    grounder = Grounder(backbone, batch, config, schedule)
    track = begin_track(backbone, batch.x0, batch.inversion, batch.free, config, schedule, noise)
    x, previous_x0 = track.start, None
    num_coupled = len(schedule) - (0 if batch.concepts is None else batch.concepts.noiseless)

    for i, timestep in enumerate(schedule.timesteps):
        rows = injection.layouts[i]
        if i == 0 or rows != injection.layouts[i - 1]:
            conditioning = condition_rows(batch, rows)
            if track.free_texts is None:  # nothing else that keys and values are made of changes from step to step
                conditioning = backbone.with_contexts(conditioning)
        if track.free_texts is not None:
            conditioning = with_free_text(conditioning, rows, track.free_texts[i])
        x_R = rows.expand(x)
        if parts.keeps_attention:
            x_R, x = keep_attention(backbone, x, rows, conditioning, timesteps[i], config)
        if track.midpoint is not None:
            ask = ask_for(backbone, injection, i, conditioning, batch, config, grounder.masks)
            predicted = track.midpoint.between(x, i, ask)
            masks = grounder.masks
        else:
            eps_R = backbone.predict(x_R, timesteps[i], conditioning, injection.control(i, grounder.buffers_of(i)))
            if track.redrawn:
                others_R = [rows.expand(beside(x, source)) for source in track.redrawn[i]]
                plain = injection.control(i, None)
                others = [backbone.predict(each_R, timesteps[i], conditioning, plain) for each_R in others_R]
                eps_R = torch.stack([eps_R, *others]).mean(dim=0)
            masks = grounder.update(i, eps_R, rows)
            predicted = guide(eps_R, rows, batch, config, masks)
        x0 = predict_x0(x, predicted, schedule.levels[i])
        if parts.track == "shared":
            x0 = anchor(x0, batch.x0)
        x = take_step(x, x0, previous_x0, schedule, i, masks, noise_SBChw[i], config)
        x = follow(x, track, i, couples=parts.couples and i < num_coupled)
        if parts.has_auxiliary:
            x = blend_auxiliary(x, masks, overwrites=i == len(schedule) - 2)
        elif batch.concepts is None:
            x = blend_latents(x, masks)
        previous_x0 = x0
        state = StepState(step=i, timestep=timestep, latents=x, clean=x0, map_sum=grounder.state_map(), masks=masks)
        if callback is not None:
            callback(state)
    return state


def ask_for(
    backbone: Backbone,
    injection: Injection,
    i: int,
    conditioning: Conditioning,
    batch: EditBatch,
    config: EditConfig,
    masks: Masks,
) -> Ask:
    """Return how a rule that looks ahead within step i asks for the branches' guided predictions."""

    def ask(x: Tensor, timestep: Tensor, values: ValueBank | None) -> Tensor:
        rows = injection.layouts[i]
        control = dataclasses.replace(injection.control(i, None), values=values)
        return guide(backbone.predict(rows.expand(x), timestep, conditioning, control), rows, batch, config, masks)

    return ask


def draw_noise(config: EditConfig, schedule: Schedule, noise: NoiseSource, x0: Tensor) -> Tensor:
    """Draw what the steps inject, (S, B, C, h, w); zeros for a method whose steps inject nothing."""
    if config.parts.track != "shared":
        return torch.zeros(len(schedule), 1, 1, 1, 1, device=x0.device)
    return torch.stack([noise.draw(i) for i in range(len(schedule))]).to(x0.device)


def condition_rows(batch: EditBatch, rows: RowLayout) -> Conditioning:
    """Choose what the rows of a layout are conditioned on."""
    if rows == batch.layout:
        return batch.conditioning
    chosen = rows.arrange({kind: batch.layout.indices(kind) for kind in rows.kinds})
    return batch.conditioning.rows(chosen.to(batch.x0.device))


def with_free_text(conditioning: Conditioning, rows: RowLayout, free_text: Tensor) -> Conditioning:
    """Let all unconditional rows read `free_text`, (B, T, E)."""
    text = conditioning["text"].clone()
    for kind in rows.kinds:
        if not kind.conditional:
            text[rows.block(kind)] = free_text.to(text.dtype)
    return conditioning.having(text=text)


def guide(eps_R: Tensor, rows: RowLayout, batch: EditBatch, config: EditConfig, masks: Masks) -> Tensor:
    """Combine the rows of each branch by the method's guidance, (2 or 3, B, C, h, w).

    An auxiliary branch without rows of its own has the source's prediction.
    """
    kind = config.parts.guidance
    if batch.concepts is not None and masks.concepts is not None:
        return concept_guidance(eps_R, rows, batch.concepts, masks.concepts, config)
    if kind == "difference":
        assert masks.weights is not None
        return difference_guidance(eps_R, rows, masks.weights, config.uniedit.strength)
    if kind == "proximal":
        soft = "proximal-soft" in config.quirks
        return proximal_guidance(eps_R, rows, batch.target_guidance, config.proximal_quantile, soft=soft)
    eps = combine_guidance(eps_R, rows, config.source_guidance, batch.target_guidance)
    if config.parts.has_auxiliary and RowKind.AUXILIARY_COND not in rows.kinds:
        eps = torch.cat([eps, eps[SOURCE : SOURCE + 1]])
    return eps


def anchor(predicted: Tensor, x0_source: Tensor) -> Tensor:
    """Couple the branches: x0 = x0_src + x0_hat - x0_hat[source], which for the source is exactly x0_src.

    Shape (2 or 3, B, C, h, w), source first.
    """
    others = [x0_source + (branch - predicted[SOURCE]) for branch in predicted[SOURCE + 1 :]]
    return torch.stack([x0_source, *others])


def take_step(
    x: Tensor,
    x0: Tensor,
    previous_x0: Tensor | None,
    schedule: Schedule,
    i: int,
    masks: Masks,
    noise: Tensor,
    config: EditConfig,
) -> Tensor:
    """Take one step of the method's solver in all branches, with the same noise."""
    spread, eta = config.parts.spread, config.eta
    if spread == "masked":
        region = variance_region(masks, config.variance)
        if not config.source_variance:
            region = torch.stack([torch.zeros_like(region), region])
        if "locatedit-variance" in config.quirks:
            variance = torch.full_like(region, posterior_variance(schedule, i, eta))
            return spread_step(x, x0, schedule, i, variance, noise * region.amax(dim=(1, 2, 3), keepdim=True))
        if config.solver == "ddim":
            return ddim_step(x, x0, schedule, i, region, noise, eta)
        return dpmsolver_step(x, x0, previous_x0, schedule, i, region, noise)
    size = {
        "none": 0.0,
        "posterior": posterior_variance(schedule, i, eta),
        "consistency": eta * schedule.next_levels[i].variance,
    }[spread]
    next_x = spread_step(x, x0, schedule, i, torch.full((1, 1, 1, 1), size, device=x.device), noise)
    if config.parts.second_order:
        next_x = next_x + second_order_term(x0, previous_x0, schedule, i)
    if config.parts.has_auxiliary and "infedit-direction" in config.quirks:
        source = next_x[AUXILIARY] + schedule.next_levels[i].alpha * (x0[SOURCE] - x0[AUXILIARY])
        next_x = torch.cat([source[None], next_x[SOURCE + 1 :]])
    return next_x
