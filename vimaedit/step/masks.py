"""Where the edit happens: word-to-patch attention, refined by patch-to-patch attention (ViMAEdit, section 3.3).

collect -> refine -> accumulate -> normalise -> threshold -> union; pure functions, all in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.methods.options import Laplacian
from vimaedit.step.rows import AUXILIARY, SOURCE, TARGET

AUXILIARY_FLOOR = 0.15  # over sqrt(a): the least threshold of InfEdit's mask at a noise level


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of one step. `exists` False: this request has none (yet), and the masks' values mean nothing.

    With an auxiliary branch the target becomes the source inside `mutual`, and the auxiliary latents inside `shared`. Each of K
    concepts guides inside its own mask. `weights`: how far each place is to change, of UniEdit-Flow.

    Shapes: `edit`, `critical`, `mutual`, `shared` (B, 1, h, w) bool; `exists` (B,) bool; `concepts` (K, B, 1, h, w) float32, 0 or 1;
    `weights` (B, 1, h, w) float32, 0 to 1.
    """

    edit: Tensor
    critical: Tensor
    exists: Tensor
    mutual: Tensor | None = None
    shared: Tensor | None = None
    concepts: Tensor | None = None
    weights: Tensor | None = None


def no_masks(num_requests: int, latent_hw: tuple[int, int], device: torch.device) -> Masks:
    """Return the masks of a step before grounding starts."""
    empty = torch.zeros(num_requests, 1, *latent_hw, dtype=torch.bool, device=device)
    return Masks(edit=empty, critical=empty, exists=torch.zeros(num_requests, dtype=torch.bool, device=device))


def given_masks(mask_Bhw: Tensor) -> Masks:
    """Use one given mask as edit mask and critical mask, from step 0 on. Shape (B, h, w) bool."""
    exists_B = torch.ones(len(mask_Bhw), dtype=torch.bool, device=mask_Bhw.device)
    return Masks(edit=mask_Bhw[:, None], critical=mask_Bhw[:, None], exists=exists_B)


def combine_masks(own: Masks, given_Bhw: Tensor, combine: str) -> Masks:
    """Put masks from outside in the place of the attention's, or join the two by union or intersection.

    One that marks no cell does not count: the attention's stays. Where attention has no mask, the one from outside stands alone.
    Shape: `given_Bhw` (B, h, w) bool.
    """
    given, has_given = given_Bhw[:, None], given_Bhw.flatten(1).any(dim=1)

    def join(mask: Tensor) -> Tensor:
        joined = {"replace": given, "union": mask | given, "intersection": mask & given}[combine]
        joined = torch.where(own.exists.view(-1, 1, 1, 1), joined, given)
        return torch.where(has_given.view(-1, 1, 1, 1), joined, mask)

    return Masks(edit=join(own.edit), critical=join(own.critical), exists=own.exists | has_given)


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


def smooth_map(
    word_map_Qn: Tensor, self_map_QNN: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]], options: Laplacian
) -> Tensor:
    """Smooth the word map over the graph of self-attention: solve (W^2 + l L) M = W^2 M0 (LOCATEdit).

    L is the Laplacian of the symmetrised self-attention map, W = diag(sigmoid(alpha (M0 - tau))) how far M0 is trusted.

    Shapes: as `refine_map`.
    """
    map_QN = refine_map(word_map_Qn, None, sizes, 0, 1.0)
    graph_QNN = (self_map_QNN + self_map_QNN.transpose(1, 2)) / 2
    laplacian_QNN = torch.diag_embed(graph_QNN.sum(dim=-1)) - graph_QNN
    trust_QN = torch.sigmoid(options.alpha * (map_QN - options.tau)).square()
    system_QNN = torch.diag_embed(trust_QN) + options.weight * laplacian_QNN
    smooth: Tensor = torch.linalg.solve(system_QNN, (trust_QN * map_QN)[..., None])[..., 0]
    return smooth


