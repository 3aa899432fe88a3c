"""Means that leave out and count what is no number, their intervals, and paired comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vimaedit.metrics.aggregate import NORMAL_FROM, aggregate, compare_paired, mean_interval


def test_what_is_no_number_is_left_out_and_counted() -> None:
    found = aggregate([1.0, math.nan, 4.0, None, math.inf, 7.0, None, None, math.inf, math.nan, math.nan])
    assert (found.mean, found.count, found.nan, found.infinite, found.missing) == (4.0, 3, 3, 2, 3)
    assert found.low is not None and found.high is not None and 1.0 <= found.low < 4.0 < found.high <= 7.0


@pytest.mark.parametrize("values", [[], [None, math.nan], [math.inf]])
def test_without_a_number_there_is_no_mean(values: list[float | None]) -> None:
    found = aggregate(values)
    assert (found.mean, found.low, found.high, found.count) == (None, None, None, 0)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        interval = mean_interval(rng.normal(3.0, 2.0, 60).tolist())
        held += interval.low <= 3.0 <= interval.high
    assert 176 <= held <= 200  # 95 %, less what a bootstrap of 60 values loses


def test_the_interval_of_very_many_values_goes_over_into_the_normal_one() -> None:
    values = np.random.default_rng(1).gamma(2.0, 3.0, NORMAL_FROM).tolist()
    many, few = mean_interval(values), mean_interval(values[:-1])
    assert (many.low, many.high) == (pytest.approx(few.low, abs=0.02), pytest.approx(few.high, abs=0.02))
    assert many.low < many.value < many.high
    assert mean_interval(values[:-1]) == few  # the same values, the same interval


def test_only_edits_with_both_values_are_compared() -> None:
    ours, theirs = [3.0, 5.0, math.nan, None, 9.0, math.inf], [1.0, 4.0, 2.0, 2.0, None, 3.0]
    found = compare_paired(ours, theirs)
    assert found is not None and (found.value, found.pairs) == (1.5, 2) and (found.low, found.high) == (1.0, 2.0)
    assert compare_paired([None, 1.0], [2.0, math.nan]) is None
    with pytest.raises(ValueError, match="zip"):
        compare_paired([1.0], [])
