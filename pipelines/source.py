"""Read one unit and bring its pictures to the canvas; a Ray Data source with one read task per unit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.context import Row, RunContext, UnitRows, to_block
from pipelines.inputs import InputFile, is_list_type, list_counts, request_counts
from pipelines.plan import Unit
from pipelines.records import image_source, parse_record, reject
from pipelines.references import fetch
from pipelines.storage import is_transient, locate, open_reader, retry_remote
from vimaedit.errors import RequestError
from vimaedit.images import clip_view, decode_image, decode_mask, fit_image, fit_mask
from vimaedit.types import Status, UInt8Array

logger = logging.getLogger(__name__)

READ_ROWS = 16  # decoded from Parquet at a time
FETCH_THREADS = 16
BUFFER_BYTES = 8 * 1024 * 1024


class UnitSource(Datasource):
    """The units of a plan as a Ray Data source."""

    def __init__(self, context: RunContext, files: Sequence[InputFile], units: Sequence[Unit]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self.files = files
        self.units = units

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Give one task per unit, whatever parallelism is asked for."""
        tasks = []
        for unit in self.units:
            file = self.files[unit.file]
            metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=(file.path,), exec_stats=None)
            tasks.append(ReadTask(functools.partial(_read_block, self.context, file, unit), metadata))
        return tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None


def _read_block(context: RunContext, file: InputFile, unit: Unit) -> Iterator[pa.Table]:
    yield to_block(read_unit(context, file, unit))


def read_unit(context: RunContext, file: InputFile, unit: Unit) -> UnitRows:
    """Read a unit's records and decode their pictures; every request of the unit gets its row, whatever is wrong with it."""
    rows: list[Row] = []
    row_of_request: list[int] = []
    try:
        if file.error is not None:
            raise pa.ArrowInvalid(file.error)
        raw = _read_rows(context, file, unit)
    except (OSError, pa.ArrowInvalid) as error:
        if is_transient(error):
            raise
        rows = _unreadable_rows(context, file, unit, error)
        return UnitRows(unit=unit, file=file, rows=rows, passed=_passed_columns(context, None, len(rows)))
    records = _records(context, raw, unit)
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        # Fetching overlaps; decoding goes record by record, so that only one full-size picture is held.
        fetched = pool.map(lambda entry: _fetch_image(context, entry.values), records)
        for entry, image in zip(records, fetched, strict=True):
            parsed = parse_record(
                entry.values,
                input_file=file.path,
                input_row=unit.first_row + entry.offset,
                first_edit=entry.first_edit,
                count=entry.count,
            )
            _add_pictures(context, parsed, entry.values, image)
            rows += parsed
            row_of_request += [entry.offset] * entry.count
    passed = _passed_columns(context, raw.take(pa.array(row_of_request, pa.int64())), len(rows))
    return UnitRows(unit=unit, file=file, rows=rows, passed=passed)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Record:
    """A raw record of a unit: its place in the unit's rows, the edits of it that belong there, its values."""

    offset: int
    first_edit: int
    count: int
    values: dict[str, Any]


def _records(context: RunContext, raw: pa.Table, unit: Unit) -> list[_Record]:
    names = {name: source for name, source in context.columns.edit.items() if source in raw.column_names}
    selected = raw.select(list(names.values())).rename_columns(list(names))
    records, left, first_edit = [], unit.take, unit.first_edit
    for offset, count in enumerate(_row_counts(context, raw)):
        take = min(int(count) - first_edit, left)
        values = selected.slice(offset, 1).to_pylist()[0]
        records.append(_Record(offset=offset, first_edit=first_edit, count=take, values=values))
        left, first_edit = left - take, 0
    return records


def _row_counts(context: RunContext, raw: pa.Table) -> NDArray[np.int64]:
    target = context.columns.edit["target_prompt"]
    if target in raw.column_names and is_list_type(raw.schema.field(target).type):
        return list_counts(raw.column(target).combine_chunks())
    return np.ones(raw.num_rows, dtype=np.int64)


def _read_rows(context: RunContext, file: InputFile, unit: Unit) -> pa.Table:
    """Read the rows that hold the first `take` requests of a unit, from the row groups where they lie."""
    place = locate(context.input_root) / file.path

    def read() -> pa.Table:
        with open_reader(place) as stream:
            parquet = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            lengths = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            starts = np.cumsum([0, *lengths])
            # A row holds one request at least, so the unit lies within `take` rows.
            first, last = unit.first_row, unit.first_row + unit.take - 1
            groups = [group for group, length in enumerate(lengths) if starts[group] <= last and starts[group] + length > first]
            skip = first - int(starts[groups[0]]) if groups else 0
            needed, found = unit.first_edit + unit.take, 0
            parts: list[pa.Table] = []
            for batch in parquet.iter_batches(batch_size=READ_ROWS, row_groups=groups):
                part = pa.Table.from_batches([batch]).slice(skip)
                skip = max(0, skip - batch.num_rows)
                ends = found + np.cumsum(_row_counts(context, part))
                parts.append(part.slice(0, int(np.searchsorted(ends, needed)) + 1))
                found = int(ends[-1]) if len(ends) else found
                if found >= needed:
                    return pa.concat_tables(parts)
        raise pa.ArrowInvalid(f"the file ends after {found} of {needed} requests from row {unit.first_row} on")

    return retry_remote(place, read)


