"""Rewrite an output into large shards, in the plan's order, a row group at a time."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.options import Shards, check_bases, check_given
from pipelines.output.finish import is_complete, write_success
from pipelines.output.parts import FOOTER_KEY, GROUP_BYTES, GROUP_ROWS, open_writer, part_name, read_parts, row_groups
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import (
    PATIENT_ATTEMPTS,
    Location,
    check_writable,
    exists,
    list_files,
    locate,
    open_reader,
    put_atomic,
    read_bytes,
    retry,
    retry_remote,
)
from pipelines.store.masking import mask_urls
from vimaedit.errors import ConfigError

logger = logging.getLogger(__name__)

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CompactConfig(Shards):
    """`jobs.compact`: which output to rewrite, and where to."""

    input: str = ""  # output of a finished editing run, local or any fsspec URL
    output: str = ""  # new or empty folder, local or any fsspec URL

    def __post_init__(self) -> None:
        check_bases(self, CompactConfig)
        check_given(self, ("input", "output"))


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What was written: shards, rows, bytes, and where."""

    shards: int
    rows: int
    bytes: int
    data: str


def compact(config: CompactConfig) -> Compacted:
    """Write the shards `data/train-00000-of-00042.parquet`, then `run.json` as it was, then `_SUCCESS`.

    Raises: ConfigError for an input that is not a finished run or whose parts are not those of its manifest, and for an output that
    is not empty.
    """
    source, output = locate(config.input), locate(config.output)
    if not is_complete(source):
        raise ConfigError(
            f"input: got {mask_urls(source.url)}, which has no _SUCCESS; allowed: the output of a run that has come to its end"
        )
    if exists(output / "_SUCCESS") or list_files(output):
        raise ConfigError(f"output: got {mask_urls(output.url)}, which is not empty; allowed: a new or empty folder")
    refuse_output_in_input(output, config.input)
    check_writable(output)
    units = _checked_units(source)
    shards = cut_shards(units, _sizes(source, units), config.shard_mb * MEGABYTE)
    rows, size = 0, 0
    for number, shard in enumerate(shards):
        place = output / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        with tempfile.TemporaryDirectory(prefix="vimaedit-compact-") as folder:
            path = os.path.join(folder, "shard")
            rows += _write_shard(source, shard, path)
            size += os.path.getsize(path)
            _put_file(place, path)
        logger.info("%d of %d shards: %d rows", number + 1, len(shards), rows)
    put_atomic(output / "run.json", read_bytes(source / "run.json"))
    write_success(output)
    return Compacted(shards=len(shards), rows=rows, bytes=size, data=mask_urls((output / "data").url))


def cut_shards(units: Sequence[str], sizes: Sequence[int], shard_bytes: float) -> list[list[str]]:
    """Cut units into consecutive shards of about equal size, as many as their bytes need at `shard_bytes` each."""
    total = sum(sizes)
    num_shards = max(1, round(total / shard_bytes))
    middles = (end - size / 2 for end, size in zip(itertools.accumulate(sizes), sizes, strict=True))
    numbers = {unit: int(middle * num_shards / total) for unit, middle in zip(units, middles, strict=True)}
    return [list(shard) for _, shard in itertools.groupby(units, key=numbers.__getitem__)]


def _checked_units(source: Location) -> list[str]:
    """Read which units a finished output has; its parts must be those that were counted at its end."""
    manifest = pq.read_table(io.BytesIO(read_bytes(source / "manifest.parquet")))
    counted = {row["unit"]: (row["generation"], row["rows"]) for row in manifest.to_pylist()}
    digest = json.loads(read_bytes(source / "run.json"))["plan_digest"]
    parts = read_parts(source, counted, digest)
    found = {unit: (part.generation, part.rows) for unit, part in parts.items()}
    if wrong := [unit for unit, facts in counted.items() if found.get(unit) != facts]:
        raise ConfigError(
            f"input: got {mask_urls(source.url)}, where {len(wrong)} of {len(counted)} parts are not those of the manifest, "
            f"{part_name(wrong[0])} the first; allowed: a finished run (jobs.edit with the same options mends it)"
        )
    return list(counted)


def _sizes(source: Location, units: Sequence[str]) -> list[int]:
    sizes = dict(list_files(source / "data", ".parquet"))
    return [sizes[part_name(unit)] for unit in units]


def _write_shard(source: Location, units: Sequence[str], path: str) -> int:
    """Write the rows of some units into a local file; return how many. Small parts share row groups."""
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    rows = 0
    try:
        for unit in units:
            for group in _read_groups(source / "data" / part_name(unit)):
                if writer is None:
                    writer = open_writer(path, group.schema)
                rows += group.num_rows
                waiting.append(group)
                if sum(each.num_rows for each in waiting) >= GROUP_ROWS or sum(each.nbytes for each in waiting) >= GROUP_BYTES:
                    _write_groups(writer, waiting)
                    waiting = []
        if writer is not None and waiting:
            _write_groups(writer, waiting)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _write_groups(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    for group in row_groups(pa.concat_tables(tables)):
        writer.write_table(group, row_group_size=max(1, group.num_rows))


def _read_groups(place: Location) -> Iterator[pa.Table]:
    """Read a part's row groups one by one, without what its footer says of the unit."""

    def count() -> int:
        with open_reader(place) as stream:
            return int(pq.read_metadata(stream).num_row_groups)

    def read(number: int) -> pa.Table:
        with open_reader(place) as stream:
            return pq.ParquetFile(stream, pre_buffer=False).read_row_group(number)

    for number in range(retry_remote(place, count)):
        group = retry_remote(place, functools.partial(read, number))
        metadata = {key: value for key, value in (group.schema.metadata or {}).items() if key != FOOTER_KEY}
        yield group.replace_schema_metadata(metadata)


def _put_file(place: Location, path: str) -> None:
    """Write a file whole or not at all, without holding it in memory."""
    if not place.is_local:
        retry(lambda: place.fs.put_file(path, place.path), attempts=PATIENT_ATTEMPTS)
        return
    folder, name = os.path.split(place.path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    shutil.copyfile(path, temporary)
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, place.path)
