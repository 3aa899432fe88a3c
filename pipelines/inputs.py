"""What the input is: its files in a fixed order, their footers, and how many requests each row holds."""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.schema import ColumnMap, map_columns, unify_passed
from pipelines.storage import Location, is_transient, list_files, locate, open_reader, read_bytes, retry_remote
from vimaedit.errors import ConfigError

FOOTER_GUESS_BYTES = 64 * 1024
FOOTER_THREADS = 16
MAGIC = b"PAR1"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One input file. `path` is relative to the input's root; `error` says why its footer cannot be read (then `rows` is 0)."""

    path: str
    size: int
    rows: int = 0
    footer_digest: str = ""
    target_is_list: bool = False
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class InputSet:
    """The whole input: `schema` is that of all readable files together, `column_bytes` sums the sizes of their columns."""

    root: str
    files: tuple[InputFile, ...]
    schema: pa.Schema
    columns: ColumnMap
    column_bytes: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        return sum(file.rows for file in self.files)


def scan_inputs(url: str, columns: Mapping[str, str]) -> InputSet:
    """List the input's Parquet files and read their footers; no data.

    Raises: ConfigError where there is no readable file, or where columns are missing or do not fit together.
    """
    root, listed = _list_input(url)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda entry: _read_footer(root / entry[0]), listed))
    edit_names = [columns.get(name, name) for name in ("image", "source_prompt", "target_prompt", "id", "blend_words")]
    edit_names += [columns.get(name, name) for name in ("given_mask", "seed", "overrides")]
    target = columns.get("target_prompt", "target_prompt")
    files, schema, sizes = [], None, defaultdict[str, int](int)
    for (path, size), footer in zip(listed, footers, strict=True):
        if isinstance(footer, str):
            files.append(InputFile(path=path, size=size, error=footer))
            continue
        metadata, digest = footer
        own = metadata.schema.to_arrow_schema()
        schema = unify_passed(schema, own, edit_names, path)
        _add_column_bytes(sizes, metadata)
        is_list = target in own.names and is_list_type(own.field(target).type)
        files.append(InputFile(path=path, size=size, rows=metadata.num_rows, footer_digest=digest, target_is_list=is_list))
    if schema is None:
        reason = f"; {files[0].path}: {files[0].error}" if files else ""
        raise ConfigError(f"input: got {url!r} with {len(files)} Parquet files, none of them readable{reason}")
    return InputSet(
        root=root.url, files=tuple(files), schema=schema, columns=map_columns(schema.names, columns), column_bytes=dict(sizes)
    )


def is_list_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def request_counts(place: Location, target: str) -> NDArray[np.int64]:
    """Count the requests of every row of a file whose targets are lists: (rows,). An empty or null list is one rejected row."""

    def read() -> NDArray[np.int64]:
        counts = []
        with open_reader(place) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=[target]):
                counts.append(list_counts(batch.column(0)))
        return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)

    return retry_remote(place, read)


def list_counts(column: pa.Array) -> NDArray[np.int64]:
    """Count the requests of each list in a column: its length, at least one."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    counts: NDArray[np.int64] = np.maximum(lengths.astype(np.int64), 1)
    return counts


def _list_input(url: str) -> tuple[Location, list[tuple[str, int]]]:
    place = locate(url)
    if any(sign in url for sign in "*?["):
        fixed = place.path[: min(place.path.find(sign) for sign in "*?[" if sign in place.path)]
        root = Location(place.fs, posixpath.dirname(fixed))
        wanted = set(retry_remote(place, lambda: place.fs.glob(place.path)))
        listed = [(name, size) for name, size in list_files(root) if (root / name).path in wanted]
    elif retry_remote(place, lambda: place.fs.isfile(place.path)):
        root = Location(place.fs, posixpath.dirname(place.path))
        listed = [(posixpath.basename(place.path), int(place.fs.size(place.path) or 0))]
    else:
        root, listed = place, list_files(place, ".parquet")
    if not listed:
        raise ConfigError(
            f"input: got {url!r}, where there is no Parquet file; allowed: a file, a folder or a glob of Parquet files"
        )
    return root, listed


def _read_footer(place: Location) -> tuple[pq.FileMetaData, str] | str:
    """Read a file's footer and digest it; the reason where it cannot be read for what the file is."""
    try:
        tail = read_bytes(place, start=-FOOTER_GUESS_BYTES)
        if len(tail) < 12 or tail[-4:] != MAGIC:
            return f"the file does not end as a Parquet file does ({len(tail)} bytes read from its end)"
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = read_bytes(place, start=-length)
        return pq.read_metadata(io.BytesIO(tail[-length:])), hashlib.blake2b(tail[-length:], digest_size=16).hexdigest()
    except (pa.ArrowInvalid, OSError) as error:
        if is_transient(error):
            raise
        return f"{type(error).__name__}: {error}"


def _add_column_bytes(sizes: dict[str, int], metadata: pq.FileMetaData) -> None:
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
