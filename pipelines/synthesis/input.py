"""The input of a synthesis: captions, pictures with captions, or ready prompt pairs, in Parquet; cut into chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.records.possible import ALLOWED_TYPES, can_hold
from pipelines.records.read import read_rows
from pipelines.records.scan import FOOTER_THREADS, InputFile, with_folder_fields
from pipelines.records.schema import unify_passed
from pipelines.records.types import is_list_type, to_written
from pipelines.records.values import read_label, read_record
from pipelines.store.listing import Inputs, list_input
from pipelines.store.location import Location
from pipelines.store.parquet import BrokenParquet, fits_nanoseconds, has_int96, read_footer, read_schema
from vimaedit.errors import ConfigError, RequestError
from vimaedit.types import LeftOut

READ_COLUMNS = ("image", "source_prompt", "target_prompt", "id", "blend_words", "instruction", "category")
CHUNK_ROWS = 32  # records of one object below <output>/pairs
PREFIX = "input_"  # of passed-through columns whose own name is taken


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of one input file; their candidates stand in one object, whatever else happens."""

    file: int
    first_row: int
    count: int

    @property
    def name(self) -> str:
        return f"part-{self.file:05d}-{self.first_row:010d}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionSet:
    """The whole input. `columns`: name in the contract -> name in the input; `passed`: name in the output -> in the input.

    `passed_types`: of the passed-through columns, in the types in which they are written, by their output names.
    """

    root: str
    roots: tuple[str, ...]  # of the inputs, where there are several
    files: tuple[InputFile, ...]
    columns: Mapping[str, str]
    passed: Mapping[str, str]
    passed_types: Mapping[str, pa.DataType]
    int96: str  # the unit in which times of 96 bits are read
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def num_rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One input row: its label, its values by their names in the contract, and its passed-through columns, (1 row).

    A RequestError stands in `values` where a value cannot be read, and in `error` where the whole row cannot.
    """

    id: str
    input_row: int
    values: Mapping[str, Any]
    passed: pa.Table
    error: RequestError | None = None


def scan_captions(inputs: Inputs, columns: Mapping[str, str], taken: Sequence[str]) -> CaptionSet:
    """List the input's files and read their footers. `taken`: column names that passed-through columns may not have.

    Raises: ConfigError where there is no readable file, a file is broken, or columns are missing, do not fit or cannot hold what
    they are for.
    """
    listing = list_input(inputs)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda entry: _read_footer(listing.root / entry[0]), listing.files))
    int96 = "ns" if all(footer.fits_nanoseconds for footer in footers) else "us"
    schema, files = None, []
    warnings: list[str] = []
    names: dict[str, Sequence[str]] = {}
    for (path, size), footer in zip(listing.files, footers, strict=True):
        found = footer.schemas[int96]
        schema = unify_passed(schema, found, [columns.get(name, name) for name in READ_COLUMNS], path)
        files.append(InputFile(path=path, size=size, rows=footer.rows))
        names[path] = found.names
        _refuse_impossible(found, columns, path)
    assert schema is not None
    schema = with_folder_fields(schema, listing.root.url, names, warnings)
    for name, source in columns.items():
        if name not in READ_COLUMNS:
            raise ConfigError(f"columns: got {name!r}; allowed: {', '.join(READ_COLUMNS)}")
        if source not in schema.names:
            raise ConfigError(f"columns.{name}: got {source!r}, which the input lacks; allowed: {', '.join(schema.names)}")
    known = {name: columns.get(name, name) for name in READ_COLUMNS if columns.get(name, name) in schema.names}
    if "source_prompt" not in known:
        raise ConfigError(
            f"input: got the columns {', '.join(schema.names)}; 'source_prompt' is required (columns.source_prompt=NAME says which "
            "one has the captions)"
        )
    if "target_prompt" in known and is_list_type(schema.field(known["target_prompt"]).type):
        raise ConfigError("input: got lists of target prompts; allowed: one text in each row")
    passed: dict[str, str] = {}
    for source in schema.names:
        if source in known.values():
            continue
        name = source
        while name in taken or name in passed:
            name = f"{PREFIX}{name}"
        passed[name] = source
    return CaptionSet(
        root=listing.root.url,
        roots=tuple(root.url for root in listing.roots),
        files=tuple(files),
        columns=known,
        passed=passed,
        passed_types={name: schema.field(source).type for name, source in passed.items()},
        int96=int96,
        warnings=tuple(warnings),
        left_out=listing.left_out,
    )


def _refuse_impossible(schema: pa.Schema, columns: Mapping[str, str], path: str) -> None:
    for name in (each for each in READ_COLUMNS if each in ALLOWED_TYPES):
        source = columns.get(name, name)
        if source not in schema.names or schema.names.count(source) > 1:
            continue
        kind = schema.field(source).type
        if not can_hold(name, kind) and not (pa.types.is_null(kind) and name != "source_prompt"):
            raise ConfigError(f"input: got column {source!r} as {kind} in {path}; allowed: {ALLOWED_TYPES[name]}")


def cut_chunks(captions: CaptionSet, limits: Sequence[int | None]) -> list[Chunk]:
    """Cut the input's first records into chunks; what a larger limit adds to one before it is cut anew, so that nothing that is
    made already changes. None is no limit."""
    chunks: list[Chunk] = []
    done = 0
    for limit in limits:
        end = captions.num_rows if limit is None else min(limit, captions.num_rows)
        chunks += _cut(captions, done, end)
        done = max(done, end)
    return chunks


def _cut(captions: CaptionSet, begin: int, end: int) -> Iterator[Chunk]:
    """Cut the records from `begin` to `end`, counted over all files."""
    before = 0
    for index, file in enumerate(captions.files):
        last = min(file.rows, end - before)
        for first in range(max(0, begin - before), last, CHUNK_ROWS):
            yield Chunk(file=index, first_row=first, count=min(CHUNK_ROWS, last - first))
        before += file.rows


def read_records(captions: CaptionSet, chunk: Chunk) -> Iterator[Record]:
    """Yield the records of a chunk; rows that cannot be read among them, with the reason."""
    file = captions.files[chunk.file]
    left = chunk.count
    with closing(read_rows(captions.root, file, chunk.first_row, captions.int96)) as source:
        for rows in source:
            for offset in range(min(rows.count, left)):
                if isinstance(rows.content, Exception):
                    yield _unreadable(captions, file, rows.first + offset, rows.content)
                else:
                    yield _record(captions, file, rows.first + offset, rows.content, offset)
            left -= min(rows.count, left)
            if not left:
                return


def _record(captions: CaptionSet, file: InputFile, row: int, batch: pa.RecordBatch, offset: int) -> Record:
    present = set(batch.schema.names)
    arrays = {name: batch.column(source) for name, source in captions.columns.items() if source in present}
    values = read_record(arrays, offset)
    passed = {
        name: to_written(batch.column(source).slice(offset, 1), kind) if source in present else pa.nulls(1, kind)
        for (name, source), kind in zip(captions.passed.items(), captions.passed_types.values(), strict=True)
    }
    label, error = read_label(values.get("id"), f"{file.path}#{row}")
    return Record(id=label, input_row=row, values=values, passed=pa.table(passed), error=error)


def _unreadable(captions: CaptionSet, file: InputFile, row: int, error: Exception) -> Record:
    return Record(
        id=f"{file.path}#{row}",
        input_row=row,
        values={},
        passed=pa.table({name: pa.nulls(1, kind) for name, kind in captions.passed_types.items()}),
        error=RequestError("unreadable_file", field="input", got=f"{file.path}: {error}", allowed="a whole Parquet file"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Footer:
    rows: int
    schemas: Mapping[str, pa.Schema]  # by the unit in which times of 96 bits are read
    fits_nanoseconds: bool


def _read_footer(place: Location) -> _Footer:
    try:
        metadata = read_footer(place)
        schemas = {unit: read_schema(place, unit) for unit in ("ns", "us")}
    except BrokenParquet as error:
        raise ConfigError(f"input: {error}") from error
    fits = not has_int96(metadata) or fits_nanoseconds(place, metadata)
    return _Footer(rows=metadata.num_rows, schemas=schemas, fits_nanoseconds=fits)
