"""The memory of a run's processes on this machine, and whether it grows with the rows that are done."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vimaedit.performance.process import descendants, private_mb, process_name

WARM_SHARE = 0.2  # of the rows; caches fill up to there


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """Memory that processes hold alone, MB, when `rows` were edited: of the driver, of all editing actors, of all other workers."""

    rows: int
    driver_mb: float
    actors_mb: float
    workers_mb: float


def memory_sample(rows: int, actors: Collection[int]) -> MemorySample:
    """Look at this process, the editing `actors` and what else works for it."""
    others = [each for each in descendants(os.getpid()) if each not in actors and process_name(each).startswith("ray::")]
    return MemorySample(
        rows=rows,
        driver_mb=private_mb(os.getpid()),
        actors_mb=sum(private_mb(each) for each in actors),
        workers_mb=sum(private_mb(each) for each in others),
    )


def growth_mb(samples: Sequence[MemorySample], name: str) -> float | None:
    """Return by how many MB a column of the samples grows with 1000 rows, once the run is warm: a straight line's slope. None for too few."""
    last = samples[-1].rows
    warm = [each for each in samples if WARM_SHARE * last <= each.rows < last]
    rows, values = np.array([each.rows for each in warm]), np.array([getattr(each, name) for each in warm])
    return float(1000 * np.polyfit(rows, values, 1)[0]) if len({*rows.tolist()}) > 1 else None
