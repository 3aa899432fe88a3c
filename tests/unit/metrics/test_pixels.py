"""The batched pixel metrics against the plain ones, and the rules for masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vimaedit.metrics.background import background_metrics, ssim
from vimaedit.metrics.pixels import (
    mask_pictures,
    mean_squared_error,
    peak_signal_to_noise,
    structural_similarity,
    to_pictures,
    to_regions,
)

SHAPE = (53, 61)


def pictures(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, *SHAPE, 3), dtype=np.uint8))


def masks() -> list[np.ndarray]:
    corner = np.zeros(SHAPE, dtype=bool)
    corner[3:19, 7:43] = True
    return [corner, ~corner, np.ones(SHAPE, dtype=bool)]


def test_each_of_a_batch_has_the_values_of_the_plain_metrics() -> None:
    sources, edited = pictures(3, 0), pictures(3, 1)
    first, second, region = to_pictures(sources), to_pictures(edited), ~to_regions(masks())
    mse = mean_squared_error(first, second, region)
    psnr, similarity = peak_signal_to_noise(mse), structural_similarity(first, second, region)
    for n in range(2):
        expected = background_metrics(sources[n], edited[n], masks()[n])
        assert mse[n].item() == pytest.approx(expected.background_mse, rel=1e-15)
        assert psnr[n].item() == pytest.approx(expected.background_psnr, abs=1e-12)
        assert similarity[n].item() == pytest.approx(expected.background_ssim, abs=1e-12)
    assert all(math.isnan(values[2].item()) for values in (mse, psnr, similarity))  # no background is left


def test_without_a_region_the_whole_picture_counts() -> None:
    (source,), (edited,) = pictures(1, 2), pictures(1, 3)
    first, second = to_pictures([source]), to_pictures([edited])
    expected = np.square(source / 255 - edited / 255).mean()
    assert mean_squared_error(first, second).item() == pytest.approx(expected, rel=1e-12)
    assert structural_similarity(first, second).item() == pytest.approx(ssim(source, edited), abs=1e-12)


def test_equal_pictures() -> None:
    first = to_pictures(pictures(2, 4))
    assert peak_signal_to_noise(mean_squared_error(first, first)).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(structural_similarity(first, first), torch.ones(2, dtype=torch.float64))


def test_a_side_under_11_px_has_no_similarity() -> None:
    first = to_pictures([np.zeros((10, 23, 3), dtype=np.uint8)])
    assert math.isnan(structural_similarity(first, first).item())


def test_the_largest_error_does_not_overflow() -> None:
    black, white = (to_pictures([np.full((701, 503, 3), level, dtype=np.uint8)]) for level in (0, 255))
    assert mean_squared_error(black, white).item() == 1.0


def test_outside_a_region_pictures_are_black() -> None:
    (picture,), mask = pictures(1, 5), masks()[0]
    masked = mask_pictures(to_pictures([picture]), to_regions([mask]))
    assert masked.dtype == torch.uint8
    np.testing.assert_array_equal(masked[0].permute(1, 2, 0).numpy(), picture * mask[..., None])
