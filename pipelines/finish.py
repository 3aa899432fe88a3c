"""The end of a run: count what was written, say so in the output, and mark it complete last."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import EditJobConfig
from pipelines.context import RunContext
from pipelines.plan import Unit
from pipelines.secrets import mask_urls
from pipelines.sink import FOOTER_KEY, part_name
from pipelines.storage import Location, open_reader, put_atomic, retry_remote
from pipelines.text import without_secrets
from vimaedit.types import Status

FOOTER_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the footer of a unit's object says."""

    unit: str
    generation: int
    rows: int
    counts: dict[str, int]


def read_parts(output: Location, units: Sequence[Unit], plan_digest: str) -> list[Part]:
    """Read the footers of all units.

    Raises: RuntimeError where one does not hold the rows that were planned; FileNotFoundError where one is missing.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(lambda unit: _read_part(output, unit, plan_digest), units))


def exit_code(job: EditJobConfig, counts: dict[str, int]) -> int:
    """Judge a finished run: 0, or 3 where too many rows failed or were rejected."""
    total = max(1, sum(counts.values()))
    failed = counts.get(Status.FAILED, 0) + counts.get(Status.QUARANTINED, 0)
    too_many_rejected = counts.get(Status.REJECTED, 0) > job.max_rejected_fraction * total
    return 3 if failed > job.max_failed_fraction * total or too_many_rejected else 0


def write_manifest(output: Location, parts: Sequence[Part]) -> None:
    """Write `manifest.parquet`: unit, generation, rows and the counts per status."""
    columns: dict[str, Any] = {
        "unit": pa.array([part.unit for part in parts], pa.string()),
        "generation": pa.array([part.generation for part in parts], pa.int32()),
        "rows": pa.array([part.rows for part in parts], pa.int64()),
    }
    for status in Status:
        columns[str(status)] = pa.array([part.counts.get(status, 0) for part in parts], pa.int64())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    put_atomic(output / "manifest.parquet", buffer.getvalue())


def write_run(output: Location, context: RunContext, facts: dict[str, Any]) -> None:
    """Write `run.json`: the resolved configuration, digests, versions, counts and timings; no credentials."""
    content = {
        "config": dataclasses.asdict(context.job),
        "config_digest": context.config_digest,
        "model": context.job.model,
        "model_digest": context.model_digest,
        "model_warning": context.facts.warning,
        "plan_digest": context.plan_digest,
        "version": context.version,
        "batch_size": context.batch_size,
        "threads": context.threads,
        **facts,
    }
    put_atomic(output / "run.json", json.dumps(without_secrets(content), indent=2).encode())


def write_success(output: Location) -> None:
    """Mark the output complete."""
    put_atomic(output / "_SUCCESS", b"")


def write_interrupted(output: Location, signal_name: str) -> None:
    """Note that a signal ended the run. Small and quick, for a signal handler; nothing depends on it."""
    output.fs.makedirs((output / "state").path, exist_ok=True)
    output.fs.pipe_file((output / "state" / "interrupted.json").path, json.dumps({"signal": signal_name}).encode())


def count_statuses(parts: Sequence[Part]) -> dict[str, int]:
    """Add up the parts' counts: every status, also those with no row."""
    total: Counter[str] = Counter({str(status): 0 for status in Status})
    for part in parts:
        total.update(part.counts)
    return dict(total)


def _read_part(output: Location, unit: Unit, plan_digest: str) -> Part:
    place = output / "data" / part_name(unit.id)

    def read() -> tuple[int, dict[bytes, bytes]]:
        with open_reader(place) as stream:
            metadata = pq.read_metadata(stream)
            return metadata.num_rows, metadata.metadata or {}

    rows, metadata = retry_remote(place, read)
    footer = json.loads(metadata.get(FOOTER_KEY, b"{}"))
    if rows != unit.take or footer.get("plan_digest") != plan_digest or footer.get("unit") != unit.id:
        raise RuntimeError(
            f"{mask_urls(place.url)}: got {rows} rows of plan {footer.get('plan_digest')}, unit {footer.get('unit')}; "
            f"expected {unit.take} rows of plan {plan_digest}, unit {unit.id}"
        )
    return Part(unit=unit.id, generation=footer["generation"], rows=rows, counts=footer["counts"])
