"""Which edit stands at which place of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from vimaedit.scenes.edits import CATEGORIES, CATEGORY_WEIGHTS
from vimaedit.scenes.scenes import SPLIT_SEEDS

MAX_COUNT = 2**32  # records of one benchmark
MAX_SEED = 2**60 // MAX_COUNT - 1


def benchmark_seed(split: str, seed: int, index: int) -> int:
    """Return the seed of a record's edit; no two records of any benchmark share one.

    `seed` is the benchmark's, 0 to `MAX_SEED`; `index` the record's, below `MAX_COUNT`.
    """
    return SPLIT_SEEDS[split].start + seed * MAX_COUNT + index


def spread_categories(count: int, categories: Sequence[str]) -> list[str]:
    """Return the category of each record: in PIE-Bench's proportions and evenly mixed, so that any beginning is a fair sample."""
    weights = {name: weight for name, weight in zip(CATEGORIES, CATEGORY_WEIGHTS, strict=True) if name in categories}
    total = sum(weights.values())
    given = dict.fromkeys(weights, 0)
    spread = []
    for n in range(count):
        # Whichever lies furthest behind its share.
        name = max(weights, key=lambda name: (n + 1) * weights[name] - given[name] * total)
        given[name] += 1
        spread.append(name)
    return spread