def _unreadable_rows(context: RunContext, file: InputFile, unit: Unit, error: Exception) -> list[Row]:
    if unit.first_row < 0:
        stage, positions = "plan", [(-1, 0)]
    else:
        stage, positions = "read", _positions(context, file, unit)
    rows = []
    for input_row, edit_index in positions:
        label = f"{file.path}#{input_row}"
        row = Row(id=label, edit_index=edit_index, input_file=file.path, input_row=input_row)
        reject(
            row,
            stage,
            RequestError("unreadable_file", field="input", got=f"{file.path}: {error}", allowed="a whole Parquet file"),
        )
        rows.append(row)
    return rows


def _positions(context: RunContext, file: InputFile, unit: Unit) -> list[tuple[int, int]]:
    """Name row and edit of each request of a unit whose records cannot be read."""
    if not file.target_is_list:
        return [(unit.first_row + offset, 0) for offset in range(unit.take)]
    counts = request_counts(locate(context.input_root) / file.path, context.columns.edit["target_prompt"])
    positions: list[tuple[int, int]] = []
    row, edit = unit.first_row, unit.first_edit
    while len(positions) < unit.take:
        positions.append((row, edit))
        row, edit = (row, edit + 1) if edit + 1 < counts[row] else (row + 1, 0)
    return positions


def _passed_columns(context: RunContext, raw: pa.Table | None, count: int) -> pa.Table:
    columns = {}
    for name, source in context.columns.passed.items():
        kind = context.schema.field(name).type
        if raw is None or source not in raw.column_names:
            columns[name] = pa.nulls(count, kind)
        else:
            columns[name] = raw.column(source).cast(kind)
    return pa.table(columns)


def _fetch_image(context: RunContext, values: dict[str, Any]) -> bytes | Exception:
    try:
        source = image_source(values.get("image"), "image")
        return fetch(source, context.reference_rules) if isinstance(source, str) else source
    except Exception as error:  # becomes the row's error: nothing a record names may end the run
        return error


def _add_pictures(context: RunContext, rows: Sequence[Row], values: dict[str, Any], image: bytes | Exception) -> None:
    """Decode the picture and mask of a record once for all its edits. Rows rejected before keep their reason."""
    path = values["image"].get("path") if isinstance(values.get("image"), dict) else values.get("image")
    path = path if isinstance(path, str) else None
    try:
        if isinstance(image, Exception):
            raise image
        original = decode_image(image, min_side_px=context.job.min_side_px, max_pixels=context.job.max_pixels)
    except Exception as error:
        stage = "decode" if isinstance(image, bytes) else "fetch"
        for row in rows:
            row.image_path = path
            _stop(row, stage, error)
        return
    height, width = original.shape[:2]
    fitted = fit_image(original, context.canvas)
    shared: dict[str, Any] = {"canvas": fitted.image, "crop_box": fitted.crop_box, "original_size": (width, height)}
    shared["clip_image"] = clip_view(original, context.facts.clip_side)
    shared["original"] = image if context.job.frame == "original" else None
    shared["image_path"] = path
    for row in rows:
        for name, value in shared.items():
            setattr(row, name, value)
    if context.job.grounding == "given":
        _add_mask(context, rows, values, original, fitted.crop_box)


def _add_mask(
    context: RunContext, rows: Sequence[Row], values: dict[str, Any], original: UInt8Array, crop_box: tuple[int, int, int, int]
) -> None:
    try:
        value = values.get("given_mask")
        if value is None:
            raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")
        data = image_source(value, "given_mask")
        if isinstance(data, str):
            raise RequestError(
                "wrong_type", field="given_mask", got=f"the path {data!r}", allowed="binary, or {bytes, path} with bytes"
            )
        mask = decode_mask(data, max_pixels=context.job.max_pixels)
        size = (original.shape[1], original.shape[0])
    except Exception as error:
        for row in rows:
            _stop(row, "decode", error)
        return
    for row in rows:
        assert row.canvas is not None
        row.given_mask = fit_mask(mask, size, crop_box, row.canvas.shape[:2])


def _stop(row: Row, stage: str, error: Exception) -> None:
    if row.status is not None:
        return
    if isinstance(error, RequestError):
        reject(row, stage, error)
    else:
        logger.warning("record %r: %s: %s", row.id, type(error).__name__, error)
        row.stop(Status.FAILED, stage, type(error).__name__, f"record {row.id!r}: image: {type(error).__name__}: {error}")
