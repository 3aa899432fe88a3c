"""The end of a run: count what was written, and say so in the output."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.exits import EXIT_DONE, EXIT_LOSSES
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.parts import Part
from pipelines.store.location import Location, put_json, read_json
from pipelines.store.parquet import put_table
from vimaedit.types import Status

RUN_FILE = "run.json"
RUN_FIELDS = {  # those that are read again
    **dict.fromkeys(("config", "counts"), dict),
    **dict.fromkeys(("plan_digest", "model_digest"), str),
    **dict.fromkeys(("exit_code", "rows", "units"), int),
}


def judge(job: EditJobConfig, counts: Mapping[str, int]) -> tuple[int, str | None]:
    """Judge a finished run: 0, or 3 where too many rows failed or were rejected, and why."""
    total = sum(counts.values())
    failed = counts.get(Status.FAILED, 0) + counts.get(Status.QUARANTINED, 0)
    rejected = counts.get(Status.REJECTED, 0)
    reasons = [
        f"{count} of {total} rows {what}, more than {name}={fraction:g}"
        for count, what, name, fraction in (
            (failed, "failed or were quarantined", "max_failed_fraction", job.max_failed_fraction),
            (rejected, "were rejected", "max_rejected_fraction", job.max_rejected_fraction),
        )
        if count > fraction * total
    ]
    return (EXIT_LOSSES, "; ".join(reasons)) if reasons else (EXIT_DONE, None)


def write_manifest(output: Location, parts: Sequence[Part]) -> None:
    """Write `manifest.parquet`: unit, generation, rows and the counts per status."""
    columns: dict[str, Any] = {
        "unit": pa.array([part.unit for part in parts], pa.string()),
        "generation": pa.array([part.generation for part in parts], pa.int32()),
        "rows": pa.array([part.rows for part in parts], pa.int64()),
    }
    for status in Status:
        columns[str(status)] = pa.array([part.counts.get(status, 0) for part in parts], pa.int64())
    put_table(output / "manifest.parquet", pa.table(columns))


def write_run(output: Location, context: RunContext, facts: dict[str, Any]) -> None:
    """Write `run.json`: the resolved configuration, digests, versions, counts and timings; no credentials."""
    content = {
        "config": dataclasses.asdict(context.job),
        "config_digest": context.config_digest,
        "model": context.job.model,
        "family": context.facts.family,
        "model_digest": context.model_digest,
        "model_warning": context.facts.warning,
        "model_batches": context.facts.batches,
        "plan_digest": context.plan_digest,
        "generation": context.generation,
        "version": context.version,
        "batch_size": context.batch_size,
        "threads": context.threads,
        **facts,
    }
    put_json(output / RUN_FILE, content)


def read_run(output: Location) -> dict[str, Any] | None:
    """Read what the last finished run said of itself; None where none has finished.

    Raises: Damaged where that is not what was written.
    """
    return read_json(output / RUN_FILE, RUN_FIELDS, "jobs.edit with the same options writes it anew")


def count_statuses(parts: Iterable[Part]) -> dict[str, int]:
    """Add up the parts' counts: every status, also those with no row."""
    total: Counter[str] = Counter({str(status): 0 for status in Status})
    for part in parts:
        total.update(part.counts)
    return dict(total)
