"""Distances of pictures by their pixels, batched, with PIE-Bench's rule for masks.

Both pictures are multiplied by the region and averaged over all pixels, so that those outside count as zero error and the
values depend on the region's area. Where a given region is empty the value is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vimaedit.metrics.background import SSIM_C1, SSIM_C2, SSIM_RADIUS, SSIM_SIGMA
from vimaedit.types import BoolArray, UInt8Array


def to_pictures(images: Sequence[UInt8Array], device: torch.device | str = "cpu") -> Tensor:
    """Stack pictures of one shape: B times (height, width, 3) -> (B, 3, height, width) uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)


def to_regions(masks: Sequence[BoolArray], device: torch.device | str = "cpu") -> Tensor:
    """Stack masks of one shape: B times (height, width) -> (B, 1, height, width) bool."""
    return torch.from_numpy(np.stack(masks))[:, None].to(device)


def mask_pictures(pictures: Tensor, region: Tensor | None) -> Tensor:
    """Make everything outside a region black; None: the whole picture.

    Shapes: `pictures` (B, 3, height, width), `region` (B, 1, height, width) bool.
    """
    return pictures if region is None else pictures * region


def blank_empty(values: Tensor, region: Tensor | None) -> Tensor:
    """Put NaN where the region is empty. Shapes: `values` (B,), `region` (B, 1, height, width) bool."""
    return values if region is None else torch.where(region.flatten(1).any(1), values, torch.nan)


def mean_squared_error(first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the MSE of values 0 to 1 over all pixels, (B,) float64, exact up to the last division.

    Shapes: `first`, `second` (B, 3, height, width) uint8, `region` (B, 1, height, width) bool.
    """
    difference = mask_pictures(first.int() - second.int(), region).flatten(1)
    total = difference.square().sum(1, dtype=torch.int64).double()
    return blank_empty(total / (255**2 * difference.shape[1]), region)


def peak_signal_to_noise(mse: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors of values 0 to 1; inf for 0."""
    return -10 * torch.log10(mse)


def structural_similarity(first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the SSIM (Wang et al. 2004), (B,) float64: see `background.ssim`, whose values these are; NaN under 11 px a side.

    Gaussian window 11x11 of sigma 1.5, data range 1, mean over the interior. In float64: variances are differences of nearly
    equal numbers.

    Shapes: as `mean_squared_error`.
    """
    if min(first.shape[-2:]) <= 2 * SSIM_RADIUS:
        return torch.full((len(first),), torch.nan, dtype=torch.float64, device=first.device)
    # One picture at a time: the moments in float64 of a large batch would not fit a GPU.
    pairs = zip(*(mask_pictures(pictures, region) for pictures in (first, second)), strict=True)
    return blank_empty(torch.stack([_ssim(*pair) for pair in pairs]), region)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the SSIM of one pair: (3, height, width) uint8 -> ()."""
    x, y = first.double() / 255, second.double() / 255
    window = _window(first.device)
    moments = torch.stack([x, y, x * x + y * y, x * y]).flatten(0, 1)[:, None]
    smooth = torch.nn.functional.conv2d(moments, window[None, None, :, None])
    smooth = torch.nn.functional.conv2d(smooth, window[None, None, None, :])
    mean_x, mean_y, square, product = smooth[:, 0].unflatten(0, (4, 3))
    means, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    luminance = (2 * means + SSIM_C1) / (mean_squares + SSIM_C1)
    structure = (2 * (product - means) + SSIM_C2) / (square - mean_squares + SSIM_C2)
    similarity: Tensor = (luminance * structure).mean()
    return similarity


@functools.cache
def _window(device: torch.device) -> Tensor:
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64, device=device)
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    return weights / weights.sum()