def blend_masks(
    sum_Qn: Tensor, map_hw: tuple[int, int], latent_hw: tuple[int, int], edit_B: Tensor, *, has_words_B: Tensor
) -> Masks:
    """Turn the running sum of word maps into Prompt-to-Prompt's mask: the largest of 3 x 3 cells, over the row's maximum, strictly
    above the threshold, union of both branches. There is no critical region.

    Shapes: `sum_Qn` (2 B, n), sources first; `edit_B` (B,); `has_words_B` (B,) bool, whose mask exists though it be empty.
    """
    pooled = F.max_pool2d(sum_Qn.view(-1, 1, *map_hw), 3, stride=1, padding=1)
    edit = (_over_maximum(pooled, latent_hw).unflatten(0, (2, -1)) > edit_B.view(1, -1, 1, 1, 1)).any(dim=0)
    is_set_B = sum_Qn.amax(dim=1).view(2, -1).amax(dim=0) > 0
    return Masks(edit=edit, critical=torch.zeros_like(edit), exists=is_set_B | has_words_B)


def auxiliary_maps(token_sum_QnT: Tensor, fold_BTT: Tensor, keep_BT: Tensor, words_BT: Tensor, mutual_BT: Tensor) -> Tensor:
    """Reduce the running sums of text maps to those of InfEdit's three masks, each the largest of its tokens' edited maps.

    The auxiliary branch's for the edited words, the source's for the mutual words alone, the auxiliary branch's for words that are
    both.

    Shapes: `token_sum_QnT` (3 B, n, T), by branch; `words_BT`, `mutual_BT` (B, T) -> (3, B, n).
    """
    by_branch = token_sum_QnT.unflatten(0, (3, -1))
    own_BnT = by_branch[TARGET] * keep_BT[:, None, :]
    of_source, of_auxiliary = (by_branch[branch] @ fold_BTT + own_BnT for branch in (SOURCE, AUXILIARY))
    shared_BT = words_BT * mutual_BT
    weighted = (
        of_auxiliary * words_BT[:, None, :],
        of_source * (mutual_BT - shared_BT)[:, None, :],
        of_auxiliary * shared_BT[:, None, :],
    )
    return torch.stack([each.amax(dim=-1) for each in weighted])


def auxiliary_masks(
    maps_KBn: Tensor,
    map_hw: tuple[int, int],
    latent_hw: tuple[int, int],
    edit_B: Tensor,
    mutual: float,
    alpha: float,
    exists_B: Tensor,
) -> Masks:
    """Turn the three maps into masks, each over its maximum and strictly above its threshold; that of the edit is at least
    0.15 / sqrt(a).

    Shapes: `maps_KBn` (3, B, n); `edit_B`, `exists_B` (B,).
    """
    normalised = _over_maximum(maps_KBn.reshape(-1, 1, *map_hw), latent_hw).unflatten(0, (3, -1))
    threshold = edit_B.view(-1, 1, 1, 1)
    edit = normalised[0] > threshold.clamp(min=AUXILIARY_FLOOR / alpha**0.5)
    return Masks(
        edit=edit,
        critical=torch.zeros_like(edit),
        exists=exists_B,
        mutual=normalised[1] > mutual,
        shared=normalised[2] > threshold,
    )


def _over_maximum(grid_Q1hw: Tensor, latent_hw: tuple[int, int]) -> Tensor:
    """Bring maps to the latents' grid and divide each by its maximum; one without any stays zero."""
    grid_Q1hw = F.interpolate(grid_Q1hw, size=latent_hw, mode="nearest")
    high = grid_Q1hw.amax(dim=(2, 3), keepdim=True)
    return grid_Q1hw / torch.where(high > 0, high, torch.ones_like(high))


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


def blend_auxiliary(x: Tensor, masks: Masks, *, overwrites: bool) -> Tensor:
    """Take the auxiliary latents outside the edit mask, the source's inside the mutual one and, with `overwrites`, the auxiliary
    ones inside the shared one.

    Shapes: `x` (3, B, C, h, w): source, target, auxiliary.
    """
    source, target, auxiliary = x
    if masks.mutual is None or masks.shared is None:
        return x
    target = torch.where(masks.edit | ~masks.exists.view(-1, 1, 1, 1), target, auxiliary)
    target = torch.where(masks.mutual, source, target)
    if overwrites:
        target = torch.where(masks.shared, auxiliary, target)
    return torch.stack([source, target, auxiliary])
