"""Intervals against published and worked-out values."""

from __future__ import annotations

import numpy as np
import pytest

from vimaedit.metrics.statistics import Interval, paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
    ],
)
def test_wilson_intervals_are_the_published_ones(successes: int, total: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, total)
    assert interval.value == successes / total
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (4, 3), (-1, 3)])
def test_shares_that_are_none_are_refused(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"^got {successes} successes of {total}; allowed: 0 to total, of at least one$"):
        wilson_interval(successes, total)


def test_the_bootstrap_of_two_values_is_binomial() -> None:
    # The mean of n draws from {0, 1} in equal parts: its quantiles are those of a binomial over n.
    interval = paired_bootstrap([0.0, 1.0] * 50, seed=3)
    assert interval.value == 0.5
    assert (interval.low, interval.high) == (pytest.approx(0.40, abs=0.011), pytest.approx(0.60, abs=0.011))


def test_the_bootstrap_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    interval = paired_bootstrap(values.tolist(), seed=1)
    reach = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.03)
    assert paired_bootstrap(values.tolist(), seed=1) == interval != paired_bootstrap(values.tolist(), seed=2)


def test_equal_differences_leave_no_doubt() -> None:
    assert paired_bootstrap([0.25] * 7, seed=0) == Interval(value=0.25, low=0.25, high=0.25)


@pytest.mark.parametrize(("values", "got"), [([], "got 0, 0 not finite"), ([1.0, float("inf")], "got 2, 1 not finite")])
def test_differences_without_a_mean_are_refused(values: list[float], got: str) -> None:
    with pytest.raises(ValueError, match=f"^differences: {got}; allowed: finite ones$"):
        paired_bootstrap(values, seed=0)
