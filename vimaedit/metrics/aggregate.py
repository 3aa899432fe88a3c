"""From values of single edits to what a run came to: means over what can be averaged, with intervals, and pairwise differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vimaedit.metrics.statistics import CONFIDENCE, Interval, paired_bootstrap

BOOTSTRAP_SEED = 20_240_601  # fixed: the same scores have the same intervals
NORMAL_FROM = 2000  # so many values have a mean whose bootstrap interval is the normal one, within its own noise


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A mean over the finite values with its 95 % interval, and how many values were left out.

    `nan`: undefined (an empty region). `infinite`: the PSNR of equal pictures. `missing`: no value, since there is no picture or
    the metric does not apply. Mean and interval are None where `count` is 0.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    nan: int
    infinite: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean of one run's values less the other's over the edits where both are finite, with its 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int


def aggregate(values: Sequence[float | None]) -> Aggregate:
    """Average what is finite and count the rest. The interval is the bootstrap's over edits."""
    present = [value for value in values if value is not None]
    finite = [value for value in present if math.isfinite(value)]
    num_nan = sum(math.isnan(value) for value in present)
    interval = mean_interval(finite) if finite else None
    return Aggregate(
        mean=None if interval is None else interval.value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        count=len(finite),
        nan=num_nan,
        infinite=len(present) - len(finite) - num_nan,
        missing=len(values) - len(present),
    )


def compare_paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> PairedDifference | None:
    """Compare two runs edit by edit; None where no edit has a finite value in both. Both sequences in one order."""
    pairs = [
        a - b
        for a, b in zip(ours, theirs, strict=True)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    if not pairs:
        return None
    interval = mean_interval(pairs)
    return PairedDifference(value=interval.value, low=interval.low, high=interval.high, pairs=len(pairs))


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of finite values with its 95 % interval: the bootstrap's, the normal one for very many."""
    if len(values) < NORMAL_FROM:
        return paired_bootstrap(values, seed=BOOTSTRAP_SEED)
    array = np.asarray(values, dtype=np.float64)
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(array.std(ddof=1)) / math.sqrt(len(array))
    mean = float(array.mean())
    return Interval(value=mean, low=mean - reach, high=mean + reach)
