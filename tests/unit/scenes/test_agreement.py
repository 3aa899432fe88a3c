"""Pictures and masks of edited scenes against their exact answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vimaedit.scenes.reading.agreement import MaskAgreement, cell_coverage, compare_masks, region_psnr, true_cells


def pictures() -> tuple[np.ndarray, np.ndarray]:
    first = np.random.default_rng(0).integers(20, 200, (7, 11, 3), dtype=np.uint8)
    second = first.copy()
    second[2, 3] += 30
    second[5, 9] -= 20
    return first, second


def test_psnr_counts_the_pixels_of_the_region_only() -> None:
    first, second = pictures()
    region = np.zeros((7, 11), dtype=bool)
    region[2, 2:5] = True
    assert region_psnr(first, second, region) == pytest.approx(10 * math.log10(255**2 / (30**2 / 3)))
    assert region_psnr(second, first) == pytest.approx(10 * math.log10(255**2 / ((30**2 + 20**2) / 77)))
    assert region_psnr(first, second, region & False) is None


def test_equal_pictures_have_the_psnr_of_rounding() -> None:
    first, _ = pictures()
    assert region_psnr(first, first.copy()) == pytest.approx(10 * math.log10(12 * 255**2))


def test_frames_that_differ_are_refused() -> None:
    first, second = pictures()
    with pytest.raises(ValueError, match=r"^got pictures \(7, 11, 3\), \(7, 10, 3\), region None; allowed: one frame$"):
        region_psnr(first, second[:, 1:])
    with pytest.raises(ValueError, match=r"region \(11, 7\); allowed: one frame$"):
        region_psnr(first, second, np.ones((11, 7), dtype=bool))


def test_a_cell_is_true_from_half_of_its_pixels_on() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[0, 0] = mask[1, 1] = True  # half of a cell of two by two
    mask[2:4, 4:6] = True
    mask[5, 7] = True  # a quarter
    assert cell_coverage(mask, 2).tolist() == [[0.5, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0.25]]
    assert np.argwhere(true_cells(mask, 2)).tolist() == [[0, 0], [1, 2]]


def test_where_no_cell_is_half_taken_the_fullest_are_true() -> None:
    mask = np.zeros((6, 9), dtype=bool)
    mask[0, 0] = mask[4, 4] = mask[5, 5] = mask[5, 6] = mask[3, 8] = True
    assert np.argwhere(true_cells(mask, 3)).tolist() == [[1, 1], [1, 2]]


def test_masks_that_cannot_be_quantised_are_refused() -> None:
    with pytest.raises(ValueError, match="^mask: got 6x9; allowed: sides that are multiples of 2$"):
        true_cells(np.ones((6, 9), dtype=bool), 2)
    with pytest.raises(ValueError, match="^mask: got an empty one; allowed: the mask of an edit$"):
        true_cells(np.zeros((6, 9), dtype=bool), 3)


def test_masks_are_compared_by_their_cells() -> None:
    wanted = np.zeros((5, 7), dtype=bool)
    wanted[1:3, 1:4] = True
    found = np.zeros((5, 7), dtype=bool)
    found[2:4, 2:7] = True
    assert compare_masks(found, wanted) == MaskAgreement(iou=2 / 14, precision=2 / 10, recall=2 / 6)
    assert compare_masks(wanted, wanted) == MaskAgreement(iou=1, precision=1, recall=1)
    assert compare_masks(found & False, wanted) == MaskAgreement(iou=0, precision=0, recall=0)
