"""Where the change is: attention to the words, spread by self-attention, summed over steps, thresholded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def locate(
    text_maps: list[Tensor],
    self_maps: list[Tensor],
    token_masks: Tensor,
    text_sides: tuple[int, int],
    self_sides: tuple[int, int],
    rounds: int,
    decay: float,
) -> Tensor:
    """Return one step's map of the source's and the target's words: (2, height, width) at the self-attention's sides.

    M <- g M + (1 - g) A M, K times, from M0 = the words' text attention.

    Shapes: `text_maps` per layer (2, queries, T), `self_maps` per layer (2, queries, queries), `token_masks` (2, T).
    """
    text = torch.stack(text_maps).mean(dim=0)
    start = torch.einsum("bqt,bt->bq", text, token_masks).unflatten(1, text_sides)
    located = interpolate(start[:, None], size=self_sides, mode="nearest").flatten(1)
    if rounds:
        spread = torch.stack(self_maps).mean(dim=0)
        for _ in range(rounds):
            located = decay * located + (1 - decay) * torch.einsum("bqk,bk->bq", spread, located)
    return located.unflatten(1, self_sides)


def threshold(map_sum: Tensor, latent_sides: tuple[int, int], limit: float) -> tuple[Tensor, Tensor]:
    """Return each row's mask (2, h, w) bool and whether it has one (2,) bool: a constant map gives none.

    The sum is upsampled to the latent's sides and normalised to 0..1; strictly above the limit counts.
    """
    full = interpolate(map_sum[:, None], size=latent_sides, mode="nearest")[:, 0]
    low, high = full.amin(dim=(1, 2), keepdim=True), full.amax(dim=(1, 2), keepdim=True)
    exists = (high > low)[:, 0, 0]
    normalised = (full - low) / torch.where(high > low, high - low, 1.0)
    return (normalised > limit) & exists[:, None, None], exists
