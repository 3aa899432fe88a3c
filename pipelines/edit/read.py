"""Read one unit and bring its pictures to the canvas; a Ray Data source with one read task per unit."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.cluster.logs import about, fields, start_worker
from pipelines.edit.blocks import UnitRows, to_block
from pipelines.edit.kept import keep_finished_rows
from pipelines.edit.riding import add_references
from pipelines.output.context import RunContext
from pipelines.output.plan import Unit
from pipelines.records.parse import has_blends_per_target, parse_record
from pipelines.records.pictures import decode_picture, fetch_picture, find_picture
from pipelines.records.read import Rows, read_rows
from pipelines.records.row import Row
from pipelines.records.scan import InputFile, list_counts, request_counts
from pipelines.records.types import to_written
from pipelines.records.values import read_record
from pipelines.store.fetch import ReferenceRules, known_size
from pipelines.store.location import locate
from vimaedit.errors import RequestError
from vimaedit.seeds import derive_seed
from vimaedit.types import Status

logger = logging.getLogger(__name__)

FETCH_THREADS = 16
FETCHED_AHEAD = 2 * FETCH_THREADS  # pictures fetched and not yet decoded
FETCHED_BYTES = 256 * 1024 * 1024  # of them together, or one
TAKE_BYTES = 256 * 1024 * 1024  # an Arrow array of texts or binaries holds less than 2 GiB


class UnitSource(Datasource):
    """The units of a plan as a Ray Data source."""

    def __init__(self, context: RunContext, files: Sequence[InputFile], units: Sequence[Unit]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = ray.put(context)  # once, and not with every one of perhaps a hundred thousand tasks
        self.files = files
        self.units = units

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Give one task per unit, whatever parallelism is asked for."""
        tasks = []
        for unit in self.units:
            files = unit.files_of(self.files)
            paths = tuple(file.path for file in files)
            metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=paths, exec_stats=None)
            tasks.append(ReadTask(functools.partial(_read_block, self.context, files, unit), metadata))
        return tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None


def _read_block(context: Any, files: Sequence[InputFile], unit: Unit) -> Iterator[pa.Table]:
    settled: RunContext = ray.get(context)
    start_worker(*settled.log_names)
    with about(unit.id, files[0].path):
        started = time.perf_counter()
        read = read_unit(settled, files, unit)
        stopped = sum(row.status is not None for row in read.rows)
        told = fields("unit_read", rows=len(read.rows), stopped=stopped, seconds=time.perf_counter() - started)
        logger.info("unit read", extra=told)
    yield to_block(read)


def read_unit(context: RunContext, files: Sequence[InputFile], unit: Unit) -> UnitRows:
    """Read the records of a unit from its files and decode their pictures; every request of it gets its row, whatever is wrong.

    Raises: RuntimeError where the file is not there, or not the planned one; the infrastructure's errors, after retries.
    """
    if files[0].error is not None:
        unplanned = _unreadable_rows(context, files[0], [(-1, 0)], "plan", files[0].error)
        if unit.generation > 1:
            keep_finished_rows(context, unit, unplanned)
        return UnitRows(unit=unit, file=files[0], rows=unplanned, passed=_no_passed(context, 1))
    rules = context.record_rules
    rows: list[Row] = []
    passed: list[pa.Table] = []
    kept: dict[bytes, bytes] = {}  # coded pictures that rows hold, each once
    with ThreadPoolExecutor(FETCH_THREADS) as pool, closing(_Gate(context.reference_rules, pool)) as gate:
        for record, image in _with_pictures(gate, _records(context, files, unit, passed)):
            if isinstance(record, list):
                rows += record
                continue
            assert image is not None
            if rules.keeps_coded and isinstance(image, bytes):
                image = kept.setdefault(image, image)
            rows += parse_record(
                rules,
                record.values,
                decode_picture(rules, record.values, image),
                blends_per_target=record.blends_per_target,
                input_file=record.file,
                input_row=record.row,
                first_edit=record.first_edit,
                count=record.count,
            )
    assert len(rows) == unit.take
    if context.job.canvas.fit == "keep":
        _warn_of_unknown_shapes(rows)
    if unit.generation > 1:
        keep_finished_rows(context, unit, rows)
    table = pa.concat_tables(passed)
    if context.job.riding:
        add_references(rows, table)
    return UnitRows(unit=unit, file=files[0], rows=rows, passed=table)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Record:
    """A raw record: its file and its row there, the edits of it that belong to the unit, its values."""

    file: str
    row: int
    first_edit: int
    count: int
    values: dict[str, Any]
    blends_per_target: bool


