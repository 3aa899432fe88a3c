"""Parquet in stores: one writer, and one reader of a footer, some columns, some rows, or everything a piece at a time."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.store.decoded import HELD_BYTES, Read, reader_of, row_bytes, rows_at_once
from pipelines.store.location import Location, is_transient, open_reader, put_atomic, read_bytes, retry_remote
from pipelines.store.masking import mask_urls
from pipelines.store.patience import PATIENT_ATTEMPTS
from vimaedit.errors import ConfigError

T = TypeVar("T")

GROUP_ROWS = 100
GROUP_BYTES = 100_000_000
READ_ROWS = 16  # decoded at a time, where rows may hold pictures
# What Arrow raises for a file that is not what Parquet says; an OSError may be the infrastructure's too: `is_transient`.
BROKEN_CONTENT = (pa.ArrowException, OSError, ValueError)


class BrokenParquet(ConfigError):
    """A file is not there, or is no whole Parquet file. The text lacks the option that named it."""


def read_footer(place: Location) -> pq.FileMetaData:
    """Read a file's footer: its rows, its schema and what was said of it.

    Raises: BrokenParquet; the infrastructure's errors, after retries.
    """

    def read() -> pq.FileMetaData:
        with open_reader(place) as stream:
            return pq.read_metadata(stream)

    try:
        return retry_remote(place, read)
    except BROKEN_CONTENT as error:
        if is_transient(error):
            raise
        reason = mask_urls(f"got {place.url}, which cannot be read ({type(error).__name__}: {error})")
        raise BrokenParquet(f"{reason}; allowed: a whole Parquet file") from error


def read_schema(place: Location, int96: str) -> pa.Schema:
    """Read the schema in which a file's rows come. `int96`: as `has_int96` says."""

    def read() -> pa.Schema:
        with _opened(place, int96=int96) as (file, _):
            return file.schema_arrow

    return retry_remote(place, read)


def open_footer(footer: bytes, int96: str) -> pq.ParquetFile:
    """Open the bytes of a footer alone, as a file of which nothing else can be read. `int96`: as `has_int96` says."""
    return pq.ParquetFile(io.BytesIO(footer), coerce_int96_timestamp_unit=int96)


def has_int96(metadata: pq.FileMetaData) -> bool:
    """Whether a file has times of 96 bits, which no type of Arrow holds all of: they are read in nanoseconds, as far as those
    reach (1677 to 2262), or in microseconds."""
    return bool(_int96_columns(metadata))


def fits_nanoseconds(place: Location, metadata: pq.FileMetaData) -> bool:
    """Whether all times of 96 bits of a file lie where nanoseconds reach; read in them, others would come out as other times."""
    for batch in read_batches(place, _int96_columns(metadata), int96="us"):
        try:
            batch.cast(_in_nanoseconds(batch.schema))
        except pa.ArrowInvalid:
            return False
    return True


def _int96_columns(metadata: pq.FileMetaData) -> list[str]:
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    return [column.path for column in columns if column.physical_type == "INT96"]


