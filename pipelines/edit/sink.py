"""Write finished units: one Parquet object each, whole or not at all, under a name that follows from the plan."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data.datasource import Datasink

from pipelines.cluster.logs import about, fields, start_worker
from pipelines.edit.blocks import UnitRows, from_block
from pipelines.edit.kept import with_kept_rows
from pipelines.edit.write import encode_unit
from pipelines.output.context import RunContext
from pipelines.output.parts import part_bytes, part_name
from pipelines.store.location import locate, put_atomic

logger = logging.getLogger(__name__)


class UnitSink(Datasink[dict[str, Any]]):
    """Encodes and writes units. Writing one again replaces its object by an equal one, so a retry does no harm."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write every unit among the blocks; only the number of rows goes back to the driver."""
        start_worker(*self.context.log_names)
        rows = 0
        for block in blocks:
            for unit_rows in from_block(block):
                with about(unit_rows.unit.id, unit_rows.file.path):
                    rows += self._write(unit_rows)
        return {"rows": rows}

    def _write(self, unit_rows: UnitRows) -> int:
        started = time.perf_counter()
        if any(row.is_kept for row in unit_rows.rows):
            table = with_kept_rows(self.context, unit_rows)
        else:
            table = encode_unit(self.context, unit_rows)
        data = part_bytes(self.context, unit_rows.unit.id, table)
        put_atomic(locate(self.context.job.output) / "data" / part_name(unit_rows.unit.id), data)
        told = fields("unit_written", rows=table.num_rows, bytes=len(data), seconds=time.perf_counter() - started)
        logger.info("unit written", extra=told)
        rows: int = table.num_rows
        return rows
