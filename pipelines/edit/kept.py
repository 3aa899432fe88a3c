"""Rows that are done again: which of a unit's rows stay as they are, and how the new ones come among them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.edit.blocks import UnitRows
from pipelines.edit.write import encode_unit
from pipelines.output.context import RunContext
from pipelines.output.parts import find_damage, part_name, read_part
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from pipelines.store.location import locate
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import read_table
from vimaedit.types import EditResult, Status

logger = logging.getLogger(__name__)

IDENTITY = ("input_row", "edit_index", "status")


def keep_finished_rows(context: RunContext, unit: Unit, rows: Sequence[Row]) -> None:
    """Mark the rows of a unit that are not to be done again: they get their status from the output, and no edit.

    Where the output has no part of this unit, a broken one, or one of another number of rows, every row is done.
    """
    output = locate(context.job.output)
    part = read_part(output, unit.id, context.plan_digest)
    if part is None or part.rows != len(rows):
        return
    if (damage := find_damage(output, unit.id)) is not None:
        logger.warning("%s is broken (%s): all its rows are done again", part_name(unit.id), damage)
        return
    # Ray may take up a unit again whose part has been written just before: then nothing is left to do.
    redone = context.retry_statuses if part.generation < context.generation else ()
    table = read_table(output / "data" / part_name(unit.id), IDENTITY)
    for row, found in zip(rows, table.to_pylist(), strict=True):
        assert (found["input_row"], found["edit_index"]) == (row.input_row, row.edit_index)
        if found["status"] not in redone:
            row.result, row.is_kept = EditResult(id=row.id, status=Status(found["status"])), True
            row.request = None


def with_kept_rows(context: RunContext, unit_rows: UnitRows) -> pa.Table:
    """Build the output table of a unit of which some rows stay as they stand in the output, byte for byte.

    Raises: RuntimeError where the part is another one than when the unit was read.
    """
    place = locate(context.job.output) / "data" / part_name(unit_rows.unit.id)
    old = read_table(place)
    kept = [row.is_kept for row in unit_rows.rows]
    expected = [str(row.status) for row in unit_rows.rows if row.is_kept]
    found = old.filter(pa.array(kept)).column("status").to_pylist() if old.num_rows == len(kept) else None
    if found != expected or not old.schema.equals(context.schema):
        raise RuntimeError(f"{mask_urls(place.url)}: was replaced while rows of it were done again; allowed: one run at a time")
    redone = np.flatnonzero(~np.array(kept))
    new = encode_unit(
        context,
        dataclasses.replace(
            unit_rows, rows=[row for row in unit_rows.rows if not row.is_kept], passed=unit_rows.passed.take(pa.array(redone))
        ),
    )
    order = np.arange(len(kept))
    order[redone] = len(kept) + np.arange(len(redone))
    # Parquet names what lists hold in its own way.
    return pa.concat_tables([old.cast(context.schema), new]).take(pa.array(order))
