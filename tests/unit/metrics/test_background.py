"""The weight-free metrics against slow formulas and the recorded values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vimaedit.metrics.background import CHANGED_LEVEL, background_metrics, psnr_of_mse, ssim


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = rng.integers(-37, 38, source.shape)
    return source, np.clip(source + noise, 0, 255).astype(np.uint8)


def slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))[..., None]
    window /= window.sum()
    x, y = first / 255, second / 255
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            mean_a, mean_b = ((window * p).sum((0, 1)) for p in (a, b))
            var_a, var_b = (window * (a - mean_a) ** 2).sum((0, 1)), (window * (b - mean_b) ** 2).sum((0, 1))
            cov = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("height", "width"), [(11, 11), (13, 53), (47, 17), (59, 61)])
def test_ssim_equals_the_formula_window_by_window(height: int, width: int) -> None:
    assert ssim(*pictures(height, width)) == pytest.approx(slow_ssim(*pictures(height, width)), abs=1e-12)


def test_masked_pixels_count_as_zero_error() -> None:
    source, edited = pictures(23, 31)
    mask = np.zeros((23, 31), dtype=bool)
    mask[3:11, 5:29] = True
    background = 1.0 - mask[..., None]
    mse = np.mean((source / 255 * background - edited / 255 * background) ** 2)
    metrics = background_metrics(source, edited, mask)
    assert metrics.background_mse == pytest.approx(mse, rel=1e-12)
    assert metrics.background_psnr == pytest.approx(10 * math.log10(1 / mse), rel=1e-12)
    expected = slow_ssim(source * background, edited * background)
    assert metrics.background_ssim == pytest.approx(expected, abs=1e-12)
    assert metrics.mask_fraction == pytest.approx(8 * 24 / (23 * 31))


def test_equal_pictures() -> None:
    source, _ = pictures(17, 19)
    metrics = background_metrics(source, source.copy(), np.zeros((17, 19), dtype=bool))
    assert (metrics.background_psnr, metrics.background_mse) == (math.inf, 0.0)
    assert metrics.background_ssim == pytest.approx(1.0, abs=1e-12)
    assert (metrics.mask_fraction, metrics.changed_fraction, metrics.unchanged) == (0.0, 0.0, True)


@pytest.mark.parametrize("mask", [None, np.ones((17, 19), dtype=bool)])
def test_without_a_background_its_values_are_none(mask: np.ndarray | None) -> None:
    metrics = background_metrics(*pictures(17, 19), mask)
    assert (metrics.background_psnr, metrics.background_ssim, metrics.background_mse) == (None, None, None)
    assert metrics.mask_fraction == (None if mask is None else 1.0)
    assert metrics.changed_fraction > 0 and not metrics.unchanged


def test_changed_pixels_are_those_with_a_channel_beyond_the_level() -> None:
    source = np.full((7, 11, 3), 128, dtype=np.uint8)
    edited = source.copy()
    edited[0, 0, 1] += CHANGED_LEVEL
    assert background_metrics(source, edited, None).unchanged
    edited[2, 3, 0] += CHANGED_LEVEL + 1
    edited[5, 7] = 0
    metrics = background_metrics(source, edited, None)
    assert metrics.changed_fraction == 2 / 77 and not metrics.unchanged


def test_a_side_under_the_window_has_no_ssim() -> None:
    metrics = background_metrics(*pictures(10, 19), np.zeros((10, 19), dtype=bool))
    assert metrics.background_ssim is None and metrics.background_mse is not None


def test_frames_that_differ_are_refused() -> None:
    source, edited = pictures(7, 11)
    with pytest.raises(
        ValueError, match=r"^got source \(7, 11, 3\), edited \(7, 11, 3\), mask \(11, 7\); allowed: one frame for all$"
    ):
        background_metrics(source, edited, np.zeros((11, 7), dtype=bool))
    with pytest.raises(ValueError, match=r"edited \(7, 10, 3\), mask None"):
        background_metrics(source, edited[:, :-1], None)


def test_psnr_of_mse() -> None:
    assert psnr_of_mse(0.01) == pytest.approx(20.0)
    assert psnr_of_mse(0) == math.inf


def test_recorded_values(oracle: Path) -> None:
    folder = oracle / "metrics"
    pairs = json.loads((folder / "metrics.json").read_text())["pairs"]
    for name, pair in pairs.items():
        source, edited, mask = (
            np.asarray(Image.open(folder / "images" / f"{name}_{part}.png")) for part in ("src", "tgt", "mask")
        )
        metrics = background_metrics(source, edited, mask > 0)
        official = pair["official"]
        if official["psnr_unedit_part"] == "nan":
            assert metrics.background_psnr is metrics.background_mse is metrics.background_ssim is None
            continue
        assert metrics.mask_fraction == pair["mask_fraction"]
        assert metrics.background_psnr == pytest.approx(float(official["psnr_unedit_part"]), abs=1e-3)
        assert metrics.background_mse == pytest.approx(official["mse_unedit_part"], abs=1e-7)
        assert metrics.background_ssim == pytest.approx(pair["same_formula_in_float64"]["ssim_unedit_part"], abs=1e-9)
        assert ssim(source, edited) == pytest.approx(pair["same_formula_in_float64"]["ssim"], abs=1e-9)
    assert len(pairs) >= 6
