"""Distances over a region of a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vimaedit.metrics.background import region_psnr


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
