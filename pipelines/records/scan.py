"""What the input is: its files in a fixed order, their footers, and how many requests each row holds."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.records.folders import Values, check_folders, check_one_value, folder_fields, folder_values
from pipelines.records.possible import ALLOWED_TYPES, can_hold
from pipelines.records.schema import EDIT_COLUMNS, ColumnMap, map_columns, unify_passed
from pipelines.records.types import is_list_type, written_type
from pipelines.store.decoded import HELD_BYTES, row_bytes
from pipelines.store.listing import ENCRYPTED, MAGIC, Inputs, list_input, shown_inputs
from pipelines.store.location import Location, is_transient, read_bytes, retry_remote
from pipelines.store.parquet import BROKEN_CONTENT, fits_nanoseconds, has_int96, open_footer, read_batches
from vimaedit.errors import ConfigError
from vimaedit.types import LeftOut

logger = logging.getLogger(__name__)

FOOTER_GUESS_BYTES = 64 * 1024
FOOTER_THREADS = 16
MAX_FOOTER_BYTES = 256 * 1024 * 1024
MAX_VALUES_PER_BYTE = 1000  # of a column in a file: a million equal values take about a kilobyte
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what a link leads to
LARGE_GROUP_BYTES = 10**9  # a unit reads its row group from the start: Parquet has no way to begin within one
READING = 2  # of the rules of what an input holds, which a plan is bound to
REFERENCED_BYTES = 4_000_000  # taken for a picture that a record names; how large it is, only fetching it would tell


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One input file. `path` is relative to the input's root; `error` says why it cannot be planned (then `rows` is 0)."""

    path: str
    size: int
    rows: int = 0
    footer_digest: str = ""
    target_is_list: bool = False
    error: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSet:
    """The whole input.

    `schema` is that of all readable files together, with passed-through columns in the types in which they are written.
    `column_bytes` sums the sizes of their columns; for pictures that records name it has an estimate. `counts` has the
    requests of every row of the files whose targets are lists, by path; `largest_rows` bounds the decoded bytes of a row of every
    readable file, by path. `warnings` are for the run as a whole. `roots`: of the inputs, where there are several. `int96`: the unit
    in which times of that type are read. `impossible`: by column of the contract, why no row can be edited.
    """

    inputs: Inputs
    root: str
    roots: tuple[str, ...]
    files: tuple[InputFile, ...]
    schema: pa.Schema
    columns: ColumnMap
    column_bytes: Mapping[str, int]
    counts: Mapping[str, NDArray[np.unsignedinteger]]
    largest_rows: Mapping[str, float]
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    int96: str = "ns"
    impossible: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def row_bytes(self) -> float:
        """The average bytes of a row, all columns and a referenced picture with it."""
        return sum(self.column_bytes.values()) / max(1, self.num_rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Footer:
    metadata: pq.FileMetaData
    schemas: Mapping[str, pa.Schema]  # by the unit in which times of 96 bits are read
    digest: str
    fits_nanoseconds: bool  # all its times of 96 bits
    counts: NDArray[np.unsignedinteger] | None  # of requests per row, where targets are lists
    largest_row: float  # bounds the decoded bytes of one

    @property
    def names(self) -> list[str]:
        names: list[str] = self.schemas["ns"].names
        return names


def scan_inputs(inputs: Inputs, columns: Mapping[str, str]) -> InputSet:
    """List the input's Parquet files and read their footers, the lengths of their lists of targets and times of 96 bits; no other
    data.

    Raises: ConfigError where there is no readable file, or where columns are missing or do not fit together.
    """
    listing = list_input(inputs)
    target = columns.get("target_prompt", "target_prompt")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda entry: _read_footer(listing.root / entry[0], entry[1], target), listing.files))
    int96 = "ns" if all(isinstance(each, str) or each.fits_nanoseconds for each in footers) else "us"
    edit_names = [columns.get(name, name) for name in EDIT_COLUMNS]
    files, schema = [], None
    readable: dict[str, _Footer] = {}
    for (path, size), footer in zip(listing.files, footers, strict=True):
        if isinstance(footer, str):
            files.append(InputFile(path=_writable(path), size=size, error=footer))
            continue
        readable[path] = footer
        schema = unify_passed(schema, footer.schemas[int96], edit_names, path)
        files.append(
            InputFile(
                path=path,
                size=size,
                rows=footer.metadata.num_rows,
                footer_digest=footer.digest,
                target_is_list=footer.counts is not None,
            )
        )
    if schema is None:
        reason = f"; {files[0].path}: {files[0].error}" if files else ""
        raise ConfigError(f"input: got {shown_inputs(inputs)} with {len(files)} Parquet files, none of them readable{reason}")
    warnings: list[str] = []
    schema = with_folder_fields(schema, listing.root.url, {path: footer.names for path, footer in readable.items()}, warnings)
    impossible = _impossible(readable, columns, warnings)
    warnings += [*_plainer_types([footer.schemas[int96] for footer in readable.values()], edit_names), *_large_groups(readable)]
    if int96 == "us":
        warnings.append("input: times of 96 bits are read in microseconds, since some lie beyond what nanoseconds can say")
    found = InputSet(
        inputs=inputs,
        root=listing.root.url,
        roots=tuple(root.url for root in listing.roots),
        files=tuple(files),
        schema=schema,
        columns=map_columns(schema.names, columns),
        column_bytes=_column_bytes(list(readable.values()), columns.get("image", "image")),
        counts={path: footer.counts for path, footer in readable.items() if footer.counts is not None},
        largest_rows={path: footer.largest_row for path, footer in readable.items()},
        warnings=tuple(warnings),
        left_out=listing.left_out,
        int96=int96,
        impossible=impossible,
    )
    for warning in (*found.warnings, *(each.text() for each in found.left_out)):
        logger.warning("%s", warning)  # now, not only at the end: it may be a reason to stop
    return found


