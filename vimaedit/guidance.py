"""What steers: the estimated embedding of the target picture, and classifier-free guidance per branch."""

from __future__ import annotations

import torch
from torch import Tensor

from vimaedit.rows import RowKind, RowLayout


def estimate_target_embedding(image_BE: Tensor, source_text_BE: Tensor, target_text_BE: Tensor) -> Tensor:
    """Estimate the embedding of the edited picture from the source's and the two prompts.

    I_t = I_s + ||I_s|| (T_t / ||T_t|| - T_s / ||T_s||), in float32, not normalised again (ViMAEdit, section 3.2).

    Shapes: projected CLIP embeddings (B, E) -> (B, E) float32.
    """
    image_BE, source_text_BE, target_text_BE = (e.float() for e in (image_BE, source_text_BE, target_text_BE))
    norm_B1 = torch.linalg.vector_norm(image_BE, dim=-1, keepdim=True)
    source_unit_BE = source_text_BE / torch.linalg.vector_norm(source_text_BE, dim=-1, keepdim=True)
    target_unit_BE = target_text_BE / torch.linalg.vector_norm(target_text_BE, dim=-1, keepdim=True)
    estimated_BE: Tensor = image_BE + norm_B1 * (target_unit_BE - source_unit_BE)
    return estimated_BE


def combine_guidance(eps_R: Tensor, layout: RowLayout, source_scale: float, target_scale_B: Tensor) -> Tensor:
    """Combine the rows of each branch: eps = eps_uncond + w (eps_cond - eps_uncond), float32.

    Shapes: `eps_R` (R, C, h, w), `target_scale_B` (B,) -> (2, B, C, h, w), source first.
    """
    eps_R = eps_R.float()
    source = eps_R[layout.block(RowKind.SOURCE_COND)]
    if layout.source_guided:
        uncond = eps_R[layout.block(RowKind.SOURCE_UNCOND)]
        source = uncond + source_scale * (source - uncond)
    uncond = eps_R[layout.block(RowKind.TARGET_UNCOND)]
    target = uncond + target_scale_B.view(-1, 1, 1, 1) * (eps_R[layout.block(RowKind.TARGET_COND)] - uncond)
    return torch.stack([source, target])
