"""A unit's part of the output: one Parquet object under a name that follows from the plan, whose footer says what it is."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from pipelines.cluster.losses import Losses, count_losses, losses_from_json, losses_to_json
from pipelines.output.context import RunContext
from pipelines.records.schema import IMAGE_COLUMNS
from pipelines.store.location import Location, is_transient, list_files
from pipelines.store.parquet import (
    BROKEN_CONTENT,
    READ_ROWS,
    BrokenParquet,
    leaf_names,
    open_writer,
    read_batches,
    read_footer,
    write_groups,
)

FOOTER_KEY = b"vimaedit"
OUTCOME = ("status", "error_type", "error_message")  # columns
FOOTER_THREADS = 32
SHOWN_FOREIGN = 3
REMEDY = "remove it, then jobs.edit with the same options edits its unit again"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the footer of a unit's object says."""

    unit: str
    generation: int
    rows: int
    counts: dict[str, int]
    losses: Losses = field(default_factory=dict)


def read_parts(output: Location, units: Iterable[str], plan_digest: str) -> dict[str, Part]:
    """Read the footers of those units' parts that are there, by unit. What is not of this plan is as if it were not there."""
    present = {name for name, _ in list_files(output / "data", ".parquet")}
    there = [unit for unit in units if part_name(unit) in present]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        parts = pool.map(lambda unit: read_part(output, unit, plan_digest), there)
        return {part.unit: part for part in parts if part is not None}


def read_part(output: Location, unit: str, plan_digest: str) -> Part | None:
    """Read the footer of a unit's part; None where there is none of this plan and unit, or a broken one."""
    try:
        metadata = read_footer(output / "data" / part_name(unit))
        footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
        if footer["plan_digest"] != plan_digest or footer["unit"] != unit:
            return None
        return Part(
            unit=unit,
            generation=footer["generation"],
            rows=metadata.num_rows,
            counts=footer["counts"],
            losses=losses_from_json(footer.get("losses")),
        )
    except (BrokenParquet, KeyError, TypeError, ValueError):
        return None


def find_damage(output: Location, unit: str) -> str | None:
    """Read a unit's part whole, against the checksums of its pages; say what is wrong with it, None where nothing is.

    Raises: the infrastructure's errors, after retries.
    """
    try:
        for _ in read_batches(output / "data" / part_name(unit), rows=READ_ROWS):
            pass
    except BROKEN_CONTENT as error:
        if is_transient(error):
            raise
        return str(error).strip() or type(error).__name__
    return None


def find_foreign(output: Location, units: Iterable[str]) -> list[str]:
    """Name the files among a run's parts that are those of none of its units: readers of the folder would take them for results."""
    own = {part_name(unit) for unit in units}
    return [name for name, _ in list_files(output / "data") if name not in own]


def foreign_text(names: Sequence[str]) -> str:
    """Say in a warning what else lies among a run's parts."""
    more = f" and {len(names) - SHOWN_FOREIGN} more" if len(names) > SHOWN_FOREIGN else ""
    return (
        f"data/ holds {', '.join(map(repr, names[:SHOWN_FOREIGN]))}{more}, no part of this run: readers of the folder take it for "
        "results, so move it elsewhere"
    )


def part_name(unit_id: str) -> str:
    """Name the object of a unit."""
    return f"part-{unit_id}.parquet"


def part_bytes(context: RunContext, unit_id: str, table: pa.Table) -> bytes:
    """Code a unit's table as Parquet. The footer says which plan, unit and generation it belongs to, and counts statuses and errors."""
    footer = {
        "plan_digest": context.plan_digest,
        "unit": unit_id,
        "generation": context.generation,
        "counts": dict(Counter(table.column("status").to_pylist())),
    }
    if losses := count_losses(zip(*(table.column(name).to_pylist() for name in OUTCOME), strict=True)):
        footer["losses"] = losses_to_json(losses)
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), FOOTER_KEY: json.dumps(footer).encode()})
    buffer = io.BytesIO()
    with open_result_writer(buffer, schema) as writer:
        write_groups(writer, [table])
    return buffer.getvalue()


def open_result_writer(target: Any, schema: pa.Schema, pictures: Sequence[str] = IMAGE_COLUMNS) -> ParquetWriter:
    """Open a writer of result rows, with a page index: the `pictures` that were coded here, which no compression makes smaller, as they
    are, everything else compressed, whatever somebody's columns say that they hold."""
    leaves = leaf_names(schema)
    pictures = [f"{name}.bytes" for name in pictures]
    return open_writer(
        target,
        schema,
        compression={leaf: "NONE" if leaf in pictures else "ZSTD" for leaf in leaves},
        use_dictionary=[leaf for leaf in leaves if leaf not in pictures],
        write_page_index=True,
    )