def with_folder_fields(schema: pa.Schema, root: str, files: Mapping[str, Sequence[str]], warnings: list[str]) -> pa.Schema:
    """Append the columns that the names of folders give. `files`: the columns of each; `warnings` are appended to.

    Raises: ConfigError where a value does not fit to other files' column of that name.
    """
    for path in files:
        check_one_value(root, path)
    values: dict[str, Values] = {path: folder_values(root, path) for path in files}
    warnings += check_folders(values, {path: frozenset(names) for path, names in files.items()}, schema)
    for each in folder_fields(values.values()):
        if each.name not in schema.names:
            schema = schema.append(each)
    return schema


def request_counts(place: Location, target: str) -> NDArray[np.unsignedinteger]:
    """Count the requests of every row of a file whose targets are lists: (rows,). An empty or null list is one rejected row."""
    counts = [list_counts(batch.column(target)) for batch in read_batches(place, [target])]
    found = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    return found.astype(np.min_scalar_type(int(found.max(initial=1))))  # all files' counts are held at once


def list_counts(column: pa.Array) -> NDArray[np.int64]:
    """Count the requests of each list in a column: its length, at least one."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    counts: NDArray[np.int64] = np.maximum(lengths.astype(np.int64), 1)
    return counts


def _read_footer(place: Location, size: int, target: str) -> _Footer | str:
    """Read a file's footer, digest it and count its requests; the reason where that fails for what the file is.

    `size` is 0 where the listing does not know it.
    """
    try:
        if (reason := _no_file(place)) is not None:
            return reason
        tail = _read_end(place, size, FOOTER_GUESS_BYTES)
        if len(tail) < 12 or tail[-4:] != MAGIC:
            return _wrong_end(tail)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > MAX_FOOTER_BYTES or 0 < size < length:
            return (
                f"its footer is said to have {length - 8} bytes; the file has {size}, and {MAX_FOOTER_BYTES} are read at most"
            )
        if length > len(tail):
            tail = _read_end(place, size, length)
        # Of bytes, since they are checked and digested too.
        metadata = open_footer(tail[-length:], "ns").metadata
        if (reason := _impossible_counts(metadata, size)) is not None:
            return reason
        schemas = {unit: open_footer(tail[-length:], unit).schema_arrow for unit in ("ns", "us")}
        schema = schemas["ns"]
        # Not with a column named twice, which is refused later.
        is_list = schema.names.count(target) == 1 and is_list_type(schema.field(target).type)
        counts = request_counts(place, target) if is_list else None
        if counts is not None and len(counts) != metadata.num_rows:
            return f"its column {target!r} holds {len(counts)} lists for {metadata.num_rows} rows"
        fits = not has_int96(metadata) or fits_nanoseconds(place, metadata)
        largest = _largest_row(place, metadata)
    except BROKEN_CONTENT as error:
        if is_transient(error):
            raise
        return f"{type(error).__name__}: {str(error).strip()}"
    digest = hashlib.blake2b(tail[-length:], digest_size=16).hexdigest()
    return _Footer(metadata=metadata, schemas=schemas, digest=digest, fits_nanoseconds=fits, counts=counts, largest_row=largest)


def _largest_row(place: Location, metadata: pq.FileMetaData) -> float:
    def read(start: int, count: int) -> bytes:
        return bytes(retry_remote(place, lambda: place.fs.cat_file(place.path, start=start, end=start + count)))

    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return max((row_bytes(read, group, HELD_BYTES / max(1, group.num_rows)) for group in groups), default=0.0)


def _read_end(place: Location, size: int, count: int) -> bytes:
    """Read the last `count` bytes of a file, or all that it has. Where its size is known the store is not asked to count from
    the end: some give a byte too many."""
    return read_bytes(place, start=max(0, size - count) if size else -count)


def _writable(path: str) -> str:
    """Return a path as text that can be written: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _no_file(place: Location) -> str | None:
    """Say why a name is no file to read. A pipe or device could hold the reader for ever; a link may lead to one, or in circles."""
    if _writable(place.path) != place.path:
        return "its name is not UTF-8; rename it"
    if not place.is_local:
        return None
    try:
        is_file = stat.S_ISREG(os.stat(place.path).st_mode)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return "it is a link that leads to no file"
    return None if is_file else "it is a pipe, socket or device, not a regular file"


