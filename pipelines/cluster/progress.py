"""How far a run is, as callers are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.cluster.losses import Losses


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Rows done in this attempt of `total`, by status, and why some got no edit."""

    done: int
    total: int
    counts: dict[str, int]
    losses: Losses = field(default_factory=dict, compare=False)


ProgressCallback = Callable[[ProgressState], None]