def _in_nanoseconds(schema: pa.Schema) -> pa.Schema:
    """Return the schema of some columns' parts that are times, in nanoseconds."""

    def convert(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(kind):
            return pa.timestamp("ns", kind.tz)
        if pa.types.is_struct(kind):
            return pa.struct([each.with_type(convert(each.type)) for each in kind])
        if pa.types.is_map(kind):
            return pa.map_(convert(kind.key_type), convert(kind.item_type))
        if pa.types.is_large_list(kind):
            return pa.large_list(kind.value_field.with_type(convert(kind.value_type)))
        if pa.types.is_list(kind):
            return pa.list_(kind.value_field.with_type(convert(kind.value_type)))
        return kind

    return pa.schema([each.with_type(convert(each.type)) for each in schema])


def read_table(place: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """Read some columns, or all with one request: for files that fit into memory twice.

    Raises: the infrastructure's errors, after retries; Arrow's for what is no whole Parquet file, checksums of pages among it.
    """
    if columns is None:
        return pq.read_table(pa.BufferReader(read_bytes(place, attempts=PATIENT_ATTEMPTS)), page_checksum_verification=True)

    def read() -> pa.Table:
        with open_reader(place) as stream:
            return pq.read_table(stream, columns=list(columns), page_checksum_verification=True)

    return retry_remote(place, read)


def read_batches(
    place: Location, columns: Sequence[str] | None = None, *, rows: int = 65_536, buffer_bytes: int = 0, int96: str = "ns"
) -> Generator[pa.RecordBatch, None, None]:
    """Read a file in order, so many rows at a time, over interruptions of the network. Columns that it lacks are left out.

    A column of a row group is held as it is coded, or `buffer_bytes` of it where that is given; fewer rows are decoded at a time
    where they would be large.
    """

    def from_row(position: int) -> Iterator[pa.RecordBatch]:
        with _opened(place, buffer_bytes, int96) as (file, read):
            for number, start, end in group_bounds(file.metadata):
                if end <= position:
                    continue
                for batch in group_batches(file, read, number, rows, columns):
                    part = batch.slice(max(0, position - start))
                    start += batch.num_rows
                    if part.num_rows:
                        yield part

    return resumed(place, from_row, lambda batch: int(batch.num_rows))


def read_groups(place: Location) -> Generator[pa.Table, None, None]:
    """Read a file one whole row group after another."""

    def from_group(position: int) -> Iterator[pa.Table]:
        with _opened(place) as (file, _):
            for number in range(position, file.num_row_groups):
                yield file.read_row_group(number)

    return resumed(place, from_group, lambda group: 1)


def take_rows(place: Location, rows: Collection[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Read single rows, at least one: a table of them in the file's order. Row groups without any of them are skipped.

    Columns that the file lacks are left out.
    """

    def read() -> pa.Table:
        found = []
        with _opened(place) as (file, read_at):
            for number, start, end in group_bounds(file.metadata):
                wanted = sorted(row for row in set(rows) if start <= row < end)
                if not wanted:
                    continue
                for batch in group_batches(file, read_at, number, READ_ROWS, columns):
                    inside = [row - start for row in wanted if start <= row < start + batch.num_rows]
                    if inside:
                        found.append(batch.take(pa.array(inside, pa.int64())))
                    start += batch.num_rows
                    if start > wanted[-1]:
                        break
        return pa.Table.from_batches(found)

    return retry_remote(place, read)


def rows_together(place: Location, rows: Collection[int], columns: Sequence[str]) -> int:
    """Say how many of these rows may be held decoded at a time, at least one."""

    def read() -> int:
        with _opened(place) as (file, read_at):
            groups = [n for n, start, end in group_bounds(file.metadata) if any(start <= row < end for row in rows)]
            largest = [row_bytes(read_at, file.metadata.row_group(n), HELD_BYTES / len(rows), columns) for n in groups]
            return max(1, min(len(rows), int(HELD_BYTES / max([1.0, *largest]))))

    return retry_remote(place, read)


def group_batches(
    file: pq.ParquetFile, read: Read, group: int, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Decode a row group at most so many rows at a time, fewer where they are large. `read`: of the file's bytes."""
    names = None if columns is None else {name.split(".")[0] for name in columns}
    size = rows_at_once(read, file.metadata.row_group(group), rows, names)
    batches: Iterator[pa.RecordBatch] = file.iter_batches(batch_size=size, row_groups=[group], columns=columns)
    return batches


def group_bounds(metadata: pq.FileMetaData) -> Iterator[tuple[int, int, int]]:
    """Yield the number of every row group, its first row in the file and the row after its last."""
    start = 0
    for number in range(metadata.num_row_groups):
        end = start + metadata.row_group(number).num_rows
        yield number, start, end
        start = end


def resumed(
    place: Location, source: Callable[[int], Iterator[T]], size: Callable[[T], int], position: int = 0
) -> Generator[T, None, None]:
    """Yield what `source` gives from a position on. After an interruption a new source goes on behind what was yielded.

    Raises: what the source raises that is not the infrastructure's; the infrastructure's errors, after retries.
    """
    current: Iterator[T] | None = None

    def advance() -> T | None:
        nonlocal current
        current = source(position) if current is None else current
        try:
            return next(current, None)
        except Exception:
            current = None  # a generator that has raised is done with
            raise

    try:
        while (item := retry_remote(place, advance)) is not None:
            position += size(item)
            yield item
    finally:
        if isinstance(current, Generator):
            current.close()


def table_bytes(table: pa.Table) -> bytes:
    """Code a small table, byte for byte the same every time."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def put_table(place: Location, table: pa.Table) -> None:
    """Write a small table as one object, whole or not at all."""
    put_atomic(place, table_bytes(table))


def leaf_names(schema: pa.Schema) -> list[str]:
    """Name the Parquet columns that a schema becomes."""
    columns = pq.ParquetFile(pa.BufferReader(table_bytes(schema.empty_table()))).schema
    return [columns.column(index).path for index in range(len(columns))]


def open_writer(target: Any, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Open a writer into a stream or a local file; `options` are those of `pq.ParquetWriter`."""
    return pq.ParquetWriter(target, schema, **{"compression": "zstd", "write_page_checksum": True, **options})


def write_group(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """Write a table as one row group."""
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def write_groups(writer: pq.ParquetWriter, tables: Iterable[pa.Table], full_rows: float = math.inf) -> int:
    """Write tables in row groups, small ones together; return how many rows that were.

    Held at a time are as many tables as together have `full_rows` rows or fill a row group.
    """
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if sum(each.num_rows for each in held) >= full_rows or sum(each.nbytes for each in held) >= GROUP_BYTES:
            _write_held(writer, held)
            held = []
    if held:
        _write_held(writer, held)
    return rows


def _write_held(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    for group in row_groups(pa.concat_tables(tables)):
        write_group(writer, group)


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


@contextmanager
def _opened(place: Location, buffer_bytes: int = 0, int96: str = "ns") -> Iterator[tuple[pq.ParquetFile, Read]]:
    """Open a file to be read a piece at a time, and its bytes. Without pre_buffer: it would hold all columns of all row groups, as
    coded."""
    with open_reader(place) as stream:
        file = pq.ParquetFile(
            stream,
            pre_buffer=False,
            buffer_size=buffer_bytes,
            coerce_int96_timestamp_unit=int96,
            page_checksum_verification=True,
        )
        yield file, reader_of(stream)
