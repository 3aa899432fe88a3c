"""Metrics of a run, in the form that Ray exports to Prometheus with the prefix `ray_`."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SECONDS_BOUNDARIES = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: `kind` is counter, gauge or histogram; `tags` are the labels it is recorded with, beside Ray's own."""

    name: str
    kind: str
    description: str
    tags: tuple[str, ...] = ()


EDITS = Metric(
    name="vimaedit_edits_total",
    kind="counter",
    description="Edits that an actor has finished, by status; work that is redone counts again",
    tags=("status",),
)
SECONDS_PER_EDIT = Metric(
    name="vimaedit_seconds_per_edit",
    kind="histogram",
    description="Seconds of a batch divided by its edits",
)
BATCH_SIZE = Metric(name="vimaedit_batch_size", kind="gauge", description="Edits in the actor's latest batch, holes left out")
GPU_MEMORY = Metric(
    name="vimaedit_gpu_memory_bytes",
    kind="gauge",
    description="Most GPU memory that the actor's process has reserved so far",
)
ROWS_LEFT = Metric(name="vimaedit_rows_left", kind="gauge", description="Rows of the run that no actor has finished yet")


def observe_batch(statuses: Sequence[str], seconds: float, batch_size: int) -> None:
    """Record one finished batch of an editing actor; call it in the actor's process, once per batch.

    `statuses` of the rows that are finished with it (rows stopped while reading among them), the `seconds` it took, and its
    `batch_size`: how many of its slots were edited. A batch without any edit counts its rows and nothing else.
    """
    for status, count in Counter(statuses).items():
        _meter(EDITS).inc(count, tags={"status": status})
    if batch_size:
        _meter(SECONDS_PER_EDIT).observe(seconds / batch_size)
        _meter(BATCH_SIZE).set(batch_size)
        observe_gpu_memory()


def observe_gpu_memory() -> None:
    """Record the most GPU memory that this process has reserved; nothing where it has not used CUDA."""
    torch = sys.modules.get("torch")  # a process that has not loaded it holds no GPU memory, and loading takes seconds
    if torch is not None and torch.cuda.is_initialized():
        _meter(GPU_MEMORY).set(torch.cuda.max_memory_reserved())


def observe_rows_left(rows: int) -> None:
    """Record how many rows of a run wait or are in work; call it where they are counted, in one process of the run."""
    _meter(ROWS_LEFT).set(rows)


@functools.cache
def _meter(metric: Metric) -> Any:
    """Create a metric at its first use, in the process that records it."""
    from ray.util import metrics

    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, metric.tags)
    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.description, SECONDS_BOUNDARIES, metric.tags)
    return metrics.Gauge(metric.name, metric.description, metric.tags)
