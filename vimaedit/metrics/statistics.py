"""What a mean over some tens or hundreds of edits is worth: intervals for shares and for paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the interval that holds the true one with the stated confidence."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of successes with Wilson's score interval (Wilson 1927), which also holds for shares near 0 and 1.

    Raises: ValueError unless 0 <= successes <= total and total > 0.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"got {successes} successes of {total}; allowed: 0 to total, of at least one")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(value=share, low=max(0.0, middle - reach), high=min(1.0, middle + reach))


def paired_bootstrap(
    differences: Sequence[float], *, seed: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """Return the mean of paired differences with the percentile interval over `resamples` draws of pairs with replacement.

    Raises: ValueError for no differences, or one that is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"differences: got {values.size}, {int((~np.isfinite(values)).sum())} not finite; allowed: finite ones"
        )
    drawn = np.random.default_rng(seed).integers(0, values.size, (resamples, values.size))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))