def _records(
    context: RunContext, files: Sequence[InputFile], unit: Unit, passed: list[pa.Table]
) -> Iterator[_Record | list[Row]]:
    """Yield the records of a unit, and finished rows in the place of those that cannot be read.

    Their passed-through columns are appended to `passed`, so that nothing else of the files is kept.
    """
    left, first_row, first_edit = unit.take, unit.first_row, unit.first_edit
    for file in files:
        for count, found in _file_records(context, file, first_row, first_edit, left, passed):
            left -= count
            yield from found
        if left == 0:
            return
        first_row = first_edit = 0


def _file_records(
    context: RunContext, file: InputFile, first_row: int, first_edit: int, left: int, passed: list[pa.Table]
) -> Iterator[tuple[int, Iterable[_Record | list[Row]]]]:
    """Yield the next records of a file, a few at a time, as `_records` does, of `left` requests at most; and how many these are."""
    with closing(read_rows(context.input_root, file, first_row, context.int96)) as source:
        for rows in source:
            counts = _request_counts(context, file, rows)
            counts[0] -= first_edit
            ends = np.minimum(np.cumsum(counts), left)
            taken = np.diff(ends, prepend=0)
            if isinstance(rows.content, Exception):
                positions = [
                    (rows.first + offset, edit + (first_edit if offset == 0 else 0))
                    for offset, count in enumerate(taken)
                    for edit in range(count)
                ]
                passed.append(_no_passed(context, len(positions)))
                yield int(ends[-1]), [_unreadable_rows(context, file, positions, "read", rows.content)]
            else:
                passed.append(_passed(context, rows.content, np.repeat(np.arange(rows.count), taken)))
                yield int(ends[-1]), _split(context, file, rows.first, rows.content, taken, first_edit)
            left, first_edit = left - int(ends[-1]), 0
            if left == 0:
                return


def _request_counts(context: RunContext, file: InputFile, rows: Rows) -> NDArray[np.int64]:
    if not file.target_is_list:
        return np.ones(rows.count, dtype=np.int64)
    target = context.columns.edit["target_prompt"]
    if isinstance(rows.content, Exception):
        counts = request_counts(locate(context.input_root) / file.path, target)
        return counts[rows.first : rows.first + rows.count].astype(np.int64)
    return list_counts(rows.content.column(target))


def _split(
    context: RunContext, file: InputFile, first_row: int, batch: pa.RecordBatch, taken: NDArray[np.int64], first_edit: int
) -> Iterator[_Record]:
    present = set(batch.schema.names)
    columns = {name: batch.column(source) for name, source in context.columns.edit.items() if source in present}
    instruction = context.columns.passed.get("instruction")
    if instruction in present:
        columns["instruction"] = batch.column(instruction)
    blends_per_target = "blend_words" in columns and has_blends_per_target(columns["blend_words"].type)
    for offset in range(int(np.count_nonzero(taken))):  # a record has one request at least
        yield _Record(
            file=file.path,
            row=first_row + offset,
            first_edit=first_edit if offset == 0 else 0,
            count=int(taken[offset]),
            values=read_record(columns, offset),
            blends_per_target=blends_per_target,
        )


def _with_pictures(
    gate: _Gate, records: Iterator[_Record | list[Row]]
) -> Iterator[tuple[_Record | list[Row], bytes | Exception | None]]:
    """Give every record its picture. Fetching overlaps, a few pictures ahead; those in the file itself are taken as they come."""
    waiting: deque[tuple[_Record | list[Row], bytes | Exception | Future[bytes | Exception] | None]] = deque()
    for record in records:
        source = None if isinstance(record, list) else find_picture(record.values)
        if isinstance(source, str):
            assert isinstance(record, _Record)
            waiting.append((record, gate.submit(record.file, source)))
        else:
            waiting.append((record, source))
        while waiting and (len(waiting) >= FETCHED_AHEAD or not isinstance(source, str)):
            yield from _arrived(gate, *waiting.popleft())
    while waiting:
        yield from _arrived(gate, *waiting.popleft())


