"""How near an edit of a drawn scene comes to its exact answer; needs no network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimaedit.metrics.background import psnr_of_mse
from vimaedit.types import BoolArray, UInt8Array

# Rounding to whole levels alone has this mean squared error (of values 0 to 1), so a smaller one says no more than it does:
# equal pictures have 58.9 dB, and means over pictures stay finite.
LEAST_MSE = 1 / 12 / 255**2


@dataclass(frozen=True, kw_only=True)
class MaskAgreement:
    """How well a mask covers the true one, counted in cells: each 0 to 1. An empty mask has 0 throughout."""

    iou: float
    precision: float
    recall: float


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


def cell_coverage(mask: BoolArray, cell: int) -> NDArray[np.float64]:
    """Return which share of each cell's pixels a mask takes: (height, width) -> (height / cell, width / cell).

    Raises: ValueError for sides that are no multiple of `cell`.
    """
    height, width = mask.shape
    if height % cell or width % cell:
        raise ValueError(f"mask: got {height}x{width}; allowed: sides that are multiples of {cell}")
    shares: NDArray[np.float64] = mask.reshape(height // cell, cell, width // cell, cell).mean(axis=(1, 3))
    return shares


def true_cells(mask: BoolArray, cell: int) -> BoolArray:
    """Quantise a true mask to cells: those of which it takes at least half; where there are none, the fullest ones.

    Shapes: (height, width) -> (height / cell, width / cell).

    Raises: ValueError as `cell_coverage`, and for an empty mask.
    """
    if not mask.any():
        raise ValueError("mask: got an empty one; allowed: the mask of an edit")
    shares = cell_coverage(mask, cell)
    cells: BoolArray = shares >= min(0.5, float(shares.max()))
    return cells


def compare_masks(found: BoolArray, wanted: BoolArray) -> MaskAgreement:
    """Compare a mask with the true one, cell by cell; both of one shape, `wanted` not empty."""
    both = int((found & wanted).sum())
    return MaskAgreement(
        iou=both / int((found | wanted).sum()),
        precision=both / max(1, int(found.sum())),
        recall=both / int(wanted.sum()),
    )
