"""Guidance by concepts, each inside a mask of its own (LEDITS++, arXiv 2311.16711)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.attention.injection import MapBuffers
from vimaedit.config import EditConfig
from vimaedit.step.guidance import branch_rows, combine_source
from vimaedit.step.rows import TARGET, RowKind, RowLayout


@dataclass(frozen=True, eq=False)
class ConceptBatch:
    """The concepts of B requests, K each.

    Shapes: `scale` (K, B), negative where a concept is to leave the picture; `quantile` (K, B); `first`, `last` (K, B) int64, it
    acts at steps first <= i < last; `words` (K, B, T) float32, the tokens of its text; `user_mask` (B, 1, h, w) float32 or None.
    `guided_up_to`, `noiseless`: those of the options, or what is published for the model.
    """

    scale: Tensor
    quantile: Tensor
    first: Tensor
    last: Tensor
    words: Tensor
    user_mask: Tensor | None
    guided_up_to: int
    noiseless: int


def concept_guidance(
    eps_R: Tensor, layout: RowLayout, concepts: ConceptBatch, masks_KB1hw: Tensor, config: EditConfig
) -> Tensor:
    """Combine eps = eps_uncond + sum over concepts of M g (eps_concept - eps_uncond); the source has its own two texts.

    Shapes: `eps_R` (R, C, h, w) -> (2, B, C, h, w).
    """
    eps_R = eps_R.float()
    uncond, cond = branch_rows(eps_R, layout, RowKind.SOURCE_UNCOND), branch_rows(eps_R, layout, RowKind.SOURCE_COND)
    source = combine_source(uncond, cond, config.source_guidance, exchanged="leditspp-texts" in config.quirks)
    target = eps_R[layout.block(RowKind.TARGET_UNCOND)]
    for pull, mask in zip(concept_pulls(eps_R, layout, concepts), masks_KB1hw, strict=True):
        target = target + mask * pull
    return torch.stack([source, target])


def concept_pulls(eps_R: Tensor, layout: RowLayout, concepts: ConceptBatch) -> Tensor:
    """Return g (eps_concept - eps_uncond) inside the user's mask, (K, B, C, h, w)."""
    free = eps_R[layout.block(RowKind.TARGET_UNCOND)].float()
    pulls = [
        scale_B.view(-1, 1, 1, 1) * (eps_R[layout.block(RowKind(TARGET, True, number))].float() - free)
        for number, scale_B in enumerate(concepts.scale)
    ]
    pulls_KBChw = torch.stack(pulls)
    return pulls_KBChw if concepts.user_mask is None else pulls_KBChw * concepts.user_mask


def concept_masks(
    i: int,
    timestep: float,
    pulls_KBChw: Tensor,
    concepts: ConceptBatch,
    buffers: MapBuffers | None,
    map_hw: tuple[int, int],
    config: EditConfig,
) -> Tensor:
    """Say where each concept guides at this step, (K, B, 1, h, w) float32 of 0 and 1.

    `attention`: the concept's text attention, blurred, at or above its quantile. `guidance`: the guidance summed over channels at
    or above its quantile. `intersect`: both, above timestep `guided_up_to` the first alone.
    """
    shape, latent_hw = pulls_KBChw.shape[:2], pulls_KBChw.shape[-2:]
    kind = config.concepts.mask
    acts_KB = (concepts.first <= i) & (i < concepts.last)
    mask = acts_KB[:, :, None, None, None].expand(*shape, 1, *latent_hw)
    if buffers is not None:
        blurred = _blur(buffers.word_map().view(-1, 1, *map_hw))
        high = blurred >= _quantile(blurred, concepts.quantile.flatten())
        high = F.interpolate(high.float(), size=latent_hw, mode="nearest").view(*shape, 1, *latent_hw) > 0
        mask = mask & high
    if kind == "guidance" or (kind == "intersect" and timestep <= concepts.guided_up_to):
        strength = pulls_KBChw.abs().sum(dim=2).flatten(0, 1)[:, None]
        mask = mask & (strength >= _quantile(strength, concepts.quantile.flatten())).view(*shape, 1, *latent_hw)
    return mask.float()


def _blur(maps_Q1hw: Tensor) -> Tensor:
    line = torch.exp(-torch.tensor([-1.0, 0.0, 1.0], device=maps_Q1hw.device).square())
    kernel = line[:, None] * line[None, :]
    return F.conv2d(F.pad(maps_Q1hw, (1, 1, 1, 1), mode="reflect"), (kernel / kernel.sum())[None, None])


def _quantile(maps_Q1hw: Tensor, share_Q: Tensor) -> Tensor:
    """Return every map's own quantile, interpolated linearly, (Q, 1, 1, 1)."""
    values = [each.flatten().quantile(share) for each, share in zip(maps_Q1hw, share_Q, strict=True)]
    return torch.stack(values).view(-1, 1, 1, 1)
