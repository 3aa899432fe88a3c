"""How well an edit keeps what it should not touch; needs no network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimaedit.metrics.shift import shift_px
from vimaedit.types import BoolArray, UInt8Array

# Beyond what rounding and JPEG at quality 95 do to a pixel, still hardly seen (3 % of the range). A model's autoencoder can
# exceed it on fine texture, so a small `changed_fraction` need not be the edit's doing.
CHANGED_LEVEL = 8

# Rounding to whole levels alone has this mean squared error (of values 0 to 1), so a smaller one says no more than it does:
# equal pictures have 58.9 dB, and means over pictures stay finite.
LEAST_MSE = 1 / 12 / 255**2

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
# Side of the tiles that are filtered at a time. Memory does not grow with the picture, and the matrix products stay below the
# size at which BLAS starts threads, which would wait for each other in every process of a busy machine.
SSIM_TILE = 48


@dataclass(frozen=True, kw_only=True)
class BackgroundMetrics:
    """Edited against source outside the edit mask, and how much of the picture was changed.

    The `background_` values are None without a mask and where the mask leaves no background. `mask_fraction` is None without a
    mask. `changed_fraction`: pixels of the whole picture in which a channel differs by more than `CHANGED_LEVEL` of 255 levels;
    `unchanged`: there are none.
    """

    background_psnr: float | None  # dB, inf for equal pictures
    background_ssim: float | None  # None also for a side under 11 px
    background_mse: float | None  # of values 0 to 1
    mask_fraction: float | None
    changed_fraction: float
    unchanged: bool
    shift_px: float | None  # of the whole picture, None where that cannot be told


def background_metrics(source: UInt8Array, edited: UInt8Array, edit_mask: BoolArray | None) -> BackgroundMetrics:
    """Measure an edit.

    As on PIE-Bench both pictures are multiplied by the background and averaged over all pixels, so the masked ones count as
    zero error and the values depend on the mask's area.

    Shapes: `source`, `edited` (height, width, 3), `edit_mask` (height, width).
    """
    if source.shape != edited.shape or (edit_mask is not None and edit_mask.shape != source.shape[:2]):
        mask_shape = None if edit_mask is None else edit_mask.shape
        raise ValueError(f"got source {source.shape}, edited {edited.shape}, mask {mask_shape}; allowed: one frame for all")
    difference = np.maximum(source, edited) - np.minimum(source, edited)
    changed = int((difference > CHANGED_LEVEL).any(axis=-1).sum())
    mse = psnr = similarity = None
    if edit_mask is not None and not edit_mask.all():
        background = ~edit_mask[..., None]
        # Exact: a sum of integers.
        mse = int(np.square(difference * background, dtype=np.uint16).sum(dtype=np.int64)) / (255**2 * difference.size)
        psnr = psnr_of_mse(mse)
        if min(edit_mask.shape) > 2 * SSIM_RADIUS:
            similarity = ssim(source * background, edited * background)
    return BackgroundMetrics(
        background_psnr=psnr,
        background_ssim=similarity,
        background_mse=mse,
        mask_fraction=None if edit_mask is None else float(edit_mask.mean()),
        changed_fraction=changed / (source.shape[0] * source.shape[1]),
        unchanged=changed == 0,
        shift_px=shift_px(source, edited),
    )


def region_psnr(first: UInt8Array, second: UInt8Array, region: BoolArray | None = None) -> float | None:
    """Return the PSNR in dB over the pixels of a region only (None: the whole picture); None where the region is empty.

    Other than in `background_metrics`, pixels outside do not count as zero error: the value does not depend on the area.

    Shapes: `first`, `second` (height, width, 3), `region` (height, width).

    Raises: ValueError for pictures of different shapes.
    """
    if first.shape != second.shape or (region is not None and region.shape != first.shape[:2]):
        raise ValueError(
            f"got pictures {first.shape}, {second.shape}, region {None if region is None else region.shape}; allowed: one frame"
        )
    difference = first.astype(np.float64) - second.astype(np.float64)
    if region is not None:
        difference = difference[region]
    if not difference.size:
        return None
    return psnr_of_mse(max(LEAST_MSE, float(np.square(difference).mean()) / 255**2))


def psnr_of_mse(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of values 0 to 1; inf for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim(first: UInt8Array, second: UInt8Array) -> float:
    """Return the structural similarity of two pictures (height, width, 3), both sides at least 11 px.

    Gaussian window 11x11 of sigma 1.5, k1 = 0.01, k2 = 0.03, data range 1, mean over channels and over the interior where the
    window lies inside the picture (Wang et al. 2004). In float64: variances are differences of nearly equal numbers.
    """
    height, width = first.shape[0] - 2 * SSIM_RADIUS, first.shape[1] - 2 * SSIM_RADIUS
    band = _gaussian_band(SSIM_TILE)
    total = 0.0
    for top in range(0, height, SSIM_TILE):
        rows = min(SSIM_TILE, height - top)
        for left in range(0, width, SSIM_TILE):
            columns = min(SSIM_TILE, width - left)
            tile = np.s_[top : top + rows + 2 * SSIM_RADIUS, left : left + columns + 2 * SSIM_RADIUS]
            x, y = _planes(first[tile]), _planes(second[tile])
            moments = np.stack([x, y, x * x + y * y, x * y])
            smooth = band[:rows, : moments.shape[-2]] @ moments @ band[:columns, : moments.shape[-1]].T
            mean_x, mean_y, square, product = smooth
            means, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
            luminance = (2 * means + SSIM_C1) / (mean_squares + SSIM_C1)
            structure = (2 * (product - means) + SSIM_C2) / (square - mean_squares + SSIM_C2)
            total += float((luminance * structure).sum())
    return total / float(height * width * first.shape[2])


def _planes(image: UInt8Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(image.transpose(2, 0, 1)) / 255.0


def _gaussian_band(size: int) -> NDArray[np.float64]:
    """Return the matrix (size, size + 10) whose rows are the window, one position further each."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    band = np.zeros((size, size + 2 * SSIM_RADIUS))
    for row in range(size):
        band[row, row : row + len(weights)] = weights / weights.sum()
    return band
