"""Read a file's rows in order, a few at a time, over interruptions of the network and past row groups that are broken."""

from __future__ import annotations

import functools
import platform
from collections.abc import Generator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records.folders import folder_values, with_folders
from pipelines.records.scan import InputFile
from pipelines.store.decoded import Read, reader_of
from pipelines.store.location import PERMANENT_ERRORS, Location, is_transient, locate, open_reader
from pipelines.store.parquet import BROKEN_CONTENT, READ_ROWS, group_batches, group_bounds, resumed

BUFFER_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """`count` rows of a file from row `first` on: either their values, or why they cannot be read."""

    first: int
    count: int
    content: pa.RecordBatch | Exception


def read_rows(root: str, file: InputFile, first_row: int, int96: str) -> Generator[Rows, None, None]:
    """Yield the rows of a file below the input's root from `first_row` to its end, with the columns that the names of its folders
    give. A broken row group costs its own rows only. `int96`: the unit in which times of that type are read.

    Raises: RuntimeError where the file is not the planned one, or not there on this node; the infrastructure's errors,
    after retries.
    """
    place, folders = locate(root) / file.path, folder_values(root, file.path)
    for rows in resumed(place, functools.partial(_open_rows, place, file, int96), lambda rows: rows.count, first_row):
        content = rows.content
        yield rows if isinstance(content, Exception) else replace(rows, content=with_folders(content, folders))


def _open_rows(place: Location, file: InputFile, int96: str, first_row: int) -> Generator[Rows, None, None]:
    try:
        with open_reader(place) as stream:
            try:
                # Opened here, since a file that cannot be and one of another length are no errors of the store.
                parquet = pq.ParquetFile(
                    stream,
                    buffer_size=BUFFER_BYTES,
                    pre_buffer=False,
                    coerce_int96_timestamp_unit=int96,
                    page_checksum_verification=True,
                )
            except BROKEN_CONTENT as error:
                if _is_infrastructure(error):
                    raise
                yield Rows(first=first_row, count=file.rows - first_row, content=error)
                return
            if parquet.metadata.num_rows != file.rows:
                raise RuntimeError(
                    f"{place.url}: got {parquet.metadata.num_rows} rows on node {platform.node()}; planned were {file.rows}: "
                    "the input must not change while a run reads it"
                )
            for group, start, end in group_bounds(parquet.metadata):
                if end > first_row:
                    yield from _group_rows(parquet, reader_of(stream), group, start, end, first_row)
    except PERMANENT_ERRORS as error:
        raise RuntimeError(
            f"{place.url}: planned, but not there on node {platform.node()} ({type(error).__name__}); "
            "every worker must see the input under the same path"
        ) from error


def _group_rows(
    parquet: pq.ParquetFile, read: Read, group: int, start: int, end: int, first_row: int
) -> Generator[Rows, None, None]:
    """Yield the rows of one row group from row `first_row` of the file on."""
    position = start
    error: Exception = pa.ArrowInvalid("the row group holds fewer rows than the footer says")
    try:
        for batch in group_batches(parquet, read, group, READ_ROWS):
            part = batch.slice(max(0, first_row - position))
            position += batch.num_rows
            if part.num_rows:
                yield Rows(first=position - part.num_rows, count=part.num_rows, content=part)
    except BROKEN_CONTENT as raised:
        if _is_infrastructure(raised):
            raise
        error = raised
    position = max(position, first_row)
    if position < end:
        yield Rows(first=position, count=end - position, content=error)


def _is_infrastructure(error: Exception) -> bool:
    return isinstance(error, PERMANENT_ERRORS) or is_transient(error)
