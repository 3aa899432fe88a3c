"""What steers: the estimated embedding of the target picture, and classifier-free guidance per branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.step.rows import RowKind, RowLayout

EPSILON = 1e-7


def estimate_target_embedding(
    image_BE: Tensor, source_text_BE: Tensor, target_text_BE: Tensor, kept_percent: float = 100.0
) -> Tensor:
    """Estimate the embedding of the edited picture from the source's and the two prompts.

    I_t = I_s + ||I_s|| (T_t / ||T_t|| - T_s / ||T_s||), in float32, not normalised again (ViMAEdit, section 3.2). Of the
    difference only the given percentage of entries with the largest absolute values is kept (LOCATEdit).

    Shapes: projected CLIP embeddings (B, E) -> (B, E) float32.
    """
    image_BE, source_text_BE, target_text_BE = (e.float() for e in (image_BE, source_text_BE, target_text_BE))
    norm_B1 = torch.linalg.vector_norm(image_BE, dim=-1, keepdim=True)
    source_unit_BE = source_text_BE / torch.linalg.vector_norm(source_text_BE, dim=-1, keepdim=True)
    target_unit_BE = target_text_BE / torch.linalg.vector_norm(target_text_BE, dim=-1, keepdim=True)
    direction_BE = target_unit_BE - source_unit_BE
    if kept_percent < 100:
        threshold_B1 = (norm_B1 * direction_BE).abs().quantile(1 - kept_percent / 100, dim=-1, keepdim=True)
        direction_BE = direction_BE * ((norm_B1 * direction_BE).abs() >= threshold_B1)
    estimated_BE: Tensor = image_BE + norm_B1 * direction_BE
    return estimated_BE


def combine_guidance(eps_R: Tensor, layout: RowLayout, source_scale: float, target_scale_B: Tensor) -> Tensor:
    """Combine the rows of each branch: eps = eps_uncond + w (eps_cond - eps_uncond), float32; of one row alone, that row. A source
    without rows goes where the target goes.

    Shapes: `eps_R` (R, C, h, w), `target_scale_B` (B,) -> (2 or 3, B, C, h, w), source first.
    """
    eps_R = eps_R.float()
    uncond, cond = branch_rows(eps_R, layout, RowKind.SOURCE_UNCOND), branch_rows(eps_R, layout, RowKind.SOURCE_COND)
    free, target = branch_rows(eps_R, layout, RowKind.TARGET_UNCOND), eps_R[layout.block(RowKind.TARGET_COND)]
    if free is not None:
        target = free + target_scale_B.view(-1, 1, 1, 1) * (target - free)
    source = target if uncond is cond is None else combine_source(uncond, cond, source_scale)
    if RowKind.AUXILIARY_COND not in layout.kinds:
        return torch.stack([source, target])
    uncond, cond = branch_rows(eps_R, layout, RowKind.AUXILIARY_UNCOND), branch_rows(eps_R, layout, RowKind.AUXILIARY_COND)
    return torch.stack([source, target, combine_source(uncond, cond, source_scale)])


def branch_rows(eps_R: Tensor, layout: RowLayout, kind: RowKind) -> Tensor | None:
    """Return the rows of a kind, (B, C, h, w); None where the layout has none."""
    return layout.of_kind(eps_R, kind) if kind in layout.kinds else None


def combine_source(uncond: Tensor | None, cond: Tensor | None, scale: float, *, exchanged: bool = False) -> Tensor:
    """Combine the rows that a source has; with one of them it is that one. `exchanged`: each stands in the other's place."""
    if uncond is None or cond is None or (scale == 1 and not exchanged):
        only = uncond if cond is None else cond
        assert only is not None
        return only
    if exchanged:
        uncond, cond = cond, uncond
    return uncond + scale * (cond - uncond)


def proximal_guidance(eps_R: Tensor, layout: RowLayout, target_scale_B: Tensor, quantile: float, *, soft: bool) -> Tensor:
    """Guide the target by the large entries of d = eps_cond - eps_uncond alone; the source's guidance is inert.

    Entries of |d| above its quantile are kept (hard threshold). `soft`: they lose the threshold, which is the quantile of the
    source's zeros and the target's entries together.

    Shapes: as `combine_guidance`.
    """
    eps_R = eps_R.float()
    source, free = eps_R[layout.block(RowKind.SOURCE_COND)], eps_R[layout.block(RowKind.TARGET_UNCOND)]
    difference = eps_R[layout.block(RowKind.TARGET_COND)] - free
    size = difference.abs()
    counted_BM = size.flatten(1)
    if soft:
        counted_BM = torch.cat([torch.zeros_like(counted_BM), counted_BM], dim=1)
    threshold = counted_BM.quantile(quantile, dim=1).view(-1, 1, 1, 1)
    kept = difference.sign() * (size - threshold).clamp(min=0) if soft else difference * (size > threshold)
    return torch.stack([source, free + target_scale_B.view(-1, 1, 1, 1) * kept])


def difference_weights(eps_R: Tensor, layout: RowLayout, cell: int) -> Tensor:
    """Say how far each place is to change, (B, 1, h, w) float32: 0 where target minus source is least, 1 where it is greatest.

    It is the signed mean over channels, and over cells of `cell` x `cell` latent pixels where these are one token of the model,
    min-max normalised per request (UniEdit-Flow).
    """
    difference = eps_R[layout.block(RowKind.TARGET_COND)].float() - eps_R[layout.block(RowKind.SOURCE_COND)].float()
    mean = F.avg_pool2d(difference.mean(dim=1, keepdim=True), cell)
    low, high = mean.amin(dim=(1, 2, 3), keepdim=True), mean.amax(dim=(1, 2, 3), keepdim=True)
    return F.interpolate((mean - low) / (high - low + EPSILON), scale_factor=cell, mode="nearest")


def difference_guidance(eps_R: Tensor, layout: RowLayout, weights_B1hw: Tensor, strength: float) -> Tensor:
    """Combine e = w (1 + m) (e_t - e_s) + m e_t + (1 - m) e_s, which both branches take (UniEdit-Flow).

    Shapes: `eps_R` (R, C, h, w) -> (2, B, C, h, w).
    """
    source, target = eps_R[layout.block(RowKind.SOURCE_COND)].float(), eps_R[layout.block(RowKind.TARGET_COND)].float()
    apart = strength * (1 + weights_B1hw) * (target - source)
    combined = apart + (weights_B1hw * target + (1 - weights_B1hw) * source)
    return torch.stack([combined, combined])