def _wrong_end(tail: bytes) -> str:
    if tail[-4:] == ENCRYPTED:
        return "its footer is encrypted"
    return f"the file does not end as a Parquet file does ({len(tail)} bytes read from its end)"


def _impossible_counts(metadata: pq.FileMetaData, size: int) -> str | None:
    """Say why a footer's counts cannot be true: planning works with them long before a page is read."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        return f"its footer says {metadata.num_rows} rows, its row groups {sum(rows)}"
    values = [group.column(index).num_values for group in groups for index in range(group.num_columns)]
    most = max([*rows, *values], default=0)
    if size and most > MAX_VALUES_PER_BYTE * size:
        return f"its footer says {most} values of a column in a file of {size} bytes"
    return None


def _column_bytes(footers: Sequence[_Footer], image: str) -> dict[str, int]:
    """Add up the bytes of every column, and an estimate for the pictures that the image column only names."""
    sizes: dict[str, int] = defaultdict(int)
    for footer in footers:
        metadata = footer.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            for index in range(metadata.num_columns):
                chunk = group.column(index)
                sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
                if (
                    chunk.path_in_schema == f"{image}.bytes"
                    and chunk.statistics is not None
                    and chunk.statistics.has_null_count
                ):
                    sizes[image] += REFERENCED_BYTES * chunk.statistics.null_count
        if image in footer.names and _is_text(footer.schemas["ns"].field(image).type):
            sizes[image] += REFERENCED_BYTES * metadata.num_rows
    return dict(sizes)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _impossible(footers: Mapping[str, _Footer], columns: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    """Say, by column of the contract, that its type makes every row impossible; warn where that is so in some files only."""
    found = {}
    filled = {path: footer for path, footer in footers.items() if footer.metadata.num_rows}
    for name in EDIT_COLUMNS:
        source = columns.get(name, name)
        wrong = [
            (path, kind)
            for path, footer in filled.items()
            if source in footer.names
            and not can_hold(name, kind := footer.schemas["ns"].field(source).type)
            and not _is_null(footer.metadata, source)
        ]
        if not wrong:
            continue
        text = f"got column {source!r} as {wrong[0][1]} in {wrong[0][0]}; allowed: {ALLOWED_TYPES[name]}"
        if len(wrong) == len(filled):
            found[name] = f"input: {text}"
        elif name != "given_mask":  # which not every run reads
            warnings.append(f"input: {text}; the rows of {len(wrong)} of {len(filled)} files are rejected")
    return found


def _is_null(metadata: pq.FileMetaData, name: str) -> bool:
    """Whether a column that is no nested one is said to hold nothing but nulls."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    own = [chunk for chunk in chunks if chunk.path_in_schema == name]
    return bool(own) and all(
        chunk.statistics is not None and chunk.statistics.has_null_count and chunk.statistics.null_count == chunk.num_values
        for chunk in own
    )


def _plainer_types(schemas: Iterable[pa.Schema], edit_names: Sequence[str]) -> list[str]:
    """Warn of passed-through columns that are written in another type than they are stored in."""
    found = {
        each.name: f"{each.name} ({each.type} as {kind})"
        for schema in schemas
        for each in schema
        if each.name not in edit_names and (kind := written_type(each.type)) != each.type
    }
    return [f"input columns are written in plainer types, with the same values: {', '.join(found.values())}"] if found else []


def _large_groups(footers: Mapping[str, _Footer]) -> list[str]:
    largest, where, num_files = 0, "", 0
    for path, footer in footers.items():
        metadata = footer.metadata
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        size = max(sizes, default=0)
        num_files += size > LARGE_GROUP_BYTES
        if size > largest:
            largest, where = size, path
    if not num_files:
        return []
    return [
        f"input: {where} has a row group of {largest / 1e9:.1f} GB, and {num_files} of {len(footers)} files have one of more than "
        f"{LARGE_GROUP_BYTES / 1e9:g} GB; every unit reads its row group from the start, which makes reading slow: rewrite the "
        "input with row groups of about 100 MB (row_group_size of pyarrow.parquet.write_table)"
    ]