def _arrived(
    gate: _Gate, record: _Record | list[Row], image: bytes | Exception | Future[bytes | Exception] | None
) -> Iterator[tuple[_Record | list[Row], bytes | Exception | None]]:
    if isinstance(image, Future):
        yield record, image.result()
        gate.let_go()
    else:
        yield record, image


class _Gate:
    """Lets pictures be fetched ahead as long as all that are fetched and not yet decoded have `FETCHED_BYTES` together; the one that
    is waited for always may."""

    def __init__(self, rules: Callable[[str], ReferenceRules], pool: ThreadPoolExecutor) -> None:
        self.rules, self.pool = rules, pool
        self.numbers = itertools.count()
        self.changed = threading.Condition()
        self.first = 0  # the number of the next one to be decoded
        self.held: dict[int, int] = {}  # number -> bytes
        self.is_closed = False  # nothing is decoded any more, so nobody waits

    def submit(self, file: str, reference: str) -> Future[bytes | Exception]:
        """Have a picture fetched that a record of an input file names, once there is room for it."""
        return self.pool.submit(copy_context().run, self._fetch, next(self.numbers), self.rules(file), reference)

    def _fetch(self, number: int, rules: ReferenceRules, reference: str) -> bytes | Exception:
        size = known_size(reference, rules)
        with self.changed:
            self.changed.wait_for(lambda: self._has_room(number, size))
            self.held[number] = size
        image = fetch_picture(rules, reference)
        with self.changed:
            self.held[number] = len(image) if isinstance(image, bytes) else 0
        return image

    def _has_room(self, number: int, size: int) -> bool:
        return self.is_closed or number == self.first or sum(self.held.values()) + size <= FETCHED_BYTES

    def let_go(self) -> None:
        """Note that the picture that was waited for is decoded."""
        with self.changed:
            del self.held[self.first]
            self.first += 1
            self.changed.notify_all()

    def close(self) -> None:
        """Let all go that wait."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()


def _unreadable_rows(
    context: RunContext, file: InputFile, positions: Sequence[tuple[int, int]], stage: str, error: Exception | str
) -> list[Row]:
    rows = []
    for input_row, edit_index in positions:
        label = f"{file.path}#{input_row}"
        seed = derive_seed(context.job.seed, label)
        row = Row(id=label, edit_index=edit_index, input_file=file.path, input_row=input_row, seed=seed)
        got = f"{file.path}: {error}"
        row.reject(stage, RequestError("unreadable_file", field="input", got=got, allowed="a whole Parquet file"))
        rows.append(row)
    return rows


def _passed(context: RunContext, batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.Table:
    """Take the passed-through columns, one row per request, in pieces that Arrow's arrays can hold."""
    present = set(batch.schema.names)
    columns = {}
    for name, source in context.columns.passed.items():
        kind = context.schema.field(name).type
        columns[name] = to_written(batch.column(source), kind) if source in present else pa.nulls(batch.num_rows, kind)
    table = pa.table(columns)
    piece = max(1, TAKE_BYTES // max(1, table.nbytes))
    parts = [table.take(pa.array(rows[start : start + piece])) for start in range(0, len(rows), piece)]
    return pa.concat_tables(parts)


def _no_passed(context: RunContext, count: int) -> pa.Table:
    return pa.table({name: pa.nulls(count, context.schema.field(name).type) for name in context.columns.passed})


def _warn_of_unknown_shapes(rows: Sequence[Row]) -> None:
    """Warn where a picture could not be had: its canvas shape is unknown, so requests behind it may have moved up a slot."""
    lost = [row for row in rows if row.status == Status.FAILED and row.picture is None]
    if not lost:
        return
    for row in rows:
        if row.picture is not None:
            row.warnings.append(
                f"regrouped: with canvas.fit=keep the picture of record {lost[0].id!r} could not be had, and its shape is unknown; "
                "batches may be cut differently once it can be, and pixels differ within rounding"
            )
