"""What the report shows: methods with their aggregates, records with their thumbnails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipelines.ingest.ingest import IngestSummary
from vimaedit.metrics.names import METRICS


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one record with one method. `metrics` by column: absent ones left out, NaN and infinities as they are."""

    status: str
    message: str | None
    warnings: tuple[str, ...]
    metrics: dict[str, float]
    mask: bytes | None
    edited: bytes | None


@dataclass(kw_only=True)
class Sample:
    """One record with its thumbnails; `results` by method."""

    id: str
    category: str | None
    instruction: str | None
    source_prompt: str
    target_prompt: str
    source: bytes | None = None
    reference: bytes | None = None
    target: bytes | None = None
    results: dict[str, Result] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodBoard:
    """One method: its aggregates as in `scores/<name>.json`, its `run.json`, and how many of its rows warn of what.

    `common_warnings`: texts that nearly all rows have. `without_words`: edited rows for which no words were given or found,
    `ungrounded`: those whose words gave no mask.
    """

    name: str
    scores: dict[str, Any]
    run: dict[str, Any]
    warnings: dict[str, int]
    common_warnings: tuple[str, ...]
    without_words: int
    ungrounded: int

    @property
    def seconds_per_edit(self) -> float | None:
        """What an edit took on average."""
        found: float | None = self.scores.get("seconds_per_edit")
        return found

    def mean(self, metric: str, category: str | None = None) -> dict[str, Any] | None:
        """Return a metric's mean with its interval and counts; None where there is none."""
        if category is None:
            found = self.scores["overall"].get(metric)
        else:
            found = self.scores["categories"].get(category, {}).get("metrics", {}).get(metric)
        return found if found and found["mean"] is not None else None


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything on the page. `samples` may be fewer than the `records` of the benchmark."""

    benchmark: str  # where its records lie
    ingest: IngestSummary | None
    records: int
    methods: tuple[MethodBoard, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """The metrics that any method has values of, in their order; what an exact answer settles comes before all others where
        no published figures stand beside them."""
        found = [name for name in METRICS if any(self._has_values(method, name) for method in self.methods)]
        return found if self.is_piebench else sorted(found, key=lambda name: METRICS[name].group != "scene")

    @property
    def categories(self) -> list[str]:
        """The categories in their order."""
        return sorted({name for method in self.methods for name in method.scores["categories"] if name})

    @property
    def is_piebench(self) -> bool:
        """Whether the published figures are of this benchmark's records, or of ones in its form."""
        return self.ingest is not None and self.ingest.benchmark.startswith("PIE-Bench")

    def _has_values(self, method: MethodBoard, name: str) -> bool:
        found = method.scores["overall"].get(name) or {}
        return any(found.get(kind) for kind in ("count", "nan", "infinite"))
