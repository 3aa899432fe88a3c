"""Write finished units: one Parquet object each, whole or not at all, under a name that follows from the plan."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.datasource import Datasink

from pipelines.context import RunContext, from_block
from pipelines.encoding import encode_unit
from pipelines.schema import image_leaves
from pipelines.storage import locate, put_atomic

GROUP_ROWS = 100
GROUP_BYTES = 100_000_000
FOOTER_KEY = b"vimaedit"


class UnitSink(Datasink[dict[str, Any]]):
    """Encodes and writes units. Writing one again replaces its object by an equal one, so a retry does no harm."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write every unit among the blocks; only the number of rows goes back to the driver."""
        rows = 0
        for block in blocks:
            for unit_rows in from_block(block):
                table = encode_unit(self.context, unit_rows)
                name = part_name(unit_rows.unit.id)
                put_atomic(locate(self.context.job.output) / "data" / name, part_bytes(self.context, unit_rows.unit.id, table))
                rows += table.num_rows
        return {"rows": rows}


def part_name(unit_id: str) -> str:
    """Name the object of a unit."""
    return f"part-{unit_id}.parquet"


def part_bytes(context: RunContext, unit_id: str, table: pa.Table) -> bytes:
    """Code a unit's table as Parquet. The footer says which plan, unit and generation it belongs to, and counts statuses."""
    footer = {
        "plan_digest": context.plan_digest,
        "unit": unit_id,
        "generation": context.generation,
        "counts": dict(Counter(table.column("status").to_pylist())),
    }
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), FOOTER_KEY: json.dumps(footer).encode()})
    buffer = io.BytesIO()
    leaves = _leaf_names(schema)
    pictures = image_leaves(schema)
    writer = pq.ParquetWriter(
        buffer,
        schema,
        compression={leaf: "NONE" if leaf in pictures else "ZSTD" for leaf in leaves},
        use_dictionary=[leaf for leaf in leaves if leaf not in pictures],
        write_page_index=True,
    )
    with writer:
        for group in row_groups(table):
            writer.write_table(group.replace_schema_metadata(schema.metadata), row_group_size=max(1, group.num_rows))
    return buffer.getvalue()


def row_groups(table: pa.Table, max_rows: int = GROUP_ROWS, max_bytes: int = GROUP_BYTES) -> Iterator[pa.Table]:
    """Cut a table into row groups of at most `max_rows` rows and `max_bytes` bytes, one row at least."""
    start, size = 0, 0
    for row in range(table.num_rows):
        own = table.slice(row, 1).nbytes
        if row > start and (row - start == max_rows or size + own > max_bytes):
            yield table.slice(start, row - start)
            start, size = row, 0
        size += own
    if table.num_rows > start:
        yield table.slice(start)


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Name the Parquet columns that a schema becomes."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(buffer).schema
    return [columns.column(index).path for index in range(len(columns))]
