"""Rewrite an output into large shards, in the plan's order, a row group at a time."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.options import Shards, check_bases, check_given
from pipelines.output.finish import read_run
from pipelines.output.parts import FOOTER_KEY, open_result_writer, part_name, read_parts
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import (
    Location,
    check_writable,
    exists,
    is_complete,
    list_files,
    locate,
    new_file,
    put_atomic,
    read_bytes,
    write_success,
)
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import GROUP_ROWS, read_footer, read_groups, read_table, write_groups
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
        with new_file(place) as path:
            rows += _write_shard(source, shard, path)
            size += os.path.getsize(path)
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
    manifest = read_table(source / "manifest.parquet")
    counted = {row["unit"]: (row["generation"], row["rows"]) for row in manifest.to_pylist()}
    digest = (read_run(source) or {}).get("plan_digest", "")
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
    places = [source / "data" / part_name(unit) for unit in units]
    schema = read_footer(places[0]).schema.to_arrow_schema()
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != FOOTER_KEY}  # that is of a unit
    with open_result_writer(path, schema.with_metadata(metadata)) as writer:
        return write_groups(writer, itertools.chain.from_iterable(map(read_groups, places)), GROUP_ROWS)
