"""Where the edit happens: word-to-patch attention, refined by patch-to-patch attention (ViMAEdit, section 3.3).

collect -> refine -> accumulate -> normalise -> threshold -> union; pure functions, all in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of one step. `exists` False: this request has none (yet), and the masks' values mean nothing.

    Shapes: `edit`, `critical` (B, 1, h, w) bool; `exists` (B,) bool.
    """

    edit: Tensor
    critical: Tensor
    exists: Tensor


def no_masks(num_requests: int, latent_hw: tuple[int, int], device: torch.device) -> Masks:
    """Return the masks of a step before grounding starts."""
    empty = torch.zeros(num_requests, 1, *latent_hw, dtype=torch.bool, device=device)
    return Masks(edit=empty, critical=empty, exists=torch.zeros(num_requests, dtype=torch.bool, device=device))


def given_masks(mask_Bhw: Tensor) -> Masks:
    """Use one given mask as edit mask and critical mask, from step 0 on. Shape (B, h, w) bool."""
    exists_B = torch.ones(len(mask_Bhw), dtype=torch.bool, device=mask_Bhw.device)
    return Masks(edit=mask_Bhw[:, None], critical=mask_Bhw[:, None], exists=exists_B)


def refine_map(word_map_Qn: Tensor, self_map_QNN: Tensor | None, sizes: tuple[tuple[int, int], tuple[int, int]], rounds: int,
               decay: float) -> Tensor:  # fmt: skip
    """Bring the word map to the self-attention's grid and refine it: `rounds` times M <- g M + (1 - g) A M.

    Shapes: `word_map_Qn` (Q, n), n = the word map's grid `sizes[0]`; `self_map_QNN` (Q, N, N), N = the grid `sizes[1]`,
    None when there are no rounds -> (Q, N).
    """
    (cross_h, cross_w), (self_h, self_w) = sizes
    grid = F.interpolate(word_map_Qn.view(-1, 1, cross_h, cross_w), size=(self_h, self_w), mode="nearest")
    map_QN1 = grid.reshape(len(word_map_Qn), self_h * self_w, 1)
    if self_map_QNN is not None:
        for _ in range(rounds):
            map_QN1 = decay * map_QN1 + (1 - decay) * (self_map_QNN @ map_QN1)
    return map_QN1[..., 0]


def masks_from_sum(
    sum_QN: Tensor, map_hw: tuple[int, int], latent_hw: tuple[int, int], edit_B: Tensor, critical_B: Tensor
) -> Masks:
    """Turn the running sum into masks: min-max normalised per row, strictly above the threshold, union of both branches.

    A row whose map is constant gives no mask; a request with no mask in either branch has `exists` False.

    Shapes: `sum_QN` (2 B, N), sources first, N = the grid `map_hw`; thresholds `edit_B`, `critical_B` (B,).
    """
    grid = sum_QN.view(-1, 1, *map_hw)
    low = grid.amin(dim=(2, 3), keepdim=True)
    high = grid.amax(dim=(2, 3), keepdim=True)
    varies = high > low
    normalised = (grid - low) / torch.where(varies, high - low, torch.ones_like(high))
    normalised = F.interpolate(normalised, size=latent_hw, mode="nearest").unflatten(0, (2, -1))
    varies = varies.unflatten(0, (2, -1))
    edit = ((normalised > edit_B.view(1, -1, 1, 1, 1)) & varies).any(dim=0)
    critical = ((normalised > critical_B.view(1, -1, 1, 1, 1)) & varies).any(dim=0)
    return Masks(edit=edit, critical=critical, exists=varies.any(dim=0).flatten())


def variance_region(masks: Masks, variance: str) -> Tensor:
    """Return where noise is injected, (B, 1, h, w) float32 of 0 and 1: nowhere for a request without a mask."""
    exists = masks.exists.view(-1, 1, 1, 1)
    if variance == "zero":
        region = torch.zeros_like(masks.critical)
    elif variance == "uniform":
        region = exists.expand_as(masks.critical)
    else:
        region = masks.critical & exists
    return region.float()


def blend_latents(x: Tensor, masks: Masks) -> Tensor:
    """Take the source's latent outside the edit mask: x_t <- x_s + M (x_t - x_s); no mask, no change.

    Shapes: `x` (2, B, C, h, w), source first.
    """
    source, target = x
    keep = masks.edit | ~masks.exists.view(-1, 1, 1, 1)
    return torch.stack([source, torch.where(keep, target, source)])
