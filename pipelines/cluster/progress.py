"""How far a run is, as callers are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Rows done in this attempt of `total`, by status."""

    done: int
    total: int
    counts: dict[str, int]


ProgressCallback = Callable[[ProgressState], None]
